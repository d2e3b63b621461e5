"""Sampling with a transformers model in this process.

Completions are sampled side by side: each prompt is read once, its completions are rows of the batch, rows leave it when
they are done, and other prompts enter. Each row draws one uniform number per token from a generator seeded by (seed,
prompt, completion), so what is sampled does not depend on which prompts share the batch.
"""

import itertools
import os
from collections.abc import Iterator, Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel

from prefloop.batches import Codec, tokens_at_once
from prefloop.config import GenerateSection, RuntimeSection
from prefloop.decoding import tokens_held
from prefloop.forward import share_prompts
from prefloop.generate.batch import Batch, Drawn, Task
from prefloop.generate.beam import BeamBatch
from prefloop.generate.decoders import Decoder, PaddedDecoder, SharedDecoder, lay_out_weights
from prefloop.generate.draw import uniform_numbers
from prefloop.generate.groups import Author, PolicyGenerator
from prefloop.generate.sampling import Request, Sampled, Stops, temperatures_of
from prefloop.interfaces import InputError
from prefloop.modeling import context_of

BATCHES_AT_ONCE = 4
"""How many times over a batch is filled between two moments at which what was sampled is kept."""
MOST_TOKENS = 262_144
"""Tokens that are held at once, unless the experiment says otherwise or memory is smaller."""
SHARE_OF_MEMORY = 0.5
"""Of what the weights leave free, for keys and values."""


def hf_generator(
    model: PreTrainedModel,
    codec: Codec,
    options: GenerateSection,
    *,
    seed: int,
    author: Author,
    runtime: RuntimeSection,
) -> PolicyGenerator:
    """Samples from a model in this process; on a CPU its weights are laid out anew, see `lay_out_weights`."""
    sampler = HfSampler(model, codec, options, seed=seed, runtime=runtime)
    return PolicyGenerator(sampler, codec, options, seed=seed, author=author)


class HfSampler:
    """Samples from a model on one device."""

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        options: GenerateSection,
        *,
        seed: int,
        runtime: RuntimeSection,
    ) -> None:
        if model.device.type == "cpu":
            lay_out_weights(model)
        self.model = model
        self.codec = codec
        self.options = options
        self.seed = seed
        self.runtime = runtime
        self._stops = Stops(codec, options)
        self._temperatures = torch.tensor(temperatures_of(options))

    @property
    def requests_per_chunk(self) -> int:
        """Several batches, so that prompts can enter where others have ended."""
        return requests_per_chunk(self.options, self.runtime)

    @property
    def context(self) -> int:
        """Positions that the model has."""
        return context_of(self.model.config)

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[Sampled, ...]]:
        """Yields the completions of each request, in order. Raises InputError where one alone is larger than the budget."""
        if not requests:
            return
        copies, slots = self._shape(requests)
        parts = self.options.num_completions // copies
        ended: dict[int, dict[int, Task]] = {}
        place = 0
        for task in self._as_they_end(requests, copies, slots):
            ended.setdefault(task.number, {})[task.part] = task
            while len(ended.get(place, ())) == parts:
                found = ended.pop(place)
                yield tuple(self._sampled(one) for part in range(parts) for one in found[part].drawn)
                place += 1

    def _as_they_end(self, requests: Sequence[Request], copies: int, slots: int) -> Iterator[Task]:
        """Prompts enter the batch where others have left it."""
        waiting = self._tasks(requests, copies)
        batch = self._batch(copies, slots)
        at_once = tokens_at_once(self.runtime, self.model.device)
        while True:
            free = batch.room
            entering = list(itertools.islice(waiting, free))
            for part in _in_parts(entering, at_once) if batch.refills else [entering]:
                batch.enter(part)
            if batch.is_empty:
                return
            if len(entering) < free:
                batch.give_up_free_slots()
            yield from batch.step()

    def _batch(self, copies: int, slots: int) -> Batch | BeamBatch:
        decoder, search = self._decoder(slots, copies), self.options.search
        if search is None:
            return Batch(decoder, slots, copies, self.options)
        ends = len(self._stops.token_ids)
        return BeamBatch(decoder, slots, copies, num_stops=ends, length_penalty=search.length_penalty)

    def _tasks(self, requests: Sequence[Request], copies: int) -> Iterator[Task]:
        for number, request in enumerate(requests):
            uniforms = uniform_numbers(self.seed, request.name, self.options.num_completions, request.budget)
            for part, first in enumerate(range(0, self.options.num_completions, copies)):
                yield Task(
                    number,
                    part,
                    request.ids,
                    request.budget,
                    self._stops,
                    uniforms[first : first + copies],
                    self._temperatures[first : first + copies],
                    tuple(Drawn() for _ in range(copies)),
                )

    def _decoder(self, slots: int, copies: int) -> Decoder:
        if share_prompts(self.model, self.codec.pad_id, self.runtime):
            return SharedDecoder(self.model, slots, copies)
        return PaddedDecoder(self.model, copies, self.codec.pad_id)

    def _sampled(self, drawn: Drawn) -> Sampled:
        return Sampled(
            tuple(drawn.token_ids),
            "stop" if self._stops(drawn.token_ids) else "length",
            tuple(drawn.token_logps),
            tuple(drawn.sampled_logps),
        )

    # --- how much at once ---

    def _shape(self, requests: Sequence[Request]) -> tuple[int, int]:
        """Completions of a prompt that run side by side, and prompts, so that rows and tokens stay within their bounds."""
        prompt, completion = max(len(one.ids) for one in requests), max(one.budget for one in requests)
        rows, tokens = self.runtime.generation_rows, self._tokens()
        if (least := tokens_held(prompt, completion, 1)) > tokens:
            raise InputError(
                f"runtime.generation_tokens: a prompt and a completion may take {least} tokens, but {tokens} "
                "are held at once; give more, or less to generate.max_prompt_length and generate.max_new_tokens"
            )
        number = self.options.num_completions
        if self.options.search is not None:
            self._check_beams(tokens_held(prompt, completion, number), tokens)
            slots = min(rows // number, tokens // tokens_held(prompt, completion, number))
            return number, min(slots, len(requests))
        copies = max(
            one
            for one in range(1, number + 1)
            if number % one == 0
            and (one == 1 or (one <= rows and tokens_held(prompt, completion, one) <= tokens))
        )
        slots = min(rows // copies, tokens // tokens_held(prompt, completion, copies))
        return copies, min(max(1, slots), len(requests) * (number // copies))

    def _check_beams(self, held: int, tokens: int) -> None:
        """The beams of a prompt run side by side, and begin with tokens of their own."""
        number = self.options.num_completions
        vocabulary = self.model.config.get_text_config().vocab_size
        if number > vocabulary:
            raise InputError(
                f"generate.num_completions = {number}: more beams than the {vocabulary} tokens there are"
            )
        if number > self.runtime.generation_rows:
            raise InputError(
                f"runtime.generation_rows = {self.runtime.generation_rows}: the {number} beams of a prompt run side by "
                "side; give more rows, or ask for fewer completions"
            )
        if held > tokens:
            raise InputError(
                f"runtime.generation_tokens: the {number} beams of a prompt may take {held} tokens, but {tokens} are held "
                "at once; give more, or less to generate.max_prompt_length and generate.max_new_tokens"
            )

    def _tokens(self) -> int:
        if self.runtime.generation_tokens != "auto":
            return self.runtime.generation_tokens
        memory = memory_of(self.model.device, self.runtime) - self.model.get_memory_footprint()
        return int(
            min(
                MOST_TOKENS,
                SHARE_OF_MEMORY * memory / bytes_per_token(self.model.config, self.model.dtype.itemsize),
            )
        )


def requests_per_chunk(options: GenerateSection, runtime: RuntimeSection) -> int:
    """Requests that one process samples between two moments at which they are kept."""
    return BATCHES_AT_ONCE * max(1, runtime.generation_rows // options.num_completions)


def bytes_per_token(config: PretrainedConfig, itemsize: int) -> int:
    """Of keys and values in all layers; 1 where a model keeps none."""
    config = config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)
    if not heads:
        return 1
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    return 2 * config.num_hidden_layers * heads * width * itemsize


def memory_of(device: torch.device, runtime: RuntimeSection) -> float:
    """All that a process may have of the device, in bytes; not what is free now, so that two runs sample alike."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / runtime.num_processes


def _in_parts(tasks: Sequence[Task], max_tokens: int) -> Iterator[list[Task]]:
    """Tasks in order, cut so that one pass reads at most so many tokens; a prompt alone may have more."""
    part: list[Task] = []
    for task in tasks:
        if part and sum(len(one.ids) for one in part) + len(task.ids) > max_tokens:
            yield part
            part = []
        part.append(task)
    if part:
        yield part
