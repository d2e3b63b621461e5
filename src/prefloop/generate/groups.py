"""Prompts to groups, the same for every engine: what the model reads, what is too long, and what a completion carries."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prefloop.batches import Codec
from prefloop.config import GenerateSection
from prefloop.generate.sampling import Request, Sampled, Sampler, temperatures_of
from prefloop.interfaces import PrefloopError
from prefloop.records import Completion, Group, Prompt, Sampling, content_id


@dataclass(frozen=True)
class Author:
    """Who the completions are ascribed to."""

    policy: str
    version: int


class PolicyGenerator:
    """Samples the K completions of each prompt with an engine."""

    def __init__(
        self, sampler: Sampler, codec: Codec, options: GenerateSection, *, seed: int, author: Author
    ) -> None:
        self.sampler = sampler
        self.codec = codec
        self.options = options
        self.seed = seed
        self.author = author

    @property
    def prompts_per_chunk(self) -> int:
        """How many prompts are best sampled before their groups are written down."""
        return self.sampler.requests_per_chunk

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[Group]:
        """Yields one group a prompt, in order; a prompt too long for the options yields no completions."""
        asked = [(prompt, self.request(prompt, place)) for place, prompt in enumerate(prompts)]
        sampled = self.sampler.sample([request for _, request in asked if request is not None])
        for prompt, request in asked:
            yield Group(
                prompt=prompt, completions=self._completions(prompt, next(sampled)) if request else ()
            )

    def request(self, prompt: Prompt, place: int = 0) -> Request | None:
        """The prompt as the engine reads it; None where it is too long."""
        ids = self.codec.prompt_ids(prompt.messages)
        if len(ids) > min(self.options.max_prompt_length, self.sampler.context - 1):
            return None
        budget = min(self.options.max_new_tokens, self.sampler.context - len(ids))
        return Request(prompt.id, prompt, ids, budget, place)

    def _completions(self, prompt: Prompt, sampled: tuple[Sampled, ...]) -> tuple[Completion, ...]:
        temperatures = temperatures_of(self.options)
        if len(sampled) != len(temperatures):
            raise PrefloopError(
                f"prompt {prompt.id}: {len(temperatures)} completions were asked for, the engine gave {len(sampled)}"
            )
        search = self.options.search.kind if self.options.search else None
        return tuple(
            self.completion(prompt, index, one, temperature, search=search)
            for index, (one, temperature) in enumerate(zip(sampled, temperatures, strict=True))
        )

    def completion(
        self,
        prompt: Prompt,
        index: int,
        sampled: Sampled,
        temperature: float,
        *,
        search: Literal["mcts", "beam"] | None = None,
    ) -> Completion:
        """What is written down of the completion with this place among those drawn; `search` says what chooses it."""
        options = self.options
        sampling = Sampling(
            temperature=temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            seed=self.seed,
            search=search,
        )
        tokens = sampled.token_ids
        text = sampled.text if tokens is None else self.codec.decode(tokens)
        assert text is not None, "an engine gives tokens or text"
        return Completion(
            id=content_id(
                prompt.id, self.author.policy, self.seed, index, text if tokens is None else tokens
            ),
            prompt_id=prompt.id,
            text=text,
            token_ids=tokens,
            token_logps=_rounded(sampled.token_logps),
            sampled_logps=None if sampling.draws_plainly else _rounded(sampled.sampled_logps),
            finish_reason=sampled.finish_reason,
            sampling=sampling,
            policy=self.author.policy,
            policy_version=self.author.version,
        )


def _rounded(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(round(value, 6) for value in values)
