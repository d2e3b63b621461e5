"""A policy's opinion of its own completions: how likely it says A, for good, rather than B (arXiv:2405.00451)."""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers import PreTrainedModel

from prefloop.annotate.reward_model import finite
from prefloop.batches import Codec, TokenGroup
from prefloop.config import RuntimeSection, SelfEvaluation
from prefloop.forward import LogpsModule, all_sequence_logps
from prefloop.interfaces import InputError
from prefloop.modeling import context_of, load_codec, load_policy
from prefloop.records import Completion, Group, Message, Prompt, Refusal, Score
from prefloop.reward.questions import conversation_text, letter_ids

TEMPLATE = """[CONTEXT] {context} [ANSWER] {completion}
Is this answer correct, and what was asked for?
A. Yes.
B. No.
Reply with A or B."""
PLACES = ("context", "completion")
PLACE = re.compile(r"\{(context|completion)\}")
TOO_LONG = "too_long"


class SelfEvaluationScorer:
    """Scores every completion with P(A) / (P(A) + P(B)) after the question whether it is good."""

    def __init__(
        self, model: PreTrainedModel, codec: Codec, *, name: str, template: str, runtime: RuntimeSection
    ) -> None:
        missing = [place for place in PLACES if f"{{{place}}}" not in template]
        if missing:
            raise InputError(
                f"self-evaluation template: lacks {', '.join(f'{{{place}}}' for place in missing)}"
            )
        self.name = name
        self._codec = codec
        self._template = template
        self._runtime = runtime
        self._letters = letter_ids(codec, name)
        self._context = context_of(model.config)
        self._module = LogpsModule(model, pad_id=codec.pad_id, runtime=runtime)

    def score(self, groups: Iterable[Group]) -> Iterator[Score | Refusal]:
        """Yields one row a completion, in order. Questions that do not fit into the model are refused, never cut."""
        together = [(group.prompt, completion) for group in groups for completion in group.completions]
        asked = [self._ask(*one) for one in together]
        fits = [one.longest <= self._context for one in asked]
        logps = all_sequence_logps(
            self._module, [one for one, fit in zip(asked, fits, strict=True) if fit], self._runtime
        )
        values = iter([1 / (1 + math.exp(b - a)) for a, b in logps])
        for (prompt, completion), fit in zip(together, fits, strict=True):
            if fit:
                yield Score(
                    prompt_id=prompt.id,
                    completion_id=completion.id,
                    value=finite(next(values), self.name, prompt),
                    annotator=self.name,
                    labels=0,
                )
            else:
                yield Refusal(
                    prompt_id=prompt.id,
                    completion_ids=(completion.id,),
                    annotator=self.name,
                    reason=TOO_LONG,
                    labels=0,
                )

    def _ask(self, prompt: Prompt, completion: Completion) -> TokenGroup:
        """The question, and its two answers as completions."""
        texts = {"context": conversation_text(prompt.messages), "completion": completion.text}
        # one pass, so that a text that holds {completion} stays as it is
        question = PLACE.sub(lambda match: texts[match[1]], self._template)
        ids = self._codec.prompt_ids((Message(role="user", content=question),))
        return TokenGroup(tuple(ids), tuple((letter,) for letter in self._letters))


def load_self_evaluation(
    folder: Path, options: SelfEvaluation, runtime: RuntimeSection
) -> SelfEvaluationScorer:
    """The scorer of the policy in a model folder."""
    return SelfEvaluationScorer(
        load_policy(folder, runtime),
        load_codec(folder),
        name=f"self:{folder.parent.name}",
        template=TEMPLATE if options.template == "auto" else options.template,
        runtime=runtime,
    )
