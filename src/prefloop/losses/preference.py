"""Preference losses: log-probabilities of pairs in, one loss a pair [B] out.

The keyword-only parameters of a loss are the keys of its config section, and `pair_loss` calls the loss that a section
names. In the formulas c and r are the log-ratios of the chosen and the rejected completion, z = c - r.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from prefloop.config import Objective
from prefloop.losses.pairs import PairLogps, nll

EXO_SMOOTHING = 1e-3
"""Label smoothing of EXO where none is set: its loss is infinite at 0."""
PROBABILITY_CAP = 0.999
"""Largest probability of the policy's preference in `soft_kl_loss`, as in the first code of the online RLHF workflow."""


def pair_loss(pair: PairLogps, objective: Objective) -> Tensor:
    """The configured objective's per-pair losses [B]; a mix is the weighted sum of its parts (MPO, arXiv:2411.10442)."""
    if objective.kind == "mix":
        return torch.stack([one.weight * pair_loss(pair, one.objective) for one in objective.parts]).sum(0)
    return LOSSES[objective.kind](pair, **objective.model_dump(exclude={"kind"}))


def step_baseline(pair: PairLogps, foreign: Tensor, objective: Objective) -> Tensor | None:
    """What `bco_pair` and `kto` compare with, from all pairs of an optimiser step; None for other objectives.

    bco_pair: mean reward of both sides; the authors keep a running mean of it over the steps. kto: the KL to the reference
    estimated as its authors do, the mean log-ratio of completions of other prompts, `foreign` [F], not below 0.
    """
    if objective.kind == "mix":
        found = (step_baseline(pair, foreign, part.objective) for part in objective.parts)
        return next((one for one in found if one is not None), None)
    match objective.kind:
        case "bco_pair":
            return (
                objective.beta * torch.cat([pair.chosen_logratios, pair.rejected_logratios]).detach().mean()
            )
        case "kto":
            return foreign.detach().mean().clamp(min=0)
    return None


# --- the margin ------------------------------------------------------------------------------------------------------


def dpo_loss(pair: PairLogps, *, beta: float, label_smoothing: float | Literal["pair"]) -> Tensor:
    """DPO, Eq. 7 of arXiv:2305.18290; with label smoothing the conservative form, in which that share of labels is wrong.

    log 2 where policy and reference agree.
    """
    if label_smoothing == "pair":
        return _logistic(beta * pair.margins, 0.0 if pair.p_chosen is None else 1 - pair.p_chosen)
    return _logistic(beta * pair.margins, label_smoothing)


def robust_loss(pair: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO (arXiv:2403.00409): its mean over labels flipped with probability `label_smoothing` is DPO's loss."""
    logits = beta * pair.margins
    right, flipped = _logistic(logits), _logistic(-logits)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def exo_pair_loss(pair: PairLogps, *, beta: float, label_smoothing: float) -> Tensor:
    """EXO for pairs, Eq. 16 of arXiv:2402.00856: KL from the policy's preference to the smoothed label."""
    smoothing = label_smoothing or EXO_SMOOTHING
    logits = beta * pair.margins
    chosen = logits.sigmoid() * (functional.logsigmoid(logits) - math.log1p(-smoothing))
    rejected = (-logits).sigmoid() * (functional.logsigmoid(-logits) - math.log(smoothing))
    return chosen + rejected


def hinge_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """Hinge on the DPO margin, the sequence-likelihood calibration of arXiv:2305.10425."""
    return torch.relu(1 - beta * pair.margins)


def ipo_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """IPO, Eq. 17 of arXiv:2310.12036 (its tau is our beta): squared distance of the margin from 1 / (2 beta).

    Uses length-averaged log-ratios, as the authors did in their experiments.
    """
    chosen = pair.chosen_logratios / pair.chosen_lengths
    rejected = pair.rejected_logratios / pair.rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def discopop_loss(pair: PairLogps, *, beta: float, tau: float) -> Tensor:
    """DiscoPOP (arXiv:2406.08414): logistic loss below a margin of 0, exponential loss above, blended over a width tau."""
    logits = beta * pair.margins
    logistic = _logistic(logits) * (-logits / tau).sigmoid()
    # in one exponent, because exp(-logits) alone overflows
    exponential = (functional.logsigmoid(logits / tau) - logits).exp()
    return logistic + exponential


def dpop_loss(pair: PairLogps, *, beta: float, penalty: float) -> Tensor:
    """DPO-Positive, Eq. 3 of arXiv:2402.13228: the margin loses `penalty` times what the chosen completion lost."""
    return _logistic(beta * (pair.margins - penalty * torch.relu(-pair.chosen_logratios)))


def odpo_loss(pair: PairLogps, *, beta: float, alpha: float, offset: Literal["log", "identity"]) -> Tensor:
    """DPO with an offset (arXiv:2402.10571): the reward margin has to exceed alpha times a function of the label's."""
    margins = _label_margins(pair)
    if offset == "log":
        margins = margins.clamp(min=torch.finfo(margins.dtype).tiny).log()
    return _logistic(beta * pair.margins - alpha * margins)


def aot_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """AOT on pairs (arXiv:2406.05882): DPO on margins of policy and reference that are sorted apart.

    The losses [B] are in the order of the sorted margins, so the batch has to be the whole optimiser step.
    """
    policy = pair.chosen - pair.rejected
    reference = policy - pair.margins
    return _logistic(beta * (policy.sort().values - reference.sort().values))


def aot_pair_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """AOT on unpaired sides (arXiv:2406.05882): DPO on chosen and rejected log-ratios that are sorted apart.

    The losses [B] are in the order of the sorted log-ratios, so the batch has to be the whole optimiser step.
    """
    return _logistic(beta * (pair.chosen_logratios.sort().values - pair.rejected_logratios.sort().values))


# --- each side on its own --------------------------------------------------------------------------------------------


def cross_entropy_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """-log σ(beta c): the chosen completion classified against the reference."""
    return _logistic(beta * pair.chosen_logratios)


def bco_pair_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """BCO (arXiv:2404.04656): both sides classified by their reward less the mean reward, `pair.baseline`."""
    baseline = 0.0 if pair.baseline is None else pair.baseline
    chosen, rejected = beta * pair.chosen_logratios, beta * pair.rejected_logratios
    return _logistic(chosen - baseline) + _logistic(baseline - rejected)


def kto_loss(pair: PairLogps, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """KTO (arXiv:2402.01306), summed over the sides of a pair; z0 is `pair.baseline`, in units of log-ratios."""
    baseline = 0.0 if pair.baseline is None else pair.baseline
    desirable = 1 - (beta * (pair.chosen_logratios - baseline)).sigmoid()
    undesirable = 1 - (beta * (baseline - pair.rejected_logratios)).sigmoid()
    return desirable_weight * desirable + undesirable_weight * undesirable


def sppo_hard_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """SPPO, Eq. 4.7 of arXiv:2405.00675 with win probabilities 1 and 0: c aims at 1 / (2 beta), r at the opposite."""
    target = 1 / (2 * beta)
    return (pair.chosen_logratios - target) ** 2 + (pair.rejected_logratios + target) ** 2


def sppo_losses(logratios: Tensor, win_rates: Tensor, *, beta: float) -> Tensor:
    """SPPO, Eq. 4.5 of arXiv:2405.00675: log-ratios [C] of completions aim at (win rate - 1/2) / beta, [C] each."""
    return (logratios - (win_rates - 0.5) / beta) ** 2


def nca_pair_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """NCA for pairs (arXiv:2402.05369): pulls the chosen reward up, and both towards 0."""
    chosen, rejected = beta * pair.chosen_logratios, beta * pair.rejected_logratios
    return _logistic(chosen) + (_logistic(-chosen) + _logistic(-rejected)) / 2


def apo_zero_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """APO-zero, Eq. 7 of arXiv:2408.06266: chosen above the reference, rejected below it."""
    return 1 - (beta * pair.chosen_logratios).sigmoid() + (beta * pair.rejected_logratios).sigmoid()


def apo_down_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """APO-down, Eq. 8 of arXiv:2408.06266: chosen below the reference, rejected further below."""
    return (beta * pair.chosen_logratios).sigmoid() + 1 - (beta * pair.margins).sigmoid()


# --- soft labels: p = σ(beta z) against p* = σ(m) of the label's margin m ------------------------------------------


def soft_kl_loss(pair: PairLogps, *, beta: float, target_excess: float) -> Tensor:
    """KL(p ‖ p*) with p* = e^m / (1 + e^m + target_excess) and p at most 0.999."""
    logits = beta * pair.margins
    p = logits.sigmoid().clamp(max=PROBABILITY_CAP)
    log_p = functional.logsigmoid(logits).clamp(max=math.log(PROBABILITY_CAP))
    target = _label_margins(pair) - math.log1p(target_excess)  # the logit of p*
    chosen = p * (log_p - functional.logsigmoid(target))
    return chosen + (1 - p) * (torch.log1p(-p) - functional.logsigmoid(-target))


def soft_tv_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """Total variation |p - p*|."""
    return ((beta * pair.margins).sigmoid() - _label_margins(pair).sigmoid()).abs()


def soft_hellinger_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """Squared Hellinger distance, ½ [(√p - √p*)² + (√(1-p) - √(1-p*))²]."""
    logits, target = beta * pair.margins, _label_margins(pair)
    chosen = _sqrt_sigmoid(logits) - _sqrt_sigmoid(target)
    rejected = _sqrt_sigmoid(-logits) - _sqrt_sigmoid(-target)
    return (chosen**2 + rejected**2) / 2


def soft_rev_kl_loss(pair: PairLogps, *, beta: float) -> Tensor:
    """Cross-entropy of p with labels p*, which is KL(p* ‖ p) up to a constant: DPO with soft labels."""
    return _logistic(beta * pair.margins, (-_label_margins(pair)).sigmoid())


# --- no reference ----------------------------------------------------------------------------------------------------


def simpo_loss(pair: PairLogps, *, beta: float, gamma: float) -> Tensor:
    """SimPO, Eq. 6 of arXiv:2405.14734: the length-averaged log-probabilities have to differ by gamma / beta."""
    chosen, rejected = pair.chosen / pair.chosen_lengths, pair.rejected / pair.rejected_lengths
    return _logistic(beta * (chosen - rejected) - gamma)


def cpo_loss(pair: PairLogps, *, beta: float, nll_weight: float) -> Tensor:
    """CPO (arXiv:2401.08417): DPO with a uniform reference, plus the chosen completion's likelihood per token."""
    return _logistic(beta * (pair.chosen - pair.rejected)) + nll_weight * nll(pair)


def orpo_loss(pair: PairLogps, *, odds_weight: float) -> Tensor:
    """ORPO, Eq. 6 of arXiv:2403.07691: chosen likelihood, and odds of chosen above odds of rejected."""
    chosen = _log_odds(pair.chosen / pair.chosen_lengths)
    rejected = _log_odds(pair.rejected / pair.rejected_lengths)
    return nll(pair) + odds_weight * _logistic(chosen - rejected)


def raft_loss(pair: PairLogps) -> Tensor:
    """Negative log-likelihood per token of the chosen completion (RAFT, arXiv:2304.06767)."""
    return nll(pair)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _logistic(logits: Tensor, p_wrong: float | Tensor = 0.0) -> Tensor:
    """Cross-entropy of σ(logits) with labels that are wrong with probability `p_wrong`."""
    return -(1 - p_wrong) * functional.logsigmoid(logits) - p_wrong * functional.logsigmoid(-logits)


def _label_margins(pair: PairLogps) -> Tensor:
    assert pair.label_margins is not None, "objective.needs_margin: the caller gives label_margins"
    return pair.label_margins


def _sqrt_sigmoid(logits: Tensor) -> Tensor:
    """√σ(x) with a finite gradient where σ(x) underflows."""
    return (functional.logsigmoid(logits) / 2).exp()


def _log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, finite where p rounds to 1."""
    below_zero = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return below_zero - (-torch.expm1(below_zero)).log()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "dpo": dpo_loss,
    "robust": robust_loss,
    "exo_pair": exo_pair_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "discopop": discopop_loss,
    "dpop": dpop_loss,
    "odpo": odpo_loss,
    "aot": aot_loss,
    "aot_pair": aot_pair_loss,
    "cross_entropy": cross_entropy_loss,
    "bco_pair": bco_pair_loss,
    "kto": kto_loss,
    "sppo_hard": sppo_hard_loss,
    "nca_pair": nca_pair_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "soft_kl": soft_kl_loss,
    "soft_tv": soft_tv_loss,
    "soft_hellinger": soft_hellinger_loss,
    "soft_rev_kl": soft_rev_kl_loss,
    "simpo": simpo_loss,
    "cpo": cpo_loss,
    "orpo": orpo_loss,
    "raft": raft_loss,
}
"""The loss of every single objective, by its kind."""
