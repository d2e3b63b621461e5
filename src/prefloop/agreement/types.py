"""What one person said about one thing, and a figure that is computed from many such sayings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Value = str | float
T = TypeVar("T")


@dataclass(frozen=True)
class Rating:
    """One person's verdict about one unit: a pair, a completion, a step.

    The value is about completions, never about sides of a screen: a person who always takes the left one would
    otherwise look like one who disagrees.
    """

    unit: str
    annotator: str
    value: Value
    """A choice by name, or a number where order means something. Of a pair: 1 for the first completion, 0 for the second."""
    prompt: str | None = None
    """Units of one prompt are resampled together. Left out, every unit stands alone."""

    @property
    def cluster(self) -> str:
        return self.unit if self.prompt is None else self.prompt


@dataclass(frozen=True)
class Ranking:
    """One person's order of the completions of one unit; equal ranks are ties, 1 is best."""

    unit: str
    annotator: str
    ranks: tuple[float, ...]
    prompt: str | None = None

    @property
    def cluster(self) -> str:
        return self.unit if self.prompt is None else self.prompt


@dataclass(frozen=True)
class Measure:
    """A figure of agreement with what it rests on."""

    value: float | None
    """None where it is undefined: `reason` says why. That is neither 0 nor 1."""
    low: float | None
    high: float | None
    """The interval is a percentile bootstrap over prompts; None where too few resamples define the figure."""
    units: int
    """Units that at least two people judged."""
    ratings: int
    """Ratings of those units."""
    reason: str | None = None


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn."""

    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0


def indexed(names: Sequence[T]) -> tuple[list[T], np.ndarray]:
    """The different names in order of appearance, and the place of each given one among them."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return list(places), np.array([places[name] for name in names], dtype=np.int64)
