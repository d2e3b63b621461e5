"""Objectives as linear functions of features: ridge regression on ratings, and correction for a preference for length.

N rated completions, D features, M objectives. ArmoRM, arXiv:2406.12845, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefloop.statistics import rank_correlation

ALPHAS = tuple(10.0**power for power in range(-4, 5))
"""Strengths of the ridge that are tried."""
TRAINING_SHARE = 0.8
"""Of the rated completions; the others choose the strength."""
STEP = 0.01
LARGEST = 2.0
"""Corrections are looked for from 0 outwards in these steps, up to this."""


@dataclass(frozen=True)
class Probe:
    """One objective."""

    weights: np.ndarray
    """[D]"""
    alpha: float
    held_out_error: float
    """Mean squared error on the ratings that chose alpha, in units of their variance."""


def ridge_probe(features: np.ndarray, ratings: np.ndarray, *, seed: int) -> Probe:
    """Ridge regression without intercept from features [N, D] to ratings [N], its strength chosen on a fifth of the rows."""
    order = np.random.default_rng(seed).permutation(len(ratings))
    number = max(1, round(TRAINING_SHARE * len(ratings)))
    training, held_out = order[:number], order[number:]
    if not len(held_out):
        held_out = training
    fits = dict(zip(ALPHAS, ridge(features[training], ratings[training], ALPHAS), strict=True))
    errors = {
        alpha: float(np.mean((features[held_out] @ weights - ratings[held_out]) ** 2))
        for alpha, weights in fits.items()
    }
    alpha = min(errors, key=lambda one: errors[one])
    (weights,) = ridge(features, ratings, (alpha,))
    variance = float(np.var(ratings[held_out])) or 1.0
    return Probe(weights, alpha, errors[alpha] / variance)


def ridge(features: np.ndarray, ratings: np.ndarray, alphas: Sequence[float]) -> list[np.ndarray]:
    """Weights [D] for each strength: the minimum of |features w - ratings|² + alpha |w|²."""
    left, singular, right = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    onto = left.T @ ratings
    return [right.T @ (singular / (singular**2 + alpha) * onto) for alpha in alphas]


def corrections(scores: np.ndarray, place: int, *, max_correlation: float) -> tuple[np.ndarray, list[float]]:
    """The matrix [M, M] that takes the objective at `place` out of scores [N, M], and the rank correlations that are left.

    Each other objective loses so much of it, the least that will do, that the Spearman correlation of the two is at most
    `max_correlation`; the one at `place` becomes 0. Scores have mean 0 and deviation 1.
    """
    verbosity = scores[:, place]
    matrix = np.eye(scores.shape[1])
    left = []
    for number in range(scores.shape[1]):
        amount, correlation = (1.0, 0.0)
        if number != place:
            amount, correlation = correction(scores[:, number], verbosity, max_correlation=max_correlation)
        matrix[place, number] -= amount
        left.append(correlation)
    return matrix, left


def correction(scores: np.ndarray, verbosity: np.ndarray, *, max_correlation: float) -> tuple[float, float]:
    """How much of `verbosity` to take from scores, and the rank correlation that is left."""

    def left(amount: float) -> float:
        return rank_correlation((scores - amount * verbosity).tolist(), verbosity.tolist()) or 0.0

    sign = 1.0 if left(0.0) > 0 else -1.0
    tried: dict[float, float] = {}
    for number in range(round(LARGEST / STEP) + 1):
        amount = sign * number * STEP
        tried[amount] = left(amount)
        if abs(tried[amount]) <= max_correlation:
            return amount, tried[amount]
    best = min(tried, key=lambda one: abs(tried[one]))
    return best, tried[best]
