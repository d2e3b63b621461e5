"""Results of lm-eval's tasks, from what every document counted: each metric with its interval over documents."""

import math
from collections.abc import Mapping, Sequence

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, mean_figure
from prefloop.scoring.reading import Row, has, rows_of, unknown_format

NAME = "lm_eval"
FORMATS = {"documents": ("task", "doc_id", "filter", "values"), "results": ("task", "results", "about")}
SAME = 1e-9


def score(path: str, *, draws: int, models: Sequence[str] = ()) -> list[Scored]:
    """Every task of a file that `prefloop eval` wrote. Raises InputError."""
    documents: dict[str, list[Row]] = {}
    results: dict[str, Row] = {}
    for _, row in rows_of(path):
        if has(row, FORMATS["results"]):
            results[str(row["task"])] = row
        elif has(row, FORMATS["documents"]):
            documents.setdefault(str(row["task"]), []).append(row)
        else:
            raise unknown_format(path, row, FORMATS)
    if models and not set(models) <= {str(one.get("model")) for one in results.values()}:
        raise InputError(f"{path}: no results of {', '.join(models)}")
    return [_scored(task, row, documents.get(task, []), draws) for task, row in results.items()]


def _scored(task: str, row: Row, documents: Sequence[Row], draws: int) -> Scored:
    about = ", ".join(f"{name}={value}" for name, value in row["about"].items())
    number = len({one["doc_id"] for one in documents})
    found = Scored(f"{NAME}/{task}[{about}]", str(row.get("model")), {}, number)
    for name, value in row["results"].items():
        metric, _, filtered = name.partition(",")
        values = [
            float(one["values"][metric])
            for one in documents
            if one["filter"] == filtered and isinstance(one["values"].get(metric), int | float)
        ]
        shown = metric if filtered == "none" else name
        found.figures[shown] = _figure(value, values, draws)
    return found


def _figure(value: float, values: Sequence[float], draws: int) -> Figure:
    """With an interval where it is the mean over documents; others, such as BLEU, are of all documents together."""
    if values and math.isclose(sum(values) / len(values), value, rel_tol=SAME, abs_tol=SAME):
        return mean_figure(values, draws=draws)
    return Figure(value, len(values))


def units(rows: Sequence[Row]) -> Mapping[str, float]:
    """The first metric of the first task, by document."""
    first = next((one for one in rows if "results" in one), None)
    if first is None:
        return {}
    metric, _, filtered = next(iter(first["results"])).partition(",")
    return {
        str(one["doc_id"]): float(one["values"][metric])
        for one in rows
        if one["task"] == first["task"]
        and one.get("filter") == filtered
        and isinstance(one["values"].get(metric), int | float)
    }
