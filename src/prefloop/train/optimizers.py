"""Optimisers, learning-rate schedules, and the moving average of the weights.

Knows what `OptimizerSection` says about them; knows nothing about models, data or files.
"""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from prefloop.config import OptimizerSection
from prefloop.interfaces import InputError


def make_optimizer(weights: Mapping[str, nn.Parameter], options: OptimizerSection) -> torch.optim.Optimizer:
    """The configured optimiser of weights by name. Raises InputError where it needs a package that is not installed."""
    rate, decay = options.learning_rate, options.weight_decay
    parts = _by_rate(weights, options)
    match options.optimizer:
        case "adamw":
            return torch.optim.AdamW(parts, lr=rate, betas=options.adam_betas, weight_decay=decay, fused=True)
        case "adafactor":
            return torch.optim.Adafactor(parts, lr=rate, weight_decay=decay)
        case "adamw_8bit":
            require_bitsandbytes("optimizer: adamw_8bit")
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(parts, lr=rate, betas=options.adam_betas, weight_decay=decay)


def _by_rate(weights: Mapping[str, nn.Parameter], options: OptimizerSection) -> list[dict[str, Any]]:
    """The weights in parts with learning rates of their own, in the order of the weights."""
    rates = options.rates_by_prefix
    parts: dict[float | None, list[nn.Parameter]] = {}
    for name, weight in weights.items():
        rate = next((rate for prefix, rate in rates.items() if name.startswith(prefix)), None)
        parts.setdefault(rate, []).append(weight)
    return [{"params": part} | ({} if rate is None else {"lr": rate}) for rate, part in parts.items()]


def require_bitsandbytes(key: str) -> None:
    """Raises InputError where `key` asks for bitsandbytes and it is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{key} needs bitsandbytes; pip install 'prefloop[bitsandbytes]'")


def make_schedule(optimizer: torch.optim.Optimizer, options: OptimizerSection, *, steps: int) -> LRScheduler:
    """The configured learning-rate schedule: a linear warm-up from 0, then down to the end of the last step.

    The last step is never one of the warm-up: a single one would change nothing.
    """
    warmup = min(math.ceil(options.warmup_ratio * steps), steps - 1)

    def share(step: int) -> float:
        if step < warmup:
            return step / warmup
        return _after_warmup(options, (step - warmup) / max(1, steps - warmup))

    return LambdaLR(optimizer, share)


def _after_warmup(options: OptimizerSection, progress: float) -> float:
    """The share of the learning rate at a progress from 0 to 1."""
    match options.schedule:
        case "constant":
            return 1.0
        case "linear":
            return max(0.0, 1 - progress)
        case "cosine":
            least = options.min_learning_rate_ratio
            return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)) * (1 - least) + least)


class Average:
    """Exponential moving average of weights, beginning with what they are now."""

    def __init__(self, weights: Mapping[str, nn.Parameter], *, decay: float) -> None:
        self._weights = weights
        self._decay = decay
        self.values = {name: weight.detach().clone() for name, weight in weights.items()}
        """By the weights' names."""

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after a step: decay * average + (1 - decay) * weights."""
        averages = [self.values[name] for name in self._weights]
        torch._foreach_lerp_(averages, list(self._weights.values()), 1 - self._decay)

    @torch.no_grad()
    def write(self) -> None:
        """Puts the average in the weights' place."""
        for name, weight in self._weights.items():
            weight.copy_(self.values[name])
