"""Plots of a study: every measure with its intervals over seeds, and the course of training.

The only door to matplotlib, which is not installed unless asked for.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefloop.interfaces import Unavailable
from prefloop.statistics import student_interval
from prefloop.studies.definition import ONLY, Study
from prefloop.studies.measuring import Found

if TYPE_CHECKING:  # the report draws itself with this module
    from prefloop.studies.report import Row

WIDTH, HEIGHT, ROW_HEIGHT = 4.2, 3.2, 0.3
"""Inches of a panel, and of an arm in it."""
DPI = 110
COLOURS = (
    "#2563a8", "#c2571a", "#2e8b57", "#8a4fa3", "#b3313b", "#7a6a2f", "#4d908e", "#6b7280", "#d18b9f", "#37474f",
)  # fmt: skip
AGAINST = {"labels": "labels", "root_kl": "√KL from the start (nats)"}
MOST_ENDS = 5
"""Intervals at the ends of curves that may lie at one place; the table has all."""
MOST_CURVES = len(COLOURS)
"""Of a panel; more cannot be told apart."""


def new_figure() -> Any:
    """An empty figure of matplotlib; raises Unavailable where that is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("no plots: matplotlib is missing; pip install 'prefloop[plots]'") from error
    return Figure(dpi=DPI, layout="constrained")


def draw(
    study: Study, arms: Sequence[str], found: Sequence[Found], rows: Sequence["Row"], folder: Path
) -> list[Path]:
    """Writes the plots; raises Unavailable where matplotlib is missing."""
    new_figure()
    written = []
    if rows:
        figure = new_figure()
        _draw_measures(figure, study, arms, found, rows)
        written.append(folder / "measures.png")
        figure.savefig(written[-1])
    groups = list(dict.fromkeys((one.setting, one.arm) for one in found))
    if study.curves and groups:
        figure = new_figure()
        _draw_curves(figure, study, groups[:MOST_CURVES], found)
        written.append(folder / "curves.png")
        figure.savefig(written[-1])
    if study.courses and found:
        figure = new_figure()
        _draw_courses(figure, study, arms[:MOST_CURVES], found)
        written.append(folder / "courses.png")
        figure.savefig(written[-1])
    return written


def _draw_measures(
    figure: Any, study: Study, arms: Sequence[str], found: Sequence[Found], rows: Sequence["Row"]
) -> None:
    """A panel a measure: a line an arm, with its seeds as faint dots."""
    places = list(itertools.product(study.settings or [ONLY], arms))
    figure.set_size_inches(1.2 + WIDTH * 0.75 * len(study.measures), 1.1 + ROW_HEIGHT * max(len(places), 3))
    all_axes = figure.subplots(1, len(study.measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(all_axes, study.measures, strict=True):
        for one in found:
            at = places.index((one.setting, one.arm))
            axes.plot(one.values[measure], at, "o", color="#9aa5b1", markersize=3, zorder=1)
        for row in (one for one in rows if one.measure == measure):
            at = places.index((row.setting, row.arm))
            colour = COLOURS[0] if row.arm != study.baseline else COLOURS[1]
            half = 0.0 if math.isinf(row.interval.half) else row.interval.half
            axes.errorbar(row.interval.mean, at, xerr=half, fmt="D", color=colour, markersize=4, capsize=2)
        for bound in {
            one.above if one.above is not None else one.below
            for one in study.criteria
            if one.measure == measure and one.minus is None
        }:
            axes.axvline(bound, color="black", linewidth=0.7, linestyle=":")
        axes.set_xlabel(measure)
        axes.grid(axis="x", color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    all_axes[0].set_yticks(range(len(places)), [", ".join(filter(None, one)) for one in places])
    all_axes[0].invert_yaxis()


def _draw_curves(
    figure: Any, study: Study, groups: Sequence[tuple[str, str]], found: Sequence[Found]
) -> None:
    """A panel a metric: means over seeds with their intervals."""
    figure.set_size_inches(WIDTH * len(study.curves), HEIGHT)
    all_axes = figure.subplots(1, len(study.curves), squeeze=False)[0]
    for axes, metric in zip(all_axes, study.curves, strict=True):
        for group, colour in zip(groups, COLOURS, strict=False):
            curves = [one.curves[metric] for one in found if (one.setting, one.arm) == group]
            length = min(map(len, curves))
            if not length:
                continue
            intervals = [
                student_interval([one[step] for one in curves], confidence=study.confidence)
                for step in range(length)
            ]
            known = [one for one in intervals if one is not None]
            steps = np.arange(1, length + 1)
            means = np.array([one.mean for one in known])
            halves = np.array([0.0 if math.isinf(one.half) else one.half for one in known])
            axes.plot(steps, means, color=colour, label=", ".join(filter(None, group)))
            axes.fill_between(steps, means - halves, means + halves, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="batch", title=metric)
        axes.grid(color="#e5e7eb", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].legend(frameon=False, fontsize="small")


def _draw_courses(figure: Any, study: Study, arms: Sequence[str], found: Sequence[Found]) -> None:
    """A row a setting, a panel a course: means over seeds point by point, with the interval of the last of few arms."""
    settings = list(study.settings) or [ONLY]
    figure.set_size_inches(WIDTH * 1.3 * len(study.courses), HEIGHT * 1.15 * len(settings))
    grid = figure.subplots(len(settings), len(study.courses), squeeze=False)
    for (row, setting), (column, course) in itertools.product(enumerate(settings), enumerate(study.courses)):
        axes = grid[row][column]
        for arm, colour in zip(arms, COLOURS, strict=False):
            ours = [one.courses[course.name] for one in found if (one.setting, one.arm) == (setting, arm)]
            points = list(zip(*ours, strict=False))
            if not points:
                continue
            xs, ys = (
                [np.mean([point[place] for point in together]) for together in points] for place in (0, 1)
            )
            axes.plot(xs, ys, "o-", color=colour, label=arm, markersize=3, linewidth=1.2)
            last = student_interval([point[1] for point in points[-1]], confidence=study.confidence)
            if len(arms) <= MOST_ENDS and last is not None and not math.isinf(last.half):
                axes.errorbar(xs[-1], last.mean, yerr=last.half, color=colour, capsize=2, linewidth=0.8)
        axes.set(xlabel=AGAINST[course.against], ylabel=course.figure)
        axes.set_title(setting, fontsize="medium")
        axes.grid(color="#e5e7eb", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].legend(frameon=False, fontsize="small")
