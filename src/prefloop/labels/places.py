"""The places of a task and the money of a round: what is held, what is given back, what is paid."""

from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa

from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import forget_cursors
from prefloop.labels.schema import lease, ledger, project, round_, task

OF_TASK = (
    task.c.kind.label("asks"),
    task.c.payload,
    task.c.state.label("task_state"),
    task.c.overlap,
    task.c.valid,
    task.c.leased,
    task.c.ai_overlap,
    task.c.ai_valid,
    task.c.ai_leased,
    task.c.is_gold,
    task.c.reopened_at,
    task.c.done_at,
    round_.c.state.label("round_state"),
    project.c.config,
)
"""What an answer needs to know about its task, for statements that join its project and its round."""

# --- leases that have run out ----------------------------------------------------------------------------------------

_OVER = (
    sa.select(
        lease.c.token, lease.c.task_id, lease.c.kind, lease.c.cents, lease.c.project_id, task.c.round_id
    )
    .join(task, task.c.id == lease.c.task_id)
    .where(lease.c.state == sa.text("'open'"), lease.c.expires_at <= sa.bindparam("now"))
    .with_for_update(of=[lease, task], key_share=True, skip_locked=True)
)
_OVER_IN_PROJECT = _OVER.where(lease.c.project_id == sa.bindparam("project"))
_OVER_ON_TASK = _OVER.where(lease.c.task_id == sa.bindparam("task"))
_EXPIRE = sa.update(lease).where(lease.c.token == sa.bindparam("its_token")).values(state="expired")


def expire_in_project(connection: sa.Connection, now: int, project_id: str, config: ProjectConfig) -> None:
    """Gives the places of leases that have run out back to their tasks. The leases stay, for those who come late."""
    over = connection.execute(_OVER_IN_PROJECT, {"now": now, "project": project_id}).all()
    _expire(connection, now, over, config)


def expire_on_task(connection: sa.Connection, now: int, task_id: str, config: ProjectConfig) -> None:
    """The same of one task."""
    _expire(connection, now, connection.execute(_OVER_ON_TASK, {"now": now, "task": task_id}).all(), config)


def _expire(connection: sa.Connection, now: int, over: Sequence[sa.Row], config: ProjectConfig) -> None:
    if not over:
        return
    connection.execute(_EXPIRE, [{"its_token": row.token} for row in over])
    freed: dict[tuple[str, str], int] = defaultdict(int)
    for row in over:
        held = task.c.leased if row.kind == "human" else task.c.ai_leased
        connection.execute(
            sa.update(task).where(task.c.id == row.task_id).values({held: held - 1, task.c.reopened_at: now})
        )
        if row.round_id is not None:
            freed[row.round_id, row.project_id] += row.cents
    for (round_id, project_id), cents in sorted(freed.items()):
        settle(connection, project_id, round_id, config, reserved=-cents, spent=0)


# --- money -----------------------------------------------------------------------------------------------------------

_RESERVE = (
    sa.update(round_)
    .where(
        round_.c.id == sa.bindparam("its_id"),
        sa.or_(
            round_.c.budget_cents.is_(None),
            round_.c.spent_cents + round_.c.reserved_cents + sa.bindparam("cents", type_=sa.Integer)
            <= round_.c.budget_cents,
        ),
    )
    .values(reserved_cents=round_.c.reserved_cents + sa.bindparam("cents", type_=sa.Integer))
)
_SETTLE = (
    sa.update(round_)
    .where(round_.c.id == sa.bindparam("its_id"))
    .values(
        reserved_cents=round_.c.reserved_cents + sa.bindparam("reserved", type_=sa.Integer),
        spent_cents=round_.c.spent_cents + sa.bindparam("spent", type_=sa.Integer),
    )
    .returning(round_.c.budget_cents, round_.c.spent_cents + round_.c.reserved_cents)
)


def reserve(connection: sa.Connection, round_id: str | None, cents: int) -> bool:
    """Puts money aside for a judgement; False, and nothing done, where the budget has no more."""
    if round_id is None or not cents:
        return True
    return connection.execute(_RESERVE, {"its_id": round_id, "cents": cents}).rowcount == 1


def settle(
    connection: sa.Connection,
    project_id: str,
    round_id: str | None,
    config: ProjectConfig,
    *,
    reserved: int,
    spent: int,
) -> None:
    """Changes what a round has put aside and spent."""
    if round_id is None or not (reserved or spent):
        return
    budget, used = connection.execute(
        _SETTLE, {"its_id": round_id, "reserved": reserved, "spent": spent}
    ).one()
    freed = -(reserved + spent)
    if budget is not None and freed > 0 and budget - used - freed < max(config.cents.values(), default=0):
        forget_cursors(connection, project_id)  # tasks were passed because there was no money


def book(
    connection: sa.Connection, now: int, about: sa.Row, judgement_id: int, cents: int, reason: str
) -> None:
    """A line in the ledger for a judgement of `about`, a lease or an earlier judgement with its `round_id`; what is taken
    back is negative."""
    connection.execute(
        sa.insert(ledger),
        {
            "project_id": about.project_id,
            "round_id": about.round_id,
            "annotator_id": about.annotator_id,
            "judgement_id": judgement_id,
            "cents": cents,
            "reason": reason,
            "created_at": now,
        },
    )
