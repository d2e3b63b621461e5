"""How good the labels of a project are: what the quality dashboard shows, computed from facts and kept for a while.

Agreement, biases and alarms are those of `prefloop.agreement`; here judgements become what they take, kind by kind.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from prefloop import agreement
from prefloop.agreement import Answer, Flag, LengthBias, Measure, Ranking, Rating, SideBias, Speed
from prefloop.labels import oversight
from prefloop.labels.browsing import Filter
from prefloop.labels.publish import project_config
from prefloop.labels.qualification import LEVELS, STRATEGY, is_right
from prefloop.labels.streaming import newest_judgement
from prefloop.labels.values import p_a_of
from prefloop.statistics import wilson_interval

Facts = Sequence[sa.Row[Any]]
CONFIDENCE = 0.95
FLAGS_FROM = 20_000
"""The newest answers that alarms are looked for in: they compare everybody with everybody."""
DAYS_SHOWN = 30
DAY_MS = 24 * 60 * 60 * 1000


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
class Question:
    """How far people agree on one question of one kind of task. Figures that make no sense for it are None."""

    kind: str
    name: str
    raw: Measure | None
    alpha: Measure | None
    kappa: Measure | None
    ac1: Measure | None
    tau: Measure | None = None

    @property
    def basis(self) -> Measure:
        """The figure that says what all rest on."""
        found = self.raw or self.alpha or self.tau
        assert found is not None, "a question has one of them"
        return found


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


@dataclass(frozen=True)
class Quality:
    """What the dashboard shows."""

    watermark: int
    """The newest judgement when it was computed."""
    computed_at: int
    judgements: int
    is_partial: bool
    """Whether there are more than the newest ones that were looked at."""
    questions: tuple[Question, ...]
    people: tuple[PersonQuality, ...]
    side: SideBias | None
    length: LengthBias | None
    days: tuple[tuple[str, int], ...]
    """Judgements a day, the last ones."""


def quality_of(connection: sa.Connection, now: int, wanted: Filter) -> Quality:
    """The figures on a filter, from the store as it is."""
    facts = oversight.facts(connection, wanted)
    known = oversight.known_answers(connection, wanted.project_id)
    names = oversight.names_of(connection, wanted.project_id)
    usual = [one for one in facts if not one.is_gold and one.repeat_of is None]
    people = [one for one in usual if one.by == "human"]
    judges = [one for one in usual if one.by == "ai"]
    sides, lengths = _sides(judges) | _sides(people), _lengths(judges) | _lengths(people)
    return Quality(
        watermark=newest_judgement(connection, wanted.project_id),
        computed_at=now,
        judgements=len(facts),
        is_partial=len(facts) >= oversight.MOST_FACTS,
        questions=tuple(_questions(people, _choices(connection, wanted.project_id))),
        people=tuple(_people(facts, usual, known, names, sides, lengths, wanted.annotator_id)),
        side=sides.get(None) if people else None,
        length=lengths.get(None) if people else None,
        days=_days(facts, now),
    )


def _choices(connection: sa.Connection, project_id: str) -> tuple[str, ...]:
    """What people can choose from."""
    config = project_config(connection, project_id)
    return ("a", "b", *(("tie",) if config.ties else ()), *(("both_bad",) if config.both_bad else ()))


def _days(facts: Facts, now: int) -> tuple[tuple[str, int], ...]:
    counts = Counter(one.created_at // DAY_MS for one in facts)
    if not counts:
        return ()
    today = now // DAY_MS
    first = max(min(counts), today - DAYS_SHOWN + 1)
    return tuple(
        (time.strftime("%m-%d", time.gmtime(day * DAY_MS / 1000)), counts.get(day, 0))
        for day in range(first, today + 1)
    )


# --- agreement, question by question ---------------------------------------------------------------------------------


def _questions(people: Facts, choices: tuple[str, ...]) -> list[Question]:
    """Every question that two people could disagree on, in order of appearance."""
    nominal: dict[tuple[str, str], list[Rating]] = defaultdict(list)
    ordinal: dict[tuple[str, str], list[Rating]] = defaultdict(list)
    rankings: dict[tuple[str, str], list[Ranking]] = defaultdict(list)
    for one in people:
        _ask(one, nominal, ordinal, rankings)
    found = [
        _nominal(key, ratings, choices if key[1] == "choice" else None) for key, ratings in nominal.items()
    ]
    found += [_ordinal(key, ratings) for key, ratings in ordinal.items()]
    found += [
        Question(*key, None, None, None, None, agreement.kendall_tau_b(given))
        for key, given in rankings.items()
    ]
    return sorted(found, key=lambda one: one.kind)


def _ask(one: sa.Row[Any], nominal: Any, ordinal: Any, rankings: Any) -> None:
    def rating(value: str | float, unit: str = "") -> Rating:
        return Rating(f"{one.task_id}{unit}", one.annotator_id, value, one.prompt_id)

    if one.choice is not None:
        nominal[one.kind, "choice"].append(rating(one.choice))
    if one.strength is not None:
        ordinal[one.kind, "strength"].append(rating(one.strength))
    value = one.value or {}
    for name, rated in value.get("ratings", {}).items():
        ordinal[one.kind, name].append(rating(rated))
    for name, flagged in value.get("flags", {}).items():
        nominal[one.kind, name].append(rating("yes" if flagged else "no"))
    for name, level in value.get("levels", {}).items():
        ordinal[one.kind, "levels"].append(rating(LEVELS.index(level) + 1, f"/{name}"))
    for place, label in enumerate(value.get("labels", ())):
        nominal[one.kind, "labels"].append(rating(label, f"/{place}"))
    if ranks := _ranks(value):
        rankings[one.kind, "order"].append(Ranking(one.task_id, one.annotator_id, ranks, one.prompt_id))


def _ranks(value: Mapping[str, Any]) -> tuple[float, ...]:
    """Ranks by completion; what cannot be ranked comes last, together."""
    groups = [*value.get("groups", ()), value.get("unrankable", ())]
    rank_of = {place: rank for rank, group in enumerate(groups, start=1) for place in group}
    return tuple(float(rank_of[place]) for place in sorted(rank_of)) if "groups" in value else ()


def _nominal(key: tuple[str, str], ratings: list[Rating], values: tuple[str, ...] | None) -> Question:
    return Question(
        *key,
        agreement.raw_agreement(ratings),
        agreement.krippendorff_alpha(ratings, level="nominal"),
        agreement.fleiss_kappa(ratings),
        agreement.gwet_ac1(ratings, values=values),
    )


def _ordinal(key: tuple[str, str], ratings: list[Rating]) -> Question:
    return Question(*key, None, agreement.krippendorff_alpha(ratings, level="ordinal"), None, None)


# --- person by person ------------------------------------------------------------------------------------------------


def _people(
    facts: Facts,
    usual: Facts,
    known: Mapping[str, tuple[Mapping[str, Any], int]],
    names: Mapping[str, str],
    sides: Mapping[str | None, SideBias],
    lengths: Mapping[str | None, LengthBias],
    only: str,
) -> list[PersonQuality]:
    counts = Counter(one.annotator_id for one in facts)
    judges = {one.annotator_id for one in facts if one.by == "ai"}
    consensus, gold, repeats = _consensus(usual), _gold(facts, known), _repeats(facts)
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


def _shares(seen: Sequence[tuple[str, bool]]) -> dict[str, Share]:
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
    return _shares(seen)


def _value(one: sa.Row[Any]) -> Mapping[str, Any]:
    return {"choice": one.choice, "strength": one.strength} if one.value is None else one.value


def _gold(facts: Facts, known: Mapping[str, tuple[Mapping[str, Any], int]]) -> dict[str, Share]:
    return _shares(
        [
            (one.annotator_id, is_right(_value(one), *known[one.task_id]))
            for one in facts
            # an answer that was changed after its solution was told says nothing
            if one.task_id in known and not (one.strategy == STRATEGY and one.revision)
        ]
    )


def _repeats(facts: Facts) -> dict[str, Share]:
    """The same question twice: the same choice, or else the same value."""
    first = {(one.task_id, one.annotator_id): one for one in facts if one.repeat_of is None}
    seen = []
    for one in facts:
        before = first.get((one.repeat_of, one.annotator_id)) if one.repeat_of else None
        if before is not None:
            same = one.choice == before.choice if one.choice is not None else one.value == before.value
            seen.append((one.annotator_id, same))
    return _shares(seen)


def _decided(facts: Facts) -> list[sa.Row[Any]]:
    return [one for one in facts if one.choice in ("a", "b")]


def _sides(facts: Facts) -> dict[str | None, SideBias]:
    chosen = [one for one in _decided(facts) if one.first_shown is not None]
    if not chosen:
        return {}
    left = [(one.choice == "a") == (one.first_shown == 0) for one in chosen]
    return {one.annotator: one for one in agreement.side_bias([one.annotator_id for one in chosen], left)}


def _lengths(facts: Facts) -> dict[str | None, LengthBias]:
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


def _flags(facts: Facts, known: Mapping[str, tuple[Mapping[str, Any], int]]) -> dict[str, list[Flag]]:
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


def kept_figures(quality: Quality) -> dict[str, dict[str, Any]]:
    """What is kept of each person from day to day, and shown to themselves."""
    found = {}
    for one in quality.people:
        figures: dict[str, Any] = {"judgements": one.judgements, "flags": [flag.rule for flag in one.flags]}
        if one.consensus is not None:
            figures["agreement"] = one.consensus.value
            figures["agreement_interval"] = [one.consensus.low, one.consensus.high]
            figures["agreement_n"] = one.consensus.of
        for name, share in (("gold", one.gold), ("repeats", one.repeats)):
            if share is not None:
                figures |= {name: share.value, f"{name}_n": share.of}
        if one.speed is not None:
            figures |= {"median_ms": one.speed.median_ms, "too_fast": one.speed.too_fast}
        found[one.id] = figures
    return found


# --- kept in memory --------------------------------------------------------------------------------------------------

V = TypeVar("V")
FRESH_S = 60.0
"""A result of this age is shown as it is, though judgements have come since."""
TIMES_ITS_COST = 20.0
"""What took long is kept longer: figures take a twentieth of the time at most."""
MOST_KEPT = 64


@dataclass
class _Kept(Generic[V]):
    value: V
    watermark: int
    at: float
    cost: float


@dataclass
class Kept(Generic[V]):
    """Results by project and filter. One is computed at a time, so that a dashboard cannot crowd out those who judge."""

    fresh_s: float = FRESH_S
    _found: dict[Hashable, _Kept[V]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Hashable, watermark: int, compute: Callable[[], V], *, anew: bool) -> V:
        """The result for this key, computed where there is none, or where it is too old for the watermark."""
        if (kept := self._usable(key, watermark)) is not None and not anew:
            return kept
        asked = time.monotonic()
        with self._lock:
            kept = self._found.get(key)
            if kept is not None and (kept.at > asked or (not anew and self._is_usable(kept, watermark))):
                return kept.value  # somebody else asked meanwhile
            started = time.monotonic()
            value = compute()
            done = time.monotonic()
            self._found[key] = _Kept(value, watermark, done, done - started)
            while len(self._found) > MOST_KEPT:
                del self._found[min(self._found, key=lambda one: self._found[one].at)]
            return value

    def forget(self, key: Hashable) -> None:
        """Has it computed anew next time."""
        self._found.pop(key, None)

    def _usable(self, key: Hashable, watermark: int) -> V | None:
        kept = self._found.get(key)
        return kept.value if kept is not None and self._is_usable(kept, watermark) else None

    def _is_usable(self, kept: _Kept[V], watermark: int) -> bool:
        age = time.monotonic() - kept.at
        return kept.watermark == watermark or age < max(self.fresh_s, TIMES_ITS_COST * kept.cost)
