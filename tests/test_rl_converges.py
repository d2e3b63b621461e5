"""Every algorithm finds the optimum that theory promises, on games whose policies are tables.

With weight β of the KL in the reward, the optimum is π0 exp(r / β) / Z for every row of the table; without, it is the best
completion. `docs/draw_rl.py` draws the way there.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from games import LEARNING_RATE, LIMIT, SAMPLES, STEPS, Game, Training, bandit, distance, epochs_of, tree
from prefloop.advantages import win_rates
from prefloop.algorithms import ALGORITHMS, vary
from prefloop.losses import PairLogps, soft_rev_kl_loss, sppo_losses
from prefloop.ragged import summed

BETA = 0.5
TOLERANCE = 0.012
"""Largest total variation distance from the optimum."""


@pytest.mark.parametrize("name", ALGORITHMS)
def test_with_the_kl_in_the_reward_every_row_reaches_the_regularised_optimum(name):
    game = tree()
    row = vary(ALGORITHMS[name], kl="reward_k1", kl_coef=BETA)
    optimum = game.regularised(BETA)
    assert distance(game.probabilities(game.start).numpy(), optimum) > 0.1
    assert distance(Training(game, row, epochs_of(row)).run(), optimum) < TOLERANCE


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_a_kl_every_row_finds_the_best_completion(name):
    game = tree()
    row = vary(ALGORITHMS[name], kl="none")
    found = Training(game, row, epochs_of(row)).run()
    assert found[int(game.scores.argmax())] > 0.95


# --- the KL in the loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dr_grpo", "rloo", "a2c", "cispo"])
def test_k2_in_the_loss_reaches_the_same_optimum_where_advantages_are_not_scaled(name):
    game = bandit()
    row = vary(ALGORITHMS[name], scale="none", kl="loss_k2", kl_coef=BETA)
    assert distance(Training(game, row, epochs_of(row)).run(), game.regularised(BETA)) < TOLERANCE


def scaled(game: Game, found: np.ndarray, weight: float) -> float:
    """The KL's weight in units of the scores, when advantages are divided by their deviation under the policy found."""
    scores = game.scores.numpy()
    return weight * float(np.sqrt(found @ (scores - found @ scores) ** 2))


@pytest.mark.parametrize("name", ["grpo", "reinforce_plus_plus_baseline"])
def test_with_k2_in_the_loss_scaling_advantages_scales_the_weight_of_the_kl(name):
    """The optimum is that of the weight times the deviation of the scores under the optimum itself."""
    game = bandit()
    found = Training(game, vary(ALGORITHMS[name], kl="loss_k2", kl_coef=2.0), 2).run()
    assert distance(found, game.regularised(scaled(game, found, 2.0))) < TOLERANCE
    assert distance(found, game.regularised(2.0)) > 5 * TOLERANCE


def test_a_scaled_policy_that_becomes_sure_outgrows_the_kl_in_its_loss():
    """b = β · deviation of the scores under π0 exp(r / b) / Z has no solution for β = 1/2 here: as the policy becomes sure,
    the deviation vanishes, and the weight with it. With advantages as they are the same β holds it."""
    game = bandit()
    found = Training(game, vary(ALGORITHMS["grpo"], kl="loss_k2", kl_coef=BETA), 2).run()
    assert all(scaled(game, game.regularised(b), BETA) < b for b in np.linspace(0.02, 2, 500))
    assert found[0] > 0.99
    assert game.regularised(BETA)[0] < 0.7


def forward_optimum(game: Game, beta: float) -> np.ndarray:
    """The best policy when KL(reference ‖ policy) is charged: β π0 / (λ - r), λ by bisection so that it sums to 1."""
    reference, scores = game.probabilities(game.start).numpy(), game.scores.numpy()
    low, high = scores.max() + 1e-9, scores.max() + beta
    for _ in range(100):
        middle = (low + high) / 2
        if (beta * reference / (middle - scores)).sum() > 1:
            low = middle
        else:
            high = middle
    return beta * reference / (high - scores)


def test_k3_in_the_loss_reaches_the_optimum_of_the_kl_the_other_way_round():
    game = bandit()
    found = Training(game, vary(ALGORITHMS["dr_grpo"], kl="loss_k3", kl_coef=BETA), 2).run()
    assert distance(found, forward_optimum(game, BETA)) < TOLERANCE
    assert distance(found, game.regularised(BETA)) > 2 * TOLERANCE


def test_grpo_as_published_reaches_that_optimum_with_a_scaled_weight():
    game = bandit()
    found = Training(game, vary(ALGORITHMS["grpo"], kl_coef=2.0), 2).run()
    assert distance(found, forward_optimum(game, scaled(game, found, 2.0))) < TOLERANCE
    assert found[0] < 0.9


# --- further terms ---------------------------------------------------------------------------------------------------


def test_an_entropy_bonus_leads_to_a_softmax_of_the_scores():
    game = bandit()
    row = vary(ALGORITHMS["dr_grpo"], entropy_coef=0.25)
    # the constant of Dr. GRPO divides the whole loss, so that weights among its terms stay as they are
    expected = np.exp(game.scores.numpy() / 0.25)
    assert distance(Training(game, row, 2).run(), expected / expected.sum()) < TOLERANCE


def test_pretraining_tokens_pull_the_policy_to_where_all_gradients_cancel():
    """p (R - mean R) + γ (d - p) = 0 for every arm, R the reward with its KL and d the pretraining distribution."""
    game = bandit()
    data = torch.tensor([0.1, 0.1, 0.7, 0.1])
    row = vary(ALGORITHMS["ppo_ptx"], scale="none", kl_coef=BETA, ptx_coef=0.3)
    found = Training(game, row, 2, pretraining=data).run()
    rewards = game.scores.numpy() - BETA * np.log(found / game.probabilities(game.start).numpy())
    forces = found * (rewards - found @ rewards) + 0.3 * (data.numpy() - found)
    assert np.abs(forces).max() < 0.01
    assert found[2] > game.regularised(BETA)[2] + 0.1


def test_off_policy_weights_keep_the_optimum_when_samples_are_of_an_older_policy():
    """The sampler is the reference throughout; without weights another policy would come out."""
    game = bandit()
    row = vary(ALGORITHMS["reinforce"], kl="none", entropy_coef=BETA)
    optimum = np.exp(game.scores.numpy() / BETA)
    optimum /= optimum.sum()

    def trained(*, corrected: bool) -> np.ndarray:
        training = Training(game, row)
        for _ in range(STEPS):
            tokens, states = training.rollouts(game.start)
            training.learn(tokens if corrected else replace(tokens, weights=None), states)
        return game.probabilities(training.logits).numpy()

    assert distance(trained(corrected=True), optimum) < TOLERANCE
    assert distance(trained(corrected=False), optimum) > 5 * TOLERANCE


def test_a_limit_on_violations_is_met_at_the_least_cost():
    """π0 exp((r - λ c) / β) / Z with λ such that the mean violation is the limit, found by bisection."""
    game = bandit()
    violations = torch.tensor([0.6, 0.1, 0.0, 0.3])
    cost = violations.numpy()

    def optimum(multiplier: float) -> np.ndarray:
        weights = game.regularised(BETA) * np.exp(-multiplier * cost / BETA)
        return weights / weights.sum()

    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if optimum(middle) @ cost > LIMIT else (low, middle)
    row = vary(ALGORITHMS["rloo"], kl_coef=BETA)
    # price and policy follow each other around the optimum, so that it takes longer
    training = Training(game, row, violations=violations, decay=0.98)
    found = training.run(2 * STEPS)
    assert game.regularised(BETA) @ cost > 2 * LIMIT
    assert found @ cost == pytest.approx(LIMIT, abs=0.01)
    assert distance(found, optimum(high)) < TOLERANCE
    assert training.multiplier == pytest.approx(high, rel=0.1)


# --- completions that are compared with each other -------------------------------------------------------------------


def compared(game: Game, loss, steps: int = 160) -> np.ndarray:
    """Training on two halves of a batch that the policy sampled itself, by `loss(logits, left, right)`."""
    logits = game.start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE, foreach=False)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chances = game.probabilities(logits)
        left, right = torch.multinomial(chances, 2 * SAMPLES, True, generator=generator).chunk(2)
        optimizer.zero_grad()
        loss(logits, left, right).backward()
        optimizer.step()
        schedule.step()
    return game.probabilities(logits).numpy()


def completion_logps(game: Game, logits: Tensor, drawn: Tensor) -> Tensor:
    states, tokens, lengths = game.flat(drawn)
    return summed(logits.log_softmax(-1)[states, tokens], lengths)


def test_online_dpo_with_the_labels_own_probabilities_reaches_the_regularised_optimum():
    game = tree()

    def loss(logits: Tensor, left: Tensor, right: Tensor) -> Tensor:
        sides = [
            (completion_logps(game, logits, one), completion_logps(game, game.start, one))
            for one in (left, right)
        ]
        (chosen, reference_chosen), (rejected, reference_rejected) = sides
        pair = PairLogps(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            game.lengths[left].float(),
            game.lengths[right].float(),
            label_margins=game.scores[left] - game.scores[right],
        )
        return soft_rev_kl_loss(pair, beta=BETA).mean()

    assert distance(compared(game, loss), game.regularised(BETA)) < TOLERANCE


def test_self_play_against_the_policy_as_it_was_ends_at_the_completion_that_beats_all():
    game = bandit()

    def loss(logits: Tensor, left: Tensor, right: Tensor) -> Tensor:
        drawn = torch.cat([left, right])
        rates = win_rates(game.scores[drawn])
        before = completion_logps(game, logits.detach(), drawn)
        return sppo_losses(completion_logps(game, logits, drawn) - before, rates, beta=0.1).mean()

    assert compared(game, loss)[int(game.scores.argmax())] > 0.95
