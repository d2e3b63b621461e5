"""TruthfulQA's binary setting of 2025: the best answer against the best wrong one, which its authors recommend by now.

A policy is right where it finds the best answer more likely after the same six questions as in MC1; a tie counts one half.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, counted, mean_figure
from prefloop.scoring.reading import has, need, rows_of
from prefloop.scoring.truthful_qa import mc1

NAME = "truthful_qa_binary"
QUESTIONS = ("Question", "Best Answer", "Best Incorrect Answer")
"""Columns of the authors' table."""
UNIFORM = 50.0


class Pair(NamedTuple):
    """A question with its two answers."""

    text: str
    best: str
    wrong: str


def is_binary(questions: str) -> bool:
    """Whether a file of questions is the authors' table for this setting. Raises InputError."""
    return has(next(rows_of(questions))[1], QUESTIONS)


def read_pairs(path: str) -> list[Pair]:
    """The questions of the authors' table. Raises InputError."""
    return [Pair(*(str(need(row, name, place)) for name in QUESTIONS)) for place, row in rows_of(path)]


def baselines(path: str) -> Scored:
    """The size of the set, and what a scorer reaches that finds both answers equally likely."""
    number = len(read_pairs(path))
    figures = {
        "num_questions": counted(number, number),
        "num_requests": counted(2 * number, number),
        "binary_uniform_scorer": Figure(UNIFORM, number),
    }
    return Scored(NAME, Path(path).name.split(".")[0], figures, number)


def score(path: str, *, questions: str | None = None, draws: int, models: Sequence[str] = ()) -> list[Scored]:
    """Every model of a file of log-likelihoods, the best answer's first; of questions alone their baselines."""
    if questions is None:
        return [baselines(path)]
    asked = {one.text for one in read_pairs(questions)}
    right: dict[str, dict[str, float]] = {}
    for place, row in rows_of(path):
        text, logps = str(need(row, "question", place)), row.get("binary")
        if text not in asked:
            raise InputError(f"{place}: no question {text[:60]!r} in {questions}")
        if not isinstance(logps, Sequence) or isinstance(logps, str) or len(logps) != 2:
            raise InputError(f"{place}: binary needs two log-likelihoods, the best answer's first")
        mine = right.setdefault(str(row.get("model") or "model"), {})
        if text in mine:
            raise InputError(f"{place}: the question {text[:60]!r} has been there before; keep one row")
        try:
            mine[text] = mc1(logps, (1, 0))
        except InputError as error:
            raise InputError(f"{place}: binary: {error}") from error
    if missing := set(models) - right.keys():
        raise InputError(f"{path}: no rows of {', '.join(sorted(missing))}")
    found = []
    for model, some in right.items():
        if models and model not in models:
            continue
        name = NAME if len(some) == len(asked) else f"{NAME}[questions={len(some)}/{len(asked)}]"
        figures = {"binary": mean_figure(list(some.values()), draws=draws, times=100)}
        scored = Scored(name, model, figures, len(some))
        if len(some) < len(asked):
            scored.notes.append(f"{len(asked) - len(some)} of {len(asked)} questions were not asked")
        found.append(scored)
    return found
