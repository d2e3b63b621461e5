"""Who changed what, and when. Rows are only ever added, and the database itself refuses anything else.

An entry holds ids, never names, addresses or secrets: names go when a person is deleted, and the audit stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.labels.schema import annotator
from prefloop.labels.schema import audit as audit_table

SYSTEM = "system"
"""The actor where no person acts: the command line, the loop, a webhook."""
PAGE = 100
REFUSAL = "the audit is append-only"


@dataclass(frozen=True)
class Entry:
    """One change, as it is shown."""

    id: int
    time: int
    actor: str
    """The name of who did it, or their id where the name is gone."""
    action: str
    object: str
    detail: Mapping[str, Any]


def audit(
    connection: sa.Connection,
    now: int,
    actor: str,
    action: str,
    object: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Notes a change in the transaction that makes it. `action` is `thing.verb`, `actor` and `object` are ids."""
    connection.execute(
        sa.insert(audit_table).values(
            time=now,
            actor=actor,
            action=action,
            object=object,
            detail=None if detail is None else dict(detail),
        )
    )


def entries(
    connection: sa.Connection, *, before: int | None = None, actor: str = "", action: str = ""
) -> Sequence[Entry]:
    """A page of the audit, newest first; `before` is the id where the last page ended, `action` a beginning."""
    wanted: list[sa.ColumnElement[bool]] = []
    if before is not None:
        wanted.append(audit_table.c.id < before)
    if actor:
        wanted.append(audit_table.c.actor == actor)
    if action:
        wanted.append(audit_table.c.action.startswith(action, autoescape=True))
    rows = connection.execute(
        sa.select(audit_table, annotator.c.name)
        .outerjoin(annotator, annotator.c.id == audit_table.c.actor)
        .where(*wanted)
        .order_by(audit_table.c.id.desc())
        .limit(PAGE)
    )
    return [
        Entry(row.id, row.time, row.name or row.actor, row.action, row.object, row.detail or {})
        for row in rows
    ]


def protect(connection: sa.Connection) -> None:
    """Makes the database refuse changes of what was noted, whoever asks."""
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)


_SQLITE = tuple(
    f"CREATE TRIGGER IF NOT EXISTS audit_no_{verb} BEFORE {verb} ON audit "
    f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
    for verb in ("update", "delete")
)
_POSTGRESQL = (
    "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$",
    "CREATE OR REPLACE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()",
)
