"""From scores to rewards: where the score lands, the sign of the KL, and the penalties."""

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from prefloop.advantages import Moments
from prefloop.batches import TokenGroup, collate
from prefloop.shaping import (
    by_length,
    clipped,
    constrained,
    kl_rewards,
    mixed_groups,
    next_multiplier,
    normalised,
    overlong,
    rank_scores,
    token_rewards,
    without_terminator,
)

EOS = 0
"""The terminator, and the padding too: the case in which the end is easily lost."""


def test_per_token_rewards_have_the_golden_values():
    """Log-ratios 0.1, -0.2, 0.3, coefficient 0.02, score 1."""
    reference = tensor([-1.0, -2.0, -3.0])
    found = token_rewards(tensor([1.0]), tensor([3])) + kl_rewards(
        reference + tensor([0.1, -0.2, 0.3]), reference, kl_coef=0.02
    )
    assert_close(found, tensor([-0.002, 0.004, 0.994]))


def test_a_token_that_became_likelier_than_under_the_reference_costs_something():
    assert kl_rewards(tensor([-1.0]), tensor([-2.0]), kl_coef=0.1).item() == pytest.approx(-0.1)


def test_the_penalty_in_the_reward_carries_no_gradient():
    logps = tensor([-1.0], requires_grad=True)
    assert not kl_rewards(logps, tensor([-2.0]), kl_coef=0.1).requires_grad


@pytest.mark.parametrize("share", [True, False], ids=["flat", "padded"])
def test_the_score_lands_on_the_terminator_and_for_a_cut_completion_on_its_last_token(share):
    """Padding is the terminator: the score belongs to the first of them, also where rows are padded to one length."""
    groups = [
        TokenGroup((5, 6), ((7, EOS), (7, 8, 9, EOS), (7, 8, 4))),
        TokenGroup((5,), ((EOS,),)),
    ]
    batch = collate(groups, share=share, pad_id=EOS, device=torch.device("cpu"))
    rewards = token_rewards(tensor([1.0, 2.0, 3.0, 4.0]), batch.lengths)
    assert len(rewards) == len(batch.targets)
    at = rewards.nonzero().squeeze(-1)
    assert batch.targets[at].tolist() == [EOS, EOS, 4, EOS]
    assert batch.completion_of[at].tolist() == [0, 1, 2, 3]
    assert rewards[at].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_completions_without_a_terminator_pay_for_it():
    found = without_terminator(tensor([1.0, 1.0]), tensor([True, False]), penalty=2.5)
    assert_close(found, tensor([-1.5, 1.0]))


def test_length_costs_a_fixed_amount_a_token():
    """Sparrow: 40 tokens at 0.01."""
    assert_close(by_length(tensor([1.5]), tensor([40]), penalty=0.01), tensor([1.1]))


def test_the_overlong_penalty_grows_within_the_margin():
    """DAPO: at most 20,480 tokens, the last 4,096 of which are the margin."""
    lengths = tensor([100, 16384, 18432, 20480, 30000])
    found = overlong(torch.zeros(5), lengths, max_length=20480, margin=4096)
    assert_close(found, tensor([0.0, 0.0, -0.5, -1.0, -1.0]))


def test_scores_are_measured_in_deviations_and_cut():
    moments = Moments.of(tensor([1.0, 2.0, 3.0, 6.0]))
    found = normalised(tensor([3.0, 6.0]), moments)
    assert_close(found, tensor([0.0, 1.603567]), rtol=0, atol=1e-6)
    assert clipped(tensor([-9.0, 0.5, 9.0]), limit=1.0).tolist() == [-1.0, 0.5, 1.0]


def test_scores_that_never_varied_are_only_shifted_to_zero():
    assert normalised(tensor([2.0]), Moments.of(tensor([2.0, 2.0]))).tolist() == [0.0]


def test_ranks_become_scores_between_one_and_minus_one():
    """Ranks 1, 2, 2, 3 of four: positions 1, 2.5, 2.5, 4; then a group of two, and one without siblings."""
    found = rank_scores(tensor([1, 2, 2, 3, 2, 1, 1]), tensor([0, 0, 0, 0, 1, 1, 2]))
    assert_close(found, tensor([1.0, 0.0, 0.0, -1.0, -1.0, 1.0, 0.0]))


def test_violations_cost_more_while_they_are_above_the_limit_and_never_pay():
    assert_close(constrained(tensor([1.0]), tensor([0.5]), multiplier=2.0), tensor([0.0]))
    assert next_multiplier(1.0, 0.3, limit=0.1, rate=2.0) == pytest.approx(1.4)
    assert next_multiplier(0.1, 0.0, limit=0.1, rate=2.0) == 0.0


def test_groups_whose_completions_all_score_alike_are_told():
    found = mixed_groups(tensor([1.0, 0.0, 1.0, 1.0, 0.0]), tensor([0, 0, 1, 1, 2]))
    assert found.tolist() == [True, False, False]
