"""Results of tests, as HumanEval's harness and its like write them: a task a row and whether its answer passed."""

from collections.abc import Mapping
from pathlib import Path

from prefloop.interfaces import InputError
from prefloop.scoring.paired import Solved
from prefloop.scoring.reading import has, need, rows_of, unknown_format

NAME = "human_eval"
FORMATS = {"results": ("task_id", "passed")}
FLAGS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
"""Also as tables write them."""


def read_results(path: str) -> Mapping[str, Solved]:
    """Results by model; a file that names none is about the model that it is called by. Raises InputError."""
    found: dict[str, Solved] = {}
    for place, row in rows_of(path):
        if not has(row, FORMATS["results"]):
            raise unknown_format(path, row, FORMATS)
        flag = FLAGS.get(str(row["passed"]).lower())
        if flag is None:
            raise InputError(f"{place}: passed is {row['passed']!r}, not true or false")
        model = str(row.get("model") or Path(path).name.split(".")[0])
        text = row.get("completion")
        found.setdefault(model, Solved()).add(
            str(need(row, "task_id", place)), flag, text if isinstance(text, str) else None
        )
    return found
