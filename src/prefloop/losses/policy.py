"""Policy-gradient losses, one a token, as the columns of `algorithms.py` say; and the critic's.

Flat rows as `ragged.py` has them: t tokens of C completions. Losses are to be minimised. `token_losses` is what a microbatch
calls; weights by `token_weights` and the count by `counted`, of the whole optimiser step, make its mean.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prefloop.algorithms import Algorithm, Clip, Ratio, Reduction
from prefloop.losses.kl import kl_k2, kl_k3
from prefloop.ragged import spread, summed

LARGEST_LOG_RATIO = 20.0
"""Of a ratio that is still computed with: products over long completions overflow, and infinity times 0 is no gradient."""


@dataclass(frozen=True)
class PolicyTokens:
    """What is known of the tokens of a microbatch, [t] each, float32. Gradients: `logps`, `entropies`, `values`."""

    logps: Tensor
    """Log-probabilities under the policy that is trained."""
    old_logps: Tensor
    """The same under the policy as it was when the batch was sampled, computed by the trainer; ratios are taken to these."""
    advantages: Tensor
    lengths: Tensor
    """Tokens of each completion, [C]."""
    reference_logps: Tensor | None = None
    """Read where the KL is in the loss."""
    weights: Tensor | None = None
    """Multiply the policy's loss, see `truncated_weights`."""
    entropies: Tensor | None = None
    """Of the policy's next-token distributions; read where there is an entropy bonus."""
    values: Tensor | None = None
    """What the critic says before each token."""
    old_values: Tensor | None = None
    """The same when the batch was sampled."""
    returns: Tensor | None = None
    """What it should say."""


class TokenLosses(NamedTuple):
    """Losses of tokens, [t] each; the parts are for the log."""

    total: Tensor
    policy: Tensor
    kl: Tensor | None
    """KL to the reference, not weighted; None where it is not in the loss."""
    value: Tensor | None
    """The critic's loss, not weighted."""
    ratios: Tensor
    """Policy / sampling policy, as the row takes it."""
    clipped: Tensor
    """1 where the clip took the gradient away or changed the weight."""


def token_losses(tokens: PolicyTokens, algorithm: Algorithm) -> TokenLosses:
    """Everything that a row of the table adds up: policy, KL, critic and entropy."""
    policy, ratios, clipped = policy_losses(
        tokens.logps,
        tokens.old_logps,
        tokens.advantages,
        tokens.lengths,
        ratio=algorithm.ratio,
        clip=algorithm.clip,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
    )
    if tokens.weights is not None:
        policy = policy * tokens.weights
    total, kl, value = policy, None, None
    if algorithm.kl in ("loss_k2", "loss_k3"):
        assert tokens.reference_logps is not None, (
            "a KL in the loss comes with the reference's log-probabilities"
        )
        kl = (kl_k2 if algorithm.kl == "loss_k2" else kl_k3)(tokens.logps, tokens.reference_logps)
        total = total + _number(algorithm.kl_coef) * kl
    if algorithm.baseline == "critic":
        assert tokens.values is not None and tokens.old_values is not None and tokens.returns is not None
        value = value_losses(tokens.values, tokens.old_values, tokens.returns, clip=algorithm.value_clip)
        total = total + _number(algorithm.value_coef) * value
    if algorithm.entropy_coef:
        assert tokens.entropies is not None, "an entropy bonus comes with entropies"
        total = total - algorithm.entropy_coef * tokens.entropies
    return TokenLosses(total, policy, kl, value, ratios, clipped)


def policy_losses(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    *,
    ratio: Ratio,
    clip: Clip,
    clip_low: float | None,
    clip_high: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, ratios and whether they were clipped, all [t]. A completion's ratio is that of each of its tokens.

    surrogate: PPO, Eq. 7 of arXiv:1707.06347, with two bounds as in Eq. 8 of arXiv:2503.14476. weight: CISPO, Eq. 4 and 5 of
    arXiv:2506.13585: the clipped ratio is a constant, so that every token keeps its gradient.
    """
    ratios = policy_ratios(logps, old_logps, lengths, ratio=ratio)
    if ratio == "none":
        return -advantages * logps, ratios, torch.zeros_like(logps)
    if clip == "none":
        return -advantages * ratios, ratios, torch.zeros_like(logps)
    inside = ratios.clamp(None if clip_low is None else 1 - clip_low, 1 + _number(clip_high))
    if clip == "weight":
        return -advantages * inside.detach() * logps, ratios, (inside != ratios).float()
    plain, bounded = -advantages * ratios, -advantages * inside
    return torch.maximum(plain, bounded), ratios, (bounded > plain).float()


def policy_ratios(logps: Tensor, old_logps: Tensor, lengths: Tensor, *, ratio: Ratio) -> Tensor:
    """Policy / sampling policy [t]: of tokens, of completions, or the geometric mean over a completion's tokens.

    The last is Eq. 7 of arXiv:2507.18071.
    """
    log_ratios = logps - old_logps
    if ratio == "sequence":
        log_ratios = spread(summed(log_ratios, lengths), lengths)
    elif ratio == "sequence_mean":
        log_ratios = spread(summed(log_ratios, lengths) / lengths, lengths)
    return log_ratios.clamp(max=LARGEST_LOG_RATIO).exp()


def truncated_weights(old_logps: Tensor, sampled_logps: Tensor, *, cap: float) -> Tensor:
    """How much samples of another policy count, min(trainer's / sampler's probability, cap), [t]; constants.

    Truncated importance sampling (Ionides 2008) for tokens whose sampler is not what the trainer computes: older weights, or
    another engine. Ratios and clip are then taken to the trainer's `old_logps`, as in arXiv:2505.24298. Above 1, a
    cap trades variance for bias.
    """
    return (old_logps - sampled_logps).exp().clamp(max=cap).detach()


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """Half the squared error of the critic, [t]; with a clip the larger of that and of the error near the old value."""
    plain = (values - returns).square()
    if clip is None:
        return plain / 2
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(plain, (near - returns).square()) / 2


def ptx_losses(logps: Tensor, *, ptx_coef: float) -> Tensor:
    """PPO-ptx's term for pretraining tokens, [t], Eq. 2 of arXiv:2203.02155; to be averaged over these tokens.

    The paper's expectation is over documents and does not say whether log π(x) is a sum; this is a mean a token.
    """
    return -ptx_coef * logps


# --- the mean of a step ----------------------------------------------------------------------------------------------


def token_weights(lengths: Tensor, *, reduction: Reduction, longest: int) -> Tensor:
    """What each token's loss [t] is multiplied by before all are summed and divided by `counted`.

    `longest` is the longest completion allowed, the constant of Dr. GRPO (arXiv:2503.20783).
    """
    match reduction:
        case "token" | "sum":
            each = torch.ones_like(lengths, dtype=torch.float32)
        case "sequence":
            each = 1 / lengths.float()
        case "constant":
            each = torch.full_like(lengths, 1 / longest, dtype=torch.float32)
    return spread(each, lengths)


def counted(lengths: Tensor, *, reduction: Reduction) -> int:
    """What a step is averaged over: its tokens, or its completions."""
    return int(lengths.sum()) if reduction == "token" else len(lengths)


def _number(value: float | None) -> float:
    assert value is not None, "algorithms.py checks that what is read is there"
    return value
