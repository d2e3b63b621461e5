"""Supervised fine-tuning on demonstrations, on plain text, or on a mix of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from prefloop.batches import Codec, Row, collate, cut
from prefloop.config import RuntimeSection, SftSection
from prefloop.interfaces import Progress
from prefloop.launch import processes
from prefloop.modeling import Dtype, load_codec, load_policy, save_model, settle, token_logps
from prefloop.records import Demonstration, Text
from prefloop.train.adapters import merged, with_adapters
from prefloop.train.loop import Task, fit, planned_steps


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
    if job.runtime.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    trained = with_adapters(model, job.options.lora, task="CAUSAL_LM")

    def loss(module: nn.Module, items: Sequence[Row]) -> tuple[Tensor, Mapping[str, Tensor]]:
        batch = collate(items, pad_id=codec.pad_id, device=next(module.parameters()).device)
        return -token_logps(module, batch).sum(), {}

    task = Task(rows, lambda row: row.length, 1, lambda row: float(row.num_counted), loss)
    stats: dict[str, Any] = fit(
        trained,
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
        save_model(merged(trained), codec.tokenizer, job.out / "model", dtype=job.dtype)
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
) -> tuple[list[Row], int]:
    """Token rows whose completion part carries the loss, and how many had to be cut to fit."""
    rows = [_demonstration_row(one, codec, options) for one in demonstrations]
    rows += [_text_row(codec.text_ids(one.text)) for one in texts]
    fitted, cut_rows = [], 0
    for row in rows:
        short, was_cut = cut(
            row,
            max_length=options.max_length,
            max_prompt_length=options.max_prompt_length,
            truncation=options.truncation,
        )
        cut_rows += was_cut
        fitted.append(short)
    return (pack(fitted, options.max_length) if options.packing else fitted), cut_rows


def _demonstration_row(one: Demonstration, codec: Codec, options: SftSection) -> Row:
    *before, answer = one.messages
    prompt = codec.prompt_ids(before)
    completion = codec.answer_ids(before, answer.content)
    return (
        Row(tuple(prompt), tuple(completion))
        if options.loss_on == "completion"
        else _text_row([*prompt, *completion])
    )


def _text_row(ids: list[int]) -> Row:
    """A row in which everything but the first token is predicted."""
    return Row((ids[0],), tuple(ids[1:]))


def pack(rows: Sequence[Row], max_length: int) -> list[Row]:
    """Joins rows greedily, in order, up to `max_length` tokens. Prompts stay without loss; rows of a pack see each other."""
    packs: list[Row] = []
    for row in rows:
        if packs and packs[-1].length + row.length <= max_length:
            last = packs[-1]
            start = len(last.completion_ids)
            prompt = range(start, start + len(row.prompt_ids))
            later = tuple(prompt.stop + one for one in row.ignored)
            joined = (*last.completion_ids, *row.prompt_ids, *row.completion_ids)
            packs[-1] = Row(last.prompt_ids, joined, (*last.ignored, *prompt, *later))
        else:
            packs.append(row)
    return packs
