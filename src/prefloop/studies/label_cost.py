"""How many labels an arm needs to come as far as the baseline does with all of its own. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefloop.studies.definition import ONLY, Study
from prefloop.studies.measuring import Found

Curve = np.ndarray
"""A figure along the loop. [2, points]: labels spent, and the figure's mean over seeds."""
DRAWS = 2000
"""Samples of seeds, with replacement."""


@dataclass(frozen=True)
class LabelCost:
    """What it takes an arm in a setting to reach the baseline's last mean of a figure."""

    course: str
    setting: str
    arm: str
    level: float
    """That is to be reached."""
    labels: float | None
    """When the arm's mean over seeds first reaches it, on straight lines between evaluations; None: it never does."""
    baseline_labels: float
    """When the baseline's does, by the same rule."""
    ratio: float | None
    """Of the two; below 1 the arm needs fewer."""
    low: float | None
    high: float | None
    """Percentile bootstrap over seeds, the level included; None stands for never. Of few seeds it is too narrow."""
    n: int
    """Seeds that both have."""


def label_costs(study: Study, arms: Sequence[str], found: Sequence[Found]) -> list[LabelCost]:
    """Of every course against labels, in every setting, of every arm but the baseline."""
    if study.baseline is None:
        return []
    costs = []
    for course in study.courses:
        if course.against != "labels":
            continue
        for setting in study.settings or [ONLY]:
            curves = {arm: _by_seed(found, course.name, setting, arm) for arm in arms}
            theirs = curves.get(study.baseline, {})
            for arm, ours in curves.items():
                seeds = [seed for seed in ours if seed in theirs]
                if arm != study.baseline and seeds:
                    both = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
                    costs.append(_cost(course.name, setting, arm, *both, confidence=study.confidence))
    return costs


def _by_seed(found: Sequence[Found], course: str, setting: str, arm: str) -> Mapping[int, Curve]:
    return {
        one.seed: np.array(one.courses[course]).T
        for one in found
        if (one.setting, one.arm) == (setting, arm) and one.courses[course]
    }


def _cost(
    course: str, setting: str, arm: str, ours: Sequence[Curve], theirs: Sequence[Curve], *, confidence: float
) -> LabelCost:
    a, b = _stacked(ours), _stacked(theirs)
    n = len(a)
    rng = np.random.default_rng(0)
    ratios = []
    for rows in rng.integers(n, size=(DRAWS, n)):
        mean = b[rows].mean(axis=0)
        ratios.append(labels_to_reach(a[rows].mean(axis=0), mean[1, -1]) / labels_to_reach(mean, mean[1, -1]))
    # an observed value, since there is nothing between a number and never
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    mean = b.mean(axis=0)
    level = float(mean[1, -1])
    labels, baseline = labels_to_reach(a.mean(axis=0), level), labels_to_reach(mean, level)
    return LabelCost(
        course,
        setting,
        arm,
        level,
        _known(labels),
        baseline,
        ratio=_known(labels / baseline),
        low=_known(low),
        high=_known(high),
        n=n,
    )


def _stacked(curves: Sequence[Curve]) -> np.ndarray:
    """[seeds, 2, points]: as many points as all have."""
    points = min(one.shape[1] for one in curves)
    return np.stack([one[:, :points] for one in curves])


def labels_to_reach(curve: Curve, level: float) -> float:
    """Labels at which a curve first is at a level, infinite where it never is."""
    x, y = curve
    reached = np.flatnonzero(y >= level)
    if not len(reached):
        return float("inf")
    at = reached[0]
    if at == 0:
        return float(x[0])
    share = (level - y[at - 1]) / (y[at] - y[at - 1])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
