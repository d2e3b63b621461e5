"""One soft label out of several verdicts, and how noisy a verdict is."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefloop.agreement.types import Rating

LEAST_RELIABLE, MOST_RELIABLE = 0.01, 0.99
"""Nobody's word is taken for more, or for less."""


@dataclass(frozen=True)
class SoftLabel:
    """What several people together say about a pair."""

    unit: str
    p_first: float
    """Probability that the first completion is the better one."""
    num_votes: int
    annotator_weights: dict[str, float]
    """By person, adding up to 1."""


def vote_shares(ratings: Sequence[Rating]) -> tuple[SoftLabel, ...]:
    """Every person counts the same; ties count one half to each side. Values are 1, 0 or 0.5."""
    return tuple(
        SoftLabel(
            unit,
            round(sum(float(one.value) for one in votes) / len(votes), 6),
            len(votes),
            {one.annotator: round(1 / len(votes), 6) for one in votes},
        )
        for unit, votes in _by_unit(ratings).items()
    )


def weighted_votes(ratings: Sequence[Rating], reliabilities: Mapping[str, float]) -> tuple[SoftLabel, ...]:
    """Every person counts with the log-odds of being right: the posterior of one coin with even sides.

    Ties are votes that say nothing. People without a reliability count as one who guesses. Do not give reliabilities that
    rest on too few labels: `Reliability.reason` says which.
    """
    return tuple(_weighted(unit, votes, reliabilities) for unit, votes in _by_unit(ratings).items())


def _weighted(unit: str, votes: Sequence[Rating], reliabilities: Mapping[str, float]) -> SoftLabel:
    odds = {one.annotator: _log_odds(reliabilities.get(one.annotator, 0.5)) for one in votes}
    total = sum((2 * float(one.value) - 1) * odds[one.annotator] for one in votes)
    size = sum(abs(one) for one in odds.values())
    weights = {
        name: round(abs(one) / size, 6) if size else round(1 / len(odds), 6) for name, one in odds.items()
    }
    return SoftLabel(unit, round(1 / (1 + math.exp(-total)), 6), len(votes), weights)


def _log_odds(probability: float) -> float:
    kept = min(max(probability, LEAST_RELIABLE), MOST_RELIABLE)
    return math.log(kept / (1 - kept))


def _by_unit(ratings: Sequence[Rating]) -> dict[str, list[Rating]]:
    by_unit: dict[str, list[Rating]] = defaultdict(list)
    for one in ratings:
        by_unit[one.unit].append(one)
    return by_unit


# --- noise -----------------------------------------------------------------------------------------------------------


def error_rate(agreement: float) -> float | None:
    """The epsilon with which verdicts are flipped, if two people agree this often and both err alike, independently.

    Solves agreement = epsilon^2 + (1 - epsilon)^2. Differences of taste count as errors, so it is an upper bound. None
    below one half, where no error rate does that.
    """
    return (1 - math.sqrt(2 * agreement - 1)) / 2 if agreement >= 0.5 else None


def smoothed(probability: float, error: float) -> float:
    """What people would say whose verdicts are flipped with probability `error`: (1 - 2 error) p + error."""
    return (1 - 2 * error) * probability + error
