"""KL(p ‖ q): estimators from samples of p, by the names of Schulman 2020 (joschu.net/blog/kl-approx.html); the KL itself;
and how its weight is controlled.

An estimator takes log p and log q of the sampled tokens or sequences, of any one shape, and returns one value an item.
"Unbiased" is said of values. As a loss, the gradient of k1 vanishes on average, that of k2 is the gradient of KL(p ‖ q),
that of k3 the gradient of KL(q ‖ p) (arXiv:2506.09477).
"""

import torch
from torch import Tensor

LARGEST_ERROR = 0.2
"""Relative error of the KL that a controller reacts to at most."""


def kl_k1(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The unbiased estimator log p - log q; may be negative for single samples."""
    return logps - reference_logps


def kl_k2(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The biased, never negative, low-variance estimator (log p - log q)² / 2; its gradient is that of KL(p ‖ q)."""
    return (logps - reference_logps) ** 2 / 2


def kl_k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The unbiased, never negative, low-variance estimator r - 1 - log r with r = q / p."""
    log_ratio = reference_logps - logps
    return torch.expm1(log_ratio) - log_ratio


def categorical_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(p ‖ q) itself, of next-token distributions: logits [..., V] to [...]."""
    logps, reference_logps = logits.float().log_softmax(-1), reference_logits.float().log_softmax(-1)
    return (logps.exp() * (logps - reference_logps)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of next-token distributions in nats: logits [..., V] to [...]."""
    logps = logits.float().log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float, gain: float) -> float:
    """The next batch's weight of the KL, from this batch's mean KL of a completion: section 2.2 of arXiv:1909.08593.

    Follows the relative error, cut at 0.2 either way. The paper has gain 0.1 a batch; its code has completions a batch /
    10,000. A fixed weight is gain 0.
    """
    error = min(max((kl - target) / target, -LARGEST_ERROR), LARGEST_ERROR)
    return kl_coef * (1 + gain * error)
