"""Judgements out of the store as rows for exports, a million of them without holding them all.

Only the numbers of the judgements are read at once, in the order of `rows.place_of`; what belongs to them follows some
hundred at a time. Read them from one snapshot of the store up to a watermark, and the same rows come again for ever.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa

from prefloop.labels.browsing import Filter, conditions
from prefloop.labels.rows import Acquisition, JudgementRow, RowCompletion, RowPrompt
from prefloop.labels.schema import completion, flag, judgement, prompt, round_, task
from prefloop.records import Message

ROWS_A_READ = 500
T = TypeVar("T")


def newest_judgement(connection: sa.Connection, project_id: str) -> int:
    """The watermark of what there is now."""
    newest = sa.select(sa.func.coalesce(sa.func.max(judgement.c.id), 0))
    return connection.execute(newest.where(judgement.c.project_id == project_id)).scalar_one()


def judgement_rows(connection: sa.Connection, wanted: Filter) -> Iterator[JudgementRow]:
    """Judgements with everything around them, all revisions, in the order that exports want."""
    for ids in _batches(_numbers(connection, wanted)):
        yield from _rows(connection, ids, wanted.watermark)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(items)
    while some := list(islice(remaining, ROWS_A_READ)):
        yield some


def _numbers(connection: sa.Connection, wanted: Filter) -> list[int]:
    # the order is that of Python's strings, whatever the language of the database
    plain = (lambda column: column) if connection.dialect.name == "sqlite" else lambda one: one.collate("C")
    statement = (
        sa.select(judgement.c.id)
        .join(task, task.c.id == judgement.c.task_id)
        .where(judgement.c.project_id == wanted.project_id, *conditions(connection, wanted))
        .order_by(plain(sa.func.coalesce(task.c.prompt_id, task.c.id)), plain(task.c.id), judgement.c.id)
    )
    if wanted.annotator_id:
        statement = statement.where(judgement.c.annotator_id == wanted.annotator_id)
    if wanted.watermark:
        statement = statement.where(judgement.c.id <= wanted.watermark)
    return list(connection.execute(statement).scalars())


def _rows(connection: sa.Connection, ids: Sequence[int], watermark: int) -> Iterator[JudgementRow]:
    newer = judgement.alias("newer")
    later = newer.c.supersedes == judgement.c.id
    if watermark:
        later = sa.and_(later, newer.c.id <= watermark)
    found = connection.execute(
        sa.select(judgement, newer.c.id.label("newer_id"))
        .outerjoin(newer, later)
        .where(judgement.c.id.in_(ids))
    ).all()
    by_id = {row.id: row for row in found}
    tasks = _tasks(connection, {row.task_id for row in found})
    texts = _texts(connection, {one for row in tasks.values() for one in row.completion_ids})
    flags = _flags(connection, tasks.keys())
    prompts: dict[str, RowPrompt] = {}
    for id in ids:
        row = by_id[id]
        asked = tasks[row.task_id]
        key = asked.prompt_id or asked.id
        if key not in prompts:
            prompts[key] = _prompt(asked, key)
        yield _row(row, asked, prompts[key], texts, flags.get(asked.id, ()))


def _row(
    row: sa.Row[Any],
    asked: sa.Row[Any],
    about: RowPrompt,
    texts: Mapping[str, RowCompletion],
    flags: tuple[str, ...],
) -> JudgementRow:
    acquisition = Acquisition(asked.strategy, asked.score, asked.probability) if asked.strategy else None
    return JudgementRow(
        judgement_id=row.id,
        task_id=row.task_id,
        task_kind=asked.kind,
        prompt=about,
        completions=tuple([texts[one] for one in asked.completion_ids]),
        value=row.value or {},
        annotator=row.annotator_id,
        project=row.project_id,
        round=asked.number or 0,
        annotator_kind=row.kind,
        presented_order=tuple(row.presented or ()),
        guideline_version=row.guideline_version,
        revision=row.revision,
        supersedes=row.supersedes,
        state=row.state if row.newer_id is None else "superseded",
        is_gold=asked.is_gold,
        is_repeat=asked.repeat_of is not None,
        flags=flags,
        active_ms=row.active_ms,
        first_action_ms=row.first_action_ms,
        comment=row.comment,
        created_at=row.created_at,
        acquisition=acquisition,
        judge=row.judge,
        payload=asked.payload,
    )


def _prompt(asked: sa.Row[Any], id: str) -> RowPrompt:
    messages = tuple([Message(**one) for one in asked.messages or ()])
    return RowPrompt(
        id,
        messages,
        asked.answer,
        asked.source or "",
        asked.split or "train",
        tuple(asked.tags or ()),
        asked.lang or "",
    )


def _tasks(connection: sa.Connection, ids: set[str]) -> Mapping[str, sa.Row[Any]]:
    rows: Any = connection.execute(
        sa.select(
            task.c.id,
            task.c.kind,
            task.c.prompt_id,
            task.c.completion_ids,
            task.c.payload,
            task.c.strategy,
            task.c.score,
            task.c.probability,
            task.c.is_gold,
            task.c.repeat_of,
            round_.c.number,
            prompt.c.messages,
            prompt.c.answer,
            prompt.c.source,
            prompt.c.split,
            prompt.c.tags,
            prompt.c.lang,
        )
        .outerjoin(round_, round_.c.id == task.c.round_id)
        .outerjoin(prompt, prompt.c.id == task.c.prompt_id)
        .where(task.c.id.in_(ids))
    )
    return {row.id: row for row in rows}


def _texts(connection: sa.Connection, ids: set[str]) -> dict[str, RowCompletion]:
    wanted = (
        completion.c.id,
        completion.c.text,
        completion.c.policy_id,
        completion.c.sampling,
        completion.c.token_ids,
    )
    found: dict[str, RowCompletion] = {}
    for some in _batches(ids):
        for row in connection.execute(sa.select(*wanted).where(completion.c.id.in_(some))):
            tokens = None if row.token_ids is None else tuple(row.token_ids)
            found[row.id] = RowCompletion(row.id, row.text, row.policy_id, row.sampling, tokens)
    return found


def _flags(connection: sa.Connection, ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Reasons of the flags of each task that a lead has not dismissed."""
    rows = connection.execute(
        sa.select(flag.c.task_id, flag.c.reason)
        .where(flag.c.task_id.in_(list(ids)), flag.c.resolution != "dismissed")
        .order_by(flag.c.id)
    )
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        found[row.task_id] = (*found.get(row.task_id, ()), row.reason)
    return found
