"""Losses on scores: reward models from pairs, rankings and rules, and what their scores mean as probabilities.

Scores are logits of a Bradley-Terry model. G groups (prompts) of K completions; masks are 1 where there is a completion.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

ELO_PER_LOGIT = 400 / math.log(10)
"""A lead of 400 Elo points is odds of 10 to 1."""


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, p_chosen: Tensor, margin: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the Bradley-Terry model with soft labels: scores [B] and P(chosen is better) [B] to losses [B].

    With p_chosen = 1 it is Eq. 1 of arXiv:2203.02155 for one pair; log 2 at equal scores. `margin` [B] is what the chosen
    score must lead by, larger where the label is more certain (Llama 2, Eq. 2 of arXiv:2307.09288).
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    return -p_chosen * functional.logsigmoid(difference) - (1 - p_chosen) * functional.logsigmoid(-difference)


def margin_ranking_loss(chosen: Tensor, rejected: Tensor, *, margin: float) -> Tensor:
    """What the chosen score lacks to lead by `margin`, [B]."""
    return torch.relu(margin - (chosen - rejected))


def k_way_loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Eq. 1 of arXiv:2203.02155: Bradley-Terry averaged over the pairs of a prompt, scores [G, K] to losses [G].

    Ranks [G, K] begin with 1, the best; tied pairs do not count, and a prompt without an untied pair has loss 0.
    """
    real = scores.masked_fill(mask == 0, 0.0)
    leads = real.unsqueeze(2) - real.unsqueeze(1)  # [G, K, K], first index minus second
    return -(pair_weights(ranks, mask) * functional.logsigmoid(leads)).sum((1, 2))


def pair_weights(ranks: Tensor, mask: Tensor) -> Tensor:
    """Weights [G, K, K] of all ordered pairs: 1 / (untied pairs of the prompt) where the first is ranked better, else 0."""
    better = _better(ranks, mask)
    return better / better.sum((1, 2), keepdim=True).clamp(min=1)


def plackett_luce_loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of a ranking, drawn best first in proportion to e^score: scores [G, K] to losses [G].

    Ranks [G, K] begin with 1, the best. Tied completions are drawn against those ranked worse, never against each other:
    a tie says nothing, and a group that is one tie has loss 0.
    """
    real = scores.masked_fill(mask == 0, 0.0)
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    # [G, K, K]: what is still there when the first index is drawn
    rivals = _better(ranks, mask).bool() | itself
    rest = real.unsqueeze(1).masked_fill(~rivals, -torch.inf).logsumexp(2)  # [G, K]
    return (rest - real).sum(1)


def _better(ranks: Tensor, mask: Tensor) -> Tensor:
    """1 where the first index is ranked better than the second and both are real, float [G, K, K]."""
    real = mask.bool()
    first_is_better = ranks.unsqueeze(2) < ranks.unsqueeze(1)
    return (first_is_better & real.unsqueeze(2) & real.unsqueeze(1)).float()


def sparrow_preference_loss(
    scores: Tensor,
    chosen: Tensor,
    option_mask: Tensor,
    random_mask: Tensor,
    *,
    cross_entropy_weight: float,
    bradley_terry_weight: float,
    centring_weight: float,
    bad_score: float,
) -> Tensor:
    """Sparrow's preference loss (arXiv:2209.14375), scores of K statements a turn [G, K] to losses [G].

    Statements are the turn's options and random ones of other dialogues, each marked in its mask. `chosen` [G] is the
    index of the best option, or -1 for "all are bad": then a fixed `bad_score` wins over every statement. The loss is the
    cross-entropy of the choice among all statements, Bradley-Terry summed over the other options, and centring.
    """
    everything = option_mask.bool() | random_mask.bool()
    real = scores.masked_fill(~everything, 0.0)
    all_bad = chosen < 0
    picked = real.gather(1, chosen.clamp(min=0).unsqueeze(1)).squeeze(1)
    best = torch.where(all_bad, bad_score, picked).unsqueeze(1)  # [G, 1]
    places = torch.arange(scores.shape[1], device=scores.device)
    losing = places != chosen.unsqueeze(1)  # [G, K]
    against = real.masked_fill(~(everything & losing), -torch.inf)
    cross_entropy = torch.cat([best, against], 1).logsumexp(1) - best.squeeze(1)
    bradley_terry = -(functional.logsigmoid(best - real) * (option_mask.bool() & losing)).sum(1)
    return (
        cross_entropy_weight * cross_entropy
        + bradley_terry_weight * bradley_terry
        + centring_weight * centring_loss(scores, everything)
    )


def centring_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """Squared mean score of a group, [G, K] to [G]; keeps scores around 0."""
    real = scores.masked_fill(mask == 0, 0.0)
    return (real.sum(1) / mask.sum(1).clamp(min=1)) ** 2


def rule_loss(logits: Tensor, violated: Tensor) -> Tensor:
    """Cross-entropy of P(rule violated) = σ(logits) with the verdicts, 1 or 0, [B]."""
    return functional.binary_cross_entropy_with_logits(logits, violated, reduction="none")


def llama2_combined_score(
    helpfulness: Tensor, safety: Tensor, safety_tagged: Tensor, *, threshold: float = 0.15
) -> Tensor:
    """The score that RL optimises in section 3.2.3 of arXiv:2307.09288, before whitening, [B].

    The safety score where the prompt is tagged as a safety prompt or P(safe) is below the threshold, else helpfulness.
    """
    return torch.where(safety_tagged.bool() | (safety.sigmoid() < threshold), safety, helpfulness)


def elo_difference(score_difference: Tensor) -> Tensor:
    """A difference of scores in Elo points."""
    return score_difference * ELO_PER_LOGIT


def elo_probability(elo: Tensor) -> Tensor:
    """Probability of winning with a lead of that many Elo points."""
    return (elo / ELO_PER_LOGIT).sigmoid()
