"""Scores from a function in a file of the user's own."""

import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Real

from prefloop.config import FunctionAnnotator
from prefloop.interfaces import InputError
from prefloop.records import Completion, Group, Prompt, Score
from prefloop.targets import load_function, split_target, told

Function = Callable[[str, str, str | None], object]
"""`f(prompt, completion, answer)` of the last user turn, the completion and the reference answer, if there is one."""


class FunctionScorer:
    """Scores every completion with the user's function; each call is one label."""

    def __init__(self, options: FunctionAnnotator) -> None:
        self.target = options.target
        self.name = f"function/{split_target(options.target)[1]}"
        self._function: Function = load_function(options.target)

    def score(self, groups: Iterable[Group]) -> Iterator[Score]:
        """Yields one score a completion, in order. Raises InputError where the function fails or gives no number."""
        for group in groups:
            for completion in group.completions:
                yield Score(
                    prompt_id=group.prompt.id,
                    completion_id=completion.id,
                    value=self._value(group.prompt, completion),
                    annotator=self.name,
                )

    def _value(self, prompt: Prompt, completion: Completion) -> float:
        where = f"{self.target}: prompt {prompt.id}, completion {completion.id}"
        try:
            value = self._function(prompt.text, completion.text, prompt.answer)
        except Exception as error:
            raise InputError(f"{where}: {told(error)}; make it return a number for any text") from error
        if not isinstance(value, Real):
            raise InputError(f"{where}: returned {value!r}, a {type(value).__name__}; return a float")
        if not math.isfinite(value):
            raise InputError(f"{where}: returned {value}; a score must be finite")
        return float(value)
