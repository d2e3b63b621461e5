"""What the models say about preference pairs, and how that becomes the log-ratios that objectives compare.

Knows nothing about objectives. B pairs, T tokens, V words in the vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from prefloop.config import LogRatioSection

EXPONENT_CAP = 40.0
"""Largest exponent of a divergence: its square is still finite in float32."""


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of pairs of completions, float32 [B], summed over the tokens of each completion."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_lengths: Tensor
    """Tokens of the chosen completions, [B]."""
    rejected_lengths: Tensor
    """Tokens of the rejected completions, [B]."""
    label_margins: Tensor | None = None
    """How strongly the label prefers, [B]: the score difference, or a strength."""
    p_chosen: Tensor | None = None
    """How likely the label is right, [B]; None where that is certain."""
    baseline: Tensor | None = None
    """Scalar that bco_pair (mean reward) or kto (KL to the reference) compares with; without one, 0."""
    log_ratios: LogRatioSection = field(default_factory=LogRatioSection)
    """How the log-ratios are formed."""

    @property
    def chosen_logratios(self) -> Tensor:
        """log policy - log reference of the chosen completions, shaped, [B]."""
        return shaped_logratios(self.chosen, self.reference_chosen, self.chosen_lengths, self.log_ratios)

    @property
    def rejected_logratios(self) -> Tensor:
        """log policy - log reference of the rejected completions, shaped, [B]."""
        return shaped_logratios(
            self.rejected, self.reference_rejected, self.rejected_lengths, self.log_ratios
        )

    @property
    def margins(self) -> Tensor:
        """Difference of the log-ratios, [B]; beta times this is the implicit reward margin."""
        return self.chosen_logratios - self.rejected_logratios


def shaped_logratios(
    logps: Tensor, reference_logps: Tensor, lengths: Tensor, options: LogRatioSection
) -> Tensor:
    """The implicit reward of completions divided by beta, from their log-probabilities and lengths, all [B].

    f'(policy / reference) + length_penalty * length, up to a constant of the prompt: f-DPO (arXiv:2309.16240) and R-DPO,
    Eq. 9 of arXiv:2403.19159. f' is shifted to be 0 where policy and reference agree, so that the losses which look at
    each side on its own keep their meaning.
    """
    ratios = logps if options.reference_free else logps - reference_logps
    match options.divergence:
        case "forward_kl":
            ratios = _alpha_logratios(ratios, 1.0)
        case "js":
            ratios = functional.logsigmoid(ratios) - functional.logsigmoid(torch.zeros_like(ratios))
        case "alpha":
            ratios = _alpha_logratios(ratios, options.alpha)
    return ratios + options.length_penalty * lengths


def _alpha_logratios(logratios: Tensor, alpha: float) -> Tensor:
    """f' of the alpha divergence, (1 - ratio^-alpha) / alpha."""
    return -torch.expm1((-alpha * logratios).clamp(max=EXPONENT_CAP)) / alpha


def nll(pair: PairLogps) -> Tensor:
    """Negative log-likelihood per token of the chosen completions, [B]; alpha times this is the term of RPO."""
    return -pair.chosen / pair.chosen_lengths


def ld_weights(completion_mask: Tensor, other_lengths: Tensor, *, alpha: float) -> Tensor:
    """Token weights [B, T] of LD-DPO (arXiv:2409.06411): alpha on tokens beyond the length of the pair's other side.

    `completion_mask` [B, T] is 1 on this side's tokens; `other_lengths` [B] are the other side's tokens. Multiplies the
    token log-probabilities of policy and reference alike before they are summed.
    """
    positions = completion_mask.cumsum(-1)  # [B, T], from 1 at the first token of the completion
    beyond = positions > other_lengths.unsqueeze(-1)
    return torch.where(beyond, alpha, 1.0) * completion_mask


def collision_logps(logits: Tensor) -> Tensor:
    """log Σ_v p_v² of the next-token distributions, logits [..., V] to [...]: the mean probability of their own samples."""
    return (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)


def wpo_weights(token_logps: Tensor, collisions: Tensor, completion_mask: Tensor) -> Tensor:
    """Weights [B] of WPO (arXiv:2406.11827), at most 1: near 1 for pairs that the policy itself might have sampled.

    All inputs are [2B, T] with the chosen rows first; `collisions` are the `collision_logps` of the same positions.
    A weight is the product over both sides of exp(mean over tokens of (token_logps - collisions)), and is detached.
    """
    excess = (token_logps - collisions).detach() * completion_mask
    chosen, rejected = (excess.sum(-1) / completion_mask.sum(-1)).chunk(2)  # [B] each
    return (chosen + rejected).exp().clamp(max=1)
