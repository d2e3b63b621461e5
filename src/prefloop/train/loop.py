"""The optimiser loop that every training stage shares.

`fit` takes items, a loss on a microbatch of items, and options; it knows nothing about what is trained. Losses are sums,
divided by the global count of the optimiser step, so that gradients do not depend on how a step is cut into microbatches
or spread over processes. Checkpoints make a killed stage continue to the same weights.
"""

import json
import logging
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import get_scheduler

from prefloop.batches import microbatches
from prefloop.config import RuntimeSection, TrainingSection
from prefloop.interfaces import PrefloopError, Progress

Item = TypeVar("Item")
Metrics = Mapping[str, Tensor]
"""Sums over a microbatch, by name."""
CHECKPOINTS = "checkpoints"
OFFENDERS_NAMED = 5


@dataclass(frozen=True)
class Task(Generic[Item]):
    """What is trained on: items, what they cost, how much each counts, and the loss."""

    items: Sequence[Item]
    tokens: Callable[[Item], int]
    """Tokens that the model computes for an item."""
    count: Callable[[Item], float]
    """What the loss is averaged over: tokens, pairs or prompts."""
    name: Callable[[Item], str]
    """What the item is called in errors."""
    loss: Callable[[nn.Module, Sequence[Item]], tuple[Tensor, Metrics]]
    """Summed loss and summed metrics of a microbatch."""
    before_step: Callable[[nn.Module, Sequence[Sequence[Item]], Accelerator], None] | None = None
    """Called with this process's microbatches before a step, for losses that need all items of it."""
    after_step: Callable[[nn.Module, int], None] | None = None
    """Called with the number of the step after the weights have changed."""
    kept: Sequence[Any] = ()
    """What else changes during training; saved and restored by its `state_dict` and `load_state_dict`."""


@dataclass
class TrainState:
    """What a step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    step: int = 0
    tokens: int = 0


def planned_steps(num_items: int, options: TrainingSection) -> int:
    """Optimiser steps of a training stage."""
    if options.max_steps is not None:
        return options.max_steps
    return max(1, math.ceil(round(options.epochs * num_items) / options.batch_size))


def fit(
    model: nn.Module,
    task: Task[Item],
    options: TrainingSection,
    *,
    steps: int,
    seed: int,
    dtype: str,
    runtime: RuntimeSection,
    folder: Path,
    progress: Progress,
) -> dict[str, float]:
    """Trains `model` in place for `steps` optimiser steps, resuming from the last checkpoint in `folder`.

    Returns summary figures. Raises PrefloopError when the loss is no longer finite, before the weights change.
    """
    accelerator = Accelerator(
        mixed_precision="bf16" if dtype == "bfloat16" else "no", cpu=runtime.device == "cpu"
    )
    set_seed(seed)
    state = _prepare(model, options, steps, accelerator)
    accelerator.register_for_checkpointing(*task.kept)
    saved = _restore(state, accelerator, folder)
    log = MetricsLog(folder / "logs" / "metrics.jsonl", upto=state.step, enabled=accelerator.is_main_process)
    started = time.monotonic()
    batches = batches_of(task.items, options, steps=steps, seed=seed)
    state.model.train()
    for step, items in enumerate(batches):
        if step < state.step:
            continue
        metrics = update(state, task, items, options, accelerator, runtime)
        state.step = step + 1
        state.tokens += sum(map(task.tokens, items))
        log.write({"step": state.step, **metrics, "train/seconds": round(time.monotonic() - started, 3)})
        progress(state.step, steps, f"loss {metrics['train/loss']:.3f}")
        if state.step % runtime.save_every_steps == 0 and state.step < steps:
            saved = _save(state, accelerator, folder, saved)
    state.model.eval()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "learning_rate": options.learning_rate,
        **log.first_and_last(),
    }


def update(
    state: TrainState,
    task: Task[Item],
    items: Sequence[Item],
    options: TrainingSection,
    accelerator: Accelerator,
    runtime: RuntimeSection,
) -> dict[str, float]:
    """One optimiser step on `items`; returns metrics averaged over the whole step."""
    total = sum(map(task.count, items)) or 1.0
    sums: dict[str, Any] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    passes = _passes(task, items, accelerator, runtime)
    if task.before_step is not None:
        task.before_step(state.model, [part for part, counts in passes if counts], accelerator)
    for number, (microbatch, counts) in enumerate(passes, 1):
        last = number == len(passes)
        with accelerator.accumulate(state.model) if last else accelerator.no_sync(state.model):
            with accelerator.autocast():
                loss, metrics = task.loss(state.model, microbatch)
            # processes average their gradients; the global count wants their sum
            accelerator.backward(loss * (counts * accelerator.num_processes / total))
        if counts:
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums[name] + value.detach()
    norm: Any = accelerator.clip_grad_norm_(state.model.parameters(), options.max_grad_norm)
    gathered: dict[str, Any] = {name: accelerator.reduce(value, "sum") for name, value in sums.items()}
    means = {f"train/{name}": float(value) / total for name, value in gathered.items()}
    means |= {"train/grad_norm": float(norm or 0.0), "train/learning_rate": _learning_rate(state)}
    if not (math.isfinite(means["train/loss"]) and math.isfinite(means["train/grad_norm"])):
        raise _not_finite(state, task, items, means, options, accelerator)
    state.optimizer.step()
    state.scheduler.step()
    state.optimizer.zero_grad(set_to_none=True)
    if task.after_step is not None:
        task.after_step(state.model, state.step + 1)
    return means


def _passes(
    task: Task[Item], items: Sequence[Item], accelerator: Accelerator, runtime: RuntimeSection
) -> list[tuple[list[Item], bool]]:
    """This process's microbatches, as many as every process has; those that only keep step do not count."""
    ranks = accelerator.num_processes
    all_parts = [
        microbatches(items[rank::ranks], task.tokens, max_tokens=runtime.microbatch_tokens)
        for rank in range(ranks)
    ]
    mine = all_parts[accelerator.process_index]
    spare = max(map(len, all_parts)) - len(mine)
    return [([items[0]], False)] * spare + [(part, True) for part in mine]


def _learning_rate(state: TrainState) -> float:
    return float(state.scheduler.get_last_lr()[0])


def _not_finite(
    state: TrainState,
    task: Task[Item],
    items: Sequence[Item],
    means: dict[str, float],
    options: TrainingSection,
    accelerator: Accelerator,
) -> PrefloopError:
    """The error for a step whose loss or gradient is not a number; names the rows it comes from, each tried alone."""
    offenders = []
    with torch.no_grad(), accelerator.autocast():
        for item in items:
            loss = task.loss(state.model, [item])[0]
            if not math.isfinite(float(loss)):
                offenders.append(task.name(item))
    more = len(offenders) - OFFENDERS_NAMED
    named = "; ".join(offenders[:OFFENDERS_NAMED]) + (f"; and {more} more" if more > 0 else "")
    where = f"it comes from {named}" if offenders else "no row alone causes it"
    return PrefloopError(
        f"step {state.step + 1}: the loss is {means['train/loss']:g} and the gradient norm {means['train/grad_norm']:g}; "
        f"{where}. Nothing was changed in this step; lower the learning rate ({options.learning_rate:g}), "
        "or remove the rows"
    )


def batches_of(
    items: Sequence[Item], options: TrainingSection, *, steps: int, seed: int
) -> Iterator[list[Item]]:
    """The items of each optimiser step: seeded permutations of the data, one after another.

    The last step is shorter when `epochs` asks for no more; with a given number of steps the data is repeated.
    """
    stream = _stream(len(items), seed)
    left = round(options.epochs * len(items)) if steps == planned_steps(len(items), options) else math.inf
    if options.max_steps is not None:
        left = math.inf
    for _ in range(steps):
        size = int(min(options.batch_size, left))
        left -= size
        yield [items[next(stream)] for _ in range(size)]


def _stream(number: int, seed: int) -> Iterator[int]:
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, epoch]).permutation(number).tolist()
        epoch += 1


def _prepare(model: nn.Module, options: TrainingSection, steps: int, accelerator: Accelerator) -> TrainState:
    # tied embeddings are saved once, as they should be; accelerate warns about it at every checkpoint
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.999), fused=True
    )
    scheduler = get_scheduler(
        options.schedule if options.schedule != "constant" else "constant_with_warmup",
        optimizer,
        num_warmup_steps=math.ceil(options.warmup_ratio * steps),
        num_training_steps=steps,
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    return TrainState(model, optimizer, scheduler)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _save(state: TrainState, accelerator: Accelerator, folder: Path, previous: Path | None) -> Path:
    """Saves everything a killed stage needs; the old checkpoint goes only when the new one is whole."""
    target = folder / CHECKPOINTS / f"step-{state.step:08d}"
    temporary = target.with_suffix(".tmp")
    accelerator.save_state(str(temporary))
    if accelerator.is_main_process:
        torch.save(state.scheduler.state_dict(), temporary / "scheduler.pt")
        (temporary / "progress.json").write_text(json.dumps({"step": state.step, "tokens": state.tokens}))
        temporary.rename(target)
        if previous is not None:
            shutil.rmtree(previous)
    accelerator.wait_for_everyone()
    return target


def _restore(state: TrainState, accelerator: Accelerator, folder: Path) -> Path | None:
    """Loads the newest whole checkpoint; returns its folder."""
    found = sorted(path for path in (folder / CHECKPOINTS).glob("step-*") if path.suffix != ".tmp")
    if not found:
        return None
    accelerator.load_state(str(found[-1]))
    state.scheduler.load_state_dict(torch.load(found[-1] / "scheduler.pt", weights_only=True))
    progress = json.loads((found[-1] / "progress.json").read_text())
    state.step, state.tokens = progress["step"], progress["tokens"]
    return found[-1]


class MetricsLog:
    """A JSONL file of step metrics; on resume, rows after the checkpoint are cut off."""

    def __init__(self, path: Path, *, upto: int, enabled: bool) -> None:
        self._path = path
        self._enabled = enabled
        self._rows: list[dict[str, float]] = []
        if path.is_file():
            self._rows = [row for row in _whole_rows(path) if row["step"] <= upto]
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in self._rows))

    def write(self, row: dict[str, float]) -> None:
        """Appends the metrics of one step."""
        rounded = {name: round(value, 8) for name, value in row.items()}
        self._rows.append(rounded)
        if self._enabled:
            with self._path.open("a") as file:
                file.write(json.dumps(rounded) + "\n")

    def first_and_last(self, window: int = 10) -> dict[str, float]:
        """Mean loss over the first and the last few steps."""
        losses = [row["train/loss"] for row in self._rows]
        window = min(window, max(1, len(losses) // 2))
        return {
            "loss_first": round(sum(losses[:window]) / window, 6),
            "loss_last": round(sum(losses[-window:]) / window, 6),
        }


def _whole_rows(path: Path) -> Iterator[dict[str, float]]:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # a kill can leave half a line
            yield json.loads(line)
