"""How far annotators agree, from a plain file of ratings: raw, and beyond chance by each coefficient that applies.

Reads one rating a row (unit, annotator, value), or whole tables as textbooks print them: ratings (annotators by units),
counts (units by values) or the cross table of two annotators. The figures themselves are `prefloop.agreement`'s.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from prefloop.agreement import (
    Level,
    Measure,
    Rating,
    Resampling,
    Value,
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1,
    krippendorff_alpha,
    raw_agreement,
)
from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, counted
from prefloop.scoring.reading import Row, absent, has, need, rows_of, unknown_format

NAME = "agreement"
FORMATS = {
    "ratings": ("unit", "annotator", "value"),
    "a table of ratings": ("ratings, a list of units for each annotator",),
    "a table of counts": ("counts, a list of values for each unit",),
    "a cross table": ("table, rows of the first annotator by columns of the second",),
}


def score(path: str, *, draws: int) -> list[Scored]:
    """The agreement in a file, or in each table of it. Raises InputError."""
    rows = list(rows_of(path))
    if has(rows[0][1], FORMATS["ratings"]):
        given = [(place, row) for place, row in rows if not absent(row.get("value"))]
        found = _scored(_Read(Path(path).name, [_rating(row, place) for place, row in given]), draws)
        found.rows_in = len(rows)
        found.dropped += Counter({"no_value": len(rows) - len(given)})
        return [found]
    return [
        _scored(one, draws)
        for place, row in rows
        for one in _tables(row, str(row.get("name") or Path(path).name), place, path)
    ]


class _Read(NamedTuple):
    """The ratings of a file or of one of its tables."""

    name: str
    ratings: list[Rating]
    values: Sequence[Value] | None = None
    """What could be chosen, where a table has columns for it, of which some may be empty."""
    annotators_known: bool = True
    """Not in a table of counts: it does not say who gave which."""


def _rating(row: Row, place: str) -> Rating:
    value = need(row, "value", place)
    prompt = row.get("prompt")
    return Rating(
        str(need(row, "unit", place)),
        str(need(row, "annotator", place)),
        _as_value(value, place),
        None if prompt is None else str(prompt),
    )


def _as_value(value: Any, place: str) -> Value:
    """Numbers, and texts that read as one, are numbers: a table of a spreadsheet has texts only."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"{place}: value is {value!r}; give a number or the name of a choice")
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return str(value)
    if not math.isfinite(found):
        raise InputError(f"{place}: value is {value!r}; give a number or the name of a choice")
    return found


# --- tables ----------------------------------------------------------------------------------------------------------


def _tables(row: Row, name: str, place: str, path: str) -> list[_Read]:
    """The table of a row, or those that it holds by name."""
    readers: dict[str, Callable[[list[list[Any]], str], list[Rating]]] = {
        "ratings": _of_ratings,
        "counts": _of_counts,
        "table": _of_cross_table,
    }
    for column, reader in readers.items():
        if column in row:
            cells = _lists(row[column], column, place)
            values = None if column == "ratings" else range(1, len(cells[0]) + 1)
            return [_Read(name, reader(cells, place), values, column != "counts")]
    held = {key: one for key, one in row.items() if isinstance(one, Mapping) and readers.keys() & one.keys()}
    if not held:
        raise unknown_format(path, row, FORMATS)
    return [found for key, one in held.items() for found in _tables(one, key, f"{place}, {key}", path)]


def _lists(value: Any, column: str, place: str) -> list[list[Any]]:
    good = isinstance(value, list) and value and all(isinstance(one, list) for one in value)
    if not good or len({len(one) for one in value}) > 1:
        raise InputError(f"{place}: {column} is not a list of lists of one length")
    return value


def _of_ratings(table: list[list[Any]], place: str) -> list[Rating]:
    return [
        Rating(f"unit {unit}", f"annotator {annotator}", _as_value(value, place))
        for annotator, values in enumerate(table, 1)
        for unit, value in enumerate(values, 1)
        if not absent(value)
    ]


def _of_counts(table: list[list[Any]], place: str) -> list[Rating]:
    found = []
    for unit, counts in enumerate(table, 1):
        given = [value for value, count in enumerate(counts, 1) for _ in range(_count(count, place))]
        found += [Rating(f"unit {unit}", f"annotator {who}", value) for who, value in enumerate(given, 1)]
    return found


def _of_cross_table(table: list[list[Any]], place: str) -> list[Rating]:
    if len(table) != len(table[0]):
        raise InputError(f"{place}: a cross table of {len(table)} by {len(table[0])}; it must be square")
    found: list[Rating] = []
    for first, counts in enumerate(table, 1):
        for second, count in enumerate(counts, 1):
            for _ in range(_count(count, place)):
                unit = f"unit {len(found) // 2 + 1}"
                found += [Rating(unit, "annotator 1", first), Rating(unit, "annotator 2", second)]
    return found


def _count(value: Any, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{place}: {value!r} is no count")
    return value


# --- figures ---------------------------------------------------------------------------------------------------------


def _scored(read: _Read, draws: int) -> Scored:
    name, ratings, values, annotators_known = read
    if not ratings:
        raise InputError(f"{name}: no rating in any row")
    how = Resampling(resamples=draws)
    annotators = list(dict.fromkeys(one.annotator for one in ratings))
    measures: dict[str, Measure] = {"raw": raw_agreement(ratings, how=how)}
    for level in _levels([one.value for one in ratings]):
        measures[f"alpha_{level}"] = krippendorff_alpha(ratings, level=level, how=how)
    measures["fleiss_kappa"] = fleiss_kappa(ratings, how=how)
    if len(annotators) == 2 and annotators_known:
        measures["cohen_kappa"] = cohen_kappa(ratings, first=annotators[0], second=annotators[1], how=how)
    measures["gwet_ac1"] = gwet_ac1(ratings, values=values, how=how)
    votes = Counter(one.unit for one in ratings)
    figures = {
        "num_units": counted(len(votes), len(votes)),
        "num_annotators": counted(len(annotators), len(annotators)),
        "num_ratings": counted(len(ratings), len(ratings)),
        **{key: Figure(one.value, one.units, one.low, one.high) for key, one in measures.items()},
    }
    found = Scored(NAME, name, figures, len(ratings))
    found.notes = [f"{key} is undefined: {one.reason}" for key, one in measures.items() if one.value is None]
    if alone := sum(count == 1 for count in votes.values()):
        found.notes.append(f"{alone} of {len(votes)} units were judged once and count in gwet_ac1 only")
    return found


def _levels(values: Sequence[Value]) -> list[Level]:
    """The levels of measurement that the values can have: names are nominal only, a ratio scale begins at 0."""
    numbers = [one for one in values if not isinstance(one, str)]
    if len(numbers) < len(values):
        return ["nominal"]
    return [one for one in get_args(Level) if one != "ratio" or min(numbers, default=0) >= 0]
