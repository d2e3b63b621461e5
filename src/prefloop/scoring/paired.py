"""Two models on the same prompts: the difference with its interval, a test, and who was better how often.

Unpaired intervals are wider than steps between iterations: only the differences prompt by prompt can tell these apart.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, counted, mean_figure

FLIPS = 9_999
"""Random sign flips of the test; with the one that was observed, ten thousand."""
CHUNK = 4_000_000
"""Signs in memory at once."""
UNPAIRED = "only_one_has_it"
"""Why a row counts in no difference: the other model has none for its prompt."""
ROUNDING = 1e-9
"""Means that differ by no more are equal."""


@dataclass
class Solved:
    """What one model did on each prompt of a benchmark with right answers."""

    values: dict[str, list[float]] = field(default_factory=dict)
    """1 for a right answer, 0 for a wrong one, of every sample."""
    characters: dict[str, list[int]] = field(default_factory=dict)
    """Of every answer, where the file has texts."""

    def add(self, prompt: str, right: bool, text: str | None) -> None:
        """One more sample."""
        self.values.setdefault(prompt, []).append(float(right))
        if text is not None:
            self.characters.setdefault(prompt, []).append(len(text))


def compare_solved(
    name: str, benchmark: str, subject: str, ours: Solved, theirs: Solved, *, draws: int
) -> Scored:
    """Shares of right answers, of several samples their mean, over the prompts of both, in percent. Raises InputError."""
    a, b = means(ours.values), means(theirs.values)
    found = compare(name, benchmark, subject, a, b, draws=draws, times=100)
    both = [prompt for prompt in a if prompt in b]
    sides = [
        [np.mean(one.characters[key]) for key in both if key in one.characters] for one in (ours, theirs)
    ]
    if all(len(some) == len(both) for some in sides):
        found.figures |= lengths(*map(np.array, sides), draws=draws)
    return found


def compare(
    name: str,
    benchmark: str,
    subject: str,
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    *,
    draws: int,
    times: float = 1.0,
) -> Scored:
    """The difference of two models over the prompts that both have, as `paired_<name>`. Raises InputError."""
    both = [key for key in ours if key in theirs]
    if not both:
        raise InputError(f"{subject}: no prompt in common")
    gaps = np.array([ours[key] - theirs[key] for key in both])
    unpaired = len(ours) + len(theirs) - 2 * len(both)
    found = Scored(benchmark, subject, {}, len(ours) + len(theirs), +Counter({UNPAIRED: unpaired}))
    found.figures[f"paired_{name}"] = mean_figure(gaps, draws=draws, times=times)
    found.figures |= beside(gaps, both)
    note_unpaired(found, len(both), len(ours), len(theirs))
    return found


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each prompt."""
    return {prompt: float(np.mean(some)) for prompt, some in values.items()}


def lengths(ours: np.ndarray, theirs: np.ndarray, *, draws: int) -> dict[str, Figure]:
    """Mean lengths of both in characters, and their paired difference, from lengths [n] each."""
    return {
        "mean_characters_ours": mean_figure(ours, draws=draws),
        "mean_characters_theirs": mean_figure(theirs, draws=draws),
        "paired_characters": mean_figure(ours - theirs, draws=draws),
    }


def note_unpaired(found: Scored, both: int, ours: int, theirs: int) -> None:
    """Says how many prompts only one of the two has."""
    if ours > both or theirs > both:
        found.notes.append(
            f"on {both} prompts that both have; {ours - both} and {theirs - both} were left out"
        )


def beside(gaps: np.ndarray, clusters: Sequence[Hashable], *, tie_within: float = 0.0) -> dict[str, Figure]:
    """Wins, ties and losses of each value [n], and the p value of the sign-flip test over clusters."""
    p_value = Figure(sign_flip_p(gaps, clusters), len(set(clusters)))
    return {**outcomes(gaps, tie_within=tie_within), "p_sign_flip": p_value}


def outcomes(gaps: np.ndarray, *, tie_within: float = 0.0) -> dict[str, Figure]:
    """Who was better how often, from differences [n]."""
    n, within = len(gaps), tie_within + ROUNDING
    return {
        "wins": counted(int((gaps > within).sum()), n),
        "ties": counted(int((np.abs(gaps) <= within).sum()), n),
        "losses": counted(int((gaps < -within).sum()), n),
    }


def sign_flip_p(gaps: np.ndarray, clusters: Sequence[Hashable], *, seed: int = 0) -> float:
    """Two-sided p value: how often a difference as large comes out when the models change places by chance.

    They do so prompt by prompt: differences of one prompt change sign together. Exact where all flips are fewer than those
    that would be drawn.
    """
    places: dict[Hashable, int] = {}
    at = [places.setdefault(one, len(places)) for one in clusters]
    sums = np.bincount(at, weights=gaps)
    sums = sums[np.abs(sums) > ROUNDING]  # a prompt without a difference has one for no sign
    observed = abs(sums.sum()) - ROUNDING
    if not len(sums):
        return 1.0
    if 2 ** len(sums) <= FLIPS:
        number = 2 ** len(sums)
        signs = 1 - 2 * ((np.arange(number)[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    as_large, left = 0, FLIPS
    while left:
        rows = min(left, max(1, CHUNK // len(sums)))
        signs = 1 - 2 * rng.integers(2, size=(rows, len(sums)))
        as_large += int((np.abs(signs @ sums) >= observed).sum())
        left -= rows
    return (1 + as_large) / (1 + FLIPS)
