"""Rounds: one turn of the loop as people see it, from the first question to the policy that was trained on the answers.

A round is open while people judge. The freeze closes its tasks and notes the watermark, the last judgement that counts,
in one transaction; whatever is read later is read up to there, so it is the same for ever. What the loop then does with
the labels is noted as it happens, and what people decide about the trained policy is kept as a fact of its own.
"""

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from prefloop.labels.audit import SYSTEM, audit
from prefloop.labels.errors import Conflict, NotFound
from prefloop.labels.publish import forget_cursors, project_config
from prefloop.labels.schema import decision, judgement, ledger, policy, round_, task
from prefloop.labels.webhooks import announce

State = Literal["open", "frozen", "training", "evaluating", "promoted", "rejected"]
Verdict = Literal["promote", "reject"]
STATE_AFTER: dict[Verdict, State] = {"promote": "promoted", "reject": "rejected"}
WANTED = 1.0
"""Priority of tasks that a run waits for, where there are others."""


@dataclass(frozen=True)
class Round:
    """A round as it stands."""

    id: str
    project_id: str
    number: int
    state: State
    policy_in: str
    reward_in: str
    policy_out: str
    """The policy trained on this round, kept or not."""
    reward_out: str
    watermark: int | None
    budget_cents: int | None
    spent_cents: int
    reserved_cents: int
    opened_at: int
    frozen_at: int | None


@dataclass(frozen=True)
class Standing:
    """How far a round is."""

    tasks: int
    settled: int
    """Tasks with as many answers as they want; a skip is an answer."""
    judgements: int
    """Valid ones of people."""


# --- beginning and looking -------------------------------------------------------------------------------------------


def begin_round(
    connection: sa.Connection,
    now: int,
    project_id: str,
    round_id: str,
    *,
    policy_in: str = "",
    reward_in: str = "",
) -> Round:
    """The round of this id, opened with the next number where it is new."""
    if (found := find_round(connection, round_id)) is not None:
        return found
    highest = sa.select(sa.func.max(round_.c.number)).where(round_.c.project_id == project_id)
    connection.execute(
        sa.insert(round_).values(
            id=round_id,
            project_id=project_id,
            number=(connection.execute(highest).scalar() or 0) + 1,
            policy_in=policy_in,
            reward_in=reward_in,
            budget_cents=project_config(connection, project_id).budget_cents,
            opened_at=now,
        )
    )
    begun = find_round(connection, round_id)
    assert begun is not None, "it was inserted a line above"
    return begun


def find_round(connection: sa.Connection, round_id: str) -> Round | None:
    """A round by its id."""
    row = connection.execute(sa.select(round_).where(round_.c.id == round_id)).first()
    return None if row is None else _round(row)


def rounds_of(connection: sa.Connection, project_id: str) -> list[Round]:
    """All rounds of a project, the first one first."""
    wanted = sa.select(round_).where(round_.c.project_id == project_id).order_by(round_.c.number)
    return [_round(row) for row in connection.execute(wanted)]


def numbered_round(connection: sa.Connection, project_id: str, number: int | None) -> Round:
    """A round by its number, or the newest. Raises NotFound, which names those that there are."""
    found = rounds_of(connection, project_id)
    if not found:
        raise NotFound(f"project {project_id} has no rounds; `prefloop run` opens one when it needs labels")
    if number is None:
        return found[-1]
    for one in found:
        if one.number == number:
            return one
    raise NotFound(f"project {project_id} has no round {number}; it has 1 to {found[-1].number}")


def prefer(connection: sa.Connection, project_id: str, round_id: str) -> None:
    """Lets people get the tasks of this round before those of others that are open: a run waits for it.

    Rounds that no run wants any more, after a roll back for instance, stay open: their labels count should they come back.
    """
    others = sa.select(round_.c.id).where(
        round_.c.project_id == project_id, round_.c.id != round_id, round_.c.state == "open"
    )
    if connection.execute(others.limit(1)).first() is None:
        return
    rows = sa.and_(task.c.project_id == project_id, ~task.c.is_gold)
    mine, theirs = task.c.round_id == round_id, task.c.round_id.in_(others)
    raised = connection.execute(
        sa.update(task).where(rows, mine, task.c.priority == 0).values(priority=WANTED)
    )
    if not raised.rowcount:
        return  # it is the one already
    connection.execute(sa.update(task).where(rows, theirs, task.c.priority == WANTED).values(priority=0))
    forget_cursors(connection, project_id)


def _round(row: sa.Row[Any]) -> Round:
    return Round(**{name: getattr(row, name) for name in Round.__dataclass_fields__})


def standing(connection: sa.Connection, round_id: str) -> Standing:
    """Counts answers of people; gold tasks and repeats are not among the tasks."""
    answers = (
        sa.select(
            judgement.c.task_id,
            sa.func.count().label("answers"),
            sa.func.sum(sa.case((judgement.c.state == "valid", 1), else_=0)).label("valid"),
        )
        .where(judgement.c.round_id == round_id, judgement.c.kind == "human", is_last_word())
        .where(judgement.c.state.in_(("valid", "skipped")))
        .group_by(judgement.c.task_id)
        .subquery()
    )
    settled = sa.case((answers.c.answers >= task.c.overlap, 1), else_=0)
    row = connection.execute(
        sa.select(sa.func.count(), sa.func.sum(settled), sa.func.sum(sa.func.coalesce(answers.c.valid, 0)))
        .select_from(task.outerjoin(answers, answers.c.task_id == task.c.id))
        .where(task.c.round_id == round_id, ~task.c.is_gold, task.c.for_annotator.is_(None))
    ).one()
    return Standing(row[0], row[1] or 0, int(row[2] or 0))  # PostgreSQL's sum of sums is a Decimal


def is_last_word(watermark: int | None = None) -> sa.ColumnElement[bool]:
    """That no later revision, up to the watermark, takes the place of a judgement."""
    newer = judgement.alias("newer")
    later = sa.exists().where(newer.c.supersedes == judgement.c.id)
    return ~(later if watermark is None else later.where(newer.c.id <= watermark))


def spent_cents(connection: sa.Connection, round_id: str) -> int:
    """What the ledger says that a round has cost."""
    total = sa.select(sa.func.coalesce(sa.func.sum(ledger.c.cents), 0)).where(ledger.c.round_id == round_id)
    return connection.execute(total).scalar_one()


def is_out_of_money(connection: sa.Connection, found: Round) -> bool:
    """Whether nobody gets a task of the round any more because what is left of its budget does not pay for one."""
    if found.budget_cents is None:
        return False
    kinds = sa.select(task.c.kind).where(task.c.round_id == found.id, task.c.state == "open").distinct()
    cents = project_config(connection, found.project_id).cents
    dearest = max((cents.get(kind, 0) for kind in connection.execute(kinds).scalars()), default=0)
    return found.spent_cents + found.reserved_cents + dearest > found.budget_cents


def set_budget(connection: sa.Connection, now: int, found: Round, cents: int | None, *, actor: str) -> None:
    """Gives a round another budget; None takes the limit away."""
    connection.execute(sa.update(round_).where(round_.c.id == found.id).values(budget_cents=cents))
    forget_cursors(connection, found.project_id)  # tasks may have been passed because there was no money
    audit(connection, now, actor, "round.budget", found.id, {"cents": cents})


# --- the freeze ------------------------------------------------------------------------------------------------------


def freeze(connection: sa.Connection, now: int, round_id: str, *, actor: str, reason: str) -> int:
    """Closes a round and returns its watermark; a frozen round stays as it is.

    Its tasks are closed first: that waits for judgements that are being stored, which hold their tasks, and one that comes
    later finds its task closed. So every judgement is either below the watermark or late.
    """
    wanted = sa.select(round_).where(round_.c.id == round_id)
    row = connection.execute(wanted).first()
    if row is None:
        raise NotFound(f"there is no round {round_id}")
    if row.state == "open":
        connection.execute(sa.update(task).where(task.c.round_id == round_id).values(state="closed"))
        row = connection.execute(wanted.with_for_update()).one()
    if row.state != "open":
        return row.watermark
    watermark = connection.execute(sa.select(sa.func.coalesce(sa.func.max(judgement.c.id), 0))).scalar_one()
    changes = {"state": "frozen", "watermark": watermark, "frozen_at": now}
    connection.execute(sa.update(round_).where(round_.c.id == round_id).values(changes))
    audit(connection, now, actor, "round.freeze", round_id, {"reason": reason, "watermark": watermark})
    about = {"round": row.number, "round_id": round_id, "watermark": watermark, "reason": reason}
    announce(connection, now, row.project_id, "round.frozen", about)
    return watermark


# --- what people said ------------------------------------------------------------------------------------------------


def said_in(connection: sa.Connection, round_id: str, watermark: int) -> dict[str, list[Any]]:
    """What people said about each task of a frozen round, oldest first: valid judgements and skips, the last word each.

    Rows have id, task_id, annotator_id, state, value, presented and comment.
    """
    rows = connection.execute(
        sa.select(
            judgement.c.id,
            judgement.c.task_id,
            judgement.c.annotator_id,
            judgement.c.state,
            judgement.c.value,
            judgement.c.presented,
            judgement.c.comment,
        )
        .where(judgement.c.round_id == round_id, judgement.c.kind == "human", judgement.c.id <= watermark)
        .where(judgement.c.state.in_(("valid", "skipped")), is_last_word(watermark))
        .order_by(judgement.c.id)
    )
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.task_id, []).append(row)
    return found


# --- what the loop does with it, and what people decide -----------------------------------------------------------------


def set_state(
    connection: sa.Connection,
    now: int,
    round_id: str,
    state: State,
    *,
    policy_out: str = "",
    reward_out: str = "",
) -> None:
    """Notes what the loop does with a frozen round. Raises Conflict for one that is open."""
    found = find_round(connection, round_id)
    if found is None:
        raise NotFound(f"there is no round {round_id}")
    if found.state == "open" or state in ("open", "frozen"):
        raise Conflict(f"round {found.number} is {found.state} and cannot become {state}")
    changes: dict[str, Any] = {"state": state}
    changes |= {"policy_out": policy_out} if policy_out else {}
    changes |= {"reward_out": reward_out} if reward_out else {}
    if state in ("promoted", "rejected"):
        changes["closed_at"] = now
    if any(getattr(found, name) != value for name, value in changes.items() if name != "closed_at"):
        connection.execute(sa.update(round_).where(round_.c.id == round_id).values(changes))
        policy_id = policy_out or found.policy_out
        audit(connection, now, SYSTEM, f"round.{state}", round_id, {"policy": policy_id})
        if state in ("promoted", "rejected"):
            about = {"round": found.number, "round_id": round_id, "policy": policy_id, "by": "loop"}
            announce(connection, now, found.project_id, f"round.{state}", about)


def register_policy(
    connection: sa.Connection, id: str, *, uri: str, parent_id: str, iteration: int, state: str
) -> None:
    """Notes a policy of the loop, where it is and whether it is current; then those before and beside it are retired."""
    if state == "current":
        replaced = sa.or_(policy.c.id == parent_id, policy.c.parent_id == parent_id)
        connection.execute(sa.update(policy).where(replaced, policy.c.id != id).values(state="retired"))
    values = {"uri": uri, "parent_id": parent_id, "iteration": iteration, "digest": id, "state": state}
    known = connection.execute(sa.select(policy.c.id).where(policy.c.id == id)).first() is not None
    how = sa.update(policy).where(policy.c.id == id) if known else sa.insert(policy)
    connection.execute(how.values(values) if known else how.values(id=id, **values))


def decide(
    connection: sa.Connection, now: int, found: Round, verdict: Verdict, *, actor: str, reason: str = ""
) -> None:
    """Promotes or rejects the policy trained on a round, over the head of the gate; the next run goes on from there.

    Raises Conflict where no policy was trained on it yet. A later decision on the same policy takes the place of this one.
    """
    if not found.policy_out:
        raise Conflict(
            f"round {found.number} is {found.state}: no policy has been trained on it yet; `prefloop run` trains one"
        )
    connection.execute(
        sa.insert(decision).values(
            project_id=found.project_id,
            round_id=found.id,
            policy_id=found.policy_out,
            verdict=verdict,
            reason=reason,
            actor=actor,
            created_at=now,
        )
    )
    _make_current(connection, found.policy_out, verdict)
    same = sa.and_(round_.c.project_id == found.project_id, round_.c.policy_out == found.policy_out)
    connection.execute(sa.update(round_).where(same).values(state=STATE_AFTER[verdict], closed_at=now))
    about = {"round": found.number, "round_id": found.id, "policy": found.policy_out, "reason": reason}
    audit(connection, now, actor, f"round.{verdict}", found.id, about)
    announce(connection, now, found.project_id, f"round.{STATE_AFTER[verdict]}", {**about, "by": actor})


def _make_current(connection: sa.Connection, policy_id: str, verdict: Verdict) -> None:
    """The policy is current, or the one before it is; then this one and all that came of it are not."""
    parent = connection.execute(sa.select(policy.c.parent_id).where(policy.c.id == policy_id)).scalar()
    chosen, others = (
        (policy_id, [parent]) if verdict == "promote" else (parent, _offspring(connection, policy_id))
    )
    connection.execute(sa.update(policy).where(policy.c.id.in_(others)).values(state="retired"))
    connection.execute(sa.update(policy).where(policy.c.id == chosen).values(state="current"))


def _offspring(connection: sa.Connection, policy_id: str) -> list[str]:
    """A policy and those that were trained from it."""
    found, newest = [policy_id], [policy_id]
    while newest:
        children = sa.select(policy.c.id).where(policy.c.parent_id.in_(newest), policy.c.id.not_in(found))
        newest = list(connection.execute(children).scalars())
        found += newest
    return found


def roll_back(
    connection: sa.Connection,
    now: int,
    project_id: str,
    *,
    actor: str,
    number: int | None = None,
    reason: str = "",
) -> Round:
    """Rejects the policy of a round, or the current one; the one before it is current again.

    Raises Conflict where there is none, NotFound for a round that is not there.
    """
    found = (
        _current_round(connection, project_id)
        if number is None
        else numbered_round(connection, project_id, number)
    )
    decide(connection, now, found, "reject", actor=actor, reason=reason or "rolled back")
    about = {"round": found.number, "round_id": found.id, "policy": found.policy_out, "by": actor}
    announce(connection, now, project_id, "round.rolled_back", about)
    return found


def _current_round(connection: sa.Connection, project_id: str) -> Round:
    current = set(connection.execute(sa.select(policy.c.id).where(policy.c.state == "current")).scalars())
    promoted = [
        one
        for one in rounds_of(connection, project_id)
        if one.state == "promoted" and one.policy_out in current
    ]
    if not promoted:
        raise Conflict(
            f"project {project_id}: no policy of its rounds is current, so there is none to roll back"
        )
    return promoted[-1]


def decisions(connection: sa.Connection, project_id: str) -> dict[str, Verdict]:
    """What people decided, by policy; the last word on each."""
    rows = connection.execute(
        sa.select(decision.c.policy_id, decision.c.verdict)
        .where(decision.c.project_id == project_id)
        .order_by(decision.c.id)
    )
    return {row.policy_id: row.verdict for row in rows}
