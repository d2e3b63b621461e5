"""Changing one's mind, until the freeze: every change is a new row, and the rows before it stay."""

import secrets
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from prefloop.labels.answers import (
    INSERT_JUDGEMENT,
    Stored,
    Submission,
    count,
    has_room,
    hold_task,
    is_closed,
    note_written,
    rules_of,
    said,
)
from prefloop.labels.errors import Conflict, Frozen, NotFound
from prefloop.labels.people import Person
from prefloop.labels.places import OF_TASK, book, expire_on_task, reserve, settle
from prefloop.labels.publish import parsed_config
from prefloop.labels.schema import judgement, lease, project, round_, task
from prefloop.labels.values import stored_value

_EARLIER = (
    sa.select(
        judgement,
        *OF_TASK,
    )
    .join(task, task.c.id == judgement.c.task_id)
    .join(project, project.c.id == judgement.c.project_id)
    .outerjoin(round_, round_.c.id == judgement.c.round_id)
    .where(judgement.c.id == sa.bindparam("judgement"), judgement.c.annotator_id == sa.bindparam("person"))
)


def revise(
    connection: sa.Connection,
    now: int,
    judgement_id: int,
    person: Person,
    submission: Submission,
    client_uuid: str,
) -> Stored:
    """Says it anew; the earlier words stay, superseded. `judgement_id` is the latest revision.

    What did not count before, skipped or taken back, takes a place of the task where one is free, and is paid. Raises
    NotFound for another's judgement, Frozen after the freeze, Conflict where it was revised meanwhile.
    """
    before = _earlier(connection, judgement_id, person)
    if (again := _revised_before(connection, before, client_uuid, submission)) is not None:
        return again
    _check_changeable(connection, before)
    config = parsed_config(before.config)
    value = stored_value(before.asks, submission.value, before.presented, config, rules=rules_of(before))
    note_written(connection, before, value)
    if before.state == "valid":
        return _revision(connection, now, before, submission, client_uuid, value, "valid", cents=0)
    expire_on_task(connection, now, before.task_id, config)
    before = _earlier(connection, judgement_id, person)
    state = "valid" if has_room(before) else "surplus"
    cents = config.cents.get(before.asks, 0) if before.kind == "human" and before.state != "surplus" else 0
    if not reserve(connection, before.round_id, cents):
        raise Conflict("the budget of this round is spent: nothing more can be paid in it")
    count(connection, now, before, valid=state == "valid", skips=-(before.state == "skipped"))
    settle(connection, before.project_id, before.round_id, config, reserved=-cents, spent=cents)
    return _revision(connection, now, before, submission, client_uuid, value, state, cents=cents)


def withdraw(connection: sa.Connection, now: int, judgement_id: int, person: Person) -> Stored:
    """Takes a judgement back; its place is free for others, and it is not paid. Raises NotFound, Frozen, Conflict."""
    before = _earlier(connection, judgement_id, person)
    newer = _newer(connection, judgement_id)
    taken_back = before if before.state == "withdrawn" else newer
    if taken_back is not None and taken_back.state == "withdrawn":
        return Stored(taken_back.id, taken_back.state, taken_back.revision)
    _check_changeable(connection, before)
    paid = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(judgement.c.cents), 0)).where(
            judgement.c.task_id == before.task_id, judgement.c.annotator_id == person.id
        )
    ).scalar_one()
    count(connection, now, before, valid=-(before.state == "valid"), skips=-(before.state == "skipped"))
    config = parsed_config(before.config)
    settle(connection, before.project_id, before.round_id, config, reserved=0, spent=-paid)
    nothing = Submission(value={})
    return _revision(connection, now, before, nothing, secrets.token_hex(16), None, "withdrawn", cents=-paid)


def _earlier(connection: sa.Connection, judgement_id: int, person: Person) -> sa.Row[Any]:
    """A judgement of this person with its task and round, held until the end of the transaction. Raises NotFound."""
    values = {"judgement": judgement_id, "person": person.id}
    row = connection.execute(_EARLIER, values).first()
    if row is None:
        raise NotFound("there is no such answer of yours")
    if connection.dialect.name == "postgresql":
        hold_task(connection, row.task_id, changes_round=True)
        row = connection.execute(_EARLIER, values).one()
    return row


def _newer(connection: sa.Connection, judgement_id: int) -> sa.Row[Any] | None:
    return connection.execute(sa.select(judgement).where(judgement.c.supersedes == judgement_id)).first()


def _revised_before(
    connection: sa.Connection, before: sa.Row[Any], client_uuid: str, submission: Submission
) -> Stored | None:
    """The revision that this key stored; None for a new key. Raises Conflict for a key of something else."""
    again = connection.execute(sa.select(judgement).where(judgement.c.client_uuid == client_uuid)).first()
    is_lease = sa.select(lease.c.token).where(lease.c.token == client_uuid)
    if again is None and connection.execute(is_lease).first() is None:
        return None
    if again is None or again.supersedes != before.id or again.body_hash != submission.body_hash:
        raise Conflict("another answer was sent under this key; load the page again")
    return Stored(again.id, again.state, again.revision)


def _check_changeable(connection: sa.Connection, before: sa.Row[Any]) -> None:
    if is_closed(before):
        raise Frozen(
            "this round is frozen: your answer is being trained on and stays as it is; tell the lead if it is wrong"
        )
    if _newer(connection, before.id) is not None:
        raise Conflict("this answer was changed meanwhile; load your history again")


def _revision(
    connection: sa.Connection,
    now: int,
    before: sa.Row[Any],
    submission: Submission,
    client_uuid: str,
    value: Mapping[str, Any] | None,
    state: str,
    *,
    cents: int,
) -> Stored:
    same = (
        "task_id",
        "project_id",
        "round_id",
        "annotator_id",
        "kind",
        "presented",
        "slot",
        "guideline_version",
    )
    about = {name: getattr(before, name) for name in same}
    about |= {"state": state, "client_uuid": client_uuid, "cents": cents}
    about |= {"revision": before.revision + 1, "supersedes": before.id}
    judgement_id = connection.execute(INSERT_JUDGEMENT, about | said(now, submission, value)).scalar_one()
    if cents:
        book(connection, now, before, judgement_id, cents, f"judgement:{before.asks}")
    return Stored(judgement_id, state, before.revision + 1)
