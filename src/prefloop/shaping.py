"""From scores to rewards: what an annotator said of a completion becomes what reinforcement learning optimises.

Scores are [C], one a completion; rewards are [t], one a token, in flat rows as `ragged.py` has them. Each rule is a
function; the caller decides which to use, and in which order.
"""

import torch
from torch import Tensor

from prefloop.advantages import Moments
from prefloop.losses.kl import kl_k1
from prefloop.ragged import group_means, group_sizes, last_tokens

STD_FLOOR = 1e-8
"""Least standard deviation that scores are divided by."""


def normalised(scores: Tensor, moments: Moments) -> Tensor:
    """Scores in standard deviations from the mean, of a reference set or of all scores so far."""
    return (scores - moments.mean) / max(moments.std, STD_FLOOR)


def clipped(scores: Tensor, *, limit: float) -> Tensor:
    """Scores, none further from 0 than `limit`."""
    return scores.clamp(-limit, limit)


def without_terminator(scores: Tensor, truncated: Tensor, *, penalty: float) -> Tensor:
    """Scores less a penalty for completions that were cut off before their terminator."""
    return scores - penalty * truncated.to(scores.dtype)


def by_length(scores: Tensor, lengths: Tensor, *, penalty: float) -> Tensor:
    """Scores less a penalty a token, as in Sparrow's reward (arXiv:2209.14375)."""
    return scores - penalty * lengths


def overlong(scores: Tensor, lengths: Tensor, *, max_length: int, margin: int) -> Tensor:
    """DAPO's soft punishment, Eq. 13 of arXiv:2503.14476: -1 for the longest allowed, less in proportion within the margin
    before it (4,096 of 20,480 tokens in the paper)."""
    beyond = (lengths - (max_length - margin)).clamp(min=0)
    return scores - (beyond / margin).clamp(max=1)


def rank_scores(ranks: Tensor, group_of: Tensor) -> Tensor:
    """Scores between 1 for the best and -1 for the worst, from ranks [C] within groups, 1 the best and ties allowed.

    (K + 1 - 2 position) / (K - 1), where tied completions share the mean of their positions; 0 for one without siblings.
    """
    same = group_of.unsqueeze(1) == group_of
    better = ((ranks.unsqueeze(1) > ranks) & same).sum(1)
    tied = ((ranks.unsqueeze(1) == ranks) & same).sum(1)
    positions = better + (tied + 1) / 2  # [C], from 1
    sizes = group_sizes(group_of)[group_of]
    return (sizes + 1 - 2 * positions) / (sizes - 1).clamp(min=1)


def constrained(scores: Tensor, violations: Tensor, *, multiplier: float) -> Tensor:
    """Scores less what violations cost at present: the Lagrangian of "the best score, at most so many violations"."""
    return scores - multiplier * violations


def next_multiplier(multiplier: float, violation: float, *, limit: float, rate: float) -> float:
    """What violations cost in the next batch: more where this batch's mean was above the limit, never less than nothing."""
    return max(0.0, multiplier + rate * (violation - limit))


def token_rewards(scores: Tensor, lengths: Tensor) -> Tensor:
    """Rewards [t] that are 0 but for the score, at the last token of each completion: its terminator if it has one."""
    rewards = scores.new_zeros(int(lengths.sum()))
    return rewards.index_copy(0, last_tokens(lengths), scores)


def kl_rewards(old_logps: Tensor, reference_logps: Tensor, *, kl_coef: float) -> Tensor:
    """What each token [t] costs for leaving the reference, -kl_coef (log policy - log reference) of the sampling policy.

    Added to `token_rewards`, it is R(x, y) of section 2.3 of arXiv:1909.08593. k1 is the estimator that belongs here:
    its own gradient vanishes on average, so what is left of the policy gradient is that of KL(policy ‖ reference).
    """
    return -kl_coef * kl_k1(old_logps, reference_logps).detach()


def mixed_groups(scores: Tensor, group_of: Tensor) -> Tensor:
    """Whether a group's scores differ, [G]: DAPO's dynamic sampling (Eq. 11 of arXiv:2503.14476) keeps these only."""
    lowest = torch.full_like(group_means(scores, group_of), torch.inf).scatter_reduce(
        0, group_of, scores, "amin"
    )
    highest = torch.full_like(lowest, -torch.inf).scatter_reduce(0, group_of, scores, "amax")
    return highest > lowest
