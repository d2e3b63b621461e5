"""GSM8K: whether the number that a solution ends in is the right one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, clustered_figure, counted
from prefloop.scoring.paired import Solved
from prefloop.scoring.reading import Row, has, need, rows_of, unknown_format

NAME = "gsm8k"
FINAL = re.compile(r"(?:####|A:)\s*\$?\s*(-?\$?[\d,]*\.?\d+|-?[\d,]+\.?)")
FORMATS = {
    "graded solutions": ("question", "ground_truth", "a column for each model with solution and is_correct"),
    "solutions": ("answer", "solution"),
}


def final_number(text: str) -> float | None:
    """The last number after `####` or `A:`; None where there is none."""
    found = FINAL.findall(text)
    if not found:
        return None
    digits = found[-1].replace("$", "").replace(",", "").rstrip(".")
    try:
        return float(digits)
    except ValueError:
        return None


def is_right(solution: str, truth: str) -> bool:
    """Whether both end in the same number."""
    found, wanted = final_number(solution), final_number(truth)
    return found is not None and found == wanted


class Solution(NamedTuple):
    """What one model wrote about a question."""

    model: str
    question: str
    """A row without a question is one of its own."""
    text: str
    right: bool
    stored: bool | None
    """What the file says."""


def solutions(path: str) -> Iterator[Solution]:
    """Every solution of a file. Raises InputError."""
    for place, row in rows_of(path):
        graded = {
            str(name): one for name, one in row.items() if isinstance(one, Mapping) and "solution" in one
        }
        question = str(row.get("question") or place)
        if graded and "ground_truth" in row:
            truth = _truth(row, "ground_truth", place)
            for model, one in graded.items():
                text = str(one["solution"] or "")
                yield Solution(model, question, text, is_right(text, truth), one.get("is_correct"))
        elif has(row, FORMATS["solutions"]):
            truth = _truth(row, "answer", place)
            text = str(row["solution"] or "")  # a policy that says nothing is wrong, and counts
            yield Solution(str(row.get("model") or "model"), question, text, is_right(text, truth), None)
        else:
            raise unknown_format(path, row, FORMATS)


def _truth(row: Row, name: str, place: str) -> str:
    """The right answer, marked as the data set marks it; a bare number is one as well."""
    given = str(need(row, name, place))
    marked = given if final_number(given) is not None else f"#### {given}"
    if final_number(marked) is None:
        raise InputError(
            f"{place}: {name} ends in no number, so that no solution could be right: {given[-40:]!r}"
        )
    return marked


def read_solutions(path: str) -> dict[str, Solved]:
    """What each model got right, by question. Raises InputError."""
    found: dict[str, Solved] = {}
    for one in solutions(path):
        found.setdefault(one.model, Solved()).add(one.question, one.right, one.text)
    return found


def score(path: str, *, draws: int, models: Sequence[str] = ()) -> list[Scored]:
    """Every model of a file of solutions, or those named. Raises InputError."""
    right: dict[str, list[bool]] = {}
    questions: dict[str, list[str]] = {}
    equal: dict[str, list[bool]] = {}
    for one in solutions(path):
        right.setdefault(one.model, []).append(one.right)
        questions.setdefault(one.model, []).append(one.question)
        if one.stored is not None:
            equal.setdefault(one.model, []).append(one.right == one.stored)
    if missing := set(models) - right.keys():
        raise InputError(f"{path}: no solutions of {', '.join(sorted(missing))}")
    found = []
    for model, flags in right.items():
        if models and model not in models:
            continue
        values = np.array(flags, dtype=float)
        figures = {
            "num_questions": counted(len(set(questions[model])), len(flags)),
            "num_correct": counted(sum(flags), len(flags)),
            "accuracy": clustered_figure(values, questions[model], draws=draws, times=100),
        }
        if model in equal:
            share = sum(equal[model]) / len(equal[model])
            figures["share_equal_to_stored"] = Figure(share, len(equal[model]))
        found.append(Scored(NAME, model, figures, len(flags)))
    return found
