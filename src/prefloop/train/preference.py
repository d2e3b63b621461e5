"""Training a policy on preference pairs.

The reference's log-probabilities are computed once, before the first step, and kept beside the checkpoint for resume.
Knows nothing about where the pairs come from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.batches import Codec, Row, collate, cut
from prefloop.config import PolicySection, RuntimeSection
from prefloop.interfaces import InputError, Progress
from prefloop.launch import processes
from prefloop.losses import PairLogps, pair_loss
from prefloop.modeling import (
    Dtype,
    all_sequence_logps,
    load_codec,
    load_policy,
    save_model,
    settle,
    token_logps,
)
from prefloop.records import PreferencePair
from prefloop.store import write_json
from prefloop.train.adapters import merged, with_adapters
from prefloop.train.loop import Task, fit, planned_steps


@dataclass(frozen=True)
class PairRows:
    """A pair ready for the model, with the reference's sequence log-probabilities."""

    chosen: Row
    rejected: Row
    weight: float
    reference_chosen: float
    reference_rejected: float

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return max(self.chosen.length, self.rejected.length)


@dataclass(frozen=True)
class PolicyJob:
    """Everything a training process needs; paths are model folders."""

    start: Path
    reference: Path
    pairs: tuple[PreferencePair, ...]
    validation: tuple[PreferencePair, ...]
    options: PolicySection
    steps: int | None
    """Optimiser steps, or None to follow `options.epochs`."""
    dtype: Dtype
    seed: int
    runtime: RuntimeSection
    out: Path


def train_policy(job: PolicyJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the policy to `job.out / "model"`; returns its statistics."""
    settle(job.runtime)
    codec = load_codec(job.start)
    rows, cut_rows = encode_pairs((*job.pairs, *job.validation), codec, job.options)
    pairs = _with_reference(rows, job, codec)
    training, validation = pairs[: len(job.pairs)], pairs[len(job.pairs) :]
    model = load_policy(job.start, job.runtime)
    if job.runtime.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    trained = with_adapters(model, job.options.lora, task="CAUSAL_LM")

    def loss(module: nn.Module, items: Sequence[PairRows]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return pairs_loss(module, items, job.options, pad_id=codec.pad_id)

    task = Task(training, lambda pair: pair.length, 2, lambda pair: 1.0, loss)
    steps = job.steps or planned_steps(len(training), job.options)
    stats: dict[str, Any] = fit(
        trained,
        task,
        job.options,
        steps=steps,
        seed=job.seed,
        dtype=job.dtype,
        runtime=job.runtime,
        folder=job.out,
        progress=progress,
    )
    stats["validation"] = _validate(trained, validation, job, codec) if validation else None
    stats |= {"pairs": len(training), "truncated": cut_rows, "objective": job.options.objective.kind}
    if processes(job.runtime).is_main_process:
        save_model(merged(trained), codec.tokenizer, job.out / "model", dtype=job.dtype)
        (job.out / REFERENCE_LOGPS).unlink()
    return stats


REFERENCE_LOGPS = "reference_logps.json"


def encode_pairs(
    pairs: Sequence[PreferencePair], codec: Codec, options: PolicySection
) -> tuple[list[tuple[Row, Row, float]], int]:
    """Token rows (chosen, rejected, weight) of pairs, and how many rows had to be cut to fit."""
    encoded, cut_rows = [], 0
    for pair in pairs:
        prompt = tuple(codec.prompt_ids(pair.prompt.messages))
        sides = []
        for completion in (pair.chosen, pair.rejected):
            ids = tuple(codec.completion_ids(pair.prompt.messages, completion))
            row, was_cut = cut(
                Row(prompt, ids),
                max_length=options.max_length,
                max_prompt_length=options.max_prompt_length,
                truncation=options.truncation,
            )
            if not row.completion_ids:
                raise InputError(
                    f"pair {pair.id}: nothing of the completion fits; policy.max_prompt_length "
                    f"({options.max_prompt_length}) must be smaller than policy.max_length ({options.max_length})"
                )
            cut_rows += was_cut
            sides.append(row)
        encoded.append((sides[0], sides[1], pair.weight))
    return encoded, cut_rows


def _with_reference(rows: list[tuple[Row, Row, float]], job: PolicyJob, codec: Codec) -> list[PairRows]:
    """Adds the reference's log-probabilities, from the stage's own file when an earlier try computed them."""
    path = job.out / REFERENCE_LOGPS
    with processes(job.runtime).main_process_first():  # the first computes, the others read
        if not path.is_file():
            reference = load_policy(job.reference, job.runtime)
            both = [side for chosen, rejected, _ in rows for side in (chosen, rejected)]
            write_json(path, all_sequence_logps(reference, both, pad_id=codec.pad_id, runtime=job.runtime))
        values = json.loads(path.read_text())
    return [
        PairRows(chosen, rejected, weight, values[2 * index], values[2 * index + 1])
        for index, (chosen, rejected, weight) in enumerate(rows)
    ]


def pairs_loss(
    model: nn.Module, items: Sequence[PairRows], options: PolicySection, *, pad_id: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed weighted loss and summed metrics of a microbatch of pairs."""
    device = next(model.parameters()).device
    rows = [item.chosen for item in items] + [item.rejected for item in items]
    batch = collate(rows, pad_id=pad_id, device=device)
    chosen, rejected = token_logps(model, batch).sum(-1).chunk(2)  # [B] each
    lengths = batch.completion_mask.sum(-1)
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    pair = PairLogps(
        chosen,
        rejected,
        torch.tensor([item.reference_chosen for item in items], device=device),
        torch.tensor([item.reference_rejected for item in items], device=device),
        chosen_lengths,
        rejected_lengths,
    )
    weights = torch.tensor([item.weight for item in items], device=device)
    loss = (pair_loss(pair, options.objective) * weights).sum()
    beta = getattr(options.objective, "beta", 1.0)
    metrics = {
        "accuracy": (pair.margins > 0).float().sum(),
        "reward_chosen": beta * pair.chosen_logratios.sum(),
        "reward_rejected": beta * pair.rejected_logratios.sum(),
        "margin": beta * pair.margins.sum(),
        "chosen_logps": chosen.sum(),
        "rejected_logps": rejected.sum(),
        "nll": (-chosen / chosen_lengths).sum(),
    }
    return loss, metrics


@torch.inference_mode()
def _validate(model: nn.Module, pairs: list[PairRows], job: PolicyJob, codec: Codec) -> dict[str, float]:
    """Metrics on held-out pairs, averaged."""
    sums: dict[str, float] = {}
    for pair in pairs:
        loss, metrics = pairs_loss(model, [pair], job.options, pad_id=codec.pad_id)
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {name: round(value / len(pairs), 6) for name, value in sums.items()} | {"pairs": len(pairs)}
