"""Training a scalar reward model on preference pairs with the Bradley-Terry loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.batches import Codec, Row, collate, cut
from prefloop.config import RewardSection, RuntimeSection
from prefloop.interfaces import Progress
from prefloop.launch import processes
from prefloop.losses import bradley_terry_loss
from prefloop.modeling import Dtype, all_scores, new_reward_model, save_model, sequence_scores, settle
from prefloop.records import PreferencePair
from prefloop.statistics import mean_interval, wins
from prefloop.train.adapters import merged, with_adapters
from prefloop.train.loop import Task, fit, planned_steps


@dataclass(frozen=True)
class RewardJob:
    """Everything a training process needs; `trunk` is a language model."""

    trunk: str
    pairs: tuple[PreferencePair, ...]
    validation: tuple[PreferencePair, ...]
    options: RewardSection
    dtype: Dtype
    seed: int
    runtime: RuntimeSection
    out: Path


@dataclass(frozen=True)
class ScoredPair:
    """A pair ready for the reward model."""

    chosen: Row
    rejected: Row
    p_chosen: float
    weight: float

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return max(self.chosen.length, self.rejected.length)


def train_reward(job: RewardJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the reward model to `job.out / "model"`; returns its statistics."""
    settle(job.runtime)
    model, codec = new_reward_model(job.trunk, job.runtime)
    rows, cut_rows = _encode(job.pairs, codec, job.options)
    trained = with_adapters(model, job.options.lora, task="SEQ_CLS")

    def loss(module: nn.Module, items: Sequence[ScoredPair]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return _pairs_loss(module, items, pad_id=codec.pad_id)

    task = Task(rows, lambda pair: pair.length, 2, lambda pair: 1.0, loss)
    stats: dict[str, Any] = fit(
        trained,
        task,
        job.options,
        steps=planned_steps(len(rows), job.options),
        seed=job.seed,
        dtype=job.dtype,
        runtime=job.runtime,
        folder=job.out,
        progress=progress,
    )
    final = merged(trained)
    stats["validation"] = _validate(final, job.validation, codec, job) if job.validation else None
    if processes(job.runtime).is_main_process:
        save_model(final, codec.tokenizer, job.out / "model", dtype=job.dtype)
    return stats | {"num_rows": len(rows), "truncated": cut_rows}


def _encode(
    pairs: Sequence[PreferencePair], codec: Codec, options: RewardSection
) -> tuple[list[ScoredPair], int]:
    encoded, cut_rows = [], 0
    for pair in pairs:
        prompt = tuple(codec.prompt_ids(pair.prompt.messages))
        sides = []
        for completion in (pair.chosen, pair.rejected):
            row, was_cut = fit_reward_row(
                Row(prompt, tuple(codec.completion_ids(pair.prompt.messages, completion))), options.max_length
            )
            cut_rows += was_cut
            sides.append(row)
        encoded.append(ScoredPair(sides[0], sides[1], pair.p_chosen, pair.weight))
    return encoded, cut_rows


def fit_reward_row(row: Row, max_length: int) -> tuple[Row, bool]:
    """A row cut on the left, so that the end of the answer, where the score is read, always stays."""
    if row.length <= max_length:
        return row, False
    keep = max_length - len(row.completion_ids)
    if keep > 0:
        return cut(row, max_length=max_length, max_prompt_length=keep, truncation="keep_end")
    return Row((), row.completion_ids[-max_length:]), True


def _pairs_loss(
    model: nn.Module, items: Sequence[ScoredPair], *, pad_id: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed weighted Bradley-Terry loss and summed metrics of a microbatch."""
    device = next(model.parameters()).device
    rows = [item.chosen for item in items] + [item.rejected for item in items]
    chosen, rejected = sequence_scores(model, collate(rows, pad_id=pad_id, device=device)).chunk(2)
    p_chosen = torch.tensor([item.p_chosen for item in items], device=device)
    weights = torch.tensor([item.weight for item in items], device=device)
    loss = (bradley_terry_loss(chosen, rejected, p_chosen) * weights).sum()
    return loss, {"accuracy": (chosen > rejected).float().sum(), "margin": (chosen - rejected).sum()}


def _validate(model: Any, pairs: Sequence[PreferencePair], codec: Codec, job: RewardJob) -> dict[str, Any]:
    """Accuracy on held-out pairs beside the baseline that prefers the longer answer; ties count one half."""
    rows, _ = _encode(pairs, codec, job.options)
    both = [side for pair in rows for side in (pair.chosen, pair.rejected)]
    scores = all_scores(model, both, pad_id=codec.pad_id, runtime=job.runtime)
    chosen, rejected = scores[::2], scores[1::2]
    lengths = [(float(len(pair.chosen.text)), float(len(pair.rejected.text))) for pair in pairs]
    longer = wins([one[0] for one in lengths], [one[1] for one in lengths])
    return {
        "num_pairs": len(pairs),
        "ties": sum(a == b for a, b in zip(chosen, rejected, strict=True)),
        "accuracy": mean_interval(wins(chosen, rejected), confidence=0.95, resamples=10_000),
        "length_baseline": mean_interval(longer, confidence=0.95, resamples=10_000),
    }
