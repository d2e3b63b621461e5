"""Training an ensemble of small Bradley-Terry heads on a frozen model, each on its own bootstrap sample of the prompts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefloop.batches import Codec
from prefloop.config import EnsembleReward
from prefloop.interfaces import Progress
from prefloop.launch import processes
from prefloop.losses import bradley_terry_loss
from prefloop.modeling import new_reward_model, note_reward, save_model
from prefloop.reward.heads import EnsembleHeads, FeaturesModule, all_features, save_heads
from prefloop.train.groups import index_pairs
from prefloop.train.loop import Metrics, Task
from prefloop.train.rewards.features import FeatureGroup, encoded, leads
from prefloop.train.rewards.job import RewardJob, fit_task, pair_accuracy
from prefloop.train.rewards.scale import score_scale

BOOTSTRAP = 5
"""Tells the random numbers that draw the heads' samples from others of the same seed."""


def train_ensemble(job: RewardJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the model and its heads to `job.out / "model"`; returns its statistics."""
    objective = job.options.objective
    assert isinstance(objective, EnsembleReward), "train_reward chooses the trainer"
    model, codec = new_reward_model(job.trunk, job.runtime)
    trunk = FeaturesModule(model.eval(), pad_id=codec.pad_id, runtime=job.runtime)
    groups, cut_rows = encoded(job.pairs, trunk, codec, job)
    groups = with_bootstrap(groups, objective.num_heads, seed=job.seed)
    heads = new_heads(groups, objective, seed=job.seed)
    task = Task(
        groups,
        tokens=lambda group: len(group.completions),
        count=lambda group: group.pairs.weight,
        name=lambda group: group.pairs.name,
        loss=heads_loss,
    )
    options = job.options.model_copy(update={"learning_rate": objective.head_learning_rate})
    stats = fit_task(job, heads, task, options, progress)
    heads.to(model.device)
    scale = score_scale(
        objective,
        job,
        codec,
        [one.pairs.tokens for one in groups],
        lambda tokens: [
            score
            for features, _ in all_features(trunk, tokens, job.runtime)
            for score in mean_score(heads, features)
        ],
    )
    note_reward(
        model, kind=objective.kind, num_heads=objective.num_heads, hidden_size=objective.hidden_size, **scale
    )
    stats["validation"] = _validate(trunk, heads, codec, job) if job.validation else None
    if processes(job.runtime).is_main_process:
        save_model(model, codec.tokenizer, job.out / "model", dtype=job.dtype)
        save_heads(heads, job.out / "model")
    return stats | {"num_rows": len(job.pairs), "prompts": len(groups), "truncated": cut_rows}


def with_bootstrap(groups: Sequence[FeatureGroup], num_heads: int, *, seed: int) -> list[FeatureGroup]:
    """The groups with how often each head's sample, drawn with replacement, has them."""
    rng = np.random.default_rng([seed, BOOTSTRAP])
    counts = rng.multinomial(len(groups), [1 / len(groups)] * len(groups), size=num_heads)  # [M, N]
    drawn = torch.tensor(counts.T, dtype=torch.float32)
    return [replace(group, head_weights=drawn[place]) for place, group in enumerate(groups)]


def new_heads(groups: Sequence[FeatureGroup], objective: EnsembleReward, *, seed: int) -> EnsembleHeads:
    """Heads that start from different weights and know the scale of the features."""
    features = torch.cat([one.completions for one in groups])  # [C, D]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = EnsembleHeads(
            features.shape[1], num_heads=objective.num_heads, hidden_size=objective.hidden_size
        )
    heads.scale.fit(features)
    return heads


def heads_loss(trained: Any, items: Sequence[FeatureGroup]) -> tuple[Tensor, Metrics]:
    """Bradley-Terry loss, averaged over the heads, each weighting the prompts as its sample does."""
    device = next(trained.parameters()).device
    scores = trained(torch.cat([one.completions for one in items]).to(device))  # [C, M]
    index = index_pairs([one.pairs for one in items], device)
    sampled = torch.stack([one.head_weights for one in items for _ in one.pairs.pairs]).to(device)  # [B, M]
    chosen, rejected = scores[index.chosen], scores[index.rejected]
    losses = bradley_terry_loss(chosen, rejected, index.p_chosen.unsqueeze(1))
    lead = (chosen - rejected).mean(1).detach()
    metrics = {"accuracy": (lead > 0).float(), "margin": lead}
    loss = ((losses * sampled).mean(1) * index.weights).sum()
    return loss, {name: (value * index.weights).sum() for name, value in metrics.items()}


@torch.no_grad()
def mean_score(heads: EnsembleHeads, features: Tensor) -> list[float]:
    """Mean over the heads for each completion, from features [K, D]."""
    return heads(features.to(heads.outer.device)).mean(1).tolist()


def _validate(trunk: FeaturesModule, heads: EnsembleHeads, codec: Codec, job: RewardJob) -> dict[str, Any]:
    """How the mean score orders held-out pairs."""
    groups, _ = encoded(job.validation, trunk, codec, job)
    found = leads([torch.tensor(mean_score(heads, one.completions)) for one in groups], groups)
    return pair_accuracy(job.validation, [found[one.id] for one in job.validation])
