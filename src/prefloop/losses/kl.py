"""Estimators of KL(p ‖ q) from samples of p, by the names of Schulman 2020 (joschu.net/blog/kl-approx.html).

Each takes log p and log q of the sampled tokens or sequences, of any one shape, and returns one value an item.
"""

import torch
from torch import Tensor


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
