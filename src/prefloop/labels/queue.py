"""Who gets which task, and what becomes of what they say.

Every function works on a connection within the caller's transaction. A task is claimed by a lease, which holds one of
its places for a while; a judgement takes the place for good. `valid + leased <= overlap` holds at every commit, except of
gold tasks, which everybody gets. Work that was done is never thrown away: what comes too late to count is stored as
surplus or late, and paid. Who takes an answer back is not paid for it.

Rows are locked in one order, so that no two requests wait for each other: member, task, round, lease, project. Who holds
anything waits for no further task; what closes a round closes its tasks before it touches the round.
"""

import secrets
from typing import Any

import sqlalchemy as sa

from prefloop.labels import database, qualification
from prefloop.labels.answers import Stored, Submission, skip, submit
from prefloop.labels.choosing import Asking, choose, count_waiting, cursor_of, has_own, has_reopened
from prefloop.labels.errors import Conflict, ConsentNeeded, Forbidden, NotFound
from prefloop.labels.faults import TryAgain
from prefloop.labels.leases import (
    IS_OPEN,
    Lease,
    find_lease,
    flag,
    heartbeat,
    lease_of,
    open_lease,
    save_draft,
)
from prefloop.labels.orders import presented_order
from prefloop.labels.people import Person, needs_consent
from prefloop.labels.places import expire_in_project, reserve
from prefloop.labels.projects import MINUTE_MS, ProjectConfig
from prefloop.labels.publish import parsed_config
from prefloop.labels.revisions import revise, withdraw
from prefloop.labels.schema import judgement, lease, member, project, round_, task

__all__ = [
    "Lease",
    "Stored",
    "Submission",
    "admit",
    "claim",
    "claim_own",
    "count_waiting",
    "find_lease",
    "flag",
    "heartbeat",
    "open_lease",
    "revise",
    "save_draft",
    "skip",
    "submit",
    "withdraw",
]

_HOLD_MEMBER = (
    sa.select(member.c.served)
    .where(member.c.project_id == sa.bindparam("project"), member.c.annotator_id == sa.bindparam("person"))
    .with_for_update(key_share=True)
)
_STANDING = (
    sa.select(
        *(column for column in lease.c if column.name not in ("project_id", "annotator_id")),
        project.c.config,
        project.c.state.label("project_state"),
        project.c.cursor_version,
        project.c.guideline_version.label("newest_guidelines"),
        *(column.label(f"member_{column.name}") for column in member.c),
        has_reopened().label("has_reopened"),
        has_own().label("has_own"),
        sa.exists()
        .select_from(other := lease.alias("other"))
        .where(
            other.c.project_id == project.c.id,
            sa.text("other.state = 'open'"),
            other.c.expires_at <= sa.bindparam("now"),
        )
        .label("has_expired"),
    )
    .select_from(
        project.outerjoin(
            member,
            sa.and_(member.c.project_id == project.c.id, member.c.annotator_id == sa.bindparam("person")),
        ).outerjoin(
            lease,
            sa.and_(
                lease.c.project_id == project.c.id, lease.c.annotator_id == sa.bindparam("person"), IS_OPEN
            ),
        )
    )
    .where(project.c.id == sa.bindparam("project"))
)
_INSERT_LEASE = sa.insert(lease)
_UPDATE_LEASE = sa.update(lease).where(lease.c.token == sa.bindparam("its_token"))
_ADD_LEASED = {
    kind: sa.update(task).where(task.c.id == sa.bindparam("its_id")).values({held: held + 1})
    for kind, held in (("human", task.c.leased), ("ai", task.c.ai_leased))
}
_MOVE_CURSOR = sa.update(member).where(
    member.c.project_id == sa.bindparam("its_project"), member.c.annotator_id == sa.bindparam("its_person")
)


def claim(connection: sa.Connection, now: int, project_id: str, person: Person) -> Lease | None:
    """The task that this person holds already, or the next one for them; None when nothing is left.

    Raises Forbidden for who is not of the project, or has not yet agreed to what they must.
    """
    _hold_member(connection, project_id, person)
    row = _standing(connection, now, project_id, person)
    config = parsed_config(row.config)
    if row.has_expired:
        expire_in_project(connection, now, project_id, config)
        row = _standing(connection, now, project_id, person)
    if row.token is not None:
        return lease_of(row, project_id, person.id)
    _admit(row, project_id, person, config)
    if row.project_state != "open":
        return None
    cursor = cursor_of(now, row)
    asking = Asking(
        person, project_id, config, row.member_served, cursor, bool(row.has_reopened), bool(row.has_own)
    )
    if qualification.must_qualify(
        config, person.role, row.member_qualification
    ):  # nothing else until they have passed
        known = qualification.next_task(connection, project_id, person)
        return None if known is None else _take(connection, now, known, asking)
    choice = choose(connection, now, asking)
    held = None if choice.task is None else _take(connection, now, choice.task, asking)
    connection.execute(
        _MOVE_CURSOR,
        {
            "its_project": project_id,
            "its_person": person.id,
            "served": row.member_served + (held is not None),
            "cursor_priority": choice.cursor.priority,
            "cursor_ordinal": choice.cursor.ordinal,
            "cursor_since": choice.cursor.since,
            "cursor_version": row.cursor_version,
        },
    )
    return held


def claim_own(connection: sa.Connection, now: int, task_id: str, person: Person) -> Lease:
    """A certain task that is for this person alone, as a turn of their conversation. What they held in the project goes
    back, and still counts when it is sent.

    Raises NotFound for a task that is not theirs or has been answered, Forbidden as `claim` does, Conflict where there is
    no money for it.
    """
    its = sa.select(task).where(task.c.id == task_id, task.c.for_annotator == person.id)
    if (found := connection.execute(its).first()) is not None:
        _hold_member(connection, found.project_id, person)
        found = connection.execute(its.with_for_update(key_share=True)).first()
    if found is None or found.state != "open" or found.valid >= found.overlap:
        raise NotFound("there is no such task for you; load the page again")
    project_id = found.project_id
    connection.execute(
        sa.update(lease)
        .where(lease.c.project_id == project_id, lease.c.annotator_id == person.id, IS_OPEN)
        .where(lease.c.task_id != task_id)
        .values(expires_at=now)
    )
    row = _standing(connection, now, project_id, person)
    config = parsed_config(row.config)
    _admit(row, project_id, person, config)
    expire_in_project(connection, now, project_id, config)
    row = _standing(connection, now, project_id, person)
    if row.token is not None and row.task_id == task_id:
        return lease_of(row, project_id, person.id)
    if row.token is not None:
        raise TryAgain("what you held before is being answered at this moment; try again")
    asking = Asking(
        person, project_id, config, row.member_served, cursor_of(now, row), has_reopened=False, has_own=False
    )
    try:
        held = _take(connection, now, found, asking)
    except TryAgain as error:
        raise Conflict("this cannot be taken any more: it was answered, or the budget is spent") from error
    values = {"its_project": project_id, "its_person": person.id, "served": row.member_served + 1}
    connection.execute(_MOVE_CURSOR, values)
    return held


def admit(connection: sa.Connection, project_id: str, person: Person) -> None:
    """Raises Forbidden for who may not take tasks of a project: others, and who has something to agree to or to read."""
    row = _standing(connection, 0, project_id, person)
    _admit(row, project_id, person, parsed_config(row.config))


def _hold_member(connection: sa.Connection, project_id: str, person: Person) -> None:
    if connection.dialect.name == "postgresql":  # a second tab waits here, and gets the same lease
        connection.execute(_HOLD_MEMBER, {"project": project_id, "person": person.id})


def _standing(connection: sa.Connection, now: int, project_id: str, person: Person) -> sa.Row[Any]:
    """Everything about a person in a project that a claim needs. Raises NotFound."""
    values = {"now": now, "project": project_id, "person": person.id}
    row = connection.execute(_STANDING, values).first()
    if row is None:
        raise NotFound(f"there is no project {project_id}")
    return row


def _admit(row: sa.Row[Any], project_id: str, person: Person, config: ProjectConfig) -> None:
    if row.member_annotator_id is None:
        raise Forbidden(f"{person.name} is not a member of this project")
    if row.member_qualification == "failed":
        raise Forbidden("the qualification was not passed; ask the lead of the project")
    if person.kind == "human" and needs_consent(config, row.member_consent_version):
        raise ConsentNeeded(project_id)
    if person.kind == "human" and row.member_guideline_version < row.newest_guidelines:
        raise Forbidden(f"read and acknowledge version {row.newest_guidelines} of the guidelines first")


def _take(connection: sa.Connection, now: int, row: sa.Row[Any], asking: Asking) -> Lease:
    person, config = asking.person, asking.config
    slot, before = _place(connection, row, person)
    cents = config.cents.get(row.kind, 0) if person.kind == "human" else 0
    round_id = row.round_id
    if round_id is None and _is_repeat(row):
        round_id = _join_open_round(connection, row.id, asking.project_id)
    if not reserve(connection, round_id, cents):
        raise TryAgain("the budget of this round is being spent at this moment; try again")
    connection.execute(_ADD_LEASED[person.kind], {"its_id": row.id})
    limit_at = now + round(config.lease_limit_minutes * MINUTE_MS)
    held = Lease(
        secrets.token_hex(16) if before is None else before.token,
        row.id,
        asking.project_id,
        person.id,
        person.kind,
        slot,
        _order(connection, row, slot, person),
        cents,
        True,
        now,
        min(now + round(config.lease_minutes * MINUTE_MS), limit_at),
        limit_at,
        # a draft speaks of positions: it is of no use in another order
        before.draft if before is not None and before.slot == slot else None,
    )
    values = {name: value for name, value in vars(held).items() if name != "is_open"}
    values |= {"presented": list(held.presented), "state": "open"}
    if before is None:
        connection.execute(_INSERT_LEASE, values)
    else:
        connection.execute(_UPDATE_LEASE, values | {"its_token": before.token})
    return held


_PLACES = sa.union_all(
    sa.select(
        lease.c.slot,
        lease.c.annotator_id,
        lease.c.kind,
        lease.c.state,
        sa.null().label("id"),
        sa.null().label("before"),
    ).where(lease.c.task_id == sa.bindparam("task")),
    sa.select(
        judgement.c.slot,
        judgement.c.annotator_id,
        judgement.c.kind,
        judgement.c.state,
        judgement.c.id,
        judgement.c.supersedes,
    ).where(judgement.c.task_id == sa.bindparam("task")),
)


def _place(connection: sa.Connection, row: sa.Row[Any], person: Person) -> tuple[int, sa.Row[Any] | None]:
    """The number of a free place of a task, and the lease of it that this person once let run out.

    Who comes back gets the place that they had, and so the order that they may remember. Places of others who may still
    come late are the last to be given away: then both orders are judged equally often all the same.
    """
    found = connection.execute(_PLACES, {"task": row.id}).all()
    if any(one.id is not None and one.annotator_id == person.id for one in found):
        raise TryAgain("your own answer to this task has just come in; try again")
    old = {one.before for one in found}
    same = [one for one in found if one.kind == person.kind and (one.id is None or one.id not in old)]
    taken = {one.slot for one in same if one.state in ("open", "valid")}
    left = {one.slot for one in same if one.state == "expired"}
    before = None
    if any(one.id is None and one.annotator_id == person.id for one in found):
        before = connection.execute(
            sa.select(lease).where(lease.c.task_id == row.id, lease.c.annotator_id == person.id)
        ).one()
        if before.slot not in taken and before.kind == person.kind:
            return before.slot, before
    free = [slot for slot in range(max(row.overlap, len(taken) + 1)) if slot not in taken]
    return min(free, key=lambda slot: (slot in left, slot)), before


def _is_repeat(row: sa.Row[Any]) -> bool:
    """Whether a task asks one person again; a gold task of which another was the model asks everybody else."""
    return row.repeat_of is not None and row.for_annotator is not None


def _order(connection: sa.Connection, row: sa.Row[Any], slot: int, person: Person) -> tuple[int, ...]:
    if not _is_repeat(row):
        return presented_order(database.secret(connection), row.id, slot, len(row.completion_ids))
    seen = connection.execute(  # the other way round than this person saw it first
        sa.select(judgement.c.presented).where(
            judgement.c.task_id == row.repeat_of,
            judgement.c.annotator_id == person.id,
            judgement.c.revision == 0,
        )
    ).scalar_one()
    return tuple(seen[::-1])


def _join_open_round(connection: sa.Connection, task_id: str, project_id: str) -> str | None:
    """A repeat comes a day later, in whichever round is open then; that one pays for it."""
    newest = (
        sa.select(round_.c.id)
        .where(round_.c.project_id == project_id, round_.c.state == "open")
        .order_by(round_.c.number.desc())
        .limit(1)
    )
    round_id = connection.execute(newest).scalar()
    connection.execute(sa.update(task).where(task.c.id == task_id).values(round_id=round_id))
    return round_id
