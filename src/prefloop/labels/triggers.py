"""When a round is closed: at its quorum, or earlier by what people say and what the reward model thinks of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from prefloop.labels.rounds import is_last_word, standing
from prefloop.labels.schema import judgement, round_, task

HOUR_MS = 60 * 60 * 1000
ENOUGH = 30
"""Judgements below which a share is not worth acting on."""


@dataclass(frozen=True)
class Trigger:
    """What closes a round; the first that comes true. None never does."""

    settled: int
    """So many tasks with as many answers as they want."""
    labels: int | None = None
    disagreement: float | None = None
    accuracy_drop: float | None = None
    hours: float | None = None


def fired(
    connection: sa.Connection,
    now: int,
    round_id: str,
    trigger: Trigger,
    *,
    expected_accuracy: float | None = None,
) -> str | None:
    """Why the round is to be closed now, or None. `expected_accuracy` is the reward model's on its held-out pairs."""
    stands = standing(connection, round_id)
    if stands.settled >= trigger.settled:
        return f"{stands.settled} of {stands.tasks} tasks judged"
    if trigger.hours is not None and stands.judgements:
        opened = connection.execute(sa.select(round_.c.opened_at).where(round_.c.id == round_id)).scalar_one()
        if now - opened >= trigger.hours * HOUR_MS:
            return f"open for {(now - opened) / HOUR_MS:.1f} hours"
    if trigger.labels is None and trigger.disagreement is None and trigger.accuracy_drop is None:
        return None
    choices = _choices(connection, round_id)
    if trigger.labels is not None and len(choices) >= trigger.labels:
        return f"{len(choices)} verdicts that say which is better"
    wrong = [one.contradicts for one in choices if one.contradicts is not None]
    if trigger.disagreement is not None and _share(wrong) > trigger.disagreement:
        return f"the reward model contradicts {100 * _share(wrong):.0f} % of {len(wrong)} choices"
    fair = [one.contradicts for one in choices if one.contradicts is not None and one.by_chance]
    if trigger.accuracy_drop is not None and expected_accuracy is not None and len(fair) >= ENOUGH:
        drop = expected_accuracy - (1 - _share(fair))
        if drop > trigger.accuracy_drop:
            return f"the reward model's accuracy fell by {100 * drop:.0f} points on {len(fair)} choices"
    return None


@dataclass(frozen=True)
class _Choice:
    contradicts: bool | None
    """Whether the reward model says otherwise; None where it says nothing."""
    by_chance: bool


def _choices(connection: sa.Connection, round_id: str) -> list[_Choice]:
    """Verdicts of people that say which is better, beside the reward model's."""
    rows = connection.execute(
        sa.select(judgement.c.value, task.c.reward_p, task.c.strategy)
        .join(task, task.c.id == judgement.c.task_id)
        .where(judgement.c.round_id == round_id, judgement.c.kind == "human", judgement.c.state == "valid")
        .where(~task.c.is_gold, task.c.for_annotator.is_(None), is_last_word())
    )
    found = []
    for row in rows:
        choice = row.value.get("choice", "a" if "groups" in row.value or "ratings" in row.value else "")
        if choice in ("a", "b"):
            p_a: float | None = row.reward_p if "choice" in row.value else None
            says_otherwise = None if p_a is None or p_a == 0.5 else (p_a > 0.5) != (choice == "a")
            found.append(_Choice(says_otherwise, row.strategy == "random"))
    return found


def _share(flags: Sequence[bool]) -> float:
    """Of true ones; 0 where there are too few to say."""
    return sum(flags) / len(flags) if len(flags) >= ENOUGH else 0.0
