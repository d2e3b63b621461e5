"""The optimiser loop that every training stage shares.

`fit` takes items, a loss on a microbatch of items, and options; it knows nothing about what is trained. Losses are sums,
divided by the global count of the optimiser step, so that gradients do not depend on how a step is cut into microbatches
or spread over processes. Checkpoints make a killed stage continue to the same weights.
"""

import contextlib
import itertools
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from prefloop.batches import microbatches, tokens_at_once
from prefloop.config import OptimizerSection, RuntimeSection, TrainingSection
from prefloop.interfaces import InputError, PrefloopError, Progress
from prefloop.store import write_json
from prefloop.train import checkpoints
from prefloop.train.checkpoints import CHECKPOINTS, MetricsLog
from prefloop.train.optimizers import Average, make_schedule
from prefloop.train.sharding import Spread, fill, spread, whole_on_cpu
from prefloop.train.throughput import Throughput, Work, summary

__all__ = ["CHECKPOINTS", "Metrics", "Task", "batches_of", "fit", "planned_steps"]

Item = TypeVar("Item")
Metrics = Mapping[str, Tensor]
"""Sums over a microbatch, by name."""
OFFENDERS_NAMED = 5


@dataclass(frozen=True)
class Task(Generic[Item]):
    """What is trained on: items, what they cost, how much each counts, and the loss."""

    items: Sequence[Item]
    """What is there before training; empty where `made` makes them as it goes."""
    tokens: Callable[[Item], int]
    """Tokens that the model computes for an item."""
    count: Callable[[Item], float]
    """What the loss is averaged over: tokens, pairs or prompts."""
    name: Callable[[Item], str]
    """What the item is called in errors."""
    loss: Callable[[nn.Module, Sequence[Item]], tuple[Tensor, Metrics]]
    """Summed loss and summed metrics of a microbatch."""
    before_step: Callable[[nn.Module, Sequence[Sequence[Item]], Accelerator], None] | None = None
    """Called with this process's microbatches before a step, for losses that need all items of it; one forward pass each."""
    after_step: Callable[[nn.Module, int], None] | None = None
    """Called with the number of the step after the weights have changed."""
    kept: Sequence[Any] = ()
    """What else changes during training; saved and restored by its `state_dict`, of tensors and plain values, and
    `load_state_dict`."""
    work: Callable[[Item], Work] | None = None
    """What an item takes, for the metrics of throughput; left out, there are none."""
    made: "Making[Item] | None" = None
    """Makes the items of each step while the model is trained, in place of `items`."""
    move: "Move[Item] | None" = None
    """Changes weights by the gradient that has been summed up, and takes it from them, before the optimiser changes those
    that still have one; returns figures."""


Made = TypeVar("Made", covariant=True)


class Making(Protocol[Made]):
    """Items that depend on the weights as they are by then: several steps are made of each batch of them."""

    steps_together: int
    """Steps that are made of one batch; checkpoints lie between batches."""

    def steps(self, done: int) -> Iterator[Sequence[Made] | None]:
        """The items of each step after `done` steps, which are whole batches; None leaves a step out."""
        ...

    def figures(self) -> Mapping[str, float]:
        """What is to be logged about the batch that the last step belongs to, once."""
        ...


Move = Callable[[nn.Module, Mapping[str, nn.Parameter], Sequence[Sequence[Item]]], Metrics]
"""Called with the trained module, its weights by name, and the microbatches of the step."""


@dataclass
class TrainState:
    """What a step changes."""

    spread: Spread
    scheduler: LRScheduler
    average: Average | None
    step: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Surroundings:
    """Where a step is computed, and how."""

    options: OptimizerSection
    runtime: RuntimeSection
    accelerator: Accelerator
    dtype: str

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Multiplies matrices in the configured type; weights stay as they are."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")


def planned_steps(num_items: int, options: TrainingSection) -> int:
    """Optimiser steps of a training stage."""
    if options.max_steps is not None:
        return options.max_steps
    return max(1, math.ceil(round(options.epochs * num_items) / options.batch_size))


def fit(
    model: nn.Module,
    task: Task[Item],
    options: OptimizerSection,
    *,
    steps: int,
    seed: int,
    dtype: str,
    runtime: RuntimeSection,
    folder: Path,
    progress: Progress,
) -> dict[str, float]:
    """Trains `model` in place for `steps` optimiser steps, resuming from the last checkpoint in `folder`.

    Returns summary figures that are the same for every run; those of speed and memory go to `logs/throughput.json`. Raises
    PrefloopError when the loss or its gradient is no longer finite, before the weights change.
    """
    # autocast is ours: accelerate's setting cannot be changed within a process
    accelerator = Accelerator(mixed_precision="no", cpu=runtime.device == "cpu")
    here = Surroundings(options, runtime, accelerator, dtype)
    set_seed(seed, device_specific=True)
    state = _start(model, task, here, steps)
    saved = _restore(state, task, here, folder)
    log = MetricsLog(folder / "logs" / "metrics.jsonl", upto=state.step, enabled=accelerator.is_main_process)
    speed = _speed(task, here)
    started = time.monotonic()
    state.spread.module.train()
    for items in _steps(task, options, done=state.step, steps=steps, seed=seed):
        state.step += 1
        if items is None:
            with warnings.catch_warnings():  # torch warns where the very first step is left out
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                state.scheduler.step()
        else:
            step_started = time.perf_counter()
            metrics = update(state, task, items, here)
            state.tokens += sum(map(task.tokens, items))
            took = time.perf_counter() - step_started
            metrics |= speed(items, took)
            if task.made is not None:
                metrics |= {**task.made.figures(), "train/update_s": round(took, 3)}
            log.write({"step": state.step, **metrics, "train/seconds": round(time.monotonic() - started, 3)})
            progress(state.step, steps, _note(metrics))
        if _is_due(task, state.step, runtime.save_every_steps) and state.step < steps:
            saved = _save(state, task, here, folder, saved)
    if state.average is not None:
        state.average.write()
    state.spread.finish()
    model.eval()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        checkpoints.clear(folder)
        if task.work is not None:
            write_json(folder / "logs" / "throughput.json", summary(log.rows))
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "learning_rate": options.learning_rate,
        **log.first_and_last(),
    }


def _steps(
    task: Task[Item], options: OptimizerSection, *, done: int, steps: int, seed: int
) -> Iterator[Sequence[Item] | None]:
    """The items of each step that is still to come; None for one that is left out."""
    if task.made is not None:
        return itertools.islice(task.made.steps(done), steps - done)
    assert isinstance(options, TrainingSection), "items that are there come with how often they are read"
    return itertools.islice(batches_of(task.items, options, steps=steps, seed=seed), done, None)


def _is_due(task: Task[Any], step: int, every: int) -> bool:
    """Whether a checkpoint is made after this step: every so many steps, or behind the batch in which that is."""
    together = task.made.steps_together if task.made is not None else 1
    return step % together == 0 and step // every > (step - together) // every


def _start(model: nn.Module, task: Task[Item], here: Surroundings, steps: int) -> TrainState:
    """The state before the first step. Raises InputError for what cannot be combined."""
    options = here.options
    if here.runtime.deepspeed is not None:
        unknown = {"ema_decay": options.ema_decay, "the objective": task.after_step}
        for name, value in unknown.items():
            if value is not None:
                raise InputError(
                    f"runtime.deepspeed: {name} reads the weights between steps, and DeepSpeed hides them; "
                    "use sharding: fsdp"
                )
    spread_out = spread(model, options, here.accelerator, here.runtime)
    mean = None
    if options.ema_decay is not None:
        mean = Average(spread_out.weights, decay=options.ema_decay)
    return TrainState(spread_out, make_schedule(spread_out.optimizer, options, steps=steps), mean)


def update(
    state: TrainState, task: Task[Item], items: Sequence[Item], here: Surroundings
) -> dict[str, float]:
    """One optimiser step on `items`; returns metrics averaged over the whole step."""
    accelerator, trained = here.accelerator, state.spread.module
    total = sum(map(task.count, items)) or 1.0
    sums: dict[str, Any] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    passes = _passes(task, items, here, even=state.spread.even)
    _look_ahead(trained, task, passes, here)
    for number, (microbatch, counts) in enumerate(passes, 1):
        with state.spread.microbatch(last=number == len(passes)):
            with here.autocast():
                loss, metrics = task.loss(trained, microbatch)
            # processes average their gradients; the global count wants their sum
            state.spread.backward(loss * (counts * accelerator.num_processes / total))
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums[name] + (value.detach() if counts else 0)
    names = sorted(sums)  # every process has the same, also one whose passes do not count
    values: Any = accelerator.reduce(torch.stack([sums[name].float() for name in names]), "sum")
    means = {f"train/{name}": value / total for name, value in zip(names, values.tolist(), strict=True)}
    fine = math.isfinite(means["train/loss"])
    norm = state.spread.clip(here.options.max_grad_norm) if fine else math.nan
    means |= {"train/grad_norm": norm, "train/learning_rate": float(state.scheduler.get_last_lr()[0])}
    if not math.isfinite(norm):
        raise _not_finite(state, task, items, means, here)
    if task.move is not None:
        moved = task.move(trained, state.spread.weights, [part for part, _ in passes])
        means |= {f"train/{name}": float(value) for name, value in moved.items()}
    state.spread.step()
    state.scheduler.step()
    if state.average is not None:
        state.average.update()
    if task.after_step is not None:
        task.after_step(trained, state.step)
    return means


def _look_ahead(
    trained: nn.Module, task: Task[Item], passes: list[tuple[list[Item], bool]], here: Surroundings
) -> None:
    """Lets the task see all microbatches before the step; processes with fewer of them keep step."""
    if task.before_step is None:
        return
    with here.autocast():
        for microbatch, counts in passes:
            if not counts:
                with torch.no_grad():
                    task.loss(trained, microbatch)
        task.before_step(trained, [part for part, counts in passes if counts], here.accelerator)


def _passes(
    task: Task[Item], items: Sequence[Item], here: Surroundings, *, even: bool
) -> list[tuple[list[Item], bool]]:
    """This process's microbatches, at least one, or as many as every process has; those that only keep step do not count."""
    ranks = here.accelerator.num_processes
    at_once = tokens_at_once(here.runtime, here.accelerator.device)
    all_parts = [microbatches(items[rank::ranks], task.tokens, max_tokens=at_once) for rank in range(ranks)]
    mine = all_parts[here.accelerator.process_index]
    wanted = max(map(len, all_parts)) if even else 1
    filler = mine[0][:1] if mine else [items[0]]
    return [(filler, False)] * (wanted - len(mine)) + [(part, True) for part in mine]


def _speed(task: Task[Item], here: Surroundings) -> Callable[[Sequence[Item], float], dict[str, float]]:
    """Metrics of a step from its items and seconds; none where the task does not say what an item takes."""
    if task.work is None:
        return lambda items, seconds: {}
    work, accelerator = task.work, here.accelerator
    throughput = Throughput.of(accelerator.device, here.dtype, num_processes=accelerator.num_processes)
    return lambda items, seconds: throughput.metrics([work(item) for item in items], seconds)


def _note(metrics: Mapping[str, float]) -> str:
    """What the progress bar says beside the time left."""
    note = f"loss {metrics['train/loss']:.3f}"
    if "rl/score" in metrics:
        note = f"score {metrics['rl/score']:.3f}"
        note += f", KL {metrics['rl/kl']:.2f}" if "rl/kl" in metrics else ""
        parts = ("rl/generate_s", "rl/score_s", "train/update_s")
        note += ", sample {:.1f} + score {:.1f} + update {:.1f} s".format(*(metrics[one] for one in parts))
    if "train/tokens_per_s" in metrics:
        note += (
            f", {metrics['train/tokens_per_s']:,.0f} tokens/s, {metrics['train/matmul_share']:.0%} of matmul rate, "
            f"{metrics['train/peak_memory_gb']:.1f} GB"
        )
    return note


# --- what is not finite ----------------------------------------------------------------------------------------------


def _not_finite(
    state: TrainState, task: Task[Item], items: Sequence[Item], means: dict[str, float], here: Surroundings
) -> PrefloopError:
    """The error for a step whose loss or gradient is not a number; names the rows it comes from, each tried alone."""
    state.spread.optimizer.zero_grad(set_to_none=True)
    ranks, rank = here.accelerator.num_processes, here.accelerator.process_index
    mine = items if state.spread.even else items[rank::ranks]
    found = {task.name(item) for item in mine if not _is_finite(state, task, item, here)}
    found = set(gather_object(sorted(found)))
    offenders = [name for name in map(task.name, items) if name in found]
    more = len(offenders) - OFFENDERS_NAMED
    named = "; ".join(offenders[:OFFENDERS_NAMED]) + (f"; and {more} more" if more > 0 else "")
    where = f"it comes from {named}" if offenders else "no row alone causes it"
    if len(offenders) == len(items) > 1:
        where = "every row causes it"
    return PrefloopError(
        f"step {state.step}: the loss is {means['train/loss']:g} and the gradient norm {means['train/grad_norm']:g}; "
        f"{where}. Nothing was changed in this step; lower the learning rate ({here.options.learning_rate:g}), "
        "or remove the rows"
    )


def _is_finite(state: TrainState, task: Task[Item], item: Item, here: Surroundings) -> bool:
    """Whether an item's own loss and gradient are."""
    with state.spread.microbatch(last=False):
        with here.autocast():
            loss = task.loss(state.spread.module, [item])[0]
        gradient = state.spread.tried(loss)
    return math.isfinite(float(loss.detach())) and gradient


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


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _save(
    state: TrainState, task: Task[Item], here: Surroundings, folder: Path, previous: Path | None
) -> Path:
    everything = {
        "step": state.step,
        "tokens": state.tokens,
        "spread": state.spread.state(),
        "scheduler": state.scheduler.state_dict(),
        "average": whole_on_cpu(state.average.values) if state.average is not None else None,
        "kept": [one.state_dict() for one in task.kept],
    }
    return checkpoints.save(
        everything,
        folder,
        step=state.step,
        process=here.accelerator.process_index,
        wait=here.accelerator.wait_for_everyone,
        previous=previous,
    )


def _restore(state: TrainState, task: Task[Item], here: Surroundings, folder: Path) -> Path | None:
    """Goes on from the newest whole checkpoint; returns its folder."""
    if here.accelerator.is_main_process:
        checkpoints.clear(folder, unfinished_only=True)
    found = checkpoints.newest(folder)
    if found is None:
        return None
    saved = checkpoints.load(found, process=here.accelerator.process_index)
    state.spread.load(saved["spread"])
    state.scheduler.load_state_dict(saved["scheduler"])
    if state.average is not None:
        fill(state.average.values, saved["average"])
    for one, values in zip(task.kept, saved["kept"], strict=True):
        one.load_state_dict(values)
    state.step, state.tokens = saved["step"], saved["tokens"]
    return found
