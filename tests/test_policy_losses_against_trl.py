"""Policy losses, their gradients and group advantages equal those of TRL's trainers on the same rollouts.

TRL's trainer objects are made without their constructors and get only what their loss reads; the model is a table of bigram
logits. TRL pads completions, we do not: rollouts are ragged.
"""

import inspect
import textwrap
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from prefloop.advantages import advantages_of
from prefloop.algorithms import ALGORITHMS, vary
from prefloop.losses import PolicyTokens, counted, token_losses, token_weights
from prefloop.shaping import kl_rewards, token_rewards

pytest.importorskip("trl", reason="TRL is a development dependency: the other implementation to compare with")

VOCABULARY, PAD, LONGEST = 7, 0, 6
LENGTHS = [3, 6, 1, 4, 2, 5]
"""Completions of two prompts, three each."""
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])
SCORES = torch.tensor([1.0, -0.5, 2.0, 0.25, 0.0, 3.0], dtype=torch.float64)


class Rollouts:
    """Two prompts of one token, their completions, and three policies: the trained one, an older one, the reference."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        shape = (VOCABULARY, VOCABULARY)
        noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
        self.table = nn.Parameter(noise[0])
        self.old, self.reference = noise[0] + 0.4 * noise[1], noise[0] + 0.5 * noise[2]
        lengths = torch.tensor(LENGTHS)
        self.lengths = lengths
        self.mask = (torch.arange(LONGEST) < lengths.unsqueeze(1)).long()
        ids = torch.randint(1, VOCABULARY, (len(LENGTHS), LONGEST), generator=generator)
        self.completion_ids = ids.where(self.mask.bool(), PAD)
        self.prompt_ids = torch.tensor([1, 1, 1, 2, 2, 2]).unsqueeze(1)

    def padded(self, table: Tensor) -> Tensor:
        """Log-probabilities [C, T] of completion tokens."""
        before = torch.cat([self.prompt_ids, self.completion_ids[:, :-1]], 1)
        return table.log_softmax(-1)[before, self.completion_ids]

    def flat(self, table: Tensor) -> Tensor:
        """The same without padding, [t]."""
        return self.padded(table)[self.mask.bool()]


def trainer_of(cls: type, given: Rollouts, **attributes):
    """A trainer that was never constructed, with what its loss reads."""
    trainer = object.__new__(cls)
    defaults = {
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"),
            gather=lambda x: x,
            gather_for_metrics=lambda x: x,
            reduce=lambda x, reduction: x,
            num_processes=1,
        ),
        "model": SimpleNamespace(training=True),
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "args": SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=1, entropy_coef=0.0
        ),
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "max_completion_length": LONGEST,
        "current_gradient_accumulation_steps": 1,
        "_metrics": {"train": defaultdict(list)},
    }
    for name, value in (defaults | attributes).items():
        setattr(trainer, name, value)
    logps = given.padded(given.table)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logps, torch.zeros_like(logps), None)
    return trainer


def trl_loss(cls: type, given: Rollouts, advantages: Tensor, **attributes) -> Tensor:
    trainer = trainer_of(cls, given, **attributes)
    old = given.padded(given.old)
    inputs = {
        "prompt_ids": given.prompt_ids,
        "prompt_mask": torch.ones_like(given.prompt_ids),
        "completion_ids": given.completion_ids,
        "completion_mask": given.mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "old_logps": (old * given.mask).sum(1),
        "ref_per_token_logps": given.padded(given.reference),
        "num_items_in_batch": given.mask.sum(),
    }
    return trainer._compute_loss(trainer.model, inputs)


def our_loss(given: Rollouts, name: str, advantages: Tensor, **changes) -> Tensor:
    row = vary(ALGORITHMS[name], **changes)
    tokens = PolicyTokens(
        given.flat(given.table),
        given.flat(given.old),
        advantages.repeat_interleave(given.lengths),
        given.lengths,
        reference_logps=given.flat(given.reference),
    )
    weights = token_weights(given.lengths, reduction=row.reduction, longest=LONGEST)
    losses = token_losses(tokens, row).total
    return (losses * weights).sum() / counted(given.lengths, reduction=row.reduction)


def assert_same(given: Rollouts, ours: Tensor, theirs: Tensor) -> None:
    """Equal values and gradients, which are not 0; our weights are float32."""
    assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    gradients = [torch.autograd.grad(loss, given.table)[0] for loss in (ours, theirs)]
    assert gradients[1].abs().max() > 1e-3
    assert_close(*gradients, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "changes", "attributes"),
    [
        ("grpo", {}, {"beta": 0.04}),
        ("grpo", {"kl": "none"}, {}),
        ("dr_grpo", {}, {"loss_type": "dr_grpo"}),
        ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("dapo", {}, {"loss_type": "bnpo", "epsilon_high": 0.28}),
        (
            "gspo",
            {},
            {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        ),
        ("cispo", {}, {"loss_type": "cispo", "epsilon_high": 5.0}),
        # a cap that is met, in TRL's words 1 + clip_high
        ("cispo", {"clip_high": 0.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
    ],
)
def test_losses_of_the_group_family_equal_those_of_trl(name, changes, attributes):
    from trl.trainer.grpo_trainer import GRPOTrainer

    given = Rollouts()
    advantages = SCORES - 0.5
    theirs = trl_loss(GRPOTrainer, given, advantages, **attributes)
    assert_same(given, our_loss(given, name, advantages, **changes), theirs)


def test_rloo_equals_that_of_trl_with_its_clip():
    from trl.trainer.rloo_trainer import RLOOTrainer

    given = Rollouts()
    advantages = SCORES - 0.5
    changes = {"clip": "surrogate", "clip_low": 0.2, "clip_high": 0.2}
    assert_same(
        given, our_loss(given, "rloo", advantages, **changes), trl_loss(RLOOTrainer, given, advantages)
    )


def advantages_in(cls: type, start: str, end: str, **names) -> Tensor:
    """What the lines of TRL's rollout method between two markers make of rewards: they are part of a long method."""
    lines = inspect.getsource(cls._generate_and_score_completions).splitlines()
    first = next(number for number, line in enumerate(lines) if start in line)
    last = next(number for number, line in enumerate(lines) if number > first and end in line)
    scope = {"torch": torch, **names}
    exec(textwrap.dedent("\n".join(lines[first:last])), scope)
    return scope["advantages"]


def test_advantages_of_grpo_equal_those_of_trl():
    from trl.trainer import grpo_trainer

    theirs = advantages_in(
        grpo_trainer.GRPOTrainer,
        "mean_grouped_rewards = torch.nanmean",
        "is_std_zero =",
        self=SimpleNamespace(scale_rewards="group"),
        rewards=SCORES,
        num_generations=3,
        nanstd=grpo_trainer.nanstd,
    )
    ones = torch.ones_like(GROUPS)
    ours = advantages_of(ALGORITHMS["grpo"], SCORES, ones, GROUPS).advantages
    assert_close(ours, theirs)


def test_rewards_and_advantages_of_rloo_equal_those_of_trl():
    """Its KL is in the reward, summed over the tokens of a completion."""
    from trl.trainer import rloo_trainer

    given = Rollouts()
    old, reference = given.padded(given.old), given.padded(given.reference)
    theirs = advantages_in(
        rloo_trainer.RLOOTrainer,
        "# Include the KL penalty in the reward",
        "# Normalize advantages",
        self=SimpleNamespace(beta=0.05),
        gather=lambda x: x,
        rewards=SCORES,
        num_generations=3,
        nanstd=rloo_trainer.nanstd,
        completion_mask=given.mask,
        old_per_token_logps=old,
        ref_per_token_logps=reference,
        advantages=None,
    )
    rewards = token_rewards(SCORES, given.lengths) + kl_rewards(
        given.flat(given.old), given.flat(given.reference), kl_coef=0.05
    )
    ours = advantages_of(ALGORITHMS["rloo"], rewards, given.lengths, GROUPS).advantages
    assert_close(ours, theirs.repeat_interleave(given.lengths))
