"""Sampling from the policy."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from prefloop.config.annotate import (
    CompositeAnnotator,
    FunctionAnnotator,
    RewardModelAnnotator,
    RuleAnnotator,
    RuleModelAnnotator,
)
from prefloop.config.section import NOT_HASHED, Section, default_kind
from prefloop.config.source import Source

SHAPES = ("temperature", "temperatures", "top_p", "top_k", "min_p", "repetition_penalty")
"""Keys that change the distribution that tokens are drawn from."""
VLLM_TEMPERATURES = (0.01, 2.0)
"""Smaller ones it raises, larger ones it refuses."""


class HfEngine(Section):
    """Samples with transformers in this process."""

    kind: Literal["hf"] = "hf"
    """Name of the engine."""


class RemoteEngine(Section):
    """Asks OpenAI-compatible servers that serve the policy, or starts them itself for the time of a stage."""

    kind: Literal["remote"]
    """Name of the engine."""
    urls: list[str] = Field(default=[], json_schema_extra=NOT_HASHED)
    """Addresses of the servers, for instance http://127.0.0.1:8000/v1; give either these or `replicas`."""
    replicas: int = Field(default=0, ge=0, json_schema_extra=NOT_HASHED)
    """vLLM servers of the current policy that are started on this machine for each stage that samples."""
    server_arguments: list[str] = []
    """Further arguments of those servers, for instance `--max-model-len=4096`."""
    api: Literal["completions", "chat"] = "completions"
    """`completions`: token ids both ways, which vLLM understands. `chat`: any server, but only text comes back: no token ids
    and no log-probabilities."""
    model: str = "auto"
    """Model name sent with every request; `auto` is the only one that the servers say they have."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the servers compute in; `auto` is `model.dtype`. Log-probabilities must be training's where both are float32, and
    near them otherwise."""
    api_key_env: str = Field(default="OPENAI_API_KEY", json_schema_extra=NOT_HASHED)
    """Environment variable that holds the key; the key itself is never written anywhere."""
    concurrency: int = Field(default=32, ge=1, json_schema_extra=NOT_HASHED)
    """Requests under way at once on each server; a request has all completions of a prompt at one temperature."""
    timeout_s: float = Field(default=600.0, gt=0, json_schema_extra=NOT_HASHED)
    """Seconds before a request counts as failed."""
    retries: int = Field(default=5, ge=0, json_schema_extra=NOT_HASHED)
    """How often a failed request is sent again, to another server where there is one."""
    patience_s: float = Field(default=60.0, ge=0, json_schema_extra=NOT_HASHED)
    """Seconds to wait for a server when none answers, before the run stops."""

    @model_validator(mode="after")
    def _has_servers(self) -> "RemoteEngine":
        if bool(self.urls) == bool(self.replicas):
            raise ValueError("give either urls or replicas")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("urls: one is there twice; its `concurrency` says how much it gets")
        if self.server_arguments and not self.replicas:
            raise ValueError(
                "server_arguments: are for the servers of `replicas`; those of `urls` run already"
            )
        return self


class VllmEngine(Section):
    """Samples with vLLM in a process of its own, whose end gives all its memory back. Its keys change nothing but speed,
    memory and rounding."""

    kind: Literal["vllm"]
    """Name of the engine."""
    tensor_parallel_size: int = Field(default=1, ge=1, json_schema_extra=NOT_HASHED)
    """GPUs that hold the policy together, where it is too large for one."""
    memory_share: float = Field(default=0.8, gt=0, lt=1, json_schema_extra=NOT_HASHED)
    """Share of a GPU's memory for weights, keys and values; the rest is for comparing the samples with training."""
    enforce_eager: bool = Field(default=False, json_schema_extra=NOT_HASHED)
    """Sample without CUDA graphs: slower, but it starts sooner and takes less memory. On a CPU always so."""
    keep: bool = Field(default=False, json_schema_extra=NOT_HASHED)
    """Keep the process between stages and give it each new policy, which saves the start. Meanwhile it sleeps on a GPU, but
    on a CPU it holds its memory."""


class RecordedEngine(Section):
    """Takes completions from a file of groups instead of sampling; no policy is run."""

    kind: Literal["recorded"]
    """Name of the engine."""
    source: Source
    """Groups: `prompt` and a list of `responses`."""


PolicyEngine = HfEngine | RemoteEngine | VllmEngine
"""Those that run a policy."""


class SelfEvaluation(Section):
    """The policy judges its own completions: how likely it answers A rather than B."""

    kind: Literal["self"]
    """Name of the scorer."""
    template: str = "auto"
    """Question with {context} and {completion} that A affirms and B denies; `auto` asks whether the answer is good."""


SearchValue = Annotated[
    SelfEvaluation
    | RewardModelAnnotator
    | RuleAnnotator
    | FunctionAnnotator
    | RuleModelAnnotator
    | CompositeAnnotator,
    Field(discriminator="kind"),
    BeforeValidator(lambda value: VALUE_NAMES.get(value, value) if isinstance(value, str) else value),
]
VALUE_NAMES = {"reward": {"kind": "reward_model"}, "self": {"kind": "self"}}
"""What a value may be called for short."""


class MctsEngine(Section):
    """Monte Carlo tree search over the steps of a completion (arXiv:2405.00451), on top of an engine that samples."""

    kind: Literal["mcts"]
    """Name of the engine."""
    engine: Annotated[PolicyEngine, default_kind("hf")] = HfEngine()
    """Who draws the continuations."""
    value: SearchValue = RewardModelAnnotator(kind="reward_model")
    """What scores whole completions: `reward` (the loop's own reward model), `self`, or a scorer as annotators name them."""
    iterations: int = Field(default=16, ge=1)
    """Nodes visited before the search commits itself to a step and goes on from there."""
    depth: int = Field(default=4, ge=1)
    """Steps beyond the committed ones that are searched."""
    first_actions: int = Field(default=4, ge=2)
    """Completions drawn for the prompt."""
    actions: int = Field(default=2, ge=2)
    """Ways to go on from any other node; one of them is the completion that found the node."""
    step: Literal["sentence", "line"] | Annotated[int, Field(ge=1)] = "sentence"
    """Where a step ends: with a sentence, with a line, or after so many tokens."""
    exploration: float = Field(default=1.0, ge=0)
    """Weight of the policy's prior and of few visits against the values, whose range in the tree counts as 1."""
    length_power: float = Field(default=1.25, ge=0)
    """The prior of a step is exp(log-probability / tokens ^ length_power)."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """What follows a step counts for so much of its own gain."""
    same_from: float = Field(default=0.95, gt=0, le=1)
    """Steps from the same node that share this part of their characters are one; 1 joins only equal texts."""

    @property
    def fewest_drawn(self) -> int:
        """Completions drawn before the first commitment, where none of them ends early."""
        return self.first_actions + (self.iterations - 1) * (self.actions - 1)


Engine = Annotated[
    PolicyEngine | MctsEngine | RecordedEngine, Field(discriminator="kind"), default_kind("hf")
]


class TemperatureShare(Section):
    """A part of a group's completions and the temperature they are drawn at."""

    count: int = Field(ge=1)
    """How many completions."""
    temperature: float = Field(ge=0)
    """Their temperature; 0 is greedy."""


class BeamSearch(Section):
    """The most likely completions that a beam search finds, in place of samples."""

    kind: Literal["beam"]
    """Name of the search."""
    length_penalty: float = Field(default=1.0, ge=0)
    """Beams are compared by log-probability / tokens ^ length_penalty: 1 is the mean of a token, 0 the likelihood itself."""


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
    min_p: float = Field(default=0.0, ge=0, le=1, json_schema_extra={"inert": 0.0})
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: float = Field(default=1.0, gt=0, json_schema_extra={"inert": 1.0})
    """Divides (negative ones: multiplies) the logits of tokens that the prompt or the completion has already."""
    search: Annotated[
        BeamSearch | None,
        BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
    ] = Field(default=None, json_schema_extra={"inert": None})
    """`beam` takes the best `num_completions` beams instead of samples: the same every time, and ordered best first. Only
    with the engine hf."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default=[], json_schema_extra={"inert": []})
    """Strings that end a completion; they stay in it."""
    stop_tokens: list[str] = Field(default=[], json_schema_extra={"inert": []})
    """Tokens that end a completion, beside the terminator."""
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

    @model_validator(mode="after")
    def _engine_can(self) -> "GenerateSection":
        if self.sampling_engine.kind != "vllm":
            return self
        if self.min_p and self.top_p < 1:
            raise ValueError(
                "min_p and top_p: vLLM cuts off by min_p first, all others by top_p; keep one of the two"
            )
        for one in self.temperatures or [TemperatureShare(count=1, temperature=self.temperature)]:
            if not (one.temperature == 0 or VLLM_TEMPERATURES[0] <= one.temperature <= VLLM_TEMPERATURES[1]):
                low, high = VLLM_TEMPERATURES
                raise ValueError(f"temperature = {one.temperature:g}: vLLM takes 0, or {low:g} to {high:g}")
        return self

    @model_validator(mode="after")
    def _search_has_choice(self) -> "GenerateSection":
        if not isinstance(self.engine, MctsEngine):
            return self
        if self.temperatures is not None:
            raise ValueError("temperatures: a search draws all continuations at one `temperature`")
        if self.temperature == 0:
            raise ValueError(
                "temperature = 0: greedy continuations are all the same, so there is nothing to search"
            )
        if self.num_completions > self.engine.fewest_drawn:
            raise ValueError(
                f"num_completions = {self.num_completions}: the search may draw only {self.engine.fewest_drawn} completions "
                "(first_actions + (iterations - 1) * (actions - 1)); give it more iterations, or ask for fewer"
            )
        return self

    @model_validator(mode="after")
    def _beams_are_the_policys(self) -> "GenerateSection":
        if self.search is None:
            return self
        if self.engine.kind != "hf":
            raise ValueError(
                f"search = {self.search.kind}: engine {self.engine.kind} has none; choose hf, or leave search out"
            )
        shaped = [name for name in SHAPES if getattr(self, name) != type(self).model_fields[name].default]
        if shaped:
            raise ValueError(
                f"{shaped[0]}: beams are ranked by the policy's own probabilities, nothing is drawn; leave it out, or search"
            )
        return self

    @property
    def sampling_engine(self) -> PolicyEngine:
        """Who draws tokens: the engine itself, the one below a search, or the embedded one where a file is replayed."""
        match self.engine:
            case MctsEngine(engine=below):
                return below
            case RecordedEngine():
                return HfEngine()
            case engine:
                return engine

    @property
    def plain(self) -> "GenerateSection":
        """The same without search or replay."""
        return self.model_copy(update={"engine": self.sampling_engine, "search": None})
