"""Writes an export: rows in, a file of the format and its manifest out, whole or not at all.

Rows stream: those of one prompt are in memory at a time. Every judgement that comes in either is in a record or is counted
under the reason why not.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic_core

from prefloop import __version__
from prefloop.export import whole_file
from prefloop.interfaces import InputError
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.screening import disagreed, kept_back, redacted
from prefloop.labels.formats.shapes import NOT_FOR_THIS_FORMAT, Column, Format, Made, Survey
from prefloop.labels.formats.table import format_named
from prefloop.labels.rows import JudgementRow, place_of
from prefloop.records import Record
from prefloop.store import digest_file, write_text
from prefloop.targets import load_function

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = 1
"""Of what the formats write; raised when their fields change."""
ROWS_A_GROUP = 4096
"""Records held in memory at a time where a table is written."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take a cell for a formula."""
BUFFER = 1 << 20
SPACES = b" \t\r\n"

Records = Iterator[dict[str, Any]]
Columns = Mapping[str, Column]


class Manifest(Record):
    """What an export holds and what it left out: `rows_in` = `rows_out` + all drops."""

    format: str
    schema_version: int = SCHEMA_VERSION
    code_version: str = __version__
    file: str
    sha256: str
    rows_in: int
    """Judgements that came in."""
    rows_out: int
    """Judgements that are in the file."""
    records: int
    """Rows of the file; a ranking gives several, votes together give one."""
    drops: dict[str, int]
    """Judgements that are not in the file, by reason."""
    records_dropped: dict[str, int]
    """Records that were left out of judgements that gave others, by reason."""
    sources: dict[str, int]
    """Judgements in the file by the source of their prompt."""
    annotator_kinds: dict[str, int]
    """Judgements in the file by who gave them."""
    filter: dict[str, Any]
    watermark: int | None
    options: dict[str, Any]


@dataclass
class Counts:
    """What has gone through so far."""

    rows_in: int = 0
    rows_out: int = 0
    records: int = 0
    latest: int = 0
    """The judgement of the newest record."""
    drops: Counter[str] = field(default_factory=Counter)
    records_dropped: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    annotator_kinds: Counter[str] = field(default_factory=Counter)
    survey: Survey = field(default_factory=Survey)


def write_export(
    rows: Iterable[JudgementRow], format: str, path: Path, options: ExportOptions | None = None
) -> Manifest:
    """Writes judgements in a format to a .jsonl, .json, .parquet or .csv file, with `NAME.manifest.json` beside it.

    Rows come in the order of `rows.place_of`; for `judgements-raw` in any. The same rows give the same bytes. Raises
    InputError, also where nothing is left to write.
    """
    options = options or ExportOptions()
    chosen = format_named(format)
    write = _writer(chosen, path, options)
    counts = Counts()
    with whole_file(path, (path.suffix,)) as temporary:
        try:
            write(_records(rows, chosen, options, counts), temporary)
        except _Unwritable as error:
            place = f"{path.name}: judgement {counts.latest}, or one shortly before"
            raise InputError(
                f"{place}, cannot be written ({error}); take its text out of the store"
            ) from error
        if not counts.records:
            drops = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.drops.items()))
            raise InputError(
                f"{path}: nothing to export as {format}; {counts.rows_in} rows in, {drops or 'none left out'}"
            )
        digest = digest_file(temporary)
        companion = chosen.companion and chosen.companion.text(counts.survey, options)
    if chosen.companion is not None and companion is not None:
        write_text(path.with_suffix(chosen.companion.suffix), companion)
    manifest = _manifest(chosen, path, digest, counts, options)
    write_text(path.with_suffix(".manifest.json"), manifest.model_dump_json(indent=2) + "\n")
    return manifest


def count_export(rows: Iterable[JudgementRow], format: str, options: ExportOptions | None = None) -> Counts:
    """What `write_export` would write, without writing it."""
    counts = Counts()
    for _ in _records(rows, format_named(format), options or ExportOptions(), counts):
        pass
    return counts


def _manifest(chosen: Format, path: Path, digest: str, counts: Counts, options: ExportOptions) -> Manifest:
    def told(counter: Counter[str]) -> dict[str, int]:
        return dict(sorted(counter.items()))

    return Manifest(
        format=chosen.name,
        file=path.name,
        sha256=digest,
        rows_in=counts.rows_in,
        rows_out=counts.rows_out,
        records=counts.records,
        drops=told(counts.drops),
        records_dropped=told(counts.records_dropped),
        sources=told(counts.sources),
        annotator_kinds=told(counts.annotator_kinds),
        filter=options.filter,
        watermark=options.watermark,
        options=options.model_dump(mode="json", exclude={"filter", "watermark"}),
    )


# --- records ---------------------------------------------------------------------------------------------------------


def _records(rows: Iterable[JudgementRow], chosen: Format, options: ExportOptions, counts: Counts) -> Records:
    function = load_function(options.redact) if options.redact else None
    seen = _Seen(chosen.same if options.near_duplicates == "drop" else ())
    for batch in _batches(rows, chosen):
        counts.rows_in += len(batch)
        reasons = {row.judgement_id: kept_back(row, chosen.keeps, options) for row in batch}
        left = [row for row in batch if reasons[row.judgement_id] is None]
        if chosen.keeps == "training" and (low := disagreed(left, options)):
            reasons.update({row.judgement_id: "low_agreement" for row in left if row.task_id in low})
            left = [row for row in left if row.task_id not in low]
        if function is not None:
            left = [redacted(row, function) for row in left]
        out: set[int] = set()
        refused: list[tuple[int, str]] = []
        for item in chosen.make(left, options) if left else ():
            if not isinstance(item, Made):
                refused.append((item.row.judgement_id, item.reason))
            elif seen.before(item):
                refused += [(row.judgement_id, "near_duplicate") for row in item.rows]
            else:
                out.update(row.judgement_id for row in item.rows)
                counts.records += 1
                counts.latest = item.rows[0].judgement_id
                yield item.record
        for id, reason in refused:
            if id in out:
                counts.records_dropped[reason] += 1
            elif reasons[id] is None:
                reasons[id] = reason
        _tally(batch, out, reasons, chosen, counts)


def _tally(
    batch: list[JudgementRow],
    out: set[int],
    reasons: Mapping[int, str | None],
    chosen: Format,
    counts: Counts,
) -> None:
    for row in batch:
        if row.judgement_id not in out:
            counts.drops[reasons[row.judgement_id] or NOT_FOR_THIS_FORMAT] += 1
            continue
        counts.rows_out += 1
        counts.sources[row.prompt.source] += 1
        counts.annotator_kinds[row.annotator_kind] += 1
        if chosen.companion is not None:
            counts.survey.add(row)
            if len(counts.survey.kinds) > 1:
                kinds = " and ".join(sorted(counts.survey.kinds))
                raise InputError(
                    f"{chosen.name}: has settings for one kind of task, not {kinds}; export one kind"
                )


def _batches(rows: Iterable[JudgementRow], chosen: Format) -> Iterator[list[JudgementRow]]:
    """The rows of each prompt; where nothing has to be together, in any portions. Raises InputError for another order."""
    if chosen.keeps == "all":
        stream = iter(rows)
        while some := list(islice(stream, ROWS_A_GROUP)):
            yield some
        return
    last = ("", "", -1)
    for _, group in groupby(rows, key=lambda row: row.prompt.id):
        batch = list(group)
        for row in batch:
            if (place := place_of(row)) <= last:
                raise InputError(
                    f"judgement {row.judgement_id}: the rows are out of order; sort them by prompt, task, judgement"
                )
            last = place
        yield batch


class _Seen:
    """Which records of earlier tasks there were, up to case and spacing; 8 bytes each."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        self._fields = fields
        self._earlier: set[int] = set()
        self._current: set[int] = set()
        self._task = ""

    def before(self, made: Made) -> bool:
        """Whether another task gave the record; votes on the same task are not duplicates."""
        if not self._fields:
            return False
        if (task := made.rows[0].task_id) != self._task:
            self._earlier |= self._current
            self._current, self._task = set(), task
        said = "\0".join([_words(made.record[name]) for name in self._fields]).casefold()
        plain = said.encode("utf-8", "surrogatepass").translate(None, SPACES)
        mark = int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest())
        self._current.add(mark)
        return mark in self._earlier


def _words(value: str | list[str] | list[dict[str, str]]) -> str:
    """What a field says, of text, texts or turns."""
    if isinstance(value, str):
        return value
    return "\0".join([one if isinstance(one, str) else one["content"] for one in value])


# --- files -----------------------------------------------------------------------------------------------------------


def _writer(chosen: Format, path: Path, options: ExportOptions) -> Callable[[Records, Path], None]:
    """What writes the records, by the ending of the file. Raises InputError."""
    if path.suffix == ".jsonl":
        return _write_lines
    if path.suffix == ".json":
        return _write_list
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{path}: exports are .jsonl, .json, .parquet or .csv files; choose such a name")
    if chosen.columns is None:
        raise InputError(f"{path}: rows of {chosen.name} are nested; write a .jsonl or .json file")
    columns = chosen.columns(options)
    if path.suffix == ".csv":
        return lambda records, file: _write_csv(records, file, columns)
    return lambda records, file: _write_parquet(records, file, columns)


def _write_lines(records: Records, path: Path) -> None:
    with path.open("wb", BUFFER) as file:
        file.writelines(_json(record) + b"\n" for record in records)


def _write_list(records: Records, path: Path) -> None:
    with path.open("wb", BUFFER) as file:
        between = b"[\n"
        for record in records:
            file.write(between + _json(record))
            between = b",\n"
        file.write(b"\n]\n")


def _write_csv(records: Records, path: Path, columns: Columns) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # whose line ends are \r\n: cells with either are then quoted
        writer.writerow(columns)
        for record in records:
            writer.writerow([_cell(record.get(name)) for name in columns])


def _cell(value: object) -> object:
    """A cell that no spreadsheet runs as a formula; lists and objects as JSON."""
    if value is None or isinstance(value, bool | int | float):
        return value
    written = _json(value).decode()  # also of text, since it must be one that can be written
    text = value if isinstance(value, str) else written
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _write_parquet(records: Records, path: Path, columns: Columns) -> None:
    import pyarrow
    import pyarrow.parquet

    types = _arrow_types()
    schema = pyarrow.schema({name: types[column] for name, column in columns.items()})
    nested = [name for name, column in columns.items() if column == "json"]
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while some := list(islice(records, ROWS_A_GROUP)):
            told = [{**one, **{name: _json(one.get(name)).decode() for name in nested}} for one in some]
            try:
                table = pyarrow.Table.from_pylist(told, schema=schema)
            except UnicodeEncodeError as error:
                raise _Unwritable(str(error)) from error
            writer.write_table(table)


def _arrow_types() -> "dict[Column, pyarrow.DataType]":
    import pyarrow

    text = pyarrow.string()
    return {
        "text": text,
        "json": text,
        "texts": pyarrow.list_(text),
        "turns": pyarrow.list_(pyarrow.struct({"role": text, "content": text})),
        "number": pyarrow.float64(),
        "integer": pyarrow.int64(),
        "integers": pyarrow.list_(pyarrow.int64()),
        "bool": pyarrow.bool_(),
        "bools": pyarrow.list_(pyarrow.bool_()),
    }


def _json(value: object) -> bytes:
    """A value as JSON. Raises _Unwritable for numbers and halves of characters that JSON does not have."""
    try:
        text = pydantic_core.to_json(value)
        if b"NaN" in text or b"Infinity" in text:  # as a number, or in somebody's words
            json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise _Unwritable(str(error)) from error
    return text


class _Unwritable(Exception):
    """A value that the file cannot hold."""
