"""What style does to a verdict: how long two answers are and how much Markdown they carry, as numbers to control for.

The features are Arena-Hard's: the difference over the sum of lengths, and of densities of headers, list items and bold text
(plus one, so that a text without any is no division by zero).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

FENCED = re.compile(r"```[^`]*```")
HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
LIST_ITEM = re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)
BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
Control = Literal["length", "markdown"]
COLUMNS: dict[Control, tuple[str, ...]] = {"length": ("length",), "markdown": ("headers", "lists", "bold")}


@dataclass(frozen=True)
class Style:
    """One answer; the length is in tokens or in characters, the same for all that are compared."""

    length: float
    headers: int
    lists: int
    bold: int


def style_of(text: str, *, length: float | None = None) -> Style:
    """Markdown outside of code, and the length: that which is given, else characters."""
    prose = FENCED.sub("", text)
    counts = (len(pattern.findall(prose)) for pattern in (HEADER, LIST_ITEM, BOLD))
    return Style(len(text) if length is None else length, *counts)


def differences(ours: Sequence[Style], theirs: Sequence[Style], controls: Sequence[Control]) -> np.ndarray:
    """Features [n, d] of n pairs, positive where our answer has more; d are the columns of `controls`."""
    a, b = (
        np.array([(s.length, s.headers, s.lists, s.bold) for s in side], dtype=float)
        for side in (ours, theirs)
    )
    lengths = a[:, 0] + b[:, 0]  # [n]
    length = _over(a[:, 0] - b[:, 0], lengths)
    dense_a, dense_b = _over(a[:, 1:], a[:, :1]), _over(b[:, 1:], b[:, :1])  # [n, 3]
    markdown = (dense_a - dense_b) / (dense_a + dense_b + 1)
    parts: dict[Control, np.ndarray] = {"length": length[:, None], "markdown": markdown}
    return np.concatenate([parts[name] for name in controls], 1)


def standardised(features: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1; those that do not vary become 0."""
    centred = features - features.mean(0)
    return _over(centred, features.std(0, ddof=1) if len(features) > 1 else np.zeros(features.shape[1]))


def columns_of(controls: Sequence[Control]) -> list[str]:
    """Names of the columns of `differences`."""
    return [name for control in controls for name in COLUMNS[control]]


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A quotient that is 0 where the divisor is."""
    wide = np.broadcast_to(below, above.shape)
    return np.divide(above, wide, out=np.zeros_like(above), where=wide != 0)
