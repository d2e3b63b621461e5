"""Objectives as pure functions: log-probabilities or scores in, one loss per item out.

Names and signs follow the papers cited. The keyword-only parameters of a preference loss are exactly the keys of its
config section. Reductions are done by the caller, by global count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prefloop.config import Objective


@dataclass(frozen=True)
class PairLogps:
    """Sequence log-probabilities [B] of the chosen and rejected completions, and their lengths in tokens [B]."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def chosen_logratios(self) -> Tensor:
        """log policy - log reference of the chosen completions, [B]."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_logratios(self) -> Tensor:
        """log policy - log reference of the rejected completions, [B]."""
        return self.rejected - self.reference_rejected

    @property
    def margins(self) -> Tensor:
        """Difference of the log-ratios, [B]; beta times this is the implicit reward margin."""
        return self.chosen_logratios - self.rejected_logratios


def dpo_loss(pair: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO, Eq. 7 of arXiv:2305.18290; with label smoothing the conservative form, in which that share of labels is wrong.

    Returns per-pair losses [B]; log 2 where policy and reference agree.
    """
    logits = beta * pair.margins
    return -(1 - label_smoothing) * functional.logsigmoid(logits) - label_smoothing * functional.logsigmoid(
        -logits
    )


def ipo_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """IPO, Eq. 17 of arXiv:2310.12036 (its tau is our beta): squared distance of the margin from 1 / (2 beta).

    Uses length-averaged log-ratios, as the authors did in their experiments. Returns per-pair losses [B].
    """
    chosen = pair.chosen_logratios / pair.chosen_lengths
    rejected = pair.rejected_logratios / pair.rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """Hinge on the DPO margin, the sequence-likelihood calibration of arXiv:2305.10425. Returns per-pair losses [B]."""
    return torch.relu(1 - beta * pair.margins)


def raft_loss(pair: PairLogps) -> Tensor:
    """Negative log-likelihood per token of the chosen completion (RAFT, arXiv:2304.06767). Returns [B]."""
    return -pair.chosen / pair.chosen_lengths


def pair_loss(pair: PairLogps, objective: Objective) -> Tensor:
    """The configured objective's per-pair losses [B]."""
    options = objective.model_dump(exclude={"kind"})
    match objective.kind:
        case "dpo":
            return dpo_loss(pair, **options)
        case "ipo":
            return ipo_loss(pair, **options)
        case "hinge":
            return hinge_loss(pair, **options)
        case "raft":
            return raft_loss(pair)


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, p_chosen: Tensor) -> Tensor:
    """Cross-entropy of the Bradley-Terry model with soft labels: scores [B] and P(chosen is better) [B] to losses [B].

    With p_chosen = 1 it is Eq. 1 of arXiv:2203.02155 for one pair; log 2 at equal scores.
    """
    difference = chosen - rejected
    return -p_chosen * functional.logsigmoid(difference) - (1 - p_chosen) * functional.logsigmoid(-difference)


def kl_k1(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The unbiased estimator log p - log q of KL(p ‖ q) from samples of p; may be negative for single samples."""
    return logps - reference_logps


def kl_k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The low-variance, never negative estimator r - 1 - log r with r = q / p (Schulman 2020), samples of p."""
    log_ratio = reference_logps - logps
    return torch.expm1(log_ratio) - log_ratio
