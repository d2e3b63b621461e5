"""GSM8K: whether the number that a solution ends in is the right one."""

import re
from collections.abc import Mapping, Sequence

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, counted, mean_figure
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


def score(path: str, *, draws: int, models: Sequence[str] = ()) -> list[Scored]:
    """Every model of a file of solutions, or those named. Raises InputError."""
    right: dict[str, list[bool]] = {}
    equal: dict[str, list[bool]] = {}
    for place, row in rows_of(path):
        graded = {
            str(name): one for name, one in row.items() if isinstance(one, Mapping) and "solution" in one
        }
        if graded and "ground_truth" in row:
            truth = str(need(row, "ground_truth", place))
            for model, one in graded.items():
                right.setdefault(model, []).append(is_right(str(one["solution"]), truth))
                if "is_correct" in one:
                    equal.setdefault(model, []).append(right[model][-1] == one["is_correct"])
        elif has(row, FORMATS["solutions"]):
            model = str(row.get("model") or "model")
            truth = str(need(row, "answer", place))
            if final_number(truth) is None:
                truth = f"#### {truth}"
            right.setdefault(model, []).append(is_right(str(need(row, "solution", place)), truth))
        else:
            raise unknown_format(path, row, FORMATS)
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
