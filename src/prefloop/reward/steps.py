"""Solutions in steps: where each step ends in the tokens of a completion, and the model that is read there.

A step is tokenised on its own with the separator that ends it, in training and in use, so that the places agree.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from prefloop.batches import Batch, Codec
from prefloop.forward import ScoresModule, hidden_states, plain

Reduction = Literal["mean", "min", "last"]


class StepsModule(ScoresModule):
    """A reward model read at every token of the completions; the caller picks those that end a step."""

    def forward(self, batch: Batch) -> Tensor:
        """Logits of P(right) at every token of the completions, one after another."""
        model: Any = plain(self.model)
        owner = torch.arange(len(batch.lengths), device=batch.lengths.device).repeat_interleave(batch.lengths)
        before = batch.lengths.cumsum(0) - batch.lengths  # [C], tokens of the completions before
        within = torch.arange(len(owner), device=owner.device) - before[owner]
        places = (batch.ends - batch.lengths + 1)[owner] + within  # [t]
        return model.score(hidden_states(model, batch)[places])[:, 0].float()

    def by_completion(self, batch: Batch) -> list[Tensor]:
        """The logits of each completion's tokens, on the CPU."""
        return list(self(batch).cpu().split(batch.lengths.tolist()))


def step_ids(codec: Codec, steps: Sequence[str], separator: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of a solution, and the place of each step's last token among them."""
    ids: list[int] = []
    ends: list[int] = []
    for step in steps:
        ids += codec.plain_ids(step + separator)
        ends.append(len(ids) - 1)
    return tuple(ids), tuple(ends)


def steps_of(text: str, separator: str) -> list[str]:
    """The steps of a completion; one where nothing separates any."""
    return [step for step in text.split(separator) if step.strip()] or [text]


def reduced(probabilities: Sequence[float], reduction: Reduction) -> float:
    """The score of a solution from P(right) of its steps."""
    match reduction:
        case "mean":
            return sum(probabilities) / len(probabilities)
        case "min":
            return min(probabilities)
        case "last":
            return probabilities[-1]
