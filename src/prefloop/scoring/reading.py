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


def absent(value: object) -> bool:
    """Whether a cell says nothing: null, an empty text, or the NaN that tables have for both."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def whole(row: Row, name: str, place: str) -> int:
    """A whole number that must be there; 3.0 is one."""
    found = number(row, name, place)
    if not found.is_integer():
        raise InputError(f"{place}: {name} is {row[name]!r}, not a whole number")
    return int(found)


def id_of(row: Row, name: str, place: str) -> str:
    """An identifier as text; tables that lack some of a column write the whole numbers of it as 81.0."""
    value = need(row, name, place)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def number(row: Row, name: str, place: str) -> float:
    """A finite number that must be there; text that reads as one is one."""
    value = need(row, name, place)
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{place}: {name} is {value!r}, not a number") from None
    except OverflowError:
        raise InputError(f"{place}: {name} is too large for a number") from None
    if isinstance(value, bool) or not math.isfinite(found):
        raise InputError(f"{place}: {name} is {value!r}, not a finite number")
    return found


def unknown_format(path: str, row: Row, formats: Mapping[str, Sequence[str]]) -> InputError:
    """The error for a file of no format that is known here."""
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in formats.items())
    return InputError(
        f"{path}: columns {', '.join(map(str, row))} are of no format that is known here; known are {known}"
    )
