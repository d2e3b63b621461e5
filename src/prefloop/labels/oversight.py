"""What leads read of the store to see how good labels are: judgements as facts, and figures that were kept.

Facts come without texts and, for choices between two, without the JSON that they are kept in, so that some hundred
thousand are read in a second or two. What is computed from them is not decided here.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from prefloop.labels.browsing import Filter, conditions
from prefloop.labels.flagging import APPEAL
from prefloop.labels.schema import (
    annotator,
    completion,
    flag,
    gold,
    judgement,
    member,
    policy,
    project,
    quality,
    round_,
    task,
)
from prefloop.labels.streaming import newest_judgement

MOST_FACTS = 100_000
"""Judgements that figures are computed from: the newest."""


def facts(connection: sa.Connection, wanted: Filter, most: int = MOST_FACTS) -> Sequence[sa.Row[Any]]:
    """The last word of everybody on each task, oldest first.

    Rows have id, task_id, prompt_id, annotator_id, by (human | ai), kind, choice, strength, value (of kinds that do not
    choose), first_shown, active_ms, created_at, guideline_version, is_gold, repeat_of, strategy, revision, length_a and
    length_b.
    """
    first, second, newer = completion.alias("first"), completion.alias("second"), judgement.alias("newer")
    statement = (
        sa.select(
            judgement.c.id,
            judgement.c.task_id,
            task.c.prompt_id,
            judgement.c.annotator_id,
            judgement.c.kind.label("by"),
            task.c.kind,
            judgement.c.value["choice"].as_string().label("choice"),
            judgement.c.value["strength"].as_integer().label("strength"),
            sa.type_coerce(
                sa.case((task.c.kind == "pairwise", sa.null()), else_=judgement.c.value),
                judgement.c.value.type,
            ).label("value"),
            judgement.c.presented[0].as_integer().label("first_shown"),
            judgement.c.active_ms,
            judgement.c.created_at,
            judgement.c.guideline_version,
            task.c.is_gold,
            task.c.repeat_of,
            task.c.strategy,
            judgement.c.revision,
            sa.func.length(first.c.text).label("length_a"),
            sa.func.length(second.c.text).label("length_b"),
        )
        .join(task, task.c.id == judgement.c.task_id)
        .outerjoin(first, first.c.id == task.c.completion_ids[0].as_string())
        .outerjoin(second, second.c.id == task.c.completion_ids[1].as_string())
        .where(judgement.c.project_id == wanted.project_id, judgement.c.state == "valid")
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id))
        .where(*conditions(connection, wanted))
        .order_by(judgement.c.id.desc())
        .limit(most)
    )
    newest_first: list[Any] = list(connection.execute(statement))
    return newest_first[::-1]


def known_answers(connection: sa.Connection, project_id: str) -> dict[str, tuple[Mapping[str, Any], int]]:
    """What gold tasks expect, with their tolerance; those that were retired say nothing about anybody."""
    rows = connection.execute(
        sa.select(gold.c.task_id, gold.c.expected, gold.c.tolerance)
        .join(task, task.c.id == gold.c.task_id)
        .where(task.c.project_id == project_id, task.c.state != "retired")
    )
    return {row.task_id: (row.expected, row.tolerance) for row in rows}


def granted_answers(connection: sa.Connection, project_id: str) -> frozenset[tuple[str, str]]:
    """Answers to gold tasks about which an appeal was upheld, by task and person."""
    rows = connection.execute(
        sa.select(flag.c.task_id, flag.c.annotator_id)
        .join(task, task.c.id == flag.c.task_id)
        .where(task.c.project_id == project_id, flag.c.reason == APPEAL, flag.c.resolution == "upheld")
    )
    return frozenset((row.task_id, row.annotator_id) for row in rows)


def names_of(connection: sa.Connection, project_id: str) -> dict[str, str]:
    """Everybody who is or was of a project."""
    judged = sa.select(judgement.c.annotator_id).where(judgement.c.project_id == project_id).distinct()
    of = sa.select(member.c.annotator_id).where(member.c.project_id == project_id)
    rows = connection.execute(
        sa.select(annotator.c.id, annotator.c.name)
        .where(annotator.c.id.in_(sa.union(judged, of)))
        .order_by(sa.func.lower(annotator.c.name))
    )
    return {row.id: row.name for row in rows}


def keep_quality(
    connection: sa.Connection, now: int, project_id: str, figures: Mapping[str, Mapping[str, Any]]
) -> None:
    """Keeps today's figures about each person; those of an earlier hour of the day go."""
    day = _day(now)
    # workers that do so at once take turns; FOR NO KEY UPDATE does not hold up those who judge
    connection.execute(
        sa.select(project.c.id).where(project.c.id == project_id).with_for_update(key_share=True)
    )
    known = sa.select(annotator.c.id).where(annotator.c.id.in_(list(figures)))
    there = set(connection.execute(known).scalars())
    connection.execute(
        sa.delete(quality).where(
            quality.c.project_id == project_id, quality.c.day == day, quality.c.annotator_id.in_(there)
        )
    )
    rows = [
        {"project_id": project_id, "annotator_id": id, "day": day, "figures": dict(of)}
        for id, of in figures.items()
        if id in there
    ]
    if rows:
        connection.execute(sa.insert(quality), rows)


def projects_to_keep(connection: sa.Connection, now: int, *, after_ms: int) -> list[str]:
    """Projects whose kept figures do not know of the newest judgements, those that were kept longest ago first.

    Figures of today are good for `after_ms`, unless a round was frozen since they were computed.
    """
    day = _day(now)
    found = []
    for project_id in connection.execute(sa.select(project.c.id)).scalars().all():
        newest = newest_judgement(connection, project_id)
        last = connection.execute(
            sa.select(quality.c.day, quality.c.figures)
            .where(quality.c.project_id == project_id)
            .order_by(quality.c.day.desc())
            .limit(1)
        ).first()
        figures = {} if last is None else last.figures
        if newest <= figures.get("watermark", 0):
            continue
        kept_at = figures.get("computed_at", 0)
        frozen = sa.select(round_.c.id).where(round_.c.project_id == project_id, round_.c.frozen_at > kept_at)
        is_fresh = last is not None and last.day == day and now - kept_at < after_ms
        if not is_fresh or connection.execute(frozen.limit(1)).first() is not None:
            found.append((kept_at, project_id))
    return [project_id for _, project_id in sorted(found)]


def _day(now: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now / 1000))


# --- rounds ----------------------------------------------------------------------------------------------------------


def reward_verdicts(connection: sa.Connection, round_id: str) -> Sequence[sa.Row[Any]]:
    """Choices of people beside what the reward model had said: task_id, prompt_id, choice, reward_p, strategy."""
    newer = judgement.alias("newer")
    rows: Any = connection.execute(
        sa.select(
            task.c.id.label("task_id"),
            task.c.prompt_id,
            judgement.c.value["choice"].as_string().label("choice"),
            task.c.reward_p,
            task.c.strategy,
        )
        .join(task, task.c.id == judgement.c.task_id)
        .where(judgement.c.round_id == round_id, judgement.c.kind == "human", judgement.c.state == "valid")
        .where(~task.c.is_gold, task.c.for_annotator.is_(None), task.c.reward_p.is_not(None))
        .where(task.c.kind.in_(("pairwise", "steps")))
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id))
        .order_by(judgement.c.id)
    )
    return list(rows)


def label_ages(connection: sa.Connection, project_id: str, round_id: str) -> dict[int, int]:
    """Valid judgements of people in a round by the age of what they are about, in policy versions.

    The age is how far the newest policy of the task is behind the newest one that the project has seen.
    """
    newer = judgement.alias("newer")
    answers = (
        sa.select(judgement.c.task_id, sa.func.count().label("number"))
        .where(judgement.c.round_id == round_id, judgement.c.kind == "human", judgement.c.state == "valid")
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id))
        .group_by(judgement.c.task_id)
        .subquery()
    )
    first, second = completion.alias("first"), completion.alias("second")
    of_first, of_second = policy.alias("of_first"), policy.alias("of_second")
    iteration = sa.case(
        (sa.func.coalesce(of_second.c.iteration, -1) > of_first.c.iteration, of_second.c.iteration),
        else_=of_first.c.iteration,
    ).label("iteration")
    each = (
        sa.select(iteration, answers.c.number)
        .select_from(answers)
        .join(task, task.c.id == answers.c.task_id)
        .join(first, first.c.id == task.c.completion_ids[0].as_string())
        .join(of_first, of_first.c.id == first.c.policy_id)
        .outerjoin(second, second.c.id == task.c.completion_ids[1].as_string())
        .outerjoin(of_second, of_second.c.id == second.c.policy_id)
        .subquery()
    )
    total = sa.func.sum(each.c.number)
    rows = connection.execute(sa.select(each.c.iteration, total).group_by(each.c.iteration)).all()
    newest = _newest_iteration(connection, project_id)
    return {newest - row[0]: int(row[1]) for row in sorted(rows, key=lambda row: -row[0])}


def _newest_iteration(connection: sa.Connection, project_id: str) -> int:
    """Of the policies that rounds of the project began with or gave."""
    used = sa.union(
        sa.select(round_.c.policy_in).where(round_.c.project_id == project_id),
        sa.select(round_.c.policy_out).where(round_.c.project_id == project_id, round_.c.state == "promoted"),
    )
    found = connection.execute(
        sa.select(sa.func.max(policy.c.iteration)).where(policy.c.id.in_(used))
    ).scalar()
    if found is not None:
        return found
    return connection.execute(sa.select(sa.func.coalesce(sa.func.max(policy.c.iteration), 0))).scalar_one()


def judgements_after(connection: sa.Connection, project_id: str, watermark: int) -> int:
    """Valid judgements of people that came after a freeze."""
    newer = judgement.alias("newer")
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(judgement.join(task, task.c.id == judgement.c.task_id))
        .where(judgement.c.project_id == project_id, judgement.c.id > watermark, judgement.c.kind == "human")
        .where(judgement.c.state == "valid", ~task.c.is_gold, task.c.for_annotator.is_(None))
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id))
    ).scalar_one()


def round_numbers(connection: sa.Connection, project_id: str) -> Sequence[int]:
    """Numbers of the rounds, the newest first."""
    return list(
        connection.execute(
            sa.select(round_.c.number)
            .where(round_.c.project_id == project_id)
            .order_by(round_.c.number.desc())
        ).scalars()
    )
