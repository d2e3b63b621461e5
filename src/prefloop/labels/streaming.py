"""Judgements out of the store, each with everything around it, for exports and statistics.

Rows stream in the order of `rows.place_of`, up to a watermark: the same watermark gives the same rows, whatever was said
since. Annotators are named by their ids, which stay when somebody changes their name or leaves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from prefloop.labels.browsing import Filter, conditions
from prefloop.labels.errors import NotFound
from prefloop.labels.flagging import APPEAL
from prefloop.labels.rows import Acquisition, JudgementRow, RowCompletion, RowPrompt
from prefloop.labels.schema import completion, flag, judgement, prompt, round_, task
from prefloop.records import Message

ROWS_AT_ONCE = 2000
"""Held in memory."""
IDS_A_QUERY = 500


def newest_judgement(connection: sa.Connection, project_id: str) -> int:
    """The watermark of what there is now; 0 where nobody has said anything."""
    newest = sa.select(sa.func.max(judgement.c.id)).where(judgement.c.project_id == project_id)
    return connection.execute(newest).scalar() or 0


def up_to(connection: sa.Connection, wanted: Filter) -> Filter:
    """The filter with its watermark: that of the round, where it asks for one that is frozen, or the newest judgement.

    Raises NotFound for a round that the project does not have.
    """
    if wanted.watermark:
        return wanted
    if len(wanted.rounds) == 1:
        row = connection.execute(
            sa.select(round_.c.watermark).where(
                round_.c.project_id == wanted.project_id, round_.c.number == wanted.rounds[0]
            )
        ).first()
        if row is None:
            raise NotFound(f"project {wanted.project_id} has no round {wanted.rounds[0]}")
        if row.watermark is not None:
            return replace(wanted, watermark=row.watermark)
    return replace(wanted, watermark=newest_judgement(connection, wanted.project_id))


def judgement_rows(connection: sa.Connection, wanted: Filter) -> Iterator[JudgementRow]:
    """The judgements up to the filter's watermark, superseded ones too; use it within one snapshot of the store."""
    flags = _flags(connection, wanted)
    found = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(_query(connection, wanted))
    prompts: dict[str, RowPrompt] = {}
    for some in found.partitions(ROWS_AT_ONCE):
        ids = dict.fromkeys(id for row in some for id in row.completion_ids)
        completions = _completions(connection, list(ids))
        prompts = _prompts(connection, {row.prompt_id for row in some if row.prompt_id}, prompts)
        for row in some:
            yield _row(row, prompts, completions, flags)


def _query(connection: sa.Connection, wanted: Filter) -> sa.Select[Any]:
    newer = judgement.alias("newer")
    is_superseded = sa.exists().where(newer.c.supersedes == judgement.c.id, newer.c.id <= wanted.watermark)
    narrowed = [*conditions(connection, wanted), judgement.c.id <= wanted.watermark]
    if wanted.annotator_id:
        narrowed.append(judgement.c.annotator_id == wanted.annotator_id)
    if wanted.annotator_kinds:
        narrowed.append(judgement.c.kind.in_(wanted.annotator_kinds))
    return (
        sa.select(
            judgement,
            is_superseded.label("is_superseded"),
            task.c.kind.label("task_kind"),
            task.c.prompt_id,
            task.c.completion_ids,
            task.c.payload,
            task.c.strategy,
            task.c.score,
            task.c.probability,
            task.c.is_gold,
            task.c.repeat_of,
            round_.c.number.label("round_number"),
        )
        .join(task, task.c.id == judgement.c.task_id)
        .outerjoin(round_, round_.c.id == judgement.c.round_id)
        .where(*narrowed)
        .order_by(_bytewise(connection, task.c.prompt_id), _bytewise(connection, task.c.id), judgement.c.id)
    )


def _bytewise(connection: sa.Connection, column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """Ordered as Python orders text, on every database."""
    text = sa.func.coalesce(column, "")
    return text if connection.dialect.name == "sqlite" else sa.collate(text, "C")


def _flags(connection: sa.Connection, wanted: Filter) -> Mapping[str, tuple[str, ...]]:
    """Reasons for which tasks were flagged, and not dismissed, before the last judgement that is read: a repeat of an
    export finds the same."""
    last = sa.select(judgement.c.created_at).where(judgement.c.id == wanted.watermark).scalar_subquery()
    dismissed = sa.and_(flag.c.resolution == "dismissed", flag.c.resolved_at < last)
    rows = connection.execute(
        sa.select(flag.c.task_id, flag.c.reason)
        .join(task, task.c.id == flag.c.task_id)
        .where(task.c.project_id == wanted.project_id, flag.c.created_at < last, sa.not_(dismissed))
        .where(flag.c.reason != APPEAL)
        .order_by(flag.c.id)
    )
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        found[row.task_id] = (*found.get(row.task_id, ()), row.reason)
    return found


def _completions(connection: sa.Connection, ids: Sequence[str]) -> Mapping[str, RowCompletion]:
    columns = [getattr(completion.c, name) for name in ("id", "text", "policy_id", "sampling", "token_ids")]
    found = {}
    for start in range(0, len(ids), IDS_A_QUERY):
        some = ids[start : start + IDS_A_QUERY]
        for row in connection.execute(sa.select(*columns).where(completion.c.id.in_(some))):
            tokens = None if row.token_ids is None else tuple(row.token_ids)
            found[row.id] = RowCompletion(row.id, row.text, row.policy_id, row.sampling, tokens)
    return found


def _prompts(
    connection: sa.Connection, ids: set[str], known: Mapping[str, RowPrompt]
) -> dict[str, RowPrompt]:
    """The prompts of a batch; those of the batch before may go on in it."""
    found = {id: known[id] for id in ids if id in known}
    missing = sorted(ids - found.keys())
    for start in range(0, len(missing), IDS_A_QUERY):
        some = missing[start : start + IDS_A_QUERY]
        for row in connection.execute(sa.select(prompt).where(prompt.c.id.in_(some))):
            messages = tuple(Message(role=one["role"], content=one["content"]) for one in row.messages)
            found[row.id] = RowPrompt(
                row.id, messages, row.answer, row.source, row.split, tuple(row.tags or ()), row.lang
            )
    return found


NO_PROMPT = RowPrompt("", ())
"""Of tasks in which people write the prompt."""


def _row(
    row: Any,
    prompts: Mapping[str, RowPrompt],
    completions: Mapping[str, RowCompletion],
    flags: Mapping[str, tuple[str, ...]],
) -> JudgementRow:
    return JudgementRow(
        judgement_id=row.id,
        task_id=row.task_id,
        task_kind=row.task_kind,
        prompt=prompts.get(row.prompt_id, NO_PROMPT),
        completions=tuple(completions[id] for id in row.completion_ids),
        value=row.value or {},
        annotator=row.annotator_id,
        project=row.project_id,
        round=row.round_number or 0,
        annotator_kind=row.kind,
        presented_order=tuple(row.presented or ()),
        guideline_version=row.guideline_version,
        revision=row.revision,
        supersedes=row.supersedes,
        state="superseded" if row.is_superseded else row.state,
        is_gold=row.is_gold,
        is_repeat=row.repeat_of is not None and not row.is_gold,
        flags=flags.get(row.task_id, ()),
        active_ms=row.active_ms,
        first_action_ms=row.first_action_ms,
        comment=row.comment,
        created_at=row.created_at,
        acquisition=Acquisition(row.strategy, row.score, row.probability) if row.strategy else None,
        judge=row.judge,
        payload=row.payload,
    )
