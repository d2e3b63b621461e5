"""The report of a run: one HTML file that needs nothing else, and the same numbers as JSON.

Reads run.json, manifests and the rows of evaluations, and repeats what the stages measured; the paired
difference between arms is the one statistic of its own. Works on a run at any stage of completion and says what is
missing. Knows nothing about torch. The figures are drawn in `plots`, the page is `report.html.jinja`.
"""

import dataclasses
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist, fmean, pstdev
from typing import Any, Literal

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import prefloop
from prefloop import plots
from prefloop.config import MAIN_ARM
from prefloop.pipeline import read_run, run_folder
from prefloop.plots import duration, fixed, number, percent, places_for
from prefloop.records import Group
from prefloop.store import LOGS, MANIFEST, Workspace, read_json, read_records, read_rows, write_json

MOST_DECIMALS = 5
POWER = 0.8
"""The smallest visible gain is the one found with this probability."""
HISTOGRAM_BINS = 24
CURVE_POINTS = 120
"""Longer training curves are averaged down to this many points."""
TRUNCATED_WARNING = 0.2
REPEATED_WARNING = 0.1
"""Share of evaluation answers that are one and the same text."""
REFUSAL_WARNING = 0.05
LENGTH_WARNING = 1.5
"""Answers this many times as long as the start's deserve a look."""
KL_GROWTH_WARNING = 1.25
"""Growth of the KL divergence in one iteration that should have bought a better score."""


# --- types ------------------------------------------------------------------------------------------------


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
        return _final(self.policies, MAIN_ARM)


# --- public -----------------------------------------------------------------------------------------------


def write_report(workspace: Workspace, run: str) -> Path:
    """Writes report.html and report.json beside run.json; returns the path of the page."""
    report = collect(workspace, run)
    path = run_folder(workspace, run) / "report.html"
    write_json(path.with_name("report.json"), as_dict(report))
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(render(report).encode())
    return temporary.replace(path)


def as_dict(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(report)))


def collect(workspace: Workspace, run: str) -> Report:
    """Reads everything a run has produced so far. Raises InputError where there is no such run."""
    journal = _clean(read_run(workspace, run))
    experiment = journal["experiment"]
    stages = _stages(workspace, journal["entries"])
    measured = _measured(workspace, stages)
    policies = _mark_best(_policies(stages, measured))
    arms = tuple(dict.fromkeys([MAIN_ARM, *(stage.arm for stage in stages)]))
    main = [stage for stage in stages if stage.arm == MAIN_ARM]
    iterations = {stage.iteration for stage in main if stage.iteration is not None}
    done = [policy for policy in policies if policy.arm == MAIN_ARM and policy.iteration is not None]
    confidence = float(experiment["evaluate"]["confidence"])
    report = Report(
        run=journal["name"],
        version=prefloop.__version__,
        started=min((stage.started for stage in stages if stage.started), default=None),
        verdict="",
        remarks=(),
        score_name="gold score" if _is_simulation(experiment) else "score",
        evaluator=_part_name(_dig(experiment, "evaluate.scorer")),
        annotator=_part_name(_dig(experiment, "annotate.annotator")),
        confidence=confidence,
        finished=bool(stages) and all(stage.status == "done" for stage in stages),
        missing=_missing(stages),
        labels=_total(_once(main), "annotate", "labels"),
        labels_all_arms=_total(_once(stages), "annotate", "labels"),
        seed_labels=_total(_once(stage for stage in main if stage.iteration is None), "annotate", "labels"),
        pseudo_labels=_total(_once(main), "annotate", "pseudo_labels"),
        cost=sum(_number(stage.stats.get("cost")) or 0.0 for stage in _once(stages)),
        iterations_done=sum(bool(policy.key) for policy in done),
        iterations_planned=len(iterations),
        seconds=sum(stage.seconds for stage in _once(stages)),
        seconds_main=sum(stage.seconds for stage in _once(main)),
        smallest_gain=_smallest_gain(policies, confidence),
        arms=arms,
        findings=(),
        policies=policies,
        differences=tuple(_differences(policies, measured, experiment)),
        distributions=_distributions(policies, measured),
        training=tuple(
            _training(workspace, stage)
            for stage in stages
            if stage.kind in TRAINING_KINDS and (stage.iteration is not None or stage.arm == MAIN_ARM)
        ),
        reward_models=_reward_models(stages),
        collected=tuple(_collected(stages)),
        samples=_samples(policies, measured, experiment["evaluate"]["num_samples_shown"]),
        row_counts=_row_counts(stages),
        timings=tuple(_timings(stages)),
        stages=stages,
        experiment=experiment,
    )
    return replace(
        report, verdict=_verdict(report), remarks=tuple(_remarks(report)), findings=tuple(_findings(report))
    )


def render(report: Report) -> str:
    """The page. All text from outside is escaped; there is no script, and nothing is fetched."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("report.html.jinja").render(
        report=report,
        level=f"{100 * report.confidence:g}%",
        figures=plots.figures(report),
        places={field.name: common_decimals(report.policies, field.name) for field in ESTIMATES},
        reasons=sorted({reason for one in report.row_counts for reason in one.dropped}),
        config_yaml=yaml.safe_dump(dict(report.experiment), sort_keys=False, allow_unicode=True),
    )


# --- reading ----------------------------------------------------------------------------------------------

ESTIMATES = tuple(field for field in dataclasses.fields(Policy) if field.type == Estimate | None)
TRAINING_KINDS = ("base", "sft", "reward", "policy")
Place = tuple[str, int | None]
"""Arm and iteration."""


@dataclass(frozen=True)
class _Measured:
    """The rows of one evaluation that the report needs."""

    rows: tuple[Mapping[str, Any], ...]
    groups: tuple[Group, ...]

    def values(self, field: str) -> list[float]:
        """All finite values of a field."""
        return [value for row in self.rows if (value := _number(row.get(field))) is not None]

    @property
    def repeated_share(self) -> float:
        """Share of the answers that are the most frequent text; 0 where all differ."""
        texts = Counter(completion.text for group in self.groups for completion in group.completions)
        most = max(texts.values(), default=0)
        return most / texts.total() if most > 1 else 0.0

    def by_prompt(self, field: str) -> dict[str, float]:
        """Means of a field over the completions of each prompt that has any."""
        found: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            if (value := _number(row.get(field))) is not None:
                found[row["prompt_id"]].append(value)
        return {prompt_id: fmean(values) for prompt_id, values in found.items()}


def _stages(workspace: Workspace, entries: Sequence[Mapping[str, Any]]) -> tuple[StageRow, ...]:
    arms_of: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        arms_of[entry["key"]].add(entry["arm"])
    return tuple(_stage(workspace, entry, shared=len(arms_of[entry["key"]]) > 1) for entry in entries)


def _stage(workspace: Workspace, entry: Mapping[str, Any], *, shared: bool) -> StageRow:
    folder = workspace.artefacts / f"{entry['kind']}-{entry['key']}"
    manifest: dict[str, Any] = {}
    status: Literal["done", "started", "missing"] = "missing"
    if (folder / MANIFEST).is_file():
        manifest, status = _clean(read_json(folder / MANIFEST)), "done"
    elif folder.with_name(folder.name + ".partial").is_dir():
        status = "started"
    rows = manifest.get("rows", {})
    inputs = (value if isinstance(value, list) else [value] for value in manifest.get("inputs", {}).values())
    return StageRow(
        arm=entry["arm"],
        iteration=entry["iteration"],
        role=entry["role"],
        kind=entry["kind"],
        key=entry["key"],
        work=entry["work"],
        status=status,
        shared=shared,
        rows_in=rows.get("in", 0),
        rows_out=rows.get("out", 0),
        dropped=rows.get("dropped", {}),
        started=_number(manifest.get("started")),
        seconds=_number(manifest.get("seconds")) or 0.0,
        inputs=tuple(key for keys in inputs for key in keys if key),
        stats=manifest.get("stats", {}),
    )


def _measured(workspace: Workspace, stages: Sequence[StageRow]) -> dict[Place, _Measured]:
    """Evaluation rows by arm and iteration."""
    found: dict[Place, _Measured] = {}
    for stage in stages:
        if stage.kind == stage.role == "evaluate" and stage.status == "done":
            folder = workspace.artefacts / f"evaluate-{stage.key}"
            rows = tuple(read_rows(folder / "measurements.jsonl"))
            groups = tuple(read_records(folder / "groups.jsonl", Group))
            found[stage.arm, stage.iteration] = _Measured(rows, groups)
    return found


def _policies(stages: Sequence[StageRow], measured: Mapping[Place, _Measured]) -> tuple[Policy, ...]:
    """The start, then each arm's iterations in order, as far as they have been trained."""
    arms = dict.fromkeys([MAIN_ARM, *(stage.arm for stage in stages)])
    iterations = sorted({stage.iteration for stage in stages if stage.iteration is not None})
    places: list[Place] = [(MAIN_ARM, None), *((arm, one) for arm in arms for one in iterations)]
    policies = (_policy(stages, *place, measured) for place in places)
    return tuple(one for one in policies if one.key or one.evaluated)


def _policy(
    stages: Sequence[StageRow], arm: str, iteration: int | None, measured: Mapping[Place, _Measured]
) -> Policy:
    own = [stage for stage in stages if stage.arm == arm]
    here = [stage for stage in own if stage.iteration == iteration]
    so_far = [stage for stage in own if stage.iteration is not None and stage.iteration <= (iteration or 0)]
    evaluation = next((one.stats for one in reversed(here) if one.kind == one.role == "evaluate"), {})
    trained = next((one for one in reversed(here) if one.kind == "policy" and one.status == "done"), None)
    promote = next((one.stats for one in here if one.kind == "promote" and one.status == "done"), {})
    score_gain = _estimate(evaluation.get("score_gain_vs_start"))
    proxy_gain = _estimate(evaluation.get("proxy_gain_vs_start"))
    kl = _estimate(evaluation.get("kl"))
    here_measured = measured.get((arm, iteration))
    return Policy(
        arm=arm,
        iteration=iteration,
        name=("SFT start" if any(one.kind == "sft" for one in here) else "start")
        if iteration is None
        else iteration_name(iteration),
        key=trained.key if trained else "",
        evaluated=bool(evaluation),
        labels=0 if iteration is None else labels_spent(stages, arm, iteration),
        steps=0 if iteration is None else _total(_once(so_far), "policy", "steps"),
        num_prompts=int(evaluation.get("num_prompts") or 0),
        num_completions=int(evaluation.get("num_completions") or 0),
        score=_estimate(evaluation.get("score")),
        second=_estimate(evaluation.get("second")),
        proxy=_estimate(evaluation.get("proxy")),
        score_gain_vs_start=score_gain,
        score_gain_vs_previous=_estimate(evaluation.get("score_gain_vs_previous")),
        proxy_gain_vs_start=proxy_gain,
        win_rate_vs_start=_estimate(evaluation.get("win_rate_vs_start")),
        win_rate_vs_previous=_estimate(evaluation.get("win_rate_vs_previous")),
        kl=kl,
        # a sampled KL of two nearly equal policies may come out slightly negative
        sqrt_kl=math.sqrt(max(kl.mean, 0.0)) if kl else None,
        tokens=_estimate(evaluation.get("tokens")),
        distinct_1=_number(evaluation.get("distinct_1")),
        distinct_2=_number(evaluation.get("distinct_2")),
        truncated_share=_number(evaluation.get("truncated_share")),
        score_length_correlation=_number(evaluation.get("score_length_correlation")),
        repeated_share=here_measured.repeated_share if here_measured else None,
        score_effect=_effect(score_gain, measured.get((MAIN_ARM, None)), "score"),
        proxy_effect=_effect(proxy_gain, here_measured, "proxy"),
        pair_accuracy=_estimate((trained.stats.get("validation") or {}).get("accuracy")) if trained else None,
        promoted=promote.get("promoted"),
        reason=str(promote.get("reason") or ""),
    )


def _effect(gain: Estimate | None, measured: _Measured | None, field: str) -> Estimate | None:
    """A gain in standard deviations of one evaluation's values."""
    values = measured.values(field) if measured else []
    if gain is None or len(values) < 2 or not (unit := pstdev(values)):
        return None
    low, high = (None if end is None else end / unit for end in (gain.low, gain.high))
    return Estimate(gain.mean / unit, low, high)


def labels_spent(stages: Iterable[StageRow], arm: str, iteration: int) -> int:
    """Labels of an arm up to and including an iteration; those before the loop count for every arm."""
    spent = (
        one for one in stages if one.arm == arm and (one.iteration is None or one.iteration <= iteration)
    )
    return _total(_once(spent), "annotate", "labels")


def iteration_name(iteration: int) -> str:
    """People count from 1, run.json from 0."""
    return f"iteration {iteration + 1}"


def _mark_best(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """Marks the main arm's policy with the highest mean score (the proxy's, where there is no evaluator)."""
    standing = [one for one in policies if one.arm == MAIN_ARM and one.promoted is not False]
    for field in ("score", "proxy_gain_vs_start"):
        scored = [one for one in standing if getattr(one, field)]
        if len(scored) > 1:
            best = max(scored, key=lambda one: getattr(one, field).mean)
            return tuple(replace(one, best=one is best) for one in policies)
    return policies


def _last(policies: Iterable[Policy], arm: str) -> Policy | None:
    """The last policy of an arm that was evaluated: what the arm had spent by then."""
    evaluated = [one for one in policies if one.arm == arm and one.iteration is not None and one.evaluated]
    return evaluated[-1] if evaluated else None


def _final(policies: Iterable[Policy], arm: str) -> Policy | None:
    """The last policy of an arm that was evaluated and not rolled back: what the arm has to show."""
    return _last((one for one in policies if one.promoted is not False), arm)


def _training(workspace: Workspace, stage: StageRow) -> Training:
    folder = workspace.artefacts / f"{stage.kind}-{stage.key}"
    if stage.status == "started":
        folder = folder.with_name(folder.name + ".partial")
    points = list(_curve(folder / LOGS / "metrics.jsonl"))
    return Training(
        arm=stage.arm,
        iteration=stage.iteration,
        kind=stage.kind,
        key=stage.key,
        status=stage.status,
        shared=stage.shared,
        steps=int(stage.stats.get("steps") or (points[-1].step if points else 0)),
        rows=int(stage.stats.get("num_rows") or stage.stats.get("pairs") or 0),
        learning_rate=_number(stage.stats.get("learning_rate")),
        loss_first=_number(stage.stats.get("loss_first")),
        loss_last=_number(stage.stats.get("loss_last")),
        points=tuple(_thinned(points)),
    )


def _curve(path: Path) -> Iterator[TrainingPoint]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a stage that is running or was killed
            return
        if "train/loss" in row:
            names = ("loss", "accuracy", "margin", "chosen_logps", "rejected_logps")
            yield TrainingPoint(row["step"], *(_number(row.get(f"train/{name}")) for name in names))


def _thinned(points: Sequence[TrainingPoint]) -> Iterator[TrainingPoint]:
    size = -(-len(points) // CURVE_POINTS) or 1
    for first in range(0, len(points), size):
        chunk = [dataclasses.astuple(point) for point in points[first : first + size]]
        columns = ([value for value in column if value is not None] for column in zip(*chunk, strict=True))
        yield TrainingPoint(*(fmean(values) if values else None for values in columns))  # type: ignore[arg-type]


def _reward_models(stages: Sequence[StageRow]) -> tuple[RewardModel, ...]:
    found = []
    for stage in _once(stages):
        if stage.kind == "reward" and stage.status == "done":
            validation = stage.stats.get("validation") or {}
            found.append(
                RewardModel(
                    name=place_name(stage.arm, stage.iteration),
                    key=stage.key,
                    accuracy=_estimate(validation.get("accuracy")),
                    length_baseline=_estimate(validation.get("length_baseline")),
                    num_pairs=int(validation.get("num_pairs") or 0),
                    ties=int(validation.get("ties") or 0),
                    trained_on=int(stage.stats.get("num_rows") or 0),
                    loss_last=_number(stage.stats.get("loss_last")),
                )
            )
    return tuple(found)


def place_name(arm: str, iteration: int | None) -> str:
    """A place in the run, in words."""
    if iteration is None:
        return "before the loop"
    return iteration_name(iteration) if arm == MAIN_ARM else f"{arm}, {iteration_name(iteration)}"


def _collected(stages: Sequence[StageRow]) -> Iterator[Collected]:
    """What each iteration of each arm learned from, whether or not it shared it with another arm."""
    own = [
        one for one in stages if one.status == "done" and (one.iteration is not None or one.arm == MAIN_ARM)
    ]
    for arm, iteration in dict.fromkeys((one.arm, one.iteration) for one in own if one.kind == "annotate"):
        here = _once(one for one in own if (one.arm, one.iteration) == (arm, iteration))
        annotations = [one for one in here if one.kind == "annotate"]
        yield Collected(
            arm=arm,
            iteration=iteration,
            name=place_name(arm, iteration),
            completions=_total(here, "generate", "num_completions"),
            labels=_total(here, "annotate", "labels"),
            pseudo_labels=_total(here, "annotate", "pseudo_labels"),
            ties=_total(here, "annotate", "ties"),
            refusals=_total(here, "annotate", "refusals"),
            gold_agreement=_weighted(here, "annotate", "gold_agreement", weight="labels"),
            cost=sum(_number(one.stats.get("cost")) or 0.0 for one in annotations),
            annotators=dict(
                sum((Counter(one.stats.get("annotators") or {}) for one in annotations), Counter())
            ),
            pairs=_total(here, "select", "pairs"),
            mean_margin=_weighted(here, "select", "mean_margin", weight="pairs"),
            mean_length_chosen=_weighted(here, "select", "mean_length_chosen", weight="pairs"),
            mean_length_rejected=_weighted(here, "select", "mean_length_rejected", weight="pairs"),
        )


def _row_counts(stages: Sequence[StageRow]) -> tuple[RowCount, ...]:
    groups: dict[tuple[str, str], list[StageRow]] = {}
    for stage in _once(stages):
        if stage.status == "done" and (stage.rows_in or stage.rows_out):
            groups.setdefault((stage.kind, "shared" if stage.shared else stage.arm), []).append(stage)
    return tuple(
        RowCount(
            kind=kind,
            arm=arm,
            stages=len(group),
            rows_in=sum(one.rows_in for one in group),
            rows_out=sum(one.rows_out for one in group),
            dropped=dict(sorted(sum((Counter(one.dropped) for one in group), Counter()).items())),
        )
        for (kind, arm), group in groups.items()
    )


def _timings(stages: Sequence[StageRow]) -> Iterator[Timing]:
    done = [one for one in _once(stages) if one.status == "done"]
    for kind in dict.fromkeys(one.kind for one in done):
        parts = tuple(
            (place_name(one.arm, one.iteration), "" if one.iteration is None else one.arm, one.seconds)
            for one in done
            if one.kind == kind
        )
        yield Timing(kind, sum(seconds for _, _, seconds in parts), parts)


def _missing(stages: Sequence[StageRow]) -> tuple[str, ...]:
    places: dict[str, Counter[str]] = defaultdict(Counter)
    for stage in _once(stages):
        if stage.status != "done":
            name = stage.role if stage.status == "missing" else f"{stage.role} (started)"
            places[place_name(stage.arm, stage.iteration)][name] += 1
    return tuple(
        f"{place}: {', '.join(name if times == 1 else f'{times} × {name}' for name, times in names.items())}"
        for place, names in places.items()
    )


# --- statistics -------------------------------------------------------------------------------------------


def _differences(
    policies: Sequence[Policy],
    measured: Mapping[Place, _Measured],
    experiment: Mapping[str, Any],
) -> Iterator[ArmDifference]:
    """Main minus every other arm; the one statistic that no single stage could have computed."""
    from prefloop.statistics import mean_interval

    main, spent = _final(policies, MAIN_ARM), _last(policies, MAIN_ARM)
    for arm in dict.fromkeys(one.arm for one in policies if one.arm != MAIN_ARM):
        other, other_spent = _final(policies, arm), _last(policies, arm)
        if main is None or spent is None or other is None or other_spent is None:
            continue
        ours = measured[main.arm, main.iteration].by_prompt("score")
        theirs = measured[arm, other.iteration].by_prompt("score")
        differences = [ours[one] - theirs[one] for one in sorted(ours.keys() & theirs.keys())]
        options = experiment["evaluate"]
        interval = mean_interval(
            differences, confidence=options["confidence"], resamples=options["resamples"]
        )
        if score := _estimate(interval):
            yield ArmDifference(
                arm=arm,
                labels=spent.labels,
                other_labels=other_spent.labels,
                steps=spent.steps,
                other_steps=other_spent.steps,
                score=score,
                num_prompts=len(differences),
            )


def _smallest_gain(policies: Sequence[Policy], confidence: float) -> float | None:
    """(z of the level + z of the power) standard errors: 2.8 of them at 95 % and 80 %."""
    gains = [one.score_gain_vs_previous or one.score_gain_vs_start for one in policies if one.arm == MAIN_ARM]
    widths = [one.high - one.low for one in gains if one and one.low is not None and one.high is not None]
    if not widths:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return (z + NormalDist().inv_cdf(POWER)) * widths[-1] / (2 * z)


def _distributions(
    policies: Sequence[Policy], measured: Mapping[Place, _Measured]
) -> tuple[Distribution, ...]:
    found = []
    for name, field in (("score", "score"), ("length", "tokens")):
        values = {
            place: numbers
            for policy in policies
            if (place := (policy.arm, policy.iteration)) in measured
            and (numbers := measured[place].values(field))
        }
        if values:
            found.append(_distribution(name, policies, values))
    return tuple(found)


def _distribution(name: str, policies: Sequence[Policy], values: Mapping[Place, list[float]]) -> Distribution:
    edges = np.histogram_bin_edges(
        [value for numbers in values.values() for value in numbers], HISTOGRAM_BINS
    )
    rows = []
    for policy in policies:
        if numbers := values.get((policy.arm, policy.iteration)):
            counts, _ = np.histogram(numbers, edges)
            shares = tuple(float(count) / len(numbers) for count in counts)
            mean = fmean(numbers)
            rows.append(Histogram(policy.arm, policy.iteration, policy.name, mean, len(numbers), shares))
    return Distribution(name, tuple(float(edge) for edge in edges), tuple(rows))


# --- samples ----------------------------------------------------------------------------------------------


def _samples(
    policies: Sequence[Policy],
    measured: Mapping[Place, _Measured],
    wanted: int,
) -> tuple[Sample, ...]:
    """Evaluation prompts with the largest gains, the largest losses, and some that nobody picked."""
    shown = [one for one in policies if one.evaluated and one.arm == MAIN_ARM]
    others = dict.fromkeys(one.arm for one in policies if one.arm != MAIN_ARM)
    shown += [final for arm in others if (final := _final(policies, arm))]
    if not shown or not wanted:
        return ()
    answers: dict[str, list[Answer]] = defaultdict(list)
    turns: dict[str, tuple[tuple[str, str], ...]] = {}
    for policy in shown:
        one = measured[policy.arm, policy.iteration]
        rows = {row["completion_id"]: row for row in one.rows}
        for group in one.groups:
            if group.completions:
                turns[group.prompt.id] = tuple((turn.role, turn.content) for turn in group.prompt.messages)
                answers[group.prompt.id].append(_answer(policy, group, rows.get(group.completions[0].id, {})))
    movement = _movement(policies, measured)
    return tuple(
        Sample(prompt_id, turns[prompt_id], chosen_as, movement.get(prompt_id), tuple(answers[prompt_id]))
        for prompt_id, chosen_as in _choose(sorted(turns), movement, wanted)
    )


def _answer(policy: Policy, group: Group, row: Mapping[str, Any]) -> Answer:
    completion = group.completions[0]
    return Answer(
        policy=policy.name,
        arm=policy.arm,
        iteration=policy.iteration,
        text=completion.text,
        score=_number(row.get("score")),
        proxy=_number(row.get("proxy")),
        tokens=_number(row.get("tokens")),
        finish_reason=completion.finish_reason,
    )


def _movement(policies: Sequence[Policy], measured: Mapping[Place, _Measured]) -> dict[str, float]:
    """Score of the final policy minus the start's, by prompt; empty where there is no evaluator.

    The proxy would not do: the two were scored by different reward models.
    """
    final, start = _final(policies, MAIN_ARM), measured.get((MAIN_ARM, None))
    if final is None or start is None:
        return {}
    before, after = start.by_prompt("score"), measured[final.arm, final.iteration].by_prompt("score")
    return {one: after[one] - before[one] for one in before.keys() & after.keys()}


def _choose(
    prompt_ids: Sequence[str], movement: Mapping[str, float], wanted: int
) -> list[tuple[str, Choice]]:
    third = -(-wanted // 3)
    ranked = sorted(movement, key=lambda prompt_id: (-movement[prompt_id], prompt_id))
    gains = [prompt_id for prompt_id in ranked[:third] if movement[prompt_id] > 0]
    losses = [prompt_id for prompt_id in ranked[::-1][:third] if movement[prompt_id] < 0]
    # ids are content hashes, so the first ones in order were picked by nobody
    rest = [prompt_id for prompt_id in prompt_ids if prompt_id not in {*gains, *losses}]
    rest = rest[: max(wanted - len(gains) - len(losses), 0)]
    parts: dict[Choice, list[str]] = {"gain": gains, "loss": losses, "unselected": rest}
    return [(prompt_id, chosen_as) for chosen_as, chosen in parts.items() for prompt_id in chosen]


# --- what it means ----------------------------------------------------------------------------------------


def _verdict(report: Report) -> str:
    """One sentence, no stronger than the paired intervals."""
    if not report.stages:
        return "Nothing has run yet."
    final = report.final
    if final is None:
        return _early_verdict(report)
    if final.score_gain_vs_start:
        change = _change(report, f"Held-out {report.score_name}", final.score_gain_vs_start, final.score)
    elif final.proxy_gain_vs_start:
        change = _change(report, "The reward model's own score", final.proxy_gain_vs_start, None)
    else:
        return f"Nothing to judge by: no evaluator and no reward model looked at {_effort(report)}."
    steps = _step_verdicts([one for one in report.policies if one.arm == MAIN_ARM])
    return f"{change} in {_effort(report)}{'; ' + steps if steps else ''}."


def _early_verdict(report: Report) -> str:
    """What can be said while no iteration stands."""
    if any(one.promoted is False for one in report.policies):
        return "Every iteration so far was rolled back: the start stands."
    stages = _once(report.stages)
    progress = f"{sum(stage.status == 'done' for stage in stages)} of {len(stages)} stages are done"
    start = report.start
    if start and start.score:
        score = f"{report.score_name} {number(start.score.mean)} on {start.num_prompts:,} held-out prompts"
        return f"No iteration has been evaluated yet; the start has {score}, and {progress}."
    return f"No policy has been evaluated yet; {progress}."


def _change(report: Report, what: str, gain: Estimate, score: Estimate | None) -> str:
    places, start = decimals(gain), report.start
    words = {1: "rose", -1: "fell", 0: "did not measurably change:"}[gain.side_of(0)]
    if score and start and start.score:
        words += f" from {fixed(start.score.mean, places)} to {fixed(score.mean, places)}"
    interval = f", {100 * report.confidence:g}% interval {range_text(gain)}" if gain.bounded else ""
    return f"{what} {words} ({fixed(gain.mean, places, sign=True)}{interval})"


def _effort(report: Report) -> str:
    """What was spent, on policies that were rolled back too."""
    last = _last(report.policies, MAIN_ARM)
    iterations, labels = (last.iteration + 1, last.labels) if last and last.iteration is not None else (0, 0)
    plurals = ["" if count == 1 else "s" for count in (iterations, labels)]
    return f"{iterations} iteration{plurals[0]} with {labels:,} label{plurals[1]}"


def _step_verdicts(policies: Sequence[Policy]) -> str:
    """How each iteration stands to the one before, in words; nothing for a first one that stands alone."""
    said: dict[str, list[int]] = {}
    for policy in policies:
        gain = policy.score_gain_vs_previous
        if policy.iteration is None:
            continue
        if policy.promoted is False:
            said.setdefault("rolled back", []).append(policy.iteration + 1)
        elif gain:
            words = {1: "improved", -1: "fell", 0: "unclear"}[gain.side_of(0)]
            said.setdefault(words, []).append(policy.iteration + 1)
    if list(said.values()) == [[1]] and "rolled back" not in said:
        return ""
    if set(said) == {"improved"}:
        return "every iteration improved on the one before"
    if set(said) == {"unclear"}:
        return "no iteration can be told apart from the one before"
    phrases = {
        "improved": "{} improved on the one before",
        "unclear": "{} cannot be told apart from the one before",
        "fell": "{} fell below the one before",
        "rolled back": "{} {was} rolled back",
    }
    return ", ".join(
        phrases[words].format(_numbered(found), was="was" if len(found) == 1 else "were")
        for words, found in said.items()
    )


def _numbered(iterations: Sequence[int]) -> str:
    if len(iterations) == 1:
        return f"iteration {iterations[0]}"
    return f"iterations {', '.join(map(str, iterations[:-1]))} and {iterations[-1]}"


def _remarks(report: Report) -> Iterator[str]:
    """Sentences under the verdict."""
    final = report.final
    if final and not final.score:
        yield "No independent evaluator looked: this shows that the policy pleases its reward model, no more."
    for one in report.differences:
        equal = one.labels == one.other_labels
        labels = f"At equal labels ({one.labels:,})" if equal else "At unequal labels"
        verb = {1: "is ahead of", -1: "is behind", 0: "cannot be told apart from"}[one.score.side_of(0)]
        counts = "" if equal else f" ({one.labels:,} against {one.other_labels:,})"
        yield f"{labels}{counts}, {MAIN_ARM} {verb} {one.arm}: {describe(one.score, report.confidence)}."


def _findings(report: Report) -> list[Finding]:
    """What a careful reader would ask about before believing the numbers; warnings first."""
    groups = (_evaluator_findings, _optimisation_findings, _outcome_findings, _text_findings, _label_findings)
    found = [finding for group in groups for finding in group(report)]
    return sorted(found, key=lambda one: one.level != "warning")


def _evaluator_findings(report: Report) -> Iterator[Finding]:
    scorer = _dig(report.experiment, "evaluate.scorer")
    if scorer and scorer == _dig(report.experiment, "annotate.annotator"):
        yield Finding(
            "warning",
            "The evaluator is the annotator",
            f"{report.evaluator} both labels and evaluates. Fine for label-efficiency curves, unsafe as the "
            "only metric: its own blind spots look like progress.",
        )
    elif not scorer and report.stages:
        yield Finding(
            "warning",
            "No independent evaluator",
            "evaluate.scorer is not set, so only the reward model's own score and text statistics are known.",
        )
    elif _is_simulation(report.experiment):
        yield Finding(
            "note",
            "This is a simulation",
            f"The evaluator ({report.evaluator}) is the truth that the simulated annotators see through "
            "noise; training saw only their labels.",
        )


def _optimisation_findings(report: Report) -> Iterator[Finding]:
    for arm in report.arms:
        chain = [
            one for one in report.policies if one.arm == arm and one.iteration is not None and one.evaluated
        ]
        idle: list[Policy] = []
        for before, after in itertools.pairwise(chain):
            gain = after.score_gain_vs_previous
            if gain is None or after.promoted is False or gain.side_of(0) > 0:
                continue
            if gain.side_of(0) < 0 and _mean(after.proxy_effect) > _mean(before.proxy_effect):
                yield Finding(
                    "warning",
                    "Over-optimisation",
                    f"In {_full_name(after)} the reward model's gain over the start rose from "
                    f"{number(_mean(before.proxy_effect))} to {number(_mean(after.proxy_effect))} standard deviations, "
                    f"while the {report.score_name} changed by {describe(gain, report.confidence)}.",
                )
            elif _mean(after.kl) > KL_GROWTH_WARNING * _mean(before.kl):
                idle.append(after)
        if idle:
            iterations = _numbered([(one.iteration or 0) + 1 for one in idle])
            yield Finding(
                "warning",
                "KL grew without a better score",
                f"In {iterations} of {arm} the policy moved on, to {number(_mean(idle[-1].kl))} nats from the start, "
                f"but no gain in {report.score_name} can be shown. Consider stopping earlier.",
            )


def _mean(estimate: Estimate | None) -> float:
    return estimate.mean if estimate else 0.0


def _outcome_findings(report: Report) -> Iterator[Finding]:
    final, start = report.final, report.start
    if final and (won := final.win_rate_vs_start) and won.bounded and not won.side_of(0.5):
        yield Finding(
            "warning",
            "The win rate against the start includes one half",
            f"{percent(won.mean)}, interval {range_text(won, 'percent')}, on {final.num_prompts:,} prompts: "
            "not separable from no change.",
        )
    if final and start and final.second and start.second and (gain := final.score_gain_vs_start):
        before, after = start.second.mean, final.second.mean
        if gain.mean > 0 and after < before:
            yield Finding(
                "warning",
                "The second scorer disagrees",
                f"It went from {number(before)} to {number(after)} while the {report.score_name} rose: "
                "a shortcut may have been found.",
            )
    for one in report.differences:
        if one.labels != one.other_labels:
            yield Finding(
                "warning",
                f"{MAIN_ARM} and {one.arm} spent different numbers of labels",
                f"{one.labels:,} against {one.other_labels:,}; compare the curves at equal labels, not the ends.",
            )
        if one.steps != one.other_steps:
            yield Finding(
                "warning",
                f"{MAIN_ARM} and {one.arm} took different numbers of optimiser steps",
                f"{one.steps:,} against {one.other_steps:,}; more steps are an advantage of their own.",
            )
    for one in report.policies:
        if one.promoted is False:
            yield Finding("note", "A policy was rolled back", f"{_full_name(one)}: {one.reason}.")


def _text_findings(report: Report) -> Iterator[Finding]:
    evaluated = [one for one in report.policies if one.evaluated and one.num_completions > 1]
    if cut := [one for one in evaluated if (one.truncated_share or 0) > TRUNCATED_WARNING]:
        shares = ", ".join(f"{percent(one.truncated_share)} ({_full_name(one)})" for one in cut)
        yield Finding(
            "warning",
            "Many answers were cut off",
            f"{shares} of the evaluation answers reached the length limit; raise generate.max_new_tokens.",
        )
    if same := [one for one in evaluated if (one.repeated_share or 0) > REPEATED_WARNING]:
        shares = ", ".join(f"{percent(one.repeated_share)} ({_full_name(one)})" for one in same)
        yield Finding(
            "warning",
            "The same answer again and again",
            f"{shares} of the evaluation answers are one and the same text.",
        )
    before, after = (_mean(one.tokens) if one else 0.0 for one in (report.start, report.final))
    if before and after > LENGTH_WARNING * before:
        correlation = report.final.score_length_correlation if report.final else None
        yield Finding(
            "warning",
            "Answers grew much longer",
            f"From {number(before)} to {number(after)} tokens on average; the score's correlation with length is "
            f"{number(correlation)}.",
        )


def _label_findings(report: Report) -> Iterator[Finding]:
    for one in report.reward_models:
        accuracy, baseline = one.accuracy, one.length_baseline
        if accuracy and baseline and accuracy.bounded and accuracy.side_of(baseline.mean) < 1:
            yield Finding(
                "warning",
                "A reward model is not clearly better than preferring the longer answer",
                f"Trained {one.name}: accuracy {percent(accuracy.mean)} (interval {range_text(accuracy, 'percent')}) "
                f"against {percent(baseline.mean)} on {one.num_pairs:,} pairs.",
            )
    asked = sum(one.labels for one in report.collected)
    refused = sum(one.refusals for one in report.collected)
    if asked and refused / asked > REFUSAL_WARNING:
        text = f"{refused:,} of {asked:,} labels paid for gave no usable verdict."
        yield Finding("warning", "Many refusals", text)


def _full_name(policy: Policy) -> str:
    return policy.name if policy.arm == MAIN_ARM else f"{policy.arm}, {policy.name}"


def _is_simulation(experiment: Mapping[str, Any]) -> bool:
    gold = _dig(experiment, "annotate.annotator.gold")
    return gold is not None and gold == _dig(experiment, "evaluate.scorer")


def _part_name(section: Any) -> str:
    """An annotator or scorer in words: its kind and what distinguishes it."""
    if not section:
        return "none"
    details = [str(section[key]) for key in ("rule", "target", "model", "path") if section.get(key)]
    if section.get("gold"):
        details.append(f"gold: {_part_name(section['gold'])}")
    return " · ".join([str(section["kind"]), *details])


# --- values -----------------------------------------------------------------------------------------------


def _clean(value: Any) -> Any:
    """JSON values whose text is valid Unicode; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _estimate(value: Any) -> Estimate | None:
    if isinstance(value, dict):
        mean = _number(value.get("mean"))
        return None if mean is None else Estimate(mean, _number(value.get("low")), _number(value.get("high")))
    mean = _number(value)
    return None if mean is None else Estimate(mean)


def _dig(data: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _once(stages: Iterable[StageRow]) -> list[StageRow]:
    """Each artefact the first time it is mentioned."""
    first: dict[tuple[str, str], StageRow] = {}
    for one in stages:
        first.setdefault((one.kind, one.key), one)
    return list(first.values())


def _total(stages: Iterable[StageRow], kind: str, field: str) -> int:
    return sum(int(one.stats.get(field) or 0) for one in stages if one.kind == kind)


def _weighted(stages: Iterable[StageRow], kind: str, field: str, *, weight: str) -> float | None:
    """Mean of a figure over stages, weighted by a count of theirs."""
    found = [
        (value, float(one.stats.get(weight) or 0))
        for one in stages
        if one.kind == kind and (value := _number(one.stats.get(field))) is not None
    ]
    total = sum(count for _, count in found)
    return sum(value * count for value, count in found) / total if total else None


# --- estimates in words -----------------------------------------------------------------------------------


def decimals(estimate: Estimate) -> int:
    """Decimals that the width of its interval deserves, and enough to see on which side of 0 an end lies."""
    if estimate.low is None or estimate.high is None:
        return places_for(None)
    places = places_for(estimate.high - estimate.low)
    ends = [end for end in (estimate.low, estimate.high) if end]
    return next(
        (more for more in range(places, MOST_DECIMALS) if all(round(end, more) for end in ends)), places
    )


def describe(estimate: Estimate, confidence: float) -> str:
    """A difference with its interval, for a sentence."""
    places = decimals(estimate)
    text = fixed(estimate.mean, places, sign=True)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({100 * confidence:g}% interval {range_text(estimate, 'signed')})"


Style = Literal["plain", "signed", "percent"]


def mean_text(estimate: Estimate, style: Style = "plain", places: int | None = None) -> str:
    """The mean as a table shows it, with as many decimals as asked for or as its interval deserves."""
    if style == "percent":
        return percent(estimate.mean)
    return fixed(estimate.mean, decimals(estimate) if places is None else places, sign=style == "signed")


def range_text(estimate: Estimate, style: Style = "plain", places: int | None = None) -> str:
    """The interval as a table shows it; empty without one."""
    if estimate.low is None or estimate.high is None:
        return ""
    ends = (replace(estimate, mean=end) for end in (estimate.low, estimate.high))
    return " to ".join(mean_text(end, style, places).removesuffix("%") for end in ends)


def common_decimals(policies: Sequence[Policy], field: str) -> int:
    """Decimals for a column: those of its widest interval."""
    return min((decimals(value) for one in policies if (value := getattr(one, field))), default=2)


def date(seconds: float) -> str:
    """A time stamp in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


FILTERS: dict[str, Callable[..., str]] = {
    "number": number,
    "percent": percent,
    "duration": duration,
    "mean": mean_text,
    "range": range_text,
    "date": date,
}
