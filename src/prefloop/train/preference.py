"""Training a policy on preferences: pairs or rankings among the completions of a prompt.

Builds log-probabilities of pairs from those of tokens and hands them to the objective. Knows nothing about where the
preferences come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefloop.batches import Batch, Codec, collate, cut
from prefloop.config import PolicySection, RuntimeSection
from prefloop.forward import LogpsModule, cost
from prefloop.interfaces import InputError, Progress
from prefloop.launch import processes
from prefloop.losses import PairLogps, pair_loss
from prefloop.modeling import Dtype, load_codec, load_policy, save_model, settle
from prefloop.records import PreferencePair
from prefloop.train.adapters import merged, with_adapters
from prefloop.train.groups import PairGroup, grouped, index_pairs
from prefloop.train.loop import CHECKPOINTS, Metrics, Task, fit, planned_steps
from prefloop.train.reference import with_reference


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
    reference_logps: Path | None = None
    """Folder that keeps the reference's log-probabilities for other stages too; left out, they go with the checkpoints."""


def train_policy(job: PolicyJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the policy to `job.out / "model"`; returns its statistics."""
    settle(job.runtime)
    codec = load_codec(job.start)
    encoded, cut_rows = encode_pairs(job.pairs, codec, job.options)
    held_out, cut_held_out = encode_pairs(job.validation, codec, job.options)
    groups = _with_reference([*encoded, *held_out], job, codec, progress)
    training, validation = groups[: len(encoded)], groups[len(encoded) :]
    model = load_policy(job.start, job.runtime)
    if job.runtime.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    module = LogpsModule(model, pad_id=codec.pad_id, runtime=job.runtime)
    module.model = with_adapters(model, job.options.lora, task="CAUSAL_LM")
    task = Task(
        training,
        tokens=lambda group: cost(group.tokens, module),
        count=lambda group: group.weight,
        name=lambda group: group.name,
        loss=lambda trained, items: groups_loss(trained, items, job.options, module),
    )
    stats: dict[str, Any] = fit(
        module,
        task,
        job.options,
        steps=job.steps or planned_steps(len(training), job.options),
        seed=job.seed,
        dtype=job.dtype,
        runtime=job.runtime,
        folder=job.out,
        progress=progress,
    )
    stats["validation"] = _validate(module, validation, job.options) if validation else None
    stats |= {
        "pairs": len(job.pairs),
        "prompts": len(training),
        "truncated": cut_rows + cut_held_out,
        "objective": job.options.objective.kind,
        "shares_prompts": module.shares,
    }
    if processes(job.runtime).is_main_process:
        save_model(merged(module.model), codec.tokenizer, job.out / "model", dtype=job.dtype)
    return stats


def encode_pairs(
    pairs: Sequence[PreferencePair], codec: Codec, options: PolicySection
) -> tuple[list[PairGroup], int]:
    """Token groups of pairs, and how many completions had to be cut to fit."""
    groups, cut_rows = [], 0
    for group in grouped(pairs, codec, options.grouping, per_prompt=False):
        tokens, number = cut(
            group.tokens,
            max_length=options.max_length,
            max_prompt_length=options.max_prompt_length,
            truncation=options.truncation,
        )
        if not all(tokens.completions):
            raise InputError(
                f"pair {group.name}: nothing of the completion fits; policy.max_prompt_length "
                f"({options.max_prompt_length}) must be smaller than policy.max_length ({options.max_length})"
            )
        cut_rows += number
        groups.append(replace(group, tokens=tokens))
    return groups, cut_rows


def _with_reference(
    groups: list[PairGroup], job: PolicyJob, codec: Codec, progress: Progress
) -> list[PairGroup]:
    def load() -> LogpsModule:
        return LogpsModule(load_policy(job.reference, job.runtime), pad_id=codec.pad_id, runtime=job.runtime)

    return with_reference(
        groups,
        load,
        folder=job.reference_logps or job.out / CHECKPOINTS / "reference",
        dtype=job.dtype,
        runtime=job.runtime,
        state=processes(job.runtime),
        progress=progress,
    )


def groups_loss(
    trained: Any, groups: Sequence[PairGroup], options: PolicySection, module: LogpsModule
) -> tuple[Tensor, Metrics]:
    """Summed weighted loss and summed metrics of a microbatch. `trained` is the module, or what replicates it."""
    device = next(trained.parameters()).device
    batch = collate([one.tokens for one in groups], share=module.shares, pad_id=module.pad_id, device=device)
    return pairs_loss(trained(batch), batch, groups, options)


def pairs_loss(
    logps: Tensor, batch: Batch, groups: Sequence[PairGroup], options: PolicySection
) -> tuple[Tensor, Metrics]:
    """Summed weighted loss and summed metrics from the log-probabilities [t] of a microbatch's completion tokens."""
    index = index_pairs(groups, logps.device)
    reference = torch.cat([values for one in groups for values in one.reference]).to(logps.device)
    policy_logps, reference_logps = batch.summed(logps), batch.summed(reference)  # [C]
    lengths = batch.lengths.clamp(min=1).float()
    pair = PairLogps(
        policy_logps[index.chosen],
        policy_logps[index.rejected],
        reference_logps[index.chosen],
        reference_logps[index.rejected],
        lengths[index.chosen],
        lengths[index.rejected],
    )
    loss = (pair_loss(pair, options.objective) * index.weights).sum()
    return loss, _metrics(pair, index.weights, getattr(options.objective, "beta", 1.0))


def _metrics(pair: PairLogps, weights: Tensor, beta: float) -> Metrics:
    """Weighted sums of what DPO-like training watches."""
    values = {
        "accuracy": (pair.margins > 0).float(),
        "reward_chosen": beta * pair.chosen_logratios,
        "reward_rejected": beta * pair.rejected_logratios,
        "margin": beta * pair.margins,
        "chosen_logps": pair.chosen,
        "rejected_logps": pair.rejected,
        "nll": -pair.chosen / pair.chosen_lengths,
    }
    return {name: (value * weights).sum() for name, value in values.items()}


@torch.inference_mode()
def _validate(module: LogpsModule, groups: list[PairGroup], options: PolicySection) -> dict[str, float]:
    """Metrics on held-out pairs, averaged."""
    sums: dict[str, float] = {}
    for group in groups:
        loss, metrics = groups_loss(module, [group], options, module)
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    total = sum(group.weight for group in groups)
    averages = {name: round(value / total, 6) for name, value in sums.items()}
    return averages | {"pairs": sum(len(group.pairs) for group in groups)}
