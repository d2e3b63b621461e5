"""Reads what other tools and data sets have: prompts with completions, and judgements where the file has some.

Reads .jsonl, .json, .csv and .parquet files, each also .gz. Everything in them is hostile: sizes are bounded, archives
and document types refused. Rows stream; what does not come out is counted by reason.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from prefloop.config import SourceSection
from prefloop.containers import RawRow, raw_rows
from prefloop.data import columns, complaint, make_prompt, source_name
from prefloop.fields import BadRowError, DroppedRowError, Row
from prefloop.formats import detect, parse
from prefloop.interfaces import InputError
from prefloop.labels.formats.argilla import read_argilla
from prefloop.labels.formats.incoming import ImportedTask, from_group, from_pair, task_of
from prefloop.labels.formats.labelstudio import read_config, read_labelstudio
from prefloop.labels.formats.raw import NESTED
from prefloop.labels.formats.ultrafeedback import read_binarized, read_ultrafeedback
from prefloop.labels.formats.values import check_value
from prefloop.labels.rows import JudgementRow, row_of
from prefloop.records import Group, PreferencePair, Prompt, Record

ImportFormat = Literal[
    "auto", "hh", "preference", "ultrafeedback", "groups", "online_rlhf", "prompt", "messages",
    "argilla", "labelstudio", "judgements-raw",
]  # fmt: skip
EXAMPLES = ("hh", "preference", "groups", "online_rlhf", "prompt", "messages")
"""Formats that `prefloop.formats` reads."""
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst")
CHUNK = 1 << 20
Read = Callable[[Row, str], ImportedTask]
Look = Callable[[ImportedTask, Row], None]
R = TypeVar("R", bound=Record)


class ImportOptions(Record):
    """What to read and how."""

    path: str
    format: ImportFormat = "auto"
    fields: dict[str, str] = Field(default_factory=dict)
    """Renames columns before the format is recognised: {prefloop's name: name in the file}."""
    labelstudio_config: str = ""
    """The labelling configuration (XML) of Label Studio tasks that prefloop did not write."""
    bad_rows: Literal["stop", "drop"] = "stop"
    limit: int | None = Field(default=None, ge=1)
    max_bytes: int = Field(default=2 << 30, ge=1)
    """Largest file, unpacked."""
    max_text: int = Field(default=200_000, ge=1)
    """Longest prompt or completion, in characters."""
    max_completions: int = Field(default=26, ge=1)


class TaskReader:
    """The tasks of a file; once they are read, `rows_in` = tasks + everything in `dropped`."""

    def __init__(self, options: ImportOptions, look: Look | None = None) -> None:
        """`look` sees each task with its row before it is yielded, and may refuse it as the reader itself does."""
        self.options = options
        self._look = look
        self.rows_in = 0
        self.dropped: Counter[str] = Counter()
        """Rows that gave no task, by reason."""
        self.format = options.format
        """The format, once the first row is read."""

    def __iter__(self) -> Iterator[ImportedTask]:
        """Yields one task a row. Raises InputError."""
        options = self.options
        _check_file(Path(options.path), options.max_bytes)
        source = SourceSection(path=options.path, fields=options.fields)
        name = source_name(source)
        read: Read | None = None
        for raw in islice(raw_rows(options.path, source.split), options.limit):
            self.rows_in += 1
            try:
                row = columns(raw, source)
                if read is None:
                    self.format = options.format if options.format != "auto" else _detected(raw, row)
                    read = _reader(self.format, options)
                task = read(row, name)
                _check_sizes(task, options)
                if self._look is not None:
                    self._look(task, row)
            except DroppedRowError as dropped:
                self.dropped[dropped.reason] += 1
            except BadRowError as bad:
                if options.bad_rows == "stop":
                    raise InputError(complaint(raw, bad)) from bad
                self.dropped[bad.reason] += 1
            else:
                yield task
        if not self.rows_in:
            raise InputError(f"{name}: no rows")


def read_raw(path: Path) -> Iterator[JudgementRow]:
    """The judgements of a `judgements-raw` file. Raises InputError."""
    for task in TaskReader(ImportOptions(path=str(path), format="judgements-raw")):
        yield from task.judgements


# --- files -----------------------------------------------------------------------------------------------------------


def _check_file(path: Path, limit: int) -> None:
    """Raises InputError for what is no file, an archive, or too large, also once unpacked."""
    if path.name.lower().removesuffix(".gz").endswith(ARCHIVES):
        raise InputError(f"{path}: archives are not read; unpack it and name the file with the rows")
    if not path.is_file():
        raise InputError(f"{path}: no such file; imports read one file")
    size = _unpacked_size(path, limit)
    if size > limit:
        raise InputError(f"{path.name}: more than {limit} bytes unpacked; split it, or raise max_bytes")


def _unpacked_size(path: Path, limit: int) -> int:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return max(path.stat().st_size, _parquet_size(path))
    if not name.endswith(".gz"):
        return path.stat().st_size
    size = 0
    try:
        with gzip.open(path) as file:
            while (chunk := file.read(CHUNK)) and size <= limit:
                size += len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path.name}: not a gzip file, or a damaged one ({error}); copy it again"
        ) from error
    return size


def _parquet_size(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        about = pyarrow.parquet.read_metadata(path)
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path.name}: not a readable parquet file ({reason}); copy it again") from error
    return sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))


def _check_sizes(task: ImportedTask, options: ImportOptions) -> None:
    texts = [one.content for one in task.prompt.messages] + [one.text for one in task.completions]
    longest = max(map(len, texts), default=0)
    if longest > options.max_text:
        raise BadRowError(
            "too_long", f"a text of {longest} characters; {options.max_text} are allowed (max_text)"
        )
    if len(task.completions) > options.max_completions:
        raise BadRowError(
            "too_many_completions",
            f"{len(task.completions)} completions; {options.max_completions} are allowed (max_completions)",
        )


# --- formats ---------------------------------------------------------------------------------------------------------


def _detected(raw: RawRow, row: Row) -> ImportFormat:
    if "judgement_id" in row:
        return "judgements-raw"
    if isinstance(row.get("fields"), Mapping):
        return "argilla"
    if isinstance(row.get("data"), Mapping):
        return "labelstudio"
    match detect(row, (*EXAMPLES, "ultrafeedback")):
        case (
            "hh" | "preference" | "ultrafeedback" | "groups" | "online_rlhf" | "prompt" | "messages" as found
        ):
            return found
        case found:
            raise InputError(
                f"{raw.file} row {raw.number}: {found or 'no known format'} with the fields "
                f"{', '.join(row) or '(none)'} cannot be imported; rename columns with fields, or name the format"
            )


def _reader(format: ImportFormat, options: ImportOptions) -> Read:
    match format:
        case "argilla":
            return read_argilla
        case "labelstudio":
            if not options.labelstudio_config:
                return read_labelstudio
            config = Path(options.labelstudio_config)
            if not config.is_file():
                raise InputError(f"{config}: no such file; name the labelling configuration")
            return partial(read_labelstudio, config=read_config(config))
        case "judgements-raw":
            return _read_judgement
        case "ultrafeedback":
            return _read_ultrafeedback
        case "auto":
            raise ValueError("the format must be known")
        case _:
            return partial(_read_example, format=format)


def _read_ultrafeedback(row: Row, name: str) -> ImportedTask:
    return (read_binarized if row.get("completions") is None else read_ultrafeedback)(row, name)


def _read_example(
    row: Row, name: str, *, format: Literal["hh", "preference", "groups", "online_rlhf", "prompt", "messages"]
) -> ImportedTask:
    if format == "groups" and isinstance(row.get("prompt"), Mapping):
        return from_group(_validated(Group, row))
    if format == "preference" and isinstance(row.get("chosen"), Mapping):
        return from_pair(_validated(PreferencePair, row))
    example = parse(row, format)
    return task_of(make_prompt(example, name), example)


def _validated(record: type[R], row: Row) -> R:
    try:
        return record.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the row"
        raise BadRowError("wrong_type", f"{place}: {first['msg']}; fix the row") from error


def _read_judgement(row: Row, name: str) -> ImportedTask:
    told: dict[str, Any] = dict(row)
    for field in NESTED:
        if isinstance(value := told.get(field), str):  # a table holds it as text
            try:
                told[field] = json.loads(value)
            except ValueError as error:
                raise BadRowError("broken_json", f"{field}: broken JSON ({error}); fix the row") from error
    read = check_value(row_of(told))
    about: dict[str, Any] = {"id": read.prompt.id, "messages": read.prompt.messages}
    about |= {"answer": read.prompt.answer, "source": read.prompt.source}
    if not read.prompt.messages and not read.completions:  # a prompt that somebody wrote answers none
        return ImportedTask(Prompt.model_construct(**about), (), (read,))
    return ImportedTask(_validated(Prompt, about), read.completions, (read,))
