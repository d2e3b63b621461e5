"""Rows of score files, with the place of whatever cannot be used."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefloop.containers import Broken, raw_rows
from prefloop.interfaces import InputError

Row = Mapping[str, Any]


def rows_of(path: str) -> Iterator[tuple[str, Row]]:
    """Rows with their place; raises InputError for what is no row, and for a file without any."""
    found = 0
    for raw in raw_rows(path, "train"):
        place = f"{raw.file} row {raw.number}"
        if isinstance(raw.value, Broken):
            raise InputError(f"{place}: {raw.value.message}")
        if not isinstance(raw.value, Mapping):
            raise InputError(f"{place}: holds {type(raw.value).__name__}, not a row with names")
        found += 1
        yield place, raw.value
    if not found:
        raise InputError(f"{path}: no rows")


def has(row: Row, names: Sequence[str]) -> bool:
    """Whether a row has all of these columns."""
    return all(name in row for name in names)


def need(row: Row, name: str, place: str) -> Any:
    """A value that must be there."""
    if row.get(name) in (None, ""):
        raise InputError(f"{place}: no {name}; the row has {', '.join(map(str, row)) or 'nothing'}")
    return row[name]


def number(row: Row, name: str, place: str) -> float:
    """A finite number that must be there; text that reads as one is one."""
    value = need(row, name, place)
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{place}: {name} is {value!r}, not a number") from None
    if isinstance(value, bool) or not math.isfinite(found):
        raise InputError(f"{place}: {name} is {value!r}, not a finite number")
    return found


def unknown_format(path: str, row: Row, formats: Mapping[str, Sequence[str]]) -> InputError:
    """The error for a file of no format that is known here."""
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in formats.items())
    return InputError(
        f"{path}: columns {', '.join(map(str, row))} are of no format that is known here; known are {known}"
    )
