"""Sampling with a transformers model in this process.

Completions are sampled side by side: each prompt is read once, its K completions are rows of the batch, rows leave it when
they are done, and other prompts enter. Each row draws one uniform number per token from a generator seeded by (seed,
prompt, completion), so what is sampled does not depend on which prompts share the batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from prefloop.batches import Codec
from prefloop.config import GenerateSection, RuntimeSection
from prefloop.forward import share_prompts
from prefloop.generate.batch import Batch, Drawn, Task
from prefloop.generate.decoders import Decoder, PaddedDecoder, SharedDecoder
from prefloop.generate.draw import uniform_numbers
from prefloop.records import Completion, Group, Prompt, Sampling, content_id

BATCHES_AT_ONCE = 4
"""How many times over a batch is filled between two moments at which what was sampled is kept."""
BYTES_PER_CHARACTER = 4
"""At most; no token is shorter than a byte."""


@dataclass(frozen=True)
class Author:
    """Who the completions are ascribed to."""

    policy: str
    version: int


class HfGenerator:
    """Samples the K completions of each prompt from a model on one device."""

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        options: GenerateSection,
        *,
        seed: int,
        author: Author,
        runtime: RuntimeSection,
    ) -> None:
        self.model = model
        self.codec = codec
        self.options = options
        self.seed = seed
        self.author = author
        self.runtime = runtime
        self._stop_ids = {codec.terminator_id, *(codec.token_id(one) for one in options.stop_tokens)}

    @property
    def prompts_per_chunk(self) -> int:
        """How many prompts are best sampled before their groups are written down."""
        return BATCHES_AT_ONCE * self._prompts_at_once

    @property
    def _prompts_at_once(self) -> int:
        return max(1, self.runtime.generation_rows // self.options.num_completions)

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[Group]:
        """Yields one group a prompt, in order; a prompt too long for the options yields no completions."""
        ended: dict[int, Group] = {}
        place = 0
        for number, group in self._as_they_end(enumerate(prompts)):
            ended[number] = group
            while place in ended:
                yield ended.pop(place)
                place += 1

    def _as_they_end(self, prompts: Iterator[tuple[int, Prompt]]) -> Iterator[tuple[int, Group]]:
        """Groups with their prompts' numbers. Prompts enter the batch where others have left it."""
        batch: Batch | None = None
        room = self._prompts_at_once
        while True:
            entering: list[Task] = []
            while len(entering) < room and (found := next(prompts, None)) is not None:
                number, prompt = found
                ids = self.codec.prompt_ids(prompt.messages)
                if len(ids) > self._longest_prompt():
                    yield number, Group(prompt=prompt, completions=())
                else:
                    entering.append(self._task(number, prompt, ids))
            if batch is None:
                if not entering:
                    return
                batch = Batch(self._decoder(len(entering)), len(entering), self.options)
            batch.enter(entering)
            if not batch.rows:
                return
            if len(entering) < room:
                batch.give_up_free_slots()
            for task in batch.step():
                yield task.number, Group(prompt=task.prompt, completions=self._completions(task))
            room = batch.room

    def _decoder(self, num_prompts: int) -> Decoder:
        copies = self.options.num_completions
        if share_prompts(self.model, self.codec.pad_id, self.runtime):
            return SharedDecoder(self.model, num_prompts, copies)
        return PaddedDecoder(self.model, copies, self.codec.pad_id)

    # --- one prompt ---

    def _longest_prompt(self) -> int:
        return min(self.options.max_prompt_length, self._context() - 1)

    def _context(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30))

    def _task(self, number: int, prompt: Prompt, ids: list[int]) -> Task:
        copies = self.options.num_completions
        budget = min(self.options.max_new_tokens, self._context() - len(ids))
        return Task(
            number,
            prompt,
            ids,
            budget,
            self._stops,
            uniform_numbers(self.seed, prompt.id, copies, budget),
            torch.tensor(self._temperatures()),
            tuple(Drawn() for _ in range(copies)),
        )

    def _temperatures(self) -> list[float]:
        if self.options.temperatures is None:
            return [self.options.temperature] * self.options.num_completions
        return [share.temperature for share in self.options.temperatures for _ in range(share.count)]

    def _stops(self, token_ids: Sequence[int]) -> bool:
        """Whether a completion ends here: at a token, or because its end reads as one of the strings."""
        if token_ids[-1] in self._stop_ids:
            return True
        if not self.options.stop:
            return False
        longest = max(map(len, self.options.stop))
        tail = self.codec.decode(token_ids[-BYTES_PER_CHARACTER * longest :])
        return any(one in tail for one in self.options.stop)

    def _completions(self, task: Task) -> tuple[Completion, ...]:
        options = self.options
        completions = []
        for index, (one, temperature) in enumerate(zip(task.drawn, self._temperatures(), strict=True)):
            sampling = Sampling(
                temperature=temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                min_p=options.min_p,
                repetition_penalty=options.repetition_penalty,
                seed=self.seed,
            )
            completions.append(
                Completion(
                    id=content_id(task.prompt.id, self.author.policy, self.seed, index, one.token_ids),
                    prompt_id=task.prompt.id,
                    text=self.codec.decode(one.token_ids),
                    token_ids=tuple(one.token_ids),
                    token_logps=_rounded(one.token_logps),
                    sampled_logps=None if sampling.is_plain else _rounded(one.sampled_logps),
                    finish_reason="stop" if self._stops(one.token_ids) else "length",
                    sampling=sampling,
                    policy=self.author.policy,
                    policy_version=self.author.version,
                )
            )
        return tuple(completions)


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)
