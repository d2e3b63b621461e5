"""The fields of a row: text, lists, numbers and labels of the right kind, or an error that says what to do.

Knows nothing about formats or files: the caller names the row.
"""

import math
from collections.abc import Mapping

Row = Mapping[str, object]


class BadRowError(Exception):
    """A row that cannot be used: an error, or dropped and counted under a short reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DroppedRowError(Exception):
    """A row that is in order but of no use: always dropped and counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def missing_field(row: Row, name: str) -> BadRowError:
    """The error for a field that is not there."""
    present = ", ".join(str(one) for one, value in row.items() if value is not None) or "none"
    return BadRowError(
        "missing_field",
        f"no field {name!r}; the row has {present}; rename columns with fields: {{{name}: your column}}",
    )


def present_field(row: Row, names: tuple[str, ...]) -> str | None:
    """The first of the names that the row has."""
    return next((name for name in names if row.get(name) is not None), None)


def raw_field(row: Row, name: str) -> object:
    """A field of any type. Raises BadRowError where there is none."""
    if row.get(name) is None:
        raise missing_field(row, name)
    return row[name]


def wrong_type(name: str, value: object, wanted: str) -> BadRowError:
    """The error for a value of another type than wanted."""
    return BadRowError("wrong_type", f"{name} is {kind_of(value)}, not {wanted}; fix the row")


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON."""
    names = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def text_field(row: Row, name: str) -> str:
    """A text in a row. Raises BadRowError where there is none."""
    return text_of(raw_field(row, name), name)


def text_of(value: object, name: str) -> str:
    """A text that can be written as UTF-8. Raises BadRowError for anything else."""
    if not isinstance(value, str):
        raise wrong_type(name, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRowError("broken_text", f"{name} holds half a surrogate pair; fix the row") from error
    return value


def list_field(row: Row, name: str, wanted: str = "a list") -> list[object]:
    """A list in a row. Raises BadRowError where there is none."""
    value = raw_field(row, name)
    if not isinstance(value, list | tuple):
        raise wrong_type(name, value, wanted)
    return list(value)


def number_of(value: object, name: str) -> float:
    """A finite number; text is read as one, since tables and UltraFeedback store numbers so."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRowError("bad_score", f"{name} is {value!r}, not a finite number; fix the row")
    return number


def score_of(value: object, place: int, noun: str) -> float | None:
    """A finite number for a completion, or None for not judged. Raises BadRowError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRowError("bad_score", f"the {noun} of completion {place} is {value!r}; use a number or null")
    return number_of(value, f"the {noun} of completion {place}")


def label_of(value: object) -> bool:
    """True or false in the spellings that files have. Raises BadRowError for anything else."""
    labels = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    if (label := labels.get(str(value).strip().lower())) is None:
        raise wrong_type("label", value, "true or false")
    return label
