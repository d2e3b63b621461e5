"""What engines do: token ids in, token ids out.

An engine continues prompts that are token ids already. Chat template, limits, stop strings and records are the same for all
of them: `groups.py` makes requests of prompts and groups of what engines return.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from prefloop.batches import Codec
from prefloop.config import GenerateSection
from prefloop.records import FinishReason, Prompt

BYTES_PER_CHARACTER = 4
"""At most; no token is shorter than a byte."""


class Request(NamedTuple):
    """One prompt to be continued K times."""

    name: str
    """What the random numbers follow from, beside the seed."""
    prompt: Prompt
    ids: Sequence[int]
    """The prompt as the model reads it."""
    budget: int
    """Tokens that a completion may have."""
    place: int = 0
    """Of the prompt among all that were given, those that are too long included."""


@dataclass(frozen=True)
class Sampled:
    """One completion as an engine wrote it."""

    token_ids: tuple[int, ...] | None
    """Terminator included; None where the engine says only text."""
    finish_reason: FinishReason
    token_logps: tuple[float, ...] | None = None
    """Under the policy itself."""
    sampled_logps: tuple[float, ...] | None = None
    """Under the distribution that the tokens were drawn from, where the engine says so."""
    text: str | None = None
    """Where there are no token ids."""


class Sampler(Protocol):
    """An engine with one policy and one way to sample, `generate`'s options."""

    @property
    def requests_per_chunk(self) -> int:
        """How many requests are best sampled before their groups are written down."""
        ...

    @property
    def context(self) -> int:
        """Tokens that a prompt and its completion may have together."""
        ...

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[Sampled, ...]]:
        """Yields the K completions of each request, in order. Raises Unavailable after those that were finished."""
        ...


def temperatures_of(options: GenerateSection) -> list[float]:
    """One a completion."""
    if options.temperatures is None:
        return [options.temperature] * options.num_completions
    return [share.temperature for share in options.temperatures for _ in range(share.count)]


class Stops:
    """Where completions end by themselves: at a token, or because their end reads as one of the strings."""

    def __init__(self, codec: Codec, options: GenerateSection) -> None:
        self._codec = codec
        self.token_ids = {codec.terminator_id, *(codec.token_id(one) for one in options.stop_tokens)}
        self.strings = options.stop
        self._tail = BYTES_PER_CHARACTER * max(map(len, options.stop), default=0)

    def __call__(self, token_ids: Sequence[int]) -> bool:
        """Whether a completion ends with these tokens."""
        if token_ids[-1] in self.token_ids:
            return True
        if not self.strings:
            return False
        text = self._codec.decode(token_ids[-self._tail :])
        return any(one in text for one in self.strings)
