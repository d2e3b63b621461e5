"""Training a scalar reward model on preference pairs with the Bradley-Terry loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from prefloop.batches import Codec, TokenGroup, collate
from prefloop.config import RewardSection, RuntimeSection
from prefloop.forward import ScoresModule, all_scores, cost
from prefloop.interfaces import Progress
from prefloop.launch import processes
from prefloop.losses import bradley_terry_loss
from prefloop.modeling import Dtype, new_reward_model, save_model, settle
from prefloop.records import PreferencePair
from prefloop.statistics import mean_interval, wins
from prefloop.train.adapters import merged, with_adapters
from prefloop.train.groups import PairGroup, grouped, index_pairs
from prefloop.train.loop import Metrics, Task, fit, planned_steps


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


def train_reward(job: RewardJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the reward model to `job.out / "model"`; returns its statistics."""
    settle(job.runtime)
    model, codec = new_reward_model(job.trunk, job.runtime)
    groups, cut_rows = encode_groups(job.pairs, codec, job.options)
    if job.runtime.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    module = ScoresModule(model, pad_id=codec.pad_id, runtime=job.runtime)
    module.model = with_adapters(model, job.options.lora, task="SEQ_CLS")
    task = Task(
        groups,
        tokens=lambda group: cost(group.tokens, module),
        count=lambda group: group.weight,
        name=lambda group: group.name,
        loss=lambda trained, items: _groups_loss(trained, items, module),
    )
    stats: dict[str, Any] = fit(
        module,
        task,
        job.options,
        steps=planned_steps(len(groups), job.options),
        seed=job.seed,
        dtype=job.dtype,
        runtime=job.runtime,
        folder=job.out,
        progress=progress,
    )
    module.model = merged(module.model)
    stats["validation"] = _validate(module, job.validation, codec, job) if job.validation else None
    if processes(job.runtime).is_main_process:
        save_model(module.model, codec.tokenizer, job.out / "model", dtype=job.dtype)
    return stats | {"num_rows": len(job.pairs), "prompts": len(groups), "truncated": cut_rows}


def encode_groups(
    pairs: Sequence[PreferencePair], codec: Codec, options: RewardSection
) -> tuple[list[PairGroup], int]:
    """Token groups of pairs, each prompt counting once, and how many completions had to be cut to fit."""
    groups, cut_rows = [], 0
    for group in grouped(pairs, codec, options.grouping, per_prompt=options.grouping == "prompt"):
        tokens, number = fit_reward_group(group.tokens, options.max_length)
        cut_rows += number
        groups.append(replace(group, tokens=tokens))
    return groups, cut_rows


def fit_reward_group(group: TokenGroup, max_length: int) -> tuple[TokenGroup, int]:
    """A group cut on the left, so that the end of each answer, where its score is read, always stays; and the number of
    completions that this changed."""
    if group.longest <= max_length:
        return group, 0
    longest = max(map(len, group.completions))
    keep = max(max_length - longest, 0)
    completions = tuple(one[-max_length:] for one in group.completions)
    return TokenGroup(group.prompt_ids[len(group.prompt_ids) - keep :], completions), len(group.completions)


def _groups_loss(trained: Any, groups: Sequence[PairGroup], module: ScoresModule) -> tuple[Tensor, Metrics]:
    """Summed weighted Bradley-Terry loss and summed metrics of a microbatch."""
    device = next(trained.parameters()).device
    scores = trained(
        collate([one.tokens for one in groups], share=module.shares, pad_id=module.pad_id, device=device)
    )
    index = index_pairs(groups, device)
    chosen, rejected = scores[index.chosen], scores[index.rejected]
    loss = (bradley_terry_loss(chosen, rejected, index.p_chosen) * index.weights).sum()
    metrics = {"accuracy": (chosen > rejected).float(), "margin": chosen - rejected}
    return loss, {name: (value * index.weights).sum() for name, value in metrics.items()}


def _validate(
    module: ScoresModule, pairs: Sequence[PreferencePair], codec: Codec, job: RewardJob
) -> dict[str, Any]:
    """Accuracy on held-out pairs beside the baseline that prefers the longer answer; ties count one half."""
    groups, _ = encode_groups(pairs, codec, job.options.model_copy(update={"grouping": "pair"}))
    scores = all_scores(module, [one.tokens for one in groups], job.runtime)
    chosen = [one[group.pairs[0].chosen] for one, group in zip(scores, groups, strict=True)]
    rejected = [one[group.pairs[0].rejected] for one, group in zip(scores, groups, strict=True)]
    lengths = [(float(len(pair.chosen.text)), float(len(pair.rejected.text))) for pair in pairs]
    longer = wins([one[0] for one in lengths], [one[1] for one in lengths])
    return {
        "num_pairs": len(pairs),
        "ties": sum(a == b for a, b in zip(chosen, rejected, strict=True)),
        "accuracy": mean_interval(wins(chosen, rejected), confidence=0.95, resamples=10_000),
        "length_baseline": mean_interval(longer, confidence=0.95, resamples=10_000),
    }
