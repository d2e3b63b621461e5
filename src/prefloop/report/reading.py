"""Reads a run: stages, policies, training curves, reward models, distributions and samples."""

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean, pstdev
from typing import Any, Literal

import numpy as np

from prefloop.config import MAIN_ARM
from prefloop.records import Group
from prefloop.report.types import (
    Answer,
    ArmDifference,
    Choice,
    Collected,
    Distribution,
    Estimate,
    Histogram,
    Policy,
    RewardModel,
    RowCount,
    Sample,
    SourceScores,
    StageRow,
    Timing,
    Training,
    TrainingPoint,
    final_policy,
    last_policy,
)
from prefloop.report.values import (
    as_estimate,
    as_number,
    each_once,
    total_of,
    weighted_mean,
    without_infinities,
)
from prefloop.store import LOGS, MANIFEST, Workspace, read_json, read_records, read_rows

POWER = 0.8
"""The smallest visible gain is the one found with this probability."""
HISTOGRAM_BINS = 24
CURVE_POINTS = 120
"""Longer training curves are averaged down to this many points."""


ESTIMATES = tuple(field for field in dataclasses.fields(Policy) if field.type == Estimate | None)
TRAINING_KINDS = ("base", "sft", "reward", "policy")
SOURCE, ASKED = "rl/source/", "/prompts"
"""Around the name of a source, in the metric that says how many of its prompts a batch has."""
Place = tuple[str, int | None]
"""Arm and iteration."""


@dataclass(frozen=True)
class _Measured:
    """The rows of one evaluation that the report needs."""

    rows: tuple[Mapping[str, Any], ...]
    groups: tuple[Group, ...]

    def values(self, field: str) -> list[float]:
        """All finite values of a field."""
        return [value for row in self.rows if (value := as_number(row.get(field))) is not None]

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
            if (value := as_number(row.get(field))) is not None:
                found[row["prompt_id"]].append(value)
        return {prompt_id: fmean(values) for prompt_id, values in found.items()}


def read_stages(workspace: Workspace, entries: Sequence[Mapping[str, Any]]) -> tuple[StageRow, ...]:
    arms_of: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        arms_of[entry["key"]].add(entry["arm"])
    return tuple(_stage(workspace, entry, shared=len(arms_of[entry["key"]]) > 1) for entry in entries)


def _stage(workspace: Workspace, entry: Mapping[str, Any], *, shared: bool) -> StageRow:
    folder = workspace.artefacts / f"{entry['kind']}-{entry['key']}"
    manifest: dict[str, Any] = {}
    status: Literal["done", "started", "missing"] = "missing"
    if (folder / MANIFEST).is_file():
        manifest, status = without_infinities(read_json(folder / MANIFEST)), "done"
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
        started=as_number(manifest.get("started")),
        seconds=as_number(manifest.get("seconds")) or 0.0,
        inputs=tuple(key for keys in inputs for key in keys if key),
        stats=manifest.get("stats", {}),
    )


def read_measured(workspace: Workspace, stages: Sequence[StageRow]) -> dict[Place, _Measured]:
    """Evaluation rows by arm and iteration."""
    found: dict[Place, _Measured] = {}
    for stage in stages:
        if stage.kind == stage.role == "evaluate" and stage.status == "done":
            folder = workspace.artefacts / f"evaluate-{stage.key}"
            rows = tuple(read_rows(folder / "measurements.jsonl"))
            groups = tuple(read_records(folder / "groups.jsonl", Group))
            found[stage.arm, stage.iteration] = _Measured(rows, groups)
    return found


def read_policies(stages: Sequence[StageRow], measured: Mapping[Place, _Measured]) -> tuple[Policy, ...]:
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
    score_gain = as_estimate(evaluation.get("score_gain_vs_start"))
    proxy_gain = as_estimate(evaluation.get("proxy_gain_vs_start"))
    kl = as_estimate(evaluation.get("kl"))
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
        steps=0 if iteration is None else total_of(each_once(so_far), "policy", "steps"),
        num_prompts=int(evaluation.get("num_prompts") or 0),
        num_completions=int(evaluation.get("num_completions") or 0),
        score=as_estimate(evaluation.get("score")),
        second=as_estimate(evaluation.get("second")),
        proxy=as_estimate(evaluation.get("proxy")),
        score_gain_vs_start=score_gain,
        score_gain_vs_previous=as_estimate(evaluation.get("score_gain_vs_previous")),
        proxy_gain_vs_start=proxy_gain,
        win_rate_vs_start=as_estimate(evaluation.get("win_rate_vs_start")),
        win_rate_vs_previous=as_estimate(evaluation.get("win_rate_vs_previous")),
        kl=kl,
        # a sampled KL of two nearly equal policies may come out slightly negative
        sqrt_kl=math.sqrt(max(kl.mean, 0.0)) if kl else None,
        tokens=as_estimate(evaluation.get("tokens")),
        distinct_1=as_number(evaluation.get("distinct_1")),
        distinct_2=as_number(evaluation.get("distinct_2")),
        truncated_share=as_number(evaluation.get("truncated_share")),
        refused_share=as_number(evaluation.get("refused_share")),
        judge_directed_share=as_number(evaluation.get("judge_directed_share")),
        score_length_correlation=as_number(evaluation.get("score_length_correlation")),
        repeated_share=here_measured.repeated_share if here_measured else None,
        score_effect=_effect(score_gain, measured.get((MAIN_ARM, None)), "score"),
        proxy_effect=_effect(proxy_gain, here_measured, "proxy"),
        pair_accuracy=as_estimate((trained.stats.get("validation") or {}).get("accuracy"))
        if trained
        else None,
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
    return total_of(each_once(spent), "annotate", "labels")


def iteration_name(iteration: int) -> str:
    """People count from 1, run.json from 0."""
    return f"iteration {iteration + 1}"


def mark_best(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """Marks the main arm's policy with the highest mean score (the proxy's, where there is no evaluator)."""
    standing = [one for one in policies if one.arm == MAIN_ARM and one.promoted is not False]
    for field in ("score", "proxy_gain_vs_start"):
        scored = [one for one in standing if getattr(one, field)]
        if len(scored) > 1:
            best = max(scored, key=lambda one: getattr(one, field).mean)
            return tuple(replace(one, best=one is best) for one in policies)
    return policies


def read_training(workspace: Workspace, stage: StageRow) -> Training:
    folder = workspace.artefacts / f"{stage.kind}-{stage.key}"
    if stage.status == "started":
        folder = folder.with_name(folder.name + ".partial")
    rows = list(_metrics(folder / LOGS / "metrics.jsonl"))
    points = list(_curve(rows))
    return Training(
        arm=stage.arm,
        iteration=stage.iteration,
        kind="rules" if stage.role == "rules" else stage.kind,  # its loss is another than the reward model's
        key=stage.key,
        status=stage.status,
        shared=stage.shared,
        steps=int(stage.stats.get("steps") or (points[-1].step if points else 0)),
        rows=int(stage.stats.get("num_rows") or stage.stats.get("pairs") or 0),
        learning_rate=as_number(stage.stats.get("learning_rate")),
        loss_first=as_number(stage.stats.get("loss_first")),
        loss_last=as_number(stage.stats.get("loss_last")),
        points=tuple(_thinned(points)),
        sources=tuple(_by_source(rows, place_name(stage.arm, stage.iteration))),
    )


def _metrics(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the last line of a stage that is running or was killed
            return


def _by_source(rows: Sequence[Mapping[str, Any]], policy: str) -> Iterator[SourceScores]:
    """Scores of reinforcement by where prompts came from, at the beginning and at the end."""
    batches = [row for row in rows if any(name.startswith(SOURCE) for name in row)]
    part = -(-len(batches) // 5)
    names = sorted(
        {name for row in batches for name in row if name.startswith(SOURCE) and name.endswith(ASKED)}
    )
    for name in names:
        score = name.removesuffix(ASKED) + "/score"
        asked = [(as_number(row.get(name)) or 0, as_number(row.get(score)) or 0.0) for row in batches]
        first, last = (
            sum(number * value for number, value in some) / (sum(number for number, _ in some) or 1)
            for some in (asked[:part], asked[-part:])
        )
        source = name.removeprefix(SOURCE).removesuffix(ASKED)
        yield SourceScores(policy, source, int(sum(number for number, _ in asked)), first, last)


def _curve(rows: Sequence[Mapping[str, Any]]) -> Iterator[TrainingPoint]:
    for row in rows:
        if "train/loss" in row:
            names = ("loss", "accuracy", "margin", "chosen_logps", "rejected_logps")
            trained = (as_number(row.get(f"train/{name}")) for name in names)
            sampled = (as_number(row.get(f"rl/{name}")) for name in ("score", "kl", "length"))
            yield TrainingPoint(row["step"], *trained, *sampled)


def _thinned(points: Sequence[TrainingPoint]) -> Iterator[TrainingPoint]:
    size = -(-len(points) // CURVE_POINTS) or 1
    for first in range(0, len(points), size):
        chunk = [dataclasses.astuple(point) for point in points[first : first + size]]
        columns = ([value for value in column if value is not None] for column in zip(*chunk, strict=True))
        yield TrainingPoint(*(fmean(values) if values else None for values in columns))  # type: ignore[arg-type]


def reward_models_of(stages: Sequence[StageRow]) -> tuple[RewardModel, ...]:
    found = []
    for stage in each_once(stages):
        if stage.kind == "reward" and stage.status == "done":
            place = place_name(stage.arm, stage.iteration)
            validation = stage.stats.get("validation") or stage.stats.get("held_out") or {}
            found.append(
                RewardModel(
                    name=f"{place}, rules" if "rules" in stage.stats else place,
                    key=stage.key,
                    accuracy=as_estimate(validation.get("accuracy")),
                    length_baseline=as_estimate(validation.get("length_baseline")),
                    num_pairs=int(validation.get("num_pairs") or validation.get("num_verdicts") or 0),
                    ties=int(validation.get("ties") or 0),
                    trained_on=int(stage.stats.get("num_rows") or 0),
                    loss_last=as_number(stage.stats.get("loss_last")),
                )
            )
    return tuple(found)


def place_name(arm: str, iteration: int | None) -> str:
    """A place in the run, in words."""
    if iteration is None:
        return "before the loop"
    return iteration_name(iteration) if arm == MAIN_ARM else f"{arm}, {iteration_name(iteration)}"


def collected_of(stages: Sequence[StageRow]) -> Iterator[Collected]:
    """What each iteration of each arm learned from, whether or not it shared it with another arm."""
    own = [
        one for one in stages if one.status == "done" and (one.iteration is not None or one.arm == MAIN_ARM)
    ]
    for arm, iteration in dict.fromkeys((one.arm, one.iteration) for one in own if one.kind == "annotate"):
        here = each_once(one for one in own if (one.arm, one.iteration) == (arm, iteration))
        annotations = [one for one in here if one.kind == "annotate"]
        yield Collected(
            arm=arm,
            iteration=iteration,
            name=place_name(arm, iteration),
            completions=total_of(here, "generate", "num_completions"),
            labels=total_of(here, "annotate", "labels"),
            pseudo_labels=total_of(here, "annotate", "pseudo_labels"),
            ties=total_of(here, "annotate", "ties"),
            refusals=total_of(here, "annotate", "refusals"),
            gold_agreement=weighted_mean(here, "annotate", "gold_agreement", weight="labels"),
            cost=sum(as_number(one.stats.get("cost")) or 0.0 for one in annotations),
            annotators=dict(
                sum((Counter(one.stats.get("annotators") or {}) for one in annotations), Counter())
            ),
            pairs=total_of(here, "select", "pairs"),
            mean_margin=weighted_mean(here, "select", "mean_margin", weight="pairs"),
            mean_length_chosen=weighted_mean(here, "select", "mean_length_chosen", weight="pairs"),
            mean_length_rejected=weighted_mean(here, "select", "mean_length_rejected", weight="pairs"),
        )


def count_rows(stages: Sequence[StageRow]) -> tuple[RowCount, ...]:
    groups: dict[tuple[str, str], list[StageRow]] = {}
    for stage in each_once(stages):
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


def timings_of(stages: Sequence[StageRow]) -> Iterator[Timing]:
    done = [one for one in each_once(stages) if one.status == "done"]
    for kind in dict.fromkeys(one.kind for one in done):
        parts = tuple(
            (place_name(one.arm, one.iteration), "" if one.iteration is None else one.arm, one.seconds)
            for one in done
            if one.kind == kind
        )
        yield Timing(kind, sum(seconds for _, _, seconds in parts), parts)


def what_is_missing(stages: Sequence[StageRow]) -> tuple[str, ...]:
    places: dict[str, Counter[str]] = defaultdict(Counter)
    for stage in each_once(stages):
        if stage.status != "done":
            name = stage.role if stage.status == "missing" else f"{stage.role} (started)"
            places[place_name(stage.arm, stage.iteration)][name] += 1
    return tuple(
        f"{place}: {', '.join(name if times == 1 else f'{times} × {name}' for name, times in names.items())}"
        for place, names in places.items()
    )


def arm_differences(
    policies: Sequence[Policy],
    measured: Mapping[Place, _Measured],
    experiment: Mapping[str, Any],
) -> Iterator[ArmDifference]:
    """Main minus every other arm; the one statistic that no single stage could have computed."""
    from prefloop.statistics import mean_interval

    main, spent = final_policy(policies, MAIN_ARM), last_policy(policies, MAIN_ARM)
    for arm in dict.fromkeys(one.arm for one in policies if one.arm != MAIN_ARM):
        other, other_spent = final_policy(policies, arm), last_policy(policies, arm)
        if main is None or spent is None or other is None or other_spent is None:
            continue
        ours = measured[main.arm, main.iteration].by_prompt("score")
        theirs = measured[arm, other.iteration].by_prompt("score")
        differences = [ours[one] - theirs[one] for one in sorted(ours.keys() & theirs.keys())]
        options = experiment["evaluate"]
        interval = mean_interval(
            differences, confidence=options["confidence"], resamples=options["resamples"]
        )
        if score := as_estimate(interval):
            yield ArmDifference(
                arm=arm,
                labels=spent.labels,
                other_labels=other_spent.labels,
                steps=spent.steps,
                other_steps=other_spent.steps,
                score=score,
                num_prompts=len(differences),
            )


def smallest_visible_gain(policies: Sequence[Policy], confidence: float) -> float | None:
    """(z of the level + z of the power) standard errors: 2.8 of them at 95 % and 80 %."""
    gains = [one.score_gain_vs_previous or one.score_gain_vs_start for one in policies if one.arm == MAIN_ARM]
    widths = [one.high - one.low for one in gains if one and one.low is not None and one.high is not None]
    if not widths:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return (z + NormalDist().inv_cdf(POWER)) * widths[-1] / (2 * z)


def distributions_of(
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


def choose_samples(
    policies: Sequence[Policy],
    measured: Mapping[Place, _Measured],
    wanted: int,
) -> tuple[Sample, ...]:
    """Evaluation prompts with the largest gains, the largest losses, and some that nobody picked."""
    shown = [one for one in policies if one.evaluated and one.arm == MAIN_ARM]
    others = dict.fromkeys(one.arm for one in policies if one.arm != MAIN_ARM)
    shown += [final for arm in others if (final := final_policy(policies, arm))]
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
        score=as_number(row.get("score")),
        proxy=as_number(row.get("proxy")),
        tokens=as_number(row.get("tokens")),
        finish_reason=completion.finish_reason,
    )


def _movement(policies: Sequence[Policy], measured: Mapping[Place, _Measured]) -> dict[str, float]:
    """Score of the final policy minus the start's, by prompt; empty where there is no evaluator.

    The proxy would not do: the two were scored by different reward models.
    """
    final, start = final_policy(policies, MAIN_ARM), measured.get((MAIN_ARM, None))
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
