"""Training: what every stage shares, supervised fine-tuning, and policies."""

from typing import Literal

from pydantic import Field

from prefloop.config.objectives import DpoObjective, Objective
from prefloop.config.section import Section
from prefloop.config.source import Source


class LoraSection(Section):
    """Train low-rank adapters instead of all weights; merged into the saved policy."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the update, divided by the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter."""


class TrainingSection(Section):
    """What every training stage shares: AdamW with warm-up, a schedule, clipping and an effective batch."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps, whatever `epochs` says; data is repeated when it runs out."""
    batch_size: int = Field(default=128, ge=1)
    """Rows (pairs, for preferences) in one optimiser step, over all devices; microbatches follow from it."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_length: int = Field(default=2048, ge=8)
    """Prompt + completion in tokens; longer rows are cut as `truncation` says, and counted."""
    lora: LoraSection | None = None
    """Low-rank adapters; leave out to train all weights."""


class AnswerTrainingSection(TrainingSection):
    """Training on answers to prompts: how rows that are too long are cut."""

    max_prompt_length: int = Field(default=1000, ge=1)
    """Prompts longer than this are cut when the row is too long."""
    truncation: Literal["keep_end", "keep_start"] = "keep_end"
    """Which end of a too long prompt is kept."""


class SftSection(AnswerTrainingSection):
    """Supervised fine-tuning on demonstrations. Skipped when neither `data` nor `text` is given."""

    data: Source | None = None
    """Demonstrations to imitate."""
    text: Source | None = None
    """Plain text for language modelling: all of it for a model from scratch, or a share next to `data`."""
    text_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of every batch that is plain text, where both are given (InstructGPT used 0.1)."""
    loss_on: Literal["completion", "all"] = "completion"
    """Train on the last answer only, or on every token."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=32, ge=1)
    """Rows (pairs, for preferences) in one optimiser step, over all devices."""


class PolicySection(AnswerTrainingSection):
    """Training the policy on preference pairs."""

    objective: Objective = DpoObjective()
    """The loss."""
    reference: str = "start"
    """`start` (the SFT policy, fixed), `previous` (mirror descent, less stable), or a model folder."""
    start: Literal["previous", "sft"] = "previous"
    """Weights an iteration starts from."""
    grouping: Literal["prompt", "pair"] = "prompt"
    """What a row of `batch_size` is: all pairs of a prompt, computed together, or one pair."""
    data: Literal["new", "accumulated"] = "new"
    """Pairs of the newest iteration only, or of all so far."""
    offline_data: Source | None = None
    """Preference pairs from a file: mixed into every iteration, or all there is when `loop.batches` is 0."""
    steps_per_batch: int | None = Field(default=None, ge=1)
    """Optimiser steps per label batch; fixes the number of steps so that offline and online runs take the same."""
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of prompts held out to measure the pair accuracy after training."""
    learning_rate: float = Field(default=5e-7, gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=2.0, gt=0)
    """Passes over the data."""
