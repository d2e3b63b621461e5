"""Policy-gradient losses: hand values, gradients against autograd of the plain formula, and traps of ragged groups."""

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from prefloop.algorithms import ALGORITHMS, Algorithm, vary
from prefloop.interfaces import InputError
from prefloop.losses import (
    PolicyTokens,
    adapted_kl_coef,
    categorical_kl,
    counted,
    entropy,
    kl_k1,
    kl_k2,
    kl_k3,
    policy_losses,
    policy_ratios,
    ptx_losses,
    token_losses,
    token_weights,
    truncated_weights,
    value_losses,
)

ONE = tensor([1])
PPO_CLIP = {"ratio": "token", "clip": "surrogate", "clip_low": 0.2, "clip_high": 0.2}


def at_ratio(ratio: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities, new and old, of one token that became that many times as likely."""
    return tensor([math.log(ratio) - 1], requires_grad=True), tensor([-1.0])


# --- one token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # better already, far enough
        (0.5, -1.0, 0.8, 0.0),  # worse already, far enough
        (1.5, -1.0, 1.5, 1.5),  # worse to go: the clip does not help
        (0.5, 1.0, -0.5, -0.5),
        (1.1, 1.0, -1.1, -1.1),  # inside
    ],
)
def test_ppo_loss_has_the_golden_values(ratio, advantage, loss, slope):
    """Slopes by hand: d(-ratio · advantage) / d log-probability = -ratio · advantage, 0 where clipped."""
    logps, old = at_ratio(ratio)
    found, ratios, cut = policy_losses(logps, old, tensor([advantage]), ONE, **PPO_CLIP)
    assert_close(found, tensor([loss]))
    assert_close(ratios, tensor([ratio]))
    assert cut.item() == (slope == 0)
    assert_close(torch.autograd.grad(found.sum(), logps)[0], tensor([slope]))


def test_dapo_lets_a_good_token_grow_by_more_than_a_bad_one_may_shrink():
    logps, old = at_ratio(1.25)
    bounds = {"ratio": "token", "clip": "surrogate", "clip_low": 0.2, "clip_high": 0.28}
    found, _, cut = policy_losses(logps, old, tensor([1.0]), ONE, **bounds)
    assert_close(found, tensor([-1.25]))
    assert cut.item() == 0
    logps, old = at_ratio(1.5)
    assert_close(policy_losses(logps, old, tensor([1.0]), ONE, **bounds)[0], tensor([-1.28]))


def test_cispo_keeps_the_gradient_of_a_clipped_token():
    """Weight min(6, 1 + 4), advantage 2, log-probability log 6 - 1: the slope is minus weight times advantage."""
    logps, old = at_ratio(6.0)
    found, _, cut = policy_losses(
        logps, old, tensor([2.0]), ONE, ratio="token", clip="weight", clip_low=None, clip_high=4.0
    )
    assert_close(found, tensor([-10.0 * (math.log(6) - 1)]))
    assert cut.item() == 1
    assert_close(torch.autograd.grad(found.sum(), logps)[0], tensor([-10.0]))


def test_cispo_without_a_lower_bound_leaves_small_weights_as_they_are():
    logps, old = at_ratio(0.01)
    found, _, _ = policy_losses(
        logps, old, tensor([1.0]), ONE, ratio="token", clip="weight", clip_low=None, clip_high=4.0
    )
    assert_close(torch.autograd.grad(found.sum(), logps)[0], tensor([-0.01]))


def test_reinforce_is_the_advantage_times_the_log_probability():
    logps, old = at_ratio(3.0)
    found, _, _ = policy_losses(
        logps, old, tensor([2.0]), ONE, ratio="none", clip="none", clip_low=None, clip_high=None
    )
    assert_close(found, tensor([-2.0 * (math.log(3) - 1)]))


# --- ratios of completions -------------------------------------------------------------------------------------------


def test_ratios_of_completions_are_products_or_geometric_means_over_their_own_tokens():
    """Token ratios 2, 2, 2 and 3, 1/3: products 8 and 1; geometric means 2 and 1."""
    logs = tensor([2.0, 2.0, 2.0, 3.0, 1 / 3]).log()
    lengths, old = tensor([3, 2]), torch.zeros(5)
    assert_close(policy_ratios(logs, old, lengths, ratio="token"), tensor([2.0, 2.0, 2.0, 3.0, 1 / 3]))
    assert_close(policy_ratios(logs, old, lengths, ratio="sequence"), tensor([8.0, 8.0, 8.0, 1.0, 1.0]))
    assert_close(policy_ratios(logs, old, lengths, ratio="sequence_mean"), tensor([2.0, 2.0, 2.0, 1.0, 1.0]))


def test_gspo_clips_a_completion_as_a_whole():
    """Token ratios 1.2 and 1 / 1.2 are far outside 1 ± 0.0004 each, their geometric mean 1 is not."""
    logs = tensor([1.2, 1 / 1.2]).log()
    bounds = {"clip": "surrogate", "clip_low": 3e-4, "clip_high": 4e-4}
    lengths, advantages = tensor([2]), tensor([1.0, 1.0])
    whole = policy_losses(logs, torch.zeros(2), advantages, lengths, ratio="sequence_mean", **bounds)[2]
    each = policy_losses(logs, torch.zeros(2), advantages, lengths, ratio="token", **bounds)[2]
    assert (whole.sum().item(), each.sum().item()) == (0, 1)


def test_a_ratio_that_overflows_has_a_gradient_that_is_a_number():
    """200 tokens, each e times as likely: the product is e^200."""
    logps = torch.zeros(200, requires_grad=True)
    found, _, _ = policy_losses(
        logps, torch.full((200,), -1.0), torch.ones(200), tensor([200]),
        ratio="sequence", clip="surrogate", clip_low=0.2, clip_high=0.2,
    )  # fmt: skip
    assert_close(found, torch.full((200,), -1.2))
    assert torch.autograd.grad(found.sum(), logps)[0].tolist() == [0.0] * 200


# --- the mean of a step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("token", (1 + 3 * 2) / 4),
        ("sequence", (1 + 2) / 2),
        ("sum", (1 + 6) / 2),
        ("constant", (1 + 6) / 8 / 2),
    ],
)
def test_losses_of_ragged_completions_are_averaged_as_the_reduction_says(reduction, expected):
    """One completion of one token with loss 1, one of three tokens with loss 2 each; at most 8 tokens are allowed."""
    lengths, losses = tensor([1, 3]), tensor([1.0, 2.0, 2.0, 2.0])
    weights = token_weights(lengths, reduction=reduction, longest=8)
    assert (losses * weights).sum() / counted(lengths, reduction=reduction) == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["token", "sequence", "sum", "constant"])
def test_the_mean_of_a_step_does_not_depend_on_how_it_is_cut(reduction):
    lengths, losses = tensor([1, 3, 2]), torch.randn(6)

    def part(first: int, last: int, tokens: slice) -> Tensor:
        weights = token_weights(lengths[first:last], reduction=reduction, longest=4)
        return (losses[tokens] * weights).sum()

    whole = part(0, 3, slice(0, 6))
    assert_close(part(0, 1, slice(0, 1)) + part(1, 3, slice(1, 6)), whole)
    halves = [counted(lengths[:1], reduction=reduction), counted(lengths[1:], reduction=reduction)]
    assert sum(halves) == counted(lengths, reduction=reduction)


def test_a_completion_counts_as_one_for_grpo_and_by_its_tokens_for_dapo():
    """Loss -advantage · log-probability a token: the gradient a token gets shows how it was averaged."""
    lengths, advantages = tensor([1, 3]), tensor([1.0, 1.0, 1.0, 1.0])
    slopes = {}
    for name in ("grpo", "dapo", "dr_grpo"):
        row = vary(ALGORITHMS[name], kl="none")
        logps = torch.full((4,), -1.0, requires_grad=True)
        losses = token_losses(PolicyTokens(logps, logps.detach(), advantages, lengths), row).total
        weights = token_weights(lengths, reduction=row.reduction, longest=10)
        mean = (losses * weights).sum() / counted(lengths, reduction=row.reduction)
        slopes[name] = torch.autograd.grad(mean, logps)[0]
    assert_close(slopes["grpo"], -tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]))
    assert_close(slopes["dapo"], torch.full((4,), -1 / 4))
    assert_close(slopes["dr_grpo"], torch.full((4,), -1 / 20))


# --- every row against autograd of its formula -----------------------------------------------------------------------

LENGTHS = [3, 1, 2]
LONGEST = 4


def rollouts() -> PolicyTokens:
    """Random tokens of three completions; ratios on both sides of every clip."""
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        return torch.randn(sum(LENGTHS), generator=generator, dtype=torch.float64)

    old = -drawn().abs() - 0.5
    return PolicyTokens(
        (old + 0.4 * drawn()).requires_grad_(),
        old,
        drawn(),
        tensor(LENGTHS),
        reference_logps=old + 0.3 * drawn(),
        values=drawn().requires_grad_(),
        old_values=drawn(),
        returns=drawn(),
    )


def plain_loss(name: str, given: PolicyTokens) -> Tensor:
    """The paper's objective as it is written there, over padded rows or one completion at a time."""
    sizes = LENGTHS
    logps, old, advantages, reference = (
        one.split(sizes) for one in (given.logps, given.old_logps, given.advantages, given.reference_logps)
    )
    assert given.values is not None and given.old_values is not None and given.returns is not None
    critic_clip = given.old_values + torch.clip(given.values - given.old_values, -0.2, 0.2)
    clipped_critic = (
        torch.max((given.values - given.returns) ** 2, (critic_clip - given.returns) ** 2).mean() / 2
    )
    critic = ((given.values - given.returns) ** 2).mean() / 2
    each = range(len(sizes))

    def surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
        return torch.min(ratio * advantage, torch.clip(ratio, 1 - low, 1 + high) * advantage)

    ratios = [torch.exp(new - before) for new, before in zip(logps, old, strict=True)]
    match name:
        case "ppo" | "ppo_ptx":
            every = torch.cat([surrogate(ratios[i], advantages[i], 0.2, 0.2) for i in each])
            return -every.mean() + 0.1 * clipped_critic
        case "a2c":
            kl = ((given.logps - given.reference_logps) ** 2 / 2).mean()
            return -(given.logps * given.advantages).mean() + critic + kl / 9
        case "trpo":
            return -torch.cat([ratios[i] * advantages[i] for i in each]).mean() + critic
        case "reinforce":
            return -sum((logps[i] * advantages[i]).sum() for i in each) / 3
        case "reinforce_plus_plus":
            return -torch.cat([surrogate(ratios[i], advantages[i], 0.2, 0.2) for i in each]).mean()
        case "reinforce_plus_plus_baseline":
            kl = ((given.logps - given.reference_logps) ** 2 / 2).mean()
            return (
                -torch.cat([surrogate(ratios[i], advantages[i], 0.2, 0.2) for i in each]).mean() + 0.01 * kl
            )
        case "rloo":
            return -sum(ratios[i].prod() * advantages[i][0] for i in each) / 3
        case "grpo":
            kls = [torch.exp(reference[i] - logps[i]) - (reference[i] - logps[i]) - 1 for i in each]
            inner = [surrogate(ratios[i], advantages[i], 0.2, 0.2) - 0.04 * kls[i] for i in each]
            return -sum(one.sum() / len(one) for one in inner) / 3
        case "dr_grpo":
            return -sum(surrogate(ratios[i], advantages[i], 0.2, 0.2).sum() for i in each) / (3 * LONGEST)
        case "dapo":
            return -sum(surrogate(ratios[i], advantages[i], 0.2, 0.28).sum() for i in each) / 6
        case "gspo":
            means = [ratios[i].prod() ** (1 / sizes[i]) for i in each]
            return -sum(surrogate(means[i], advantages[i][0], 3e-4, 4e-4) for i in each) / 3
        case "cispo":
            weights = [torch.clip(one.detach(), max=5.0) for one in ratios]
            return -sum((weights[i] * advantages[i] * logps[i]).sum() for i in each) / 6
    raise AssertionError(f"{name} has no formula here")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_loss_and_gradient_of_every_row_are_those_of_its_formula(name):
    given, row = rollouts(), ALGORITHMS[name]
    if row.ratio.startswith("sequence"):  # such rows have one advantage a completion
        firsts = torch.stack([one[0] for one in given.advantages.split(LENGTHS)])
        given = PolicyTokens(
            given.logps, given.old_logps, firsts.repeat_interleave(given.lengths), given.lengths, given.reference_logps,
            values=given.values, old_values=given.old_values, returns=given.returns,
        )  # fmt: skip
    weights = token_weights(given.lengths, reduction=row.reduction, longest=LONGEST)
    found = (token_losses(given, row).total * weights).sum() / counted(given.lengths, reduction=row.reduction)
    expected = plain_loss(name, given)
    assert_close(found, expected, rtol=1e-6, atol=1e-7)
    inputs = [given.logps] if row.value_coef is None else [given.logps, given.values]
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        assert theirs.abs().max() > 0
        assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


# --- what is added ---------------------------------------------------------------------------------------------------


def test_a_value_that_moved_too_far_is_charged_the_worse_of_two_errors():
    """Old 0, clip 0.2. At 1 the target 2 is missed by 1, and by 1.8 from 0.2; at 1 the target 0 is missed by 1."""
    found = value_losses(tensor([1.0, 1.0]), torch.zeros(2), tensor([2.0, 0.0]), clip=0.2)
    assert_close(found, tensor([1.8**2 / 2, 1 / 2]))
    assert_close(value_losses(tensor([1.0]), torch.zeros(1), tensor([2.0]), clip=None), tensor([0.5]))


def test_samples_of_another_policy_count_by_their_ratio_up_to_a_cap():
    """Probabilities 0.5 against 0.25, 0.25 against 0.5, 0.9 against 0.1."""
    trainer, sampler = tensor([0.5, 0.25, 0.9]).log(), tensor([0.25, 0.5, 0.1]).log()
    assert_close(truncated_weights(trainer, sampler, cap=3.0), tensor([2.0, 0.5, 3.0]))


def test_off_policy_weights_multiply_the_policy_loss_and_not_the_kl():
    given = rollouts()
    row = ALGORITHMS["grpo"]
    plain = token_losses(given, row)
    twice = token_losses(
        PolicyTokens(
            given.logps, given.old_logps, given.advantages, given.lengths, given.reference_logps,
            weights=torch.full((6,), 2.0),
        ),
        row,
    )  # fmt: skip
    assert plain.kl is not None
    assert_close(twice.total - 2 * plain.policy, (0.04 * plain.kl).detach() + 0 * plain.policy)


def test_an_entropy_bonus_lowers_the_loss_of_an_undecided_policy():
    given = rollouts()
    entropies = torch.full((6,), 0.5)
    row = vary(ALGORITHMS["dapo"], entropy_coef=0.01)
    with_bonus = PolicyTokens(
        given.logps, given.old_logps, given.advantages, given.lengths, entropies=entropies
    )
    found = token_losses(with_bonus, row)
    assert_close(found.total, found.policy - 0.005)


def test_pretraining_tokens_are_weighed_by_gamma():
    assert_close(ptx_losses(tensor([-2.0, -1.0]), ptx_coef=27.8).mean(), tensor(41.7))


# --- KL --------------------------------------------------------------------------------------------------------------


def test_entropy_and_kl_of_distributions_have_the_values_of_the_definition():
    """(1/2, 1/2) and (3/4, 1/4): KL = ½ log(2/3) + ½ log 2, entropy log 2."""
    fair, biased = tensor([0.0, 0.0]), tensor([math.log(3.0), 0.0])
    assert_close(entropy(fair), tensor(math.log(2)))
    assert_close(categorical_kl(fair, biased), tensor(0.5 * math.log(2 / 3) + 0.5 * math.log(2)))
    assert_close(categorical_kl(fair, fair + 5.0), tensor(0.0))


def kl_slopes(estimator) -> Tensor:
    """Expected gradient of an estimator as a loss, exactly: all three outcomes, weighed by their probability."""
    logits = tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reference = tensor([0.0, 0.4, -0.1], dtype=torch.float64).log_softmax(-1)
    logps = logits.log_softmax(-1)
    expected = (logps.exp().detach() * estimator(logps, reference)).sum()
    return torch.autograd.grad(expected, logits)[0]


def true_slopes(*, forward: bool) -> Tensor:
    logits = tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reference = tensor([0.0, 0.4, -0.1], dtype=torch.float64).log_softmax(-1)
    logps = logits.log_softmax(-1)
    kl = (reference.exp() * (reference - logps)) if forward else (logps.exp() * (logps - reference))
    return torch.autograd.grad(kl.sum(), logits)[0]


def test_k1_as_a_loss_teaches_nothing_and_k2_is_the_kl_and_k3_is_the_kl_the_other_way_round():
    assert_close(kl_slopes(kl_k1), torch.zeros(3, dtype=torch.float64))
    assert_close(kl_slopes(kl_k2), true_slopes(forward=False))
    assert_close(kl_slopes(kl_k3), true_slopes(forward=True))
    assert not torch.allclose(true_slopes(forward=True), true_slopes(forward=False), atol=0.01)


def test_k1_in_the_reward_gives_the_gradient_of_the_kl():
    """Policy gradient with reward -k1, exactly: Σ p · k1 · ∇ log p."""
    logits = tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reference = tensor([0.0, 0.4, -0.1], dtype=torch.float64).log_softmax(-1)
    logps = logits.log_softmax(-1)
    cost = kl_k1(logps, reference).detach()
    found = torch.autograd.grad((logps.exp().detach() * cost * logps).sum(), logits)[0]
    assert_close(found, true_slopes(forward=False))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (6.6, 0.101), (60.0, 0.102), (5.4, 0.099), (0.0, 0.098)],
)
def test_the_weight_of_the_kl_follows_the_error_up_to_a_fifth(kl, expected):
    """Target 6, gain 0.1: one tenth above is 0.1 · (1 + 0.1 · 0.1)."""
    assert adapted_kl_coef(0.1, kl, target=6.0, gain=0.1) == pytest.approx(expected)


def test_a_controlled_kl_settles_at_its_target():
    """A policy whose KL is 1 / weight: the weight has to become 1 / target."""
    kl_coef = 1.0
    for _ in range(500):
        kl_coef = adapted_kl_coef(kl_coef, 1 / kl_coef, target=6.0, gain=0.1)
    assert kl_coef == pytest.approx(1 / 6, rel=1e-3)


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("grpo", {"gae_lambda": 0.9}, "gae_lambda = 0.9: nothing reads it"),
        ("rloo", {"clip_high": 0.2}, "clip_high = 0.2: nothing reads it"),
        ("dapo", {"kl_coef": 0.1}, "kl_coef = 0.1: nothing reads it"),
        ("dapo", {"kl": "loss_k3"}, "kl_coef: a number is needed"),
        (
            "grpo",
            {"baseline": "critic", "scale": "none", "value_coef": 1.0},
            "gae_lambda: a number is needed",
        ),
        ("ppo", {"scale": "group"}, "scale: group needs a baseline from the group"),
        ("ppo", {"ratio": "none"}, "a clip needs a ratio"),
        ("cispo", {"ratio": "sequence"}, "clip: weight is for the ratios of tokens"),
        ("trpo", {"ptx_coef": 1.0}, "entropy_coef and ptx_coef are 0"),
        ("trpo", {"kl": "loss_k2", "kl_coef": 0.1}, "put the KL into the reward"),
        ("grpo", {"value_coef": 1.0}, "value_coef = 1.0: nothing reads it"),
        ("trpo", {"clip": "surrogate", "clip_low": 0.2, "clip_high": 0.2}, "bounds the step itself"),
    ],
)
def test_columns_that_do_not_fit_are_refused(name, changes, said):
    with pytest.raises(InputError, match=said):
        vary(ALGORITHMS[name], **changes)


def test_numbers_that_lose_their_reader_go_with_it():
    row = vary(ALGORITHMS["ppo"], baseline="group", kl="none")
    assert (row.gae_lambda, row.value_coef, row.value_clip, row.kl_coef) == (None, None, None, None)
    assert row.clip_high == 0.2


def test_every_row_names_its_source():
    assert all("arXiv:" in row.source for row in ALGORITHMS.values())
    assert all(isinstance(row, Algorithm) for row in ALGORITHMS.values())
