"""Charts of a report as SVG: lines, ridges, dots.

Drawn by hand rather than by a plotting library: they follow the reader's light or dark theme, stay sharp, weigh little
and show exact values when pointed at. Colours are classes (`arm-0` is the main arm everywhere). All text is escaped.
Knows nothing about files, statistics or reports.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

from prefloop.report.numbers import fixed, number

LARGE, SMALL = (460, 264), (330, 206)
"""Widths and heights of charts, two or three in a line of the page."""
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 16, 42
RIDGE_LABEL, RIDGE_HEIGHT = 104, 34
DOT_LABEL, DOT_HEIGHT = 150, 22
COLOURS = 6
"""Arms beyond this many share colours."""
Style = Literal["solid", "dashed"]


def colour(arms: Sequence[str], arm: str) -> str:
    """The class of an arm's colour."""
    return f"arm-{arms.index(arm) % COLOURS}" if arm in arms else "start"


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
    parts += [segment("divider", frame.x(at), TOP, frame.x(at), frame.bottom) for at in dividers]
    if rule is not None:
        parts.append(segment("rule", LEFT, frame.y(rule), frame.right, frame.y(rule)))
    parts += [_band(line, frame) for line in lines if line.band]
    parts += [_path(line, frame) for line in lines]
    parts += [_marker(line, point, frame) for line in lines for point in line.points if point.note]
    return svg(*size, f"{y_label} by {x_label}", parts)


Scale = Callable[[float], float]


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """From values between low and high to places between start and end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _frame(xs: Sequence[float], ys: Sequence[float], size: tuple[float, float]) -> Frame:
    width, height = size
    last = max(xs) * 1.04 or 1.0
    x_ticks = [value for value in ticks([0.0, last]) if value <= last]
    y_ticks = ticks(ys)
    x = scale(0.0, last, LEFT, width - RIGHT)
    y = scale(y_ticks[0], y_ticks[-1], height - BOTTOM, TOP)
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
        parts.append(segment("grid", LEFT, frame.y(value), frame.right, frame.y(value)))
        parts.append(lettering(LEFT - 7, frame.y(value) + 4, text, anchor="end"))
    for value, text in zip(frame.x_ticks, _tick_texts(frame.x_ticks), strict=True):
        parts.append(segment("axis", frame.x(value), frame.bottom, frame.x(value), frame.bottom + 4))
        parts.append(lettering(frame.x(value), frame.bottom + 17, text, anchor="middle"))
    parts.append(segment("axis", LEFT, frame.bottom, frame.right, frame.bottom))
    parts.append(
        lettering((LEFT + frame.right) / 2, frame.height - 6, x_label, anchor="middle", kind="label")
    )
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
        parts.append(segment(f"whisker {line.colour}", x, frame.y(point.low), x, frame.y(point.high)))
    hollow = "hollow" if point.loose or line.style == "dashed" else ""
    parts.append(f'<circle class="marker {line.colour} {hollow}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    if point.label:
        side, anchor = (-8, "end") if x > frame.right - 40 else (7, "start")
        parts.append(lettering(x + side, y - 7, point.label, anchor=anchor, kind="mark"))
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
    x = scale(edges[0], edges[-1], RIDGE_LABEL, right)
    x_ticks = [value for value in ticks([edges[0], edges[-1]]) if edges[0] <= value <= edges[-1]]
    parts = []
    for value, text in zip(x_ticks, _tick_texts(x_ticks), strict=True):
        parts.append(segment("grid", x(value), TOP, x(value), bottom + 4))
        parts.append(lettering(x(value), bottom + 17, text, anchor="middle"))
    unit = (RIDGE_HEIGHT - 5) / max(share for row in rows for share in row.shares)
    for index, row in enumerate(rows):
        base = TOP + RIDGE_HEIGHT * (index + 1)
        steps = (
            f"L{x(left):.1f} {base - unit * share:.1f}L{x(end):.1f} {base - unit * share:.1f}"
            for (left, end), share in zip(itertools.pairwise(edges), row.shares, strict=True)
        )
        outline = f"M{x(edges[0]):.1f} {base}{''.join(steps)}L{right} {base}Z"
        parts.append(f'<path class="ridge {row.colour}" d="{outline}"/>')
        parts.append(segment("axis", RIDGE_LABEL, base, right, base))
        parts.append(segment(f"mean {row.colour}", x(row.mean), base - RIDGE_HEIGHT + 5, x(row.mean), base))
        parts.append(lettering(RIDGE_LABEL - 8, base - 8, row.name, anchor="end", kind="name"))
        parts.append(lettering(LARGE[0] - 4, base - 8, number(row.mean), anchor="end", kind="name"))
    parts.append(lettering((RIDGE_LABEL + right) / 2, height - 6, x_label, anchor="middle", kind="label"))
    parts.append(lettering(LARGE[0] - 4, bottom + 17, "mean", anchor="end"))
    return svg(LARGE[0], height, f"histograms of {x_label}", parts)


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
    x = scale(x_ticks[0], x_ticks[-1], DOT_LABEL, right)
    parts = []
    for value, text in zip(x_ticks, _tick_texts(x_ticks), strict=True):
        parts.append(segment("grid", x(value), TOP, x(value), bottom + 4))
        parts.append(lettering(x(value), bottom + 17, text, anchor="middle"))
    for index, row in enumerate(rows):
        y = TOP + DOT_HEIGHT * (index + 0.5)
        parts.append(lettering(DOT_LABEL - 10, y + 4, short(row.name, 26), anchor="end", kind="name"))
        parts.append(segment("axis", DOT_LABEL, y, right, y))
        parts += [
            f'<g><title>{escape(note)}</title><circle class="marker {tint}" cx="{x(value):.1f}" cy="{y:.1f}" r="4.5"/></g>'
            for tint, value, note in row.dots
        ]
    parts.append(lettering((DOT_LABEL + right) / 2, height - 6, x_label, anchor="middle", kind="label"))
    return svg(LARGE[0], height, f"{x_label} by category", parts)


# --- svg --------------------------------------------------------------------------------------------------


def segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def short(text: str, length: int) -> str:
    """A text that is cut where it is too long."""
    return text if len(text) <= length else text[: length - 1] + "…"


def lettering(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "tick") -> str:
    """Escaped words."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(width: float, height: float, description: str, parts: Sequence[str]) -> Markup:
    """The whole drawing."""
    label = escape(description)
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
