"""Looking for tasks, and everything that is known about one: where it came from, what was said, where it went."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from prefloop.labels.errors import NotFound
from prefloop.labels.flagging import APPEAL
from prefloop.labels.schema import (
    adjudication,
    annotator,
    completion,
    flag,
    gold,
    judgement,
    policy,
    prompt,
    round_,
    task,
)

PAGE = 50
ASKED = prompt.alias("asked")
"""Conditions have tables of their own, since statements join the same ones."""
STATES = ("open", "done", "closed", "flagged", "disputed", "gold")
"""What `state` can ask for: `done` has all its judgements, `disputed` has people who disagree or an adjudication."""


@checked(frozen=True, config=ConfigDict(extra="forbid", str_max_length=500))
class Filter:
    """Which tasks, and which of their judgements. What is left out does not narrow anything."""

    project_id: str
    rounds: tuple[int, ...] = ()
    """Numbers of rounds."""
    kind: str = ""
    state: str = ""
    """One of STATES."""
    annotator_id: str = ""
    """Tasks that this person judged; of judgements, theirs alone."""
    annotator_kinds: tuple[str, ...] = ()
    """Of judgements, those by `human`, `ai`."""
    tag: str = ""
    """Of the prompt."""
    text: str = ""
    """In the prompt or one of its completions."""
    task_id: str = ""
    watermark: int = Field(default=0, ge=0)
    """The last judgement that is read; 0 for all that there are."""

    def told(self) -> dict[str, Any]:
        """What narrows, for a manifest or an address."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        told = {name: list(one) if isinstance(one, tuple) else one for name, one in values.items() if one}
        return {name: one for name, one in told.items() if name not in ("project_id", "watermark")}


def conditions(connection: sa.Connection, wanted: Filter) -> list[sa.ColumnElement[bool]]:
    """On `task`, for statements that read it, or it and others."""
    found: list[sa.ColumnElement[bool]] = [task.c.project_id == wanted.project_id]
    if wanted.rounds:
        numbered = sa.select(round_.c.id).where(
            round_.c.project_id == wanted.project_id, round_.c.number.in_(wanted.rounds)
        )
        found.append(task.c.round_id.in_(numbered))
    if wanted.kind:
        found.append(task.c.kind == wanted.kind)
    if wanted.state:
        found.append(_in_state(wanted.state))
    if wanted.annotator_id:
        of = judgement.alias("of_annotator")
        found.append(sa.exists().where(of.c.task_id == task.c.id, of.c.annotator_id == wanted.annotator_id))
    if wanted.task_id:
        found.append(task.c.id == wanted.task_id)
    if wanted.tag:
        tagged = sa.cast(ASKED.c.tags, sa.Text).contains(_quoted(connection, wanted.tag), autoescape=True)
        found.append(_has_prompt(tagged))
    if wanted.text:
        found.append(_says(connection, wanted.text))
    return found


def _in_state(state: str) -> sa.ColumnElement[bool]:
    if state == "done":
        return sa.and_(~task.c.is_gold, task.c.valid >= task.c.overlap)
    if state == "flagged":
        raised = flag.alias("raised")
        return sa.exists().where(
            raised.c.task_id == task.c.id, raised.c.resolved_at.is_(None), raised.c.reason != APPEAL
        )
    if state == "disputed":
        one, other = judgement.alias("one"), judgement.alias("other")
        differ = (
            sa.exists()
            .where(one.c.task_id == task.c.id, other.c.task_id == task.c.id, one.c.id < other.c.id)
            .where(
                one.c.state == "valid", other.c.state == "valid", one.c.annotator_id != other.c.annotator_id
            )
            .where(one.c.value["choice"].as_string() != other.c.value["choice"].as_string())
        )
        return sa.or_(differ, sa.exists().where(adjudication.c.task_id == task.c.id))
    if state == "gold":
        return task.c.is_gold
    return task.c.state == state


def _has_prompt(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return task.c.prompt_id.in_(sa.select(ASKED.c.id).where(condition))


def _quoted(connection: sa.Connection, text: str) -> str:
    """A text as it stands in a JSON column: SQLite keeps what we wrote, PostgreSQL writes signs as they are."""
    return json.dumps(text, ensure_ascii=connection.dialect.name == "sqlite")


def _says(connection: sa.Connection, text: str) -> sa.ColumnElement[bool]:
    inside = _quoted(connection, text)[1:-1]
    asked = sa.select(ASKED.c.id).where(sa.cast(ASKED.c.messages, sa.Text).icontains(inside, autoescape=True))
    answered = sa.select(completion.c.prompt_id).where(completion.c.text.icontains(text, autoescape=True))
    # each table is gone through once; asking it task by task would be quadratic
    return task.c.prompt_id.in_(sa.union(asked, answered))


# --- a page of tasks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A task in a list."""

    id: str
    kind: str
    ordinal: int
    round: int | None
    state: str
    asked: str
    """The last message of the prompt."""
    tags: tuple[str, ...]
    valid: int
    overlap: int
    strategy: str
    is_gold: bool
    is_repeat: bool
    flags: int
    """Open ones."""


def find_tasks(connection: sa.Connection, wanted: Filter, *, after: int | None = None) -> list[Found]:
    """A page of tasks in the order of publication; `after` is the ordinal where the last page ended."""
    open_flags = (
        sa.select(sa.func.count())
        .where(flag.c.task_id == task.c.id, flag.c.resolved_at.is_(None), flag.c.reason != APPEAL)
        .scalar_subquery()
    )
    statement = (
        sa.select(task, round_.c.number, prompt.c.messages, prompt.c.tags, open_flags.label("flags"))
        .outerjoin(round_, round_.c.id == task.c.round_id)
        .outerjoin(prompt, prompt.c.id == task.c.prompt_id)
        .where(*conditions(connection, wanted))
        .order_by(task.c.ordinal, task.c.id)
        .limit(PAGE)
    )
    if after is not None:
        statement = statement.where(task.c.ordinal > after)
    return [
        Found(
            row.id,
            row.kind,
            row.ordinal,
            row.number,
            row.state,
            row.messages[-1]["content"] if row.messages else "",
            tuple(row.tags or ()),
            row.valid,
            row.overlap,
            row.strategy,
            row.is_gold,
            row.repeat_of is not None and not row.is_gold,
            row.flags,
        )
        for row in connection.execute(statement)
    ]


def count_tasks(connection: sa.Connection, wanted: Filter) -> int:
    """How many tasks there are."""
    return connection.execute(
        sa.select(sa.func.count()).select_from(task).where(*conditions(connection, wanted))
    ).scalar_one()


def tags_of(connection: sa.Connection, project_id: str, most: int = 200) -> list[str]:
    """Tags of the prompts of a project, for a list to choose from."""
    rows = connection.execute(
        sa.select(prompt.c.tags)
        .distinct()
        .join(task, task.c.prompt_id == prompt.c.id)
        .where(task.c.project_id == project_id)
        .limit(most)
    ).scalars()
    return sorted({tag for tags in rows for tag in tags or ()})


# --- everything about one --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lineage:
    """From the prompt to what was made of the answers. Rows are those of the tables, with what a reader needs beside."""

    task: sa.Row[Any]
    round: sa.Row[Any] | None
    prompt: sa.Row[Any] | None
    completions: tuple[sa.Row[Any], ...]
    """In the order of the task, each with `uri` and `iteration` of its policy."""
    judgements: tuple[sa.Row[Any], ...]
    """All revisions, oldest first, with the annotator's `name` and whether a later one `replaced` them."""
    adjudications: tuple[sa.Row[Any], ...]
    flags: tuple[sa.Row[Any], ...]
    expected: Mapping[str, Any] | None
    why: str


def lineage(connection: sa.Connection, project_id: str, task_id: str) -> Lineage:
    """Everything about a task of a project. Raises NotFound."""
    row = connection.execute(
        sa.select(task).where(task.c.id == task_id, task.c.project_id == project_id)
    ).first()
    if row is None:
        raise NotFound(f"project {project_id} has no task {task_id[:80]}")
    asked = connection.execute(sa.select(prompt).where(prompt.c.id == row.prompt_id)).first()
    of = connection.execute(sa.select(round_).where(round_.c.id == row.round_id)).first()
    known = connection.execute(sa.select(gold).where(gold.c.task_id == task_id)).first()
    return Lineage(
        row,
        of,
        asked,
        _completions(connection, row.completion_ids),
        _judgements(connection, task_id),
        _beside(connection, adjudication, task_id),
        _beside(connection, flag, task_id),
        None if known is None else known.expected,
        "" if known is None else known.why,
    )


def _completions(connection: sa.Connection, ids: list[str]) -> tuple[sa.Row[Any], ...]:
    rows = connection.execute(
        sa.select(completion, policy.c.uri, policy.c.iteration)
        .outerjoin(policy, policy.c.id == completion.c.policy_id)
        .where(completion.c.id.in_(ids))
    )
    by_id = {row.id: row for row in rows}
    return tuple(by_id[one] for one in ids)


def _judgements(connection: sa.Connection, task_id: str) -> tuple[sa.Row[Any], ...]:
    newer = judgement.alias("newer")
    replaced = sa.exists().where(newer.c.supersedes == judgement.c.id).label("replaced")
    rows = connection.execute(
        sa.select(judgement, annotator.c.name, replaced)
        .join(annotator, annotator.c.id == judgement.c.annotator_id)
        .where(judgement.c.task_id == task_id)
        .order_by(judgement.c.id)
    )
    return tuple(rows)


def _beside(connection: sa.Connection, table: sa.Table, task_id: str) -> tuple[sa.Row[Any], ...]:
    rows = connection.execute(
        sa.select(table, annotator.c.name)
        .join(annotator, annotator.c.id == table.c.annotator_id)
        .where(table.c.task_id == task_id)
        .order_by(table.c.id)
    )
    return tuple(rows)
