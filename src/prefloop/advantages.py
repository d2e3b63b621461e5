"""From rewards to advantages: how much better a token or a completion did than was to be expected.

Flat rows as `ragged.py` has them. What is whitened or grouped must be handed over whole: a rollout batch, not a microbatch.
Knows nothing about models or losses; what a reward is made of is in `shaping.py`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prefloop.algorithms import Algorithm
from prefloop.ragged import discounted_sums, group_means, group_sizes, last_tokens, spread

GROUP_EPSILON = 1e-4
"""Added to a group's standard deviation, as in TRL: rounding of equal scores must not count."""
WHITENING_EPSILON = 1e-8
"""Added to the standard deviation of a batch."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared distances from the mean; those of two batches add up to those of both together."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """The moments of all values."""
        if not values.numel():
            return cls()
        mean = values.double().mean()
        return cls(values.numel(), float(mean), float((values.double() - mean).square().sum()))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * other.count / count,
            self.squares + other.squares + apart**2 * self.count * other.count / count,
        )

    @property
    def std(self) -> float:
        """Standard deviation, that of the values themselves and not of what they are drawn from; 0 for none."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


class Advantages(NamedTuple):
    """What the losses read, [t] each."""

    advantages: Tensor
    returns: Tensor | None
    """What the critic should have said; None without a critic."""


def advantages_of(
    algorithm: Algorithm,
    rewards: Tensor,
    lengths: Tensor,
    group_of: Tensor,
    *,
    values: Tensor | None = None,
    bootstrap: Tensor | None = None,
    earlier: Moments | None = None,
) -> Advantages:
    """The advantages that a row of the table asks for, from rewards [t] of a rollout batch.

    With a critic: `values` [t] of the states before each token and `bootstrap` [C], see `gae`. With a running baseline:
    `earlier`, the moments of `completion_returns` of all batches before this one.
    """
    returns = None
    if algorithm.baseline == "critic":
        assert values is not None and bootstrap is not None, "a critic's row comes with its values"
        assert algorithm.gae_lambda is not None
        found, returns = gae(
            rewards,
            values,
            lengths,
            bootstrap=bootstrap,
            gamma=algorithm.gamma,
            gae_lambda=algorithm.gae_lambda,
        )
    elif algorithm.baseline == "none":
        found = discounted_sums(rewards, lengths, discount=algorithm.gamma)
    else:
        totals = completion_returns(rewards, lengths, gamma=algorithm.gamma)
        found = spread(_completion_advantages(algorithm, totals, group_of, earlier), lengths)
    return Advantages(whitened(found) if algorithm.scale == "batch" else found, returns)


def completion_returns(rewards: Tensor, lengths: Tensor, *, gamma: float) -> Tensor:
    """What each completion earned, [C], from rewards [t]; a running baseline is the mean of these."""
    return discounted_sums(rewards, lengths, discount=gamma)[last_tokens(lengths) + 1 - lengths]


def _completion_advantages(
    algorithm: Algorithm, totals: Tensor, group_of: Tensor, earlier: Moments | None
) -> Tensor:
    """Advantages [C] of whole completions, from their returns [C]."""
    match algorithm.baseline:
        case "group":
            found = totals - group_means(totals, group_of)[group_of]
        case "leave_one_out":
            found = leave_one_out(totals, group_of)
        case _:
            assert earlier is not None, "a running baseline needs what came before"
            found = totals - earlier.mean
    if algorithm.scale == "group":
        found = found / (group_stds(totals, group_of) + GROUP_EPSILON)[group_of]
    return found


# --- with a critic ---------------------------------------------------------------------------------------------------


def gae(
    rewards: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    bootstrap: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns, Eq. 16 of arXiv:1506.02438: rewards and values [t] to [t] and [t].

    `values` are the critic's before each token, `bootstrap` [C] what it expects after the last one: 0 behind a terminator,
    see `bootstrap_values`. Returns are advantages + values, the critic's targets (λ-returns).
    """
    ends = last_tokens(lengths)
    following = torch.cat([values[1:], values.new_zeros(1)]).index_copy(0, ends, bootstrap)
    errors = rewards + gamma * following - values
    advantages = discounted_sums(errors, lengths, discount=gamma * gae_lambda)
    return advantages, advantages + values


def bootstrap_values(values_after: Tensor, truncated: Tensor) -> Tensor:
    """What is still to come after the last token, [C]: nothing where it is a terminator, else what the critic expects.

    Only for completions whose score leaves out what was cut off. A score of the text as it stands, cut or not, is final:
    then nothing is truncated.
    """
    return values_after.where(truncated, torch.zeros_like(values_after))


# --- with other completions ------------------------------------------------------------------------------------------


def leave_one_out(totals: Tensor, group_of: Tensor) -> Tensor:
    """Returns less the mean of the group's other completions, RLOO, arXiv:2402.14740: [C] to [C].

    That is the distance from the mean of all times n / (n - 1); 0 for a completion without siblings.
    """
    sizes = group_sizes(group_of)[group_of]
    distances = totals - group_means(totals, group_of)[group_of]
    return distances * sizes / (sizes - 1).clamp(min=1)


def win_rates(scores: Tensor) -> Tensor:
    """How often each completion of a group beats another of it, itself at 1/2, [C] to [C]: SPPO's estimate of how often it
    beats the policy, arXiv:2405.00675, with Bradley-Terry's σ(difference of scores) as the preference.
    """
    return (scores[:, None] - scores[None]).sigmoid().mean(1)


def group_stds(totals: Tensor, group_of: Tensor) -> Tensor:
    """Unbiased standard deviation of each group, [C] to [G]; 0 for a completion without siblings."""
    sizes = group_sizes(group_of)
    squares = (totals - group_means(totals, group_of)[group_of]).square()
    return (group_means(squares, group_of) * sizes / (sizes - 1).clamp(min=1)).sqrt()


def whitened(values: Tensor, moments: Moments | None = None) -> Tensor:
    """Values shifted and scaled to mean 0 and standard deviation 1, of any shape.

    `moments` are those of all processes' values, where these are not all.
    """
    found = Moments.of(values) if moments is None else moments
    return (values - found.mean) / (found.std + WHITENING_EPSILON)
