"""Appeals: somebody holds their answer to a qualification task for right, though the known one differs; a lead decides.

An appeal is a flag with a reason of its own, on the gold task, and leaves the task in use. One that is upheld makes the
answer of that person a right one; whether the known answer is wrong for everybody the lead decides apart, by retiring the
task. Gold tasks that come unnoticed are told to nobody, so there is nothing to appeal against.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.labels import qualification
from prefloop.labels.audit import audit
from prefloop.labels.errors import Conflict, Invalid, NotFound
from prefloop.labels.flagging import APPEAL, RESOLUTIONS
from prefloop.labels.people import Person
from prefloop.labels.publish import project_config
from prefloop.labels.schema import annotator, flag, gold, judgement, task

LONGEST_REASON = 10_000


def appeal(
    connection: sa.Connection, now: int, project_id: str, person: Person, judgement_id: int, reason: str
) -> None:
    """Puts an answer of one's own qualification before the lead. Raises Invalid, NotFound, Conflict."""
    if not reason.strip() or len(reason) > LONGEST_REASON:
        raise Invalid(f"reason: say why your answer is right, in {LONGEST_REASON:,} characters at most")
    given = qualification.answers_of(connection, project_id, person.id)
    answer = next((one for one in given if one.judgement_id == judgement_id), None)
    if answer is None:
        raise NotFound("you gave no such answer in the qualification of this project")
    if answer.right:
        raise Conflict("this answer counts as right already")
    if qualification.appeal_of(connection, person.id, answer.task_id):
        raise Conflict("you appealed here before")
    connection.execute(
        sa.insert(flag).values(
            task_id=answer.task_id,
            annotator_id=person.id,
            reason=APPEAL,
            comment=reason.strip(),
            created_at=now,
        )
    )


# --- for leads -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Appeal:
    """An appeal that waits for a decision."""

    id: int
    task_id: str
    name: str
    """Of who appeals."""
    reason: str
    said: Mapping[str, Any]
    """In terms of completions, like `expected`."""
    expected: Mapping[str, Any]
    created_at: int


def open_appeals(connection: sa.Connection, project_id: str) -> list[Appeal]:
    """What waits, the oldest first."""
    rows = connection.execute(
        sa.select(flag, annotator.c.name, gold.c.expected, judgement.c.value)
        .join(task, task.c.id == flag.c.task_id)
        .join(gold, gold.c.task_id == task.c.id)
        .join(annotator, annotator.c.id == flag.c.annotator_id)
        .join(
            judgement,
            sa.and_(judgement.c.task_id == flag.c.task_id, judgement.c.annotator_id == flag.c.annotator_id),
        )
        .where(task.c.project_id == project_id, flag.c.reason == APPEAL, flag.c.resolved_at.is_(None))
        .where(judgement.c.revision == 0)
        .order_by(flag.c.id)
    )
    return [
        Appeal(row.id, row.task_id, row.name, row.comment, row.value or {}, row.expected, row.created_at)
        for row in rows
    ]


def decide(
    connection: sa.Connection, now: int, project_id: str, appeal_id: int, resolution: str, person: Person
) -> None:
    """Upholds or dismisses an appeal. Raises Invalid, NotFound, Conflict.

    An upheld one lets in who would have passed with it, if the mark was all that kept them out.
    """
    if resolution not in RESOLUTIONS:
        raise Invalid(f"resolution: choose one of {', '.join(RESOLUTIONS)}")
    row = connection.execute(
        sa.select(flag)
        .join(task, task.c.id == flag.c.task_id)
        .where(flag.c.id == appeal_id, flag.c.reason == APPEAL, task.c.project_id == project_id)
    ).first()
    if row is None:
        raise NotFound("there is no such appeal in this project")
    if row.resolved_at is not None:
        raise Conflict("somebody has decided this meanwhile")
    config = project_config(connection, project_id)
    below = not qualification.is_enough(connection, project_id, row.annotator_id, config)
    connection.execute(
        sa.update(flag)
        .where(flag.c.id == appeal_id)
        .values(resolved_at=now, resolution=resolution, resolved_by=person.id)
    )
    audit(connection, now, person.id, f"appeal.{resolution}", str(appeal_id), {"task": row.task_id})
    if below and qualification.is_enough(connection, project_id, row.annotator_id, config):
        qualification.let_in(connection, now, project_id, row.annotator_id, actor=person.id)
