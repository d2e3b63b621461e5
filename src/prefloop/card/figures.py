"""The card's figures as SVG, in the classes and colours of the report."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from prefloop.evaluate.card_types import Breakdown, Histogram, RewardCard
from prefloop.report.charts import LARGE, Ridge, Scale, lettering, ridges, scale, segment, short, svg, ticks
from prefloop.report.figures import Figure, Key
from prefloop.report.numbers import fixed, percent
from prefloop.statistics import Calibration, CalibrationBin, Interval

MODEL, PREVIOUS, BASELINE = "arm-0", "arm-1", "start"
"""Colours."""
ROW, HEAD, LABEL, COUNT = 27, 6, 160, 46
"""Of a chart of rows: height of one and of the heading, width of names on the left and of counts on the right."""
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 42
BARS = 40
"""Height of the bars under the calibration curve."""
NAME_LENGTH = 25


@dataclass(frozen=True)
class CardFigures:
    """All drawings of a card."""

    accuracy: Figure
    calibration: Figure
    breakdowns: tuple[Figure, ...]
    histogram: Figure


@dataclass(frozen=True)
class ShareRow:
    """A share with its interval; `stated` is what the model claimed."""

    name: str
    colour: str
    value: float
    interval: Interval | None = None
    stated: float | None = None


def figures(card: RewardCard) -> CardFigures:
    """Draws what was measured."""
    return CardFigures(
        accuracy=_accuracy_figure(card),
        calibration=_calibration_figure(card.calibration, card.confidence),
        breakdowns=tuple(_breakdown_figure(one) for one in card.breakdowns),
        histogram=_histogram_figure(card.histogram),
    )


def _accuracy_figure(card: RewardCard) -> Figure:
    rows = [
        _share_row("this model", MODEL, card.accuracy),
        *([_share_row("previous model", PREVIOUS, card.previous.accuracy)] if card.previous else []),
        _share_row("always the longer", BASELINE, card.length.longer),
        _share_row("always the shorter", BASELINE, card.length.shorter),
        ShareRow("always the first", BASELINE, 0.5),
    ]
    return Figure(
        "Accuracy beside what needs no model",
        f"Share of pairs ordered as labelled, ties one half. Whiskers are {100 * card.confidence:g}% intervals over "
        "prompts (bootstrap).",
        (),
        share_chart(rows, x_label="share ordered right"),
    )


def _share_row(name: str, colour: str, interval: Interval) -> ShareRow:
    return ShareRow(name, colour, interval["mean"], interval)


def _breakdown_figure(breakdown: Breakdown) -> Figure:
    rows = [ShareRow(one.name, MODEL, one.right["mean"], one.right, one.stated) for one in breakdown.buckets]
    return Figure(
        f"By {breakdown.name}",
        "",
        (Key("right", f"{MODEL} full"), Key("claimed", "plain hollow")),
        share_chart(rows, x_label="share ordered right"),
    )


def _calibration_figure(calibration: Calibration, confidence: float) -> Figure:
    return Figure(
        "Does it come true?",
        f"Pairs by the probability given to the preferred side, with {100 * confidence:g}% Wilson intervals; below the "
        "dashed line the model is too sure. Bars are the shares of pairs.",
        (Key("measured", MODEL), Key("calibrated", "plain", "dashed")),
        calibration_chart(calibration.bins),
    )


def _histogram_figure(histogram: Histogram) -> Figure:
    colours = (MODEL, BASELINE)
    rows = [
        Ridge(name, colour, tuple(shares), histogram.means[name])
        for colour, (name, shares) in zip(colours, histogram.shares.items(), strict=True)
    ]
    return Figure(
        histogram.name[0].upper() + histogram.name[1:],
        "Share of pairs per bin; the line is the mean. The outermost bins hold what lies beyond.",
        (),
        ridges(rows, histogram.edges, x_label=histogram.name),
    )


# --- charts ----------------------------------------------------------------------------------------------------------


def share_chart(rows: Sequence[ShareRow], *, x_label: str) -> Markup:
    """Shares as dots with whiskers, one row each, beside the line of chance; claims are hollow dots."""
    ends = [0.5, *(end for row in rows for end in _ends(row))]
    x_ticks = [one for one in ticks(ends) if -1e-9 <= one <= 1 + 1e-9]
    left, right = LABEL, LARGE[0] - COUNT
    top = TOP + HEAD if any(row.interval for row in rows) else TOP
    bottom = top + ROW * len(rows)
    x = scale(min(*ends, x_ticks[0]), max(*ends, x_ticks[-1]), left, right)
    parts = [lettering(LARGE[0] - 4, TOP, "pairs", anchor="end")] if top > TOP else []
    for value in x_ticks:
        parts.append(segment("grid", x(value), top, x(value), bottom + 4))
        parts.append(lettering(x(value), bottom + 17, f"{fixed(100 * value, 0)}%", anchor="middle"))
    parts.append(segment("rule", x(0.5), top, x(0.5), bottom))
    for place, row in enumerate(rows):
        parts += _share_marks(row, x, top + ROW * (place + 0.5))
    parts.append(lettering((left + right) / 2, bottom + BOTTOM - 6, x_label, anchor="middle", kind="label"))
    return svg(LARGE[0], bottom + BOTTOM, x_label, parts)


def _ends(row: ShareRow) -> list[float]:
    found = [row.value, row.stated, *((row.interval["low"], row.interval["high"]) if row.interval else ())]
    return [one for one in found if one is not None]


def _share_marks(row: ShareRow, x: Scale, y: float) -> list[str]:
    note = f"{row.name}: {percent(row.value)}"
    parts = [lettering(LABEL - 10, y + 4, short(row.name, NAME_LENGTH), anchor="end", kind="name")]
    if row.interval:
        note += f", interval {percent(row.interval['low'])} to {percent(row.interval['high'])}"
        parts.append(segment(f"whisker {row.colour}", x(row.interval["low"]), y, x(row.interval["high"]), y))
        parts.append(lettering(LARGE[0] - 4, y + 4, f"{row.interval['n']:,}", anchor="end"))
    if row.stated is not None:
        note += f"; claimed {percent(row.stated)}"
        parts.append(_dot(x(row.stated), y, "plain", hollow=True))
    parts.append(_dot(x(row.value), y, row.colour))
    return [f"<g><title>{escape(note)}</title>", *parts, "</g>"]


def calibration_chart(bins: Sequence[CalibrationBin]) -> Markup:
    """Measured against stated shares with the line on which they are equal, over bars of how many pairs there are."""
    width, height = LARGE[0], LARGE[1] + BARS + 10
    bottom = height - BOTTOM
    curve_bottom = bottom - BARS - 10
    y_ticks = [
        one for one in ticks([0.5, 1.0, *(end for one in bins for end in _limits(one))]) if one <= 1 + 1e-9
    ]
    x = scale(0.5, 1.0, LEFT, width - RIGHT)
    y = scale(min(y_ticks[0], 0.5), 1.0, curve_bottom, TOP)
    parts = []
    for value in y_ticks:
        parts.append(segment("grid", LEFT, y(value), width - RIGHT, y(value)))
        parts.append(lettering(LEFT - 7, y(value) + 4, f"{fixed(100 * value, 0)}%", anchor="end"))
    for value in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        parts.append(segment("axis", x(value), bottom, x(value), bottom + 4))
        parts.append(lettering(x(value), bottom + 17, f"{fixed(100 * value, 0)}%", anchor="middle"))
    parts.append(segment("axis", LEFT, bottom, width - RIGHT, bottom))
    parts.append(segment("rule", x(0.5), y(0.5), x(1.0), y(1.0)))
    parts += _bars(bins, x, bottom)
    corners = " ".join(f"{x(one.stated):.1f},{y(one.right['mean']):.1f}" for one in bins)
    parts.append(f'<polyline class="line {MODEL}" points="{corners}"/>')
    parts += [_calibration_marks(one, x, y) for one in bins]
    parts.append(
        lettering((LEFT + width - RIGHT) / 2, height - 6, "stated probability", anchor="middle", kind="label")
    )
    turned = f"translate(11 {(TOP + curve_bottom) / 2:.1f}) rotate(-90)"
    parts.append(f'<text class="label" text-anchor="middle" transform="{turned}">share right</text>')
    return svg(width, height, "share right by stated probability", parts)


def _limits(one: CalibrationBin) -> tuple[float, float]:
    return one.right["low"], one.right["high"]


def _bars(bins: Sequence[CalibrationBin], x: Scale, bottom: float) -> list[str]:
    most = max(one.right["n"] for one in bins)
    return [
        f'<rect class="band {MODEL}" x="{x(one.low) + 1:.1f}" y="{bottom - BARS * one.right["n"] / most:.1f}" '
        f'width="{x(one.high) - x(one.low) - 2:.1f}" height="{BARS * one.right["n"] / most:.1f}"/>'
        for one in bins
    ]


def _calibration_marks(one: CalibrationBin, x: Scale, y: Scale) -> str:
    note = (
        f"stated {percent(one.stated)}, right {percent(one.right['mean'])}, interval {percent(one.right['low'])} to "
        f"{percent(one.right['high'])}, {one.right['n']:,} pairs"
    )
    at = x(one.stated)
    whisker = segment(f"whisker {MODEL}", at, y(one.right["low"]), at, y(one.right["high"]))
    return f"<g><title>{escape(note)}</title>{whisker}{_dot(at, y(one.right['mean']), MODEL)}</g>"


# --- svg -------------------------------------------------------------------------------------------------------------


def _dot(x: float, y: float, colour: str, *, hollow: bool = False) -> str:
    kind = f"marker {colour} hollow" if hollow else f"marker {colour}"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{3.5 if hollow else 4.5}"/>'
