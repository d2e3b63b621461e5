"""Estimates and dates in words, with as many digits as their intervals justify."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from prefloop.report.numbers import duration, fixed, number, percent, places_for
from prefloop.report.types import Estimate, Policy

MOST_DECIMALS = 5


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
