"""What heads on a frozen model are trained on: its features of completions and prompts, computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefloop.batches import Codec
from prefloop.records import PreferencePair
from prefloop.reward.heads import FeaturesModule, all_features
from prefloop.train.groups import PairGroup, grouped
from prefloop.train.rewards.job import RewardJob, fit_reward_group


@dataclass(frozen=True)
class FeatureGroup:
    """The preferences of a prompt, with features in place of tokens."""

    pairs: PairGroup
    completions: Tensor
    """[K, D]"""
    prompt: Tensor
    """[D]"""
    head_weights: Tensor
    """[M], how often the prompt is in each head's sample."""


def encoded(
    pairs: Sequence[PreferencePair], module: FeaturesModule, codec: Codec, job: RewardJob
) -> tuple[list[FeatureGroup], int]:
    """The pairs by prompt with their features, and how many completions had to be cut to fit."""
    groups = grouped(pairs, codec, "prompt", per_prompt=True)
    cut = [fit_reward_group(one.tokens, job.options.max_length) for one in groups]
    features = all_features(module, [tokens for tokens, _ in cut], job.runtime)
    found = [
        FeatureGroup(group, completions.clone(), prompt.clone(), torch.ones(1))
        for group, (completions, prompt) in zip(groups, features, strict=True)
    ]
    return found, sum(number for _, number in cut)


def leads(scores: Sequence[Tensor], groups: Sequence[FeatureGroup]) -> dict[str, float]:
    """By how much each chosen completion leads, by the id of the pair, from scores [K] of each group."""
    return {
        pair.id: float(values[pair.chosen] - values[pair.rejected])
        for values, group in zip(scores, groups, strict=True)
        for pair in group.pairs.pairs
    }
