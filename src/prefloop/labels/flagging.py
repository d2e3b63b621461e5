"""Tasks that somebody flagged, and what a lead makes of it: nothing to it, or the task is closed."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa

from prefloop.labels.audit import audit
from prefloop.labels.errors import Conflict, Invalid, NotFound
from prefloop.labels.people import Person
from prefloop.labels.schema import annotator, completion, flag, prompt, task

Resolution = Literal["dismissed", "upheld"]
"""`upheld`: the task is closed and what was said about it enters no training data."""
RESOLUTIONS: tuple[str, ...] = get_args(Resolution)
APPEAL = "appeal"
"""The reason of a flag on a gold task that says no more than that one answer was right; see `appeals`."""
PAGE = 50


@dataclass(frozen=True)
class Flagged:
    """A flag that waits for a decision."""

    id: int
    task_id: str
    kind: str
    reason: str
    comment: str
    created_at: int
    name: str
    """Of who flagged it."""
    messages: tuple[dict[str, str], ...]
    texts: tuple[str, ...]


def open_flags(connection: sa.Connection, project_id: str) -> list[Flagged]:
    """What waits for a decision, oldest first; a page of it."""
    rows = connection.execute(
        sa.select(flag, annotator.c.name, task.c.kind, task.c.completion_ids, prompt.c.messages)
        .join(task, task.c.id == flag.c.task_id)
        .join(annotator, annotator.c.id == flag.c.annotator_id)
        .outerjoin(prompt, prompt.c.id == task.c.prompt_id)
        .where(task.c.project_id == project_id, flag.c.resolved_at.is_(None), flag.c.reason != APPEAL)
        .order_by(flag.c.id)
        .limit(PAGE)
    ).all()
    ids = {one for row in rows for one in row.completion_ids}
    texts = {
        row.id: row.text
        for row in connection.execute(
            sa.select(completion.c.id, completion.c.text).where(completion.c.id.in_(ids))
        )
    }
    return [
        Flagged(
            row.id,
            row.task_id,
            row.kind,
            row.reason,
            row.comment,
            row.created_at,
            row.name,
            tuple(row.messages or ()),
            tuple(texts[one] for one in row.completion_ids),
        )
        for row in rows
    ]


def count_open(connection: sa.Connection, project_id: str) -> int:
    """How many flags wait."""
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(flag.join(task, task.c.id == flag.c.task_id))
        .where(task.c.project_id == project_id, flag.c.resolved_at.is_(None), flag.c.reason != APPEAL)
    ).scalar_one()


def resolve(
    connection: sa.Connection, now: int, project_id: str, flag_id: int, resolution: str, person: Person
) -> None:
    """Decides a flag, and with it the others on the same task. Raises Invalid, NotFound, Conflict."""
    if resolution not in RESOLUTIONS:
        raise Invalid(f"resolution: choose one of {', '.join(RESOLUTIONS)}")
    row = _flag(connection, project_id, flag_id)
    if row.resolved_at is not None:
        raise Conflict("somebody has decided this meanwhile")
    connection.execute(
        sa.update(flag)
        .where(flag.c.task_id == row.task_id, flag.c.resolved_at.is_(None), flag.c.reason != APPEAL)
        .values(resolved_at=now, resolution=resolution, resolved_by=person.id)
    )
    if resolution == "upheld":
        connection.execute(sa.update(task).where(task.c.id == row.task_id).values(state="closed"))
    audit(connection, now, person.id, f"flag.{resolution}", str(flag_id), {"task": row.task_id})


def _flag(connection: sa.Connection, project_id: str, flag_id: int) -> sa.Row[Any]:
    row = connection.execute(
        sa.select(flag)
        .join(task, task.c.id == flag.c.task_id)
        .where(flag.c.id == flag_id, flag.c.reason != APPEAL, task.c.project_id == project_id)
    ).first()
    if row is None:
        raise NotFound("there is no such flag in this project")
    return row
