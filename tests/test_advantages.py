"""Advantages and returns over flat rows: hand values, papers' properties, and traps of ragged groups."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from prefloop.advantages import (
    Moments,
    advantages_of,
    bootstrap_values,
    completion_returns,
    gae,
    group_stds,
    leave_one_out,
    whitened,
)
from prefloop.algorithms import ALGORITHMS, vary
from prefloop.ragged import discounted_sums, group_means, last_tokens, spread, summed

ONE = tensor([3])
"""A completion of three tokens."""


# --- flat rows -------------------------------------------------------------------------------------------------------


def test_values_of_completions_are_spread_and_summed_over_their_own_tokens():
    lengths = tensor([1, 3, 2])
    assert_close(spread(tensor([5.0, 6.0, 7.0]), lengths), tensor([5.0, 6.0, 6.0, 6.0, 7.0, 7.0]))
    assert_close(summed(tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), lengths), tensor([1.0, 9.0, 11.0]))
    assert last_tokens(lengths).tolist() == [0, 3, 5]


def test_discounted_sums_end_with_their_completion():
    """By hand with discount 1/2: 4 + 2/2 + 8/4 = 7, 2 + 8/2 = 6, 8; then a completion of its own, 16."""
    found = discounted_sums(tensor([4.0, 2.0, 8.0, 16.0]), tensor([3, 1]), discount=0.5)
    assert_close(found, tensor([7.0, 6.0, 8.0, 16.0]))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, 33])
def test_discounted_sums_of_ones_are_geometric_series(length):
    found = discounted_sums(torch.ones(length, dtype=torch.float64), tensor([length]), discount=0.9)
    expected = [(1 - 0.9**left) / 0.1 for left in range(length, 0, -1)]
    assert_close(found, tensor(expected, dtype=torch.float64))


def test_group_means_do_not_mind_the_order_of_completions():
    assert_close(group_means(tensor([1.0, 10.0, 3.0, 20.0]), tensor([0, 1, 0, 1])), tensor([2.0, 15.0]))


# --- with a critic ---------------------------------------------------------------------------------------------------


def test_gae_has_the_golden_values():
    """gamma 1, lambda 0.95: errors 0.1, 0.1, 0.3 are summed backwards to 0.3, 0.385, 0.46575."""
    advantages, returns = gae(
        tensor([0.0, 0.0, 1.0]),
        tensor([0.5, 0.6, 0.7]),
        ONE,
        bootstrap=tensor([0.0]),
        gamma=1.0,
        gae_lambda=0.95,
    )
    assert_close(advantages, tensor([0.46575, 0.385, 0.3]))
    assert_close(returns, tensor([0.96575, 0.985, 1.0]))


def test_gae_discounts_rewards_and_values():
    """gamma 1/2, lambda 1/2, values 2, 4, reward 8 at the end: errors 0.5·4 - 2 = 0 and 8 - 4 = 4; 0 + 4/4 = 1."""
    advantages, returns = gae(
        tensor([0.0, 8.0]),
        tensor([2.0, 4.0]),
        tensor([2]),
        bootstrap=tensor([0.0]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert_close(advantages, tensor([1.0, 4.0]))
    assert_close(returns, tensor([3.0, 8.0]))


def test_gae_with_lambda_one_is_the_return_less_the_value_and_with_lambda_zero_the_temporal_difference():
    rewards, values, lengths = torch.randn(6), torch.randn(6), tensor([2, 4])
    common = {"bootstrap": tensor([0.0, 0.0]), "gamma": 1.0}
    to_the_end, _ = gae(rewards, values, lengths, gae_lambda=1.0, **common)
    assert_close(to_the_end[:2], tensor([rewards[0] + rewards[1] - values[0], rewards[1] - values[1]]))
    one_step, _ = gae(rewards, values, lengths, gae_lambda=0.0, **common)
    assert_close(one_step[2:5], rewards[2:5] + values[3:6] - values[2:5])
    assert_close(one_step[5], rewards[5] - values[5])


def test_values_are_bootstrapped_at_truncation_and_not_behind_a_terminator():
    """The same tokens twice, the critic expecting 2 more: it counts where the completion was cut off only."""
    truncated = tensor([True, False])
    bootstrap = bootstrap_values(tensor([2.0, 2.0]), truncated)
    assert bootstrap.tolist() == [2.0, 0.0]
    rewards, values = tensor([0.0, 1.0, 0.0, 1.0]), tensor([0.5, 0.5, 0.5, 0.5])
    advantages, _ = gae(rewards, values, tensor([2, 2]), bootstrap=bootstrap, gamma=1.0, gae_lambda=1.0)
    assert_close(advantages, tensor([2.5, 2.5, 0.5, 0.5]))


def test_a_completion_does_not_see_the_value_of_the_next_one():
    alone, _ = gae(
        tensor([0.0, 1.0]),
        tensor([0.2, 0.3]),
        tensor([2]),
        bootstrap=tensor([0.0]),
        gamma=1.0,
        gae_lambda=0.9,
    )
    beside, _ = gae(
        tensor([0.0, 1.0, 5.0]),
        tensor([0.2, 0.3, 99.0]),
        tensor([2, 1]),
        bootstrap=tensor([0.0, 0.0]),
        gamma=1.0,
        gae_lambda=0.9,
    )
    assert_close(beside[:2], alone)


# --- whitening -------------------------------------------------------------------------------------------------------


def test_whitening_has_the_golden_values():
    """1, 2, 3, 6: mean 3, standard deviation √3.5."""
    expected = tensor([-1.069045, -0.534522, 0.0, 1.603567])
    assert_close(whitened(tensor([1.0, 2.0, 3.0, 6.0])), expected, rtol=0, atol=1e-6)


def test_whitening_is_over_real_tokens_only_and_each_counts_once():
    """Completions of 1 and 3 tokens; padding them to 3 would add two zeros and change mean and deviation."""
    rewards, lengths = tensor([1.0, 0.0, 0.0, -1.0]), tensor([1, 3])
    found = advantages_of(ALGORITHMS["reinforce_plus_plus"], rewards, lengths, tensor([0, 0])).advantages
    # to go: 1, -1, -1, -1; mean -1/2, variance 3/4
    deviation = math.sqrt(0.75)
    assert_close(found, tensor([1.5, -0.5, -0.5, -0.5]) / deviation)


def test_whitening_equal_values_gives_zeros():
    assert_close(whitened(torch.full((5,), 3.0)), torch.zeros(5))


def test_moments_of_parts_add_up_to_those_of_the_whole():
    values = tensor([1.0, 2.0, 3.0, 6.0])
    parts = Moments() + Moments.of(values[:1]) + Moments.of(values[1:])
    assert (parts.count, parts.mean) == (4, 3.0)
    assert parts.std == pytest.approx(math.sqrt(3.5))
    assert Moments.of(values).std == pytest.approx(math.sqrt(3.5))


def test_whitening_with_the_moments_of_all_processes_is_that_of_the_whole():
    values = tensor([1.0, 2.0, 3.0, 6.0])
    together = Moments.of(values[:2]) + Moments.of(values[2:])
    assert_close(whitened(values[:2], together), whitened(values)[:2])


# --- group baselines -------------------------------------------------------------------------------------------------

SCORES = tensor([1.0, 2.0, 6.0, 5.0, 5.0])
"""Two groups: of three completions and of two."""
GROUPS = tensor([0, 0, 0, 1, 1])
LENGTHS = tensor([1, 1, 1, 1, 1])


def of_row(name: str, **more) -> torch.Tensor:
    return advantages_of(ALGORITHMS[name], SCORES, LENGTHS, GROUPS, **more).advantages


def test_grpo_divides_by_the_unbiased_deviation_of_the_group():
    """Mean 3, squares 4 + 1 + 9, deviation √7; equal scores are worth nothing."""
    expected = tensor([-2.0, -1.0, 3.0, 0.0, 0.0]) / (math.sqrt(7) + 1e-4)
    assert_close(of_row("grpo"), expected)


def test_dr_grpo_only_subtracts_the_mean():
    assert_close(of_row("dr_grpo"), tensor([-2.0, -1.0, 3.0, 0.0, 0.0]))


def test_rloo_subtracts_the_mean_of_the_others():
    """1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2."""
    assert_close(of_row("rloo"), tensor([-3.0, -1.5, 4.5, 0.0, 0.0]))


def test_reinforce_subtracts_the_mean_of_all_that_came_before():
    assert_close(of_row("reinforce", earlier=Moments()), SCORES)
    earlier = Moments.of(tensor([1.0, 3.0]))
    assert_close(of_row("reinforce", earlier=earlier), tensor([-1.0, 0.0, 4.0, 3.0, 3.0]))


def test_reinforce_plus_plus_with_baseline_whitens_what_is_left_of_the_group():
    """-2, -1, 3, 0, 0: mean 0, variance 14 / 5."""
    expected = tensor([-2.0, -1.0, 3.0, 0.0, 0.0]) / math.sqrt(14 / 5)
    assert_close(of_row("reinforce_plus_plus_baseline"), expected)


def test_completions_are_weighed_alike_in_a_baseline_whatever_their_length():
    """Scores 0 and 1, the second completion three tokens long: the mean is 1/2, not 3/4."""
    rewards, lengths = tensor([0.0, 0.0, 0.0, 1.0]), tensor([1, 3])
    found = advantages_of(ALGORITHMS["dr_grpo"], rewards, lengths, tensor([0, 0])).advantages
    assert_close(found, tensor([-0.5, 0.5, 0.5, 0.5]))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_completion_without_siblings_teaches_a_group_baseline_nothing(name):
    found = advantages_of(ALGORITHMS[name], tensor([2.0]), tensor([1]), tensor([0])).advantages
    assert_close(found, tensor([0.0]))


def test_rounding_of_equal_scores_is_not_blown_up():
    scores = torch.full((3,), 0.1)
    found = advantages_of(ALGORITHMS["grpo"], scores, tensor([1, 1, 1]), tensor([0, 0, 0])).advantages
    assert found.abs().max() < 1e-3


@pytest.mark.parametrize("name", ["reinforce_plus_plus_baseline", "rloo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("size", [3, 5, 6, 7])
def test_a_batch_of_groups_that_score_alike_teaches_nothing(name, size):
    scores = torch.tensor([0.1, 0.7, 1 / 3, 5.3, -2.9]).repeat_interleave(size)
    group_of = torch.arange(5).repeat_interleave(size)
    lengths = torch.ones(5 * size, dtype=torch.int64)
    found = advantages_of(ALGORITHMS[name], scores, lengths, group_of)
    assert found.advantages.tolist() == [0.0] * (5 * size)


def test_leave_one_out_baselines_do_not_know_the_order_of_groups():
    shuffled = leave_one_out(tensor([5.0, 1.0, 5.0, 6.0, 2.0]), tensor([1, 0, 1, 0, 0]))
    assert_close(shuffled, tensor([0.0, -3.0, 0.0, 4.5, -1.5]))


def test_group_deviations_equal_those_of_torch():
    assert_close(group_stds(SCORES, GROUPS), torch.stack([SCORES[:3].std(), SCORES[3:].std()]))


def test_rewards_of_all_tokens_are_what_a_completion_earned():
    """With the KL in the reward, it is part of what groups compare."""
    rewards, lengths = tensor([-0.1, 1.0, -0.2, -0.2, 1.0]), tensor([2, 3])
    assert_close(completion_returns(rewards, lengths, gamma=1.0), tensor([0.9, 0.6]))
    row = vary(ALGORITHMS["dr_grpo"], kl="reward_k1", kl_coef=0.1)
    found = advantages_of(row, rewards, lengths, tensor([0, 0])).advantages
    assert_close(found, tensor([0.15, 0.15, -0.15, -0.15, -0.15]))


def test_ppo_has_whitened_advantages_and_returns_that_are_not():
    found = advantages_of(
        ALGORITHMS["ppo"],
        tensor([0.0, 0.0, 1.0]),
        ONE,
        tensor([0]),
        values=tensor([0.5, 0.6, 0.7]),
        bootstrap=tensor([0.0]),
    )
    raw = [0.46575, 0.385, 0.3]
    mean = sum(raw) / 3
    deviation = math.sqrt(sum((one - mean) ** 2 for one in raw) / 3)
    assert_close(found.advantages, tensor([(one - mean) / deviation for one in raw]))
    assert_close(found.returns, tensor([0.96575, 0.985, 1.0]))
