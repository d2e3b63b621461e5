"""Training: what every stage shares, supervised fine-tuning, and policies."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from prefloop.config.objectives import DpoObjective, LogRatioSection, Objective, shaping_problem
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
    dora: bool = Field(default=False, json_schema_extra={"inert": False})
    """Learn the length of each row of the weights apart from its direction (DoRA, arXiv:2402.09353)."""
    quantize: Literal["none", "4bit"] = Field(default="none", json_schema_extra={"inert": "none"})
    """Hold the frozen weights in 4 bits while training (QLoRA, arXiv:2305.14314); what is saved is not quantised."""


DecayRate = Annotated[float, Field(ge=0, lt=1)]
ADAM_BETAS = (0.9, 0.999)
INERT_BETAS: dict[str, Any] = {"inert": ADAM_BETAS}


class OptimizerSection(Section):
    """What every training stage shares: an optimiser, a schedule with warm-up, clipping, and which weights are trained."""

    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        default="adamw", json_schema_extra={"inert": "adamw"}
    )
    """`adamw_8bit` keeps its state in 8 bits, `adafactor` (arXiv:1804.04235) one number a row and column of a weight."""
    adam_betas: tuple[DecayRate, DecayRate] = Field(default=ADAM_BETAS, json_schema_extra=INERT_BETAS)
    """Decay of AdamW's running means of the gradient and of its square."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate; adafactor multiplies it by the root mean square of each weight matrix."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    min_learning_rate_ratio: float = Field(default=0.0, ge=0, lt=1, json_schema_extra={"inert": 0.0})
    """Share of the peak at which the cosine ends (InstructGPT used 0.1)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1, json_schema_extra={"inert": None})
    """Save the exponential moving average of the weights, which keeps this share a step (InstructGPT used 0.992)."""
    frozen_layers: int = Field(default=0, ge=0, json_schema_extra={"inert": 0})
    """The first layers and the embeddings stay as they are; with tied embeddings the output embedding too. 0 for none."""
    lora: LoraSection | None = None
    """Low-rank adapters; leave out to train all weights."""

    @model_validator(mode="after")
    def _optimizer_reads_its_keys(self) -> Self:
        problem = next(self._unread_keys(), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def rates_by_prefix(self) -> Mapping[str, float]:
        """Learning rates of weights whose names begin so; all others have `learning_rate`."""
        return {}

    def _unread_keys(self) -> Iterator[str]:
        """Keys whose values nothing would read, and what to do."""
        if self.min_learning_rate_ratio and self.schedule != "cosine":
            yield f"min_learning_rate_ratio: {self.schedule} does not read it; use schedule cosine, or leave it out"
        if self.optimizer == "adafactor" and self.adam_betas != ADAM_BETAS:
            yield "adam_betas: adafactor has none; leave it out"


class TrainingSection(OptimizerSection):
    """Training on rows that are there before it begins: how often, how many at once, and how long they may be."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps, whatever `epochs` says; data is repeated when it runs out."""
    batch_size: int = Field(default=128, ge=1)
    """Rows (pairs, for preferences) in one optimiser step, over all devices; microbatches follow from it."""
    max_length: int = Field(default=2048, ge=8)
    """Prompt + completion in tokens; longer rows are cut as `truncation` says, and counted."""


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


class ReferenceSyncSection(Section):
    """A reference that follows the policy while it trains (TR-DPO, arXiv:2404.09656)."""

    every_steps: int = Field(default=1, ge=1)
    """Optimiser steps between two moves of the reference."""
    weight: float = Field(default=0.01, gt=0, le=1)
    """Share of the policy in the moved reference: 1 replaces it (hard), less mixes (soft, an average)."""


class PolicySection(AnswerTrainingSection):
    """Training the policy on preference pairs."""

    objective: Objective = DpoObjective()
    """The loss."""
    log_ratios: LogRatioSection = LogRatioSection()
    """How the log-ratios are formed that the loss compares."""
    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen completion's negative log-likelihood per token next to the loss (RPO, arXiv:2404.19733)."""
    tail_weight: float = Field(default=1.0, ge=0, le=1)
    """Weight of the tokens by which one side is longer than the other (LD-DPO's alpha, arXiv:2409.06411); 1 is plain."""
    weighting: Literal["none", "wpo"] = "none"
    """`wpo` weighs pairs by how likely the policy itself would have sampled them (arXiv:2406.11827)."""
    reference: str = "start"
    """`start` (the SFT policy, fixed), `previous` (mirror descent, less stable), or a model folder."""
    reference_sync: ReferenceSyncSection | None = None
    """Let the reference follow the policy during training; leave out for a fixed one, computed once."""
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

    @model_validator(mode="after")
    def _objective_can(self) -> "PolicySection":
        problem = shaping_problem(self.objective, self.log_ratios)
        if problem is not None:
            raise ValueError(f"objective: {problem}")
        if self.objective.kind == "plackett_luce" and (
            self.grouping == "pair" or self.nll_weight or self.tail_weight < 1 or self.weighting != "none"
        ):
            raise ValueError(
                "objective: plackett_luce reads whole rankings: grouping must be prompt, without nll_weight, tail_weight "
                "and weighting"
            )
        if self.nll_weight and self.tail_weight < 1:
            raise ValueError("nll_weight: the likelihood of shortened sums is none; set tail_weight to 1")
        if self.reference_sync is not None and not self.uses_reference:
            raise ValueError(f"reference_sync: {self.objective.kind} uses no reference; leave it out")
        if self.reference_sync is not None and self.lora is not None:
            raise ValueError(
                "reference_sync: adapters have no weights that a reference could follow; choose one"
            )
        return self

    @property
    def uses_reference(self) -> bool:
        """Whether the reference's log-probabilities are needed."""
        return self.objective.needs_reference and not self.log_ratios.reference_free
