"""Logistic regression without intercept on soft labels, by Newton's method: small, deterministic, numpy only."""

import numpy as np

RIDGE = 1e-6
STEPS, SMALLEST_STEP = 100, 1e-10
LONGEST_STEP = 5.0
"""A whole Newton step from where nearly all is decided overshoots; longer ones are cut to this."""


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    ridge: float = RIDGE,
    start: np.ndarray | None = None,
    offset: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Coefficients [d] of features [n, d], labels from 0 to 1 [n] and weights [n], 1 each where left out.

    `offset` [n] is added to the log-odds: what is known already.
    """
    found = np.zeros(features.shape[1]) if start is None else start.copy()
    each = np.ones(len(labels)) if weights is None else weights
    penalty = ridge * np.eye(len(found))
    for _ in range(STEPS):
        predicted = sigmoid(features @ found + offset)
        gradient = features.T @ (each * (predicted - labels)) + ridge * found
        curvature = (features.T * (each * predicted * (1 - predicted))) @ features + penalty
        step = np.linalg.solve(curvature, gradient)
        longest = np.abs(step).max(initial=0.0)
        found -= step * min(1.0, LONGEST_STEP / longest) if longest else step
        if longest < SMALLEST_STEP:
            break
    return found


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(values / 2))
