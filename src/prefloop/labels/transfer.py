"""Labels that come from elsewhere, as tasks and judgements of the store; and a note of each export.

Everything is named by its content, so a file that is brought in twice is there once.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import islice
from typing import Any

import sqlalchemy as sa

from prefloop import __version__
from prefloop.config.annotate import MOST_RANKED
from prefloop.labels.audit import SYSTEM, audit
from prefloop.labels.database import Database
from prefloop.labels.errors import NotFound
from prefloop.labels.formats.incoming import ImportedTask
from prefloop.labels.people import LONGEST_NAME, add_person, find_person, join_project
from prefloop.labels.projects import COMPLETIONS, Kind
from prefloop.labels.publish import NewTask, project_config, publish_tasks
from prefloop.labels.rows import JudgementRow
from prefloop.labels.schema import export, judgement, task
from prefloop.records import content_id

TASKS_A_TRANSACTION = 200
IMPORTED = "import"
"""The strategy by which such tasks were chosen: nobody here knows."""
KIND_BY_NUMBER: dict[int, Kind] = {0: "demonstration", 1: "form", 2: "pairwise"}
"""What is asked about so many completions where the project's own kind does not fit; more are ranked."""
NEEDS_PAYLOAD: tuple[Kind, ...] = ("rules", "prompt")
"""Kinds that ask about more than a prompt and its completions."""


@dataclass(frozen=True)
class Brought:
    """What came of an import; what was there already counts in neither."""

    tasks: int = 0
    judgements: int = 0
    cut: int = 0
    """Tasks that ask about the first completions of more than people can rank."""
    refused: int = 0
    """Judgements about a number of completions that no task can show."""
    unheard: int = 0
    """Judgements that were left out, so that people are asked anew."""


def bring_in(database: Database, project_id: str, imported: Iterable[ImportedTask]) -> Brought:
    """Publishes tasks, and stores what was said about them as judgements of people called after their source."""
    remaining, total = iter(imported), Brought()
    kind = database.read(lambda c: project_config(c, project_id)).kind
    while some := list(islice(remaining, TASKS_A_TRANSACTION)):
        now = database.now()
        new = database.write(lambda c, some=some, now=now: _bring(c, now, project_id, kind, some))
        total = _sum(total, new)
    return total


def ask_anew(database: Database, project_id: str, imported: Iterable[ImportedTask]) -> Brought:
    """Publishes tasks as if nobody had said anything about them yet."""
    unheard = 0

    def unanswered() -> Iterator[ImportedTask]:
        nonlocal unheard
        for one in imported:
            unheard += len(one.judgements)
            yield replace(one, judgements=())

    brought = bring_in(database, project_id, unanswered())
    return replace(brought, unheard=unheard)


def _sum(one: Brought, other: Brought) -> Brought:
    return Brought(*(a + b for a, b in zip(astuple(one), astuple(other), strict=True)))


def _bring(
    connection: sa.Connection, now: int, project_id: str, kind: Kind, imported: Sequence[ImportedTask]
) -> Brought:
    read = [one for row in imported for one in _tasks(project_id, kind, row)]
    tasks = [(one, rows) for one, rows in read if one.kind and len(one.completions) in COMPLETIONS[one.kind]]
    refused = sum(len(rows) for _, rows in read) - sum(len(rows) for _, rows in tasks)
    cut = sum(not row.judgements and len(row.loop_completions) > MOST_RANKED for row in imported)
    wanted = [one.id for one, _ in tasks]
    known = set(connection.execute(sa.select(task.c.id).where(task.c.id.in_(wanted))).scalars())
    publish_tasks(connection, now, project_id, [one for one, _ in tasks])
    stored = 0
    for one, rows in tasks:
        number = sum(_store(connection, now, project_id, one.id, row) for row in rows)
        if number:
            _count(connection, now, one.id)
        stored += number
    return Brought(len(set(wanted) - known), stored, cut, refused)


def _tasks(project_id: str, kind: Kind, read: ImportedTask) -> Iterator[tuple[NewTask, list[JudgementRow]]]:
    """The tasks of a row of a file, each with what was said about it."""
    by_id = {one.id: one for one in read.loop_completions}
    if not read.judgements:
        asked = read.loop_completions[:MOST_RANKED]
        ids = [one.id for one in asked]
        if len(ids) not in COMPLETIONS[kind] or kind in NEEDS_PAYLOAD:
            kind = KIND_BY_NUMBER.get(len(ids), "rank")
        name = content_id(IMPORTED, project_id, kind, read.prompt.id, ids)
        yield NewTask(read.prompt, asked, kind=kind, id=name, strategy=IMPORTED), []
    by_task: dict[str, list[JudgementRow]] = {}
    for row in read.judgements:
        by_task.setdefault(row.task_id, []).append(row)
    for task_id, rows in by_task.items():
        first = rows[0]
        people = {row.annotator for row in rows if row.annotator_kind == "human"}
        new = NewTask(
            prompt=read.prompt,
            completions=tuple(by_id[one.id] for one in first.completions),
            kind="pairwise" if first.task_kind == "chat" else first.task_kind,
            id=content_id(IMPORTED, project_id, task_id),
            payload=first.payload,
            overlap=max(1, len(people)),
            ai_overlap=0,
            strategy=first.acquisition.strategy if first.acquisition else IMPORTED,
            probability=first.acquisition.probability if first.acquisition else None,
            split=first.prompt.split,
            lang=first.prompt.lang,
            tags=first.prompt.tags,
        )
        yield new, sorted(rows, key=lambda row: row.revision)


def _store(connection: sa.Connection, now: int, project_id: str, task_id: str, row: JudgementRow) -> bool:
    """Whether the judgement is new here."""
    person_id = _person(connection, now, project_id, row)
    key = content_id(IMPORTED, task_id, person_id, row.revision)
    if (
        connection.execute(sa.select(judgement.c.id).where(judgement.c.client_uuid == key)).first()
        is not None
    ):
        return False
    before = sa.select(judgement.c.id).where(
        judgement.c.task_id == task_id,
        judgement.c.annotator_id == person_id,
        judgement.c.revision == row.revision - 1,
    )
    connection.execute(
        sa.insert(judgement).values(
            task_id=task_id,
            project_id=project_id,
            annotator_id=person_id,
            kind=row.annotator_kind,
            state="valid" if row.state == "superseded" else row.state,
            value=dict(row.value),
            presented=list(row.presented_order) or list(range(len(row.completions))),
            client_uuid=key,
            revision=row.revision,
            supersedes=connection.execute(before).scalar() if row.revision else None,
            active_ms=row.active_ms,
            first_action_ms=row.first_action_ms,
            comment=row.comment,
            judge=None if row.judge is None else dict(row.judge),
            created_at=row.created_at or now,
        )
    )
    return True


def _person(connection: sa.Connection, now: int, project_id: str, row: JudgementRow) -> str:
    """Who said it: somebody named after the source, who can never log in."""
    said = "".join(sign for sign in row.annotator if sign.isprintable() and sign != "@")
    prefix = "" if said == IMPORTED else f"{IMPORTED} "
    name = f"{prefix}{said}"
    if len(name) > LONGEST_NAME or not said.strip() or said != row.annotator:
        name = f"{IMPORTED} {content_id(row.annotator)}"
    try:
        person = find_person(connection, name=name)
    except NotFound:
        role = "judge" if row.annotator_kind == "ai" else "annotator"
        person = add_person(connection, now, name, role=role)
    join_project(connection, project_id, person.id)
    return person.id


def _count(connection: sa.Connection, now: int, task_id: str) -> None:
    """Brings the task's own counts up to date."""
    newer = judgement.alias("newer")
    last = ~sa.exists().where(newer.c.supersedes == judgement.c.id)
    row = connection.execute(
        sa.select(
            *(
                sa.func.count(sa.case((sa.and_(judgement.c.state == state, judgement.c.kind == kind), 1)))
                for state, kind in (("valid", "human"), ("valid", "ai"), ("skipped", "human"))
            )
        ).where(judgement.c.task_id == task_id, last)
    ).one()
    changes = {"valid": row[0], "ai_valid": row[1], "skips": row[2]}
    done = sa.case((task.c.overlap <= row[0], now))
    connection.execute(sa.update(task).where(task.c.id == task_id).values(done_at=done, **changes))


def note_export(
    connection: sa.Connection,
    now: int,
    project_id: str,
    *,
    format: str,
    filter: dict[str, Any],
    watermark: int,
    sha256: str,
    rows: int,
    actor: str = SYSTEM,
) -> str:
    """Keeps what was exported, so that it can be told later which file has which labels; returns its id."""
    export_id = secrets.token_hex(8)
    connection.execute(
        sa.insert(export).values(
            id=export_id,
            project_id=project_id,
            format=format,
            filter=filter,
            watermark=watermark,
            sha256=sha256,
            rows=rows,
            code_version=__version__,
            created_by=actor,
            created_at=now,
        )
    )
    audit(connection, now, actor, "export.write", export_id, {"format": format, "rows": rows})
    return export_id
