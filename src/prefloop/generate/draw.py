"""One token for each row of logits, from one uniform number: temperature, penalties and truncation.

Pure functions. What is drawn depends on the row alone, never on who shares the batch.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """What was drawn for B rows."""

    tokens: Tensor
    """[B]"""
    logps: Tensor
    """[B], under the policy itself: temperature 1, nothing penalised or cut off."""
    sampled_logps: Tensor
    """[B], under the distribution that they were drawn from."""


def draw(
    logits: Tensor,
    uniforms: Tensor,
    temperatures: Tensor | None,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    penalised: Tensor | None = None,
) -> Draw:
    """Draws by inverting the cumulative distribution at `uniforms`.

    `logits` [B, V], `uniforms` [B] in [0, 1), `temperatures` [B], where 0 takes the most likely token; None is 1 for all.
    The distribution is made of `penalised` logits [B, V], if given: divided by the temperature, then the `top_k` most
    likely tokens, then the smallest set with probability `top_p`, then those with at least `min_p` times the highest
    probability.
    """
    shaped = logits if penalised is None else penalised
    scaled = shaped if temperatures is None else shaped / temperatures.clamp(min=1e-6).unsqueeze(-1)
    if top_k:
        kept = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kept, -torch.inf)
    probabilities = scaled.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the token that crosses top_p is kept
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    if min_p:
        least = min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    at = torch.searchsorted(cumulative, uniforms.unsqueeze(-1) * total, right=True)  # [B, 1]
    at = at.clamp_(max=logits.shape[-1] - 1)
    greedy = None if temperatures is None else (temperatures == 0).unsqueeze(-1)
    if greedy is not None and greedy.any():
        at = torch.where(greedy, shaped.argmax(-1, keepdim=True), at)
    sampled = (probabilities.gather(-1, at) / total).log().to(logits.dtype)
    if greedy is not None:
        sampled = sampled.masked_fill(greedy, 0.0)
    plain = scaled is logits and top_p == 1 and not min_p
    logps = sampled if plain else logits.gather(-1, at) - logits.logsumexp(-1, keepdim=True)
    return Draw(at.squeeze(-1), logps.squeeze(-1), sampled.squeeze(-1))


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, V] with those of tokens that were `seen` [B, V] made smaller (CTRL, arXiv:1909.05858, section 4.1)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def uniform_numbers(seed: int, prompt_id: str, number: int, length: int) -> Tensor:
    """[number, length] in [0, 1) that depend on the seed and the prompt only."""
    digest = hashlib.blake2b(f"{seed}/{prompt_id}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand((length, number), generator=generator).T
