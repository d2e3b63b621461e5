"""Judging the samples, and choosing pairs."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from prefloop.config.section import NOT_HASHED, Section
from prefloop.config.source import Source

ScoreRule = Literal["max_min", "max_random", "max_max", "max_min_penalised", "random", "first_two"]
"""Rules on the scores of a group."""
SelectionRule = ScoreRule | Literal["siblings"]


def _carded(section: Any) -> Any:
    if section.card is not None and section.model is None:
        raise ValueError(
            "card: the loop's own model has none before it is trained; name a model, or leave card out"
        )
    return section


class RewardModelAnnotator(Section):
    """Scores with a reward model: the loop's own, or the one in `model`."""

    kind: Literal["reward_model"]
    """Name of the annotator."""
    model: str | None = None
    """Folder or hub name; left out, it is the loop's current reward model."""
    card: str | None = Field(default=None, json_schema_extra=NOT_HASHED)
    """card.json of this model, from `prefloop reward-card`: refused is one that is no better than length or chance on it."""

    @model_validator(mode="after")
    def _card_has_a_model(self) -> "RewardModelAnnotator":
        return _carded(self)


class PairwiseAnnotator(Section):
    """Compares with a language model that answers A or B, averaged over both orders (RLHFlow's format)."""

    kind: Literal["pairwise"]
    """Name of the annotator."""
    model: str | None = None
    """Folder or hub name of the causal language model; left out, it is the loop's own, of `reward.objective: pairwise`."""
    template: str = "auto"
    """Text of the user turn with {context}, {a} and {b}; `auto` is what the model was trained on, or RLHFlow's."""
    card: str | None = Field(default=None, json_schema_extra=NOT_HASHED)
    """card.json of this model, from `prefloop reward-card`: refused is one that is no better than length or chance on it."""

    @model_validator(mode="after")
    def _card_has_a_model(self) -> "PairwiseAnnotator":
        return _carded(self)


class RuleAnnotator(Section):
    """Scores by a built-in rule."""

    kind: Literal["rule"]
    """Name of the annotator."""
    rule: Literal["tales", "tales_craft", "tales_rules", "words", "length", "math_answer"]
    """`tales`: the hidden quality of the built-in tales; `tales_rules`: share of their rules that are followed; `words`:
    share of `words` found; `length`; `math_answer`."""
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
    verdict: Literal["text", "logprobs"] = Field(default="text", json_schema_extra={"inert": "text"})
    """`text`: the judge reasons and writes its verdict; `logprobs`: it answers with one token, whose probabilities count."""
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
    max_cost: float | None = Field(default=None, gt=0, json_schema_extra=NOT_HASHED)
    """Nothing more is asked in a run that has cost this; needs `price_per_million_tokens`."""
    card: str | None = Field(default=None, json_schema_extra=NOT_HASHED)
    """card.json of this judge, from `prefloop reward-card`: refused is one that is no better than length or chance on it."""

    @model_validator(mode="after")
    def _cost_is_known(self) -> "JudgeAnnotator":
        if self.max_cost is not None and not self.price_per_million_tokens:
            raise ValueError("max_cost: nothing costs anything; give price_per_million_tokens")
        return self


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


class TriggerSection(Section):
    """What closes a round of questions before its quorum is there; the first that comes true does."""

    labels: int | None = Field(default=None, ge=1)
    """So many verdicts that say which is better; ties, skips and \"both bad\" are none."""
    disagreement: float | None = Field(default=None, gt=0, lt=1)
    """The reward model contradicts more than this share of people's choices."""
    accuracy_drop: float | None = Field(default=None, gt=0, lt=1)
    """On pairs drawn by chance the reward model is right less often than on its held-out pairs, by more than this."""
    hours: float | None = Field(default=None, gt=0)
    """The round has been open for so long, and somebody has judged something."""


MOST_RANKED = 9
"""Completions that people can keep apart; InstructGPT's labelers ranked 4 to 9 (arXiv:2203.02155)."""


class HumanAnnotator(Section):
    """People. The loop publishes tasks, stops with its own exit code, and goes on when they are judged."""

    kind: Literal["human"]
    """Name of the annotator."""
    task: Literal["pairwise", "rank", "form"] = Field(
        default="pairwise", json_schema_extra={"inert": "pairwise"}
    )
    """`pairwise`: which of two is better; `rank`: all completions of a prompt in order; `form`: a rating of each."""
    overlap: int = Field(default=1, ge=1)
    """Judgements wanted per task, each by another person."""
    quorum: float = Field(default=1.0, gt=0, le=1, json_schema_extra=NOT_HASHED)
    """Share of tasks that must be judged before the loop goes on; may be changed while people judge."""
    trigger: TriggerSection = Field(default=TriggerSection(), json_schema_extra=NOT_HASHED)
    """What lets the loop go on earlier."""
    guidelines: str | None = Field(default=None, json_schema_extra=NOT_HASHED)
    """Markdown file that people read first; its content enters the artefact key."""
    settings: str | None = Field(default=None, json_schema_extra=NOT_HASHED)
    """YAML file of the labelling project: form, pay, budget, dwell; of it, what people are asked enters the key."""
    project: str | None = Field(
        default=None, pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", json_schema_extra=NOT_HASHED
    )
    """Project in the label store; left out, it has the experiment's name."""
    store: str = Field(default="auto", json_schema_extra=NOT_HASHED)
    """SQLite file or postgresql:// URL; `auto` is the environment variable PREFLOOP_LABELS, or `labels.sqlite` in the
    workspace."""

    @field_validator("store")
    @classmethod
    def _holds_no_password(cls, value: str) -> str:
        if re.search(r"^[^/]*://[^/@]*:[^/@]*@|[?&]password=", value):
            raise ValueError(
                "a password here would be written into every run; leave it out and set PGPASSWORD, "
                "or set PREFLOOP_LABELS to the whole URL"
            )
        return value


class RuleModelAnnotator(Section):
    """Scores by how likely a completion follows rules in words, with a model of `reward.objective: rules`."""

    kind: Literal["rule_model"] = "rule_model"
    """Name of the annotator."""
    model: str | None = None
    """Folder or hub name; left out, it is the loop's own rule model, which `rules` trains. Only `rl` can leave it out."""
    rules: list[str] = []
    """The rules; left out, they are those that the model was trained on."""
    reduction: Literal["mean", "sum"] = "mean"
    """How P(follows) of the rules make one score; the mean does not grow when rules are added."""


GoldScorer = Annotated[
    RuleAnnotator | FunctionAnnotator | RewardModelAnnotator | RuleModelAnnotator, Field(discriminator="kind")
]


class CompositeAnnotator(Section):
    """Preference, rules, length and form in one score (Sparrow, arXiv:2209.14375), each also kept apart."""

    kind: Literal["composite"]
    """Name of the annotator."""
    preference: GoldScorer = RewardModelAnnotator(kind="reward_model")
    """What scores the preference."""
    rules: RuleModelAnnotator | None = None
    """What scores the rules; leave out to score without."""
    preference_weight: float = Field(default=1.0, ge=0, json_schema_extra={"inert": 1.0})
    """Weight of the preference; 0 leaves the rules alone."""
    rule_weight: float = Field(default=1.0, ge=0)
    """Weight of the rules next to the preference."""
    length_weight: float = Field(default=0.01, ge=0)
    """Subtracted for each token."""
    template: str | None = None
    """Regular expression that the whole completion must match; leave out to take any."""
    invalid_weight: float = Field(default=1.0, ge=0)
    """Subtracted where the completion does not match `template`."""
    reference: Literal["sft"] | Source | None = Field(default=None, union_mode="left_to_right")
    """Groups on which each part is brought to mean 0 and deviation 1; left out, parts are taken as they are. `sft`, for
    `rl.reward` only, is what the SFT policy answers to the first prompts of `rl`."""

    @model_validator(mode="after")
    def _keys_are_read(self) -> "CompositeAnnotator":
        given = self.model_fields_set
        if self.rules is None and not self.preference_weight:
            raise ValueError(
                "preference_weight: 0 leaves nothing to score by; name rules, or a weight above 0"
            )
        if self.rules is None and "rule_weight" in given:
            raise ValueError("rule_weight: there are no rules to weigh; name a rule model in rules")
        if self.template is None and "invalid_weight" in given:
            raise ValueError("invalid_weight: nothing is invalid without a template; give one")
        try:
            re.compile(self.template or "")
        except re.error as error:
            raise ValueError(f"template: not a regular expression: {error}") from error
        return self


Annotator = Annotated[
    RewardModelAnnotator
    | PairwiseAnnotator
    | RuleAnnotator
    | FunctionAnnotator
    | JudgeAnnotator
    | SimulatedAnnotator
    | RecordedAnnotator
    | HumanAnnotator
    | RuleModelAnnotator
    | CompositeAnnotator,
    Field(discriminator="kind"),
]
SCORING_KINDS = frozenset({"reward_model", "rule", "function", "rule_model", "composite"})
COMPARING_KINDS = frozenset({"pairwise", "judge", "human"})


def uses_loop_reward(annotator: Section) -> bool:
    """Whether the annotator is the loop's own reward model, or has it as a part."""
    part = annotator.preference if isinstance(annotator, CompositeAnnotator) else annotator
    return isinstance(part, RewardModelAnnotator | PairwiseAnnotator) and part.model is None


def uses_loop_rules(annotator: Section) -> bool:
    """Whether the annotator is the loop's own rule model, or has it as a part."""
    part = annotator.rules if isinstance(annotator, CompositeAnnotator) else annotator
    return isinstance(part, RuleModelAnnotator) and part.model is None


def uses_sft_groups(annotator: Section) -> bool:
    """Whether the annotator's scale is that of the SFT policy's own answers."""
    return isinstance(annotator, CompositeAnnotator) and annotator.reference == "sft"


class AnnotateSection(Section):
    """Who judges, and what they are asked."""

    annotator: Annotator = RewardModelAnnotator(kind="reward_model")
    """The annotator (the oracle): its verdicts are the labels that are counted."""
    ask: Literal["auto", "scores", "one_pair", "all_pairs", "knockout"] = "auto"
    """`scores`: of each completion; `one_pair`: one comparison a prompt; `all_pairs`; `knockout`: a tournament, K - 1."""
    propose: Literal["max_min", "max_random", "max_max", "random", "first_two", "thompson", "uncertainty"] = (
        "max_min"
    )
    """For `one_pair`: how the reward model picks the two to compare; without a reward model a random two are taken.
    `thompson` and `uncertainty` ask the heads of `reward.objective: ensemble`."""
    random_share: float = Field(default=0.0, ge=0, le=1, json_schema_extra={"inert": 0.0})
    """For `one_pair`: share of a batch's prompts, rounded up, whose two are drawn by chance; only these measure fairly."""

    @model_validator(mode="after")
    def _annotator_can(self) -> "AnnotateSection":
        kind = self.annotator.kind
        if self._gives_scores and self.ask not in ("auto", "scores"):
            raise ValueError(f"ask: {self.ask} needs an annotator that compares; {self._who} gives scores")
        if kind in COMPARING_KINDS and not self._gives_scores and self.ask == "scores":
            raise ValueError(f"ask: scores needs an annotator that scores; {kind} compares")
        if kind in ("human", "recorded") and self.ask == "knockout":
            raise ValueError(f"ask: knockout asks round by round, which {kind} cannot answer; use all_pairs")
        if self._ranks and self.ask != "auto":
            raise ValueError(
                f"ask: {self.ask} asks about two at a time, but task rank about all; leave ask out"
            )
        return self

    @property
    def _ranks(self) -> bool:
        return self.annotator.kind == "human" and self.annotator.task == "rank"

    @property
    def _gives_scores(self) -> bool:
        rates = self.annotator.kind == "human" and self.annotator.task == "form"
        return rates or self.annotator.kind in SCORING_KINDS

    @property
    def _who(self) -> str:
        return "human with task form" if self.annotator.kind == "human" else self.annotator.kind

    @property
    def asks(self) -> Literal["scores", "one_pair", "all_pairs", "knockout", "ranking", "recorded"]:
        """What is asked, with `auto` resolved."""
        if self.annotator.kind == "recorded":
            return "recorded"
        if self._ranks:
            return "ranking"
        if self.ask != "auto":
            return self.ask
        return "scores" if self._gives_scores else "one_pair"


class SelectSection(Section):
    """Which two completions of a group become a preference pair."""

    rule: SelectionRule = "max_min"
    """Rule on the scores; with one comparison per prompt the compared two are the pair. `siblings` takes steps of a tree
    search instead, the best against the worst that begin alike."""
    length_penalty: float = Field(default=0.0, ge=0)
    """For `max_min_penalised`: subtracted from the score per unit of length."""
    length_unit: Literal["characters", "tokens"] = "characters"
    """Unit of `length_penalty`."""
    margin_scale: float = Field(default=1.0, gt=0)
    """Margins are multiplied by this."""
    pairs_per_prompt: Literal["one", "all"] = "one"
    """`all` makes a pair of every two completions the annotator ranked apart, weighted to one per prompt."""

    @property
    def score_rule(self) -> ScoreRule:
        """The rule on scores, which is `max_min` where pairs for the policy come from elsewhere."""
        return "max_min" if self.rule == "siblings" else self.rule


SimulatedAnnotator.model_rebuild()
