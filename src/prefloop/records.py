"""What flows through the loop: prompts, groups, judgements, pairs.

Every record is frozen, forbids unknown fields and is stored as one JSON object a line. Ids are short content hashes, so
the same text has the same id on every machine. Knows nothing about models, files or configuration.
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


def _is_none(value: object) -> bool:
    return value is None


def content_id(*parts: object) -> str:
    """A 16-digit hexadecimal hash of JSON-serialisable parts."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class Record(BaseModel):
    """A frozen row; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Prompt(Record):
    """A conversation that ends with a user turn and waits for an answer."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    """The reference answer, for tasks that have one."""
    source: str = ""

    @model_validator(mode="after")
    def _ends_with_user(self) -> "Prompt":
        if not self.messages:
            raise ValueError("a prompt needs at least one message")
        if self.messages[-1].role != "user":
            raise ValueError(f"a prompt must end with a user turn, not {self.messages[-1].role!r}")
        if not self.messages[-1].content.strip():
            raise ValueError("the last user turn is empty")
        return self

    @classmethod
    def of(cls, messages: tuple[Message, ...], answer: str | None = None, source: str = "") -> "Prompt":
        """A prompt whose id is the hash of its messages."""
        return cls(id=messages_id(messages), messages=messages, answer=answer, source=source)

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


def messages_id(messages: tuple[Message, ...]) -> str:
    """The id of a conversation: the hash of its roles and contents."""
    return content_id([(message.role, message.content) for message in messages])


class Demonstration(Record):
    """A conversation to imitate; it ends with an assistant turn."""

    id: str
    messages: tuple[Message, ...]
    source: str = ""

    @model_validator(mode="after")
    def _ends_with_assistant(self) -> "Demonstration":
        if not self.messages or self.messages[-1].role != "assistant":
            raise ValueError("a demonstration must end with an assistant turn")
        if not self.messages[-1].content.strip():
            raise ValueError("the last assistant turn is empty")
        return self

    @classmethod
    def of(cls, messages: tuple[Message, ...], source: str = "") -> "Demonstration":
        """A demonstration whose id is the hash of its messages."""
        return cls(id=messages_id(messages), messages=messages, source=source)


class Text(Record):
    """Plain text for language modelling, without roles."""

    id: str
    text: str = Field(min_length=1)
    source: str = ""


class Sampling(Record):
    """How one completion was drawn."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int
    search: Literal["mcts", "beam"] | None = Field(default=None, exclude_if=_is_none)
    """What chose this completion among more that were looked at; then it is no sample of the policy, whatever its tokens
    are."""

    @property
    def is_plain(self) -> bool:
        """Whether the completion is a sample of the policy as it is."""
        return self.draws_plainly and self.search is None

    @property
    def draws_plainly(self) -> bool:
        """Whether each token was drawn from the policy as it is."""
        shaped = (self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty)
        return shaped == (1.0, 1.0, 0, 0.0, 1.0)


class Completion(Record):
    """One answer. `token_ids` are what the sampler emitted, terminator included; nothing is re-tokenised later."""

    id: str
    prompt_id: str
    text: str
    token_ids: tuple[int, ...] | None = None
    token_logps: tuple[float, ...] | None = None
    """Log-probability of each token under the sampling policy at temperature 1."""
    sampled_logps: tuple[float, ...] | None = None
    """The same under the distribution that the tokens were drawn from, where that is another: what importance ratios divide
    by."""
    finish_reason: FinishReason | None = None
    sampling: Sampling | None = None
    policy: str = ""
    """Key of the policy artefact that wrote it; empty for text that came from a file."""
    policy_version: int = 0
    """How many times the collecting policy had been refreshed when it wrote this."""


class TreeNode(Record):
    """A step of a tree search: some tokens after those of its parent."""

    parent: int | None
    """Number of the node before; None for the root, which is the prompt."""
    start: int
    """Tokens of the completion before this step."""
    token_ids: tuple[int, ...]
    text: str
    """The completion's text grows by this."""
    prior: float
    """What the policy thinks of the step: its probability, evened out over its length."""
    visits: int
    """Completions seen through this step, and returns to it where it is an end."""
    q: float
    """What the step gains: its value less the parent's, and what follows."""
    value: float
    """Mean score of the completions that it was found with."""
    ends: bool
    """Whether nothing follows."""


class SearchTree(Record):
    """How the completions of a group were found."""

    annotator: str
    """Who gave the values."""
    nodes: tuple[TreeNode, ...]
    """The root first, parents before children."""
    committed: tuple[int, ...]
    """Numbers of the nodes that the search went on from, the root first."""
    leaves: tuple[int, ...]
    """For each completion of the group, the last node that it runs through."""
    num_drawn: int
    """Completions that were drawn, those that were not kept included."""
    num_tokens: int
    """Tokens that were drawn for them."""


class Group(Record):
    """A prompt and its K completions: the unit of generation, annotation and training."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    tree: SearchTree | None = Field(default=None, exclude_if=_is_none)
    """Where a search found the completions."""


class Score(Record):
    """What an annotator said about one completion."""

    type: Literal["score"] = "score"
    prompt_id: str
    completion_id: str
    value: float = Field(allow_inf_nan=False)
    annotator: str
    labels: int = Field(default=1, ge=0)
    """Labels spent on this row; 0 for a proxy's pseudo-label."""
    parts: dict[str, float] | None = None
    """What the value was made of, for annotators that have parts."""


class Rollout(Record):
    """A group that a policy in training learned from, and what was said about it."""

    batch: int
    """Counted from 1."""
    group: Group
    scores: tuple[Score, ...]


class Comparison(Record):
    """What an annotator said about two completions of a prompt; `p_a` = 0.5 is a tie."""

    type: Literal["comparison"] = "comparison"
    prompt_id: str
    a: str
    b: str
    p_a: float = Field(ge=0, le=1, allow_inf_nan=False)
    annotator: str
    strength: int | None = None
    reason: str | None = None
    presented: Literal["ab", "ba", "both"] = "ab"
    """The order in which the annotator saw the two."""
    labels: int = Field(default=1, ge=0)


class Refusal(Record):
    """An annotator was asked and gave no usable verdict. Never replaced by an invented label."""

    type: Literal["refusal"] = "refusal"
    prompt_id: str
    completion_ids: tuple[str, ...]
    annotator: str
    reason: str
    labels: int = Field(default=1, ge=0)


Judgement = Annotated[Score | Comparison | Refusal, Field(discriminator="type")]
judgement_adapter: TypeAdapter[Score | Comparison | Refusal] = TypeAdapter(Judgement)


class PreferencePair(Record):
    """A chosen and a rejected completion of one prompt. Self-contained: a file of pairs can be published alone."""

    id: str
    prompt: Prompt
    chosen: Completion
    rejected: Completion
    margin: float = Field(allow_inf_nan=False)
    """Score difference times `select.margin_scale`, or 2p - 1 for a comparison."""
    p_chosen: float = Field(default=1.0, ge=0, le=1)
    """The annotator's probability that `chosen` is better; 1 where it only ordered the two."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    annotator: str
    prefix_tokens: int = Field(default=0, ge=0, exclude_if=lambda value: value == 0)
    """Tokens that both completions begin with and that are not judged: the pair is about what follows them."""

    @model_validator(mode="after")
    def _prefix_is_shared(self) -> "PreferencePair":
        if self.prefix_tokens:
            shared = [(one.token_ids or ())[: self.prefix_tokens] for one in (self.chosen, self.rejected)]
            if shared[0] != shared[1] or len(shared[0]) < self.prefix_tokens:
                raise ValueError(f"the completions do not share their first {self.prefix_tokens} tokens")
        return self

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        chosen: Completion,
        rejected: Completion,
        *,
        margin: float,
        annotator: str,
        p_chosen: float = 1.0,
        weight: float = 1.0,
        prefix_tokens: int = 0,
    ) -> "PreferencePair":
        """A pair whose id is the hash of its completions' ids."""
        return cls(
            id=content_id(chosen.id, rejected.id),
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            margin=margin,
            p_chosen=p_chosen,
            weight=weight,
            annotator=annotator,
            prefix_tokens=prefix_tokens,
        )


def file_completion(prompt: Prompt, text: str, index: int = 0) -> Completion:
    """A completion that came from a file: text only, no tokens, no policy."""
    return Completion(id=content_id(prompt.id, index, text), prompt_id=prompt.id, text=text)
