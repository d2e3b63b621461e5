"""Which judgements may leave: states, gold, held-out prompts, flags, agreement, personal data."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from prefloop.interfaces import InputError
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.shapes import Rows, by_task
from prefloop.labels.formats.verdicts import COMPARED, choice_of
from prefloop.labels.rows import JudgementRow
from prefloop.targets import told

TRAINING_SPLITS = ("", "train")
RESERVED_SALT = b"held-out prompts"
NO_TEXT = ("choice", "choices", "labels", "levels", "role", "style")
"""Fields of a value whose text is one of a list; everything else may be what people wrote."""
Redaction = Callable[[str], object]
"""A user's function from text to text; what it gives is checked."""


def reserved(prompt_id: str, share: float) -> bool:
    """Whether a prompt is held out: its hash says so, before anyone has judged it, and on every machine."""
    if not share:
        return False
    digest = hashlib.blake2b(prompt_id.encode(), digest_size=8, salt=RESERVED_SALT).digest()
    return int.from_bytes(digest) < share * 2**64


def kept_back(
    row: JudgementRow, keeps: Literal["training", "valid", "all"], options: ExportOptions
) -> str | None:
    """Why a judgement does not leave, whatever the format makes of it; None where it may."""
    if keeps == "all":
        return None
    if row.state != "valid":
        return row.state
    if row.flags:
        return "flagged"
    if keeps == "valid":
        return None
    if row.is_gold:
        return "gold"
    if row.prompt.split not in TRAINING_SPLITS or reserved(row.prompt.id, options.reserved_share):
        return "reserved"
    if row.is_repeat:
        return "repeat"
    return None


def disagreed(rows: Rows, options: ExportOptions) -> set[str]:
    """Ids of the tasks whose comparisons agree too little."""
    if options.min_agreement is None:
        return set()
    found: set[str] = set()
    for task in by_task(rows):
        votes = Counter(choice_of(row) for row in task if row.task_kind in COMPARED)
        if votes.total() > 1 and max(votes.values()) < options.min_agreement * votes.total():
            found.add(task[0].task_id)
    return found


# --- personal data ---------------------------------------------------------------------------------------------------


def redacted(row: JudgementRow, function: Redaction) -> JudgementRow:
    """The row with the function applied to every text that people or models wrote.

    Token ids of a text that was changed are left out, since they would spell it again. Raises InputError.
    """

    def clean(text: str) -> str:
        try:
            changed = function(text)
        except Exception as error:
            raise InputError(
                f"judgement {row.judgement_id}: the redaction failed: {told(error)}; "
                "make it return text for any text"
            ) from error
        if not isinstance(changed, str):
            kind = type(changed).__name__
            raise InputError(f"judgement {row.judgement_id}: the redaction returned {kind}; return text")
        return changed

    messages = tuple(one.model_copy(update={"content": clean(one.content)}) for one in row.prompt.messages)
    completions = []
    for one in row.completions:
        text = clean(one.text)
        tokens = one.token_ids if text == one.text else None
        completions.append(
            replace(one, text=text, token_ids=tokens, steps=tuple(clean(step) for step in one.steps))
        )
    return replace(
        row,
        prompt=replace(
            row.prompt,
            messages=messages,
            answer=None if row.prompt.answer is None else clean(row.prompt.answer),
        ),
        completions=tuple(completions),
        value=_cleaned(row.value, clean),
        comment=clean(row.comment),
        payload=None if row.payload is None else _cleaned(row.payload, clean),
    )


def _cleaned(value: Mapping[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    return {key: _cleaned_field(key, one, clean) for key, one in value.items()}


def _cleaned_field(key: str, value: Any, clean: Callable[[str], str]) -> Any:
    if key in NO_TEXT:
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return _cleaned(value, clean)
    if isinstance(value, list | tuple):
        return [_cleaned_field(key, one, clean) for one in value]
    return value
