"""Which judgements people should look at again, because the reward model is sure of the opposite.

Most of the queue is what disagrees most; a fixed share is drawn at random, so that flip rates can be compared and
corrected: every entry keeps the probability with which it was chosen. Nothing here changes a judgement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONTROL_SHARE = 0.3


@dataclass(frozen=True)
class QueueEntry:
    """One judged pair to look at again."""

    unit: str
    score: float
    """Distance of the reward model's probability from what people said, times how sure its members are."""
    drawn: Literal["top", "control"]
    """Not to be shown to whoever looks: a control would be judged less carefully."""
    probability: float
    """With which it came into the queue; 1 for the top."""


def ensemble_confidence(p_first: np.ndarray) -> np.ndarray:
    """How much the members [M, N] of an ensemble agree on each pair: 1 - 2 standard deviations [N].

    1 where all say the same, 0 where half are sure of one side and half of the other. Use members that were not trained
    on the pair.
    """
    return 1 - 2 * np.asarray(p_first, dtype=np.float64).std(axis=0)


def disagreement_queue(
    units: Sequence[str],
    people: Sequence[float],
    reward_model: Sequence[float],
    confidence: Sequence[float],
    *,
    num_entries: int,
    control_share: float = CONTROL_SHARE,
    seed: int = 0,
) -> tuple[QueueEntry, ...]:
    """The pairs to look at again, most telling first, controls spread evenly between them.

    `people` and `reward_model` are probabilities that the first completion is better, `confidence` is of
    `ensemble_confidence`. Stopping early leaves the share of controls as it is. Ties are broken at random.
    """
    distance = np.abs(np.asarray(reward_model, dtype=np.float64) - np.asarray(people, dtype=np.float64))
    scores = distance * np.asarray(confidence, dtype=np.float64)  # [N]
    num_entries = min(num_entries, len(units))
    num_controls = round(control_share * num_entries)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(units))
    order = shuffled[np.argsort(-scores[shuffled], kind="stable")]
    top, rest = order[: num_entries - num_controls], order[num_entries - num_controls :]
    controls = rng.choice(rest, num_controls, replace=False)
    chance = num_controls / len(rest) if len(rest) else 1.0
    drawn: list[tuple[float, int, Literal["top", "control"]]] = [
        *((place, int(one), "top") for place, one in zip(_spread(len(top)), top, strict=True)),
        *((place, int(one), "control") for place, one in zip(_spread(len(controls)), controls, strict=True)),
    ]
    return tuple(
        QueueEntry(units[one], round(float(scores[one]), 6), kind, 1.0 if kind == "top" else round(chance, 6))
        for _, one, kind in sorted(drawn)
    )


def _spread(n: int) -> list[float]:
    """Places of `n` things at equal distances between 0 and 1."""
    return [(number + 0.5) / n for number in range(n)]
