"""Who gets which task, and what becomes of what they say.

Every function works on a connection within the caller's transaction. A task is claimed by a lease, which holds one of
its places for a while; a judgement takes the place for good. `valid + leased <= overlap` holds at every commit, except of
gold tasks, which everybody gets. Work that was done is never thrown away: what comes too late to count is stored as
surplus or late, and paid. Who takes an answer back is not paid for it.

Rows are locked in one order, so that no two requests wait for each other: member, task, round, lease, project. Who holds
anything waits for no further task; what closes a round closes its tasks before it touches the round.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from prefloop.labels import database
from prefloop.labels.choosing import (
    Asking,
    choose,
    count_waiting,
    cursor_of,
    has_own,
    has_reopened,
    is_due,
)
from prefloop.labels.database import TryAgain
from prefloop.labels.errors import Conflict, ConsentNeeded, Forbidden, Frozen, Invalid, NotFound
from prefloop.labels.orders import presented_order
from prefloop.labels.people import Person, needs_consent
from prefloop.labels.places import book, expire_in_project, expire_on_task, reserve, settle
from prefloop.labels.projects import MINUTE_MS, ProjectConfig
from prefloop.labels.publish import parsed_config
from prefloop.labels.schema import flag as flag_table
from prefloop.labels.schema import judgement, lease, member, project, round_, task
from prefloop.labels.values import stored_value

__all__ = [
    "Lease",
    "Stored",
    "Submission",
    "claim",
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

SkipReason = Literal["unclear", "no_expertise", "too_long", "technical", "offensive"]
FlagReason = Literal["personal_data", "unsafe", "bug", "reject_prompt"]
DAY_MS = 24 * 60 * MINUTE_MS
LONGEST_DRAFT = 1_000_000
"""Characters of JSON."""


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


class Submission(BaseModel):
    """What somebody sends: a value in the positions of the screen, and how long it took."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: dict[str, Any]
    active_ms: int | None = Field(default=None, ge=0, le=DAY_MS)
    first_action_ms: int | None = Field(default=None, ge=0, le=DAY_MS)
    comment: str = Field(default="", max_length=10_000)
    judge: dict[str, Any] | None = None
    """Of an AI judge: model, prompt_sha, principle, temperature."""

    @property
    def body_hash(self) -> str:
        """The same for the same words, whatever the clock says."""
        said = json.dumps([self.value, self.comment], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Stored:
    """A judgement as it was stored."""

    id: int
    state: str
    revision: int


# --- claiming --------------------------------------------------------------------------------------------------------

_OPEN = sa.text("lease.state = 'open'")
"""As text: SQLite takes a partial index only for a condition that it can read."""
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
                lease.c.project_id == project.c.id, lease.c.annotator_id == sa.bindparam("person"), _OPEN
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
    if (
        connection.dialect.name == "postgresql"
    ):  # one claim of a person at a time: a second tab gets the same lease
        connection.execute(_HOLD_MEMBER, {"project": project_id, "person": person.id})
    row = _standing(connection, now, project_id, person)
    config = parsed_config(row.config)
    if row.has_expired:
        expire_in_project(connection, now, project_id, config)
        row = _standing(connection, now, project_id, person)
    if row.token is not None:
        return _lease(row, project_id, person.id)
    _admit(row, project_id, person, config)
    if row.project_state != "open":
        return None
    cursor = cursor_of(now, row)
    asking = Asking(
        person, project_id, config, row.member_served, cursor, bool(row.has_reopened), bool(row.has_own)
    )
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


def open_lease(connection: sa.Connection, now: int, project_id: str, person: Person) -> Lease | None:
    """The task that this person holds, if it has not run out."""
    row = connection.execute(
        sa.select(lease).where(lease.c.project_id == project_id, lease.c.annotator_id == person.id, _OPEN)
    ).first()
    if row is None or row.expires_at <= now:
        return None
    return _lease(row, project_id, person.id)


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


def _lease(row: sa.Row[Any], project_id: str, annotator_id: str) -> Lease:
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


def _take(connection: sa.Connection, now: int, row: sa.Row[Any], asking: Asking) -> Lease:
    person, config = asking.person, asking.config
    slot, before = _place(connection, row, person)
    cents = config.cents.get(row.kind, 0) if person.kind == "human" else 0
    round_id = row.round_id
    if round_id is None and row.repeat_of is not None:
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


def _order(connection: sa.Connection, row: sa.Row[Any], slot: int, person: Person) -> tuple[int, ...]:
    if row.repeat_of is None:
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


# --- while it is held ------------------------------------------------------------------------------------------------


def find_lease(connection: sa.Connection, token: str, person: Person) -> Lease:
    """A lease of this person, run out or not. Raises NotFound."""
    row = connection.execute(
        sa.select(lease).where(lease.c.token == token, lease.c.annotator_id == person.id)
    ).first()
    if row is None:
        raise NotFound("there is no such task for you; take the next one")
    return _lease(row, row.project_id, row.annotator_id)


def heartbeat(connection: sa.Connection, now: int, token: str, person: Person) -> int:
    """Keeps a task for the person who is at it; returns until when. Raises NotFound, Conflict once it has run out."""
    held = find_lease(connection, token, person)
    config = parsed_config(
        connection.execute(sa.select(project.c.config).where(project.c.id == held.project_id)).scalar_one()
    )
    until = min(now + round(config.lease_minutes * MINUTE_MS), held.limit_at)
    kept = connection.execute(
        sa.update(lease)
        .where(lease.c.token == token, _OPEN, lease.c.expires_at > now)
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


# --- saying ----------------------------------------------------------------------------------------------------------

_ASKED = (
    sa.select(
        lease,
        task.c.kind.label("asks"),
        task.c.payload,
        task.c.state.label("task_state"),
        *(
            getattr(task.c, name)
            for name in ("overlap", "valid", "leased", "ai_overlap", "ai_valid", "ai_leased")
        ),
        *(getattr(task.c, name) for name in ("round_id", "guideline_version", "is_gold", "for_annotator")),
        task.c.reopened_at,
        task.c.done_at,
        round_.c.state.label("round_state"),
        project.c.config,
    )
    .join(task, task.c.id == lease.c.task_id)
    .join(project, project.c.id == lease.c.project_id)
    .outerjoin(round_, round_.c.id == task.c.round_id)
    .where(lease.c.token == sa.bindparam("token"), lease.c.annotator_id == sa.bindparam("person"))
)
_INSERT_JUDGEMENT = sa.insert(judgement).returning(judgement.c.id)
_DELETE_LEASE = sa.delete(lease).where(lease.c.token == sa.bindparam("its_token"))


def submit(connection: sa.Connection, now: int, token: str, person: Person, submission: Submission) -> Stored:
    """Stores a judgement of a held task; the same again is the same judgement.

    Raises NotFound for another's lease, Conflict for other words under the same token, Invalid for a value that does
    not fit the task.
    """
    asked = _asked(connection, token, person)
    if asked is None:
        return _said_before(connection, token, person, submission)
    config = parsed_config(asked.config)
    value = stored_value(asked.asks, submission.value, asked.presented, config, rules=_rules(asked))
    if asked.state != "open":  # others' leases on this task may have run out as well
        expire_on_task(connection, now, asked.task_id, config)
        asked = connection.execute(_ASKED, {"token": token, "person": person.id}).one()
    state = (
        "late" if _is_closed(asked) else "valid" if asked.state == "open" or _has_room(asked) else "surplus"
    )
    stored = _store(connection, now, asked, submission, value, state, config)
    if state == "valid" and asked.kind == "human":
        _plan_repeat(connection, now, asked, stored.id, person, config)
    return stored


def skip(
    connection: sa.Connection, now: int, token: str, person: Person, reason: str, comment: str = ""
) -> Stored:
    """Gives a task back for good; it says nothing about the texts. Raises NotFound, Invalid."""
    if reason not in get_args(SkipReason):
        raise Invalid(f"reason: choose one of {', '.join(get_args(SkipReason))}")
    submission = Submission(value={"skip": reason}, comment=comment)
    asked = _asked(connection, token, person)
    if asked is None:
        return _said_before(connection, token, person, submission)
    config = parsed_config(asked.config)
    return _store(connection, now, asked, submission, submission.value, "skipped", config)


def _asked(connection: sa.Connection, token: str, person: Person) -> sa.Row[Any] | None:
    """A lease of this person with its task and round, held against others until the end of the transaction."""
    if connection.dialect.name == "postgresql":
        seen = connection.execute(
            sa.select(lease.c.task_id, lease.c.cents).where(
                lease.c.token == token, lease.c.annotator_id == person.id
            )
        ).first()
        if seen is None:
            return None
        _hold(connection, seen.task_id, changes_round=bool(seen.cents))
    return connection.execute(_ASKED, {"token": token, "person": person.id}).first()


def _hold(connection: sa.Connection, task_id: str, *, changes_round: bool) -> None:
    """Locks a task, and its round against a freeze. Two that share a lock and then both want to write wait for ever."""
    round_id = connection.execute(
        sa.select(task.c.round_id).where(task.c.id == task_id).with_for_update(key_share=True)
    ).scalar_one()
    if round_id is not None:
        locked = sa.select(round_.c.id).where(round_.c.id == round_id)
        connection.execute(
            locked.with_for_update(key_share=True) if changes_round else locked.with_for_update(read=True)
        )


def _said_before(connection: sa.Connection, token: str, person: Person, submission: Submission) -> Stored:
    row = connection.execute(
        sa.select(judgement).where(judgement.c.client_uuid == token, judgement.c.annotator_id == person.id)
    ).first()
    if row is None:
        raise NotFound("there is no such task for you; take the next one")
    if row.body_hash != submission.body_hash:
        raise Conflict("this task was answered already, and otherwise; change the answer in your history")
    return Stored(row.id, row.state, row.revision)


def _rules(asked: sa.Row[Any]) -> Sequence[str]:
    return (asked.payload or {}).get("rules", ())


def _is_closed(asked: sa.Row[Any]) -> bool:
    return asked.task_state != "open" or asked.round_state not in (None, "open")


def _has_room(asked: sa.Row[Any]) -> bool:
    if asked.kind == "ai":
        return asked.ai_valid + asked.ai_leased < asked.ai_overlap
    return asked.is_gold or asked.valid + asked.leased < asked.overlap


def _store(
    connection: sa.Connection,
    now: int,
    asked: sa.Row[Any],
    submission: Submission,
    value: Mapping[str, Any],
    state: str,
    config: ProjectConfig,
) -> Stored:
    cents = 0 if state == "skipped" else asked.cents
    about = {
        name: getattr(asked, name) for name in ("task_id", "project_id", "round_id", "annotator_id", "kind")
    }
    about |= {name: getattr(asked, name) for name in ("presented", "slot", "guideline_version")}
    about |= {"state": state, "client_uuid": asked.token, "cents": cents, "revision": 0}
    judgement_id = connection.execute(_INSERT_JUDGEMENT, about | _said(now, submission, value)).scalar_one()
    connection.execute(_DELETE_LEASE, {"its_token": asked.token})
    was_open = asked.state == "open"
    _count(connection, now, asked, leased=-was_open, valid=state == "valid", skips=state == "skipped")
    settle(
        connection,
        asked.project_id,
        asked.round_id,
        config,
        reserved=-asked.cents if was_open else 0,
        spent=cents,
    )
    if cents:
        book(connection, now, asked, judgement_id, cents, f"judgement:{asked.asks}")
    return Stored(judgement_id, state, 0)


def _said(now: int, submission: Submission, value: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "value": value,
        "body_hash": submission.body_hash,
        "active_ms": submission.active_ms,
        "first_action_ms": submission.first_action_ms,
        "comment": submission.comment,
        "judge": submission.judge,
        "created_at": now,
    }


_COUNT = {
    kind: sa.update(task)
    .where(task.c.id == sa.bindparam("its_id"))
    .values(
        {
            held: held + sa.bindparam("more_leased", type_=sa.Integer),
            valid: valid + sa.bindparam("more_valid", type_=sa.Integer),
            task.c.skips: task.c.skips + sa.bindparam("more_skips", type_=sa.Integer),
            task.c.reopened_at: sa.bindparam("its_reopened_at", type_=sa.BigInteger),
            task.c.done_at: sa.bindparam("its_done_at", type_=sa.BigInteger),
        }
    )
    for kind, held, valid in (
        ("human", task.c.leased, task.c.valid),
        ("ai", task.c.ai_leased, task.c.ai_valid),
    )
}


def _count(
    connection: sa.Connection,
    now: int,
    asked: sa.Row[Any],
    *,
    leased: int = 0,
    valid: int = 0,
    skips: int = 0,
) -> None:
    """Changes what is counted on a task."""
    num_valid = asked.valid + (valid if asked.kind == "human" else 0)
    connection.execute(
        _COUNT[asked.kind],
        {
            "its_id": asked.task_id,
            "more_leased": leased,
            "more_valid": int(valid),
            "more_skips": int(skips),
            "its_reopened_at": now if leased + valid < 0 else asked.reopened_at,
            "its_done_at": None if num_valid < asked.overlap else asked.done_at or now,
        },
    )


def _plan_repeat(
    connection: sa.Connection,
    now: int,
    asked: sa.Row[Any],
    judgement_id: int,
    person: Person,
    config: ProjectConfig,
) -> None:
    """Now and then, the same question again after a day: how far does somebody agree with themselves?"""
    is_usual = not asked.is_gold and asked.for_annotator is None and asked.asks in ("pairwise", "rank")
    if not is_usual or not is_due(connection, "repeat", person, judgement_id, config.repeat_share):
        return
    target = connection.execute(sa.select(task).where(task.c.id == asked.task_id)).one()
    fresh = (
        "valid",
        "leased",
        "ai_valid",
        "ai_leased",
        "ai_overlap",
        "skips",
        "reopened_at",
        "done_at",
        "round_id",
    )
    again = {name: value for name, value in target._mapping.items() if name not in fresh} | {
        "id": secrets.token_hex(8),
        "overlap": 1,
        "strategy": "repeat",
        "repeat_of": target.id,
        "for_annotator": person.id,
        "not_before": now + round(config.repeat_after_hours * 60 * MINUTE_MS),
        "created_at": now,
    }
    connection.execute(sa.insert(task).values(again))


# --- changing one's mind ---------------------------------------------------------------------------------------------

_EARLIER = (
    sa.select(
        judgement,
        task.c.kind.label("asks"),
        task.c.payload,
        task.c.state.label("task_state"),
        *(
            getattr(task.c, name)
            for name in ("overlap", "valid", "leased", "ai_overlap", "ai_valid", "ai_leased")
        ),
        *(getattr(task.c, name) for name in ("is_gold", "reopened_at", "done_at")),
        round_.c.state.label("round_state"),
        project.c.config,
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
    value = stored_value(before.asks, submission.value, before.presented, config, rules=_rules(before))
    if before.state == "valid":
        return _revision(connection, now, before, submission, client_uuid, value, "valid", cents=0)
    expire_on_task(connection, now, before.task_id, config)
    before = _earlier(connection, judgement_id, person)
    state = "valid" if _has_room(before) else "surplus"
    cents = config.cents.get(before.asks, 0) if before.kind == "human" and before.state != "surplus" else 0
    if not reserve(connection, before.round_id, cents):
        raise Conflict("the budget of this round is spent: nothing more can be paid in it")
    _count(connection, now, before, valid=state == "valid", skips=-(before.state == "skipped"))
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
    _count(connection, now, before, valid=-(before.state == "valid"), skips=-(before.state == "skipped"))
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
        _hold(connection, row.task_id, changes_round=True)
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
    if _is_closed(before):
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
    judgement_id = connection.execute(_INSERT_JUDGEMENT, about | _said(now, submission, value)).scalar_one()
    if cents:
        book(connection, now, before, judgement_id, cents, f"judgement:{before.asks}")
    return Stored(judgement_id, state, before.revision + 1)
