"""How each annotator does: with others, on gold, with themselves, by side and length and time, and what alarms there are."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop import agreement
from prefloop.agreement import Answer, Flag, LengthBias, SideBias, Speed
from prefloop.labels.qualification import STRATEGY, is_right
from prefloop.labels.values import p_a_of
from prefloop.statistics import wilson_interval
from prefloop.web.questions import Facts

CONFIDENCE = 0.95
FLAGS_FROM = 20_000
"""The newest answers that alarms are looked for in: they compare everybody with everybody."""
Known = Mapping[str, tuple[Mapping[str, Any], int]]
"""What gold tasks expect, with their tolerance."""


@dataclass(frozen=True)
class Share:
    """How often something was so."""

    count: int
    of: int
    value: float
    low: float
    high: float
    """Wilson interval."""


def share(count: int, of: int) -> Share:
    """With its interval."""
    interval = wilson_interval(count, of, confidence=CONFIDENCE)
    return Share(count, of, interval["mean"], interval["low"], interval["high"])


@dataclass(frozen=True)
class PersonQuality:
    """Figures about one annotator."""

    id: str
    name: str
    is_ai: bool
    judgements: int
    consensus: Share | None
    """Agreement with what most of the other people chose; None where nobody else judged the same."""
    gold: Share | None
    repeats: Share | None
    """Agreement with themselves."""
    side: SideBias | None
    speed: Speed | None
    length: LengthBias | None
    flags: tuple[Flag, ...]


def people_of(
    facts: Facts,
    usual: Facts,
    known: Known,
    names: Mapping[str, str],
    sides: Mapping[str | None, SideBias],
    lengths: Mapping[str | None, LengthBias],
    only: str,
) -> list[PersonQuality]:
    counts = Counter(one.annotator_id for one in facts)
    judges = {one.annotator_id for one in facts if one.by == "ai"}
    consensus, gold, repeats = _consensus(usual), gold_of(facts, known), _repeats(facts)
    speeds = _speeds(usual)
    flags = _flags(facts, known)
    found = [
        PersonQuality(
            id,
            names.get(id, id),
            id in judges,
            number,
            consensus.get(id),
            gold.get(id),
            repeats.get(id),
            sides.get(id),
            speeds.get(id),
            lengths.get(id),
            tuple(flags.get(id, ())),
        )
        for id, number in counts.items()
        if not only or id == only
    ]
    return sorted(found, key=lambda one: (-len(one.flags), one.name.casefold()))


def shares_of(seen: Sequence[tuple[str, bool]]) -> dict[str, Share]:
    tally: dict[str, Counter[bool]] = defaultdict(Counter)
    for id, is_so in seen:
        tally[id][is_so] += 1
    return {id: share(of[True], of.total()) for id, of in tally.items()}


def _consensus(usual: Facts) -> dict[str, Share]:
    """Each choice against that of most other people; where those are split, or nobody else chose, it says nothing."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for one in usual:
        if one.by == "human" and one.choice is not None:
            votes[one.task_id][one.choice] += 1
    seen = []
    for one in usual:
        if one.choice is None or one.task_id not in votes:
            continue
        own = one.choice if one.by == "human" else None
        others = sorted(
            ((n - (choice == own), choice) for choice, n in votes[one.task_id].items()), reverse=True
        )
        if others[0][0] > 0 and (len(others) < 2 or others[0][0] > others[1][0]):
            seen.append((one.annotator_id, one.choice == others[0][1]))
    return shares_of(seen)


def _value(one: sa.Row[Any]) -> Mapping[str, Any]:
    return {"choice": one.choice, "strength": one.strength} if one.value is None else one.value


def gold_verdicts(facts: Facts, known: Known) -> Iterator[tuple[sa.Row[Any], bool]]:
    """Answers to gold tasks, and whether each is right."""
    for one in facts:
        # an answer that was changed after its solution was told says nothing
        if one.task_id in known and not (one.strategy == STRATEGY and one.revision):
            yield one, is_right(_value(one), *known[one.task_id])


def gold_of(facts: Facts, known: Known) -> dict[str, Share]:
    return shares_of([(one.annotator_id, right) for one, right in gold_verdicts(facts, known)])


def _repeats(facts: Facts) -> dict[str, Share]:
    """The same question twice: the same choice, or else the same value."""
    first = {(one.task_id, one.annotator_id): one for one in facts if one.repeat_of is None}
    seen = []
    for one in facts:
        before = first.get((one.repeat_of, one.annotator_id)) if one.repeat_of else None
        if before is not None:
            same = one.choice == before.choice if one.choice is not None else one.value == before.value
            seen.append((one.annotator_id, same))
    return shares_of(seen)


def _decided(facts: Facts) -> list[sa.Row[Any]]:
    return [one for one in facts if one.choice in ("a", "b")]


def sides_of(facts: Facts) -> dict[str | None, SideBias]:
    chosen = [one for one in _decided(facts) if one.first_shown is not None]
    if not chosen:
        return {}
    left = [(one.choice == "a") == (one.first_shown == 0) for one in chosen]
    return {one.annotator: one for one in agreement.side_bias([one.annotator_id for one in chosen], left)}


def lengths_of(facts: Facts) -> dict[str | None, LengthBias]:
    chosen = [one for one in _decided(facts) if one.length_a is not None and one.length_b is not None]
    if not chosen:
        return {}
    two = [
        (one.length_a, one.length_b) if one.choice == "a" else (one.length_b, one.length_a) for one in chosen
    ]
    found = agreement.length_bias(
        [one.annotator_id for one in chosen],
        [pair[0] for pair in two],
        [pair[1] for pair in two],
    )
    return {one.annotator: one for one in found}


def _least_ms(one: sa.Row[Any]) -> int:
    """What reading takes, of the first two texts alone: nobody is called too fast for a prompt that they know."""
    return agreement.reading_ms((one.length_a or 0) + (one.length_b or 0))


def _speeds(facts: Facts) -> dict[str, Speed]:
    timed = [one for one in facts if one.active_ms is not None and one.by == "human"]
    if not timed:
        return {}
    found = agreement.speeds(
        [one.annotator_id for one in timed],
        [one.active_ms for one in timed],
        [_least_ms(one) for one in timed],
    )
    return {one.annotator: one for one in found}


def _flags(facts: Facts, known: Known) -> dict[str, list[Flag]]:
    """Alarms about people, on choices between two."""
    answers = []
    for one in facts[-FLAGS_FROM:]:
        p_first = p_a_of({"choice": one.choice})
        is_repeat = one.repeat_of is not None and not one.is_gold
        if one.by != "human" or p_first is None or is_repeat:
            continue
        left = None if p_first == 0.5 else (p_first == 1) == (one.first_shown == 0)
        answers.append(
            Answer(
                unit=one.task_id,
                annotator=one.annotator_id,
                value=p_first,
                side=None if left is None else "left" if left else "right",
                at_ms=one.created_at,
                # no time was measured: nothing to blame anybody for
                active_ms=float("inf") if one.active_ms is None else one.active_ms,
                least_ms=_least_ms(one),
                gold=is_right(_value(one), *known[one.task_id]) if one.task_id in known else None,
            )
        )
    found: dict[str, list[Flag]] = defaultdict(list)
    for one in agreement.flags(answers):
        found[one.annotator].append(one)
    return found
