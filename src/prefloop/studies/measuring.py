"""The numbers of a finished run: figures of its stages, and what they logged while they trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from prefloop.config import MAIN_ARM
from prefloop.config.loop import LoopSection
from prefloop.interfaces import InputError
from prefloop.pipeline import Entry
from prefloop.report.values import as_number, dig
from prefloop.store import LOGS, read_rows
from prefloop.studies.definition import Course, Measure, Run, Study

TRAINED = "policy"
"""Role of the stage whose metrics are drawn."""


@dataclass(frozen=True)
class Found:
    """What a finished run has to say."""

    setting: str
    arm: str
    seed: int
    seconds: float
    """That its stages took, those included that it shares with other runs."""
    values: Mapping[str, float]
    """By measure."""
    curves: Mapping[str, tuple[float, ...]]
    """By metric, in the order of training."""
    courses: Mapping[str, tuple[tuple[float, float], ...]]
    """By name of the course: what it is drawn against, and the figure."""


def read(run: Run, study: Study, entries: Sequence[Entry]) -> Found:
    """The numbers that a study wants. Raises InputError where a run has none of a kind."""
    mine = [one for one in entries if one.arm == MAIN_ARM]
    artefacts = {one.artefact.name: one.artefact for one in mine}.values()
    return Found(
        run.setting,
        run.arm,
        run.seed,
        seconds=sum(one.manifest["seconds"] for one in artefacts),
        values={name: value_of(one, mine, where=name) for name, one in study.measures.items()},
        curves={name: tuple(series(mine, TRAINED, name)) for name in study.curves},
        courses={one.name: course_of(one, mine, run.experiment.loop) for one in study.courses},
    )


def value_of(measure: Measure, entries: Sequence[Entry], *, where: str) -> float:
    """One measure of a run."""
    if measure.metric is not None:
        values = series(entries, measure.stage, measure.metric)
        if not values:
            raise InputError(f"measures.{where}: stage {measure.stage} logged no {measure.metric}")
        return part(values, measure.between) - (part(values, measure.less) if measure.less else 0.0)
    found = [one.artefact for one in entries if one.role == measure.stage]
    wanted = {"last": found[-1:], "first": found[:1], "change": [*found[-1:], *found[:1]]}.get(
        measure.of, found
    )
    figures = [as_number(dig(one.stats, measure.figure or "")) for one in wanted]
    numbers = [one for one in figures if one is not None]
    of_all = {"highest": max, "mean": fmean}.get(measure.of)
    if not numbers or (of_all is None and len(numbers) < len(figures)):
        raise InputError(f"measures.{where}: no number {measure.figure} in stage {measure.stage}")
    return of_all(numbers) if of_all else numbers[0] - sum(numbers[1:])


def course_of(course: Course, entries: Sequence[Entry], loop: LoopSection) -> tuple[tuple[float, float], ...]:
    """A figure of the policies along the loop. A replay's policies stand for those that they follow: at the labels of the
    pairs that they have learned from."""
    replayed = loop.replay != "none"
    points = []
    for one in entries:
        if one.role != "evaluate":
            continue
        iteration = one.iteration
        if iteration is not None and replayed:
            iteration -= loop.iterations
            if iteration < 0:
                continue
        y = as_number(dig(one.artefact.stats, course.figure))
        if course.against == "labels":
            x = labels_until(entries, iteration)
        else:
            kl = as_number(dig(one.artefact.stats, "kl.mean"))
            x = None if kl is None else math.sqrt(max(kl, 0.0))
        if x is not None and y is not None:
            points.append((float(x), y))
    return tuple(points)


def labels_until(entries: Sequence[Entry], iteration: int | None) -> int:
    """Labels spent up to and including an iteration, or before the first; each artefact counts once."""
    spent = {
        one.artefact.key: one.artefact.stats["labels"]
        for one in entries
        if one.artefact.kind == "annotate"
        and (one.iteration is None or (iteration is not None and one.iteration <= iteration))
    }
    return sum(spent.values())


def series(entries: Sequence[Entry], role: str, metric: str) -> list[float]:
    """What the stages of a role logged under a name, in order."""
    paths = [one.artefact.path / LOGS / "metrics.jsonl" for one in entries if one.role == role]
    return [row[metric] for path in paths if path.is_file() for row in read_rows(path) if metric in row]


def part(values: Sequence[float], between: tuple[float, float]) -> float:
    """Mean of the values from one share of their number to another, at least one value."""
    low, high = between
    first = min(math.floor(low * len(values)), len(values) - 1)
    chosen = values[first : max(first + 1, math.ceil(high * len(values)))]
    return sum(chosen) / len(chosen)
