"""From the runs of a case to rows of a table: medians, spreads, ratios, targets and verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from benchmarks.cases import Case, Measured

PREFLOOP = "prefloop"
Runs = dict[str, list[Measured]]
"""The repeats of each side."""
Figure = Callable[[Measured], float]


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of several repeats."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))

    def text(self, unit: str = "") -> str:
        """The middle, and the ends where there are any."""
        ends = f" ({number(self.lowest)}–{number(self.highest)})" if self.lowest < self.highest else ""
        return f"{number(self.median)}{unit}{ends}"


@dataclass(frozen=True)
class Target:
    """What a row should reach: a ratio to the peer, or a value of its own."""

    value: float
    better: Literal["higher", "lower"] = "higher"
    of: Literal["ratio", "value"] = "ratio"


@dataclass(frozen=True)
class Row:
    """One measure of one case."""

    work: str
    measure: str
    prefloop: Spread
    peer: str | None = None
    peer_value: Spread | None = None
    ratio: Spread | None = None
    """prefloop over peer, repeat by repeat: the two ran one after the other."""
    target: Target | None = None

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Row":
        """The row that `asdict` wrote."""

        def spread(name: str) -> Spread | None:
            return Spread(**row[name]) if row[name] else None

        return cls(
            row["work"],
            row["measure"],
            Spread(**row["prefloop"]),
            row["peer"],
            spread("peer_value"),
            spread("ratio"),
            Target(**row["target"]) if row["target"] else None,
        )

    def to_json(self) -> dict[str, Any]:
        """For the results file."""
        return asdict(self)

    @property
    def missed_by(self) -> float | None:
        """Share by which the target is missed; 0 where it is reached, None without a target."""
        reached = self.ratio if self.target and self.target.of == "ratio" else self.prefloop
        if self.target is None or reached is None:
            return None
        sign = 1 if self.target.better == "higher" else -1
        return max(0.0, sign * (self.target.value - reached.median) / self.target.value)

    @property
    def cells(self) -> list[str]:
        """Work, measure, prefloop, peer, ratio, target, verdict."""
        peer = f"{self.peer}: {self.peer_value.text()}" if self.peer_value else "–"
        ratio = self.ratio.text("×") if self.ratio else "–"
        return [self.work, self.measure, self.prefloop.text(), peer, ratio, *self._verdict()]

    def _verdict(self) -> tuple[str, str]:
        if self.target is None or self.missed_by is None:
            return "–", ""
        sign, unit = "≥" if self.target.better == "higher" else "≤", "×" if self.target.of == "ratio" else ""
        verdict = "reached" if not self.missed_by else f"missed by {self.missed_by:.0%}"
        return f"{sign} {number(self.target.value)}{unit}", verdict


HEADER = ["work", "measure", "prefloop", "peer", "prefloop / peer", "target", "verdict"]


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def compared(
    work: str, measure: str, runs: Runs, peer: str, figure: Figure, target: Target | None = None
) -> Row:
    """A row that sets prefloop beside a peer."""
    mine, theirs = [[figure(one) for one in runs[label]] for label in (PREFLOOP, peer)]
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return Row(work, measure, Spread.of(mine), peer, Spread.of(theirs), Spread.of(ratios), target)


# --- figures ---------------------------------------------------------------------------------------------------------


def pairs_per_s(case: Case) -> Figure:
    """Pairs trained on in a second, reference and optimiser included."""
    return lambda run: case.num_pairs * case.epochs / run.seconds


def groups_per_s(case: Case) -> Figure:
    """Prompts with all their completions, likewise."""
    return lambda run: case.data.num_prompts * case.epochs / run.seconds


def steps_per_s(case: Case) -> Figure:
    """Optimiser steps in a second, with whatever comes before each."""
    return lambda run: case.num_steps / run.seconds


def tokens_per_s(case: Case) -> Figure:
    """Tokens that count: every prompt once, every completion once, no padding."""
    return lambda run: case.tokens_that_count / run.seconds


def sampled_tokens_per_s(case: Case) -> Figure:
    """Tokens written in a second, prompts not counted."""
    return lambda run: run.num_pairs * run.num_steps / run.seconds


def microseconds_per_token(case: Case) -> Figure:
    """The cost of a token that counts."""
    return lambda run: 1e6 * run.seconds / case.tokens_that_count


def share_of(case: Case, gflops: float) -> Figure:
    """Operations that the tokens that count need, a second, over a rate."""
    return lambda run: case.flops / run.seconds / 1e9 / gflops


def share_of_matmul(case: Case, rates: dict[str, float]) -> Figure:
    """The same over the machine's own matmul rate."""
    return share_of(case, rates[case.dtype])


def whole_s(run: Measured) -> float:
    """Seconds from model folder to model folder."""
    return run.whole_s


def peak_growth_mb(run: Measured) -> float:
    """Peak memory over imports and one copy of the weights."""
    return run.peak_growth_mb
