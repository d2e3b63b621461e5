"""What a reward model is trained from, and what training every kind has in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.stats import rankdata
from torch import Tensor, nn

from prefloop.batches import TokenGroup
from prefloop.config import RewardSection, RuntimeSection
from prefloop.forward import LogpsModule, ScoresModule, cost
from prefloop.interfaces import Progress
from prefloop.modeling import Dtype
from prefloop.records import Demonstration, Group, PreferencePair
from prefloop.statistics import Interval, clustered_interval, wins
from prefloop.train.adapters import merged, trainable, without_dropout
from prefloop.train.loop import Metrics, Task, fit, planned_steps
from prefloop.train.throughput import training_cost
from prefloop.verdicts import Rated, RuleVerdict, StepVerdicts

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class RewardJob:
    """Everything a training process needs; `trunk` is a language model."""

    trunk: str
    pairs: tuple[PreferencePair, ...]
    validation: tuple[PreferencePair, ...]
    options: RewardSection
    dtype: Dtype
    seed: int
    runtime: RuntimeSection
    out: Path
    all_bad: tuple[Group, ...] = ()
    """Groups of which no completion was good enough."""
    demonstrations: tuple[Demonstration, ...] = ()
    """Answers whose mean score becomes 0, where that is asked for."""
    rows: tuple[RuleVerdict | StepVerdicts | Rated, ...] = ()
    """Verdicts that are not pairs, for the kinds that learn from them."""
    held_out: tuple[RuleVerdict | StepVerdicts | Rated, ...] = ()
    """Verdicts to measure on."""


class Weighted(Protocol):
    """What is trained on: tokens, how much they count, and what they are called in errors."""

    @property
    def tokens(self) -> TokenGroup:
        """A prompt and its completions."""
        ...

    @property
    def weight(self) -> float:
        """What the loss is averaged over."""
        ...

    @property
    def name(self) -> str:
        """Names the row."""
        ...


def fitted(
    job: RewardJob,
    module: ScoresModule | LogpsModule,
    items: Sequence[Weighted],
    loss: Callable[[Any, Any], tuple[Tensor, Metrics]],
    progress: Progress,
) -> dict[str, Any]:
    """Trains the model inside the module and leaves it there as plain weights; returns summary figures."""
    kind = "CAUSAL_LM" if isinstance(module, LogpsModule) else "SEQ_CLS"
    without_dropout(module.model)
    module.model = trainable(
        module.model, job.options, task=kind, dtype=job.dtype, seed=job.seed, runtime=job.runtime
    )
    work = training_cost(module)
    task = Task(
        items,
        tokens=lambda one: cost(one.tokens, module),
        count=lambda one: one.weight,
        name=lambda one: one.name,
        loss=loss,
        work=lambda one: work.of(one.tokens),
    )
    stats = fit_task(job, module, task, job.options, progress)
    module.model = merged(module.model)
    return stats


def fit_task(
    job: RewardJob, module: nn.Module, task: Task[Any], options: RewardSection, progress: Progress
) -> dict[str, Any]:
    """Trains a module on a task with the job's seed, folder and machine."""
    return fit(
        module,
        task,
        options,
        steps=planned_steps(len(task.items), options),
        seed=job.seed,
        dtype=job.dtype,
        runtime=job.runtime,
        folder=job.out,
        progress=progress,
    )


def fit_reward_group(group: TokenGroup, max_length: int) -> tuple[TokenGroup, int]:
    """A group cut on the left, so that the end of each answer, where its score is read, always stays; and the number of
    completions that this changed."""
    if group.longest <= max_length:
        return group, 0
    longest = max(map(len, group.completions))
    keep = max(max_length - longest, 0)
    completions = tuple(one[-max_length:] for one in group.completions)
    return TokenGroup(group.prompt_ids[len(group.prompt_ids) - keep :], completions), len(group.completions)


def pair_accuracy(pairs: Sequence[PreferencePair], leads: Sequence[float]) -> dict[str, Any]:
    """Accuracy on held-out pairs beside the baseline that prefers the longer answer; ties count one half.

    `leads` say by how much each chosen completion is preferred. Intervals resample prompts.
    """
    prompts = [one.prompt.id for one in pairs]

    def interval(values: Sequence[float]) -> Interval | None:
        return clustered_interval(
            wins(values, [0.0] * len(values)), prompts, confidence=CONFIDENCE, resamples=RESAMPLES
        )

    return {
        "num_pairs": len(pairs),
        "ties": sum(lead == 0 for lead in leads),
        "accuracy": interval(leads),
        "length_baseline": interval([float(len(one.chosen.text) - len(one.rejected.text)) for one in pairs]),
    }


def verdict_accuracy(
    prompts: Sequence[str], probabilities: Sequence[float], right: Sequence[float]
) -> dict[str, Any]:
    """How probabilities agree with held-out verdicts, 1 or 0: accuracy, area under the curve, and the usual verdict.

    Intervals resample prompts. `majority` is what always giving the more frequent verdict would reach.
    """
    agrees = [float((p > 0.5) == (label > 0.5)) for p, label in zip(probabilities, right, strict=True)]
    positive = float(np.mean([label > 0.5 for label in right]))
    return {
        "num_verdicts": len(agrees),
        "accuracy": clustered_interval(agrees, prompts, confidence=CONFIDENCE, resamples=RESAMPLES),
        "majority": round(max(positive, 1 - positive), 6),
        "auc": area_under_curve(probabilities, right),
    }


def area_under_curve(values: Sequence[float], right: Sequence[float]) -> float | None:
    """P(a positive has a larger value than a negative), ties one half; None where there is only one of the two."""
    positive = np.asarray(right) > 0.5
    number, others = int(positive.sum()), int((~positive).sum())
    if not number or not others:
        return None
    places = rankdata(np.asarray(values))
    return round(float(places[positive].sum() - number * (number + 1) / 2) / (number * others), 6)
