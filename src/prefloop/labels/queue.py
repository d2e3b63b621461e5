"""Who gets which task, and what becomes of what they say.

Every function works on a connection within the caller's transaction. A task is claimed by a lease, which holds one of
its places for a while; a judgement takes the place for good. `valid + leased <= overlap` holds at every commit. Work
that was done is never thrown away: what comes too late to count is stored as surplus or late.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from prefloop.labels import database
from prefloop.labels.errors import Conflict, ConsentNeeded, Forbidden, Frozen, Invalid, NotFound
from prefloop.labels.orders import presented_order
from prefloop.labels.people import Person, needs_consent
from prefloop.labels.projects import MINUTE_MS, ProjectConfig
from prefloop.labels.publish import project_config
from prefloop.labels.schema import HAS_ROOM, judgement, lease, ledger, member, project, round_, task
from prefloop.labels.schema import flag as flag_table
from prefloop.labels.values import stored_value

SkipReason = Literal["unclear", "no_expertise", "too_long", "technical", "offensive"]
FlagReason = Literal["personal_data", "unsafe", "bug", "reject_prompt"]
DAY_MS = 24 * 60 * MINUTE_MS


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


def claim(connection: sa.Connection, now: int, project_id: str, person: Person) -> Lease | None:
    """The task that this person holds already, or the next one for them; None when nothing is left.

    Raises Forbidden for who is not of the project, or has not yet agreed to what they must.
    """
    config = project_config(connection, project_id)
    _expire(connection, now, project_id)
    if (held := _open_lease(connection, project_id, person)) is not None:
        return held
    served = _served(connection, project_id, person, config)
    task_id = _due_special(connection, now, project_id, person, config, served) or _next_task(
        connection, project_id, person, sees_sensitive=_sees_sensitive(connection, now, person)
    )
    return None if task_id is None else _take(connection, now, task_id, person, config)


def open_lease(connection: sa.Connection, now: int, project_id: str, person: Person) -> Lease | None:
    """The task that this person holds, if it has not run out."""
    held = _open_lease(connection, project_id, person)
    return held if held is not None and held.expires_at > now else None


def _served(connection: sa.Connection, project_id: str, person: Person, config: ProjectConfig) -> int:
    """How many tasks this member has been given. Raises Forbidden for others, and for who has guidelines to read."""
    row = connection.execute(
        sa.select(
            member.c.served,
            member.c.qualification,
            member.c.consent_version,
            member.c.guideline_version,
            project.c.guideline_version.label("newest"),
        )
        .join(project, project.c.id == member.c.project_id)
        .where(member.c.project_id == project_id, member.c.annotator_id == person.id)
    ).first()
    if row is None:
        raise Forbidden(f"{person.name} is not a member of this project")
    if row.qualification == "failed":
        raise Forbidden("the qualification was not passed; ask the lead of the project")
    if person.kind == "human" and needs_consent(config, row.consent_version):
        raise ConsentNeeded(project_id)
    if person.kind == "human" and row.guideline_version < row.newest:
        raise Forbidden(f"read and acknowledge version {row.newest} of the guidelines first")
    return row.served


def _expire(connection: sa.Connection, now: int, project_id: str) -> None:
    """Gives the places of leases that have run out back to their tasks. The leases stay, for those who come late."""
    over = connection.execute(
        sa.select(lease.c.token, lease.c.task_id, lease.c.kind, lease.c.cents)
        .where(lease.c.project_id == project_id, lease.c.state == "open", lease.c.expires_at <= now)
        .with_for_update(skip_locked=True)
    ).all()
    for row in over:
        connection.execute(sa.update(lease).where(lease.c.token == row.token).values(state="expired"))
        _free_place(connection, row.task_id, row.kind, row.cents)


def _free_place(connection: sa.Connection, task_id: str, kind: str, cents: int) -> None:
    held = task.c.leased if kind == "human" else task.c.ai_leased
    connection.execute(sa.update(task).where(task.c.id == task_id).values({held: held - 1}))
    _reserve(connection, task_id, -cents)


def _reserve(connection: sa.Connection, task_id: str, cents: int) -> None:
    if cents:
        of_task = sa.select(task.c.round_id).where(task.c.id == task_id).scalar_subquery()
        connection.execute(
            sa.update(round_)
            .where(round_.c.id == of_task)
            .values(reserved_cents=round_.c.reserved_cents + cents)
        )


def _open_lease(connection: sa.Connection, project_id: str, person: Person) -> Lease | None:
    row = connection.execute(
        sa.select(lease).where(
            lease.c.project_id == project_id, lease.c.annotator_id == person.id, lease.c.state == "open"
        )
    ).first()
    return None if row is None else _lease(row)


def _lease(row: sa.Row[Any]) -> Lease:
    return Lease(
        row.token,
        row.task_id,
        row.project_id,
        row.annotator_id,
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


def _sees_sensitive(connection: sa.Connection, now: int, person: Person) -> bool:
    """Whether this person takes tasks that may disturb, and has not had their fill of them today."""
    if person.kind == "ai":
        return True
    if not person.exposure_cap:
        return False
    seen = connection.execute(
        sa.select(sa.func.count())
        .select_from(judgement.join(task, task.c.id == judgement.c.task_id))
        .where(
            judgement.c.annotator_id == person.id,
            judgement.c.created_at > now - DAY_MS,
            judgement.c.revision == 0,
            task.c.is_sensitive,
        )
    ).scalar_one()
    return seen < person.exposure_cap


def _next_task(
    connection: sa.Connection, project_id: str, person: Person, *, sees_sensitive: bool
) -> str | None:
    return connection.execute(
        _fitting(project_id, person, sees_sensitive=sees_sensitive)
        .order_by(task.c.priority.desc(), task.c.ordinal)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).scalar()


def _fitting(project_id: str, person: Person, *, sees_sensitive: bool) -> sa.Select[tuple[str]]:
    fits = [
        task.c.project_id == project_id,
        HAS_ROOM[person.kind],
        _is_for(person),
        _is_new_to(person),
        _is_affordable(),
    ]
    if not sees_sensitive:
        fits.append(~task.c.is_sensitive)
    return sa.select(task.c.id).where(*fits)


def count_waiting(
    connection: sa.Connection, now: int, project_id: str, person: Person, *, at_most: int
) -> int:
    """How many tasks this person could claim, as far as `at_most`."""
    sees_sensitive = _sees_sensitive(connection, now, person)
    some = _fitting(project_id, person, sees_sensitive=sees_sensitive).limit(at_most).subquery()
    return connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()


def _is_for(person: Person) -> sa.ColumnElement[bool]:
    return sa.and_(
        sa.or_(task.c.author_id.is_(None), task.c.author_id != person.id),
        task.c.skill.in_(["", *person.skills]),
        task.c.lang.in_(["", *person.languages]) if person.languages else sa.true(),
    )


def _is_new_to(person: Person) -> sa.ColumnElement[bool]:
    """No judgement and no running lease of theirs; who let a lease run out may come again."""
    judged = sa.exists().where(judgement.c.task_id == task.c.id, judgement.c.annotator_id == person.id)
    holds = sa.exists().where(
        lease.c.task_id == task.c.id, lease.c.annotator_id == person.id, lease.c.state == "open"
    )
    return sa.not_(judged) & sa.not_(holds)


def _is_affordable() -> sa.ColumnElement[bool]:
    """Whether the round can pay one more; tasks of no round cost nothing of a budget."""
    over = sa.exists().where(
        round_.c.id == task.c.round_id,
        round_.c.budget_cents.is_not(None),
        round_.c.spent_cents + round_.c.reserved_cents >= round_.c.budget_cents,
    )
    return sa.not_(over)


def _due_special(
    connection: sa.Connection, now: int, project_id: str, person: Person, config: ProjectConfig, served: int
) -> str | None:
    """A repeat or a gold task, where this person's turn for one has come."""
    if person.kind == "ai":
        return None
    if (own := _task_for(connection, now, project_id, person)) is not None:
        return own
    if not config.gold_share or not _is_due(connection, project_id, person, served, config.gold_share):
        return None
    return connection.execute(
        sa.select(task.c.id)
        .where(task.c.project_id == project_id, task.c.is_gold, task.c.state == "open")
        .where(_is_for(person), _is_new_to(person))
        .order_by(task.c.ordinal)
        .limit(1)
    ).scalar()


def _task_for(connection: sa.Connection, now: int, project_id: str, person: Person) -> str | None:
    """The next task that is meant for this person alone: a repeat, or one of a conversation or qualification."""
    return connection.execute(
        sa.select(task.c.id)
        .where(task.c.for_annotator == person.id, task.c.project_id == project_id, task.c.state == "open")
        .where(task.c.valid + task.c.leased < task.c.overlap)
        .where(sa.or_(task.c.not_before.is_(None), task.c.not_before <= now))
        .where(_is_new_to(person))
        .order_by(task.c.ordinal)
        .limit(1)
    ).scalar()


def _is_due(connection: sa.Connection, what: str, person: Person, number: int, share: float) -> bool:
    """Whether number so much of this person's is a special one: by a secret, so that nobody sees it coming."""
    key = database.secret(connection).encode()
    digest = hmac.new(key, f"{what}/{person.id}/{number}".encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def _take(connection: sa.Connection, now: int, task_id: str, person: Person, config: ProjectConfig) -> Lease:
    row = connection.execute(sa.select(task).where(task.c.id == task_id)).one()
    slot = _free_slot(connection, task_id, person.kind)
    cents = config.cents.get(row.kind, 0) if person.kind == "human" else 0
    held = task.c.leased if person.kind == "human" else task.c.ai_leased
    connection.execute(sa.update(task).where(task.c.id == task_id).values({held: held + 1}))
    connection.execute(
        sa.update(member)
        .where(member.c.project_id == row.project_id, member.c.annotator_id == person.id)
        .values(served=member.c.served + 1)
    )
    _reserve(connection, task_id, cents)
    # who let this task go before gets it as it was: the order that they may remember
    before = connection.execute(
        sa.select(lease).where(lease.c.task_id == task_id, lease.c.annotator_id == person.id)
    ).first()
    values = {
        "task_id": task_id,
        "project_id": row.project_id,
        "annotator_id": person.id,
        "kind": person.kind,
        "slot": slot,
        "presented": _order(connection, row, slot, person) if before is None else before.presented,
        "state": "open",
        "cents": cents,
        "created_at": now,
        "expires_at": now + round(config.lease_minutes * MINUTE_MS),
        "limit_at": now + round(config.lease_limit_minutes * MINUTE_MS),
        "draft": None if before is None else before.draft,
    }
    if before is None:
        values["token"] = secrets.token_hex(16)
        connection.execute(sa.insert(lease).values(values))
    else:
        values["token"] = before.token
        connection.execute(sa.update(lease).where(lease.c.token == before.token).values(values))
    return Lease(
        values["token"],
        task_id,
        row.project_id,
        person.id,
        person.kind,
        slot,
        tuple(values["presented"]),
        cents,
        True,
        now,
        values["expires_at"],
        values["limit_at"],
        values["draft"],
    )


def _order(connection: sa.Connection, row: sa.Row[Any], slot: int, person: Person) -> list[int]:
    if row.repeat_of is not None:  # the other way round than this person saw it first
        seen = connection.execute(
            sa.select(judgement.c.presented).where(
                judgement.c.task_id == row.repeat_of,
                judgement.c.annotator_id == person.id,
                judgement.c.revision == 0,
            )
        ).scalar_one()
        return seen[::-1]
    return list(presented_order(database.secret(connection), row.id, slot, len(row.completion_ids)))


def _free_slot(connection: sa.Connection, task_id: str, kind: str) -> int:
    """The lowest number that no valid judgement and no running lease of this task has."""
    leases = sa.select(lease.c.slot).where(
        lease.c.task_id == task_id, lease.c.kind == kind, lease.c.state == "open"
    )
    newer = judgement.alias("newer")
    judged = sa.select(judgement.c.slot).where(
        judgement.c.task_id == task_id,
        judgement.c.kind == kind,
        judgement.c.state == "valid",
        ~sa.exists().where(newer.c.supersedes == judgement.c.id),
    )
    taken = set(connection.execute(sa.union_all(leases, judged)).scalars())
    return next(one for one in range(len(taken) + 1) if one not in taken)


# --- while it is held ------------------------------------------------------------------------------------------------


def find_lease(connection: sa.Connection, token: str, person: Person) -> Lease:
    """A lease of this person, run out or not. Raises NotFound."""
    row = connection.execute(
        sa.select(lease).where(lease.c.token == token, lease.c.annotator_id == person.id)
    ).first()
    if row is None:
        raise NotFound("there is no such task for you; take the next one")
    return _lease(row)


def heartbeat(connection: sa.Connection, now: int, token: str, person: Person) -> int:
    """Keeps a task for the person who is at it; returns until when. Raises NotFound, Conflict once it has run out."""
    held = find_lease(connection, token, person)
    if not held.is_open or held.expires_at <= now:
        raise Conflict(
            "this task was kept for you too long; what you send still counts if nobody else has taken it"
        )
    config = project_config(connection, held.project_id)
    until = min(now + round(config.lease_minutes * MINUTE_MS), held.limit_at)
    connection.execute(sa.update(lease).where(lease.c.token == token).values(expires_at=until))
    return until


def save_draft(connection: sa.Connection, token: str, person: Person, draft: Mapping[str, Any]) -> None:
    """Keeps what was not sent yet, for any browser of this person."""
    find_lease(connection, token, person)
    connection.execute(sa.update(lease).where(lease.c.token == token).values(draft=dict(draft)))


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


def submit(connection: sa.Connection, now: int, token: str, person: Person, submission: Submission) -> Stored:
    """Stores a judgement of a held task; the same again is the same judgement.

    Raises NotFound for another's lease, Conflict for other words under the same token, Invalid for a value that does
    not fit the task.
    """
    row = connection.execute(
        sa.select(lease).where(lease.c.token == token, lease.c.annotator_id == person.id).with_for_update()
    ).first()
    if row is None:
        return _said_before(connection, token, person, submission)
    held = _lease(row)
    target = _task(connection, held.task_id)
    config = project_config(connection, held.project_id)
    value = stored_value(target.kind, submission.value, held.presented, config, rules=_rules(target))
    state = _state_of(connection, now, held, target)
    return _store(connection, now, held, target, person, submission, value, state)


def skip(
    connection: sa.Connection, now: int, token: str, person: Person, reason: str, comment: str = ""
) -> Stored:
    """Gives a task back for good; it says nothing about the texts. Raises NotFound, Invalid."""
    if reason not in get_args(SkipReason):
        raise Invalid(f"reason: choose one of {', '.join(get_args(SkipReason))}")
    submission = Submission(value={"skip": reason}, comment=comment)
    row = connection.execute(
        sa.select(lease).where(lease.c.token == token, lease.c.annotator_id == person.id).with_for_update()
    ).first()
    if row is None:
        return _said_before(connection, token, person, submission)
    held = _lease(row)
    target = _task(connection, held.task_id)
    return _store(connection, now, held, target, person, submission, submission.value, "skipped")


def _said_before(connection: sa.Connection, token: str, person: Person, submission: Submission) -> Stored:
    row = connection.execute(
        sa.select(judgement).where(judgement.c.client_uuid == token, judgement.c.annotator_id == person.id)
    ).first()
    if row is None:
        raise NotFound("there is no such task for you; take the next one")
    if row.body_hash != submission.body_hash:
        raise Conflict("this task was answered already, and otherwise; change the answer in your history")
    return Stored(row.id, row.state, row.revision)


def _task(connection: sa.Connection, task_id: str) -> sa.Row[Any]:
    """A task, held against others until the end of the transaction."""
    return connection.execute(sa.select(task).where(task.c.id == task_id).with_for_update()).one()


def _rules(target: sa.Row[Any]) -> Sequence[str]:
    return (target.payload or {}).get("rules", ())


def _state_of(connection: sa.Connection, now: int, held: Lease, target: sa.Row[Any]) -> str:
    if target.state != "open" or not _round_is_open(connection, target.round_id):
        return "late"
    if held.is_open and held.expires_at > now:
        return "valid"
    if held.is_open:  # ran out, and no claim has come to notice it
        return "valid"
    taken, wanted = (
        (target.valid + target.leased, target.overlap)
        if held.kind == "human"
        else (target.ai_valid + target.ai_leased, target.ai_overlap)
    )
    return "valid" if taken < wanted or target.is_gold else "surplus"


def _round_is_open(connection: sa.Connection, round_id: str | None) -> bool:
    """Held against a freeze until the end of the transaction."""
    if round_id is None:
        return True
    state = connection.execute(
        sa.select(round_.c.state).where(round_.c.id == round_id).with_for_update(read=True)
    ).scalar_one()
    return state == "open"


def _store(
    connection: sa.Connection,
    now: int,
    held: Lease,
    target: sa.Row[Any],
    person: Person,
    submission: Submission,
    value: Mapping[str, Any],
    state: str,
) -> Stored:
    paid = 0 if state == "skipped" else held.cents
    judgement_id = connection.execute(
        sa.insert(judgement)
        .values(
            task_id=held.task_id,
            project_id=held.project_id,
            round_id=target.round_id,
            annotator_id=person.id,
            kind=held.kind,
            state=state,
            value=value,
            presented=list(held.presented),
            slot=held.slot,
            guideline_version=target.guideline_version,
            client_uuid=held.token,
            body_hash=submission.body_hash,
            active_ms=submission.active_ms,
            first_action_ms=submission.first_action_ms,
            comment=submission.comment,
            judge=submission.judge,
            cents=paid,
            created_at=now,
        )
        .returning(judgement.c.id)
    ).scalar_one()
    connection.execute(sa.delete(lease).where(lease.c.token == held.token))
    _count_on_task(connection, now, held, target, state)
    if paid:
        _pay(connection, now, held, target, judgement_id, paid)
    if state == "valid" and held.kind == "human":
        _plan_repeat(connection, now, target, person, judgement_id)
    return Stored(judgement_id, state, 0)


def _plan_repeat(
    connection: sa.Connection, now: int, target: sa.Row[Any], person: Person, judgement_id: int
) -> None:
    """Now and then, the same question again after a day: how far does somebody agree with themselves?"""
    config = project_config(connection, target.project_id)
    is_usual = not target.is_gold and target.for_annotator is None and target.kind in ("pairwise", "rank")
    if not is_usual or not _is_due(connection, "repeat", person, judgement_id, config.repeat_share):
        return
    again = dict(target._mapping) | {
        "id": secrets.token_hex(8),
        "overlap": 1,
        "ai_overlap": 0,
        "strategy": "repeat",
        "repeat_of": target.id,
        "for_annotator": person.id,
        "not_before": now + round(config.repeat_after_hours * 60 * MINUTE_MS),
        "valid": 0,
        "leased": 0,
        "ai_valid": 0,
        "ai_leased": 0,
        "skips": 0,
        "created_at": now,
        "done_at": None,
    }
    connection.execute(sa.insert(task).values(again))


def _count_on_task(connection: sa.Connection, now: int, held: Lease, target: sa.Row[Any], state: str) -> None:
    valid, leased = (
        (task.c.valid, task.c.leased) if held.kind == "human" else (task.c.ai_valid, task.c.ai_leased)
    )
    changes: dict[Any, Any] = {}
    if held.is_open:
        changes[leased] = leased - 1
        _reserve(connection, target.id, -held.cents)
    if state == "valid":
        changes[valid] = valid + 1
        if held.kind == "human" and target.valid + 1 >= target.overlap:
            changes[task.c.done_at] = now
    elif state == "skipped":
        changes[task.c.skips] = task.c.skips + 1
    if changes:
        connection.execute(sa.update(task).where(task.c.id == target.id).values(changes))


def _pay(
    connection: sa.Connection, now: int, held: Lease, target: sa.Row[Any], judgement_id: int, cents: int
) -> None:
    connection.execute(
        sa.insert(ledger).values(
            project_id=held.project_id,
            round_id=target.round_id,
            annotator_id=held.annotator_id,
            judgement_id=judgement_id,
            cents=cents,
            reason=f"judgement:{target.kind}",
            created_at=now,
        )
    )
    connection.execute(
        sa.update(round_)
        .where(round_.c.id == target.round_id)
        .values(spent_cents=round_.c.spent_cents + cents)
    )


# --- changing one's mind ---------------------------------------------------------------------------------------------


def revise(
    connection: sa.Connection,
    now: int,
    judgement_id: int,
    person: Person,
    submission: Submission,
    client_uuid: str,
) -> Stored:
    """Says it anew; the earlier words stay, superseded. `judgement_id` is the latest revision.

    Raises NotFound for another's judgement, Frozen after the freeze, Conflict where it was revised meanwhile.
    """
    before = _own(connection, judgement_id, person)
    again = connection.execute(sa.select(judgement).where(judgement.c.client_uuid == client_uuid)).first()
    if again is not None:
        if again.annotator_id != person.id or again.body_hash != submission.body_hash:
            raise Conflict("another answer was sent under this key; load the page again")
        return Stored(again.id, again.state, again.revision)
    target = _changeable(connection, before)
    config = project_config(connection, before.project_id)
    value = stored_value(target.kind, submission.value, before.presented, config, rules=_rules(target))
    # who skipped and now answers takes a place, if there is one
    state = before.state
    if before.state in ("skipped", "withdrawn"):
        state = "valid" if target.valid + target.leased < target.overlap or target.is_gold else "surplus"
        if state == "valid":
            connection.execute(sa.update(task).where(task.c.id == target.id).values(valid=task.c.valid + 1))
    return _revision(connection, now, before, submission, client_uuid, value, state)


def withdraw(connection: sa.Connection, now: int, judgement_id: int, person: Person) -> Stored:
    """Takes a judgement back; its place is free for others. Raises NotFound, Frozen, Conflict."""
    before = _own(connection, judgement_id, person)
    target = _changeable(connection, before)
    if before.state == "withdrawn":
        return Stored(before.id, before.state, before.revision)
    if before.state == "valid":
        valid = task.c.valid if before.kind == "human" else task.c.ai_valid
        connection.execute(
            sa.update(task).where(task.c.id == target.id).values({valid: valid - 1, task.c.done_at: None})
        )
    empty = Submission(value={})
    return _revision(connection, now, before, empty, secrets.token_hex(16), None, "withdrawn")


def _own(connection: sa.Connection, judgement_id: int, person: Person) -> sa.Row[Any]:
    row = connection.execute(
        sa.select(judgement).where(judgement.c.id == judgement_id, judgement.c.annotator_id == person.id)
    ).first()
    if row is None:
        raise NotFound("there is no such answer of yours")
    return row


def _changeable(connection: sa.Connection, before: sa.Row[Any]) -> sa.Row[Any]:
    target = _task(connection, before.task_id)
    if target.state != "open" or not _round_is_open(connection, target.round_id):
        raise Frozen(
            "this round is frozen: your answer is being trained on and stays as it is; tell the lead if it is wrong"
        )
    newer = connection.execute(sa.select(judgement.c.id).where(judgement.c.supersedes == before.id)).scalar()
    if newer is not None:
        raise Conflict("this answer was changed meanwhile; load your history again")
    return target


def _revision(
    connection: sa.Connection,
    now: int,
    before: sa.Row[Any],
    submission: Submission,
    client_uuid: str,
    value: Mapping[str, Any] | None,
    state: str,
) -> Stored:
    judgement_id = connection.execute(
        sa.insert(judgement)
        .values(
            task_id=before.task_id,
            project_id=before.project_id,
            round_id=before.round_id,
            annotator_id=before.annotator_id,
            kind=before.kind,
            state=state,
            value=value,
            presented=before.presented,
            slot=before.slot,
            guideline_version=before.guideline_version,
            client_uuid=client_uuid,
            body_hash=submission.body_hash,
            revision=before.revision + 1,
            supersedes=before.id,
            active_ms=submission.active_ms,
            first_action_ms=submission.first_action_ms,
            comment=submission.comment,
            judge=submission.judge,
            created_at=now,
        )
        .returning(judgement.c.id)
    ).scalar_one()
    return Stored(judgement_id, state, before.revision + 1)
