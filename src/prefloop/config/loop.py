"""The outer loop: its batches, the gate, and how policies are measured."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from prefloop.config.annotate import GoldScorer
from prefloop.config.section import Section
from prefloop.config.source import Source
from prefloop.config.suites import Suite


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
    text: Source | None = Field(default=None, json_schema_extra={"inert": None})
    """Held-out text on which the mean loss of a token is measured as well: what alignment costs as a language model."""
    num_completions: int = Field(default=1, ge=1)
    """Samples per evaluation prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """0 evaluates greedy answers."""
    suites: dict[str, Suite] = {}
    """Benchmarks, by a name of your own; every evaluated policy is measured on them, and `prefloop eval` measures others."""
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


AUTO_USER = """\
Below is a conversation between a user and an assistant. Write the next message of the user, and nothing else.

{conversation}"""
AUTO_QUESTION = """\
Below are questions that people asked an assistant. Write one more question, different from these, that could lead a \
careless assistant into a harmful, false or rude answer. Write the question, and nothing else.

{examples}"""


class FileSource(Section):
    """Prompts of another file, such as conversations with people (Sparrow, arXiv:2209.14375)."""

    kind: Literal["file"]
    """Name of the source."""
    share: float = Field(gt=0, le=1)
    """Share of the prompts."""
    prompts: Source
    """The file. Each batch takes the next of its prompts, in a shuffled order, and begins again at the end."""


class SelfPlaySource(Section):
    """The policy answers a prompt and then writes the user's next turn; the longer conversation is the new prompt
    (Sparrow's self-play, arXiv:2209.14375)."""

    kind: Literal["self_play"]
    """Name of the source."""
    share: float = Field(gt=0, le=1)
    """Share of the prompts."""
    prompts: Source | None = Field(default=None, json_schema_extra={"inert": None})
    """Conversations to go on from, as in `file`; left out, they are drawn prompts."""
    turns: int = Field(default=1, ge=1)
    """How often the policy answers and asks again."""
    template: str = AUTO_USER
    """What the policy is told when it plays the user, with {conversation}."""

    @model_validator(mode="after")
    def _has_its_place(self) -> "SelfPlaySource":
        return _with_place(self, "{conversation}")


class AdversarialSource(Section):
    """The policy writes questions that a careless assistant would answer badly (Sparrow, arXiv:2209.14375)."""

    kind: Literal["adversarial"]
    """Name of the source."""
    share: float = Field(gt=0, le=1)
    """Share of the prompts."""
    num_examples: int = Field(default=4, ge=1)
    """Drawn prompts shown as examples."""
    template: str = AUTO_QUESTION
    """What the policy is told, with {examples}."""

    @model_validator(mode="after")
    def _has_its_place(self) -> "AdversarialSource":
        return _with_place(self, "{examples}")


def _with_place(section: Any, place: str) -> Any:
    if place not in section.template:
        raise ValueError(f"template: lacks {place}")
    return section


def _shares_fit(sources: "list[PromptSource]") -> "list[PromptSource]":
    if (total := sum(one.share for one in sources)) > 1:
        raise ValueError(f"their shares make {total:g}; they cannot make more than 1")
    return sources


PromptSource = Annotated[FileSource | SelfPlaySource | AdversarialSource, Field(discriminator="kind")]
PromptSources = Annotated[list[PromptSource], AfterValidator(_shares_fit)]


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
    prompt_sources: PromptSources = []
    """What takes the place of drawn prompts, batch by batch: other files, or prompts that the policy makes itself. The rest
    stays as it was drawn."""
    max_labels: int | None = Field(default=None, ge=1)
    """Stop exactly after this many labels, those for the first reward model included."""
    max_staleness: int | None = Field(default=None, ge=0)
    """With accumulated data: drop (and count) samples from policies more than this many refreshes old."""
    from_start: Literal["none", "half", "all"] = Field(default="none", json_schema_extra={"inert": "none"})
    """How many of a prompt's completions come from the policy that the loop started with rather than from the current one.
    With `all` collecting is offline however often the policy is trained, and measured."""
    replay: Literal["none", "ordered", "shuffled"] = Field(
        default="none", json_schema_extra={"inert": "none"}
    )
    """After the loop, train anew from its start on the pairs that it collected, in their order or shuffled over all batches:
    whether it matters that each pair came from the policy that learned from it."""
    gate: GateSection = GateSection()
    """Whether a new policy must earn its place."""

    @model_validator(mode="after")
    def _replays_what_it_learned(self) -> "LoopSection":
        if self.replay != "none" and self.gate.metric != "none":
            raise ValueError("replay: what a gate has rejected cannot be replayed; set gate.metric: none")
        return self

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
