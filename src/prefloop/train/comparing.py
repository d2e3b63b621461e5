"""Learning from samples that are compared with each other: pairs of better and worse, or how often each wins."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefloop.batches import Batch
from prefloop.config import PairsSection, RlSection, SppoSection
from prefloop.losses import PairLogps, pair_loss, sppo_losses
from prefloop.train.actor import ActorCritic, Said
from prefloop.train.loop import Metrics, Task
from prefloop.train.rollouts import Rollouts, Sample


class Comparing:
    """The losses of compared completions, as the optimiser loop needs them; averaged over prompts."""

    def __init__(self, module: ActorCritic, rollouts: Rollouts) -> None:
        self.module = module
        self.rollouts = rollouts
        self.options: RlSection = rollouts.options

    def task(self) -> Task[Sample]:
        """Training on samples that are made as it goes."""
        return Task(
            items=(),
            tokens=lambda one: self.module.cost(one.tokens),
            count=lambda one: 1,
            name=lambda one: f"prompt {one.name}",
            loss=self.loss,
            kept=self.rollouts.kept,
            made=self.rollouts,
        )

    def loss(self, trained: Any, samples: Sequence[Sample]) -> tuple[Tensor, Metrics]:
        """Summed loss and summed metrics. `trained` is the module, or what replicates it."""
        batch = self.module.batch([one.tokens for one in samples])
        said: Said = trained(batch)
        policy = batch.summed(said.logps)  # [C]
        reference = torch.zeros_like(policy)
        known = [one.reference_logps for one in samples if one.reference_logps is not None]
        if known:
            reference = batch.summed(torch.cat(known).to(policy.device))
        algorithm = self.options.algorithm
        if isinstance(algorithm, SppoSection):
            return _self_play(policy - reference, samples, algorithm)
        assert isinstance(algorithm, PairsSection)
        return _pairs(policy, reference, batch, samples, algorithm)


def _self_play(
    logratios: Tensor, samples: Sequence[Sample], algorithm: SppoSection
) -> tuple[Tensor, Metrics]:
    rates = torch.cat([one.win_rates for one in samples if one.win_rates is not None]).to(logratios.device)
    losses = sppo_losses(logratios, rates, beta=algorithm.beta)
    # mean of a prompt's completions, as pairs are
    weights = torch.cat([torch.full((len(one.lengths),), 1 / len(one.lengths)) for one in samples])
    weights = weights.to(losses.device)
    told = {"win_rate_spread": (rates - 0.5).abs(), "logratio": logratios.detach().abs()}
    return (losses * weights).sum(), {name: (one * weights).sum() for name, one in told.items()}


def _pairs(
    policy: Tensor, reference: Tensor, batch: Batch, samples: Sequence[Sample], algorithm: PairsSection
) -> tuple[Tensor, Metrics]:
    lengths = batch.lengths.float()
    starts = torch.tensor([0, *(len(one.lengths) for one in samples)]).cumsum(0).tolist()
    chosen, rejected, others = [], [], []
    margins, weights, other_weights = [], [], []
    for start, one in zip(starts, samples, strict=False):
        for pair in one.pairs:
            chosen.append(start + pair.chosen)
            rejected.append(start + pair.rejected)
            margins.append(pair.margin)
            weights.append(1 / len(one.pairs))
        if algorithm.asks_reference:
            size = len(one.lengths)
            others += range(start + size // 2, start + size)
            other_weights += [2 / size] * (size // 2)
    pair = PairLogps(
        policy[chosen],
        policy[rejected],
        reference[chosen],
        reference[rejected],
        lengths[chosen],
        lengths[rejected],
        label_margins=policy.new_tensor(margins),
    )
    each = policy.new_tensor(weights)
    loss = (pair_loss(pair, algorithm.taught) * each).sum()
    told = {"accuracy": (pair.margins > 0).float(), "margin": pair.margins, "chosen_logps": pair.chosen}
    metrics = {name: (one.detach() * each).sum() for name, one in told.items()}
    if others:
        bonus = (policy[others] * policy.new_tensor(other_weights)).sum()
        loss = loss + algorithm.bonus * bonus
        metrics["reference_samples_logps"] = bonus.detach()
    return loss, metrics
