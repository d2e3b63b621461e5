"""One judgement with everything around it: what exports read and imports give.

Rows are plain slotted dataclasses, since an export streams a million of them; they are checked only where they come from
outside, in `row_of`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from prefloop.fields import BadRowError
from prefloop.records import Message

TaskKind = Literal["pairwise", "rank", "form", "rules", "edit", "demonstration", "prompt", "steps", "chat"]
AnnotatorKind = Literal["human", "ai", "rule", "outcome"]
State = Literal["valid", "surplus", "late", "skipped", "withdrawn", "superseded"]
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class RowPrompt:
    """What was answered."""

    __pydantic_config__ = STRICT

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    source: str = ""
    split: str = "train"
    """Anything else never enters training data."""
    tags: tuple[str, ...] = ()
    lang: str = ""


@dataclass(frozen=True, slots=True)
class RowCompletion:
    """One answer."""

    __pydantic_config__ = STRICT

    id: str
    text: str
    policy: str = ""
    sampling: Mapping[str, Any] | None = None
    token_ids: tuple[int, ...] | None = None
    steps: tuple[str, ...] = ()
    """The text in steps, where steps were judged one by one."""


@dataclass(frozen=True, slots=True)
class Acquisition:
    """Why the task was asked; the probability lets statistics be importance-weighted."""

    __pydantic_config__ = STRICT

    strategy: str
    score: float | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class JudgementRow:
    """What one annotator said about one task. `value` is about completions, never about sides of a screen:

    pairwise, chat: choice (a letter, tie or both_bad), strength 1 (a strongly better) to 8 (b), p_a of a judge;
    rank: groups of completion numbers, best first, and unrankable ones; form: ratings, flags, choices, texts by name;
    rules: levels by rule, attack; edit, demonstration, prompt: text, or messages; steps: labels, one a completion or one
    a step, and choice and strength.
    """

    __pydantic_config__ = STRICT

    judgement_id: int
    task_id: str
    task_kind: TaskKind
    prompt: RowPrompt
    completions: tuple[RowCompletion, ...]
    value: Mapping[str, Any]
    annotator: str
    project: str = ""
    round: int = 0
    annotator_kind: AnnotatorKind = "human"
    presented_order: tuple[int, ...] = ()
    """Numbers of the completions in the order in which the annotator saw them."""
    guideline_version: int = 0
    revision: int = 0
    supersedes: int | None = None
    state: State = "valid"
    is_gold: bool = False
    is_repeat: bool = False
    flags: tuple[str, ...] = ()
    active_ms: int | None = None
    first_action_ms: int | None = None
    comment: str = ""
    created_at: int = 0
    """Milliseconds since 1970."""
    acquisition: Acquisition | None = None
    judge: Mapping[str, Any] | None = None
    payload: Mapping[str, Any] | None = None
    """What else the task asked with, as the rules in words."""


ROWS: TypeAdapter[JudgementRow] = TypeAdapter(JudgementRow)


def row_of(value: object) -> JudgementRow:
    """A row out of what `json_of` gave. Raises BadRowError."""
    try:
        return ROWS.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the row"
        raise BadRowError("not_a_judgement", f"{place}: {first['msg']}; fix the row") from error


def json_of(row: JudgementRow) -> dict[str, Any]:
    """The row as plain values."""
    return ROWS.dump_python(row)


def in_order(rows: Iterable[JudgementRow]) -> list[JudgementRow]:
    """Rows as exports want them: those of a prompt together, in it those of a task, the oldest first."""
    return sorted(rows, key=place_of)


def place_of(row: JudgementRow) -> tuple[str, str, int]:
    """What rows are ordered by."""
    return row.prompt.id, row.task_id, row.judgement_id
