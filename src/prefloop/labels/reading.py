"""What pages and programs read of the store: tasks as they are shown, progress."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.labels.publish import project_config
from prefloop.labels.queue import Lease
from prefloop.labels.schema import completion, prompt, task


def shown_task(connection: sa.Connection, held: Lease) -> dict[str, Any]:
    """A task as its person sees it: texts in the order of the lease, and nothing that tells where they come from."""
    row = connection.execute(sa.select(task).where(task.c.id == held.task_id)).one()
    config = project_config(connection, row.project_id)
    asked = connection.execute(sa.select(prompt.c.messages).where(prompt.c.id == row.prompt_id)).scalar()
    texts = _texts(connection, row.completion_ids)
    shown = [texts[row.completion_ids[place]] for place in held.presented]
    characters = sum(len(text) for text in shown) + sum(len(one["content"]) for one in asked or ())
    return {
        "kind": row.kind,
        "messages": asked or [],
        "texts": shown,
        "payload": row.payload or {},
        "dwell_ms": config.dwell.milliseconds(characters),
        "ties": config.ties,
        "both_bad": config.both_bad,
        "axes": list(config.axes),
        "guideline_version": row.guideline_version,
    }


def _texts(connection: sa.Connection, ids: list[str]) -> Mapping[str, str]:
    rows = connection.execute(sa.select(completion.c.id, completion.c.text).where(completion.c.id.in_(ids)))
    return {row.id: row.text for row in rows}


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
