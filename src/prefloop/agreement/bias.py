"""What pulls verdicts besides quality: the side of the screen, length, haste, and orders that contradict themselves."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from prefloop.agreement.types import indexed

ENOUGH_FOR_SIDES = 200
"""Decided labels of one person before their sides are tested: 79 % power against 60:40."""
SIDE_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class SideBias:
    """How often the left completion won, against a fair coin."""

    annotator: str | None
    """None for everybody together."""
    n: int
    """Decided labels: ties have no side."""
    share_left: float | None
    low: float | None
    high: float | None
    """Wilson interval."""
    p_value: float | None
    """Exact two-sided binomial test."""
    biased: bool | None
    """None before there are enough labels: nobody should be told anything."""


def side_bias(
    annotators: Sequence[str],
    left_won: Sequence[bool],
    *,
    enough: int = ENOUGH_FOR_SIDES,
    significance: float = SIDE_SIGNIFICANCE,
) -> tuple[SideBias, ...]:
    """Everybody together first, then each person in order of appearance; one entry a decided label.

    Orders must be counterbalanced, or the side is not to blame. Of fair people a share of `significance` is found
    biased, and more if it is looked at often: an alarm, not a verdict.
    """
    names, name_of = indexed(annotators)
    won = np.asarray(left_won, dtype=bool)
    everybody = _side_test(None, int(won.sum()), len(won), enough, significance)
    left = np.bincount(name_of, weights=won, minlength=len(names)).astype(int)
    n = np.bincount(name_of, minlength=len(names))
    each = (
        _side_test(name, int(one), int(of), enough, significance)
        for name, one, of in zip(names, left, n, strict=True)
    )
    return (everybody, *each)


def _side_test(name: str | None, left: int, n: int, enough: int, significance: float) -> SideBias:
    from scipy import stats

    from prefloop.statistics import wilson_interval

    if n == 0:
        return SideBias(name, 0, None, None, None, None, None)
    share = wilson_interval(left, n, confidence=1 - significance)
    p_value = float(stats.binomtest(left, n).pvalue)
    biased = p_value < significance if n >= enough else None
    return SideBias(name, n, share["mean"], share["low"], share["high"], round(p_value, 6), biased)


def labels_for_side_bias(share: float, *, significance: float = SIDE_SIGNIFICANCE, power: float = 0.8) -> int:
    """Decided labels with which a two-sided test finds a side that wins with this probability (normal approximation)."""
    if not 0 < share < 1 or share == 0.5:
        raise ValueError(f"share = {share}: no test finds that bias; give a probability other than 0.5")
    normal = NormalDist()
    reach = normal.inv_cdf(1 - significance / 2) / 2 + normal.inv_cdf(power) * math.sqrt(share * (1 - share))
    return math.ceil((reach / (share - 0.5)) ** 2)


@dataclass(frozen=True)
class LengthBias:
    """How often the longer completion won."""

    annotator: str | None
    """None for everybody together."""
    n: int
    """Decided labels on completions of different lengths."""
    longer_won: float | None
    low: float | None
    high: float | None
    """Wilson interval. No proof of bias where longer completions are better: compare people, judge and reward model."""


def length_bias(
    annotators: Sequence[str],
    chosen_lengths: Sequence[float],
    rejected_lengths: Sequence[float],
    *,
    confidence: float = 0.95,
) -> tuple[LengthBias, ...]:
    """Everybody together first, then each annotator (a person, a judge, a reward model); one entry a decided label."""
    from prefloop.statistics import wilson_interval

    counts: dict[str | None, Counter[bool]] = defaultdict(Counter)
    for name, chosen, rejected in zip(annotators, chosen_lengths, rejected_lengths, strict=True):
        for key in (None, name):
            counts[key].update([chosen > rejected] if chosen != rejected else ())
    found = []
    for name, of in ({None: Counter[bool]()} | counts).items():
        if n := of.total():
            share = wilson_interval(of[True], n, confidence=confidence)
            found.append(LengthBias(name, n, share["mean"], share["low"], share["high"]))
        else:
            found.append(LengthBias(name, 0, None, None, None))
    return tuple(found)


@dataclass(frozen=True)
class CyclicTriples:
    """Three completions each of which beats the next."""

    cyclic: int
    triples: int
    """Of which all three pairs were decided. Answers at random make one in four of them cyclic."""

    @property
    def share(self) -> float | None:
        return self.cyclic / self.triples if self.triples else None


def cyclic_triples(preferences: Sequence[tuple[str, str]]) -> CyclicTriples:
    """Counts them in one person's (winner, loser) completions. A pair decided both ways equally often is undecided."""
    balance: Counter[tuple[str, str]] = Counter()
    for winner, loser in preferences:
        balance[winner, loser] += 1
        balance[loser, winner] -= 1
    beaten: dict[str, set[str]] = defaultdict(set)
    for (winner, loser), more in balance.items():
        if more > 0:
            beaten[winner].add(loser)
    touched: dict[str, set[str]] = defaultdict(set)
    for winner, losers in beaten.items():
        for loser in losers:
            touched[winner].add(loser)
            touched[loser].add(winner)
    cyclic = triples = 0
    for one in sorted(touched):
        later = sorted(name for name in touched[one] if name > one)
        for two, three in itertools.combinations(later, 2):
            if three in touched[two]:
                triples += 1
                wins = (two in beaten[one]) + (three in beaten[one])
                # in a cycle everybody beats one of the two others
                cyclic += wins == 1 and (three in beaten[two]) == (two in beaten[one])
    return CyclicTriples(cyclic, triples)


@dataclass(frozen=True)
class Speed:
    """How long one person was active on a task."""

    annotator: str
    n: int
    median_ms: float
    too_fast: float
    """Share of tasks that took less than reading them takes."""


def speeds(
    annotators: Sequence[str], active_ms: Sequence[float], least_ms: Sequence[float]
) -> tuple[Speed, ...]:
    """Each person's speed in order of appearance; `least_ms` is what reading each task takes (`reading_ms`)."""
    names, name_of = indexed(annotators)
    taken, least = np.asarray(active_ms, dtype=np.float64), np.asarray(least_ms, dtype=np.float64)
    return tuple(
        Speed(name, len(of), float(np.median(taken[of])), round(float((taken[of] < least[of]).mean()), 6))
        for number, name in enumerate(names)
        for of in [np.flatnonzero(name_of == number)]
    )


READING_MS_PER_CHARACTER = 15
READING_MS = (3_000, 10_000)
"""No task is read in less than the first; nobody is blamed for taking longer than the second."""


def reading_ms(characters: int) -> int:
    """The least time in which somebody can have read a task of so many characters."""
    return min(max(READING_MS_PER_CHARACTER * characters, READING_MS[0]), READING_MS[1])
