"""What pages and programs read of the store: tasks as they are shown, a person's own answers, progress."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.labels.contents import task_content
from prefloop.labels.errors import NotFound
from prefloop.labels.people import Person
from prefloop.labels.projects import Kind
from prefloop.labels.publish import parsed_config, project_config
from prefloop.labels.queue import Lease, count_waiting
from prefloop.labels.schema import judgement, lease, member, project, prompt, quality, round_, task
from prefloop.labels.values import said_value

SHOWN_PAYLOAD = ("rules", "prefix", "examples", "instruction", "use_case")
"""What of a task's payload its person may see; the rest may tell where a text comes from."""
MOST_WAITING = 1000
"""As far as waiting tasks are counted."""
MOST_OWN = 50
"""Answers of one's own that can be looked at again."""
EXCERPT = 200


def shown_task(connection: sa.Connection, held: Lease) -> dict[str, Any]:
    """A task as its person sees it: texts in the order of the lease, and nothing that tells where they come from."""
    return _shown(connection, held.task_id, held.presented)


_SHOWN = (
    sa.select(task.c.kind, task.c.payload, task.c.guideline_version, task.c.is_sensitive, project.c.config)
    .join(project, project.c.id == task.c.project_id)
    .where(task.c.id == sa.bindparam("task"))
)


def _shown(connection: sa.Connection, task_id: str, presented: Sequence[int]) -> dict[str, Any]:
    row = connection.execute(_SHOWN, {"task": task_id}).one()
    config = parsed_config(row.config)
    content = task_content(connection, task_id)
    rules = {one.id: one.text for one in config.rules}
    asked_rules = (row.payload or {}).get("rules", ()) if row.kind == "rules" else ()
    return {
        "kind": row.kind,
        "messages": content.messages,
        "rules": [{"id": one, "text": rules.get(one, one)} for one in asked_rules],
        "is_sensitive": row.is_sensitive,
        "texts": [content.texts[place] for place in presented],
        "payload": {name: value for name, value in (row.payload or {}).items() if name in SHOWN_PAYLOAD},
        "dwell_ms": config.dwell.milliseconds(content.characters),
        "ties": config.ties,
        "both_bad": config.both_bad,
        "axes": list(config.axes),
        "form": [one.model_dump(mode="json") for one in config.form] if row.kind == "form" else [],
        "guideline_version": row.guideline_version,
    }


# --- the queue of one person -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnProject:
    """A project as one of its annotators sees it."""

    id: str
    title: str
    kind: Kind
    is_open: bool
    waiting: int
    """Tasks that they could do, counted as far as MOST_WAITING; one that they hold is among them."""
    holds_one: bool
    today: int
    """What they have answered since the morning."""
    has_news: bool
    """Whether there are guidelines that they have not read."""
    qualification: str
    figures: Mapping[str, Any]
    """The last figures about their quality."""
    has_chat: bool
    """Whether there are conversations."""


def own_projects(connection: sa.Connection, now: int, person: Person, *, day_start: int) -> list[OwnProject]:
    """The projects of a person, by title."""
    rows = connection.execute(
        sa.select(project, member.c.guideline_version.label("acknowledged"), member.c.qualification)
        .join(member, member.c.project_id == project.c.id)
        .where(member.c.annotator_id == person.id)
        .order_by(project.c.title)
    ).all()
    held = set(
        connection.execute(
            sa.select(lease.c.project_id).where(lease.c.annotator_id == person.id, lease.c.state == "open")
        ).scalars()
    )
    today = answered_since(connection, person, day_start)
    return [
        OwnProject(
            id=row.id,
            title=row.title,
            kind=project_config(connection, row.id).kind,
            is_open=row.state == "open",
            waiting=count_waiting(connection, now, row.id, person, at_most=MOST_WAITING) + (row.id in held),
            holds_one=row.id in held,
            today=today.get(row.id, 0),
            has_news=row.guideline_version > row.acknowledged,
            qualification=row.qualification,
            figures=_newest_figures(connection, row.id, person),
            has_chat=project_config(connection, row.id).chat is not None,
        )
        for row in rows
    ]


def answered_since(connection: sa.Connection, person: Person, start: int) -> dict[str, int]:
    """Tasks answered since a time, by project; what was only changed or skipped is no new answer."""
    rows = connection.execute(
        sa.select(judgement.c.project_id, sa.func.count())
        .where(
            judgement.c.annotator_id == person.id,
            judgement.c.created_at >= start,
            judgement.c.revision == 0,
            judgement.c.state != "skipped",
        )
        .group_by(judgement.c.project_id)
    )
    return {row[0]: row[1] for row in rows}


def _newest_figures(connection: sa.Connection, project_id: str, person: Person) -> Mapping[str, Any]:
    found = connection.execute(
        sa.select(quality.c.figures)
        .where(quality.c.project_id == project_id, quality.c.annotator_id == person.id)
        .order_by(quality.c.day.desc())
        .limit(1)
    ).scalar()
    return found or {}


# --- one's own answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnJudgement:
    """An answer as its author sees it again."""

    id: int
    project_id: str
    title: str
    kind: Kind
    asked: str
    """The beginning of the last user turn."""
    said: Mapping[str, Any]
    """In the positions of the screen, as it was said; empty where nothing was."""
    skipped: str
    """The reason, where the task was skipped."""
    state: str
    comment: str
    created_at: int
    is_frozen: bool
    """Whether it can no longer be changed."""


def own_judgements(connection: sa.Connection, person: Person, *, limit: int = MOST_OWN) -> list[OwnJudgement]:
    """The last answers of a person, the newest first, each as it stands now."""
    rows = connection.execute(_latest(person).order_by(judgement.c.id.desc()).limit(min(limit, MOST_OWN)))
    return [_own_judgement(row) for row in rows]


def own_judgement(
    connection: sa.Connection, judgement_id: int, person: Person
) -> tuple[OwnJudgement, dict[str, Any]]:
    """An answer and its task as it was shown. Raises NotFound for others' answers and for superseded ones."""
    row = connection.execute(_latest(person).where(judgement.c.id == judgement_id)).first()
    if row is None:
        raise NotFound("there is no such answer of yours, or it was changed since; load your answers again")
    return _own_judgement(row), _shown(connection, row.task_id, row.presented)


def _latest(person: Person) -> sa.Select[Any]:
    newer = judgement.alias("newer")
    return (
        sa.select(
            judgement,
            project.c.title,
            task.c.kind.label("asks"),
            task.c.state.label("task_state"),
            round_.c.state.label("round_state"),
            prompt.c.messages,
        )
        .join(project, project.c.id == judgement.c.project_id)
        .join(task, task.c.id == judgement.c.task_id)
        .outerjoin(round_, round_.c.id == task.c.round_id)
        .outerjoin(prompt, prompt.c.id == task.c.prompt_id)
        .where(
            judgement.c.annotator_id == person.id, ~sa.exists().where(newer.c.supersedes == judgement.c.id)
        )
    )


def _own_judgement(row: sa.Row[Any]) -> OwnJudgement:
    value = row.value or {}
    skipped = value.get("skip", "") if row.state == "skipped" else ""
    return OwnJudgement(
        id=row.id,
        project_id=row.project_id,
        title=row.title,
        kind=row.asks,
        asked=row.messages[-1]["content"][:EXCERPT] if row.messages else "",
        said=said_value(row.asks, value, row.presented) if value and row.state != "skipped" else {},
        skipped=skipped,
        state=row.state,
        comment=row.comment,
        created_at=row.created_at,
        is_frozen=row.task_state != "open" or row.round_state not in (None, "open"),
    )


# --- progress --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far a round or a project is."""

    tasks: int
    done: int
    """Tasks with all the judgements that they want."""
    judgements: int
    """Valid ones, gold and repeats left out."""
    wanted: int


def progress(connection: sa.Connection, project_id: str, *, round_id: str | None = None) -> Progress:
    """Counts of people's judgements; gold tasks and repeats are not among them."""
    usual = [task.c.project_id == project_id, ~task.c.is_gold, task.c.for_annotator.is_(None)]
    if round_id is not None:
        usual.append(task.c.round_id == round_id)
    capped = sa.case((task.c.valid > task.c.overlap, task.c.overlap), else_=task.c.valid)
    row = connection.execute(
        sa.select(
            sa.func.count().label("tasks"),
            sa.func.coalesce(sa.func.sum(sa.case((task.c.valid >= task.c.overlap, 1), else_=0)), 0).label(
                "done"
            ),
            sa.func.coalesce(sa.func.sum(capped), 0).label("judgements"),
            sa.func.coalesce(sa.func.sum(task.c.overlap), 0).label("wanted"),
        ).where(*usual)
    ).one()
    return Progress(row.tasks, row.done, row.judgements, row.wanted)
