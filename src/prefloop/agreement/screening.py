"""Which annotators a lead should look at, and why.

A flag is an alarm for a person to look into, never a wage and never an exclusion by itself. The rules are set so that
few honest people are flagged while their first answers come in; what they catch is measured in
docs/concepts/label-quality.md.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prefloop.agreement.types import indexed

Rule = Literal["gold", "one_side", "too_fast", "copies", "random"]

GOLD_LABELS = 20
"""Gold answers before they are judged."""
GOLD_ACCURACY = 0.9
"""Of an honest person on gold, which is made of clear cases."""
GOLD_ERROR = 0.0125
"""Honest people flagged by the gold rule: 14 of 20 right happen to 1.1 % of them."""
SCREEN_LABELS = 30
"""Answers before sides, speed and agreement are judged."""
ONE_SIDE = 0.9
"""Share of answers for one side of the screen."""
TOO_FAST = 0.5
"""Share of answers given before the task can have been read."""
COPY_SIGNIFICANCE = 0.01
"""Bound on the honest people who seem to copy, all comparisons together; far fewer do."""
RANDOM_SIGNIFICANCE = 0.001
"""Honest people who seem to answer at random."""
CHANCE = 0.55
"""Agreement with the others up to which somebody may have answered at random."""
COPY_SHARES = (0.99, 0.9)
"""Of the answers of somebody else that a copier takes over; both are tried."""
GOLD_LOG_ODDS = 3.5
"""Of gold being right: 97 %."""
MOST_CAREFUL = 0.96
"""2 P(right) - 1 of the most careful people: right 98 % of the time."""
CARE_WEIGHT = 5.0
"""Labels with a certain truth that this assumption is worth."""
ANSWERED_LATER = 0.8
"""Share of the shared units on which a copier came second."""


@dataclass(frozen=True)
class Answer:
    """One person's verdict on one pair, with what the screen and the clock saw."""

    unit: str
    annotator: str
    value: float
    """1 for the first completion, 0 for the second, 0.5 for a tie, whichever side they were on."""
    side: Literal["left", "right"] | None
    """Which side won on the screen; None for a tie."""
    at_ms: int
    """When it was given."""
    active_ms: float
    least_ms: float
    """What reading takes: `reading_ms`."""
    gold: bool | None = None
    """Whether it is the known answer; None where none is known."""


@dataclass(frozen=True)
class Flag:
    """A reason to look at somebody's answers."""

    annotator: str
    rule: Rule
    reason: str
    """What was seen, in words that the person can be shown."""


def flags(answers: Sequence[Answer]) -> tuple[Flag, ...]:
    """All flags on these answers, person by person; too few answers give none. A person answers a unit once."""
    shared = _shared(answers)
    of: dict[str, list[Answer]] = defaultdict(list)
    for one in answers:
        of[one.annotator].append(one)
    found = []
    for number, name in enumerate(shared.names):
        reasons: dict[Rule, str | None] = {
            "gold": _gold(of[name]),
            "one_side": _one_side(of[name]),
            "too_fast": _too_fast(of[name]),
            "copies": _copies(number, shared),
            "random": _random(number, shared),
        }
        found += [Flag(name, rule, reason) for rule, reason in reasons.items() if reason]
    return tuple(found)


def gold_limit(n: int) -> int:
    """The largest number of right answers among `n` gold ones that is flagged; -1 where none is."""
    from scipy import stats

    if n < GOLD_LABELS:
        return -1
    limit = int(stats.binom.ppf(GOLD_ERROR, n, GOLD_ACCURACY))
    return limit if stats.binom.cdf(limit, n, GOLD_ACCURACY) <= GOLD_ERROR else limit - 1


def _gold(given: Sequence[Answer]) -> str | None:
    known = [one.gold for one in given if one.gold is not None]
    right = sum(known)
    if right > gold_limit(len(known)):
        return None
    return f"{right} of {len(known)} gold answers right; careful people get {GOLD_ACCURACY:.0%}"


def _one_side(given: Sequence[Answer]) -> str | None:
    sides = [one.side for one in given if one.side]
    if len(sides) < SCREEN_LABELS:
        return None
    side = max(("left", "right"), key=sides.count)
    often = sides.count(side)
    return f"took the {side} side {often} of {len(sides)} times" if often >= ONE_SIDE * len(sides) else None


def _too_fast(given: Sequence[Answer]) -> str | None:
    if len(given) < SCREEN_LABELS:
        return None
    fast = sum(one.active_ms < one.least_ms for one in given)
    return (
        f"answered {fast} of {len(given)} tasks before they can be read"
        if fast >= TOO_FAST * len(given)
        else None
    )


# --- people beside each other ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """What K people said about the same N units; ties count as nothing said."""

    names: list[str]
    signs: np.ndarray  # [N, K], 1 for the first completion, -1 for the second
    when: np.ndarray  # [N, K] milliseconds
    known: np.ndarray  # [N], the side that gold gives; 0 where none is known
    both: np.ndarray  # [K, K] units that both judged
    alike: np.ndarray  # [K, K] of which they said the same


def _shared(answers: Sequence[Answer]) -> _Shared:
    names, name_of = indexed([one.annotator for one in answers])
    units, unit_of = indexed([one.unit for one in answers])
    signs = np.zeros((len(units), len(names)))
    signs[unit_of, name_of] = [2 * one.value - 1 for one in answers]
    when = np.zeros((len(units), len(names)), dtype=np.int64)
    when[unit_of, name_of] = [one.at_ms for one in answers]
    known = np.zeros(len(units))
    for unit, one in zip(unit_of, answers, strict=True):
        if one.gold is not None and one.value != 0.5:
            known[unit] = (2 * one.value - 1) * (1 if one.gold else -1)
    judged = np.abs(signs)
    both = judged.T @ judged
    alike = (both + signs.T @ signs) / 2
    np.fill_diagonal(both, 0)
    np.fill_diagonal(alike, 0)
    return _Shared(names, signs, when, known, both, alike)


def _rate(shared: _Shared, rows: Sequence[int], columns: Sequence[int]) -> float | None:
    """Share of units on which two sets of people said the same; None where they share too few."""
    block = np.ix_(rows, columns)
    n = float(shared.both[block].sum())
    return float(shared.alike[block].sum()) / n if n >= SCREEN_LABELS else None


def _random(a: int, shared: _Shared) -> str | None:
    from scipy import stats

    others = [number for number in range(len(shared.names)) if number != a]
    mine, theirs = _rate(shared, [a], others), _rate(shared, others, others)
    if mine is None or theirs is None or mine > CHANCE:
        return None
    # a unit that ten others judged is one answer of this person, not ten
    n = int(shared.both[a].max())
    if stats.binom.cdf(round(mine * n), n, theirs) >= RANDOM_SIGNIFICANCE:
        return None
    return f"agrees with others {mine:.0%} of the time, others among themselves {theirs:.0%}"


def _copies(a: int, shared: _Shared) -> str | None:
    """Somebody whose answers this person gave after them, also where everybody else said something else."""
    partners = np.flatnonzero(shared.both[a] >= SCREEN_LABELS).tolist()
    for b in partners:
        n, alike = shared.both[a, b], shared.alike[a, b]
        together = (shared.signs[:, a] * shared.signs[:, b]) != 0  # [N]
        later = int(((shared.when[:, a] > shared.when[:, b]) & together).sum())
        if later < ANSWERED_LATER * n:
            continue
        # a likelihood ratio of 1 / p comes up with probability p at most
        if _copied(a, b, shared) >= math.log(len(partners) / COPY_SIGNIFICANCE):
            return f"gave the answer of one other person {alike:.0f} of {n:.0f} times, after them and against the rest"
    return None


def _copied(a: int, b: int, shared: _Shared) -> float:
    """Log of how much likelier a's answers are if a copies b than if both judge for themselves.

    What the others and gold say of a unit gives the odds of its truth, b's answer adds to them, and a agrees with b as
    often as the truth and a's own reliability make it.
    """
    mine, other = shared.signs[:, a], shared.signs[:, b]
    evidence = (
        _votes_log_odds(shared) * (shared.signs.sum(1) - mine - other) + GOLD_LOG_ODDS * shared.known
    )  # [N]
    certainty = np.tanh(evidence / 2)
    x_mine, x_other = (_reliability(signs, certainty) for signs in (mine, other))
    believed = np.tanh((evidence * other + 2 * math.atanh(x_other)) / 2)  # [N], 2 P(b is right) - 1
    agrees = (1 + believed * x_mine) / 2
    together = mine * other
    log_ratios = [
        np.log(np.where(together > 0, share / agrees, (1 - share) / (1 - agrees)))[together != 0].sum()
        for share in COPY_SHARES
    ]
    return float(np.logaddexp.reduce(log_ratios)) - math.log(len(COPY_SHARES))


def _votes_log_odds(shared: _Shared) -> float:
    """What one person's vote is worth, if all err alike."""
    n = shared.both.sum()
    x = math.sqrt(max(2 * shared.alike.sum() / n - 1, 0.0)) if n else 0.0
    return 2 * math.atanh(min(x, MOST_CAREFUL))


def _reliability(signs: np.ndarray, certainty: np.ndarray) -> float:
    """2 P(right) - 1 of one person against what is believed without them, drawn towards the most careful people.

    With little to go by, agreement is put down to care rather than to copying.
    """
    judged = signs != 0
    weight = float((certainty[judged] ** 2).sum())
    x = (float(signs @ certainty) + MOST_CAREFUL * CARE_WEIGHT) / (weight + CARE_WEIGHT)
    return min(max(x, 0.0), MOST_CAREFUL)
