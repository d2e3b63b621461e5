"""From preference pairs to what is trained on: groups of one prompt, its distinct completions, and the pairs among them.

Pairs of one prompt share a forward pass: a ranking of K completions costs K rows instead of two for each of its pairs
(arXiv:2203.02155, section 3.5). Knows nothing about losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prefloop.batches import Codec, TokenGroup
from prefloop.records import PreferencePair

FOREIGN = 2
"""Tells the random numbers that choose foreign completions from others of the same seed."""
Grouping = Literal["prompt", "pair"]


@dataclass(frozen=True)
class Pair:
    """One preference inside a group: which completion is better, and how sure and how heavy that is."""

    chosen: int
    rejected: int
    p_chosen: float
    margin: float
    weight: float
    id: str


@dataclass(frozen=True)
class PairGroup:
    """A prompt, its distinct completions and the preferences among them, as token ids."""

    tokens: TokenGroup
    pairs: tuple[Pair, ...]
    reference: tuple[Tensor, ...] = ()
    """Log-probabilities of each completion's tokens under the reference; empty where none is kept."""
    foreign: int | None = None
    """Number of the completion that answers another prompt, if one was added."""

    @property
    def weight(self) -> float:
        """How much the group counts."""
        return sum(pair.weight for pair in self.pairs)

    @property
    def name(self) -> str:
        """What the group is called in errors."""
        return ", ".join(pair.id for pair in self.pairs)


def grouped(
    pairs: Sequence[PreferencePair], codec: Codec, grouping: Grouping, *, per_prompt: bool
) -> list[PairGroup]:
    """Groups in the order of their first pair. `per_prompt` scales weights so that each prompt counts once in all.

    What the completions of a pair begin with and the pair is not about is read with the prompt: it is computed once, and no
    objective counts its tokens.
    """
    by_key: dict[tuple[object, ...], list[PreferencePair]] = {}
    for number, pair in enumerate(pairs):
        prefix = (pair.chosen.token_ids or ())[: pair.prefix_tokens]
        by_key.setdefault((pair.prompt.id, *prefix) if grouping == "prompt" else (number,), []).append(pair)
    groups = [_group(same, codec) for same in by_key.values()]
    return [_scaled(group) for group in groups] if per_prompt else groups


def _group(pairs: Sequence[PreferencePair], codec: Codec) -> PairGroup:
    messages, before = pairs[0].prompt.messages, pairs[0].prefix_tokens
    prefix = (pairs[0].chosen.token_ids or ())[:before]
    number: dict[str, int] = {}
    # files number the completions of each pair anew, so that equal ones can have different ids
    completions: dict[tuple[int, ...], int] = {}
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            if side.id not in number:
                ids = tuple(codec.completion_ids(messages, side))[before:]
                number[side.id] = completions.setdefault(ids, len(completions))
    return PairGroup(
        TokenGroup((*codec.prompt_ids(messages), *prefix), tuple(completions)),
        tuple(
            Pair(number[one.chosen.id], number[one.rejected.id], one.p_chosen, one.margin, one.weight, one.id)
            for one in pairs
        ),
    )


def with_foreign(groups: Sequence[PairGroup], *, seed: int) -> list[PairGroup]:
    """Each group with one more completion, taken from the group of another prompt."""
    order = np.random.default_rng([seed, FOREIGN]).permutation(len(groups)).tolist()
    donors = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [
        replace(
            group,
            tokens=replace(
                group.tokens,
                completions=(*group.tokens.completions, groups[donors[number]].tokens.completions[0]),
            ),
            foreign=len(group.tokens.completions),
        )
        for number, group in enumerate(groups)
    ]


def _scaled(group: PairGroup) -> PairGroup:
    total = group.weight
    if not total:
        return group
    return replace(group, pairs=tuple(replace(pair, weight=pair.weight / total) for pair in group.pairs))


@dataclass(frozen=True)
class PairIndex:
    """The pairs of a microbatch as tensors [B]; completions are numbered through all groups, C in all."""

    chosen: Tensor
    rejected: Tensor
    p_chosen: Tensor
    margins: Tensor
    weights: Tensor
    foreign: Tensor
    """[F], completions that answer another prompt."""


def index_pairs(groups: Sequence[PairGroup], device: torch.device) -> PairIndex:
    """Where the pairs of the groups are, when their completions follow one another."""
    rows: list[tuple[int, int, float, float, float]] = []
    foreign = []
    before = 0
    for group in groups:
        foreign += [] if group.foreign is None else [before + group.foreign]
        rows += [
            (before + one.chosen, before + one.rejected, one.p_chosen, one.margin, one.weight)
            for one in group.pairs
        ]
        before += len(group.tokens.completions)
    chosen, rejected, p_chosen, margins, weights = zip(*rows, strict=True)
    return PairIndex(
        torch.tensor(chosen, device=device),
        torch.tensor(rejected, device=device),
        torch.tensor(p_chosen, device=device),
        torch.tensor(margins, device=device),
        torch.tensor(weights, device=device),
        torch.tensor(foreign, dtype=torch.long, device=device),
    )


def ranks(group: PairGroup) -> list[int]:
    """Rank of each completion, 1 for the best: one more than the number that its pairs say are better."""
    beaten = [1] * len(group.tokens.completions)
    for pair in group.pairs:
        beaten[pair.rejected] += 1
    return beaten
