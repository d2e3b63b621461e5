"""What a report consists of: frozen values, from the stages' manifests and rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prefloop.config import MAIN_ARM

if TYPE_CHECKING:
    from prefloop.report.benchmarks import Benchmark


@dataclass(frozen=True)
class Estimate:
    """A mean and its bootstrap interval over prompts; a bare number has no ends."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether it has both ends."""
        return self.low is not None and self.high is not None

    def side_of(self, value: float) -> int:
        """1 when the whole interval lies above `value`, -1 when below, 0 otherwise or without ends."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > value) - (self.high < value)


@dataclass(frozen=True)
class StageRow:
    """One entry of the run: what was asked for, and what its manifest says if it is there."""

    arm: str
    iteration: int | None
    role: str
    kind: str
    key: str
    work: str
    status: Literal["done", "started", "missing"]
    shared: bool
    """Whether another arm uses the same artefact."""
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    started: float | None
    seconds: float
    inputs: tuple[str, ...]
    """Keys of the artefacts it was made from."""
    stats: Mapping[str, Any]
    """The stage's own figures, as they stand in the manifest."""


@dataclass(frozen=True)
class Policy:
    """The start, or what an iteration of an arm produced, with everything measured on it."""

    arm: str
    iteration: int | None
    name: str
    key: str
    evaluated: bool
    labels: int
    """Labels spent on it; the start needed none."""
    steps: int
    """Optimiser steps from the start to here."""
    num_prompts: int
    num_completions: int
    score: Estimate | None
    second: Estimate | None
    proxy: Estimate | None
    score_gain_vs_start: Estimate | None
    score_gain_vs_previous: Estimate | None
    proxy_gain_vs_start: Estimate | None
    win_rate_vs_start: Estimate | None
    win_rate_vs_previous: Estimate | None
    kl: Estimate | None
    sqrt_kl: float | None
    tokens: Estimate | None
    distinct_1: float | None
    distinct_2: float | None
    truncated_share: float | None
    refused_share: float | None
    """Share of answers that begin by declining."""
    judge_directed_share: float | None
    """Share of answers with text that is written for a judge."""
    score_length_correlation: float | None
    repeated_share: float | None
    """Share of evaluation answers that are the most frequent text."""
    score_effect: Estimate | None
    """Gain over the start in standard deviations of the start's scores."""
    proxy_effect: Estimate | None
    """The same for the proxy, but of this policy's own: a retrained reward model has another unit."""
    pair_accuracy: Estimate | None
    promoted: bool | None
    reason: str
    best: bool = False


@dataclass(frozen=True)
class TrainingPoint:
    """One point of a training curve."""

    step: float
    loss: float | None
    accuracy: float | None
    margin: float | None
    chosen_logps: float | None
    rejected_logps: float | None
    score: float | None
    """Of the samples that the policy learned from, as for the next two; by reinforcement only."""
    kl: float | None
    """To the reference, nats a completion."""
    length: float | None
    """Tokens."""


@dataclass(frozen=True)
class SourceScores:
    """What was said to prompts of one source while the policy learned from it."""

    policy: str
    source: str
    prompts: int
    first: float
    """Mean score in the first fifth of the batches, weighted by prompts."""
    last: float
    """The same in the last fifth."""


@dataclass(frozen=True)
class Training:
    """One training stage and its curve."""

    arm: str
    iteration: int | None
    kind: str
    key: str
    status: str
    shared: bool
    steps: int
    rows: int
    learning_rate: float | None
    loss_first: float | None
    loss_last: float | None
    points: tuple[TrainingPoint, ...]
    sources: tuple[SourceScores, ...] = ()
    """Where prompts of reinforcement came from, if from several places."""


@dataclass(frozen=True)
class RewardModel:
    """How well a reward model orders held-out pairs, beside always preferring the longer completion."""

    name: str
    key: str
    accuracy: Estimate | None
    length_baseline: Estimate | None
    num_pairs: int
    ties: int
    trained_on: int
    loss_last: float | None


@dataclass(frozen=True)
class Collected:
    """The labels and pairs that one iteration gathered."""

    arm: str
    iteration: int | None
    name: str
    completions: int
    labels: int
    pseudo_labels: int
    ties: int
    refusals: int
    gold_agreement: float | None
    cost: float
    annotators: Mapping[str, int]
    pairs: int
    mean_margin: float | None
    mean_length_chosen: float | None
    mean_length_rejected: float | None


@dataclass(frozen=True)
class ArmDifference:
    """Main minus another arm on the same evaluation prompts, final policies, paired."""

    arm: str
    labels: int
    other_labels: int
    steps: int
    other_steps: int
    score: Estimate
    num_prompts: int


@dataclass(frozen=True)
class Histogram:
    """Shares of one policy's answers per bin."""

    arm: str
    iteration: int | None
    name: str
    mean: float
    num: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Distribution:
    """One quantity over the evaluation answers of each policy, in common bins."""

    name: str
    edges: tuple[float, ...]
    rows: tuple[Histogram, ...]


@dataclass(frozen=True)
class Answer:
    """What one policy answered."""

    policy: str
    arm: str
    iteration: int | None
    text: str
    score: float | None
    proxy: float | None
    tokens: float | None
    finish_reason: str | None


Choice = Literal["gain", "loss", "unselected"]
"""Why a sample is shown."""


@dataclass(frozen=True)
class Sample:
    """The answers of several policies to one evaluation prompt."""

    prompt_id: str
    turns: tuple[tuple[str, str], ...]
    """Role and text of each message."""
    chosen_as: Choice
    movement: float | None
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class RowCount:
    """Rows that went through all stages of a kind in an arm."""

    kind: str
    arm: str
    stages: int
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class Timing:
    """Seconds spent in all stages of a kind."""

    kind: str
    seconds: float
    parts: tuple[tuple[str, str, float], ...]
    """Place, arm (empty before the loop) and seconds of each stage."""


@dataclass(frozen=True)
class Finding:
    """Something the reader should know before believing the numbers."""

    level: Literal["warning", "note"]
    title: str
    text: str


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    run: str
    version: str
    started: float | None
    verdict: str
    remarks: tuple[str, ...]
    score_name: str
    evaluator: str
    annotator: str
    confidence: float
    finished: bool
    missing: tuple[str, ...]
    labels: int
    labels_all_arms: int
    seed_labels: int
    pseudo_labels: int
    cost: float
    iterations_done: int
    iterations_planned: int
    seconds: float
    seconds_main: float
    smallest_gain: float | None
    """The smallest gain between two policies that this evaluation sees with 80 % probability."""
    arms: tuple[str, ...]
    findings: tuple[Finding, ...]
    policies: tuple[Policy, ...]
    benchmarks: tuple["Benchmark", ...]
    differences: tuple[ArmDifference, ...]
    distributions: tuple[Distribution, ...]
    training: tuple[Training, ...]
    reward_models: tuple[RewardModel, ...]
    collected: tuple[Collected, ...]
    samples: tuple[Sample, ...]
    row_counts: tuple[RowCount, ...]
    timings: tuple[Timing, ...]
    stages: tuple[StageRow, ...]
    experiment: Mapping[str, Any]

    @property
    def start(self) -> Policy | None:
        """The policy the loop started from, where it was evaluated."""
        return next((one for one in self.policies if one.iteration is None and one.evaluated), None)

    @property
    def final(self) -> Policy | None:
        """The main arm's policy as it stands: the last evaluated one that was not rolled back."""
        return final_policy(self.policies, MAIN_ARM)


def last_policy(policies: Iterable[Policy], arm: str) -> Policy | None:
    """The last policy of an arm that was evaluated: what the arm had spent by then."""
    evaluated = [one for one in policies if one.arm == arm and one.iteration is not None and one.evaluated]
    return evaluated[-1] if evaluated else None


def final_policy(policies: Iterable[Policy], arm: str) -> Policy | None:
    """The last policy of an arm that was evaluated and not rolled back: what the arm has to show."""
    return last_policy((one for one in policies if one.promoted is not False), arm)
