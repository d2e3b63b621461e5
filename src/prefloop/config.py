"""Every config section, and reading an experiment from YAML and `section.key=value` overrides.

One YAML file describes one experiment. Unknown keys are errors. `runtime:` is the only section that must not change
results and the only one that is never part of an artefact's key. Knows nothing about torch or files other than the
experiment itself.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from prefloop.interfaces import InputError

SelectionRule = Literal["max_min", "max_random", "max_max", "max_min_penalised", "random", "first_two"]
DataFormat = Literal[
    "auto", "prompt", "prompt_completion", "preference", "unpaired", "messages", "hh", "ultrafeedback",
    "online_rlhf", "alpaca", "sharegpt", "text", "groups",
]  # fmt: skip


NOT_HASHED: dict[str, Any] = {"hashed": False}
"""Marks a key that must not change results, so that it does not enter an artefact's key."""


class Section(BaseModel):
    """A group of config keys; frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _shorthand(key: str) -> BeforeValidator:
    """Lets a section be written as a single string, which becomes its `key`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _default_kind(kind: str) -> BeforeValidator:
    """Lets `kind` be left out of a section that has a usual one."""
    return BeforeValidator(
        lambda value: {"kind": kind, **value} if isinstance(value, dict) and "kind" not in value else value
    )


class SourceSection(Section):
    """Where rows come from: a file, a folder, `hub:name`, or text that prefloop makes itself (`builtin:tales/...`)."""

    path: str
    """File (jsonl, json, csv, parquet, each also .gz), folder of such files, `hub:owner/name`, or `builtin:...`."""
    split: str = "train"
    """Split of a hub data set."""
    format: DataFormat = "auto"
    """Row format; `auto` looks at the fields of the first row and says what it found."""
    fields: dict[str, str] = {}
    """Renames columns before the format is recognised: {prefloop's name: name in your file}."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first rows only; more than the file has is fine."""
    bad_rows: Literal["stop", "drop"] = "stop"
    """`stop` at the first bad row and name it, or `drop` bad rows and count them by reason."""


Source = Annotated[SourceSection, _shorthand("path")]


class ModelSection(Section):
    """The language model everything starts from."""

    path: str = "builtin:tiny-llama"
    """Folder, hub name, or `builtin:tiny-llama` (a small Llama made from scratch on `sft.text`)."""
    revision: str | None = None
    """Hub revision; the resolved commit enters the artefact key."""
    template: str = "auto"
    """Chat template: `auto` (the tokenizer's), `plain` (turns joined as they are), a .jinja file, or the template."""
    terminator: str = "auto"
    """Token that ends an answer, learned in training and stopped at in sampling; `auto` is the tokenizer's EOS."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision. Master weights stay float32; bfloat16 uses autocast."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code in this process."""


Model = Annotated[ModelSection, _shorthand("path")]


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
    packing: bool = False
    """Join rows up to `max_length` tokens to waste no padding; rows of one pack attend to each other."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=32, ge=1)
    """Rows (pairs, for preferences) in one optimiser step, over all devices."""


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
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts held out to measure accuracy; never trained on."""
    learning_rate: float = Field(default=9e-6, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=64, ge=1)
    """Rows (pairs, for preferences) in one optimiser step, over all devices."""


class HfEngine(Section):
    """Samples with transformers in this process."""

    kind: Literal["hf"] = "hf"
    """Name of the engine."""


class RecordedEngine(Section):
    """Takes completions from a file of groups instead of sampling; no policy is run."""

    kind: Literal["recorded"]
    """Name of the engine."""
    source: Source
    """Groups: `prompt` and a list of `responses`."""


Engine = Annotated[HfEngine | RecordedEngine, Field(discriminator="kind"), _default_kind("hf")]


class TemperatureShare(Section):
    """A part of a group's completions and the temperature they are drawn at."""

    count: int = Field(ge=1)
    """How many completions."""
    temperature: float = Field(ge=0)
    """Their temperature; 0 is greedy."""


class GenerateSection(Section):
    """How completions are drawn from the policy."""

    engine: Engine = HfEngine()
    """Who samples."""
    num_completions: int = Field(default=8, ge=1)
    """Completions per prompt; pairs need at least two."""
    temperature: float = Field(default=1.0, ge=0)
    """1.0 samples the policy itself; 0 is greedy."""
    temperatures: list[TemperatureShare] | None = None
    """Mixed temperatures, for instance 4 at 1.0 and 4 at 0.7; counts must sum to `num_completions`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the smallest set of tokens with this probability."""
    top_k: int = Field(default=0, ge=0)
    """Keep this many tokens; 0 keeps all."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest completion; longer ones end with finish_reason `length`."""
    max_prompt_length: int = Field(default=1000, ge=1)
    """Longer prompts are dropped and counted, never cut."""

    @model_validator(mode="after")
    def _counts_add_up(self) -> "GenerateSection":
        if self.temperatures and sum(share.count for share in self.temperatures) != self.num_completions:
            total = sum(share.count for share in self.temperatures)
            raise ValueError(
                f"temperatures count {total} completions but num_completions is {self.num_completions}"
            )
        return self


class RewardModelAnnotator(Section):
    """Scores with a scalar reward model: the loop's own, or the one in `model`."""

    kind: Literal["reward_model"]
    """Name of the annotator."""
    model: str | None = None
    """Folder or hub name; left out, it is the loop's current reward model."""


class PairwiseAnnotator(Section):
    """Compares with a language model that answers A or B, averaged over both orders (RLHFlow's format)."""

    kind: Literal["pairwise"]
    """Name of the annotator."""
    model: str
    """Folder or hub name of the causal language model."""
    template: str = "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"
    """Text of the user turn; must hold {context}, {a} and {b}."""


class RuleAnnotator(Section):
    """Scores by a built-in rule."""

    kind: Literal["rule"]
    """Name of the annotator."""
    rule: Literal["tales", "tales_craft", "words", "length", "math_answer"]
    """`tales`: the hidden quality of the built-in tales; `words`: share of `words` found; `length`; `math_answer`."""
    words: list[str] = []
    """For `words`: looked for as whole words, case-insensitively."""
    target_length: int = Field(default=0, ge=0)
    """For `length`: score is minus the distance from this many characters; 0 scores the length itself."""


class FunctionAnnotator(Section):
    """Scores with your own function `f(prompt: str, completion: str, answer: str | None) -> float`."""

    kind: Literal["function"]
    """Name of the annotator."""
    target: str
    """`path/to/file.py:name`; the file's content enters the artefact key."""


class JudgeAnnotator(Section):
    """Asks a language model behind an OpenAI-compatible endpoint which of two completions is better."""

    kind: Literal["judge"]
    """Name of the annotator."""
    base_url: str
    """Endpoint, for instance http://127.0.0.1:8000/v1."""
    model: str
    """Model name sent with every request."""
    api_key_env: str = Field(default="OPENAI_API_KEY", json_schema_extra=NOT_HASHED)
    """Environment variable that holds the key; the key itself is never written anywhere."""
    template: str = "auto"
    """Question put to the judge with {prompt}, {a} and {b}; `auto` is the built-in one."""
    both_orders: bool = True
    """Ask in both orders and average; each order costs one label."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of the judge."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest verdict."""
    retries: int = Field(default=5, ge=0, json_schema_extra=NOT_HASHED)
    """How often a failed request is repeated, with growing pauses."""
    timeout_s: float = Field(default=60.0, gt=0, json_schema_extra=NOT_HASHED)
    """Seconds before a request counts as failed."""
    concurrency: int = Field(default=8, ge=1, json_schema_extra=NOT_HASHED)
    """Requests under way at once."""
    price_per_million_tokens: float = Field(default=0.0, ge=0, json_schema_extra=NOT_HASHED)
    """For the cost that `prefloop show` prints; prompt and completion tokens count alike."""


class SimulatedAnnotator(Section):
    """A pool of simulated people who see a hidden gold score through their own taste and noise (AlpacaFarm)."""

    kind: Literal["simulated"]
    """Name of the annotator."""
    gold: "GoldScorer"
    """The hidden truth."""
    pool: int = Field(default=13, ge=1)
    """How many annotators; one is drawn per pair from the seed."""
    flip: float = Field(default=0.25, ge=0, le=0.5)
    """Probability that a verdict is inverted."""
    temperature: float = Field(default=0.0, ge=0)
    """Scale of the logistic noise on the gold difference; 0 compares exactly."""
    scale_spread: float = Field(default=0.0, ge=0)
    """Spread of the annotators' own temperatures (log-normal)."""
    length_bias: float = 0.0
    """Added gold per 100 characters, the same for all."""
    position_bias: float = 0.0
    """Added gold for the completion shown first."""
    taste_spread: float = Field(default=0.0, ge=0)
    """Standard deviation of a fixed personal offset per annotator and completion."""
    tie_band: float = Field(default=0.0, ge=0)
    """Perceived differences smaller than this are called a tie."""
    refusal_rate: float = Field(default=0.0, ge=0, le=1)
    """Share of questions left unanswered; counted, never invented."""
    votes: int = Field(default=1, ge=1)
    """Independent votes per pair, from different annotators; each costs one label."""


class RecordedAnnotator(Section):
    """Replays verdicts from a file: scores next to the completions, or prefloop's own judgement rows."""

    kind: Literal["recorded"]
    """Name of the annotator."""
    path: str
    """File of groups with scores (`responses` and `rewards`), or judgements.jsonl."""
    score_field: str = "rewards"
    """Column with one score a completion; null means not judged."""


class HumanAnnotator(Section):
    """People. The loop publishes tasks, stops with its own exit code, and goes on when they are judged."""

    kind: Literal["human"]
    """Name of the annotator."""
    overlap: int = Field(default=1, ge=1)
    """Judgements wanted per task."""
    quorum: float = Field(default=1.0, gt=0, le=1)
    """Share of tasks that must be judged before the loop goes on."""


GoldScorer = Annotated[RuleAnnotator | FunctionAnnotator | RewardModelAnnotator, Field(discriminator="kind")]
Annotator = Annotated[
    RewardModelAnnotator
    | PairwiseAnnotator
    | RuleAnnotator
    | FunctionAnnotator
    | JudgeAnnotator
    | SimulatedAnnotator
    | RecordedAnnotator
    | HumanAnnotator,
    Field(discriminator="kind"),
]
SCORING_KINDS = frozenset({"reward_model", "rule", "function"})
COMPARING_KINDS = frozenset({"pairwise", "judge", "human"})


class AnnotateSection(Section):
    """Who judges, and what they are asked."""

    annotator: Annotator = RewardModelAnnotator(kind="reward_model")
    """The annotator (the oracle): its verdicts are the labels that are counted."""
    ask: Literal["auto", "scores", "one_pair", "all_pairs"] = "auto"
    """`scores`: a score for each completion; `one_pair`: one comparison a prompt; `all_pairs`: every two completions."""
    propose: Literal["max_min", "max_random", "max_max", "random", "first_two"] = "max_min"
    """For `one_pair`: how the reward model picks the two to compare; without a reward model a random two are taken."""

    @model_validator(mode="after")
    def _annotator_can(self) -> "AnnotateSection":
        kind = self.annotator.kind
        if kind in SCORING_KINDS and self.ask not in ("auto", "scores"):
            raise ValueError(f"ask: {self.ask} needs an annotator that compares; {kind} gives scores")
        if kind in COMPARING_KINDS and self.ask == "scores":
            raise ValueError(f"ask: scores needs an annotator that scores; {kind} compares")
        return self

    @property
    def asks(self) -> Literal["scores", "one_pair", "all_pairs", "recorded"]:
        """What is asked, with `auto` resolved."""
        if self.annotator.kind == "recorded":
            return "recorded"
        if self.ask != "auto":
            return self.ask
        return "scores" if self.annotator.kind in SCORING_KINDS else "one_pair"


class SelectSection(Section):
    """Which two completions of a group become a preference pair."""

    rule: SelectionRule = "max_min"
    """Rule on the scores; with one comparison per prompt the compared two are the pair."""
    length_penalty: float = Field(default=0.0, ge=0)
    """For `max_min_penalised`: subtracted from the score per unit of length."""
    length_unit: Literal["characters", "tokens"] = "characters"
    """Unit of `length_penalty`."""
    margin_scale: float = Field(default=1.0, gt=0)
    """Margins are multiplied by this."""
    pairs_per_prompt: Literal["one", "all"] = "one"
    """`all` makes a pair of every two completions the annotator ranked apart, weighted to one per prompt."""


class DpoObjective(Section):
    """DPO (arXiv:2305.18290); with label smoothing it is conservative DPO."""

    kind: Literal["dpo"] = "dpo"
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """Temperature: how far the policy may move from the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Assumed probability that a label is wrong."""


class IpoObjective(Section):
    """IPO (arXiv:2310.12036)."""

    kind: Literal["ipo"]
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """The paper's tau; the target margin is 1 / (2 beta)."""


class HingeObjective(Section):
    """Hinge loss on the DPO margin (SLiC, arXiv:2305.10425)."""

    kind: Literal["hinge"]
    """Name of the objective."""
    beta: float = Field(default=0.1, gt=0)
    """Scale of the margin."""


class RaftObjective(Section):
    """Fine-tuning on the chosen completion only (RAFT, best-of-n; arXiv:2304.06767)."""

    kind: Literal["raft"]
    """Name of the objective."""


Objective = Annotated[
    DpoObjective | IpoObjective | HingeObjective | RaftObjective,
    Field(discriminator="kind"),
    _default_kind("dpo"),
]


class PolicySection(AnswerTrainingSection):
    """Training the policy on preference pairs."""

    objective: Objective = DpoObjective()
    """The loss."""
    reference: str = "start"
    """`start` (the SFT policy, fixed), `previous` (mirror descent, less stable), or a model folder."""
    start: Literal["previous", "sft"] = "previous"
    """Weights an iteration starts from."""
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


class EvaluateSection(Section):
    """Measuring policies on prompts that were never trained on."""

    prompts: Source | None = None
    """Evaluation prompts; left out, `num_prompts` are held out of the training prompts."""
    num_prompts: int = Field(default=128, ge=0)
    """How many prompts; 0 switches evaluation off."""
    scorer: GoldScorer | None = None
    """The evaluator: a held-out scorer that is not the annotator. Left out, only the proxy and text statistics count."""
    second_scorer: GoldScorer | None = None
    """A differently built scorer that exposes shortcuts."""
    num_completions: int = Field(default=1, ge=1)
    """Samples per evaluation prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """0 evaluates greedy answers."""
    num_samples_shown: int = Field(default=8, ge=0)
    """Samples kept side by side in the report."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Level of the intervals."""
    resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples over prompts."""


class GateSection(Section):
    """Whether a new policy replaces the old one; a rejected one is rolled back."""

    metric: Literal["none", "proxy", "score"] = "none"
    """`proxy`: the refreshed reward model; `score`: `evaluate.scorer`. Measured on prompts held out for the gate only."""
    num_prompts: int = Field(default=64, ge=2)
    """Prompts held out for the gate, disjoint from training and evaluation."""
    max_kl: float | None = Field(default=None, gt=0)
    """A policy farther than this from the SFT policy, in nats per completion, is rejected."""


class LoopSection(Section):
    """The outer loop, and the one knob from offline to online."""

    batches: int = Field(default=3, ge=0)
    """Label batches in the whole run; 0 trains on `policy.offline_data` alone."""
    prompts_per_batch: int = Field(default=128, ge=1)
    """Prompts in one label batch."""
    refresh_every: int | Literal["never"] = 1
    """Label batches between refreshes of the policy that samples: 1 is online, `never` is offline."""
    reward_refresh_every: int | Literal["never"] = 1
    """Policy refreshes between refreshes of the reward model."""
    max_labels: int | None = Field(default=None, ge=1)
    """Stop exactly after this many labels, those for the first reward model included."""
    max_staleness: int | None = Field(default=None, ge=0)
    """With accumulated data: drop (and count) samples from policies more than this many refreshes old."""
    gate: GateSection = GateSection()
    """Whether a new policy must earn its place."""

    @model_validator(mode="after")
    def _positive(self) -> "LoopSection":
        for key in ("refresh_every", "reward_refresh_every"):
            if isinstance(value := getattr(self, key), int) and value < 1:
                raise ValueError(f"{key} must be at least 1 or 'never'")
        return self

    @property
    def iterations(self) -> int:
        """How often the policy is trained."""
        if not self.batches:
            return 0
        return 1 if self.refresh_every == "never" else -(-self.batches // self.refresh_every)

    def batches_of(self, iteration: int) -> range:
        """The label batches that iteration `iteration` (from 0) collects."""
        every = self.batches if self.refresh_every == "never" else self.refresh_every
        return range(iteration * every, min((iteration + 1) * every, self.batches))

    def refreshes_reward_after(self, iteration: int) -> bool:
        """Whether the reward model is retrained after this iteration."""
        return self.reward_refresh_every != "never" and (iteration + 1) % self.reward_refresh_every == 0


class RuntimeSection(Section):
    """Where and how things run. Must not change results, so nothing here is part of an artefact's key."""

    workspace: str = "workspace"
    """Folder of all artefacts and runs."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where models run."""
    num_processes: int = Field(default=1, ge=1)
    """Training processes on this machine (data parallel)."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves the choice to torch."""
    microbatch_tokens: int = Field(default=8192, ge=1)
    """Tokens in one forward and backward pass; the optimiser's batch is cut into as many as needed."""
    generation_rows: int = Field(default=256, ge=1)
    """Completions sampled side by side."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation asked of transformers."""
    save_every_steps: int = Field(default=50, ge=1)
    """Optimiser steps between checkpoints inside a training stage."""
    trackers: list[Literal["wandb", "tensorboard", "trackio"]] = []
    """Where metrics go besides metrics.jsonl."""


class Experiment(Section):
    """One experiment: everything the loop reads."""

    name: str = Field(default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder in the workspace."""
    seed: int = Field(default=0, ge=0)
    """Every random choice follows from this."""
    model: Model = ModelSection()
    """The language model everything starts from."""
    prompts: Source | None = None
    """Training prompts."""
    sft: SftSection = SftSection()
    """Supervised fine-tuning."""
    reward: RewardSection = RewardSection()
    """The reward model."""
    generate: GenerateSection = GenerateSection()
    """Sampling from the policy."""
    annotate: AnnotateSection = AnnotateSection()
    """Judging the samples."""
    select: SelectSection = SelectSection()
    """From judgements to pairs."""
    policy: PolicySection = PolicySection()
    """Training the policy."""
    evaluate: EvaluateSection = EvaluateSection()
    """Measuring the policy."""
    loop: LoopSection = LoopSection()
    """The outer loop."""
    arms: dict[str, dict[str, Any]] = {}
    """Variants that run after the main one and share what they can: {name: {section.key: value}}."""
    runtime: RuntimeSection = RuntimeSection()
    """Devices, processes, batch splitting, logging."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if self.needs_prompts and self.prompts is None and self.generate.engine.kind != "recorded":
            raise ValueError(
                "prompts: missing; name a file of prompts (or set loop.batches=0 to train on pairs only)"
            )
        if (
            not self.loop.batches
            and self.evaluate.num_prompts
            and not (self.evaluate.prompts or self.prompts)
        ):
            raise ValueError("evaluate.prompts: missing; name a file, or set evaluate.num_prompts=0")
        if self.loop.batches and self.generate.engine.kind == "hf" and self.generate.num_completions < 2:
            raise ValueError(
                f"generate.num_completions = {self.generate.num_completions}: selection {self.select.rule} needs at least 2"
            )
        if self.loop.batches and not self.has_reward_model and self._uses_loop_reward():
            raise ValueError(
                "annotate.annotator: reward_model needs a reward model; set reward.model, reward.data, "
                "or annotate.annotator.model"
            )
        if self.reward.seed_prompts and self.annotate.annotator.kind == "reward_model":
            raise ValueError(
                "reward.seed_prompts: labels from a reward model cannot train it; use reward.data"
            )
        if self.reward.seed_prompts and self.annotate.annotator.kind == "recorded":
            raise ValueError(
                "reward.seed_prompts: a recorded annotator cannot judge new samples; use reward.data"
            )
        if self.loop.gate.metric == "proxy" and not self.has_reward_model:
            raise ValueError("loop.gate.metric: proxy needs a reward model")
        if self.loop.gate.metric == "score" and self.evaluate.scorer is None:
            raise ValueError("loop.gate.metric: score needs evaluate.scorer")
        if (
            self.model.path.startswith("builtin:")
            and self.loop.batches
            and self.sft.text is None
            and self.sft.data is None
        ):
            raise ValueError("sft.text: a model from scratch needs text to learn from")
        own = (self.model.template, self.model.terminator) == ("auto", "auto")
        if self.model.path.startswith("builtin:") and not own:
            raise ValueError("model.template: a built-in model has a template and a terminator of its own")
        return self

    def _uses_loop_reward(self) -> bool:
        annotator = self.annotate.annotator
        return annotator.kind == "reward_model" and annotator.model is None

    @property
    def needs_prompts(self) -> bool:
        """Whether anything is sampled for training or for the gate."""
        return bool(self.loop.batches or self.reward.seed_prompts or self.loop.gate.metric != "none")

    @property
    def has_reward_model(self) -> bool:
        """Whether the loop has a reward model of its own."""
        return bool(self.reward.model or self.reward.data or self.reward.seed_prompts)

    @property
    def evaluator_is_annotator(self) -> bool:
        """Whether the same scorer both labels and evaluates: fine for cost curves, unsafe as the only metric."""
        return self.evaluate.scorer is not None and self.evaluate.scorer == self.annotate.annotator

    def arm(self, name: str) -> "Experiment":
        """The experiment with the overrides of one arm. Raises InputError for unknown keys."""
        overrides = [(key, value) for key, value in self.arms[name].items()]
        data = self.model_dump(exclude={"arms"}, exclude_unset=True)
        for key, value in overrides:
            _set(data, key, value, where=f"arms.{name}")
        return _parse(data, where=f"arms.{name}")


MAIN_ARM = "main"


def load(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads an experiment. Overrides are `section.key=value` with YAML values. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the experiment: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file; an experiment is YAML") from error
    return parse(text, overrides, where=str(path))


def parse(text: str, overrides: Iterable[str] = (), *, where: str) -> Experiment:
    """Reads an experiment from YAML text; `where` names it in errors."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: broken YAML: {error}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InputError(f"{where}: an experiment is a YAML mapping, not {type(data).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(
                f"{override!r}: an override looks like section.key=value, for instance loop.batches=3"
            )
        try:
            _set(data, key, yaml.safe_load(value), where="override")
        except yaml.YAMLError as error:
            raise InputError(f"{override!r}: broken YAML value: {error}") from error
    experiment = _parse(data, where=where)
    for arm in experiment.arms:
        if arm == MAIN_ARM:
            raise InputError(f"{where}: arms.{arm}: the name {MAIN_ARM!r} belongs to the experiment itself")
        experiment.arm(arm)
    return experiment


def keys() -> list[str]:
    """Every dotted config key, sections included, in the order of the documentation."""
    return list(_walk(Experiment, ""))


def hashed(section: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section as they enter an artefact's key.

    All values are hashed, defaults too, so that a changed default never reuses old artefacts. A key added later is
    declared with `json_schema_extra={"inert": value}`, the value that means "as before this key existed"; it is left out
    while it has that value, so that adding it keeps old artefacts valid. Keys marked NOT_HASHED are left out.
    """
    if not isinstance(section, BaseModel):
        return dict(section)
    values: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra
        if isinstance(extra, dict) and (
            extra.get("hashed") is False or ("inert" in extra and extra["inert"] == value)
        ):
            continue
        values[name] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return hashed(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _set(data: dict[str, Any], dotted: str, value: Any, *, where: str) -> None:
    *path, last = dotted.split(".")
    for name in path:
        inner = data.get(name)
        if isinstance(
            inner, str
        ):  # a shorthand string being refined: `prompts=x.jsonl` then `prompts.limit=3`
            inner = {"path": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise InputError(f"{where}: {dotted}: {name} is not a section")
        data[name] = dict(inner)
        data = data[name]
    data[last] = value


def _parse(data: dict[str, Any], *, where: str) -> Experiment:
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {_explain(detail)}" for detail in error.errors())) from error


def _explain(detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    known = keys()
    # pydantic puts the tag of a union member into the location; a key path has no such part
    key = ".".join(part for part in location if part not in UNION_TAGS)
    if detail["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        parent = key.rpartition(".")[0]
        siblings = [name for name in known if name.rpartition(".")[0] == parent]
        hint = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(siblings) or 'nothing'}"
        return f"{key}: unknown key; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if not location:
        return message
    return (
        f"{key} = {detail['input']!r}: {message}" if detail["type"] != "value_error" else f"{key}: {message}"
    )


UNION_TAGS = frozenset(
    {"reward_model", "pairwise", "rule", "function", "judge", "simulated", "recorded", "human", "hf"}
    | {
        "dpo",
        "ipo",
        "hinge",
        "raft",
        "int",
        "float",
        "list[str]",
        "literal['never']",
        "literal['all-linear']",
    }
    | {"function-before[<lambda>(), SourceSection]"}
)


def _walk(section: type[BaseModel], prefix: str) -> Iterable[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        seen: set[str] = set()
        for inner in sections_in(field.annotation):
            for key in _walk(inner, f"{prefix}{name}."):
                if key not in seen:
                    seen.add(key)
                    yield key


def sections_in(annotation: Any) -> list[type[Section]]:
    """The config sections that a field's annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    found: list[type[Section]] = []
    for inner in getattr(annotation, "__args__", ()):
        found += sections_in(inner)
    return found


SimulatedAnnotator.model_rebuild()
