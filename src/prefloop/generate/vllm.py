"""Sampling with vLLM, which runs in a process of its own.

vLLM reads the prompts' token ids and returns those of the completions. The completions of a prompt that are drawn alike are
one request to it, with a seed of their own; who shares a batch changes a completion only through rounding.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from prefloop.batches import Codec
from prefloop.config import GenerateSection, RuntimeSection, TemperatureShare, VllmEngine
from prefloop.generate.hf import MOST_TOKENS, SHARE_OF_MEMORY, bytes_per_token, memory_of, requests_per_chunk
from prefloop.generate.sampling import Request, Sampled, Stops
from prefloop.generate.vllm_process import Answer, Ask, Start, VllmProcess
from prefloop.interfaces import InputError
from prefloop.modeling import Dtype, context_of, device_of

CACHE_BLOCK = 128
"""Tokens at a time that vLLM gives a completion on a CPU."""

_kept: dict[Start, VllmProcess] = {}
"""At most one process that waits for the next policy."""


class VllmSampler:
    """Asks a vLLM process; made by `vllm_sampler`."""

    def __init__(
        self,
        process: VllmProcess,
        codec: Codec,
        options: GenerateSection,
        *,
        context: int,
        seed: int,
        runtime: RuntimeSection,
    ) -> None:
        self.context = context
        self.requests_per_chunk = requests_per_chunk(options, runtime)
        self._process = process
        self._options = options
        self._seed = seed
        self._stop_ids = sorted(Stops(codec, options).token_ids)

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[Sampled, ...]]:
        """Yields the completions of each request, in order. Raises PrefloopError when the process ends."""
        shares = shares_of(self._options)
        asks = [
            Ask(request.ids, self.params(request, number, share))
            for request in requests
            for number, share in enumerate(shares)
        ]
        ended: dict[int, tuple[Answer, ...]] = {}
        first = 0
        for place, answers in self._process.sample(asks):
            ended[place] = answers
            while all(one in ended for one in range(first, first + len(shares))) and first < len(asks):
                yield tuple(
                    _sampled(answer)
                    for number, share in enumerate(shares)
                    for answer in _each(ended.pop(first + number), share)
                )
                first += len(shares)

    def params(self, request: Request, number: int, share: TemperatureShare) -> dict[str, Any]:
        """What vLLM is told of the completions of a share, in its own words."""
        options = self._options
        return {
            "n": 1 if share.temperature == 0 else share.count,  # vLLM refuses several that must be equal
            "seed": seed_of(self._seed, request.name, number),
            "temperature": share.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
            "min_p": options.min_p,
            "repetition_penalty": options.repetition_penalty,
            "max_tokens": request.budget,
            "stop_token_ids": self._stop_ids,
            "ignore_eos": True,  # where completions end is said by the line above alone
            "stop": options.stop,
            "detokenize": bool(options.stop),
            "logprobs": 0,  # of the sampled token, no others
        }


@contextlib.contextmanager
def vllm_sampler(
    folder: Path,
    codec: Codec,
    engine: VllmEngine,
    options: GenerateSection,
    *,
    seed: int,
    runtime: RuntimeSection,
    dtype: Dtype,
) -> Iterator[VllmSampler]:
    """Begins a vLLM process with the policy of a folder and ends it; with `engine.keep` it waits for the next policy."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "generate.engine.kind = vllm: vLLM is not installed; with an NVIDIA GPU pip install 'prefloop[vllm]', "
            "on a CPU see docs/how-to/vllm.md; or choose hf"
        )
    context = context_of(folder)
    start = start_for(folder, engine, options, context=context, runtime=runtime, dtype=dtype)
    process = _begin(start, folder)
    try:
        yield VllmSampler(process, codec, options, context=context, seed=seed, runtime=runtime)
        if engine.keep and process.is_alive:
            process.sleep()
            _kept[start] = process
            atexit.register(end_kept)
    finally:
        if process not in _kept.values():
            process.end()


def end_kept() -> None:
    """Ends the process that waits for the next policy, if there is one."""
    while _kept:
        _kept.popitem()[1].end()


def _begin(start: Start, folder: Path) -> VllmProcess:
    process = _kept.pop(start, None)
    end_kept()
    if process is None or not process.is_alive:
        return VllmProcess(start, folder)
    process.load(folder)
    return process


def start_for(
    folder: Path,
    engine: VllmEngine,
    options: GenerateSection,
    *,
    context: int,
    runtime: RuntimeSection,
    dtype: Dtype,
) -> Start:
    """What the process is begun with."""
    start = Start(
        shape=_shape(folder),
        dtype=dtype,
        tensor_parallel_size=engine.tensor_parallel_size,
        memory_share=engine.memory_share,
        enforce_eager=engine.enforce_eager,
        sleeps=engine.keep,
        device=runtime.device,
        threads=runtime.threads,
        max_length=min(context, options.max_prompt_length + options.max_new_tokens),
        max_rows=runtime.generation_rows,
        cache_bytes=None,
    )
    return dataclasses.replace(start, cache_bytes=_cache_bytes(folder, start, runtime))


def _cache_bytes(folder: Path, start: Start, runtime: RuntimeSection) -> int | None:
    """For keys and values: as `runtime.generation_tokens` says; of itself vLLM takes what a GPU has, but all of a CPU's."""
    device = device_of(runtime)
    tokens = runtime.generation_tokens
    if tokens == "auto" and device.type == "cuda":
        return None
    per_token = bytes_per_token(
        AutoConfig.from_pretrained(folder), itemsize=2 if start.dtype == "bfloat16" else 4
    )
    longest = CACHE_BLOCK * (1 + start.max_length // CACHE_BLOCK)
    if tokens == "auto":
        memory = SHARE_OF_MEMORY * memory_of(device, runtime)
        tokens = int(min(MOST_TOKENS, start.max_rows * longest, memory / per_token))
    return per_token * (max(tokens, longest) + CACHE_BLOCK)  # one block is vLLM's own


def _shape(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    tokenizer = (folder / "tokenizer.json").read_bytes() if (folder / "tokenizer.json").is_file() else b""
    return hashlib.blake2b(
        json.dumps(config, sort_keys=True).encode() + tokenizer, digest_size=16
    ).hexdigest()


def seed_of(seed: int, name: str, share: int) -> int:
    """vLLM's seed for a share of a prompt's completions, so that no two prompts draw alike; it adds the place within."""
    digest = hashlib.blake2b(f"{seed}/{name}/{share}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def shares_of(options: GenerateSection) -> list[TemperatureShare]:
    """A group's completions by temperature."""
    return options.temperatures or [
        TemperatureShare(count=options.num_completions, temperature=options.temperature)
    ]


def _each(answers: tuple[Answer, ...], share: TemperatureShare) -> tuple[Answer, ...]:
    """One a completion; the greedy ones are all the same."""
    return answers * share.count if share.temperature == 0 else answers


def _sampled(answer: Answer) -> Sampled:
    return Sampled(answer.token_ids, "stop" if answer.stopped else "length", answer.token_logps)
