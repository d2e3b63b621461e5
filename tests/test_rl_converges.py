"""Every algorithm finds the optimum that theory promises, on games whose policies are tables.

In the bandit a completion is one of four tokens. In the tree it is a string of a and b that ends with a terminator or is cut
after three tokens, so that completions are ragged. With weight β of the KL in the reward, the optimum is π0 exp(r / β) / Z
for every row of the table; without, it is the best completion. Optima are computed by enumeration, in numpy.

Samples are drawn systematically (one random number a batch), so that a few hundred completions suffice.
"""

import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pytest
import torch
from torch import Tensor

from prefloop.advantages import Moments, advantages_of, completion_returns
from prefloop.algorithms import ALGORITHMS, Algorithm, vary
from prefloop.losses import (
    PolicyTokens,
    categorical_kl,
    counted,
    entropy,
    ptx_losses,
    token_losses,
    token_weights,
    truncated_weights,
)
from prefloop.ragged import summed
from prefloop.shaping import constrained, kl_rewards, next_multiplier, token_rewards
from prefloop.trust_region import Tried, hessian_product, line_search, natural_step

BETA = 0.5
SAMPLES, STEPS = 256, 80
LEARNING_RATE, DECAY = 0.3, 0.95
MAX_KL = 0.02
"""Bound on the first trust-region step; it shrinks as the square of the learning rate, as a KL does with its step."""
LIMIT = 0.2
"""Violations that are allowed, where there are any."""
TOLERANCE = 0.012
"""Largest total variation distance from the optimum."""


@dataclass(frozen=True)
class Game:
    """All completions there are: their tokens, what stands before each token, and their scores."""

    tokens: Tensor
    """[Y, T]"""
    states: Tensor
    """[Y, T], number of the string before each token."""
    lengths: Tensor
    scores: Tensor
    start: Tensor
    """Logits [S, V] of the reference."""

    def flat(self, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States and tokens [t] of completions, and their lengths."""
        lengths = self.lengths[drawn]
        real = torch.arange(self.tokens.shape[1]) < lengths.unsqueeze(1)
        return self.states[drawn][real], self.tokens[drawn][real], lengths

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of all completions, [Y]."""
        states, tokens, lengths = self.everything
        return summed(logits.detach().log_softmax(-1)[states, tokens], lengths).exp()

    @cached_property
    def everything(self) -> tuple[Tensor, Tensor, Tensor]:
        """All completions, as `flat` gives them."""
        return self.flat(torch.arange(len(self.lengths)))

    def regularised(self, beta: float) -> np.ndarray:
        """π0 exp(r / β) / Z."""
        weights = self.probabilities(self.start).numpy() * np.exp(self.scores.numpy() / beta)
        return weights / weights.sum()


def bandit() -> Game:
    arms = torch.arange(4).unsqueeze(1)
    start = torch.tensor([[0.5, -0.5, 0.0, 1.0]])
    scores = torch.tensor([1.0, 0.6, -0.5, 0.2])
    return Game(arms, torch.zeros_like(arms), torch.ones(4, dtype=torch.long), scores, start)


def tree() -> Game:
    end, longest = 0, 3
    strings = [string for n in range(longest) for string in itertools.product((1, 2), repeat=n)]
    completions = [(*string, end) for string in strings] + list(itertools.product((1, 2), repeat=longest))
    generator = torch.Generator().manual_seed(5)
    return Game(
        torch.tensor([(*one, *[end] * (longest - len(one))) for one in completions]),
        torch.tensor(
            [[strings.index(one[:t]) if t < len(one) else 0 for t in range(longest)] for one in completions]
        ),
        torch.tensor([len(one) for one in completions]),
        torch.rand(len(completions), generator=generator),
        torch.randn((len(strings), 3), generator=generator) / 2,
    )


@dataclass
class Training:
    """A row of the table at work, as a stage would use it."""

    game: Game
    row: Algorithm
    epochs: int = 1
    earlier: Moments = field(default_factory=Moments)
    pretraining: Tensor | None = None
    """Probabilities [Y] of completions that a ptx term asks for."""
    violations: Tensor | None = None
    """How much each completion [Y] breaks a rule."""
    multiplier: float = 0.0
    decay: float = DECAY
    """Of the learning rate a step."""

    def __post_init__(self) -> None:
        self.logits = self.game.start.clone().requires_grad_()
        self.critic = torch.zeros(len(self.game.start), requires_grad=True)
        self.optimizer = torch.optim.Adam([self.logits, self.critic], lr=LEARNING_RATE, foreach=False)
        # small steps in the end, because whitened advantages do not become small at the optimum
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, self.decay)
        self.generator = torch.Generator().manual_seed(0)

    def run(self, steps: int = STEPS) -> np.ndarray:
        """Probabilities of all completions after training."""
        for _ in range(steps):
            tokens, states = self.rollouts(self.logits.detach())
            self.learn(tokens, states)
        return self.game.probabilities(self.logits).numpy()

    def draw(self, logits: Tensor) -> Tensor:
        """Numbers of completions, drawn in proportion to their probability."""
        places = (torch.arange(SAMPLES) + torch.rand((), generator=self.generator)) / SAMPLES
        found = torch.searchsorted(self.game.probabilities(logits).cumsum(0), places)
        return found.clamp(max=len(self.game.lengths) - 1)

    def rollouts(self, sampler: Tensor) -> tuple[PolicyTokens, Tensor]:
        """A batch of one group, with its advantages; and the states [t] before its tokens."""
        drawn = self.draw(sampler)
        states, tokens, lengths = self.game.flat(drawn)
        old = self.logits.detach().log_softmax(-1)[states, tokens]
        reference = self.game.start.log_softmax(-1)[states, tokens]
        rewards = token_rewards(self.shaped(drawn), lengths)
        if self.row.kl == "reward_k1":
            rewards = rewards + kl_rewards(old, reference, kl_coef=self.row.kl_coef or 0)
        values = self.critic.detach()[states]
        advantages, returns = advantages_of(
            self.row,
            rewards,
            lengths,
            torch.zeros(SAMPLES, dtype=torch.long),
            values=values,
            bootstrap=torch.zeros(SAMPLES),
            earlier=self.earlier,
        )
        self.earlier += Moments.of(completion_returns(rewards, lengths, gamma=self.row.gamma))
        sampled = sampler.log_softmax(-1)[states, tokens]
        self.tokens = tokens
        return PolicyTokens(
            old, old, advantages, lengths, reference, old_values=values, returns=returns,
            weights=truncated_weights(old, sampled, cap=5.0),
        ), states  # fmt: skip

    def shaped(self, drawn: Tensor) -> Tensor:
        """Scores of completions [C], less what their violations cost."""
        scores = self.game.scores[drawn]
        if self.violations is None:
            return scores
        violations = self.violations[drawn]
        self.multiplier = next_multiplier(self.multiplier, float(violations.mean()), limit=LIMIT, rate=0.6)
        return constrained(scores, violations, multiplier=self.multiplier)

    def losses(self, tokens: PolicyTokens, states: Tensor):
        rows = self.logits[states]
        now = replace(
            tokens,
            logps=rows.log_softmax(-1).gather(-1, self.tokens.unsqueeze(-1)).squeeze(-1),
            entropies=entropy(rows),
            values=self.critic[states],
        )
        return token_losses(now, self.row)

    def mean(self, losses: Tensor, lengths: Tensor) -> Tensor:
        weights = token_weights(lengths, reduction=self.row.reduction, longest=4)
        return (losses * weights).sum() / counted(lengths, reduction=self.row.reduction)

    def learn(self, tokens: PolicyTokens, states: Tensor) -> None:
        for _ in range(self.epochs):
            self.optimizer.zero_grad()
            found = self.losses(tokens, states)
            if self.row.update == "trust_region":
                self.trust_region(tokens, states)
                assert found.value is not None
                self.mean(found.value, tokens.lengths).backward()
            else:
                self.mean(found.total, tokens.lengths).backward()
            if self.pretraining is not None:
                logps = self.logits.log_softmax(-1)[0]
                (self.pretraining * ptx_losses(logps, ptx_coef=self.row.ptx_coef)).sum().backward()
            self.optimizer.step()
        self.schedule.step()

    def trust_region(self, tokens: PolicyTokens, states: Tensor) -> None:
        start, lengths = self.logits.detach().clone(), tokens.lengths

        def surrogate() -> Tensor:
            return -self.mean(self.losses(tokens, states).policy, lengths)

        def kl() -> Tensor:
            return self.mean(categorical_kl(start[states], self.logits[states]), lengths)

        before = surrogate()
        gradient = torch.autograd.grad(before, self.logits)[0].reshape(-1)
        max_kl = MAX_KL * (self.schedule.get_last_lr()[0] / LEARNING_RATE) ** 2
        product = hessian_product(kl(), [self.logits])
        step = natural_step(gradient, product, max_kl=max_kl, damping=0.01, iterations=10)

        @torch.no_grad()
        def measure(change: Tensor) -> Tried:
            self.logits.copy_(start + change.view_as(start))
            return Tried(float(surrogate() - before), float(kl()))

        accepted = line_search(step, measure, max_kl=max_kl, backtrack=0.8, attempts=10)
        after = measure(accepted.change)
        assert after.kl <= max_kl
        if accepted.fraction == 0:
            assert torch.equal(self.logits, start)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Total variation."""
    return float(np.abs(found - expected).sum() / 2)


def epochs_of(row: Algorithm) -> int:
    """Samples are used twice where ratios correct for it."""
    return 1 if row.ratio == "none" or row.update == "trust_region" else 2


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
