"""Games whose policies are tables, small enough to enumerate, and the algorithms of the table at work on them.

In the bandit a completion is one of four tokens. In the tree it is a string of a and b that ends with a terminator or is cut
after three tokens, so that completions are ragged. Optima are computed by enumeration, in numpy.

Samples are drawn systematically (one random number a batch), so that a few hundred completions suffice.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from prefloop.advantages import Moments, advantages_of, completion_returns
from prefloop.algorithms import Algorithm
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

SAMPLES, STEPS = 256, 80
LEARNING_RATE, DECAY = 0.3, 0.95
MAX_KL = 0.02
"""Bound on the first trust-region step; it shrinks as the square of the learning rate, as a KL does with its step."""
LIMIT = 0.2
"""Violations that are allowed, where there are any."""


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
        return list(self.policies(steps))[-1]

    def policies(self, steps: int = STEPS) -> Iterator[np.ndarray]:
        """Probabilities of all completions after each step."""
        for _ in range(steps):
            tokens, states = self.rollouts(self.logits.detach())
            self.learn(tokens, states)
            yield self.game.probabilities(self.logits).numpy()

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
