"""Losses of scalar reward models: from one score a completion of a microbatch to one weighted sum.

G groups (prompts), K completions of the largest, C completions in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefloop.batches import TokenGroup
from prefloop.config import (
    BradleyTerryReward,
    MarginRankingReward,
    PlackettLuceReward,
    SparrowReward,
)
from prefloop.losses import (
    bradley_terry_loss,
    centring_loss,
    margin_ranking_loss,
    plackett_luce_loss,
    sparrow_preference_loss,
)
from prefloop.train.groups import PairGroup, index_pairs, ranks
from prefloop.train.loop import Metrics

PairwiseObjective = BradleyTerryReward | MarginRankingReward


@dataclass(frozen=True)
class ChoiceGroup:
    """The options of a turn, then random statements of other dialogues, and which option was chosen."""

    tokens: TokenGroup
    num_options: int
    chosen: int
    """Number of the chosen option; -1 where all were found bad."""
    name: str
    random_ids: tuple[str, ...] = ()
    """Completion ids of the random statements."""
    weight: float = 1.0


ScoredGroup = TypeVar("ScoredGroup", PairGroup, ChoiceGroup)


def pairs_loss(
    scores: Tensor, groups: Sequence[PairGroup], objective: PairwiseObjective
) -> tuple[Tensor, Metrics]:
    """Bradley-Terry or hinge loss of all pairs, from scores [C]. Margins of the pairs are what the lead is asked to be."""
    index = index_pairs(groups, scores.device)
    chosen, rejected = scores[index.chosen], scores[index.rejected]
    if objective.kind == "bradley_terry":
        losses = bradley_terry_loss(chosen, rejected, index.p_chosen, index.margins)
    else:
        right = margin_ranking_loss(chosen, rejected, margin=objective.margin)
        wrong = margin_ranking_loss(rejected, chosen, margin=objective.margin)
        losses = index.p_chosen * right + (1 - index.p_chosen) * wrong
    loss = (losses * index.weights).sum() + centring(scores, groups, objective.centring_weight)
    return loss, pair_metrics(scores, groups)


def ranking_loss(
    scores: Tensor, groups: Sequence[PairGroup], objective: PlackettLuceReward
) -> tuple[Tensor, Metrics]:
    """Plackett-Luce loss of each prompt's ranking, from scores [C]."""
    padded, mask = by_group(scores, groups)  # [G, K]
    order = pad_sequence([torch.tensor(ranks(one)) for one in groups], batch_first=True).to(scores.device)
    losses = plackett_luce_loss(padded, order, mask)
    loss = (losses * weights_of(groups, scores)).sum() + centring(scores, groups, objective.centring_weight)
    return loss, pair_metrics(scores, groups)


def choice_loss(
    scores: Tensor, groups: Sequence[ChoiceGroup], objective: SparrowReward
) -> tuple[Tensor, Metrics]:
    """Sparrow's preference loss of each turn, from scores [C]."""
    padded, mask = by_group(scores, groups)  # [G, K]
    places = torch.arange(padded.shape[1], device=scores.device)
    num_options = torch.tensor([[one.num_options] for one in groups], device=scores.device)
    options = (places < num_options).float()
    chosen = torch.tensor([one.chosen for one in groups], device=scores.device)
    losses = sparrow_preference_loss(
        padded,
        chosen,
        options,
        mask - options,
        cross_entropy_weight=objective.cross_entropy_weight,
        bradley_terry_weight=objective.bradley_terry_weight,
        centring_weight=objective.centring_weight,
        bad_score=objective.bad_score,
    )
    best = padded.masked_fill(options == 0, -torch.inf)
    right = torch.where(chosen < 0, best.amax(1) < objective.bad_score, best.argmax(1) == chosen)
    weights = weights_of(groups, scores)
    return (losses * weights).sum(), {"accuracy": (right.float() * weights).sum()}


def pair_metrics(scores: Tensor, groups: Sequence[PairGroup]) -> Metrics:
    """Weighted sums of what reward training watches."""
    index = index_pairs(groups, scores.device)
    leads = (scores[index.chosen] - scores[index.rejected]).detach()
    values = {"accuracy": (leads > 0).float(), "margin": leads}
    return {name: (value * index.weights).sum() for name, value in values.items()}


def centring(scores: Tensor, groups: Sequence[PairGroup], weight: float) -> Tensor:
    """Weighted sum of the squared mean scores of the groups."""
    if not weight:
        return scores.new_zeros(())
    padded, mask = by_group(scores, groups)
    return weight * (centring_loss(padded, mask) * weights_of(groups, scores)).sum()


def by_group(scores: Tensor, groups: Sequence[ScoredGroup]) -> tuple[Tensor, Tensor]:
    """Scores [C] as a row for each group, padded with 0, and a mask of what is real, both [G, K]."""
    parts = scores.split([len(one.tokens.completions) for one in groups])
    padded = pad_sequence(list(parts), batch_first=True)
    return padded, pad_sequence([torch.ones_like(one) for one in parts], batch_first=True)


def weights_of(groups: Sequence[ScoredGroup], like: Tensor) -> Tensor:
    """How much each group counts, [G]."""
    return torch.tensor([one.weight for one in groups], device=like.device)
