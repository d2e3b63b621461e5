"""Supervised fine-tuning on demonstrations, on plain text, or on a mix of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prefloop.batches import Codec, TokenGroup, collate, cut
from prefloop.config import RuntimeSection, SftSection
from prefloop.forward import LogpsModule, cost
from prefloop.interfaces import InputError, Progress
from prefloop.launch import processes
from prefloop.modeling import Dtype, load_codec, load_policy, save_model, settle
from prefloop.records import Demonstration, Text
from prefloop.train.adapters import merged, trainable
from prefloop.train.loop import Metrics, Task, fit, planned_steps
from prefloop.train.throughput import training_cost

NAME_TOKENS = 12
"""Tokens by which a row is named in errors."""


@dataclass(frozen=True)
class SftJob:
    """Everything a training process needs."""

    start: Path
    demonstrations: tuple[Demonstration, ...]
    texts: tuple[Text, ...]
    options: SftSection
    dtype: Dtype
    seed: int
    runtime: RuntimeSection
    out: Path


def train_sft(job: SftJob, progress: Progress) -> dict[str, Any]:
    """Trains and saves the model to `job.out / "model"`; returns its statistics."""
    settle(job.runtime)
    codec = load_codec(job.start)
    texts = draw_texts(job.texts, len(job.demonstrations), job.options.text_share, seed=job.seed)
    rows, cut_rows = encode(job.demonstrations, texts, codec, job.options)
    model = load_policy(job.start, job.runtime)
    module = LogpsModule(model, pad_id=codec.pad_id, runtime=job.runtime)
    module.model = trainable(
        model, job.options, task="CAUSAL_LM", dtype=job.dtype, seed=job.seed, runtime=job.runtime
    )

    def loss(trained: Any, items: Sequence[TokenGroup]) -> tuple[Tensor, Metrics]:
        device = next(trained.parameters()).device
        batch = collate(items, share=module.shares, pad_id=module.pad_id, device=device)
        return -trained(batch).sum(), {}

    task = Task(
        rows,
        tokens=lambda row: cost(row, module),
        count=lambda row: float(row.num_completion_tokens),
        name=lambda row: codec.decode(row.completions[0][:NAME_TOKENS]),
        loss=loss,
        work=training_cost(module).of,
    )
    stats: dict[str, Any] = fit(
        module,
        task,
        job.options,
        steps=planned_steps(len(rows), job.options),
        seed=job.seed,
        dtype=job.dtype,
        runtime=job.runtime,
        folder=job.out,
        progress=progress,
    )
    if processes(job.runtime).is_main_process:
        save_model(merged(module.model), codec.tokenizer, job.out / "model", dtype=job.dtype)
    used = {"num_demonstrations": len(job.demonstrations), "num_texts": min(len(job.texts), len(texts))}
    return stats | used | {"num_rows": len(rows), "truncated": cut_rows}


def draw_texts(texts: Sequence[Text], num_demonstrations: int, share: float, *, seed: int) -> list[Text]:
    """All texts when they are all there is; otherwise so many that they make up `share` of the rows, repeated if short."""
    if not num_demonstrations or not texts:
        return list(texts)
    order = np.random.default_rng([seed, 1]).permutation(len(texts)).tolist()
    wanted = round(num_demonstrations * share / (1 - share))
    return [texts[order[index % len(order)]] for index in range(wanted)]


def encode(
    demonstrations: Sequence[Demonstration], texts: Sequence[Text], codec: Codec, options: SftSection
) -> tuple[list[TokenGroup], int]:
    """Token groups of one completion, which carries the loss, and how many had to be cut to fit."""
    rows = [_demonstration_row(one, codec, options) for one in demonstrations]
    rows += [_text_row(codec.text_ids(one.text)) for one in texts]
    fitted = [
        cut(
            row,
            max_length=options.max_length,
            max_prompt_length=options.max_prompt_length,
            truncation=options.truncation,
        )
        for row in rows
    ]
    if not all(row.num_completion_tokens for row, _ in fitted):
        raise InputError(
            f"a demonstration has no room for its answer: sft.max_prompt_length ({options.max_prompt_length}) "
            f"must be smaller than sft.max_length ({options.max_length})"
        )
    return [row for row, _ in fitted], sum(number for _, number in fitted)


def _demonstration_row(one: Demonstration, codec: Codec, options: SftSection) -> TokenGroup:
    *before, answer = one.messages
    prompt = codec.prompt_ids(before)
    completion = codec.answer_ids(before, answer.content)
    if options.loss_on == "all":
        return _text_row([*prompt, *completion])
    return TokenGroup(tuple(prompt), (tuple(completion),))


def _text_row(ids: list[int]) -> TokenGroup:
    """A row in which everything but the first token is predicted."""
    return TokenGroup((ids[0],), (tuple(ids[1:]),))
