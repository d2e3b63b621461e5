"""Intervals and summary figures of samples. Pure functions on numbers and texts."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy import stats


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
