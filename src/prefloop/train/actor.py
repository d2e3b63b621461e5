"""A policy and its critic as one module, so that one optimiser step moves both."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from prefloop.batches import Batch, TokenGroup, collate
from prefloop.forward import LogpsModule, ValuesModule, cost
from prefloop.interfaces import InputError
from prefloop.trunks import computed_once, share_trunk


class Said(NamedTuple):
    """What policy and critic say of the tokens of a batch, [t] each."""

    logps: Tensor
    entropies: Tensor | None
    values: Tensor | None


class ActorCritic(nn.Module):
    """A policy, and beside it a critic where the algorithm has one. Raises InputError where they read prompts in different
    ways."""

    def __init__(self, policy: LogpsModule, critic: ValuesModule | None) -> None:
        super().__init__()
        if critic is not None and critic.shares != policy.shares:
            raise InputError(
                "rl.critic.start: policy and critic read prompts in different ways; use `policy`, or a reward model that "
                "was trained from it"
            )
        self.policy = policy
        self.critic = critic
        self.shared_layers = 0
        """Lowest layers that both have in common, and that are computed once for both."""

    @property
    def shares(self) -> bool:
        """Whether prompts are computed once for all their completions."""
        return self.policy.shares

    def forward(self, batch: Batch, *, entropies: bool = False) -> Said:
        """What both say of the completions' tokens."""
        models = [one.model for one in (self.policy, self.critic) if one is not None]
        with computed_once(models, shared_layers=self.shared_layers):
            logps, found = self.policy(batch, beside="entropies") if entropies else (self.policy(batch), None)
            return Said(logps, found, self.critic(batch) if self.critic is not None else None)

    def share(self, others: Sequence[Any], *, layers: int) -> None:
        """Lets the critic and other models use the memory of the policy's lowest layers, which are not trained, where they
        are the same."""
        for other in others:
            share_trunk([self.policy.model, other], at_most=layers)
        if self.critic is not None:
            self.shared_layers = share_trunk([self.policy.model, self.critic.model], at_most=layers)

    def batch(self, groups: Sequence[TokenGroup]) -> Batch:
        """Groups as both read them."""
        device = next(self.parameters()).device
        return collate(groups, share=self.shares, pad_id=self.policy.pad_id, device=device)

    def cost(self, group: TokenGroup) -> int:
        """Tokens that are computed for a group."""
        return cost(group, self)
