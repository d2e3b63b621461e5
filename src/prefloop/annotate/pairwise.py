"""Comparisons by a language model that answers A or B, in the format of RLHFlow's pair-preference models.

p = p(A) / (p(A) + p(B)), averaged over both orders, so that p(a, b) = 1 - p(b, a) exactly.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from transformers import PreTrainedModel

from prefloop.batches import Codec, TokenGroup
from prefloop.config import PairwiseAnnotator, RuntimeSection
from prefloop.forward import LogpsModule, all_sequence_logps
from prefloop.interfaces import InputError, PairTask
from prefloop.modeling import load_policy, load_tokenizer
from prefloop.records import Comparison, Completion, Message, Prompt, Refusal

TASKS_AT_ONCE = 64
PLACES = ("context", "a", "b")
PLACE = re.compile(r"\{(context|a|b)\}")
LETTERS = ("A", "B")
LABELS_PER_TASK = 2
"""Both orders are asked."""
TOO_LONG = "too_long"
GRID = 2**32
"""Probabilities are rounded to multiples of 1 / GRID, for which 1 - p has no rounding error."""


class PairwiseComparer:
    """A causal language model that says which of two completions is better."""

    def __init__(
        self, model: PreTrainedModel, codec: Codec, *, name: str, template: str, runtime: RuntimeSection
    ) -> None:
        missing = [place for place in PLACES if f"{{{place}}}" not in template]
        if missing:
            raise InputError(f"pairwise template: lacks {', '.join(f'{{{place}}}' for place in missing)}")
        self.name = name
        self.module = LogpsModule(model, pad_id=codec.pad_id, runtime=runtime)
        self.codec = codec
        self.template = template
        self.runtime = runtime
        self._letter_ids = letter_ids(codec, name)
        self._max_length: int | None = getattr(model.config, "max_position_embeddings", None)

    def compare(self, tasks: Iterable[PairTask]) -> Iterator[Comparison | Refusal]:
        """Yields one row a task, in order. Texts that do not fit into the model are refused, never cut."""
        remaining = iter(tasks)
        while chunk := list(islice(remaining, TASKS_AT_ONCE)):
            yield from self._compare(chunk)

    def p_shown(self, tasks: Sequence[PairTask]) -> list[tuple[float, float] | None]:
        """P(the one shown first is better) for a shown first, then for b; None where a task does not fit the model."""
        questions = [one for task in tasks for one in self._both_orders(task)]
        fits = [self._max_length is None or one.longest <= self._max_length for one in questions]
        values = iter(self._p_first([one for one, fit in zip(questions, fits, strict=True) if fit]))
        shown = [next(values) if fit else None for fit in fits]
        return [
            None if p_ab is None or p_ba is None else (p_ab, p_ba)
            for p_ab, p_ba in zip(shown[::2], shown[1::2], strict=True)
        ]

    def _compare(self, tasks: Sequence[PairTask]) -> Iterator[Comparison | Refusal]:
        for task, shown in zip(tasks, self.p_shown(tasks), strict=True):
            if shown is None:
                yield Refusal(
                    prompt_id=task.prompt.id,
                    completion_ids=(task.a.id, task.b.id),
                    annotator=self.name,
                    reason=TOO_LONG,
                    labels=0,
                )
                continue
            yield Comparison(
                prompt_id=task.prompt.id,
                a=task.a.id,
                b=task.b.id,
                p_a=both_orders(*shown),
                annotator=self.name,
                presented="both",
                labels=LABELS_PER_TASK,
            )

    def _both_orders(self, task: PairTask) -> tuple[TokenGroup, TokenGroup]:
        return self._question(task.prompt, task.a, task.b), self._question(task.prompt, task.b, task.a)

    def _question(self, prompt: Prompt, first: Completion, second: Completion) -> TokenGroup:
        """The question, and its two answers as completions."""
        texts = {"context": conversation_text(prompt.messages), "a": first.text, "b": second.text}
        # one pass, so that a text that holds {b} stays as it is
        question = PLACE.sub(lambda match: texts[match[1]], self.template)
        ids = self.codec.prompt_ids((Message(role="user", content=question),))
        return TokenGroup(tuple(ids), tuple((letter,) for letter in self._letter_ids))

    def _p_first(self, questions: Sequence[TokenGroup]) -> list[float]:
        """The probability of A against B after each question, in the order given."""
        logps = all_sequence_logps(self.module, questions, self.runtime)
        return [1 / (1 + math.exp(b - a)) for a, b in logps]


def load_pairwise(options: PairwiseAnnotator, runtime: RuntimeSection) -> PairwiseComparer:
    """The comparer of a model folder or hub name. Raises InputError for reward models and classifiers."""
    model = load_policy(options.model, runtime)
    codec = Codec(load_tokenizer(options.model))
    name = f"pairwise/{options.model}"
    return PairwiseComparer(model, codec, name=name, template=options.template, runtime=runtime)


def letter_ids(codec: Codec, name: str) -> tuple[int, int]:
    """The tokens that an answer "A" and an answer "B" consist of. Raises InputError where that is not one each."""
    question = (Message(role="user", content="?"),)
    # as they continue the question, without the terminator
    a, b = (codec.answer_ids(question, letter)[:-1] for letter in LETTERS)
    if len(a) != 1 or len(b) != 1 or a == b:
        raise InputError(
            f"{name}: the tokenizer writes A as {a} and B as {b}; a pairwise model needs one token each, and different"
        )
    return a[0], b[0]


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation as plain text with RLHFlow's turn marks, as its pairwise models saw it in training."""
    turns = "".join(f"\n<turn> {message.role}\n {message.content}" for message in messages)
    return f"\n{turns}\n\n"


def both_orders(p_ab: float, p_ba: float) -> float:
    """P(a is better), from the probability of the one shown first in the orders ab and ba."""
    return round((p_ab + 1 - p_ba) / 2 * GRID) / GRID


# --- from comparisons to a ranking -----------------------------------------------------------------------------------
