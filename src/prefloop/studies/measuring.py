"""The numbers of a finished run: figures of its stages, and what they logged while they trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefloop.config import MAIN_ARM
from prefloop.interfaces import InputError
from prefloop.pipeline import Entry
from prefloop.report.values import as_number, dig
from prefloop.store import LOGS, read_rows
from prefloop.studies.definition import Measure, Run, Study

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
    )


def value_of(measure: Measure, entries: Sequence[Entry], *, where: str) -> float:
    """One measure of a run."""
    if measure.metric is not None:
        values = series(entries, measure.stage, measure.metric)
        if not values:
            raise InputError(f"measures.{where}: stage {measure.stage} logged no {measure.metric}")
        return part(values, measure.between) - (part(values, measure.less) if measure.less else 0.0)
    found = [one.artefact for one in entries if one.role == measure.stage]
    wanted = {"last": found[-1:], "first": found[:1], "change": [*found[-1:], *found[:1]], "highest": found}
    figures = [as_number(dig(one.stats, measure.figure or "")) for one in wanted[measure.of]]
    numbers = [one for one in figures if one is not None]
    if not numbers or (measure.of != "highest" and len(numbers) < len(figures)):
        raise InputError(f"measures.{where}: no number {measure.figure} in stage {measure.stage}")
    return max(numbers) if measure.of == "highest" else numbers[0] - sum(numbers[1:])


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
