"""Exports of a project: written once, kept with their manifest, and found again from a judgement that is in them."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from prefloop import __version__
from prefloop.interfaces import InputError
from prefloop.labels.audit import audit
from prefloop.labels.browsing import Filter
from prefloop.labels.database import Database
from prefloop.labels.errors import Invalid, NotFound
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.table import format_named
from prefloop.labels.formats.writing import Counts, Manifest, count_export, write_export
from prefloop.labels.schema import annotator, export
from prefloop.labels.streaming import judgement_rows, up_to

ENDINGS = (".jsonl", ".json", ".parquet", ".csv")
LISTED = 50
LOOKED_THROUGH = 20
"""Newest exports that are asked whether a task is in them."""


@dataclass(frozen=True)
class Wanted:
    """An export that somebody asks for."""

    filter: Filter
    format: str
    options: ExportOptions


def keeps_files(database: Database) -> bool:
    """Whether exports can be written here: a store on a server has no folder for them."""
    return database.is_sqlite and database.engine.url.database not in (None, "", ":memory:")


def exports_folder(database: Database) -> Path:
    """Where exports are kept: beside an SQLite store. Raises InputError for a store that is no file."""
    if not keeps_files(database):
        raise InputError(
            "this store is no file, so exports have no folder; use `prefloop label export --out`"
        )
    return Path(str(database.engine.url.database)).resolve().with_suffix(".exports")


def dry_run(database: Database, wanted: Wanted) -> Counts:
    """What would be in the file, and what not, and why."""
    with database.snapshot() as connection:
        rows = judgement_rows(connection, up_to(connection, wanted.filter))
        return count_export(rows, wanted.format, wanted.options)


def make_export(database: Database, wanted: Wanted, ending: str, person_id: str) -> str:
    """Writes the file with its manifest and notes it; returns its id. Raises InputError where nothing is left."""
    if ending not in ENDINGS:
        raise Invalid(f"ending {ending[:10]!r}: choose one of {', '.join(ENDINGS)}")
    format_named(wanted.format)
    id = secrets.token_hex(8)
    path = exports_folder(database) / f"{wanted.filter.project_id}-{id}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with database.snapshot() as connection:
        chosen = up_to(connection, wanted.filter)
        options = wanted.options.model_copy(
            update={
                "filter": {"project": chosen.project_id} | chosen.told(),
                "watermark": chosen.watermark,
            }
        )
        manifest = write_export(judgement_rows(connection, chosen), wanted.format, path, options)
    now = database.now()

    def note(connection: sa.Connection) -> None:
        connection.execute(
            sa.insert(export).values(
                id=id,
                project_id=chosen.project_id,
                format=wanted.format,
                filter={"filter": chosen.told(), "options": manifest.options, "ending": ending},
                watermark=chosen.watermark,
                sha256=manifest.sha256,
                rows=manifest.records,
                code_version=__version__,
                created_by=person_id,
                created_at=now,
            )
        )
        audit(
            connection,
            now,
            person_id,
            "export.make",
            id,
            {"project": chosen.project_id, "rows": manifest.records},
        )

    database.write(note)
    return id


# --- what there is ---------------------------------------------------------------------------------------------------


def exports_of(connection: sa.Connection, project_id: str) -> list[sa.Row[Any]]:
    """Exports of a project, the newest first, with the `name` of who made them."""
    return list(
        connection.execute(
            sa.select(export, annotator.c.name)
            .outerjoin(annotator, annotator.c.id == export.c.created_by)
            .where(export.c.project_id == project_id)
            .order_by(export.c.created_at.desc(), export.c.id)
            .limit(LISTED)
        )
    )


def export_file(connection: sa.Connection, database: Database, project_id: str, id: str) -> Path:
    """Where the file of an export is. Raises NotFound, also where somebody took it away."""
    row = connection.execute(
        sa.select(export).where(export.c.id == id, export.c.project_id == project_id)
    ).first()
    if row is None:
        raise NotFound("there is no such export in this project")
    path = exports_folder(database) / f"{project_id}-{row.id}{row.filter.get('ending', '.jsonl')}"
    if not path.is_file():
        raise NotFound(f"{path.name}: the file of this export is gone; make it again, it comes out the same")
    return path


def manifest_of(path: Path) -> Manifest:
    """The manifest beside an export."""
    return Manifest.model_validate(json.loads(path.with_suffix(".manifest.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Contained:
    """An export that looked at a task."""

    id: str
    format: str
    created_at: int
    judgements: int
    """Of the task, that are in the file."""
    drops: Mapping[str, int]
    """The others, by reason. Duplicates of other tasks are not looked for."""


def exports_with(connection: sa.Connection, project_id: str, task_id: str) -> list[Contained]:
    """The newest exports whose filter takes in a task, and what became of its judgements there."""
    found = []
    for row in exports_of(connection, project_id)[:LOOKED_THROUGH]:
        about = row.filter or {}
        chosen = Filter(
            project_id, **{**about.get("filter", {}), "task_id": task_id, "watermark": row.watermark}
        )
        options = ExportOptions.model_validate(about.get("options", {}))
        counts = count_export(judgement_rows(connection, chosen), row.format, options)
        if counts.rows_in:
            found.append(Contained(row.id, row.format, row.created_at, counts.rows_out, dict(counts.drops)))
    return found
