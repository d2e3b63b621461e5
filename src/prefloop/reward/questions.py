"""Comparisons as a question to a language model that answers A or B, in the format of RLHFlow's pair-preference models.

p = p(A) / (p(A) + p(B)), averaged over both orders, so that p(a, b) = 1 - p(b, a) exactly.
"""

import math
import re
from collections.abc import Sequence

from prefloop.batches import Codec, TokenGroup
from prefloop.config import RuntimeSection
from prefloop.forward import LogpsModule, all_sequence_logps
from prefloop.interfaces import InputError, PairTask
from prefloop.records import Completion, Message, Prompt

PLACES = ("context", "a", "b")
PLACE = re.compile(r"\{(context|a|b)\}")
LETTERS = ("A", "B")
GRID = 2**32
"""Probabilities are rounded to multiples of 1 / GRID, for which 1 - p has no rounding error."""


class Questions:
    """Writes questions for one model: a template, and the tokens of the two letters."""

    def __init__(self, codec: Codec, *, template: str, name: str) -> None:
        missing = [place for place in PLACES if f"{{{place}}}" not in template]
        if missing:
            raise InputError(f"pairwise template: lacks {', '.join(f'{{{place}}}' for place in missing)}")
        self._codec = codec
        self._template = template
        self._letters = letter_ids(codec, name)

    def ask(self, prompt: Prompt, first: Completion, second: Completion) -> TokenGroup:
        """The question which of two is better, and its two answers, A and B, as completions."""
        texts = {"context": conversation_text(prompt.messages), "a": first.text, "b": second.text}
        # one pass, so that a text that holds {b} stays as it is
        question = PLACE.sub(lambda match: texts[match[1]], self._template)
        ids = self._codec.prompt_ids((Message(role="user", content=question),))
        return TokenGroup(tuple(ids), tuple((letter,) for letter in self._letters))

    def both_orders(self, task: PairTask) -> tuple[TokenGroup, TokenGroup]:
        """The question with a shown first, and with b shown first."""
        return self.ask(task.prompt, task.a, task.b), self.ask(task.prompt, task.b, task.a)


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


def p_shown(
    module: LogpsModule,
    questions: Questions,
    tasks: Sequence[PairTask],
    runtime: RuntimeSection,
    *,
    max_length: int | None,
) -> list[tuple[float, float] | None]:
    """P(the one shown first is better) for a shown first, then for b; None where a task is longer than `max_length`."""
    asked = [one for task in tasks for one in questions.both_orders(task)]
    fits = [max_length is None or one.longest <= max_length for one in asked]
    logps = all_sequence_logps(module, [one for one, fit in zip(asked, fits, strict=True) if fit], runtime)
    values = iter([1 / (1 + math.exp(b - a)) for a, b in logps])
    shown = [next(values) if fit else None for fit in fits]
    return [
        None if p_ab is None or p_ba is None else (p_ab, p_ba)
        for p_ab, p_ba in zip(shown[::2], shown[1::2], strict=True)
    ]


def over_both_orders(p_ab: float, p_ba: float) -> float:
    """P(a is better), from the probability of the one shown first in the orders ab and ba."""
    return round((p_ab + 1 - p_ba) / 2 * GRID) / GRID
