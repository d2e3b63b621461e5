"""Who is let in: tasks with known answers, what people are told about them, and the mark that must be reached.

A qualification task is a gold task whose strategy says so. Everybody gets the same ones in the same order, each answer is
followed by what the reference says, and the last answer decides. What was answered stays; a lead can let somebody try
again, on tasks that they have not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.labels.audit import audit
from prefloop.labels.errors import Invalid, NotFound
from prefloop.labels.flagging import APPEAL
from prefloop.labels.people import Person
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import project_config
from prefloop.labels.schema import annotator, flag, gold, judgement, member, task

STRATEGY = "qualification"
NEWCOMERS = ("annotator",)
"""Roles that must qualify; reviewers and leads set the tasks."""
LEVELS = ("definitely_break", "probably_break", "unsure", "probably_follow", "definitely_follow")


# --- right or wrong --------------------------------------------------------------------------------------------------


def is_right(value: Mapping[str, Any], expected: Mapping[str, Any], tolerance: int) -> bool:
    """Whether an answer is the known one, as far as the known one says something.

    A strength, a rating or a level may be off by `tolerance` steps; orders, choices and flags may not. With a strength
    expected and a tolerance, the choice follows from the strength.
    """
    return all(_fits(name, value.get(name), known, value, tolerance) for name, known in expected.items())


def _fits(name: str, said: Any, known: Any, value: Mapping[str, Any], tolerance: int) -> bool:
    match name:
        case "strength":
            return known is None or (said is not None and abs(said - known) <= tolerance)
        case "choice":
            return said == known
        case "ratings":
            return all(
                isinstance((said or {}).get(key), int) and abs(said[key] - one) <= tolerance
                for key, one in known.items()
            )
        case "levels":
            return all(
                (said or {}).get(key) in LEVELS
                and abs(LEVELS.index(said[key]) - LEVELS.index(one)) <= tolerance
                for key, one in known.items()
            )
        case "flags":
            return all((said or {}).get(key, False) == one for key, one in known.items())
        case "choices":
            return all((said or {}).get(key) == one for key, one in known.items())
        case _:
            return said == known


# --- how far somebody is ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """One qualification task that somebody answered."""

    judgement_id: int
    task_id: str
    right: bool


def answers_of(connection: sa.Connection, project_id: str, person_id: str) -> list[Answered]:
    """What somebody answered since they began, or began anew.

    A skip is a wrong answer, so that none can be picked; one for which a lead upheld an appeal is right.
    """
    is_granted = granted(judgement.c.task_id, judgement.c.annotator_id).label("is_granted")
    rows = connection.execute(
        sa.select(judgement, gold.c.expected, gold.c.tolerance, is_granted)
        .join(task, task.c.id == judgement.c.task_id)
        .join(gold, gold.c.task_id == task.c.id)
        .join(
            member,
            sa.and_(
                member.c.project_id == judgement.c.project_id,
                member.c.annotator_id == judgement.c.annotator_id,
            ),
        )
        .where(judgement.c.project_id == project_id, judgement.c.annotator_id == person_id)
        # the first answer counts: after it comes the solution
        .where(judgement.c.revision == 0, task.c.strategy == STRATEGY, task.c.state != "retired")
        .where(judgement.c.id > member.c.qualification_after)
        .order_by(judgement.c.id)
    )
    return [
        Answered(
            row.id, row.task_id, row.is_granted or is_right(row.value or {}, row.expected, row.tolerance)
        )
        for row in rows
    ]


def granted(task_id: sa.ColumnElement[str], person_id: sa.ColumnElement[str]) -> sa.Exists:
    """Whether a lead upheld somebody's appeal about a task."""
    return sa.exists().where(
        flag.c.task_id == task_id,
        flag.c.annotator_id == person_id,
        flag.c.reason == APPEAL,
        flag.c.resolution == "upheld",
    )


def must_qualify(config: ProjectConfig, role: str, qualification: str) -> bool:
    """Whether somebody gets nothing but qualification tasks."""
    return config.qualification.tasks > 0 and role in NEWCOMERS and qualification == "none"


def next_task(connection: sa.Connection, project_id: str, person: Person) -> sa.Row[Any] | None:
    """The next qualification task that somebody has not answered, for a claim; None when there are no more."""
    answered = sa.exists().where(judgement.c.task_id == task.c.id, judgement.c.annotator_id == person.id)
    return connection.execute(
        sa.select(task)
        .where(task.c.project_id == project_id, task.c.is_gold, task.c.strategy == STRATEGY)
        .where(task.c.state == "open", ~answered)
        .order_by(task.c.ordinal)
        .limit(1)
    ).first()


def settle(
    connection: sa.Connection, now: int, project_id: str, person_id: str, config: ProjectConfig
) -> None:
    """After an answer: passed or failed, once all are given. A pass is not taken back by later answers."""
    given = answers_of(connection, project_id, person_id)
    if not _are_all(given, config):
        return
    right = sum(one.right for one in given)
    state = "passed" if _are_enough(given, config) else "failed"
    changed = connection.execute(
        sa.update(member)
        .where(member.c.project_id == project_id, member.c.annotator_id == person_id)
        .where(member.c.qualification == "none")
        .values(qualification=state)
    )
    if changed.rowcount:
        detail = {"project": project_id, "right": right, "of": len(given)}
        audit(connection, now, person_id, f"qualification.{state}", person_id, detail)


def _are_all(given: Sequence[Answered], config: ProjectConfig) -> bool:
    return 0 < config.qualification.tasks <= len(given)


def _are_enough(given: Sequence[Answered], config: ProjectConfig) -> bool:
    return sum(one.right for one in given) >= config.qualification.pass_mark * len(given)


def is_enough(connection: sa.Connection, project_id: str, person_id: str, config: ProjectConfig) -> bool:
    """Whether somebody gave all answers, and enough right ones."""
    given = answers_of(connection, project_id, person_id)
    return _are_all(given, config) and _are_enough(given, config)


def let_in(connection: sa.Connection, now: int, project_id: str, person_id: str, *, actor: str) -> None:
    """Lets in who had failed."""
    changed = connection.execute(
        sa.update(member)
        .where(member.c.project_id == project_id, member.c.annotator_id == person_id)
        .where(member.c.qualification == "failed")
        .values(qualification="passed")
    )
    if changed.rowcount:
        audit(connection, now, actor, "qualification.passed", person_id, {"project": project_id})


# --- what people are told --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Feedback:
    """What follows an answer to a qualification task."""

    judgement_id: int
    kind: str
    right: bool
    expected: Mapping[str, Any]
    """In the order in which this person saw the texts."""
    said: Mapping[str, Any]
    why: str
    number: int
    """Of this answer, from 1."""
    of: int
    num_right: int
    state: str
    """none | passed | failed"""
    appeal: str
    """Of this person about this answer: open | dismissed | upheld, or empty."""


def feedback_for(connection: sa.Connection, project_id: str, person: Person) -> Feedback | None:
    """What this person was not told yet about their last answer."""
    if person.role not in NEWCOMERS:
        return None
    config = project_config(connection, project_id)
    about = connection.execute(
        sa.select(member.c.qualification, member.c.qualification_seen).where(
            member.c.project_id == project_id, member.c.annotator_id == person.id
        )
    ).first()
    if about is None or config.qualification.tasks == 0:
        return None
    given = answers_of(connection, project_id, person.id)
    if not given or given[-1].judgement_id <= about.qualification_seen:
        return None
    last = given[-1]
    row = connection.execute(
        sa.select(judgement.c.value, judgement.c.presented, task.c.kind, gold.c.expected, gold.c.why)
        .join(task, task.c.id == judgement.c.task_id)
        .join(gold, gold.c.task_id == task.c.id)
        .where(judgement.c.id == last.judgement_id)
    ).one()
    return Feedback(
        last.judgement_id,
        row.kind,
        last.right,
        shown_value(row.expected, row.presented),
        shown_value(row.value or {}, row.presented),
        row.why,
        len(given),
        max(config.qualification.tasks, len(given)),
        sum(one.right for one in given),
        about.qualification,
        appeal_of(connection, person.id, last.task_id),
    )


def appeal_of(connection: sa.Connection, person_id: str, task_id: str) -> str:
    """How an appeal of somebody stands: open, dismissed or upheld; empty where there is none."""
    row = connection.execute(
        sa.select(flag.c.resolved_at, flag.c.resolution).where(
            flag.c.task_id == task_id, flag.c.annotator_id == person_id, flag.c.reason == APPEAL
        )
    ).first()
    if row is None:
        return ""
    return "open" if row.resolved_at is None else row.resolution


def shown_value(value: Mapping[str, Any], presented: Sequence[int]) -> dict[str, Any]:
    """A stored value in the positions that somebody saw: the choice as a letter, orders as positions."""
    found = dict(value)
    place_of = {completion: place for place, completion in enumerate(presented)}
    if value.get("choice") in ("a", "b") and len(presented) == 2:
        found["choice"] = "ab"[place_of["ab".index(value["choice"])]]
    if value.get("strength") is not None and presented[:1] == [1]:
        found["strength"] = 9 - value["strength"]
    if "groups" in value:
        found["groups"] = [[place_of[one] for one in group] for group in value["groups"]]
    if "labels" in value and len(value["labels"]) == len(presented):
        found["labels"] = [value["labels"][completion] for completion in presented]
    return found


def see_feedback(connection: sa.Connection, project_id: str, person: Person, judgement_id: int) -> None:
    """Notes that somebody has read what they were told about an answer."""
    connection.execute(
        sa.update(member)
        .where(member.c.project_id == project_id, member.c.annotator_id == person.id)
        .where(member.c.qualification_seen < judgement_id)
        .values(qualification_seen=judgement_id)
    )


# --- for leads -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Newcomer:
    """Somebody of a project and how their qualification stands."""

    id: str
    name: str
    state: str
    answered: int
    right: int


def newcomers(connection: sa.Connection, project_id: str) -> list[Newcomer]:
    """The annotators of a project."""
    rows = connection.execute(
        sa.select(annotator.c.id, annotator.c.name, member.c.qualification)
        .join(member, member.c.annotator_id == annotator.c.id)
        .where(member.c.project_id == project_id, annotator.c.role.in_(NEWCOMERS))
        .where(annotator.c.state == "active")
        .order_by(sa.func.lower(annotator.c.name))
    ).all()
    found = []
    for row in rows:
        given = answers_of(connection, project_id, row.id)
        found.append(
            Newcomer(row.id, row.name, row.qualification, len(given), sum(one.right for one in given))
        )
    return found


def num_tasks(connection: sa.Connection, project_id: str) -> int:
    """How many qualification tasks a project has."""
    return connection.execute(
        sa.select(sa.func.count()).where(
            task.c.project_id == project_id,
            task.c.strategy == STRATEGY,
            task.c.is_gold,
            task.c.state == "open",
        )
    ).scalar_one()


def set_qualification(
    connection: sa.Connection, now: int, project_id: str, person_id: str, state: str, *, actor: str
) -> None:
    """Lets somebody in, keeps them out, or lets them try again (`none`). Raises Invalid, NotFound."""
    if state not in ("none", "passed", "failed"):
        raise Invalid("state: choose none, passed or failed")
    values: dict[str, Any] = {"qualification": state}
    if state == "none":
        newest = sa.select(sa.func.coalesce(sa.func.max(judgement.c.id), 0))
        values["qualification_after"] = newest.where(judgement.c.annotator_id == person_id).scalar_subquery()
    changed = connection.execute(
        sa.update(member)
        .where(member.c.project_id == project_id, member.c.annotator_id == person_id)
        .values(values)
    )
    if not changed.rowcount:
        raise NotFound("there is no such member of this project")
    audit(connection, now, actor, f"qualification.{state}", person_id, {"project": project_id})
