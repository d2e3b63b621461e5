"""Intervals, paired comparisons, calibration and summary figures of samples. Pure functions on numbers and texts."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np

CALIBRATION_BINS = 10
"""Of equal width, from a stated probability of one half to 1."""


class Interval(TypedDict):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(
    values: Sequence[float], *, confidence: float, resamples: int, seed: int = 0
) -> Interval | None:
    """Mean and percentile bootstrap interval over `values`; None when there are none.

    For a paired comparison give the per-prompt differences. One value, or equal values, have an interval of width 0.
    """
    from scipy import stats

    if not values:
        return None
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    low = high = mean
    if len(data) > 1 and float(data.std()) > 0:
        result = stats.bootstrap(
            (data,),
            np.mean,
            n_resamples=resamples,
            batch=max(1, 2_000_000 // len(data)),
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        low, high = map(float, result.confidence_interval)
    return {"mean": round(mean, 6), "low": round(low, 6), "high": round(high, 6), "n": len(data)}


def clustered_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float,
    resamples: int,
    seed: int = 0,
) -> Interval | None:
    """Mean over `values` with a bootstrap interval that resamples whole clusters; None when there are none.

    Pairs of one prompt are not independent: give the prompts as clusters. Where no cluster has two values this is
    `mean_interval`.
    """
    from scipy import stats

    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    if len(names) == len(values):
        return mean_interval(values, confidence=confidence, resamples=resamples, seed=seed)
    places = [names[name] for name in clusters]
    data = np.asarray(values, dtype=np.float64)
    totals = np.bincount(places, weights=data)  # [C] clusters
    counts = np.bincount(places)  # [C]
    mean = float(data.mean())
    low = high = mean
    if len(names) > 1 and float(data.std()) > 0:
        result = stats.bootstrap(
            (totals, counts),
            lambda total, count, axis: total.sum(axis) / count.sum(axis),
            paired=True,
            n_resamples=resamples,
            batch=max(1, 2_000_000 // len(names)),
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        low, high = map(float, result.confidence_interval)
    return {"mean": round(mean, 6), "low": round(low, 6), "high": round(high, 6), "n": len(data)}


@dataclass(frozen=True)
class StudentInterval:
    """A mean over a few independent runs, with the half width of Student's confidence interval."""

    mean: float
    half: float
    """Infinite for a single run, which says nothing about others."""
    n: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


def student_interval(values: Sequence[float], *, confidence: float) -> StudentInterval | None:
    """Mean and Student's t interval, for a handful of runs that are about normal; None when there are none.

    For a comparison that is paired by seed give the differences.
    """
    from scipy import stats

    if not values:
        return None
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return StudentInterval(mean, math.inf, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return StudentInterval(mean, float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error, n)


def wilson_interval(successes: float, n: int, *, confidence: float) -> Interval:
    """Share and Wilson score interval (Wilson 1927), for small counts; half successes are ties."""
    from scipy import stats

    z = float(stats.norm.ppf((1 + confidence) / 2))
    share, scale = successes / n, 1 + z**2 / n
    center = (share + z**2 / (2 * n)) / scale
    half_width = z / scale * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = max(0.0, center - half_width), min(1.0, center + half_width)
    return {"mean": round(share, 6), "low": round(low, 6), "high": round(high, 6), "n": n}


def wins(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """1 for a win, 0.5 for a tie, 0 for a loss, pair by pair."""
    return [0.5 if a == b else float(a > b) for a, b in zip(ours, theirs, strict=True)]


def by_prompt(prompt_ids: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Mean value of each prompt: prompts, not samples, are what an interval is taken over."""
    grouped: dict[str, list[float]] = {}
    for prompt_id, value in zip(prompt_ids, values, strict=True):
        grouped.setdefault(prompt_id, []).append(value)
    return {prompt_id: sum(one) / len(one) for prompt_id, one in grouped.items()}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of different n-grams of words among all n-grams of all texts; 0 without any."""
    grams = [
        tuple(words[i : i + n])
        for text in texts
        for words in [text.split()]
        for i in range(len(words) - n + 1)
    ]
    return round(len(set(grams)) / len(grams), 6) if grams else 0.0


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson correlation; None where one side does not vary."""
    if len(a) < 2 or np.std(a) == 0 or np.std(b) == 0:
        return None
    return round(float(np.corrcoef(a, b)[0, 1]), 6)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman correlation; None where one side does not vary."""
    from scipy import stats

    if len(a) < 2:
        return None
    return correlation(stats.rankdata(a).tolist(), stats.rankdata(b).tolist())


# --- two ways to order the same pairs --------------------------------------------------------------------------------

Direction = Literal["better", "not told apart", "worse"]
DIRECTIONS: dict[int, Direction] = {1: "better", 0: "not told apart", -1: "worse"}


@dataclass(frozen=True)
class Verdict:
    """How a new way to order pairs does beside an old one, on the same pairs."""

    difference: Interval
    """Of the shares ordered right, new minus old."""
    direction: Direction
    """Told apart only where the interval excludes 0 and the exact test agrees."""
    new_only: int
    """Pairs on which the new one did better."""
    old_only: int
    p_value: float
    """McNemar's exact test on the pairs on which the two differ."""
    tolerance: float
    not_worse: bool
    """Whether the new one may replace the old one, by the rule of `not_worse`."""


def not_worse(
    new_correct: Sequence[float],
    old_correct: Sequence[float],
    *,
    tolerance: float,
    confidence: float,
    resamples: int,
    clusters: Sequence[Hashable] | None = None,
) -> Verdict:
    """Compares two ways to order the same pairs; entries are 1 for right, 0.5 for a tie, 0 for wrong.

    The new one is not worse where it orders at least as large a share right as the old one, or where it loses less than
    `tolerance` beyond doubt: the lower end of the paired interval lies above -tolerance. So with a tolerance of 0 the
    share itself decides, and a larger tolerance never refuses what a smaller one lets pass. `clusters` are the prompts,
    where several pairs share one. Raises ValueError where there are no pairs.
    """
    changes = [new - old for new, old in zip(new_correct, old_correct, strict=True)]
    difference = clustered_interval(
        changes,
        range(len(changes)) if clusters is None else clusters,
        confidence=confidence,
        resamples=resamples,
    )
    if difference is None:
        raise ValueError("no pairs to compare on")
    new_only, old_only = sum(one > 0 for one in changes), sum(one < 0 for one in changes)
    p_value = mcnemar_p_value(new_only, old_only)
    # of a handful of pairs the bootstrap is too sure, and the test knows nothing of prompts: both must agree
    sure = p_value <= 1 - confidence
    side = sure * ((difference["low"] > 0) - (difference["high"] < 0))
    return Verdict(
        difference=difference,
        direction=DIRECTIONS[side],
        new_only=new_only,
        old_only=old_only,
        p_value=p_value,
        tolerance=tolerance,
        not_worse=difference["mean"] >= 0 or difference["low"] > -tolerance,
    )


def mcnemar_p_value(new_only: int, old_only: int) -> float:
    """McNemar's exact test, two-sided: could a fair coin have split the pairs on which two models differ like this?"""
    from scipy import stats

    differing = new_only + old_only
    return round(float(stats.binomtest(new_only, differing).pvalue), 6) if differing else 1.0


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float | None:
    """Agreement of two raters beyond chance (Cohen 1960); None where chance alone would make them agree always."""
    names = {name: place for place, name in enumerate(dict.fromkeys([*a, *b]))}
    table = np.zeros((len(names), len(names)))
    np.add.at(table, ([names[one] for one in a], [names[one] for one in b]), 1)
    kappa = float(kappa_of_tables(table[None])[0])
    return None if math.isnan(kappa) else round(kappa, 6)


def kappa_of_tables(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa [R] of tables [R, V, V] of how often one rater said the row and the other the column.

    nan where it is undefined.
    """
    total = tables.sum((1, 2))  # [R]
    observed = total * np.trace(tables, axis1=1, axis2=2)
    expected = (tables.sum(1) * tables.sum(2)).sum(1)
    # counts up to here, so that chance that always agrees is found exactly
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected == total**2, np.nan, (observed - expected) / (total**2 - expected))


# --- calibration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs on which about the same probability was stated."""

    low: float
    high: float
    stated: float
    """Mean probability that was given to the preferred side."""
    right: Interval
    """How often it was right, with its Wilson interval."""


@dataclass(frozen=True)
class Calibration:
    """Whether stated probabilities come true."""

    bins: tuple[CalibrationBin, ...]
    stated: float
    """Mean probability given to the preferred side."""
    expected_calibration_error: float
    """Mean distance of stated and right over the bins, weighted by their pairs (Guo et al. 2017, arXiv:1706.04599)."""
    brier: float
    """Mean squared distance of the stated probability from what happened; 0.25 for a coin."""
    log_loss: float
    """In nats; 0.693 for a coin."""
    temperature: float | None
    """Dividing all log-odds by it makes the log loss least; above 1 the model was too sure."""
    log_loss_at_temperature: float | None


def calibration(log_odds: Sequence[float], *, confidence: float) -> Calibration:
    """Calibration of pairwise preferences, from the log-odds that each gave to the side that people prefer.

    Score differences are log-odds, in the sense of Bradley and Terry. A pair is looked at from the side that the model
    prefers, so stated probabilities lie between one half and 1; ties are right one half of the time.
    """
    from scipy import special

    odds = np.asarray(log_odds, dtype=np.float64)  # [N]
    stated = special.expit(np.abs(odds))  # [N]
    right = (np.sign(odds) + 1) / 2  # [N], 1, 0.5 or 0
    width = 0.5 / CALIBRATION_BINS
    places = np.minimum((stated - 0.5) / width, CALIBRATION_BINS - 1).astype(int)  # [N]
    bins = tuple(
        CalibrationBin(
            low=round(0.5 + place * width, 6),
            high=round(0.5 + (place + 1) * width, 6),
            stated=round(float(stated[places == place].mean()), 6),
            right=wilson_interval(
                float(right[places == place].sum()), int((places == place).sum()), confidence=confidence
            ),
        )
        for place in np.unique(places).tolist()
    )
    error = sum(one.right["n"] * abs(one.stated - one.right["mean"]) for one in bins) / len(odds)
    temperature = fitted_temperature(log_odds)
    return Calibration(
        bins=bins,
        stated=round(float(stated.mean()), 6),
        expected_calibration_error=round(error, 6),
        brier=round(float(np.mean(special.expit(-odds) ** 2)), 6),
        log_loss=_log_loss(odds, 1.0),
        temperature=temperature,
        log_loss_at_temperature=None if temperature is None else _log_loss(odds, temperature),
    )


def fitted_temperature(log_odds: Sequence[float]) -> float | None:
    """The temperature at which sigmoid(log_odds / T) has the least log loss: logistic regression on one slope, 1 / T.

    None where no positive temperature is best: the order is right always, or no better than reversed.
    """
    from scipy import optimize, special

    odds = np.asarray(log_odds, dtype=np.float64)
    if odds.mean() <= 0 or odds.min() >= 0:
        return None

    def gradient(slope: float) -> float:
        return -float(np.mean(odds * special.expit(-slope * odds)))

    steep = 1 / float(np.abs(odds).mean())
    while gradient(steep) < 0:
        steep *= 2
    return round(1 / optimize.root_scalar(gradient, bracket=(0.0, steep)).root, 6)


def _log_loss(odds: np.ndarray, temperature: float) -> float:
    return round(float(np.logaddexp(0, -odds / temperature).mean()), 6)
