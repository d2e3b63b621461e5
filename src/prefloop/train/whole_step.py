"""Objectives that need all pairs of an optimiser step, such as those that sort them or compare with their mean.

The step is cut into microbatches and spread over processes, so the loss is first computed from all pairs' log-probabilities
without a graph; its gradient with respect to each of them is what the microbatches then carry back (arXiv:2101.06983).
The result is that of one large batch, for one more forward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from prefloop.config import PolicySection, objectives_in
from prefloop.losses import PairLogps, nll, pair_loss, step_baseline
from prefloop.train.groups import PairGroup


@dataclass(frozen=True)
class PairTerms:
    """What a microbatch says about its pairs."""

    pair: PairLogps
    weights: Tensor
    """[B]"""
    foreign: Tensor
    """Log-ratios [F] of completions that belong to other prompts."""


class WholeStep:
    """The gradient of a step's loss with respect to the log-probabilities of each pair."""

    def __init__(
        self, options: PolicySection, terms: Callable[[Any, Sequence[PairGroup]], PairTerms]
    ) -> None:
        self.options = options
        self.terms = terms
        self.mean = RunningMean()
        self._found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def before_step(
        self, trained: nn.Module, parts: Sequence[Sequence[PairGroup]], accelerator: Accelerator
    ) -> None:
        """Computes the step's loss and gradient from all processes' microbatches."""
        with torch.no_grad(), accelerator.autocast():
            mine = [self.terms(trained, part) for part in parts]
        everyone: list[PairTerms] = gather_object(mine)
        sizes = [len(group.pairs) for part in parts for group in part]
        first = sum(len(one.weights) for one in everyone[: _before(len(mine), accelerator)])
        step = _joined([_on(one, accelerator.device) for one in everyone])
        sides = [step.pair.chosen.requires_grad_(), step.pair.rejected.requires_grad_()]
        losses = self.losses(step)
        slopes = torch.autograd.grad(losses.sum(), sides)
        values = [one.detach()[first : first + sum(sizes)].split(sizes) for one in (*slopes, losses)]
        names = [group.name for part in parts for group in part]
        self._found = dict(zip(names, zip(*values, strict=True), strict=True))

    def losses(self, terms: PairTerms) -> Tensor:
        """Weighted losses [B] of all pairs of a step."""
        baseline = step_baseline(terms.pair, terms.foreign, self.options.objective)
        if baseline is not None and any(
            one.kind == "bco_pair" for one in objectives_in(self.options.objective)
        ):
            baseline = self.mean.update(baseline, 2 * len(terms.weights))
        return weighted_losses(replace(terms.pair, baseline=baseline), terms.weights, self.options)

    def loss(self, pair: PairLogps, groups: Sequence[PairGroup]) -> Tensor:
        """The microbatch's share of the step's loss, with the step's gradient."""
        # a row of another process, computed only to keep step, carries nothing back
        nothing = {one.name: (pair.chosen.new_zeros(len(one.pairs)),) * 3 for one in groups}
        found = [self._found.get(one.name, nothing[one.name]) for one in groups]
        chosen, rejected, losses = (torch.cat(one) for one in zip(*found, strict=True))
        linear = (chosen * pair.chosen + rejected * pair.rejected).sum()
        return linear - linear.detach() + losses.sum()


def weighted_losses(pair: PairLogps, weights: Tensor, options: PolicySection) -> Tensor:
    """Weighted losses [B], the likelihood term included."""
    losses = pair_loss(pair, options.objective)
    if any(one.kind in SORTING for one in objectives_in(options.objective)):
        weights = weights.mean().expand_as(weights)  # sorted losses belong to no single pair
    if options.nll_weight:
        losses = losses + options.nll_weight * nll(pair)
    return losses * weights


def _before(number: int, accelerator: Accelerator) -> int:
    """How many microbatches the processes before this one have."""
    return sum(gather_object([number])[: accelerator.process_index])


def _on(terms: PairTerms, device: torch.device) -> PairTerms:
    return _mapped([terms], lambda tensors: tensors[0].to(device))


def _joined(terms: Sequence[PairTerms]) -> PairTerms:
    return _mapped(terms, torch.cat)


def _mapped(terms: Sequence[PairTerms], function: Callable[[list[Tensor]], Tensor]) -> PairTerms:
    """One set of terms, each of whose tensors is made from that of all sets."""

    def of(records: Sequence[Any]) -> dict[str, Tensor]:
        names = [one.name for one in fields(records[0]) if isinstance(getattr(records[0], one.name), Tensor)]
        return {name: function([getattr(one, name) for one in records]) for name in names}

    pair = replace(terms[0].pair, **of([one.pair for one in terms]))
    return replace(terms[0], pair=pair, **of(terms))


SORTING = ("aot", "aot_pair")
"""Objectives that sort one side apart from the other."""


class RunningMean:
    """Mean of all values seen in training."""

    def __init__(self) -> None:
        self.value, self.count = 0.0, 0

    def update(self, mean: Tensor, count: int) -> Tensor:
        """The mean, with `count` more values that have this mean."""
        self.count += count
        self.value += (float(mean) - self.value) * count / self.count
        return torch.full_like(mean, self.value)

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "count": self.count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value, self.count = state["value"], int(state["count"])
