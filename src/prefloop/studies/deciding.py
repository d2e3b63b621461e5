"""From the numbers of runs to intervals over seeds, and from intervals to verdicts. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prefloop.statistics import StudentInterval, student_interval
from prefloop.studies.definition import ONLY, Criterion, Study
from prefloop.studies.measuring import Found

Outcome = Literal["held", "not held", "cannot be told"]


@dataclass(frozen=True)
class Decision:
    """What became of a claim in one arm and setting."""

    criterion: Criterion
    setting: str
    arm: str
    interval: StudentInterval | None
    """None where no seed has what it takes."""
    outcome: Outcome


def decisions_of(study: Study, found: Sequence[Found]) -> list[Decision]:
    """Every claim in every setting and arm that it is made of."""
    return [
        Decision(one, setting, arm, interval, outcome(interval, above=one.above, below=one.below))
        for one in study.criteria
        for setting in study.settings or [ONLY]
        for arm in ([one.arm] if one.arm else [name for name in study.arms if name not in one.subtracted])
        for interval in [
            estimate(found, one.measure, setting, arm, minus=one.subtracted, confidence=study.confidence)
        ]
    ]


def estimate(
    found: Sequence[Found],
    measure: str,
    setting: str,
    arm: str,
    *,
    minus: Sequence[str] = (),
    confidence: float,
) -> StudentInterval | None:
    """Mean of a measure over seeds, or of its difference from the mean of other arms over the seeds that all have."""
    ours = _by_seed(found, measure, setting, arm)
    others = [_by_seed(found, measure, setting, one) for one in minus]
    differences = [
        value - (sum(one[seed] for one in others) / len(others) if others else 0.0)
        for seed, value in ours.items()
        if all(seed in one for one in others)
    ]
    return student_interval(differences, confidence=confidence)


def _by_seed(found: Sequence[Found], measure: str, setting: str, arm: str) -> dict[int, float]:
    return {one.seed: one.values[measure] for one in found if (one.setting, one.arm) == (setting, arm)}


def outcome(
    interval: StudentInterval | None, *, above: float | None = None, below: float | None = None
) -> Outcome:
    """Held where the whole interval is on the claim's side of the bound, not held where it is on the other."""
    if interval is None:
        return "cannot be told"
    if above is not None:
        sides = interval.low > above, interval.high < above
    else:
        assert below is not None, "a criterion has one of the two"
        sides = interval.high < below, interval.low > below
    return "held" if sides[0] else "not held" if sides[1] else "cannot be told"
