"""What a judgement says: from positions on a screen to completions, checked against its task.

People speak of the first and the second text that they see; what is stored speaks of the completions of the task, in
the task's own order, so that no reader needs to know how they were shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefloop.labels.errors import Invalid
from prefloop.labels.projects import Kind, ProjectConfig

STRONGEST, WEAKEST = 1, 8
"""Ends of the strip: 1 is the first text strongly better, 8 the second."""
Strength = int | None
Level = Literal["definitely_break", "probably_break", "unsure", "probably_follow", "definitely_follow"]
LONGEST_TEXT = 200_000


class Said(BaseModel):
    """A value as it comes from a client; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=LONGEST_TEXT, allow_inf_nan=False)


class Span(Said):
    """A stretch of a text that was marked."""

    position: int = Field(ge=0)
    start: int = Field(ge=0)
    end: int = Field(ge=1)
    note: str = ""


class Pairwise(Said):
    """Which of two is better, and how clearly. A strength, or a verdict without one."""

    strength: int | None = Field(default=None, ge=STRONGEST, le=WEAKEST)
    verdict: Literal["tie", "both_bad"] | None = None
    axes: dict[str, int] = {}
    spans: tuple[Span, ...] = ()

    @model_validator(mode="after")
    def _says_one_thing(self) -> "Pairwise":
        if (self.strength is None) == (self.verdict is None):
            raise ValueError("give a strength from 1 to 8, or the verdict tie or both_bad")
        if any(not STRONGEST <= one <= WEAKEST for one in self.axes.values()):
            raise ValueError("axes take 1 to 8")
        return self


class Ranked(Said):
    """Groups of positions, the best first; those of a group are equally good."""

    groups: tuple[tuple[int, ...], ...] = ()
    unrankable: tuple[int, ...] = ()


class Filled(Said):
    """The absolute form."""

    ratings: dict[str, int] = {}
    flags: dict[str, bool] = {}
    choices: dict[str, str] = {}
    texts: dict[str, str] = {}


class Attack(Said):
    """How an attempt to make the policy break a rule went."""

    success: int = Field(ge=1, le=5)
    harm: int = Field(ge=1, le=5)
    actionability: int = Field(ge=1, le=5)
    task: str = ""
    """What was tried, in the words of who tried it."""


class RuleLevels(Said):
    """Whether an answer keeps each rule."""

    levels: dict[str, Level]
    attack: Attack | None = None


class Edited(Said):
    """The text as it should be."""

    text: str = Field(min_length=1)


class Prompted(Said):
    """A prompt that somebody wrote."""

    text: str = Field(min_length=1)
    style: Literal["plain", "few_shot", "user_based"] = "plain"
    use_case: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    is_sensitive: bool = False


class Stepped(Said):
    """Which of two next steps is better, and which of them are right."""

    strength: int | None = Field(default=None, ge=STRONGEST, le=WEAKEST)
    verdict: Literal["tie", "both_bad"] | None = None
    labels: tuple[Literal["correct", "incorrect", "unsure"], ...] = ()


class AiPairwise(Said):
    """A judge's probability that the first text is better, asked both ways round."""

    p_first: float = Field(ge=0, le=1)
    p_first_swapped: float | None = Field(default=None, ge=0, le=1)


def stored_value(
    kind: Kind,
    said: Mapping[str, Any],
    presented: Sequence[int],
    config: ProjectConfig,
    *,
    rules: Sequence[str] = (),
) -> dict[str, Any]:
    """What is stored of what was said on a screen. `presented` has the indices of the completions, as shown.

    Raises Invalid, which names the field.
    """
    try:
        match kind:
            case "pairwise":
                if "p_first" in said:
                    return _ai_pairwise(AiPairwise.model_validate(said), presented)
                return _pairwise(Pairwise.model_validate(said), presented, config)
            case "rank":
                return _ranked(Ranked.model_validate(said), presented)
            case "form":
                return _filled(Filled.model_validate(said), config)
            case "rules":
                return _rule_levels(RuleLevels.model_validate(said), rules)
            case "edit" | "demonstration":
                return {"text": _not_blank(Edited.model_validate(said).text)}
            case "prompt":
                written = Prompted.model_validate(said)
                _not_blank(written.text)
                return written.model_dump(mode="json")
            case "steps":
                return _stepped(Stepped.model_validate(said), presented)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(one) for one in first["loc"])
        raise Invalid(f"{place}: {first['msg']}" if place else first["msg"]) from error


def _pairwise(said: Pairwise, presented: Sequence[int], config: ProjectConfig) -> dict[str, Any]:
    if said.verdict == "tie" and not config.ties:
        raise Invalid("verdict: this project takes no ties; say which is better, however slightly")
    if said.verdict == "both_bad" and not config.both_bad:
        raise Invalid("verdict: this project wants a choice; say which is better, however slightly")
    if unknown := set(said.axes) - set(config.axes):
        raise Invalid(f"axes: {', '.join(sorted(unknown))} is not asked in this project")
    strength = None if said.strength is None else _strength(said.strength, presented)
    stored: dict[str, Any] = {"choice": said.verdict or _choice(strength), "strength": strength}
    if said.axes:
        stored["axes"] = {name: _strength(one, presented) for name, one in said.axes.items()}
    if said.spans:
        stored["spans"] = [
            {**one.model_dump(exclude={"position"}), "completion": _completion(one.position, presented)}
            for one in said.spans
        ]
    return stored


def _strength(shown: int, presented: Sequence[int]) -> int:
    """The strip turned round where the second completion was shown first."""
    return shown if presented[0] == 0 else STRONGEST + WEAKEST - shown


def _choice(strength: int | None) -> Literal["a", "b"]:
    assert strength is not None
    return "a" if strength <= WEAKEST // 2 else "b"


def _ai_pairwise(said: AiPairwise, presented: Sequence[int]) -> dict[str, Any]:
    values = [said.p_first] if said.p_first_swapped is None else [said.p_first, said.p_first_swapped]
    p_first = sum(values) / len(values)
    p_a = p_first if presented[0] == 0 else 1 - p_first
    stored: dict[str, Any] = {
        "choice": "tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b",
        "strength": None,
        "p_a": p_a,
    }
    if len(values) == 2:
        stored["order_inconsistent"] = (values[0] - 0.5) * (values[1] - 0.5) < 0
    return stored


def _ranked(said: Ranked, presented: Sequence[int]) -> dict[str, Any]:
    named = [place for group in said.groups for place in group] + list(said.unrankable)
    if sorted(named) != list(range(len(presented))) or any(not group for group in said.groups):
        raise Invalid(
            f"groups: name each of the positions 0 to {len(presented) - 1} once, here or in unrankable"
        )
    return {
        "groups": [sorted(presented[place] for place in group) for group in said.groups],
        "unrankable": sorted(presented[place] for place in said.unrankable),
    }


def _filled(said: Filled, config: ProjectConfig) -> dict[str, Any]:
    given = {"likert": said.ratings, "flag": said.flags, "choice": said.choices, "text": said.texts}
    fields = {one.name: one for one in config.form}
    for type_, answers in given.items():
        for name, answer in answers.items():
            if name not in fields or fields[name].type != type_:
                raise Invalid(f"{name}: the form has no {type_} field of this name")
            if type_ == "likert" and not 1 <= answer <= 7:
                raise Invalid(f"{name}: {answer} is not from 1 to 7")
            if type_ == "choice" and answer not in fields[name].options:
                raise Invalid(f"{name}: choose one of {', '.join(fields[name].options)}")
    if missing := [one.name for one in config.form if one.required and one.name not in given[one.type]]:
        raise Invalid(f"{missing[0]}: this field is needed")
    return {name: value for name, value in said.model_dump(mode="json").items() if value}


def _rule_levels(said: RuleLevels, rules: Sequence[str]) -> dict[str, Any]:
    if set(said.levels) != set(rules):
        raise Invalid(f"levels: give one for each of the rules {', '.join(rules)}")
    return said.model_dump(mode="json", exclude_none=True)


def _stepped(said: Stepped, presented: Sequence[int]) -> dict[str, Any]:
    if said.labels and len(said.labels) != len(presented):
        raise Invalid(f"labels: give one for each of the {len(presented)} steps")
    if said.strength is None and said.verdict is None and not said.labels:
        raise Invalid("say which step is better, or which are correct")
    stored: dict[str, Any] = {}
    if said.strength is not None or said.verdict is not None:
        strength = None if said.strength is None else _strength(said.strength, presented)
        stored |= {"choice": said.verdict or _choice(strength), "strength": strength}
    if said.labels:
        by_completion = {presented[place]: label for place, label in enumerate(said.labels)}
        stored["labels"] = [by_completion[place] for place in range(len(presented))]
    return stored


def _completion(position: int, presented: Sequence[int]) -> int:
    if position >= len(presented):
        raise Invalid(f"position: there are {len(presented)} texts")
    return presented[position]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise Invalid("text: write something")
    return text


P_A = {"a": 1.0, "b": 0.0, "tie": 0.5}


def p_a_of(value: Mapping[str, Any]) -> float | None:
    """P(first completion is better) of a pairwise value; None where neither can be used."""
    if "p_a" in value:
        return float(value["p_a"])
    return P_A.get(value.get("choice", ""))


# --- back to the screen ----------------------------------------------------------------------------------------------


def said_value(kind: Kind, stored: Mapping[str, Any], presented: Sequence[int]) -> dict[str, Any]:
    """What was said on the screen, from what was stored of it: `stored_value` gives the same again."""
    place_of = {completion: place for place, completion in enumerate(presented)}
    match kind:
        case "pairwise":
            said = _said_choice(stored, presented)
            if "axes" in stored:
                said["axes"] = {name: _strength(one, presented) for name, one in stored["axes"].items()}
            if "spans" in stored:
                said["spans"] = [
                    {name: one[name] for name in ("start", "end", "note")}
                    | {"position": place_of[one["completion"]]}
                    for one in stored["spans"]
                ]
            return said
        case "rank":
            return {
                "groups": [sorted(place_of[one] for one in group) for group in stored["groups"]],
                "unrankable": sorted(place_of[one] for one in stored["unrankable"]),
            }
        case "steps":
            said = _said_choice(stored, presented)
            if "labels" in stored:
                said["labels"] = [stored["labels"][completion] for completion in presented]
            return said
        case _:
            return dict(stored)


def _said_choice(stored: Mapping[str, Any], presented: Sequence[int]) -> dict[str, Any]:
    if "choice" not in stored:
        return {}
    if stored["strength"] is None:
        return {"verdict": stored["choice"]}
    return {"strength": _strength(stored["strength"], presented)}
