"""A task that somebody holds: how long it is kept for them, what they have not sent yet, and what they tell the lead."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa

from prefloop.labels.errors import Conflict, Invalid, NotFound
from prefloop.labels.people import Person
from prefloop.labels.projects import MINUTE_MS
from prefloop.labels.publish import parsed_config
from prefloop.labels.schema import flag as flag_table
from prefloop.labels.schema import lease, project

FlagReason = Literal["personal_data", "unsafe", "bug", "reject_prompt"]
LONGEST_DRAFT = 1_000_000
"""Characters of JSON."""
IS_OPEN = sa.text("lease.state = 'open'")
"""As text: SQLite takes a partial index only for a condition that it can read."""


@dataclass(frozen=True)
class Lease:
    """A task that one person holds."""

    token: str
    task_id: str
    project_id: str
    annotator_id: str
    kind: Literal["human", "ai"]
    slot: int
    presented: tuple[int, ...]
    cents: int
    is_open: bool
    created_at: int
    expires_at: int
    limit_at: int
    draft: Mapping[str, Any] | None


def lease_of(row: sa.Row[Any], project_id: str, annotator_id: str) -> Lease:
    return Lease(
        row.token,
        row.task_id,
        project_id,
        annotator_id,
        row.kind,
        row.slot,
        tuple(row.presented),
        row.cents,
        row.state == "open",
        row.created_at,
        row.expires_at,
        row.limit_at,
        row.draft,
    )


def open_lease(connection: sa.Connection, now: int, project_id: str, person: Person) -> Lease | None:
    """The task that this person holds, if it has not run out."""
    row = connection.execute(
        sa.select(lease).where(lease.c.project_id == project_id, lease.c.annotator_id == person.id, IS_OPEN)
    ).first()
    if row is None or row.expires_at <= now:
        return None
    return lease_of(row, project_id, person.id)


def find_lease(connection: sa.Connection, token: str, person: Person) -> Lease:
    """A lease of this person, run out or not. Raises NotFound."""
    row = connection.execute(
        sa.select(lease).where(lease.c.token == token, lease.c.annotator_id == person.id)
    ).first()
    if row is None:
        raise NotFound("there is no such task for you; take the next one")
    return lease_of(row, row.project_id, row.annotator_id)


def heartbeat(connection: sa.Connection, now: int, token: str, person: Person) -> int:
    """Keeps a task for the person who is at it; returns until when. Raises NotFound, Conflict once it has run out."""
    held = find_lease(connection, token, person)
    config = parsed_config(
        connection.execute(sa.select(project.c.config).where(project.c.id == held.project_id)).scalar_one()
    )
    until = min(now + round(config.lease_minutes * MINUTE_MS), held.limit_at)
    kept = connection.execute(
        sa.update(lease)
        .where(lease.c.token == token, IS_OPEN, lease.c.expires_at > now)
        .values(expires_at=until)
    )
    if kept.rowcount != 1:
        raise Conflict(
            "this task was kept for you too long; what you send still counts if nobody else has taken it"
        )
    return until


def save_draft(connection: sa.Connection, token: str, person: Person, draft: Mapping[str, Any]) -> None:
    """Keeps what was not sent yet, for any browser of this person. Raises NotFound, Invalid for more than a draft."""
    if len(json.dumps(draft)) > LONGEST_DRAFT:
        raise Invalid(f"draft: {LONGEST_DRAFT:,} characters at most")
    kept = connection.execute(
        sa.update(lease)
        .where(lease.c.token == token, lease.c.annotator_id == person.id)
        .values(draft=dict(draft))
    )
    if kept.rowcount != 1:
        raise NotFound("there is no such task for you; take the next one")


def flag(
    connection: sa.Connection, now: int, token: str, person: Person, reason: str, comment: str = ""
) -> None:
    """Tells the lead about a task; it stays with the person."""
    if reason not in get_args(FlagReason):
        raise Invalid(f"reason: choose one of {', '.join(get_args(FlagReason))}")
    held = find_lease(connection, token, person)
    connection.execute(
        sa.insert(flag_table).values(
            task_id=held.task_id, annotator_id=person.id, reason=reason, comment=comment, created_at=now
        )
    )
