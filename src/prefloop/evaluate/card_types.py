"""What a reward card consists of: frozen values. `reward_card` computes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from prefloop.statistics import Calibration, Interval, Verdict

Kind = Literal["scalar", "pairwise"]
Baseline = Literal["longer", "shorter"]
P_LIMIT = 1e-6
"""Probabilities are kept this far from 0 and 1, so that their log-odds are finite."""


@dataclass(frozen=True)
class Opinion:
    """What a model said about each pair, in the order of the pairs."""

    model: str
    kind: Kind
    values: tuple[tuple[float, float], ...]
    """`scalar`: the scores of chosen and rejected. `pairwise`: P(the one shown first is better) with the chosen shown
    first, and with the rejected shown first."""

    def log_odds(self) -> list[float]:
        """Of each pair, the log-odds that chosen is better: score difference, or logit of the mean over both orders."""
        if self.kind == "scalar":
            return [chosen - rejected for chosen, rejected in self.values]
        p_chosen = [(first + 1 - second) / 2 for first, second in self.values]
        return special.logit(np.clip(p_chosen, P_LIMIT, 1 - P_LIMIT)).tolist()


@dataclass(frozen=True)
class Bucket:
    """Pairs that have something in common."""

    name: str
    right: Interval
    stated: float
    """Mean probability that the model gives to the side it prefers; equal to `right` where it is calibrated."""
    ties: int


@dataclass(frozen=True)
class Breakdown:
    """Pairs by one of their properties."""

    name: str
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class LengthCheck:
    """Whether the model does more than look at length, in characters."""

    longer: Interval
    """How often the longer completion is the chosen one; equal lengths count one half."""
    shorter: Interval
    stronger: Baseline
    """The better of the two on these pairs."""
    verdict: Verdict
    """The model against it."""
    prefers_longer: Interval | None
    """How often the model prefers the longer completion, where lengths and scores differ."""
    correlation: float | None
    """Spearman correlation of score and length over all completions; None for a model that only compares."""
    correlation_within: float | None
    """The same of score difference and length difference over pairs, which is free of the prompt's influence."""


@dataclass(frozen=True)
class Histogram:
    """Two samples in the same bins."""

    name: str
    edges: tuple[float, ...]
    shares: Mapping[str, tuple[float, ...]]
    means: Mapping[str, float]


@dataclass(frozen=True)
class PositionCheck:
    """Whether a pairwise model judges the completions or their places."""

    agree: Interval
    """Share of pairs on which both orders prefer the same completion."""
    inconsistency: float
    """Mean of |p(a, b) + p(b, a) - 1|; 0 where the order does not matter."""
    first_bias: Interval
    """Mean P(the one shown first is better) over both orders, minus one half."""
    first_share: float
    """Share of single-order verdicts for the one shown first."""
    right_chosen_first: Interval
    right_chosen_second: Interval


@dataclass(frozen=True)
class Shift:
    """How scores moved from one scalar model to the next; their zero and unit mean nothing by themselves."""

    mean: float
    sd_new: float
    sd_old: float
    rank_correlation: float | None


@dataclass(frozen=True)
class PreviousCheck:
    """The model beside an earlier one on the same pairs."""

    model: str
    kind: Kind
    accuracy: Interval
    ties: int
    agree: Interval
    """Share of pairs on which both prefer the same completion."""
    kappa: float | None
    """Cohen's kappa of right, tie and wrong: 0 where the two err independently, 1 where on the same pairs."""
    verdict: Verdict
    shift: Shift | None
    """None unless both give scores."""
    gained: tuple[str, ...]
    """Ids of pairs on which the new model does better."""
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Mistake:
    """A pair that the model orders the other way, and how sure it was."""

    pair_id: str
    prompt: str
    chosen: str
    rejected: str
    stated: float
    """The probability that it gives to the rejected completion."""
    values: tuple[float, float]


@dataclass(frozen=True)
class Probe:
    """Answers that say nothing of the request, against the chosen ones of some prompts."""

    name: str
    text: str
    preferred: Interval
    """How often the model prefers it; equal values count one half. It should be never."""


@dataclass(frozen=True)
class RewardCard:
    """Everything that was measured."""

    model: str
    kind: Kind
    confidence: float
    num_pairs: int
    num_prompts: int
    ties: int
    accuracy: Interval
    """Share of pairs ordered as labelled; ties count one half."""
    length: LengthCheck
    calibration: Calibration
    breakdowns: tuple[Breakdown, ...]
    histogram: Histogram
    position: PositionCheck | None
    """Of pairwise models."""
    previous: PreviousCheck | None
    mistakes: tuple[Mistake, ...]
    probes: tuple[Probe, ...] = ()
