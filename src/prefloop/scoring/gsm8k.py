"""GSM8K: whether the number that a solution ends in is the right one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, counted, mean_figure
from prefloop.scoring.paired import Solved
from prefloop.scoring.reading import has, need, rows_of, unknown_format

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
            truth = str(need(row, "ground_truth", place))
            for model, one in graded.items():
                text = str(one["solution"])
                yield Solution(model, question, text, is_right(text, truth), one.get("is_correct"))
        elif has(row, FORMATS["solutions"]):
            truth = str(need(row, "answer", place))
            if final_number(truth) is None:
                truth = f"#### {truth}"
            text = str(need(row, "solution", place))
            yield Solution(str(row.get("model") or "model"), question, text, is_right(text, truth), None)
        else:
            raise unknown_format(path, row, FORMATS)


def read_solutions(path: str) -> dict[str, Solved]:
    """What each model got right, by question. Raises InputError."""
    found: dict[str, Solved] = {}
    for one in solutions(path):
        found.setdefault(one.model, Solved()).add(one.question, one.right, one.text)
    return found


def score(path: str, *, draws: int, models: Sequence[str] = ()) -> list[Scored]:
    """Every model of a file of solutions, or those named. Raises InputError."""
    right: dict[str, list[bool]] = {}
    equal: dict[str, list[bool]] = {}
    for one in solutions(path):
        right.setdefault(one.model, []).append(one.right)
        if one.stored is not None:
            equal.setdefault(one.model, []).append(one.right == one.stored)
    if missing := set(models) - right.keys():
        raise InputError(f"{path}: no solutions of {', '.join(sorted(missing))}")
    found = []
    for model, flags in right.items():
        if models and model not in models:
            continue
        figures = {
            "num_questions": counted(len(flags), len(flags)),
            "num_correct": counted(sum(flags), len(flags)),
            "accuracy": mean_figure([float(one) for one in flags], draws=draws, times=100),
        }
        if model in equal:
            share = sum(equal[model]) / len(equal[model])
            figures["share_equal_to_stored"] = Figure(share, len(equal[model]))
        found.append(Scored(NAME, model, figures, len(flags)))
    return found
