"""The report's figures as SVG that takes its colours from the page, and how numbers are written.

Drawn by hand rather than by a plotting library: the figures follow the reader's light or dark theme, stay
sharp, weigh little and show exact values when pointed at. Colours are classes (`arm-0` is the main arm
everywhere). All text is escaped. Knows nothing about files or statistics.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup, escape

if TYPE_CHECKING:  # the report draws itself with this module
    from prefloop.report.benchmarks import Benchmark
    from prefloop.report.types import Distribution, Policy, Report, StageRow, Training

LARGE, SMALL = (460, 264), (330, 206)
"""Widths and heights of charts, two or three in a line of the page."""
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 16, 42
COLOURS = 6
"""Arms beyond this many share colours."""
RIDGE_LABEL, RIDGE_HEIGHT = 104, 34
DOT_LABEL, DOT_HEIGHT = 150, 22
NODE_WIDTH, NODE_HEIGHT, NODE_GAP_X, NODE_GAP_Y = 78, 24, 24, 20
LINEAGE_LABEL = 132


# --- numbers ----------------------------------------------------------------------------------------------

NOTHING = "–"


def fixed(value: float, places: int, *, sign: bool = False) -> str:
    """A number with so many decimals, a real minus, and on request a plus."""
    return f"{value:{'+' if sign else ''},.{places}f}".replace("-", "−")


def number(value: float | None) -> str:
    """About three significant digits; whole numbers as they are."""
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return fixed(value, 0)
    size = abs(value)
    if 0 < size < 0.001:
        return f"{value:.1e}".replace("-", "−")
    return fixed(value, 0 if size >= 100 else 1 if size >= 10 else 3 if 0 < size < 0.1 else 2)


def percent(value: float | None) -> str:
    """A share, with one decimal."""
    return NOTHING if value is None else f"{100 * value:.1f}%".replace("-", "−")


def duration(seconds: float) -> str:
    """A time span in the two largest units that matter."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def places_for(width: float | None) -> int:
    """Decimals that an interval of this width deserves."""
    if not width:
        return 2
    return next((places for places, limit in enumerate((20, 2, 0.05, 0.005)) if width >= limit), 4)


# --- figures ----------------------------------------------------------------------------------------------


Style = Literal["solid", "dashed"]


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


def colour(arms: Sequence[str], arm: str) -> str:
    """The class of an arm's colour."""
    return f"arm-{arms.index(arm) % COLOURS}" if arm in arms else "start"


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


def _score_point(policy: "Policy", field: str) -> "Point":
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


def _effect_points(policies: "Sequence[Policy]", name: str) -> "list[Point]":
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
            one.name if one.arm == report.arms[0] else f"{_short(one.arm, 12)} {(one.iteration or 0) + 1}",
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


def _joined(stages: Sequence["Training"], field: Field) -> tuple[list["Point"], list[float]]:
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


# --- line charts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One value; with a note it gets a marker and says the note when pointed at."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    label: str = ""
    loose: bool = False
    """Drawn beside the line instead of on it: a policy that was rolled back."""


@dataclass(frozen=True)
class Line:
    """A series of one colour."""

    colour: str
    points: tuple[Point, ...]
    style: Style = "solid"
    band: bool = False


@dataclass(frozen=True)
class Frame:
    """The axes of a chart."""

    width: float
    height: float
    x: "Scale"
    y: "Scale"
    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]

    @property
    def right(self) -> float:
        """Where the axes end."""
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        """Where the horizontal axis lies."""
        return self.height - BOTTOM


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    rule: float | None = None,
    dividers: Sequence[float] = (),
    size: tuple[float, float] = LARGE,
) -> Markup:
    """Lines with bands and markers, from x = 0; `rule` is a horizontal line, `dividers` are vertical."""
    points = [point for line in lines for point in line.points]
    ends = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    frame = _frame([point.x for point in points], ends + ([] if rule is None else [rule]), size)
    parts = _axes(frame, x_label, y_label)
    parts += [_segment("divider", frame.x(at), TOP, frame.x(at), frame.bottom) for at in dividers]
    if rule is not None:
        parts.append(_segment("rule", LEFT, frame.y(rule), frame.right, frame.y(rule)))
    parts += [_band(line, frame) for line in lines if line.band]
    parts += [_path(line, frame) for line in lines]
    parts += [_marker(line, point, frame) for line in lines for point in line.points if point.note]
    return _svg(*size, f"{y_label} by {x_label}", parts)


Scale = Callable[[float], float]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _frame(xs: Sequence[float], ys: Sequence[float], size: tuple[float, float]) -> Frame:
    width, height = size
    last = max(xs) * 1.04 or 1.0
    x_ticks = [value for value in ticks([0.0, last]) if value <= last]
    y_ticks = ticks(ys)
    x = _scale(0.0, last, LEFT, width - RIGHT)
    y = _scale(y_ticks[0], y_ticks[-1], height - BOTTOM, TOP)
    return Frame(width, height, x, y, tuple(x_ticks), tuple(y_ticks))


def ticks(values: Sequence[float], count: int = 5) -> list[float]:
    """Round numbers that enclose the values, about `count` of them."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    # the 1e-9 keeps a value that is a tick already from opening another interval
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _tick_texts(values: Sequence[float]) -> list[str]:
    step = values[1] - values[0] if len(values) > 1 else values[0]
    places = next((one for one in range(6) if math.isclose(step, round(step, one), rel_tol=1e-6)), 6)
    return [fixed(value, places) for value in values]


def _axes(frame: Frame, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value, text in zip(frame.y_ticks, _tick_texts(frame.y_ticks), strict=True):
        parts.append(_segment("grid", LEFT, frame.y(value), frame.right, frame.y(value)))
        parts.append(_text(LEFT - 7, frame.y(value) + 4, text, anchor="end"))
    for value, text in zip(frame.x_ticks, _tick_texts(frame.x_ticks), strict=True):
        parts.append(_segment("axis", frame.x(value), frame.bottom, frame.x(value), frame.bottom + 4))
        parts.append(_text(frame.x(value), frame.bottom + 17, text, anchor="middle"))
    parts.append(_segment("axis", LEFT, frame.bottom, frame.right, frame.bottom))
    parts.append(_text((LEFT + frame.right) / 2, frame.height - 6, x_label, anchor="middle", kind="label"))
    turned = f"translate(11 {(TOP + frame.bottom) / 2:.1f}) rotate(-90)"
    parts.append(f'<text class="label" text-anchor="middle" transform="{turned}">{escape(y_label)}</text>')
    return parts


def _band(line: Line, frame: Frame) -> str:
    on_line = [point for point in line.points if not point.loose]
    upper = [(frame.x(one.x), frame.y(one.y if one.high is None else one.high)) for one in on_line]
    lower = [(frame.x(one.x), frame.y(one.y if one.low is None else one.low)) for one in on_line]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in upper + lower[::-1])
    return f'<polygon class="band {line.colour}" points="{corners}"/>'


def _path(line: Line, frame: Frame) -> str:
    on_line = [point for point in line.points if not point.loose]
    corners = " ".join(f"{frame.x(point.x):.1f},{frame.y(point.y):.1f}" for point in on_line)
    return f'<polyline class="line {line.colour} {line.style}" points="{corners}"/>'


def _marker(line: Line, point: Point, frame: Frame) -> str:
    x, y = frame.x(point.x), frame.y(point.y)
    parts = [f"<g><title>{escape(point.note)}</title>"]
    if point.low is not None and point.high is not None and line.band:
        parts.append(_segment(f"whisker {line.colour}", x, frame.y(point.low), x, frame.y(point.high)))
    hollow = "hollow" if point.loose or line.style == "dashed" else ""
    parts.append(f'<circle class="marker {line.colour} {hollow}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    if point.label:
        side, anchor = (-8, "end") if x > frame.right - 40 else (7, "start")
        parts.append(_text(x + side, y - 7, point.label, anchor=anchor, kind="mark"))
    return "".join([*parts, "</g>"])


# --- ridges -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ridge:
    """One histogram among several with the same bins."""

    name: str
    colour: str
    shares: tuple[float, ...]
    mean: float


def ridges(rows: Sequence[Ridge], edges: Sequence[float], *, x_label: str) -> Markup:
    """Histograms one above the other, each with its mean, on one axis and one vertical scale."""
    height, right = TOP + RIDGE_HEIGHT * len(rows) + BOTTOM, LARGE[0] - 46
    bottom = height - BOTTOM
    x = _scale(edges[0], edges[-1], RIDGE_LABEL, right)
    x_ticks = [value for value in ticks([edges[0], edges[-1]]) if edges[0] <= value <= edges[-1]]
    parts = []
    for value, text in zip(x_ticks, _tick_texts(x_ticks), strict=True):
        parts.append(_segment("grid", x(value), TOP, x(value), bottom + 4))
        parts.append(_text(x(value), bottom + 17, text, anchor="middle"))
    unit = (RIDGE_HEIGHT - 5) / max(share for row in rows for share in row.shares)
    for index, row in enumerate(rows):
        base = TOP + RIDGE_HEIGHT * (index + 1)
        steps = (
            f"L{x(left):.1f} {base - unit * share:.1f}L{x(end):.1f} {base - unit * share:.1f}"
            for (left, end), share in zip(itertools.pairwise(edges), row.shares, strict=True)
        )
        outline = f"M{x(edges[0]):.1f} {base}{''.join(steps)}L{right} {base}Z"
        parts.append(f'<path class="ridge {row.colour}" d="{outline}"/>')
        parts.append(_segment("axis", RIDGE_LABEL, base, right, base))
        parts.append(_segment(f"mean {row.colour}", x(row.mean), base - RIDGE_HEIGHT + 5, x(row.mean), base))
        parts.append(_text(RIDGE_LABEL - 8, base - 8, row.name, anchor="end", kind="name"))
        parts.append(_text(LARGE[0] - 4, base - 8, number(row.mean), anchor="end", kind="name"))
    parts.append(_text((RIDGE_LABEL + right) / 2, height - 6, x_label, anchor="middle", kind="label"))
    parts.append(_text(LARGE[0] - 4, bottom + 17, "mean", anchor="end"))
    return _svg(LARGE[0], height, f"histograms of {x_label}", parts)


# --- dots -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DotRow:
    """A name, and values with the class of their colour and what they say when pointed at."""

    name: str
    dots: tuple[tuple[str, float, str], ...]


def dots(rows: Sequence[DotRow], *, x_label: str, ends: Sequence[float] = ()) -> Markup:
    """A line a name with its values as dots, on one axis that holds the ends."""
    height, right = TOP + DOT_HEIGHT * len(rows) + BOTTOM, LARGE[0] - 20
    bottom = height - BOTTOM
    x_ticks = ticks([*ends, *(value for row in rows for _, value, _ in row.dots)])
    x = _scale(x_ticks[0], x_ticks[-1], DOT_LABEL, right)
    parts = []
    for value, text in zip(x_ticks, _tick_texts(x_ticks), strict=True):
        parts.append(_segment("grid", x(value), TOP, x(value), bottom + 4))
        parts.append(_text(x(value), bottom + 17, text, anchor="middle"))
    for index, row in enumerate(rows):
        y = TOP + DOT_HEIGHT * (index + 0.5)
        parts.append(_text(DOT_LABEL - 10, y + 4, _short(row.name, 26), anchor="end", kind="name"))
        parts.append(_segment("axis", DOT_LABEL, y, right, y))
        parts += [
            f'<g><title>{escape(note)}</title><circle class="marker {tint}" cx="{x(value):.1f}" cy="{y:.1f}" r="4.5"/></g>'
            for tint, value, note in row.dots
        ]
    parts.append(_text((DOT_LABEL + right) / 2, height - 6, x_label, anchor="middle", kind="label"))
    return _svg(LARGE[0], height, f"{x_label} by category", parts)


# --- lineage ----------------------------------------------------------------------------------------------

COLUMNS = (
    "base", "sft", "import", "prompts", "draw", "invent", "generate", "annotate", "select", "reward", "policy", "promote",
    "evaluate",
)  # fmt: skip
HEADINGS = {
    "generate": "groups",
    "annotate": "judgements",
    "select": "pairs",
    "evaluate": "evaluation",
    "draw": "prompts drawn",
    "invent": "prompts made",
}
FLOW = {
    ("base", "sft"), ("base", "generate"), ("sft", "generate"), ("prompts", "generate"), ("draw", "generate"),
    ("draw", "invent"), ("policy", "invent"), ("promote", "invent"), ("invent", "generate"),
    ("generate", "annotate"), ("annotate", "select"), ("select", "reward"), ("reward", "annotate"),
    ("import", "reward"), ("import", "policy"), ("select", "policy"), ("policy", "generate"),
    ("policy", "promote"), ("policy", "evaluate"), ("promote", "generate"),
}  # fmt: skip
"""Inputs that are drawn; the tooltip has all: the reference, the pool of prompts, earlier judgements."""


@dataclass(frozen=True)
class Node:
    """Where an artefact stands in the drawing."""

    stage: "StageRow"
    x: float
    y: float


def lineage(stages: Sequence["StageRow"], arms: Sequence[str]) -> Markup:
    """What was made from what: a column per kind, a row per iteration and arm."""
    first: dict[str, StageRow] = {}
    for stage in stages:
        first.setdefault(stage.key, stage)
    unique = list(first.values())
    kinds = [kind for kind in COLUMNS if any(stage.kind == kind for stage in unique)]
    kinds += sorted({stage.kind for stage in unique} - set(kinds))
    parts = [
        _text(
            _column(kinds, kind) + NODE_WIDTH / 2, 14, HEADINGS.get(kind, kind), anchor="middle", kind="label"
        )
        for kind in kinds
    ]
    nodes: dict[str, Node] = {}
    top = 26.0
    for arm, iteration in dict.fromkeys((stage.arm, stage.iteration) for stage in unique):
        row = [stage for stage in unique if (stage.arm, stage.iteration) == (arm, iteration)]
        depth = dict.fromkeys(kinds, 0)
        for stage in row:
            at = top + depth[stage.kind] * (NODE_HEIGHT + 4)
            nodes[stage.key] = Node(stage, _column(kinds, stage.kind), at)
            depth[stage.kind] += 1
        name = "before the loop" if iteration is None else f"{_short(arm, 8)}, iteration {iteration + 1}"
        parts.append(_text(0, top + NODE_HEIGHT / 2 + 4, name, kind="name"))
        top += max(depth.values()) * (NODE_HEIGHT + 4) + NODE_GAP_Y
    parts += [_edge(nodes[key], node) for node in nodes.values() for key in _drawn_inputs(node, nodes)]
    parts += [_node(node, nodes, arms) for node in nodes.values()]
    width = round(_column(kinds, kinds[-1]) + NODE_WIDTH + 4)
    return _svg(width, round(top - NODE_GAP_Y), "lineage of the artefacts", parts)


def _column(kinds: Sequence[str], kind: str) -> float:
    return LINEAGE_LABEL + kinds.index(kind) * (NODE_WIDTH + NODE_GAP_X)


def _drawn_inputs(node: Node, nodes: dict[str, Node]) -> list[str]:
    """One input of each kind, the newest."""
    newest = {nodes[key].stage.kind: key for key in node.stage.inputs if key in nodes}
    return [key for kind, key in newest.items() if (kind, node.stage.kind) in FLOW]


def _edge(source: Node, target: Node) -> str:
    if target.x > source.x:
        x1, y1 = source.x + NODE_WIDTH, source.y + NODE_HEIGHT / 2
        x2, y2 = target.x, target.y + NODE_HEIGHT / 2
        bend = min((x2 - x1) / 2, 40)
        path = f"M{x1:.0f} {y1:.0f}C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
    else:
        x1, y1 = source.x + NODE_WIDTH / 2, source.y + NODE_HEIGHT
        x2, y2 = target.x + NODE_WIDTH / 2, target.y
        bend = max((y2 - y1) / 2, 6)
        path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
    return f'<path class="edge" d="{path}"/>'


def _node(node: Node, nodes: dict[str, Node], arms: Sequence[str]) -> str:
    stage = node.stage
    colour_class = "start" if stage.iteration is None else colour(arms, stage.arm)
    made_from = ", ".join(
        f"{nodes[key].stage.kind}-{key}" for key in dict.fromkeys(stage.inputs) if key in nodes
    )
    words = f"{stage.role} · {stage.kind}-{stage.key}, {stage.status}; from {made_from or 'files alone'}"
    return (
        f'<g><title>{escape(words)}</title><rect class="node {colour_class} {stage.status}" x="{node.x:.0f}" '
        f'y="{node.y:.0f}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="5"/>'
        + _text(node.x + NODE_WIDTH / 2, node.y + 16, stage.key[:7], anchor="middle", kind="key")
        + "</g>"
    )


# --- svg --------------------------------------------------------------------------------------------------


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, description: str, parts: Sequence[str]) -> Markup:
    label = escape(description)
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
