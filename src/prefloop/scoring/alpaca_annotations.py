"""AlpacaEval's `annotations.json`: a judge's verdicts with the texts, read and written as `alpaca_eval` does.

The baseline is `output_1` and the model `output_2`, whichever the judge was shown first; `preference` goes from 1 (baseline
better) to 2 (model better). Either tool scores the other's file.
"""

import ast
import json
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefloop.interfaces import InputError
from prefloop.scoring.reading import Row, has, need, number, rows_of, unknown_format

COLUMNS = ("instruction", "output_1", "output_2", "preference")
TIES = (0.0, 1.5)
"""Preferences that old files have for a tie."""
ORDER_SEED = "is_switched_outputs"
FIRST, SECOND = "m", "M"
"""The verdict tokens: names of the model shown first and of the one shown second."""


@dataclass(frozen=True)
class Annotation:
    """One verdict, with the columns that a published file has."""

    instruction: str
    output_1: str
    generator_1: str
    output_2: str
    generator_2: str
    annotator: str
    preference: float | None
    """None where the judge gave none."""
    dataset: str = ""
    price_per_example: float | None = None
    time_per_example: float | None = None
    raw_completion: Any = None
    """What the judge's server answered, as it came: chat completions' choice with its log-probabilities."""


def write_annotations(annotations: Iterable[Annotation], path: Path) -> int:
    """Writes `annotations.json`, whole or not at all; returns the number of rows. Raises InputError."""
    rows = [asdict(one) for one in annotations]
    for place, row in enumerate(rows, 1):
        value = row["preference"]
        if value is not None and not 1 <= value <= 2:
            raise InputError(f"annotation {place}: preference is {value}; it goes from 1 to 2, or is None")
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return len(rows)


def read_annotations(path: str) -> list[Annotation]:
    """The verdicts of a file. Raises InputError."""
    return [annotation_of(row, place, path) for place, row in rows_of(path)]


def annotation_of(row: Row, place: str, path: str) -> Annotation:
    """One row; columns that are not known here are left out, and old ties become 1.5. Raises InputError."""
    if not has(row, COLUMNS):
        raise unknown_format(path, row, {"annotations": COLUMNS})

    def measured(name: str) -> float | None:
        return None if row.get(name) in (None, "") else number(row, name, place)

    return Annotation(
        instruction=str(need(row, "instruction", place)),
        output_1=str(row["output_1"] or ""),
        generator_1=str(row.get("generator_1") or "unknown"),
        output_2=str(row["output_2"] or ""),
        generator_2=str(row.get("generator_2") or "model"),
        annotator=str(row.get("annotator") or "unknown"),
        preference=preference_of(row, place),
        dataset=str(row.get("dataset") or ""),
        price_per_example=measured("price_per_example"),
        time_per_example=measured("time_per_example"),
        raw_completion=parsed(row.get("raw_completion"), place),
    )


def preference_of(row: Row, place: str) -> float | None:
    """1 to 2; None where the judge gave none. Raises InputError for other numbers."""
    raw = row.get("preference")
    if raw is None or (isinstance(raw, str) and raw.strip().lower() in ("", "nan", "none", "null")):
        return None
    if isinstance(raw, float) and math.isnan(raw):
        return None
    value = number(row, "preference", place)
    if value in TIES:
        return 1.5
    if not 1 <= value <= 2:
        raise InputError(
            f"{place}: preference is {value:g}; it goes from 1 (baseline better) to 2 (model better)"
        )
    return value


# --- the judge's own words -------------------------------------------------------------------------------------------


def is_swapped(instruction: str) -> bool:
    """Whether the model is shown first for an instruction: AlpacaEval's rule and seed."""
    return random.Random(f"{ORDER_SEED}{instruction}0").choices([False, True], k=1)[0]


def preference_from(logprobs: Mapping[str, float], *, swapped: bool) -> float | None:
    """1 to 2 from the log-probabilities of the two verdict tokens; None where both are missing."""
    chances = [math.exp(logprobs[token]) if token in logprobs else 0.0 for token in (FIRST, SECOND)]
    if not sum(chances):
        return None
    preference = 2 - chances[0] / sum(chances)
    return 3 - preference if swapped else preference


def logprobs_in(raw_completion: Any) -> dict[str, float] | None:
    """The likeliest first tokens of a chat completion with their log-probabilities; None where it has none."""
    try:
        top = raw_completion["logprobs"]["content"][0]["top_logprobs"]
        return {str(one["token"]): float(one["logprob"]) for one in top}
    except (TypeError, KeyError, IndexError):
        return None


def parsed(value: Any, place: str) -> Any:
    """A value that a table holds as the text of a dict, as that dict."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise InputError(f"{place}: {value[:40]!r}… is cut off or no dict") from None
