"""How well the reward model of a round foresaw what people say: accuracy, calibration, a reliability diagram.

With how old what they judged was, these are the figures of a round that take time to compute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from prefloop.labels import oversight
from prefloop.labels.values import p_a_of
from prefloop.statistics import clustered_interval, wilson_interval

BINS = 10
CONFIDENCE = 0.95
RESAMPLES = 1000
ALMOST = 1e-12


@dataclass(frozen=True)
class Bin:
    """Judgements for which the reward model stated about the same probability."""

    low: float
    high: float
    stated: float
    """Mean probability that the first completion is better."""
    said: float
    """Share of people who chose it; a tie is half."""
    said_low: float
    said_high: float
    """Wilson interval."""
    n: int


@dataclass(frozen=True)
class Accuracy:
    """How often people chose what the reward model preferred."""

    value: float
    low: float
    high: float
    """Bootstrap over prompts."""
    n: int


@dataclass(frozen=True)
class RewardReport:
    """The reward model against the people of a round."""

    accuracy: Accuracy | None
    """On choices; ties and both bad say nothing."""
    at_random: Accuracy | None
    """The same on tasks that were drawn by chance alone: a selection that looks for doubt lowers the other one."""
    calibration_error: float | None
    """Mean distance of stated and said over the bins, weighted by their judgements (Guo et al. 2017, arXiv:1706.04599)."""
    brier: float | None
    bins: tuple[Bin, ...]
    n: int
    """Choices and ties."""


@dataclass(frozen=True)
class RoundFigures:
    """What is computed of all judgements of a round."""

    report: RewardReport
    ages: Mapping[int, int]
    """Judgements by how many policy versions old what they are about is."""


def round_figures(connection: sa.Connection, project_id: str, round_id: str) -> RoundFigures:
    """From the store as it is."""
    report = reward_report(oversight.reward_verdicts(connection, round_id))
    return RoundFigures(report, oversight.label_ages(connection, project_id, round_id))


def reward_report(verdicts: Sequence[sa.Row[Any]]) -> RewardReport:
    """From rows with prompt_id, task_id, choice, reward_p and strategy."""
    said = [(one, p_first) for one in verdicts if (p_first := p_a_of({"choice": one.choice})) is not None]
    if not said:
        return RewardReport(None, None, None, None, (), 0)
    stated = np.array([one.reward_p for one, _ in said], dtype=np.float64)
    truth = np.array([p_first for _, p_first in said], dtype=np.float64)
    bins = _bins(stated, truth)
    error = sum(one.n * abs(one.stated - one.said) for one in bins) / len(said)
    return RewardReport(
        _accuracy(said),
        _accuracy([(one, p_first) for one, p_first in said if one.strategy == "random"]),
        round(error, 6),
        round(float(np.mean((stated - truth) ** 2)), 6),
        bins,
        len(said),
    )


def _accuracy(said: Sequence[tuple[sa.Row[Any], float]]) -> Accuracy | None:
    decided = [(one, p_first) for one, p_first in said if p_first != 0.5]
    right = [
        0.5 if one.reward_p == 0.5 else float((one.reward_p > 0.5) == (p_first > 0.5))
        for one, p_first in decided
    ]
    found = clustered_interval(
        right,
        [one.prompt_id or one.task_id for one, _ in decided],
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
    )
    return None if found is None else Accuracy(found["mean"], found["low"], found["high"], int(found["n"]))


def _bins(stated: np.ndarray, truth: np.ndarray) -> tuple[Bin, ...]:
    # a probability of 0.3 is written 0.30000000000000004 by some
    places = np.clip(np.floor(stated * BINS + ALMOST), 0, BINS - 1).astype(int)
    found = []
    for place in np.unique(places).tolist():
        inside = places == place
        share = wilson_interval(float(truth[inside].sum()), int(inside.sum()), confidence=CONFIDENCE)
        found.append(
            Bin(
                place / BINS,
                (place + 1) / BINS,
                round(float(stated[inside].mean()), 6),
                share["mean"],
                share["low"],
                share["high"],
                int(inside.sum()),
            )
        )
    return tuple(found)
