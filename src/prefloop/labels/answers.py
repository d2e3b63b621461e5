"""What people say about a task that they were given: stored once, counted where there is a place, paid in any case."""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from prefloop.labels import qualification
from prefloop.labels.choosing import is_due
from prefloop.labels.errors import Conflict, Invalid, NotFound
from prefloop.labels.people import Person
from prefloop.labels.places import OF_TASK, book, expire_on_task, settle
from prefloop.labels.projects import MINUTE_MS, ProjectConfig
from prefloop.labels.publish import parsed_config
from prefloop.labels.schema import judgement, lease, member, project, round_, task
from prefloop.labels.values import stored_value
from prefloop.labels.written import note_author, written_messages

SkipReason = Literal["unclear", "no_expertise", "too_long", "technical", "offensive"]
DAY_MS = 24 * 60 * MINUTE_MS


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


_ASKED = (
    sa.select(
        lease,
        *OF_TASK,
        task.c.round_id,
        task.c.guideline_version,
        task.c.for_annotator,
        task.c.strategy,
        member.c.guideline_version.label("acknowledged"),
    )
    .join(task, task.c.id == lease.c.task_id)
    .join(project, project.c.id == lease.c.project_id)
    .outerjoin(round_, round_.c.id == task.c.round_id)
    .outerjoin(
        member,
        sa.and_(member.c.project_id == lease.c.project_id, member.c.annotator_id == lease.c.annotator_id),
    )
    .where(lease.c.token == sa.bindparam("token"), lease.c.annotator_id == sa.bindparam("person"))
)
INSERT_JUDGEMENT = sa.insert(judgement).returning(judgement.c.id)
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
    value = stored_value(asked.asks, submission.value, asked.presented, config, rules=rules_of(asked))
    if asked.state != "open":  # others' leases on this task may have run out as well
        expire_on_task(connection, now, asked.task_id, config)
        asked = connection.execute(_ASKED, {"token": token, "person": person.id}).one()
    state = "late" if is_closed(asked) else "valid" if asked.state == "open" or has_room(asked) else "surplus"
    stored = _store(connection, now, asked, submission, value, state, config)
    if state == "valid" and asked.kind == "human":
        _plan_repeat(connection, now, asked, stored.id, person, config)
    _settle_qualification(connection, now, asked, person, config)
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
    stored = _store(connection, now, asked, submission, submission.value, "skipped", config)
    _settle_qualification(connection, now, asked, person, config)
    return stored


def _settle_qualification(
    connection: sa.Connection, now: int, asked: sa.Row[Any], person: Person, config: ProjectConfig
) -> None:
    if asked.strategy == qualification.STRATEGY:
        qualification.settle(connection, now, asked.project_id, person.id, config)


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
        hold_task(connection, seen.task_id, changes_round=bool(seen.cents))
    return connection.execute(_ASKED, {"token": token, "person": person.id}).first()


def hold_task(connection: sa.Connection, task_id: str, *, changes_round: bool) -> None:
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


def rules_of(asked: sa.Row[Any]) -> Sequence[str]:
    return (asked.payload or {}).get("rules", ())


def is_closed(asked: sa.Row[Any]) -> bool:
    return asked.task_state != "open" or asked.round_state not in (None, "open")


def has_room(asked: sa.Row[Any]) -> bool:
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
    # a task may be older than the guidelines that somebody judges it by
    read = asked.acknowledged if asked.kind == "human" else None
    about |= {"presented": asked.presented, "slot": asked.slot}
    about["guideline_version"] = asked.guideline_version if read is None else read
    about |= {"state": state, "client_uuid": asked.token, "cents": cents, "revision": 0}
    judgement_id = connection.execute(INSERT_JUDGEMENT, about | said(now, submission, value)).scalar_one()
    note_written(connection, asked, value)
    connection.execute(_DELETE_LEASE, {"its_token": asked.token})
    was_open = asked.state == "open"
    count(connection, now, asked, leased=-was_open, valid=state == "valid", skips=state == "skipped")
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


def note_written(connection: sa.Connection, asked: sa.Row[Any], value: Mapping[str, Any]) -> None:
    """Keeps a prompt with its author, who is never asked to judge answers to it."""
    if asked.asks == "prompt" and "text" in value:
        source, sensitive = f"written:{asked.project_id}", bool(value.get("is_sensitive"))
        note_author(
            connection, written_messages(value), asked.annotator_id, source=source, is_sensitive=sensitive
        )


def said(now: int, submission: Submission, value: Mapping[str, Any] | None) -> dict[str, Any]:
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


def count(
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
