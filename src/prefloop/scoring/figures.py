"""What a score is: numbers with their count and interval, the rows that they come from, and what to know about them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DRAWS = 2000
"""Bootstrap samples."""
LEVEL = 0.95
UPSTREAM_LEVEL = 0.90
"""Of the interval that Arena-Hard v2.0 prints."""
DETECTABLE = 2.8
"""Standard errors of a difference that is seen four times in five at two-sided 5 %: 1.96 + 0.84."""


@dataclass(frozen=True)
class Figure:
    """One number; None where it is not defined. The interval is over prompts unless its name says otherwise."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    """Of the interval."""

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass
class Scored:
    """What one file says about one model under one benchmark."""

    benchmark: str
    """With judge, baseline and prompts, unless they are the ones that the benchmark's bare name stands for."""
    subject: str
    """The model."""
    figures: dict[str, Figure]
    rows_in: int
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that were not scored, by reason."""
    notes: list[str] = field(default_factory=list)
    """What to know beside the numbers."""
    facts: dict[str, str] = field(default_factory=dict)
    """Texts beside the numbers, such as a checksum of what was asked."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "benchmark": self.benchmark,
            "subject": self.subject,
            "figures": {name: _figure_json(one) for name, one in self.figures.items()},
            "rows": {
                "in": self.rows_in,
                "scored": self.rows_in - sum(self.dropped.values()),
                "dropped": dict(self.dropped),
            },
            "notes": self.notes,
            "facts": self.facts,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Scored":
        """The inverse of `to_json`."""
        figures = {
            name: Figure(one["value"], one["n"], one.get("low"), one.get("high"), one.get("level", LEVEL))
            for name, one in value["figures"].items()
        }
        rows = value["rows"]
        return cls(
            value["benchmark"],
            value["subject"],
            figures,
            rows["in"],
            Counter(rows["dropped"]),
            list(value["notes"]),
            dict(value.get("facts", {})),
        )


def _figure_json(one: Figure) -> dict[str, Any]:
    found: dict[str, Any] = {"value": one.value, "n": one.n}
    if one.low is not None:
        found |= {"low": one.low, "high": one.high, "half_width": one.half_width}
    if one.level != LEVEL:
        found["level"] = one.level
    return found


Resampled = Callable[[np.ndarray], float]
"""A number of the units drawn: their places, with repetitions."""


def resampled(number: int, measure: Resampled, *, draws: int, seed: int = 0) -> np.ndarray:
    """A measure of so many samples, with repetitions, of `number` units such as prompts: [draws]."""
    rng = np.random.default_rng(seed)
    return np.array([measure(rng.integers(number, size=number)) for _ in range(draws)])


def percentiles(found: np.ndarray, *, level: float = LEVEL) -> tuple[float, float]:
    """The ends of the percentile interval of bootstrap samples."""
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(number: int, measure: Resampled, *, draws: int) -> tuple[float, float]:
    """The percentile bootstrap interval of a measure over `number` units."""
    return percentiles(resampled(number, measure, draws=draws))


def mean_figure(
    values: Sequence[float] | np.ndarray, *, draws: int, times: float = 1.0, level: float = LEVEL
) -> Figure:
    """The mean of values, one a unit that is resampled; None of nothing."""
    array = np.asarray(values, dtype=np.float64) * times
    if not len(array):
        return Figure(None, 0)
    drawn = resampled(len(array), lambda places: float(array[places].mean()), draws=draws)
    return Figure(float(array.mean()), len(array), *percentiles(drawn, level=level), level)


def clustered_figure(
    values: np.ndarray, clusters: Sequence[object], *, draws: int, times: float = 1.0
) -> Figure:
    """The mean of values whose units, such as questions, have several each: whole units are resampled."""
    places: dict[object, list[int]] = {}
    for place, one in enumerate(clusters):
        places.setdefault(one, []).append(place)
    sums = np.array([times * values[one].sum() for one in places.values()])
    counts = np.array([len(one) for one in places.values()])
    low, high = interval(len(sums), lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), draws=draws)
    return Figure(float(sums.sum() / counts.sum()), len(values), low, high)


def counted(value: float, n: int) -> Figure:
    """A number without an interval: a count, or something that is not estimated from a sample."""
    return Figure(value, n)


def text_of(values: Mapping[str, object]) -> str:
    """Names and values as a benchmark's name carries them."""
    return ", ".join(f"{name}={value}" for name, value in values.items())
