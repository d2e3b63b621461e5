"""Reward models: where they come from, and what they are trained to do. A key belongs to the kind that reads it."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from prefloop.config.section import Section, default_kind
from prefloop.config.source import Source
from prefloop.config.training import TrainingSection

PAIRWISE_TEMPLATE = "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"
"""RLHFlow's format of a comparison."""


class RewardKind(Section):
    """What the loop must know of a reward model before it is trained."""

    rows: ClassVar[Literal["pairs", "rules", "steps"]] = "pairs"
    """What it learns from; the labels of the loop are pairs."""
    gives_scores: ClassVar[bool] = True
    """Whether it scores single completions; otherwise it compares two."""
    groupings: ClassVar[frozenset[str]] = frozenset()
    """Values of `grouping` that it can do with; none where it does not read that key."""
    trains_trunk: ClassVar[bool] = True
    """Whether the language model itself is trained, not only heads on its features."""


class ScalarReward(RewardKind):
    """A head that gives one score a completion."""

    normalise: Literal["none", "standardise"] = "none"
    """`standardise`: scores of the training completions get mean 0 and deviation 1. Stored with the model."""
    zero_at: Literal["none", "demonstrations", "validation"] = "none"
    """Shift scores so that these average 0: demonstrations of `sft.data` (InstructGPT), or held-out completions."""


class CentredReward(ScalarReward):
    """A scalar head whose scores may be held around 0 in training."""

    centring_weight: float = Field(default=0.0, ge=0)
    """Weight of the squared mean score of a prompt's completions (arXiv:2312.09244)."""


class BradleyTerryReward(CentredReward):
    """Bradley-Terry on pairs; with `grouping: prompt` the K-way loss of InstructGPT (arXiv:2203.02155)."""

    groupings: ClassVar[frozenset[str]] = frozenset({"prompt", "pair"})

    kind: Literal["bradley_terry"] = "bradley_terry"
    """Name of the objective."""
    margin_scale: float = Field(default=0.0, ge=0)
    """The chosen score must lead by the label's margin times this (Llama 2, arXiv:2307.09288); 0 asks for no margin."""
    margin_table: dict[float, float] | None = None
    """In place of a scale: what to lead by for each margin that labels have, for instance {1: 0, 2: 0.33, 3: 0.67}."""

    @model_validator(mode="after")
    def _one_margin(self) -> "BradleyTerryReward":
        if self.margin_scale and self.margin_table is not None:
            raise ValueError("margin_table: takes the place of margin_scale; keep one of the two")
        if any(value < 0 for value in (self.margin_table or {}).values()):
            raise ValueError("margin_table: a score cannot be asked to lead by less than 0")
        return self


class MarginRankingReward(CentredReward):
    """Hinge on the lead of the chosen score."""

    groupings: ClassVar[frozenset[str]] = frozenset({"prompt", "pair"})

    kind: Literal["margin_ranking"]
    """Name of the objective."""
    margin: float = Field(default=1.0, gt=0)
    """What the chosen score must lead by."""


class PlackettLuceReward(CentredReward):
    """Likelihood of each prompt's whole ranking; ties are not ordered."""

    groupings: ClassVar[frozenset[str]] = frozenset({"prompt"})

    kind: Literal["plackett_luce"]
    """Name of the objective."""


class SparrowReward(ScalarReward):
    """The choice among a turn's options and random statements, with Bradley-Terry and centring (arXiv:2209.14375)."""

    groupings: ClassVar[frozenset[str]] = frozenset({"prompt"})

    kind: Literal["sparrow"]
    """Name of the objective."""
    cross_entropy_weight: float = Field(default=1.0, ge=0)
    """Weight of the choice among all options and random statements."""
    bradley_terry_weight: float = Field(default=1.0, ge=0)
    """Weight of the chosen option against each other option."""
    centring_weight: float = Field(default=0.01, ge=0)
    """Weight of the squared mean score of a turn's statements."""
    bad_score: float = 0.0
    """Score that wins over every statement where all options were judged bad."""
    random_per_option: int = Field(default=1, ge=0)
    """Random statements of other dialogues for each option; they lose, which punishes answers off the topic."""


class RulesReward(RewardKind):
    """P(violated | dialogue, rule) for rules in words: one head for all rules, the rule is read with the dialogue."""

    rows: ClassVar[Literal["pairs", "rules", "steps"]] = "rules"

    kind: Literal["rules"]
    """Name of the objective."""


class PairwiseReward(RewardKind):
    """A language model that answers A or B, trained on the one letter."""

    gives_scores: ClassVar[bool] = False

    kind: Literal["pairwise"]
    """Name of the objective."""
    template: str = PAIRWISE_TEMPLATE
    """Text of the user turn with {context}, {a} and {b}; stored with the model."""


class EnsembleReward(ScalarReward):
    """Small Bradley-Terry heads on a frozen language model: their mean is the score, their spread the uncertainty."""

    trains_trunk: ClassVar[bool] = False

    kind: Literal["ensemble"]
    """Name of the objective."""
    num_heads: int = Field(default=8, ge=2)
    """Heads, each with its own start and its own bootstrap sample of the prompts."""
    hidden_size: int = Field(default=64, ge=0)
    """Width of a head's hidden layer; 0 makes heads linear."""
    head_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the heads."""


class MultiObjectiveReward(RewardKind):
    """Objectives read from a frozen language model and weighted by a gate on the prompt (ArmoRM, arXiv:2406.12845)."""

    trains_trunk: ClassVar[bool] = False

    kind: Literal["multi_objective"]
    """Name of the objective."""
    ratings: Source
    """Completions with `ratings` by objective, {helpful: 3, verbose: 1}; missing ones are allowed."""
    verbosity: str | None = None
    """The objective that measures length; the others are corrected until they no longer rank by it."""
    max_correlation: float = Field(default=0.03, ge=0, lt=1)
    """Largest Spearman correlation with `verbosity` that the correction leaves, where it can."""
    gate_hidden_size: int = Field(default=256, ge=1)
    """Width of the gate's hidden layer."""
    gate_temperature: float = Field(default=10.0, gt=0)
    """The gate's logits are divided by this before the softmax over objectives."""
    head_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the gate."""


class ProcessReward(RewardKind):
    """P(right) at the end of every step of a solution."""

    rows: ClassVar[Literal["pairs", "rules", "steps"]] = "steps"

    kind: Literal["process"]
    """Name of the objective."""
    reduction: Literal["mean", "min", "last"] = "mean"
    """How the steps of a completion make its score."""
    separator: str = Field(default="\n\n", min_length=1)
    """What ends a step in a completion."""


RewardObjective = Annotated[
    BradleyTerryReward
    | MarginRankingReward
    | PlackettLuceReward
    | SparrowReward
    | RulesReward
    | PairwiseReward
    | EnsembleReward
    | MultiObjectiveReward
    | ProcessReward,
    Field(discriminator="kind"),
    default_kind("bradley_terry"),
]
INERT_OBJECTIVE: dict[str, Any] = {"inert": BradleyTerryReward()}


class RewardGateSection(Section):
    """Whether a refreshed reward model replaces the one before, judged on pairs that neither was trained on."""

    tolerance: float = Field(default=0.0, ge=0, le=1)
    """Share of held-out pairs that the new one may order worse, beyond doubt; 1 keeps every new one and only reports."""


class RewardSection(TrainingSection):
    """The reward model: trained on labels, on a file, or brought along."""

    model: str | None = None
    """A finished reward model to use as it is."""
    objective: RewardObjective = Field(default=BradleyTerryReward(), json_schema_extra=INERT_OBJECTIVE)
    """What it is trained to do, and on which rows."""
    data: Source | None = None
    """Rows to train on before the loop starts: preferences, or what the objective reads."""
    pairs_per_prompt: Literal["auto", "one", "all"] = "auto"
    """Of a ranking in `data`: best against worst, or all pairs; `auto` is all where the objective reads whole groups."""
    seed_prompts: int = Field(default=0, ge=0)
    """Prompts whose completions by the SFT policy are labelled to train the first reward model."""
    start: str = "sft"
    """Trunk to start from: `sft` (the SFT policy) or a model folder or hub name."""
    grouping: Literal["prompt", "pair"] = "prompt"
    """What a row of `batch_size` is: all pairs of a prompt, which then counts once (InstructGPT), or one pair."""
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts held out to measure accuracy; never trained on."""
    gate: RewardGateSection | None = None
    """Let a refreshed reward model earn its place; leave out to use every new one."""
    learning_rate: float = Field(default=9e-6, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=64, ge=1)
    """Rows (pairs, for preferences) in one optimiser step, over all devices."""

    @model_validator(mode="after")
    def _keys_are_read(self) -> "RewardSection":
        problem = next(self._problems(), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """Keys that were set although nothing would read them, and what to do."""
        objective, kind, given = self.objective, self.objective.kind, self.model_fields_set
        if not (self.model or self.data or self.seed_prompts) and objective != BradleyTerryReward():
            yield "objective: there is nothing to train on; name reward.data, or leave it out"
        if self.model is not None and kind != "pairwise" and objective != BradleyTerryReward():
            yield "objective: a finished model is not trained; leave it out, or write {kind: pairwise}"
        if "grouping" in given and self.grouping not in objective.groupings:
            can = " or ".join(sorted(objective.groupings))
            yield f"grouping: {kind} " + (f"needs {can}" if can else "does not read it; leave it out")
        if self.pairs_per_prompt == "one" and self._reads_groups:
            yield f"pairs_per_prompt: {kind} reads whole groups; leave it out"
        if objective.rows != "pairs":
            for key in ("pairs_per_prompt", "seed_prompts", "gate"):
                if key in given and getattr(self, key) not in (None, 0):
                    yield f"{key}: {kind} does not learn from preferences; leave it out"
        if not objective.trains_trunk:
            for key in {"lora", "frozen_layers", "learning_rate"} & given:
                if getattr(self, key) != type(self).model_fields[key].default:
                    yield f"{key}: {kind} trains heads on a frozen model; use objective.head_learning_rate, or leave it out"
        if self.gate is not None and (self.model is not None or not self.validation_share):
            yield "gate: needs a reward model that is retrained, and a validation_share above 0 to compare on"
        if getattr(objective, "zero_at", "none") == "validation" and not self.validation_share:
            yield "objective.zero_at: validation needs a validation_share above 0"

    @property
    def learns_from_labels(self) -> bool:
        """Whether the loop's labels can train it anew."""
        return self.model is None and self.objective.rows == "pairs"

    @property
    def reads_all_pairs(self) -> bool:
        """Whether a ranking in `data` is all its pairs."""
        return self.pairs_per_prompt == "all" or self._reads_groups

    @property
    def _reads_groups(self) -> bool:
        return self.objective.groupings == {"prompt"}


class RulesSection(TrainingSection):
    """A rule model beside the reward model (Sparrow, arXiv:2209.14375): P(violated | dialogue, rule), for rules in words."""

    data: Source
    """Rows of a dialogue with its answer, a `rule` in words, and a `verdict` of five levels."""
    start: str = "sft"
    """Trunk to start from: `sft` (the SFT policy) or a model folder or hub name."""
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts held out to measure accuracy; never trained on."""
    learning_rate: float = Field(default=9e-6, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=64, ge=1)
    """Dialogues in one optimiser step, each with all rules that it was judged by, over all devices."""

    @property
    def as_reward(self) -> RewardSection:
        """The section that trains the same model where it is the reward model itself."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return RewardSection(objective=RulesReward(kind="rules"), **given)
