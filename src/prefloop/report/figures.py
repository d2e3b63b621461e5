"""Which figures a report has, and their words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup

from prefloop.report.charts import (
    SMALL,
    DotRow,
    Line,
    Point,
    Ridge,
    Style,
    colour,
    dots,
    line_chart,
    ridges,
    short,
)
from prefloop.report.lineage import lineage
from prefloop.report.numbers import number

if TYPE_CHECKING:  # the report draws itself with this module
    from prefloop.report.benchmarks import Benchmark
    from prefloop.report.types import Distribution, Policy, Report, Training


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    name: str
    colour: str
    style: Style = "solid"


@dataclass(frozen=True)
class Figure:
    """A drawing with its words."""

    title: str
    caption: str
    keys: tuple[Key, ...]
    svg: Markup


@dataclass(frozen=True)
class Figures:
    """All drawings of a report; None where there is nothing to draw."""

    score: Figure | None
    optimisation: Figure | None
    distributions: tuple[Figure, ...]
    training: tuple[Figure, ...]
    benchmarks: Mapping[str, Figure]
    """Of those with categories, by name."""
    lineage: Markup | None


def figures(report: "Report") -> Figures:
    """Draws what the report has."""
    return Figures(
        score=_score_figure(report),
        optimisation=_optimisation_figure(report),
        distributions=tuple(_ridge_figure(report, one) for one in report.distributions),
        training=tuple(figure for spec in TRAINING_FIGURES if (figure := _training_figure(report, *spec))),
        benchmarks={one.suite: _category_figure(report, one) for one in report.benchmarks if one.categories},
        lineage=lineage(report.stages, report.arms) if report.stages else None,
    )


def _score_figure(report: "Report") -> Figure | None:
    scored = any(one.score for one in report.policies)
    field = "score" if scored else "proxy_gain_vs_start"
    start = report.start
    first = getattr(start, field) if start else None
    lines, arms = [], []
    for arm in report.arms:
        points = [_score_point(one, field) for one in _chain(report, arm) if getattr(one, field)]
        if points:
            at_start = [Point(0.0, first.mean, first.low, first.high)] if first else []
            lines.append(Line(colour(report.arms, arm), (*at_start, *points), band=True))
            arms.append(arm)
    if not lines:
        return None
    if start and first:
        lines.append(Line("start", (_score_point(start, field),), band=True))
    rolled_back = (
        "; hollow points were rolled back" if any(one.promoted is False for one in report.policies) else ""
    )
    name = f"{report.score_name}, held-out prompts" if scored else "reward model's gain over the start"
    return Figure(
        f"{report.score_name.capitalize() if scored else 'Proxy gain'} by labels spent",
        f"Mean over n = {max(one.num_prompts for one in report.policies):,} held-out prompts. {_bands(report)} "
        f"Numbers are iterations{rolled_back}.",
        (*_arm_keys(report, arms), Key(start.name if start else "start", "start", "dashed")),
        line_chart(lines, x_label="labels spent", y_label=name, rule=first.mean if first else 0.0),
    )


def _chain(report: "Report", arm: str) -> "list[Policy]":
    return [one for one in report.policies if one.arm == arm and one.iteration is not None]


def _arm_keys(report: "Report", arms: Sequence[str]) -> tuple[Key, ...]:
    return tuple(Key(arm, colour(report.arms, arm)) for arm in arms)


def _bands(report: "Report") -> str:
    return f"Bands are {100 * report.confidence:g}% intervals over prompts (bootstrap)."


def _score_point(policy: "Policy", field: str) -> Point:
    value = getattr(policy, field)
    words = f"{policy.arm}, {policy.name}: {number(value.mean)}"
    if value.low is not None:
        words += f", interval {number(value.low)} to {number(value.high)}"
    label = "" if policy.iteration is None else str(policy.iteration + 1) + (" best" if policy.best else "")
    note = f"{words}, {policy.labels:,} labels"
    loose = policy.promoted is False
    return Point(policy.labels, value.mean, value.low, value.high, note, label, loose)


def _optimisation_figure(report: "Report") -> Figure | None:
    start = report.start
    styles: dict[str, Style] = {"score": "solid", "proxy": "dashed"}
    lines, arms = [], []
    for arm in report.arms:
        for name, style in styles.items():
            if points := _effect_points(_chain(report, arm), name):
                corners = (Point(0.0, 0.0), *points)
                lines.append(Line(colour(report.arms, arm), corners, style, band=name == "score"))
                arms.append(arm)
    if not lines or start is None:
        return None
    return Figure(
        f"{report.score_name.capitalize()} and proxy by distance from the start",
        "Paired gain over the start in standard deviations, so that both fit one axis: of the start's scores, "
        "and for the proxy of the policy's own, because a retrained reward model has another unit. The proxy is "
        "the reward model; where it rises while the score falls, it is over-optimised. "
        f"n = {start.num_prompts:,} prompts. {_bands(report)}",
        (
            *_arm_keys(report, list(dict.fromkeys(arms))),
            Key(report.score_name, "plain"),
            Key("proxy", "plain", "dashed"),
        ),
        line_chart(lines, x_label="√KL(policy ‖ start), √nats", y_label="gain over start, SD", rule=0.0),
    )


def _effect_points(policies: "Sequence[Policy]", name: str) -> list[Point]:
    points = []
    for one in policies:
        effect = getattr(one, f"{name}_effect")
        if effect is None or one.sqrt_kl is None:
            continue
        note = f"{one.arm}, {one.name}: {name} {number(effect.mean)} SD, √KL {number(one.sqrt_kl)}"
        label = str((one.iteration or 0) + 1) if name == "score" else ""
        loose = one.promoted is False
        points.append(Point(one.sqrt_kl, effect.mean, effect.low, effect.high, note, label, loose))
    return points


def _ridge_figure(report: "Report", distribution: "Distribution") -> Figure:
    name, unit = (report.score_name, "") if distribution.name == "score" else ("length", "tokens")
    rows = [
        Ridge(
            one.name if one.arm == report.arms[0] else f"{short(one.arm, 12)} {(one.iteration or 0) + 1}",
            "start" if one.iteration is None else colour(report.arms, one.arm),
            one.shares,
            one.mean,
        )
        for one in distribution.rows
    ]
    return Figure(
        f"{name.capitalize()} of the evaluation answers",
        f"Share of answers per bin, n = {max(one.num for one in distribution.rows):,} answers a policy; "
        "the line is the mean.",
        (),
        ridges(rows, distribution.edges, x_label=unit or name),
    )


Field = Literal["loss", "accuracy", "margin", "chosen_logps", "rejected_logps", "score", "kl", "length"]
TRAINING_FIGURES: tuple[tuple[str, str, tuple[str, ...], tuple[Field, ...], float | None], ...] = (
    ("SFT loss", "loss, nats per token", ("base", "sft"), ("loss",), None),
    ("Reward-model loss", "loss, nats per pair", ("reward",), ("loss",), None),
    ("Score of the policy's own samples", "score", ("policy",), ("score",), None),
    ("Distance from the reference", "KL, nats per completion", ("policy",), ("kl",), 0.0),
    ("Length of the policy's own samples", "tokens", ("policy",), ("length",), None),
    ("Policy loss", "loss", ("policy",), ("loss",), None),
    ("Policy pair accuracy", "share ordered right", ("policy",), ("accuracy",), 0.5),
    ("Policy margin", "implicit reward margin", ("policy",), ("margin",), 0.0),
    ("Chosen and rejected", "log-probability, nats", ("policy",), ("chosen_logps", "rejected_logps"), None),
)
"""Title, y axis, stages, metrics, and the value that means nothing was learned."""


def _category_figure(report: "Report", benchmark: "Benchmark") -> Figure:
    """The start and the last policy of every arm, category by category."""
    last = {one.arm: one for one in benchmark.scores if one.iteration is not None}
    start = next((one for one in benchmark.scores if one.iteration is None), None)
    shown = ([("start", "start", start)] if start else []) + [
        (f"{arm}, iteration {(one.iteration or 0) + 1}", colour(report.arms, arm), one)
        for arm, one in last.items()
    ]
    rows = [
        DotRow(
            f"{name} ({count})",
            tuple(
                (tint, one.categories[name], f"{who}, {name}: {number(one.categories[name])}")
                for who, tint, one in shown
                if name in one.categories
            ),
        )
        for name, count in benchmark.categories.items()
    ]
    figure = "MC2" if benchmark.figure == "mc2" else benchmark.figure.replace("_", " ")
    return Figure(
        f"{benchmark.suite} by category",
        "Means over the questions of a category, whose number is in brackets; of few questions they say little.",
        tuple(Key(who, tint) for who, tint, _ in shown),
        dots(rows, x_label=figure, ends=(0.0, 100.0) if benchmark.is_percentage else ()),
    )


def _training_figure(
    report: "Report",
    title: str,
    y_label: str,
    kinds: tuple[str, ...],
    fields: tuple[Field, ...],
    rule: float | None,
) -> Figure | None:
    lines: list[Line] = []
    arms: list[str] = []
    dividers: set[float] = set()
    for arm in report.arms:
        stages = [one for one in report.training if one.kind in kinds and one.arm == arm]
        for field in fields:
            points, ends = _joined(stages, field)
            if points:
                style = "dashed" if field == "rejected_logps" else "solid"
                lines.append(Line(colour(report.arms, arm), tuple(points), style))
                arms.append(arm)
                dividers.update(ends[:-1] if arm == report.arms[0] else ())
    if not lines:
        return None
    chart = line_chart(
        lines, x_label="optimiser step", y_label=y_label, rule=rule, dividers=sorted(dividers), size=SMALL
    )
    keys = _arm_keys(report, list(dict.fromkeys(arms)))
    if len(fields) > 1:
        keys += (Key("chosen", "plain"), Key("rejected", "plain", "dashed"))
    return Figure(title, "", keys, chart)


def _joined(stages: Sequence["Training"], field: Field) -> tuple[list[Point], list[float]]:
    """The curves of an arm's stages one after the other, and where each ends."""
    points: list[Point] = []
    ends: list[float] = []
    before = 0.0
    for stage in stages:
        values = [
            (point.step, value) for point in stage.points if (value := getattr(point, field)) is not None
        ]
        points += [Point(before + step, value) for step, value in values]
        before += stage.steps
        if values:
            ends.append(before)
    return points, ends
