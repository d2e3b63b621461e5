"""What formats are made of: records with the judgements behind them, refusals, columns, and turns as plain objects."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, NamedTuple

from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.rows import JudgementRow
from prefloop.records import Message

NOT_FOR_THIS_FORMAT = "not_for_this_format"
Column = Literal["text", "texts", "turns", "number", "integer", "integers", "bool", "bools", "json"]
Rows = Sequence[JudgementRow]


class Made(NamedTuple):
    """A record of the format and the judgements that it was made from."""

    record: dict[str, Any]
    rows: Rows


class Refused(NamedTuple):
    """A judgement that gives no record, and why."""

    row: JudgementRow
    reason: str


Make = Callable[[Rows, ExportOptions], Iterator[Made | Refused]]
"""Records out of all rows of one prompt, in order of task and judgement."""


@dataclass
class Survey:
    """What the exported rows had in common; what settings for other tools are written from."""

    kinds: set[str] = field(default_factory=set)
    num_completions: int = 0
    ratings: set[str] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)

    def add(self, row: JudgementRow) -> None:
        """Takes a row into account."""
        self.kinds.add(row.task_kind)
        self.num_completions = max(self.num_completions, len(row.completions))
        if row.task_kind == "form":
            self.ratings.update(row.value.get("ratings", {}))
            self.flags.update(row.value.get("flags", {}))


class Companion(NamedTuple):
    """A second file of a format, as settings for the tool that reads it."""

    suffix: str
    text: Callable[[Survey, ExportOptions], str]


@dataclass(frozen=True)
class Format:
    """A format that judgements leave in."""

    name: str
    what: str
    make: Make
    columns: Callable[[ExportOptions], dict[str, Column]] | None
    """Columns of a table; None where rows are too nested for one, and only JSON is written."""
    same: tuple[str, ...] = ()
    """Fields that make two records near-duplicates where they say the same; none are looked for where it is empty."""
    keeps: Literal["training", "valid", "all"] = "training"
    """Which rows may leave: those fit for training; valid ones, with gold and held-out prompts; or all."""
    companion: Companion | None = None


def by_task(rows: Iterable[JudgementRow]) -> Iterator[list[JudgementRow]]:
    """The rows of each task."""
    for _, task in groupby(rows, key=lambda row: row.task_id):
        yield list(task)


def turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as plain objects."""
    return [{"role": message.role, "content": message.content} for message in messages]


def answer(text: str) -> list[dict[str, str]]:
    """A completion as turns."""
    return [{"role": "assistant", "content": text}]


def written(value: Mapping[str, Any], role: str) -> list[dict[str, str]]:
    """What people wrote in that role: a text, with the examples that they gave before it, or turns of several roles."""
    if "messages" in value:
        return [{"role": one["role"], "content": one["content"]} for one in value["messages"]]
    examples = [
        {"role": who, "content": text}
        for two in value.get("examples", ())
        for who, text in zip(("user", "assistant"), two, strict=True)
    ]
    return [*examples, {"role": role, "content": value.get("text", "")}]


def letters(number: int) -> list[str]:
    """Names of so many completions: a, b, c."""
    return [chr(ord("a") + place) for place in range(number)]
