"""Flat tensors of tokens: completions of different lengths one after another, without padding.

t tokens of C completions of G groups. `lengths` [C] says where completions end, each of at least one token; `group_of` [C]
to which group, 0 to G - 1, each belongs, in any order.
"""

import torch
from torch import Tensor
from torch.nn import functional


def spread(values: Tensor, lengths: Tensor) -> Tensor:
    """The value [t] of each token's completion, from values [C]."""
    return values.repeat_interleave(lengths, output_size=int(lengths.sum()))


def summed(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums [C] over the tokens of each completion, of values [t]."""
    completion_of = spread(torch.arange(len(lengths), device=lengths.device), lengths)
    return values.new_zeros(len(lengths)).index_add(0, completion_of, values)


def last_tokens(lengths: Tensor) -> Tensor:
    """Where the last token of each completion is, [C]."""
    return lengths.cumsum(0) - 1


def discounted_sums(values: Tensor, lengths: Tensor, *, discount: float) -> Tensor:
    """v_t + discount v_t+1 + discount² v_t+2 + … to the end of each completion, [t].

    Sums of 1, 2, 4, … terms are put together, so that it takes log2 of the longest length passes instead of one a token.
    """
    positions = torch.arange(len(values), device=values.device)
    after = spread(last_tokens(lengths), lengths) - positions  # [t], tokens that follow in the completion
    sums, terms = values, 1
    while terms < int(lengths.max()):
        later = functional.pad(sums[terms:], (0, terms))
        sums = sums + discount**terms * later.where(after >= terms, torch.zeros_like(later))
        terms *= 2
    return sums


def group_sizes(group_of: Tensor) -> Tensor:
    """Completions of each group, [G]."""
    return group_of.bincount()


def group_means(values: Tensor, group_of: Tensor) -> Tensor:
    """Mean of each group's values, [C] to [G]; that of equal values is exactly theirs, so that they lie at no distance."""
    sizes = group_sizes(group_of)
    sums = values.new_zeros(len(sizes), dtype=torch.float64).index_add(0, group_of, values.double())
    return (sums / sizes).to(values.dtype)
