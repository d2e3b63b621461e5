"""Losses and gradients equal those of TRL's trainers, which are driven without a dataset, an optimiser or a real model.

A trainer object is made without its constructor and gets only the attributes that its loss reads. The model is a table of
bigram logits, so that every loss is a function of one matrix and gradients can be compared on it. Each prompt is one
token. Where TRL deviates on purpose, the test says so and compares what can be compared.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from prefloop.config import LogRatioSection, Objective
from prefloop.losses import (
    PairLogps,
    bradley_terry_loss,
    centring_loss,
    collision_logps,
    ld_weights,
    pair_loss,
    wpo_weights,
)

pytest.importorskip("trl", reason="TRL is a development dependency: the other implementation to compare with")

VOCABULARY = 7
PAD = 0
UNEVEN = ([3, 5, 2], [4, 2, 5])
EVEN = ([4, 4, 4], [4, 2, 5])
"""Lengths of chosen and rejected completions; TRL averages likelihoods over the tokens of a batch, not per pair."""


class Bigrams(nn.Module):
    """A language model whose next token depends on the last one only; answers as TRL's fused head and as transformers do."""

    is_gradient_checkpointing = False

    def __init__(self, seed: int, dtype: torch.dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
        self.table = nn.Parameter(table.to(dtype))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: object) -> SimpleNamespace:
        logits = self.table[input_ids]  # [R, T, V]
        if labels is None:
            return SimpleNamespace(logits=logits)
        logits, targets = logits[:, :-1], labels[:, 1:]
        logps = logits.log_softmax(-1)
        picked = -functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=-100, reduction="none"
        )
        return SimpleNamespace(
            log_probs=picked,
            log_sum_sq_probs=logps.exp().square().sum(-1).log().detach(),
            entropy=-(logps.exp() * logps).sum(-1),
            mean_logits=logits.mean(-1),
            is_top1=logits.argmax(-1) == targets,
        )


@dataclass(frozen=True)
class Setting:
    """A policy, a reference and a batch of pairs, chosen rows first."""

    policy: Bigrams
    reference: Bigrams
    input_ids: Tensor
    completion_mask: Tensor

    @property
    def mask(self) -> Tensor:
        """The completion mask of predicted positions, [R, T - 1]."""
        return self.completion_mask[:, 1:]

    def token_logps(self, model: Bigrams) -> Tensor:
        """Log-probabilities of the tokens after the first, [R, T - 1], 0 outside completions."""
        logps = model.table.log_softmax(-1)
        return logps[self.input_ids[:, :-1], self.input_ids[:, 1:]] * self.mask

    def pair(self, token_weights: Tensor | float = 1.0, **more: object) -> PairLogps:
        chosen, rejected = (self.token_logps(self.policy) * token_weights).sum(-1).chunk(2)
        reference = (self.token_logps(self.reference).detach() * token_weights).sum(-1).chunk(2)
        lengths = self.mask.sum(-1).chunk(2)
        return replace(PairLogps(chosen, rejected, *reference, *lengths), **more)


def setting(lengths=UNEVEN, *, dtype=torch.float64) -> Setting:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([*lengths[0], *lengths[1]])
    width = 1 + int(sizes.max())
    positions = torch.arange(width)
    real = positions <= sizes.unsqueeze(1)  # [R, T], the prompt is position 0
    ids = torch.randint(1, VOCABULARY, (len(sizes), width), generator=generator)
    return Setting(
        Bigrams(1, dtype), Bigrams(2, dtype), ids.where(real, PAD), (real & (positions > 0)).long()
    )


def objective(kind: str, **keys) -> Objective:
    return TypeAdapter(Objective).validate_python({"kind": kind, **keys})


def trainer_of(cls: type, given: Setting, **attributes):
    """A trainer that was never constructed, with what its loss reads."""
    trainer = object.__new__(cls)
    defaults = {
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        "model": given.policy,
        "ref_model": given.reference,
        "precompute_ref_logps": False,
        "aux_loss_enabled": False,
        "beta": 0.1,
        "label_smoothing": 0.0,
        "is_encoder_decoder": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in (defaults | attributes).items():
        setattr(trainer, name, value)
    return trainer


def assert_same(given: Setting, theirs: Tensor, ours: Tensor, *, atol: float = 1e-7) -> None:
    """Equal values and gradients, which are not 0; TRL keeps some constants in float32."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, check_dtype=False)
    (their_gradient,) = torch.autograd.grad(theirs, given.policy.table)
    (our_gradient,) = torch.autograd.grad(ours, given.policy.table)
    assert their_gradient.abs().max() > 0
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=atol)


# --- DPO and its family ----------------------------------------------------------------------------------------------


def trl_dpo(given: Setting, loss_types: str | list[str], **attributes) -> Tensor:
    from trl.trainer.dpo_trainer import DPOTrainer

    names = [loss_types] if isinstance(loss_types, str) else loss_types
    defaults = {
        "loss_types": names,
        "loss_weights": [1.0] * len(names),
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "ld_alpha": None,
        "use_weighting": False,
        "args": SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
    }
    trainer = trainer_of(DPOTrainer, given, **(defaults | attributes))
    inputs = {
        "input_ids": given.input_ids,
        "attention_mask": (given.input_ids != PAD).long(),
        "completion_mask": given.completion_mask,
    }
    return trainer._compute_loss(given.policy, inputs, return_outputs=False)


@pytest.mark.parametrize(
    ("loss_type", "ours", "attributes"),
    [
        ("sigmoid", objective("dpo"), {}),
        ("sigmoid", objective("dpo", beta=0.7), {"beta": 0.7}),
        ("robust", objective("robust", label_smoothing=0.2), {"label_smoothing": 0.2}),
        ("exo_pair", objective("exo_pair", label_smoothing=0.1), {"label_smoothing": 0.1}),
        ("hinge", objective("hinge"), {}),
        ("ipo", objective("ipo"), {}),
        ("sppo_hard", objective("sppo_hard"), {}),
        ("nca_pair", objective("nca_pair"), {}),
        ("aot", objective("aot"), {}),
        ("aot_unpaired", objective("aot_pair"), {}),
        ("apo_zero", objective("apo_zero"), {}),
        ("apo_down", objective("apo_down"), {}),
        ("discopop", objective("discopop"), {}),
    ],
)
def test_preference_losses_equal_those_of_trl(loss_type, ours, attributes):
    given = setting()
    assert_same(given, trl_dpo(given, loss_type, **attributes), pair_loss(given.pair(), ours).mean())


def test_bco_pair_equals_trl_without_a_baseline():
    """TRL keeps no running mean of the rewards; its baseline is 0."""
    given = setting()
    assert_same(given, trl_dpo(given, "bco_pair"), pair_loss(given.pair(), objective("bco_pair")).mean())


def test_raft_equals_the_sft_loss_of_trl_where_completions_are_equally_long():
    """TRL averages over the tokens of the batch, we over the tokens of each pair and then over pairs."""
    given = setting(EVEN)
    assert_same(given, trl_dpo(given, "sft"), pair_loss(given.pair(), objective("raft")).mean())


def test_a_mix_equals_the_weighted_losses_of_trl():
    given = setting(EVEN)
    theirs = trl_dpo(given, ["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    parts = [
        {"objective": {"kind": "dpo"}, "weight": 0.8},
        {"objective": {"kind": "bco_pair"}, "weight": 0.2},
        {"objective": {"kind": "raft"}, "weight": 1.0},
    ]
    assert_same(given, theirs, pair_loss(given.pair(), objective("mix", parts=parts)).mean())


@pytest.mark.parametrize("kind", ["dpo", "hinge", "ipo", "discopop"])
@pytest.mark.parametrize(
    ("divergence", "attributes"),
    [
        ({"divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
        ({"divergence": "js"}, {"f_divergence_type": "js_divergence"}),
        # the same family counted from the other end: TRL's order is 1 - alpha
        (
            {"divergence": "alpha", "alpha": 0.3},
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        ),
    ],
)
def test_divergences_equal_those_of_trl(kind, divergence, attributes):
    """In float32, the widest type of TRL's alpha divergence."""
    given = setting(dtype=torch.float32)
    theirs = trl_dpo(given, {"dpo": "sigmoid"}.get(kind, kind), **attributes)
    pair = given.pair(log_ratios=LogRatioSection(**divergence))
    scale = max(1.0, float(theirs.detach()))
    assert_same(given, theirs, pair_loss(pair, objective(kind)).mean(), atol=1e-4 * scale)


def test_length_desensitised_dpo_equals_trl():
    given = setting()
    chosen_lengths, rejected_lengths = given.mask.sum(-1).chunk(2)
    weights = ld_weights(given.mask, torch.cat([rejected_lengths, chosen_lengths]), alpha=0.4)
    ours = pair_loss(given.pair(weights), objective("dpo")).mean()
    assert_same(given, trl_dpo(given, "sigmoid", ld_alpha=0.4), ours)


def test_weighted_dpo_equals_trl_where_no_weight_is_above_one():
    """The authors of WPO clamp the weights at 1, TRL does not."""
    given = setting()
    collisions = collision_logps(given.policy.table[given.input_ids[:, :-1]])
    weights = wpo_weights(given.token_logps(given.policy), collisions, given.mask)
    assert 0 < weights.min() < weights.max() < 1
    ours = (pair_loss(given.pair(), objective("dpo")) * weights).mean()
    assert_same(given, trl_dpo(given, "sigmoid", use_weighting=True), ours)


# --- KTO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
def test_kto_equals_trl_on_the_two_sides_of_pairs(swapped):
    """TRL averages over completions, of which a pair has two; its z0 comes from completions of other prompts.

    With policy and reference swapped the estimated KL is negative, and z0 is 0.
    """
    from trl.trainer.kto_trainer import KTOTrainer

    given = setting()
    if swapped:
        given = replace(given, policy=given.reference, reference=given.policy)
    others = replace(
        given, input_ids=torch.cat([given.input_ids[:, :1], given.input_ids[:, 1:].roll(1, 0)], 1),
        completion_mask=given.completion_mask.roll(1, 0),
    )  # fmt: skip
    trainer = trainer_of(
        KTOTrainer, given, calculate_KL=True, loss_type="kto", desirable_weight=1.3, undesirable_weight=0.8,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    theirs = trainer._compute_loss(
        given.policy,
        {
            "input_ids": given.input_ids,
            "attention_mask": (given.input_ids != PAD).long(),
            "completion_mask": given.completion_mask,
            "KL_input_ids": others.input_ids,
            "KL_attention_mask": (others.input_ids != PAD).long(),
            "KL_completion_mask": others.completion_mask,
            "label": torch.tensor([True] * 3 + [False] * 3),
        },
        return_outputs=False,
    )
    mismatched = (others.token_logps(given.policy) - others.token_logps(given.reference)).sum(-1).mean()
    assert (mismatched < 0) == swapped
    pair = given.pair(baseline=mismatched.clamp(min=0).detach())
    keys = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    assert_same(given, theirs, pair_loss(pair, objective("kto", **keys)).mean() / 2)


# --- objectives without a reference ----------------------------------------------------------------------------------


def separate_sides(given: Setting) -> dict[str, Tensor]:
    """The batch as TRL's older trainers take it."""
    labels = given.input_ids.masked_fill(given.completion_mask == 0, -100)
    attention = (given.input_ids != PAD).long()
    columns = {"input_ids": given.input_ids, "attention_mask": attention, "labels": labels}
    return {
        f"{side}_{name}": rows
        for name, both in columns.items()
        for side, rows in zip(("chosen", "rejected"), both.chunk(2), strict=True)
    }


def trl_cpo(given: Setting, **attributes) -> Tensor:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = trainer_of(CPOTrainer, given, pad_token_id=PAD, alpha=0.0, **attributes)
    loss, _ = trainer.get_batch_loss_metrics(given.policy, separate_sides(given))
    return loss


def test_simpo_equals_trl():
    given = setting()
    theirs = trl_cpo(given, loss_type="simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=0)
    assert_same(given, theirs, pair_loss(given.pair(), objective("simpo", beta=2.0, gamma=0.7)).mean())


def test_cpo_equals_trl_where_chosen_completions_are_equally_long():
    """TRL averages the likelihood over the tokens of the batch, we over the tokens of each pair and then over pairs."""
    given = setting(EVEN)
    theirs = trl_cpo(given, loss_type="sigmoid", cpo_alpha=0.6)
    assert_same(given, theirs, pair_loss(given.pair(), objective("cpo", nll_weight=0.6)).mean())


def test_conservative_dpo_without_reference_equals_the_smoothed_cpo_of_trl():
    """TRL's DPO has lost label smoothing; its CPO still has it."""
    given = setting()
    theirs = trl_cpo(given, loss_type="sigmoid", label_smoothing=0.2, cpo_alpha=0)
    pair = given.pair(log_ratios=LogRatioSection(reference_free=True))
    assert_same(given, theirs, pair_loss(pair, objective("dpo", label_smoothing=0.2)).mean())


def test_orpo_equals_trl_where_chosen_completions_are_equally_long():
    """TRL computes in float32 and takes the likelihood of the prompt too, of which nothing is predicted here."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    given = setting(EVEN)
    trainer = trainer_of(ORPOTrainer, given, padding_value=PAD, beta=0.3)
    theirs, _ = trainer.get_batch_loss_metrics(given.policy, separate_sides(given))
    ours = pair_loss(given.pair(), objective("orpo", odds_weight=0.3)).mean()
    assert_same(given, theirs, ours, atol=1e-6)


# --- reward models ---------------------------------------------------------------------------------------------------


def test_bradley_terry_with_margin_and_centring_equals_trl():
    """TRL centres the sum of a pair's scores, we their mean: a quarter."""
    from trl.trainer.reward_trainer import RewardTrainer

    given = setting()
    margin = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)

    def scored(margin: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=given.policy.table[:6, :1])

    trainer = trainer_of(RewardTrainer, given, args=SimpleNamespace(center_rewards_coefficient=0.05))
    theirs = trainer.compute_loss(scored, {"attention_mask": torch.ones(6, 1), "margin": margin})
    scores = given.policy.table[:6, 0]
    ours = bradley_terry_loss(*scores.chunk(2), torch.ones(3), margin).mean()
    centring = centring_loss(torch.stack(scores.chunk(2), 1), torch.ones(3, 2)).mean()
    assert_same(given, theirs, ours + 4 * 0.05 * centring)
