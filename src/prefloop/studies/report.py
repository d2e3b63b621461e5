"""What a study found, as results.json for programs, report.md for people, and plots.

Claims come first, then the numbers that decided them, then what did not end well and how to do it again.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

import prefloop
from prefloop.interfaces import Unavailable
from prefloop.report.values import without_infinities
from prefloop.statistics import StudentInterval
from prefloop.store import write_json, write_text
from prefloop.studies import plots
from prefloop.studies.deciding import Decision, decisions_of, estimate
from prefloop.studies.definition import ONLY, Criterion, Measure, Study
from prefloop.studies.label_cost import LabelCost, label_costs
from prefloop.studies.measuring import Found

DIGITS = 3


@dataclass(frozen=True)
class Failed:
    """A run that has no numbers."""

    label: str
    error: str
    log: str


@dataclass(frozen=True)
class Result:
    """Everything that a study leaves behind."""

    study: Study
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    """Those that were run."""
    overrides: tuple[str, ...]
    """Given beside the definition."""
    found: tuple[Found, ...]
    failed: tuple[Failed, ...]

    @property
    def decisions(self) -> list[Decision]:
        """What became of the claims."""
        return decisions_of(self.study, self.found)

    @cached_property
    def label_costs(self) -> list[LabelCost]:
        """What it takes the arms to come as far as the baseline."""
        return label_costs(self.study, self.arms, self.found)


@dataclass(frozen=True)
class Row:
    """A measure of an arm over seeds."""

    measure: str
    setting: str
    arm: str
    interval: StudentInterval
    difference: StudentInterval | None
    """From the baseline arm, seed by seed."""


def write(result: Result, folder: Path) -> Path:
    """Writes all files into a folder; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", as_dict(result))
    try:
        drawn = plots.draw(result.study, result.arms, result.found, rows_of(result), folder)
    except Unavailable as error:
        drawn, note = [], f"\n{error}.\n"
    else:
        note = ""
    write_text(folder / "report.md", page(result, [one.name for one in drawn]) + note)
    return folder / "report.md"


def rows_of(result: Result) -> list[Row]:
    """The tables, measure by measure."""
    study = result.study

    def over_seeds(measure: str, setting: str, arm: str, *minus: str) -> StudentInterval | None:
        return estimate(result.found, measure, setting, arm, minus=minus, confidence=study.confidence)

    return [
        Row(
            measure,
            setting,
            arm,
            interval,
            over_seeds(measure, setting, arm, study.baseline) if study.baseline not in (None, arm) else None,
        )
        for measure in study.measures
        for setting in study.settings or [ONLY]
        for arm in result.arms
        for interval in [over_seeds(measure, setting, arm)]
        if interval is not None
    ]


def as_dict(result: Result) -> dict[str, Any]:
    """The result as JSON values; a bound that is not finite is null."""
    values = {
        "study": result.study.model_dump(mode="json", exclude_unset=True),
        "version": prefloop.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seeds": list(result.seeds),
        "arms": list(result.arms),
        "overrides": list(result.overrides),
        "decisions": [
            {
                **one.criterion.model_dump(),
                "setting": one.setting,
                "arm": one.arm,
                "interval": _plain(one.interval),
                "outcome": one.outcome,
            }
            for one in result.decisions
        ],
        "table": [
            {
                "measure": one.measure,
                "setting": one.setting,
                "arm": one.arm,
                "interval": _plain(one.interval),
                "minus_baseline": _plain(one.difference),
            }
            for one in rows_of(result)
        ],
        "label_costs": [dataclasses.asdict(one) for one in result.label_costs],
        "runs": [dataclasses.asdict(one) for one in result.found],
        "failed": [dataclasses.asdict(one) for one in result.failed],
    }
    return without_infinities(values)


def _plain(interval: StudentInterval | None) -> dict[str, float] | None:
    if interval is None:
        return None
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


# --- the page --------------------------------------------------------------------------------------------------------


def page(result: Result, images: Sequence[str]) -> str:
    """The result in Markdown."""
    study = result.study
    parts = [f"# {study.name}: {study.question}", study.about.strip()]
    parts += [_what_ran(result)]
    if study.criteria:
        parts += [
            "## Claims, written before the runs",
            _table(
                ["claim", "in", f"mean [{study.confidence:.0%} interval]", "seeds", ""],
                (_decision_cells(one) for one in result.decisions),
            ),
        ]
    parts += ["## Figures"]
    rows = rows_of(result)
    for measure, how in study.measures.items():
        beside = [f"minus {study.baseline}"] if study.baseline else []
        of_measure = [one for one in rows if one.measure == measure]
        parts += [
            f"**{measure}** ({_described(how)})",
            _table(["", "mean", *beside, "seeds"], (_row_cells(one, bool(beside)) for one in of_measure)),
        ]
    if result.label_costs:
        parts += [
            f"## Labels to come as far as {study.baseline}",
            f"When an arm's mean over seeds first reaches the last one of {study.baseline}, and the ratio to when that "
            f"does so itself; intervals ({study.confidence:.0%}) draw seeds, and are too narrow where those are few.",
            _table(
                ["figure", "", "level", "labels", study.baseline or "", "ratio", "seeds"],
                (_cost_cells(one) for one in result.label_costs),
            ),
        ]
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in images]
    if result.failed:
        parts += [
            "## Runs that failed",
            "\n".join(f"- {one.label}: {one.error} (`{one.log}`)" for one in result.failed),
        ]
    parts += ["## The definition", f"```text\n{_spelled(study)}```"]
    return "\n\n".join(filter(None, parts)) + "\n"


def _what_ran(result: Result) -> str:
    study = result.study
    settings = f" × {len(study.settings)} settings" if study.settings else ""
    seeds = f"{len(result.seeds)} seeds from {result.seeds[0]}"
    text = f"{len(result.arms)} arms{settings} × {seeds}; {len(result.found)} runs ended well"
    text += f", {len(result.failed)} failed" if result.failed else ""
    text += f". Intervals are Student's over seeds, at {study.confidence:.0%}; differences are taken seed by seed."
    changes = [*result.overrides]
    if set(result.arms) != set(study.arms):
        changes.append(f"arms {', '.join(result.arms)} only")
    if tuple(result.seeds) != tuple(range(study.seeds)):
        changes.append(f"seeds {result.seeds[0]} to {result.seeds[-1]}")
    if changes:
        text += f"\n\n**Not the study as it was written:** {'; '.join(changes)}."
    return text


def _table(header: Sequence[str], rows: Iterator[list[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(one)} |" for one in lines)


def _decision_cells(one: Decision) -> list[str]:
    n = str(one.interval.n if one.interval else 0)
    where = ", ".join(filter(None, (one.setting, one.arm)))
    return [one.criterion.claim, where, shown(one.interval), n, f"**{one.outcome}**"]


def _row_cells(one: Row, with_difference: bool) -> list[str]:
    name = ", ".join(filter(None, (one.setting, one.arm)))
    difference = [shown(one.difference, sign=True)] if with_difference else []
    return [name, shown(one.interval), *difference, str(one.interval.n)]


def _cost_cells(one: LabelCost) -> list[str]:
    def number(value: float | None, places: int = 2) -> str:
        return "never" if value is None else f"{value:.{places}f}"

    return [
        one.course.removesuffix(" against labels"),
        ", ".join(filter(None, (one.setting, one.arm))),
        f"{one.level:.{DIGITS}f}",
        number(one.labels, 0),
        number(one.baseline_labels, 0),
        f"{number(one.ratio)} [{number(one.low)}, {number(one.high)}]",
        str(one.n),
    ]


def _described(measure: Measure) -> str:
    if measure.figure:
        which = {
            "last": "the last", "first": "the first", "change": "the last less that of the first",
            "highest": "whichever has the highest", "mean": "the mean of every",
        }  # fmt: skip
        return f"`{measure.figure}` of {which[measure.of]} `{measure.stage}`"

    def share(between: tuple[float, float]) -> str:
        return f"{between[0]:.0%} to {between[1]:.0%}"

    less = f", less {share(measure.less)}" if measure.less else ""
    return f"`{measure.metric}` of `{measure.stage}`, {share(measure.between)} of training{less}"


def _spelled(study: Study) -> str:
    values = study.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def shown(interval: StudentInterval | None, *, sign: bool = False) -> str:
    """Mean and interval; a single seed has none."""
    if interval is None:
        return "–"
    plus = "+" if sign else ""

    def number(value: float) -> str:
        return f"{value:{plus}.{DIGITS}f}".replace("-", "−")

    if math.isinf(interval.half):
        return f"{number(interval.mean)} (one seed)"
    return f"{number(interval.mean)} [{number(interval.low)}, {number(interval.high)}]"


def bound_of(one: Criterion) -> str:
    """What an interval is held against."""
    return f"above {one.above:g}" if one.above is not None else f"below {one.below:g}"
