"""Reward models."""

from typing import Literal

from pydantic import Field

from prefloop.config.source import Source
from prefloop.config.training import TrainingSection


class RewardSection(TrainingSection):
    """The reward model: a Bradley-Terry scalar head, trained on labels, on a file, or brought along."""

    model: str | None = None
    """A finished scalar reward model to use as it is."""
    data: Source | None = None
    """Preference pairs to train on before the loop starts."""
    seed_prompts: int = Field(default=0, ge=0)
    """Prompts whose completions by the SFT policy are labelled to train the first reward model."""
    start: str = "sft"
    """Trunk to start from: `sft` (the SFT policy) or a model folder or hub name."""
    grouping: Literal["prompt", "pair"] = "prompt"
    """What a row of `batch_size` is: all pairs of a prompt, which then counts once (InstructGPT), or one pair."""
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts held out to measure accuracy; never trained on."""
    learning_rate: float = Field(default=9e-6, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=64, ge=1)
    """Rows (pairs, for preferences) in one optimiser step, over all devices."""
