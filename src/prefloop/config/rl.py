"""Reinforcement learning: which algorithm, what is rewarded, and how much is sampled before the policy changes."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefloop.algorithms import ALGORITHMS, Algorithm, Baseline, Clip, Kl, Ratio, Reduction, Scale, vary
from prefloop.config.annotate import CompositeAnnotator, GoldScorer, RewardModelAnnotator
from prefloop.config.comparisons import PairsSection, SppoSection
from prefloop.config.loop import PromptSources
from prefloop.config.section import Section, default, shorthand
from prefloop.config.source import Source
from prefloop.config.training import OptimizerSection
from prefloop.interfaces import InputError

AHEAD_CAP = 2.0
"""Usual for samplers that compute a little otherwise than the trainer."""

AlgorithmName = Literal[
    "ppo",
    "ppo_ptx",
    "a2c",
    "trpo",
    "reinforce",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "rloo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
]


class AlgorithmSection(Section):
    """A row of the table of algorithms; what is given beside `name` replaces what the row says."""

    name: AlgorithmName = "ppo"
    """The row; docs/concepts/rl.md shows all."""
    baseline: Baseline | None = None
    """What is subtracted from the return."""
    scale: Scale | None = None
    """What the advantage is divided by."""
    ratio: Ratio | None = None
    """What of policy / sampling policy weighs an advantage."""
    clip: Clip | None = None
    """How ratios are bounded."""
    reduction: Reduction | None = None
    """Over what the loss of tokens is averaged."""
    kl: Kl | None = None
    """How the KL to the reference enters: in the reward of each token, in the loss, or not at all; never both."""
    clip_low: float | None = Field(default=None, gt=0)
    """The ratio counts as at least 1 - clip_low."""
    clip_high: float | None = Field(default=None, gt=0)
    """The ratio counts as at most 1 + clip_high."""
    kl_coef: float | None = Field(default=None, ge=0)
    """Weight of the KL to the reference."""
    gae_lambda: float | None = Field(default=None, ge=0, le=1)
    """Exponential weight of longer estimates of the advantage (arXiv:1506.02438)."""
    value_coef: float | None = Field(default=None, ge=0)
    """Weight of the critic's loss beside the policy's."""
    value_clip: float | None = Field(default=None, gt=0)
    """How far a value may move from that of the sampling policy's critic; null for no bound."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of later rewards."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy that is added to the objective."""
    ptx_coef: float = Field(default=0.0, ge=0)
    """Weight of the mean log-probability of pretraining tokens; `rl.pretraining` names them."""

    @property
    def row(self) -> Algorithm:
        """The row with what was given. Raises InputError for columns that do not fit together."""
        changes = {name: getattr(self, name) for name in self.model_fields_set - {"name"}}
        return vary(ALGORITHMS[self.name], **changes)

    @model_validator(mode="after")
    def _columns_fit(self) -> "AlgorithmSection":
        try:
            self.row  # noqa: B018  it is made to see whether it can be
        except InputError as error:
            raise ValueError(str(error)) from error
        return self


Algorithms = Annotated[
    AlgorithmSection | PairsSection | SppoSection,
    Field(discriminator="name"),
    default("name", "ppo"),
    shorthand("name"),
]


class CriticSection(Section):
    """The model that says what is still to come, for algorithms whose baseline is a critic."""

    start: str = "auto"
    """`reward`: the loop's own reward model (InstructGPT); `policy`: the policy's trunk with a head that starts at zero; or
    the folder of a reward model with the policy's tokens. `auto` is `reward` where `rl.reward` is the loop's own, trained
    from the SFT policy, otherwise `policy`."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; left out, it is `rl.learning_rate`."""


class ConstraintSection(Section):
    """Something to keep to while the reward rises: a price on violations that grows until they are rare enough (the
    Lagrangian of constrained optimisation, arXiv:1805.11074)."""

    scorer: GoldScorer
    """How well a completion keeps to it, 1 for wholly; what is missing is the violation."""
    limit: float = Field(ge=0)
    """Mean violation that is allowed."""
    rate: float = Field(default=0.1, gt=0)
    """By how much of what is beyond the limit the price grows in each batch."""
    start: float = Field(default=0.0, ge=0)
    """The price in the first batch."""


class RlSection(OptimizerSection):
    """Reinforcement learning in place of training on pairs: the policy samples, is scored, and learns from what it said."""

    algorithm: Algorithms = AlgorithmSection()
    """How scores become a change of the weights."""
    reward: GoldScorer | CompositeAnnotator = Field(
        default=RewardModelAnnotator(kind="reward_model"), discriminator="kind"
    )
    """What is optimised; left out, the loop's own reward model."""
    constraint: ConstraintSection | None = None
    """What must be kept to whatever the reward says."""
    gold: GoldScorer | None = Field(default=None, json_schema_extra={"inert": None})
    """Scores all samples as well and teaches nothing: `rl/gold` beside `rl/score` shows where the reward is exploited."""
    num_prompts: int = Field(default=512, ge=1)
    """Prompts that are kept for it; they are used again when all have been."""
    prompt_sources: PromptSources = Field(default=[], json_schema_extra={"inert": []})
    """What takes the place of some of them, as in `loop.prompt_sources`; the policy that an iteration begins with writes."""
    steps: int = Field(default=50, ge=1)
    """How often the policy samples a batch, is scored and learns from it, in an iteration."""
    prompts_per_step: int = Field(default=32, ge=1)
    """Prompts of such a batch."""
    num_completions: int = Field(default=4, ge=1)
    """Samples of each prompt, at temperature 1: others would not be the policy's own."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest completion."""
    max_prompt_length: int = Field(default=1000, ge=1)
    """Longer prompts are not asked about, and counted."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps that a batch is cut into; all completions of a prompt stay together."""
    inner_epochs: int = Field(default=1, ge=1)
    """How often a batch is learned from."""
    ahead: Literal[0, 1] = 0
    """1 samples a batch while the one before is learned from, by weights that are one batch older."""
    sampler_cap: float | None = Field(default=None, gt=0)
    """A sampled token counts by trainer's / sampler's probability, but at most this; for samples of older weights or of an
    engine that computes less exactly. Left out, it is 2 with `ahead` and 1 for every token without."""
    unfinished_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score of a completion that was cut off before its terminator."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score for each token."""
    overlong_margin: int | None = Field(default=None, ge=1)
    """The last tokens before `max_new_tokens` over which the score falls by up to 1 (DAPO, arXiv:2503.14476)."""
    score_clip: float | None = Field(default=None, gt=0)
    """Scores count no further from 0 than this, before penalties."""
    score_scale: Literal["none", "running", "rank"] = "none"
    """`running`: scores less the mean of all so far, over their standard deviation. `rank`: only the order among a prompt's
    completions counts, from 1 for the best to -1 for the worst."""
    mixed_groups_only: bool = False
    """Leave out prompts whose completions all score alike: they teach nothing (DAPO's dynamic sampling; not filled up)."""
    kl_target: float | None = Field(default=None, gt=0)
    """Nats a completion: the weight of the KL follows it (arXiv:1909.08593); left out, the weight stays as it is."""
    kl_gain: float = Field(default=0.1, gt=0)
    """How fast the weight of the KL follows `kl_target`."""
    max_step_kl: float | None = Field(default=None, gt=0)
    """Nats a token between the policy and the one that sampled, beyond which the rest of a batch is left out; for `trpo` the
    bound on a step, 0.01 where it is not given."""
    critic: CriticSection = CriticSection()
    """The model that says what is still to come."""
    pretraining: Source | None = None
    """Text for `algorithm.ptx_coef`."""
    pretraining_rows: int = Field(default=8, ge=1)
    """Rows of it for each completion (InstructGPT used 8)."""
    reference: Literal["start", "previous"] = "start"
    """The policy to stay near: the SFT policy, or the one that the iteration began with."""
    start: Literal["previous", "sft"] = "previous"
    """Weights an iteration starts from."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """How the learning rate falls after the warm-up."""

    @property
    def row(self) -> Algorithm | None:
        """The row of the table of algorithms; None where completions are compared with each other instead."""
        return self.algorithm.row if isinstance(self.algorithm, AlgorithmSection) else None

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of the reference are read."""
        if isinstance(self.algorithm, AlgorithmSection):
            return self.algorithm.row.kl != "none"
        return self.algorithm.needs_reference

    @property
    def asks_reference(self) -> bool:
        """Whether half of the completions are sampled from the reference."""
        return isinstance(self.algorithm, PairsSection) and self.algorithm.asks_reference

    @property
    def weight_cap(self) -> float | None:
        """The largest weight of a token whose sampler says otherwise than the trainer; None where none is weighed."""
        if self.row is None or (self.sampler_cap is None and not self.ahead):
            return None
        return AHEAD_CAP if self.sampler_cap is None else self.sampler_cap

    @property
    def scorers(self) -> "list[GoldScorer | CompositeAnnotator]":
        """Everything that is asked about samples: the reward, what the constraint asks, the gold."""
        others = (self.constraint.scorer if self.constraint else None, self.gold)
        return [self.reward, *(one for one in others if one is not None)]

    @property
    def steps_together(self) -> int:
        """Optimiser steps made of one batch."""
        return self.minibatches * self.inner_epochs

    @property
    def rates_by_prefix(self) -> Mapping[str, float]:
        return {"critic.": self.critic.learning_rate} if self.critic.learning_rate is not None else {}

    @model_validator(mode="after")
    def _keys_are_read(self) -> "RlSection":
        if self.prompts_per_step > self.num_prompts:
            raise ValueError(
                f"prompts_per_step = {self.prompts_per_step}: there are {self.num_prompts} prompts; raise num_prompts"
            )
        if self.minibatches > self.prompts_per_step:
            raise ValueError(
                f"minibatches = {self.minibatches}: a batch of {self.prompts_per_step} prompts cannot be cut into more"
            )
        if self.kl_target is None and "kl_gain" in self.model_fields_set:
            raise ValueError("kl_gain: there is no target to follow; give kl_target, or leave it out")
        if self.pretraining is None and "pretraining_rows" in self.model_fields_set:
            raise ValueError("pretraining_rows: there is no text; name some in pretraining, or leave it out")
        if self.reference == "previous" and not self.needs_reference:
            raise ValueError(f"reference = previous: {self.algorithm.name} stays near none; leave it out")
        if self.mixed_groups_only and self.num_completions < 2:
            raise ValueError("mixed_groups_only: a single completion is like itself; sample at least 2")
        if self.score_scale == "rank" and self.num_completions < 2:
            raise ValueError("score_scale = rank: a single completion has no rank; sample at least 2")
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                f"lora.dropout = {self.lora.dropout:g}: the policy that samples has none, so that ratios would be noise; "
                "leave it out"
            )
        if self.overlong_margin is not None and self.overlong_margin > self.max_new_tokens:
            raise ValueError("overlong_margin: cannot be longer than max_new_tokens")
        return self

    @model_validator(mode="after")
    def _fits_the_algorithm(self) -> "RlSection":
        if self.row is None:
            self._fits_comparisons()
        else:
            self._fits_row(self.row)
        return self

    def _fits_row(self, row: Algorithm) -> None:
        if row.baseline in ("group", "leave_one_out") and self.num_completions < 2:
            raise ValueError(
                f"num_completions = {self.num_completions}: {self.algorithm.name} compares the completions of a prompt; "
                "sample at least 2"
            )
        if bool(row.ptx_coef) != (self.pretraining is not None):
            raise ValueError("pretraining: goes with algorithm.ptx_coef, as in ppo_ptx; give both or none")
        if self.kl_target is not None and row.kl == "none":
            raise ValueError(f"kl_target: {self.algorithm.name} has no KL; set algorithm.kl, or leave it out")
        if self.kl_target is not None and row.kl_coef == 0:
            raise ValueError(
                "kl_target: the weight of the KL is multiplied, so that 0 stays 0; set algorithm.kl_coef"
            )
        if self.max_step_kl is not None and row.update == "gradient" and self.steps_together == 1:
            raise ValueError(
                "max_step_kl: a batch is a single step, so that there is no rest of it to leave out; raise minibatches or "
                "inner_epochs, or leave it out"
            )
        if row.baseline != "critic" and "critic" in self.model_fields_set:
            raise ValueError(f"critic: {self.algorithm.name} has none; leave it out")
        if row.ratio == "none" and self.inner_epochs > 1:
            raise ValueError(
                f"inner_epochs = {self.inner_epochs}: {self.algorithm.name} weighs by no ratio, so a batch serves once; "
                "set 1, or algorithm.ratio"
            )
        if row.update == "trust_region" and self.steps_together > 1:
            raise ValueError("minibatches, inner_epochs: trpo takes one step a batch; leave them at 1")

    def _fits_comparisons(self) -> None:
        """Completions that are compared have no advantages, no ratios and no critic."""
        name = self.algorithm.name
        unread = {"kl_target", "max_step_kl", "critic", "pretraining", "mixed_groups_only", "sampler_cap"}
        if given := sorted(unread & {key for key in self.model_fields_set if getattr(self, key) is not None}):
            raise ValueError(f"{', '.join(given)}: {name} reads none of it; leave it out")
        if self.num_completions < 2:
            raise ValueError(
                f"num_completions = {self.num_completions}: {name} compares the completions of a prompt; sample at least 2"
            )
        if self.asks_reference and self.num_completions % 2:
            raise ValueError(
                f"num_completions = {self.num_completions}: half of them are the reference's; make it even"
            )
        if self.asks_reference and self.ahead:
            raise ValueError(
                f"ahead: {name} samples from the reference too, which is in use meanwhile; set it to 0"
            )
