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
from typing import Any, Generic, Protocol, TypeVar

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
ItemIn = TypeVar("ItemIn", contravariant=True)
CHECKPOINTS = "checkpoints"


class Loss(Protocol[ItemIn]):
    """Summed loss and summed metrics of a microbatch."""

    def __call__(
        self, model: nn.Module, items: Sequence[ItemIn], /
    ) -> tuple[Tensor, Mapping[str, Tensor]]: ...


@dataclass(frozen=True)
class Task(Generic[Item]):
    """What is trained on: items, how long they are, how much each counts, and the loss."""

    items: Sequence[Item]
    length: Callable[[Item], int]
    """Tokens of the item's longest sequence."""
    sequences: int
    """Sequences per item: 1, or 2 for pairs."""
    count: Callable[[Item], float]
    """What the loss is averaged over: tokens, or pairs."""
    loss: Loss[Item]


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

    Returns summary figures. Raises PrefloopError when the loss is no longer finite.
    """
    accelerator = Accelerator(
        mixed_precision="bf16" if dtype == "bfloat16" else "no", cpu=runtime.device == "cpu"
    )
    set_seed(seed)
    state = _prepare(model, options, steps, accelerator)
    saved = _restore(state, accelerator, folder)
    log = MetricsLog(folder / "logs" / "metrics.jsonl", upto=state.step, enabled=accelerator.is_main_process)
    started = time.monotonic()
    batches = batches_of(task.items, options, steps=steps, seed=seed)
    state.model.train()
    for step, items in enumerate(batches):
        if step < state.step:
            continue
        metrics = update(state, task, items, options, accelerator, runtime)
        if not math.isfinite(metrics["train/loss"]):
            raise PrefloopError(
                f"step {step + 1}: the loss is {metrics['train/loss']}; lower the learning rate "
                f"({options.learning_rate:g}) or max_grad_norm ({options.max_grad_norm:g})"
            )
        state.step = step + 1
        state.tokens += sum(task.length(item) * task.sequences for item in items)
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
    total = sum(map(task.count, items))
    mine = items[accelerator.process_index :: accelerator.num_processes]
    groups = list(
        microbatches(mine, task.length, max_tokens=runtime.microbatch_tokens, sequences=task.sequences)
    )
    sums: dict[str, Any] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    for index, group in enumerate(groups):
        is_last = index + 1 == len(groups)
        with accelerator.accumulate(state.model) if is_last else accelerator.no_sync(state.model):
            with accelerator.autocast():
                loss, metrics = task.loss(state.model, group)
            # processes average their gradients; the global count wants their sum
            accelerator.backward(loss * accelerator.num_processes / max(total, 1))
        sums["loss"] = sums["loss"] + loss.detach()
        for name, value in metrics.items():
            sums[name] = sums[name] + value.detach()
    norm: Any = accelerator.clip_grad_norm_(state.model.parameters(), options.max_grad_norm)
    state.optimizer.step()
    learning_rate = float(state.scheduler.get_last_lr()[0])
    state.scheduler.step()
    state.optimizer.zero_grad(set_to_none=True)
    gathered: dict[str, Any] = {name: accelerator.reduce(value, "sum") for name, value in sums.items()}
    return {
        **{f"train/{name}": float(value) / max(total, 1) for name, value in gathered.items()},
        "train/grad_norm": float(norm or 0.0),
        "train/learning_rate": learning_rate,
    }


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
