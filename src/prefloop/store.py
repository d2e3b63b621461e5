"""Artefacts: how a stage's result is named, built, published, found again and thrown away.

An artefact's key is the hash of what it was made from: stage kind, format number, the config the stage reads, the keys
of its inputs and the digests of outside files. Work happens in `<name>.partial` under a lock; the manifest is written
last and one rename publishes. A stage killed anywhere is continued by whoever builds the same key next. Knows nothing
about models or about what the stages do.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel

from prefloop.interfaces import InputError, PrefloopError, Progress, Unavailable, no_progress
from prefloop.records import content_id

MANIFEST = "manifest.json"
LOGS = "logs"
"""Folder inside an artefact for files that may differ between equal artefacts: timings, step metrics."""
TEMPORARY = ".tmp"
DIGEST_CHUNK = 1 << 20

R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Artefact:
    """A published result, or the place where it will be: keys are known before anything is computed."""

    kind: str
    key: str
    path: Path

    @property
    def name(self) -> str:
        """Folder name, `kind-key`."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """Whether it has been published."""
        return (self.path / MANIFEST).is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        """What was recorded when it was published. Raises InputError when it is missing or broken."""
        return read_json(self.path / MANIFEST)

    @property
    def stats(self) -> dict[str, Any]:
        """The stage's summary figures."""
        return self.manifest["stats"]


@dataclass(frozen=True)
class Stage:
    """A function from artefacts to one artefact, with everything its key depends on."""

    kind: str
    format: int
    """Bumped when the meaning of the artefact changes."""
    config: Mapping[str, Any]
    inputs: Mapping[str, Artefact | Sequence[Artefact] | None]
    body: Callable[["Build"], None]
    external: Mapping[str, str] = field(default_factory=dict)
    """Digests of outside files, by role."""
    work: str = ""
    """How much there is to do, in words, for the plan."""

    @property
    def key(self) -> str:
        """The content address of the result."""
        return content_id(self.kind, self.format, dict(self.config), self.input_keys, dict(self.external))

    @property
    def input_keys(self) -> dict[str, Any]:
        """Keys of the inputs, by role."""
        keys: dict[str, Any] = {}
        for role, artefact in self.inputs.items():
            if isinstance(artefact, Artefact):
                keys[role] = artefact.key
            elif artefact is not None:
                keys[role] = [one.key for one in artefact]
        return keys


class Build:
    """One artefact being made: a folder to write into, and the counters that end in its manifest."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path = path
        self.progress = progress
        self.stats: dict[str, Any] = {}
        self._rows: tuple[int, int, dict[str, int]] | None = None

    def count(self, rows_in: int, rows_out: int, dropped: Mapping[str, int] | None = None) -> None:
        """Records rows in, rows out and rows dropped by reason; raises where they do not add up."""
        reasons = {reason: number for reason, number in sorted((dropped or {}).items()) if number}
        if rows_in != rows_out + sum(reasons.values()):
            raise PrefloopError(
                f"{self.path.name}: {rows_in} rows in, but {rows_out} out and {reasons} dropped"
            )
        self._rows = (rows_in, rows_out, reasons)

    @property
    def rows(self) -> dict[str, Any]:
        """The counters as they stand in the manifest."""
        rows_in, rows_out, dropped = self._rows or (0, 0, {})
        return {"in": rows_in, "out": rows_out, "dropped": dropped}

    def log(self, name: str) -> Path:
        """A file beside the result that does not count for its digest."""
        folder = self.path / LOGS
        folder.mkdir(exist_ok=True)
        return folder / name


class Workspace:
    """A folder of artefacts and runs; safe for several processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artefacts = root / "artefacts"
        self.runs = root / "runs"
        self.cache = root / "cache"

    def create(self) -> None:
        """Makes the folders. Raises Unavailable where that is not possible."""
        with disk_errors(self.root):
            for folder in (self.artefacts, self.runs, self.cache, self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / "locks" / f".write-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()

    def artefact(self, stage: Stage) -> Artefact:
        """Where a stage's result is, or will be."""
        key = stage.key
        return Artefact(stage.kind, key, self.artefacts / f"{stage.kind}-{key}")

    def find(self, text: str) -> Artefact:
        """The published artefact with this name, key, or unambiguous beginning of either. Raises InputError."""
        found = [one for one in self.published() if one.name.startswith(text) or one.key.startswith(text)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"{text!r} fits {len(found)} artefacts: {', '.join(one.name for one in found[:5])}"
            )
        raise InputError(f"no artefact {text!r} in {self.artefacts}; `prefloop status` lists them")

    def published(self) -> list[Artefact]:
        """Every published artefact, by name."""
        if not self.artefacts.is_dir():
            return []
        folders = sorted(path for path in self.artefacts.iterdir() if (path / MANIFEST).is_file())
        return [
            Artefact(kind, key, path)
            for path in folders
            for kind, _, key in [path.name.rpartition("-")]
            if not key.endswith(".partial")
        ]

    def build(
        self, stage: Stage, progress: Progress = no_progress, on_wait: Callable[[], None] = lambda: None
    ) -> Artefact:
        """Runs the stage's body and publishes its result, continuing whatever an earlier try left.

        `on_wait` is called once when another process is already building the same artefact.
        """
        artefact = self.artefact(stage)
        with disk_errors(self.root), self._lock(artefact, on_wait):
            if artefact.exists:
                return artefact
            partial = artefact.path.with_name(artefact.name + ".partial")
            partial.mkdir(parents=True, exist_ok=True)
            build = Build(partial, progress)
            started = time.time()
            spent = _read_seconds(partial)
            try:
                stage.body(build)
            finally:
                _write_seconds(partial, spent + time.time() - started)
            for leftover in partial.rglob(f"*{TEMPORARY}"):  # half a file that a killed try was writing
                leftover.unlink()
            files = {name: digest_file(partial / name) for name in _payload(partial)}
            manifest = {
                "kind": stage.kind,
                "key": artefact.key,
                "format": stage.format,
                "digest": content_id(files),
                "rows": build.rows,
                "stats": build.stats,
                "config": dict(stage.config),
                "inputs": stage.input_keys,
                "external": dict(stage.external),
                "files": files,
                "started": started,
                "seconds": round(spent + time.time() - started, 3),
            }
            write_json(partial / MANIFEST, manifest)
            _sync_tree(partial)
            partial.rename(artefact.path)
            _sync_folder(artefact.path.parent)
        return artefact

    @contextlib.contextmanager
    def _lock(self, artefact: Artefact, on_wait: Callable[[], None]) -> Iterator[None]:
        lock = FileLock(self.root / "locks" / f"{artefact.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def is_building(self, name: str) -> bool:
        """Whether some live process is building the artefact with this folder name."""
        lock = FileLock(self.root / "locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False


def _payload(folder: Path) -> list[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if path.parts[0] not in (LOGS, MANIFEST))


def _read_seconds(partial: Path) -> float:
    path = partial / LOGS / "seconds.json"
    return float(read_json(path)["seconds"]) if path.is_file() else 0.0


def _write_seconds(partial: Path, seconds: float) -> None:
    if partial.is_dir():
        (partial / LOGS).mkdir(exist_ok=True)
        write_json(partial / LOGS / "seconds.json", {"seconds": seconds})


@contextlib.contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk into a message that says so."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run again, finished work is kept",
            errno.EDQUOT: "the disk quota is used up; free some space and run again, finished work is kept",
            errno.EROFS: "the file system is read-only; choose another folder with --workspace",
            errno.EACCES: "no permission to write; choose another folder with --workspace",
            errno.EPERM: "no permission to write; choose another folder with --workspace",
            errno.ENOTDIR: "a file is in the way; choose another folder with --workspace",
        }
        if error.errno not in reasons:
            raise
        raise Unavailable(f"workspace {root}: {reasons[error.errno]}") from error


# --- files -----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """A JSON file. Raises InputError naming the file and the place."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = _temporary(path)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    """Where a file is written before it takes its name; another process writes elsewhere."""
    return path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")


def read_rows(path: Path) -> Iterator[Any]:
    """The JSON values of a JSONL file that prefloop wrote itself."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def read_records(path: Path, record: type[R]) -> list[R]:
    """The records of a JSONL file that prefloop wrote itself."""
    with path.open(encoding="utf-8") as file:
        return [record.model_validate_json(line) for line in file]


def write_rows(path: Path, rows: Iterable[BaseModel]) -> int:
    """Writes records as JSONL, whole or not at all; returns their number."""
    temporary = _temporary(path)
    number = 0
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(row.model_dump_json(exclude_defaults=False) + "\n")
            number += 1
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return number


class RowFile:
    """A JSONL file that grows in whole chunks and survives a kill.

    A chunk is appended in one go, synced, and closed by a marker in a side file, so that after a kill the file is cut
    back to the last whole chunk and the rest is computed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._progress = path.parent / LOGS / f"{path.name}.progress.json"
        self._progress.parent.mkdir(exist_ok=True)
        state = read_json(self._progress) if self._progress.is_file() else {"items": 0, "bytes": 0}
        self.items: int = state["items"]
        """How much of what the rows are made from is done; it may have given no row, or several."""
        path.touch()
        with path.open("r+b") as file:
            file.truncate(state["bytes"])

    def append(self, rows: Iterable[BaseModel], *, items: int) -> None:
        """Appends one chunk, made from so many items."""
        with self.path.open("ab") as file:
            for row in rows:
                file.write(row.model_dump_json().encode("utf-8", "surrogatepass") + b"\n")
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        self.items += items
        write_json(self._progress, {"items": self.items, "bytes": size})


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(DIGEST_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_path(path: Path) -> str:
    """Digest of a file or of every file below a folder; what it is called does not matter."""
    if path.is_file():
        return digest_file(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    files = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
    if not files:
        raise InputError(
            f"{path}: no such file or folder" if not path.exists() else f"{path}: the folder is empty"
        )
    return content_id({str(one.relative_to(path)): digest_file(one) for one in files})


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- garbage ---------------------------------------------------------------------------------------------------------


def garbage(workspace: Workspace, keep: set[str]) -> list[tuple[Path, int]]:
    """Folders that no run needs, with their bytes: artefacts, except those being built right now, and what is cached of a
    model that is gone."""
    artefacts = _subfolders(workspace.artefacts)
    unneeded = [
        path
        for path in artefacts
        if path.name.removesuffix(".partial") not in keep
        and not workspace.is_building(path.name.removesuffix(".partial"))
    ]
    left = {path.name for path in artefacts} - {path.name for path in unneeded}
    unneeded += [
        path
        for path in _subfolders(workspace.cache / "logps")
        if not any(path.name.startswith(name) for name in left)
    ]
    return [(path, folder_bytes(path)) for path in unneeded]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(folder: Path) -> None:
    """Deletes an artefact; a kill in the middle leaves nothing that looks published."""
    doomed = folder.with_name(folder.name.removesuffix(".partial") + ".partial")
    if folder != doomed:
        folder.rename(doomed)
    shutil.rmtree(doomed)


def tally(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs."""
    return dict(sorted(Counter(reasons).items()))
