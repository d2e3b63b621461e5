"""Transcripts as in HH-RLHF: pairs that share everything up to the last answer, and red-team attempts."""

from collections.abc import Iterator
from typing import Any

from prefloop.export import HH_SPEAKERS
from prefloop.fields import BadRowError, DroppedRowError
from prefloop.formats import check_turns
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.shapes import NOT_FOR_THIS_FORMAT, Column, Made, Refused, Rows
from prefloop.labels.formats.verdicts import JudgedPair, from_pairs
from prefloop.labels.rows import JudgementRow
from prefloop.records import Message

ROLE_MARKER = "role_marker"
MARKERS = tuple(mark.rstrip() for mark in HH_SPEAKERS.values())


def hh_rlhf(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Chosen and rejected transcripts. Text that holds a role marker is refused: it would read as another turn."""

    def record(row: JudgementRow, pair: JudgedPair, weight: float) -> dict[str, Any] | str:
        try:
            before = transcript(row.prompt.messages)
            sides = {"chosen": pair.chosen.text, "rejected": pair.rejected.text}
            return {name: before + _answer(text) for name, text in sides.items()}
        except DroppedRowError as dropped:
            return dropped.reason

    return from_pairs(rows, options, record)


def hh_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `hh-rlhf`."""
    return {"chosen": "text", "rejected": "text"}


def hh_redteam(rows: Rows, options: ExportOptions) -> Iterator[Made | Refused]:
    """Attacks: transcript, rating (how well it went), task and tags, and what was said about the rules."""
    for row in rows:
        attack = row.value.get("attack")
        if row.task_kind != "rules" or not isinstance(attack, dict) or not row.completions:
            yield Refused(row, NOT_FOR_THIS_FORMAT)
            continue
        try:
            text = transcript(row.prompt.messages) + _answer(row.completions[0].text)
        except DroppedRowError as dropped:
            yield Refused(row, dropped.reason)
            continue
        record = {
            "transcript": text,
            "rating": attack.get("success"),
            "task": str(attack.get("task") or ""),
            "tags": list(row.prompt.tags),
            "attack": {name: one for name, one in attack.items() if name not in ("task", "success")},
            "rules": row.value.get("levels", {}),
        }
        yield Made(record, (row,))


def redteam_columns(options: ExportOptions) -> dict[str, Column]:
    """Of `hh-redteam`."""
    return {
        "transcript": "text",
        "rating": "number",
        "task": "text",
        "tags": "texts",
        "attack": "json",
        "rules": "json",
    }


def transcript(messages: tuple[Message, ...]) -> str:
    """The conversation before an answer as one text. Raises DroppedRowError for what a transcript cannot hold."""
    if any(message.role == "system" for message in messages):
        raise DroppedRowError(NOT_FOR_THIS_FORMAT)
    try:
        check_turns(messages)
    except BadRowError as bad:
        raise DroppedRowError(NOT_FOR_THIS_FORMAT) from bad
    return "".join([_turn(message.role, message.content) for message in messages])


def _answer(text: str) -> str:
    return _turn("assistant", text)


def _turn(role: str, text: str) -> str:
    if any(mark in text for mark in MARKERS):
        raise DroppedRowError(ROLE_MARKER)
    return HH_SPEAKERS[role] + text
