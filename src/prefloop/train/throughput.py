"""How fast training is: tokens a second, the share of the machine's own matmul rate, and peak memory.

Counts what a step needs by formula, and measures the machine once. Nothing here reaches a loss or an artefact.
"""

import functools
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prefloop.batches import TokenGroup
from prefloop.forward import plain
from prefloop.interfaces import InputError
from prefloop.modeling import layers_of

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 2, 2, 2
"""Floating-point operations for each weight and token: a multiplication and an addition in each of three products."""
SCORES = 2
"""Products in attention: of queries and keys, and of their weights and values."""
MATMUL_SIDE = {"cpu": 512, "cuda": 8192, "mps": 2048}
MATMUL_SECONDS = 0.12
"""How long the machine's rate is measured after a warm-up."""
GIGABYTE = 1e9
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Work:
    """What training on an item takes."""

    tokens: int
    """Tokens that count: the prompt once, and its completions."""
    flops: float
    """Floating-point operations of a forward and a backward pass."""


@dataclass(frozen=True)
class TrainingCost:
    """Floating-point operations of a model, by what they grow with."""

    per_token: float
    per_completion_token: float
    per_pair: dict[int | None, float]
    """For each (query, key) pair that attention needs, by the sliding window of the layers."""

    def of(self, group: TokenGroup) -> Work:
        """The work of a forward and a backward pass on a group whose prompt is computed once."""
        attention = sum(flops * attended(group, window) for window, flops in self.per_pair.items())
        flops = self.per_token * group.num_tokens + self.per_completion_token * group.num_completion_tokens
        return Work(group.num_tokens, flops + attention)


def training_cost(module: Any) -> TrainingCost:
    """What a module of `forward.py` costs: 6 operations a weight and token where everything is trained.

    Weights that are not trained need no gradient of their own, and what lies before the first that is trained no backward
    pass. Checkpointed layers take a second forward pass. Of a model whose layers cannot be told apart, attention is not
    counted.
    """
    model = plain(module.model)
    trunk, config = getattr(model, model.base_model_prefix, model), model.config.get_text_config()
    try:
        layers = layers_of(model)
    except InputError:
        layers = []
    inside = {id(one) for layer in layers for one in layer.modules()}
    outside = [one for one in trunk.modules() if id(one) not in inside]
    reached = any(one.weight.requires_grad for one in outside if isinstance(one, nn.Embedding))
    per_token = sum(_matmul_flops(one, config) for one in outside)
    per_pair: dict[int | None, float] = {}
    for layer, window in zip(layers, _windows(config, len(layers)), strict=True):
        reached = reached or any(weight.requires_grad for weight in layer.parameters())
        repeated = FORWARD if reached and getattr(layer, "gradient_checkpointing", False) else 0
        per_token += sum(
            _matmul_flops(one, config, reached=reached, repeated=repeated) for one in layer.modules()
        )
        times = FORWARD + repeated + (INPUT_GRADIENT + WEIGHT_GRADIENT) * reached
        per_pair[window] = per_pair.get(window, 0.0) + SCORES * times * _attention_width(config)
    head = model.get_output_embeddings()  # a reward model has none: its head is a single row
    per_completion_token = (
        sum(_matmul_flops(one, config) for one in head.modules()) if head is not None else 0.0
    )
    return TrainingCost(per_token, per_completion_token, per_pair)


def _matmul_flops(module: nn.Module, config: Any, *, reached: bool = True, repeated: int = 0) -> float:
    """Operations a token in a module's own matrices, `repeated` ones included; an embedding is looked up instead."""
    if isinstance(module, nn.Embedding):
        return 0.0
    flops = 0.0
    for weight in module.parameters(recurse=False):
        if weight.ndim < 2:
            continue
        size = weight.numel()
        if isinstance(module, nn.Linear):  # a quantised matrix is stored in another shape
            size = module.in_features * module.out_features
        used = _experts_used(config) if weight.ndim == 3 else 1.0
        times = FORWARD + repeated + INPUT_GRADIENT * reached + WEIGHT_GRADIENT * weight.requires_grad
        flops += times * size * used
    return flops


def _experts_used(config: Any) -> float:
    """Share of a mixture's experts that each token goes through."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    number = next((value for name in names if (value := getattr(config, name, None))), 1)
    return min(1.0, getattr(config, "num_experts_per_tok", number) / number)


def _attention_width(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", 0)
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1))


def _windows(config: Any, number: int) -> list[int | None]:
    """The sliding window of each layer, None where a token sees all before it."""
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return [None] * number
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * number
    return [window if kind == "sliding_attention" else None for kind in kinds]


def attended(group: TokenGroup, window: int | None = None) -> int:
    """(query, key) pairs that the group's attention needs: every token sees itself and what precedes it."""
    prompt = len(group.prompt_ids)
    ends = (prompt + len(one) for one in group.completions)
    return _causal(prompt, window) + sum(_causal(end, window) - _causal(prompt, window) for end in ends)


def _causal(length: int, window: int | None) -> int:
    """Pairs in a sequence of this length."""
    full = length if window is None else min(length, window)
    return full * (full + 1) // 2 + (length - full) * full


# --- the machine -----------------------------------------------------------------------------------------------------


def matmul_rate(device: torch.device, dtype: str) -> float:
    """Floating-point operations a second that this process reaches in a matrix product; measured once."""
    return _measured_rate(device.type, dtype, torch.get_num_threads())


@functools.cache
def _measured_rate(device: str, dtype: str, _threads: int) -> float:
    side = MATMUL_SIDE[device]
    left, right = (torch.ones(side, side, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    _timed_product(left, right)  # the first one sets up the library
    best, spent = float("inf"), 0.0
    while spent < MATMUL_SECONDS:
        seconds = _timed_product(left, right)
        best, spent = min(best, seconds), spent + seconds
    return 2 * side**3 / best


def _timed_product(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    (left @ right)[0, 0].item()  # waits for the device
    return time.perf_counter() - started


def peak_memory_gb(device: torch.device) -> float:
    """The most memory this process has held, in 10^9 bytes: on a GPU what torch had allocated, else what was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIGABYTE
    if (
        STATUS.is_file()
    ):  # Linux's `ru_maxrss` counts what the parent held when it started this process, this does not
        (line,) = (one for one in STATUS.read_text().splitlines() if one.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / GIGABYTE
    unit = 1 if sys.platform == "darwin" else 1024  # others count in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIGABYTE


@dataclass(frozen=True)
class Throughput:
    """Turns work and seconds into metrics."""

    device: torch.device
    rate: float
    """Floating-point operations a second that all processes together reach in matrix products."""

    @staticmethod
    def of(device: torch.device, dtype: str, *, num_processes: int) -> "Throughput":
        """On this machine, shared by so many processes; peak memory on a GPU counts from now."""
        rate = matmul_rate(device, dtype) * num_processes
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        return Throughput(device, rate)

    def metrics(self, works: Sequence[Work], seconds: float) -> dict[str, float]:
        """Of a step that did all this work in so many seconds."""
        tokens = sum(one.tokens for one in works)
        return {
            "train/tokens": tokens,
            "train/tokens_per_s": tokens / seconds,
            "train/matmul_share": sum(one.flops for one in works) / seconds / self.rate,
            "train/peak_memory_gb": peak_memory_gb(self.device),
        }


def summary(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of the metrics of many steps: tokens and operations over all seconds, and the highest peak."""
    seconds = sum(row["train/tokens"] / row["train/tokens_per_s"] for row in rows)
    shares = sum(row["train/matmul_share"] * row["train/tokens"] / row["train/tokens_per_s"] for row in rows)
    return {
        "tokens_per_s": sum(row["train/tokens"] for row in rows) / seconds,
        "matmul_share": shares / seconds,
        "peak_memory_gb": max(row["train/peak_memory_gb"] for row in rows),
    }
