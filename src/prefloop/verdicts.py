"""Verdicts that are more than a pair: whole rankings, rules kept or broken, steps right or wrong, ratings by objective.

Each reader gives records and counts what did not come out, as those of `data` do.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

from pydantic import Field

from prefloop import tale_rules
from prefloop.config import SourceSection
from prefloop.containers import raw_rows
from prefloop.data import (
    BUILTIN,
    PAIR_FORMATS,
    Loaded,
    built_in_rows,
    columns,
    complaint,
    judged,
    make_group,
    make_prompt,
    read_examples,
    source_name,
)
from prefloop.fields import BadRowError, DroppedRowError, Row, kind_of, list_field, text_field
from prefloop.formats import Example, detect, parse
from prefloop.interfaces import InputError
from prefloop.records import Completion, Group, PreferencePair, Prompt, Record, content_id, file_completion
from prefloop.store import tally

Level = Literal["definitely_break", "probably_break", "unsure", "probably_follow", "definitely_follow"]
VIOLATED: dict[str, bool | None] = {
    "definitely_break": True,
    "probably_break": True,
    "unsure": None,
    "probably_follow": False,
    "definitely_follow": False,
}
"""What the five levels of Sparrow's raters mean for training (arXiv:2209.14375); unsure rows are dropped."""
STEP_LABELS = {"+": 1.0, "1": 1.0, "true": 1.0, "-": 0.0, "0": 0.0, "-1": 0.0, "false": 0.0}

# --- rankings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """The completions of a prompt, and what one annotator said about them together."""

    group: Group
    pairs: tuple[PreferencePair, ...]
    """Every two completions that were ranked apart, each weighted so that the ranking counts once."""
    all_bad: bool = False
    """No completion was good enough to choose; there are no pairs then."""

    @property
    def id(self) -> str:
        """The same for equal rows."""
        return content_id(self.group.prompt.id, [one.text for one in self.group.completions])


def read_rankings(source: SourceSection) -> Loaded[Ranking]:
    """Rankings with ties, choices of the best, scores, and single pairs; the last are rankings of two."""
    return read_examples(source, "pairs", PAIR_FORMATS, _make_ranking, lambda ranking: ranking.id)


def _make_ranking(example: Example, name: str) -> Ranking:
    group = make_group(example, name)
    if example.all_bad:
        return Ranking(group, (), all_bad=True)
    places = judged(example)
    if len(places) < 2:
        raise DroppedRowError("short")
    different = [
        (a, b)
        for a, b in itertools.permutations(places, 2)
        if places[a] > places[b] and group.completions[a].text != group.completions[b].text
    ]
    if not different:
        texts = {one.text for one in group.completions}
        raise DroppedRowError("identical" if len(texts) == 1 else "tie")
    return Ranking(group, tuple(_ranked_pair(group, example, a, b, len(different)) for a, b in different))


def _ranked_pair(group: Group, example: Example, better: int, worse: int, number: int) -> PreferencePair:
    return PreferencePair.of(
        group.prompt,
        group.completions[better],
        group.completions[worse],
        margin=example.lead(better, worse),
        annotator=f"file:{group.prompt.source}",
        weight=1 / number,
    )


# --- rules -----------------------------------------------------------------------------------------------------------


class RuleVerdict(Record):
    """Whether the last answer of a dialogue breaks a rule, as a person saw it."""

    id: str
    prompt: Prompt
    completion: Completion
    rule: str = Field(min_length=1)
    violated: bool


def read_rule_verdicts(source: SourceSection) -> Loaded[RuleVerdict]:
    """Rows of a dialogue (`messages`, or `prompt` and `completion`), a `rule` in words and a `verdict` of five levels."""
    return _read(source, _rule_verdict, {"tales/verdicts": tale_rules.verdicts})


def _rule_verdict(row: Row, name: str) -> RuleVerdict:
    prompt, completion = _answered(row, name)
    rule, level = text_field(row, "rule").strip(), row.get("verdict")
    if not rule:
        raise BadRowError("empty_rule", "the rule is empty; write it in words")
    if not isinstance(level, str) or level not in VIOLATED:
        raise BadRowError("unknown_verdict", f"verdict is {level!r}; use one of {', '.join(VIOLATED)}")
    violated = VIOLATED[level]
    if violated is None:
        raise DroppedRowError("unsure")
    return RuleVerdict(
        id=content_id(completion.id, rule), prompt=prompt, completion=completion, rule=rule, violated=violated
    )


# --- steps -----------------------------------------------------------------------------------------------------------


class StepVerdicts(Record):
    """A solution in steps, and which of them are right."""

    id: str
    prompt: Prompt
    steps: tuple[str, ...] = Field(min_length=1)
    right: tuple[float | None, ...]
    """P(right) of each step, 1 or 0 where people said so; None is not judged."""


def read_steps(source: SourceSection) -> Loaded[StepVerdicts]:
    """Rows of a prompt, its `steps` and their `labels`: +, -, true, false, a probability, or null for not judged."""
    return _read(source, _step_verdicts)


def _step_verdicts(row: Row, name: str) -> StepVerdicts:
    prompt = make_prompt(Example(parse(row, "prompt").turns), name)
    steps = list_field(row, "steps")
    labels = [_step_label(label, place) for place, label in enumerate(list_field(row, "labels"))]
    if len(labels) != len(steps):
        raise BadRowError("unequal_lengths", f"{len(labels)} labels for {len(steps)} steps; give one each")
    for place, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise BadRowError(
                "empty_step", f"step {place} is {kind_of(step)} without text; every step needs some"
            )
    if all(label is None for label in labels):
        raise DroppedRowError("not_judged")
    texts = tuple(map(str, steps))
    return StepVerdicts(id=content_id(prompt.id, texts), prompt=prompt, steps=texts, right=tuple(labels))


def _step_label(value: object, place: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    if (label := STEP_LABELS.get(str(value).strip().lower())) is None:
        raise BadRowError(
            "bad_label", f"the label of step {place} is {value!r}; use +, -, true, false, 0 to 1, or null"
        )
    return label


# --- ratings ---------------------------------------------------------------------------------------------------------


class Rated(Record):
    """An answer and its ratings by objective; those that are missing were not given."""

    id: str
    prompt: Prompt
    completion: Completion
    ratings: dict[str, float] = Field(min_length=1)


def read_ratings(source: SourceSection) -> Loaded[Rated]:
    """Rows of a prompt, a completion and `ratings`, an object of numbers by objective; null is not given."""
    return _read(source, _rated)


def _rated(row: Row, name: str) -> Rated:
    prompt, completion = _answered(row, name)
    given = row.get("ratings")
    if not isinstance(given, Mapping):
        raise BadRowError(
            "wrong_type", f"ratings is {kind_of(given)}, not an object of numbers by objective; fix the row"
        )
    ratings = {str(key): _rating(key, value) for key, value in given.items() if value is not None}
    if not ratings:
        raise DroppedRowError("not_judged")
    return Rated(id=completion.id, prompt=prompt, completion=completion, ratings=ratings)


def _rating(name: object, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRowError("bad_score", f"the rating {name} is {value!r}; use a number, or null for not given")
    return float(value)


V = TypeVar("V", RuleVerdict, StepVerdicts, Rated)


# --- rows ------------------------------------------------------------------------------------------------------------


def _answered(row: Row, name: str) -> tuple[Prompt, Completion]:
    """The dialogue up to an answer, and the answer."""
    format = detect(row, ("messages", "prompt_completion"))
    if format not in ("messages", "prompt_completion"):
        raise BadRowError(
            "missing_field",
            f"no dialogue with an answer; give messages, or prompt and completion; the row has {', '.join(row)}",
        )
    example = parse(row, format)
    turns, answers = example.turns, example.completions
    if not answers:
        if not turns or turns[-1].role != "assistant":
            raise BadRowError("no_answer", "the dialogue must end with the assistant's turn that is judged")
        turns, answers = turns[:-1], (turns[-1].content,)
    if not answers[0].strip():
        raise BadRowError(
            "empty_completion", "the answer is empty; fix the row, or skip such rows with bad_rows: drop"
        )
    prompt = make_prompt(Example(turns), name)
    return prompt, file_completion(prompt, answers[0])


def _read(
    source: SourceSection,
    make: Callable[[Row, str], V],
    built_in: Mapping[str, Callable[[int | None], list[Row]]] | None = None,
) -> Loaded[V]:
    if source.format != "auto":
        raise InputError(f"{source.path}: format {source.format} has no such verdicts; leave format out")
    if source.path.startswith(BUILTIN):
        found = built_in_rows(source, built_in or {})
    else:
        found = raw_rows(source.path, source.split)
    rows: dict[str, V] = {}
    reasons: list[str] = []
    for raw in islice(found, source.limit):
        try:
            record = make(columns(raw, source), source_name(source))
        except DroppedRowError as dropped:
            reasons.append(dropped.reason)
        except BadRowError as bad:
            if source.bad_rows == "stop":
                raise InputError(complaint(raw, bad)) from bad
            reasons.append(bad.reason)
        else:
            if rows.setdefault(record.id, record) is not record:
                reasons.append("duplicate")
    if not rows and not reasons:
        raise InputError(f"{source_name(source)}: no rows")
    return Loaded(list(rows.values()), len(rows) + len(reasons), tally(reasons), "verdicts")
