"""Tasks with known answers: made of what people agreed on, listed with how often people fail them, retired.

A gold task is a task of its own. One that is made of a judged task leaves that one and its judgements as they are, so no
export of a frozen round changes; who judged it does not get the gold one. Answers to a gold task that was retired count
for and against nobody. Gold tasks out of files are in `gold_files`.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.labels.audit import audit
from prefloop.labels.errors import Conflict, Invalid, NotFound
from prefloop.labels.projects import Kind, ProjectConfig
from prefloop.labels.publish import project_config
from prefloop.labels.qualification import LEVELS, STRATEGY, granted, is_right
from prefloop.labels.schema import adjudication, gold, judgement, prompt, task

GOLD = "gold"
"""The strategy of gold tasks that come unnoticed among the others."""
STRATEGIES = (GOLD, STRATEGY)
KEPT: dict[Kind, tuple[str, ...]] = {
    "pairwise": ("choice",),
    "rank": ("groups", "unrankable"),
    "form": ("ratings", "flags", "choices"),
    "rules": ("levels",),
    "steps": ("choice", "labels"),
}
"""What of a value can be right or wrong, by kind of task; what people write freely cannot."""
SCALED = ("form", "rules")
"""Kinds whose answers may be some steps off."""
FIELD_TYPES = {"ratings": "likert", "flags": "flag", "choices": "choice"}
STEP_LABELS = ("correct", "incorrect", "unsure")
LONGEST_WHY = 10_000
MOST_TOLERANCE = 3


def expected_of(kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stored value can be expected of others; empty where nothing can."""
    kept = KEPT.get(kind, ())  # pyright: ignore[reportCallIssue, reportArgumentType]
    return {name: value[name] for name in kept if value.get(name) not in (None, {}, [])}


def check_expected(
    kind: Kind, expected: Mapping[str, Any], number: int, config: ProjectConfig, rules: Sequence[str]
) -> None:
    """Raises Invalid, which names the field, for an answer that nobody can give to a task over `number` completions."""
    allowed = (*KEPT.get(kind, ()), *(("strength",) if kind in ("pairwise", "steps") else ()))
    if not allowed:
        raise Invalid(f"tasks of kind {kind} have no answer that is right or wrong")
    if unknown := [name for name in expected if name not in allowed]:
        raise Invalid(f"expected.{unknown[0]}: a {kind} task expects {', '.join(allowed)}")
    if not expected:
        raise Invalid(f"expected: say what is right; a {kind} task expects {', '.join(allowed)}")
    for name, known in expected.items():
        match name:
            case "choice":
                choices = ("a", "b", *["tie"] * config.ties, *["both_bad"] * config.both_bad)
                _one_of(name, known, choices)
            case "strength":
                _whole(name, known, 8)
            case "ratings" | "flags" | "choices":
                _check_form(name, known, config)
            case "levels":
                _each(name, known)
                for rule, level in known.items():
                    if rule not in rules:
                        raise Invalid(f"expected.levels.{rule}: the project has no such rule")
                    _one_of(f"levels.{rule}", level, LEVELS)
            case "labels":
                if not isinstance(known, list) or len(known) != number:
                    raise Invalid(f"expected.labels: give one for each of the {number} steps")
                for one in known:
                    _one_of(name, one, STEP_LABELS)
    if kind == "rank":
        _check_order(expected, number)


def _check_form(type_: str, known: object, config: ProjectConfig) -> None:
    fields = {one.name: one for one in config.form}
    for name, answer in _each(type_, known).items():
        if name not in fields or fields[name].type != FIELD_TYPES[type_]:
            raise Invalid(f"expected.{type_}.{name}: the project's form has no such field")
        match type_:
            case "ratings":
                _whole(f"{type_}.{name}", answer, 7)
            case "flags":
                if not isinstance(answer, bool):
                    raise Invalid(f"expected.flags.{name}: true or false, not {answer!r}")
            case _:
                _one_of(f"{type_}.{name}", answer, fields[name].options)


def _check_order(expected: Mapping[str, Any], number: int) -> None:
    groups, left = expected.get("groups", []), expected.get("unrankable", [])
    try:
        named = sorted([place for group in groups for place in group] + list(left))
    except TypeError as error:
        raise Invalid("expected.groups: lists of numbers of completions, the best first") from error
    if named != list(range(number)):
        raise Invalid(
            f"expected.groups: name each of 0 to {number - 1} once, there or in unrankable, not {named}"
        )


def _each(name: str, known: object) -> Mapping[str, Any]:
    if not isinstance(known, Mapping) or not known:
        raise Invalid(f"expected.{name}: names with their values, not {known!r}")
    return known


def _one_of(name: str, said: object, choices: Sequence[str]) -> None:
    if said not in choices:
        raise Invalid(f"expected.{name}: {said!r} is not one of {', '.join(choices)}")


def _whole(name: str, said: object, most: int) -> None:
    if isinstance(said, bool) or not isinstance(said, int) or not 1 <= said <= most:
        raise Invalid(f"expected.{name}: {said!r} is not a whole number from 1 to {most}")


# --- what people agreed on -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proposal:
    """An answer that a task could be known by."""

    expected: Mapping[str, Any]
    people: int
    """Who gave it."""
    reviewed: bool
    """Whether a reviewer gave it."""
    why: str
    """What the reviewer, or else somebody who gave it, said about it."""

    @property
    def text(self) -> str:
        """Names it in a form."""
        return _key(self.expected)


@dataclass(frozen=True)
class Candidate:
    """A judged task that could become a gold task."""

    proposals: tuple[Proposal, ...]
    """The best supported one first: the reviewer's word, or else that of most people."""
    made: str | None
    """The gold task that was made of it already and is not retired."""
    is_unfinished: bool
    """Whether people are still to judge it: they must not read its solution first."""

    @property
    def people(self) -> int:
        """Who judged it."""
        return sum(one.people for one in self.proposals)

    @property
    def agreed(self) -> bool:
        """Whether the first proposal is a reviewer's, or what everybody said."""
        return self.proposals[0].reviewed or len(self.proposals) == 1


def _key(expected: Mapping[str, Any]) -> str:
    return json.dumps(expected, sort_keys=True, ensure_ascii=False)


def candidate(connection: sa.Connection, project_id: str, task_id: str) -> Candidate | None:
    """How a task could become a gold task; None for one that cannot, or that nobody judged. Raises NotFound."""
    row = _task(connection, project_id, task_id)
    if row.kind not in KEPT or row.is_gold or row.for_annotator is not None:
        return None
    found = _proposals(connection, row)
    if not found:
        return None
    made = connection.execute(
        sa.select(task.c.id).where(
            task.c.project_id == project_id,
            task.c.repeat_of == task_id,
            task.c.is_gold,
            task.c.state != "retired",
        )
    ).scalar()
    return Candidate(tuple(found), made, row.state == "open" and row.valid < row.overlap)


def _proposals(connection: sa.Connection, row: sa.Row[Any]) -> list[Proposal]:
    newer = judgement.alias("newer")
    said = connection.execute(
        sa.select(judgement.c.value, judgement.c.comment)
        .where(judgement.c.task_id == row.id, judgement.c.kind == "human")
        .where(judgement.c.state.in_(("valid", "surplus")))
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id))
        .order_by(judgement.c.id)
    ).all()
    reviewed = connection.execute(
        sa.select(adjudication.c.value, adjudication.c.reason)
        .where(adjudication.c.task_id == row.id)
        .order_by(adjudication.c.id)
    ).all()
    found: dict[str, Proposal] = {}
    for value, why, is_review in [
        *((one.value, one.reason, True) for one in reviewed),
        *((one.value, one.comment, False) for one in said),
    ]:
        expected = expected_of(row.kind, value or {})
        if not expected:
            continue
        before = found.get(_key(expected), Proposal(expected, 0, is_review, ""))
        found[_key(expected)] = Proposal(
            expected, before.people + (not is_review), before.reviewed, before.why or why.strip()
        )
    return sorted(found.values(), key=lambda one: (not one.reviewed, -one.people))


def make_gold(
    connection: sa.Connection,
    now: int,
    project_id: str,
    task_id: str,
    answer: str,
    *,
    why: str,
    tolerance: int,
    strategy: str,
    actor: str,
) -> str:
    """A gold task with the question of a judged one and one of its answers, named by `Proposal.text`; returns its id.

    Raises NotFound, Invalid, and Conflict where it was made already or people are still to judge the task.
    """
    connection.execute(sa.select(task.c.id).where(task.c.id == task_id).with_for_update())
    if strategy not in STRATEGIES:
        raise Invalid(f"use: choose one of {', '.join(STRATEGIES)}")
    if not 0 <= tolerance <= MOST_TOLERANCE:
        raise Invalid(f"tolerance: give 0 to {MOST_TOLERANCE} steps")
    if len(why) > LONGEST_WHY:
        raise Invalid(f"why: {LONGEST_WHY} signs at most")
    of = candidate(connection, project_id, task_id)
    if of is None:
        raise Invalid("no gold task can be made of this one: it has no judgements, or of the wrong kind")
    if of.made is not None:
        raise Conflict("a gold task was made of this one already")
    if of.is_unfinished:
        raise Conflict(
            "people are still to judge this task; make it a gold task once it has all its judgements"
        )
    chosen = next((one for one in of.proposals if one.text == answer), None)
    if chosen is None:
        raise Invalid("answer: choose one of those that people gave")
    gold_id = secrets.token_hex(8)
    _copy(connection, now, _task(connection, project_id, task_id), gold_id, strategy)
    connection.execute(
        sa.insert(gold).values(
            task_id=gold_id, expected=dict(chosen.expected), tolerance=tolerance, why=why.strip()
        )
    )
    audit(connection, now, actor, "gold.make", gold_id, {"of": task_id, "use": strategy})
    return gold_id


def _copy(connection: sa.Connection, now: int, row: sa.Row[Any], gold_id: str, strategy: str) -> None:
    last = sa.select(sa.func.max(task.c.ordinal)).where(task.c.project_id == row.project_id)
    same = (
        "project_id",
        "kind",
        "prompt_id",
        "completion_ids",
        "payload",
        "guideline_version",
        "is_sensitive",
        "author_id",
        "skill",
        "lang",
    )
    values = {name: row._mapping[name] for name in same}
    connection.execute(
        sa.insert(task).values(
            values
            | {
                "id": gold_id,
                "ordinal": connection.execute(last).scalar_one() + 1,
                "strategy": strategy,
                "is_gold": True,
                "repeat_of": row.id,
                "created_at": now,
            }
        )
    )


# --- what there is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoldTask:
    """A task with a known answer, and how people did on it."""

    id: str
    kind: str
    asked: str
    """The last message of the prompt."""
    expected: Mapping[str, Any]
    tolerance: int
    why: str
    is_qualification: bool
    state: str
    """open | closed | retired"""
    made_of: str | None
    answers: int
    wrong: int


def gold_tasks(connection: sa.Connection, project_id: str, *, task_id: str = "") -> list[GoldTask]:
    """All gold tasks of a project, or one, in the order of publication.

    Of a qualification task the first answer counts, as after it comes the solution; of others, the last word. An answer for
    which an appeal was upheld is not wrong.
    """
    wanted = (
        sa.select(task, gold.c.expected, gold.c.tolerance, gold.c.why, prompt.c.messages)
        .join(gold, gold.c.task_id == task.c.id)
        .outerjoin(prompt, prompt.c.id == task.c.prompt_id)
        .where(task.c.project_id == project_id, task.c.is_gold)
        .order_by(task.c.ordinal, task.c.id)
    )
    rows = connection.execute(wanted.where(task.c.id == task_id) if task_id else wanted).all()
    said = _answers(connection, project_id, task_id)
    found = []
    for row in rows:
        verdicts = [
            is_granted or is_right(value, row.expected, row.tolerance)
            for value, is_granted in said.get(row.id, ())
        ]
        found.append(
            GoldTask(
                row.id,
                row.kind,
                row.messages[-1]["content"] if row.messages else "",
                row.expected,
                row.tolerance,
                row.why,
                row.strategy == STRATEGY,
                row.state,
                row.repeat_of,
                len(verdicts),
                verdicts.count(False),
            )
        )
    return found


def _answers(
    connection: sa.Connection, project_id: str, task_id: str
) -> dict[str, list[tuple[Mapping[str, Any], bool]]]:
    newer = judgement.alias("newer")
    counts = sa.or_(
        sa.and_(task.c.strategy == STRATEGY, judgement.c.revision == 0),
        sa.and_(task.c.strategy != STRATEGY, ~sa.exists().where(newer.c.supersedes == judgement.c.id)),
    )
    wanted = (
        sa.select(
            judgement.c.task_id,
            judgement.c.value,
            granted(judgement.c.task_id, judgement.c.annotator_id).label("is_granted"),
        )
        .join(task, task.c.id == judgement.c.task_id)
        .where(task.c.project_id == project_id, task.c.is_gold)
        .where(judgement.c.state == "valid", judgement.c.kind == "human", counts)
        .order_by(judgement.c.id)
    )
    found: dict[str, list[tuple[Mapping[str, Any], bool]]] = {}
    for row in connection.execute(wanted.where(task.c.id == task_id) if task_id else wanted):
        found.setdefault(row.task_id, []).append((row.value or {}, row.is_granted))
    return found


def set_gold_state(
    connection: sa.Connection, now: int, project_id: str, task_id: str, state: str, *, actor: str
) -> None:
    """`retired`: nobody gets the task any more and its answers count for nobody; `open` takes that back.

    Raises NotFound, Invalid, and Conflict where a flag or a freeze closed it.
    """
    if state not in ("open", "retired"):
        raise Invalid("state: choose open or retired")
    row = _task(connection, project_id, task_id)
    if not row.is_gold:
        raise NotFound("there is no such gold task in this project")
    if row.state == "closed" and state == "open":
        raise Conflict("this task was closed with its round, or because of a flag; it stays closed")
    if row.state != state:
        connection.execute(sa.update(task).where(task.c.id == task_id).values(state=state))
        audit(connection, now, actor, f"gold.{'retire' if state == 'retired' else 'reopen'}", task_id)


def _task(connection: sa.Connection, project_id: str, task_id: str) -> sa.Row[Any]:
    row = connection.execute(
        sa.select(task).where(task.c.id == task_id, task.c.project_id == project_id)
    ).first()
    if row is None:
        raise NotFound(f"project {project_id} has no task {task_id[:80]}")
    return row


def remark(connection: sa.Connection, project_id: str, strategy: str) -> str:
    """Why nobody, or not everybody, gets tasks of a strategy as the project is set; empty where all is well."""
    config = project_config(connection, project_id)
    if strategy == GOLD:
        return "" if config.gold_share else "gold_share is 0: nobody gets gold tasks"
    if not config.qualification.tasks:
        return "qualification.tasks is 0: everybody is let in without them"
    there = sum(one.is_qualification and one.state == "open" for one in gold_tasks(connection, project_id))
    needed = config.qualification.tasks
    return "" if there >= needed else f"there are {there} qualification tasks and {needed} are asked for"
