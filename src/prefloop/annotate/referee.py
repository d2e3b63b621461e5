"""Asks a judge in words of a benchmark, and keeps all that it says: what its words mean is read from them afterwards."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prefloop.annotate.endpoint import Ask, Body, Endpoint
from prefloop.config import JudgeAnnotator
from prefloop.wording import Asking


class Referee:
    """An endpoint with a cache: what was asked before is not asked again."""

    def __init__(self, options: JudgeAnnotator, cache: Path) -> None:
        self.name = options.model
        self._options = options
        self._endpoint = Endpoint(options, cache)

    def replies(self, questions: Iterable[Asking]) -> Iterator[str]:
        """Yields what the judge says to each question, in order. Raises Unavailable after the replies that came before."""
        yield from self._endpoint.run(self._reply, questions)

    def _reply(self, ask: Ask, question: Asking) -> str:
        turns: Sequence[tuple[str, str]] = (("system", question.system), ("user", question.user))
        body: Body = {
            "model": self._options.model,
            "messages": [{"role": role, "content": text} for role, text in turns if text],
            "temperature": self._options.temperature,
            "max_tokens": self._options.max_tokens,
        }
        return ask(body).text
