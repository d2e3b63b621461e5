"""What a judgement of a file may say: checked before it comes in, since exports trust what is stored.

The screens' own values are checked in `labels.values`; these are about completions already, and come from anybody.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefloop.fields import BadRowError
from prefloop.labels.formats.shapes import letters
from prefloop.labels.formats.verdicts import BOTH_BAD, TIE
from prefloop.labels.rows import JudgementRow, TaskKind

Place = Annotated[int, Field(ge=0)]
StepLabel = Literal["correct", "incorrect", "unsure"]


class Said(BaseModel):
    """A value. Fields that we do not know are kept; a number is never read out of text, nor text out of a number."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Chosen(Said):
    """A choice among completions."""

    choice: str | None = None
    strength: Annotated[int, Field(ge=1, le=8)] | None = None
    p_a: Annotated[float, Field(ge=0, le=1)] | None = None
    margin: float = 0.0
    scores: list[float] | None = None
    labels: list[StepLabel | list[StepLabel | None] | None] = []


class Ordered(Said):
    """A ranking."""

    groups: list[list[Place]] = []
    unrankable: list[Place] = []


class Rated(Said):
    """A form."""

    ratings: dict[str, float] = {}
    flags: dict[str, bool] = {}
    choices: dict[str, str] = {}
    texts: dict[str, str] = {}


class Probed(Said):
    """Rules kept or broken."""

    levels: dict[str, str] = {}
    attack: dict[str, Any] | None = None


class Turn(Said):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Written(Said):
    """What somebody wrote."""

    text: str = ""
    messages: list[Turn] = []
    examples: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []


SHAPES: dict[TaskKind, type[Said]] = {
    "pairwise": Chosen,
    "chat": Chosen,
    "steps": Chosen,
    "rank": Ordered,
    "form": Rated,
    "rules": Probed,
    "edit": Written,
    "demonstration": Written,
    "prompt": Written,
}


def check_value(row: JudgementRow) -> JudgementRow:
    """The row, if its value is one that exports can read. Raises BadRowError."""
    try:
        SHAPES[row.task_kind].model_validate(dict(row.value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise BadRowError("bad_value", f"{place or 'the value'}: {first['msg']}; fix the row") from error
    number = len(row.completions)
    _check_choice(row.value, number)
    named = [place for group in row.value.get("groups") or () for place in group]
    named += row.value.get("unrankable") or ()
    if len(set(named)) < len(named) or any(place >= number for place in named):
        raise BadRowError("bad_ranking", f"groups name {named}; use each of 0 to {number - 1} once at most")
    return row


def _check_choice(value: Mapping[str, Any], number: int) -> None:
    choice = value.get("choice")
    if choice is not None and choice not in (TIE, BOTH_BAD, *letters(number)):
        known = ", ".join([*letters(number), TIE, BOTH_BAD])
        raise BadRowError("bad_choice", f"choice is {choice!r}; use one of {known}")
    scores = value.get("scores")
    if scores is not None and len(scores) != number:
        raise BadRowError("bad_scores", f"{len(scores)} scores for {number} completions; give one each")
