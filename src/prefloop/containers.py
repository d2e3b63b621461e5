"""Raw rows out of files, folders and the hub.

Reads .jsonl, .json, .csv, .parquet and .txt, each also .gz, a folder of them, and data sets of the hub. A row
is whatever the container holds, with the file and the number that name it in errors. Knows nothing about what
columns mean.
"""

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from prefloop.interfaces import InputError, Unavailable
from prefloop.store import digest_path

HUB = "hub:"
WRAPPERS = ("data", "instances")
"""Keys under which a .json file may hold its list of rows."""
CELL_LIMIT = (1 << 31) - 1
"""Longest text in a .csv cell; the csv module's own limit of 131,072 is too short for conversations."""
HUB_TIMEOUT_S = 30.0
MANIFEST = ".manifest.json"
"""What an export of labels says about the file beside it."""


class Broken(NamedTuple):
    """A row that could not be parsed."""

    reason: str
    message: str


class RawRow(NamedTuple):
    """One row and its place: a line number for files of lines, else the n-th row, counted from 1."""

    file: str
    number: int
    value: object


def raw_rows(path: str, split: str) -> Iterator[RawRow]:
    """Yields the rows of a file, of a folder (files by name) or of `hub:owner/name`.

    Raises InputError for files that cannot be read, Unavailable where the hub does not answer.
    """
    if path.startswith(HUB):
        yield from _hub_rows(path, split)
        return
    for file in _data_files(Path(path)):
        with _damage(file):
            for number, value in READERS[_suffix(file)](file):
                yield RawRow(file.name, number, value)


def content_digest(path: str) -> str:
    """Digest of what a path holds: file or folder content, or the commit of a data set of the hub."""
    if path.startswith(HUB):
        name, _ = _hub_name(path)
        return f"{path}@{hub_commit(name, 'dataset')}"
    file = Path(path)
    # the same bytes under another ending would be read in another way
    return digest_path(file) + (_suffix(file) if file.is_file() else "")


# --- files --------------------------------------------------------------------------------------------------


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        if _suffix(path) not in READERS:
            raise InputError(f"{path}: unknown kind of file; prefloop reads {_readable()}")
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; a data set of the hub is written {HUB}owner/name")
    files = sorted(one for one in path.iterdir() if one.is_file() and _suffix(one) in READERS)
    files = [one for one in files if not one.name.startswith(".") and not one.name.endswith(MANIFEST)]
    if not files:
        raise InputError(f"{path}: no data files directly in this folder; prefloop reads {_readable()}")
    return files


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _readable() -> str:
    return f"{', '.join(READERS)}, each also .gz"


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns what a damaged or unreadable file raises into a message that names the file."""
    try:
        yield
    except gzip.BadGzipFile as error:
        raise InputError(
            f"{path.name}: not a gzip file, or a damaged one ({error}); unpack or copy it again"
        ) from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path.name}: the gzip file is cut off or damaged; copy it again") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path.name}: not UTF-8 text ({error.reason}); convert it to UTF-8, or is it a binary file?"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror or error}") from error


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their 1-based numbers, without byte order mark and line end."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            if text.strip():
                yield number, text


def _jsonl(path: Path) -> Iterator[tuple[int, object]]:
    for number, line in _lines(path):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            yield (
                number,
                Broken("broken_json", f"broken JSON ({error.msg}, column {error.colno}); fix the row"),
            )
        except (ValueError, RecursionError) as error:
            yield number, Broken("broken_json", f"broken JSON ({error}); fix the row")


def _json(path: Path) -> Iterator[tuple[int, object]]:
    with _open(path) as file:
        text = file.read().decode("utf-8-sig")
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under the name .json, as several tools write them
            yield from _jsonl(path)
            return
        raise InputError(
            f"{path.name} line {error.lineno}: broken JSON ({error.msg}, column {error.colno}); fix the file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name}: broken JSON: {error}; fix the file") from error
    if isinstance(value, Mapping):
        value = next((value[key] for key in WRAPPERS if isinstance(value.get(key), list)), [value])
    if not isinstance(value, list):
        raise InputError(
            f"{path.name}: holds a single {type(value).__name__}; a .json file is a list of rows"
        )
    yield from enumerate(value, 1)


def _csv(path: Path) -> Iterator[tuple[int, object]]:
    csv.field_size_limit(CELL_LIMIT)
    with io.TextIOWrapper(_open(path), "utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for number, row in enumerate(reader, 1):
                if None in row:
                    message = "more cells than the header has names; quote cells that contain commas"
                    yield number, Broken("wrong_type", message)
                else:
                    yield number, row
        except csv.Error as error:
            raise InputError(
                f"{path.name} line {reader.line_num}: broken CSV: {error}; fix the file"
            ) from error


def _parquet(path: Path) -> Iterator[tuple[int, object]]:
    import pyarrow
    import pyarrow.parquet

    with _open(path) as file:
        source = io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file
        try:
            batches = pyarrow.parquet.ParquetFile(source).iter_batches()
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
        except pyarrow.ArrowException as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path.name}: not a readable parquet file ({reason}); copy it again") from error


def _txt(path: Path) -> Iterator[tuple[int, object]]:
    for number, line in _lines(path):
        yield number, {"text": line}


READERS: dict[str, Callable[[Path], Iterator[tuple[int, object]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _txt,
}


# --- hub ----------------------------------------------------------------------------------------------------


def _hub_name(path: str) -> tuple[str, str | None]:
    """Repository and configuration of `hub:owner/name` or `hub:owner/name/configuration`."""
    owner, name, configuration, *more = (*path.removeprefix(HUB).split("/"), "", "")
    if not owner or not name or any(more):
        raise InputError(f"{path}: a data set of the hub is written {HUB}owner/name")
    return f"{owner}/{name}", configuration or None


def hub_commit(name: str, kind: Literal["dataset", "model"], revision: str | None = None) -> str:
    """The commit that a repository's branch (main, or `revision`) points to; offline, the newest one downloaded before.

    Raises InputError for a repository that is not there and Unavailable for a hub that does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        commit = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT_S).sha
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{name}: the hub has no such {kind}, or it needs a login (`hf auth login`)"
        ) from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        commit = _downloaded_commit(name, kind, revision)
        if commit is None:
            raise Unavailable(
                f"{name}: the hub does not answer; run again later, or download the {kind} and name its folder"
            ) from error
    if commit is None:
        raise Unavailable(f"{name}: the hub names no commit for this {kind}; run again later")
    return commit


def _downloaded_commit(name: str, kind: str, revision: str | None) -> str | None:
    """The commit of the copy in the local cache, if there is one."""
    from huggingface_hub import try_to_load_from_cache

    file = "config.json" if kind == "model" else "README.md"
    found = try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
    return Path(found).parent.name if isinstance(found, str) else None


def _hub_rows(path: str, split: str) -> Iterator[RawRow]:
    """Rows of the commit that `content_digest` names; an update in between changes neither."""
    name, configuration = _hub_name(path)
    commit = hub_commit(name, "dataset")
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        table = datasets.load_dataset(name, configuration, split=split, revision=commit)
    except (DatasetNotFoundError, DatasetsError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: cannot load split {split!r}: {reason}; a configuration is written {HUB}owner/name/it"
        ) from error
    except OSError as error:
        raise Unavailable(f"{path}: the hub does not answer; run again later") from error
    for number, row in enumerate(table, 1):
        yield RawRow(name, number, row)
