"""One trunk for several roles: policy, critic, preference model and rule model above the same frozen layers.

Layers that were frozen in training (`frozen_layers`) are equal in every role; here they take memory once, and are computed
once for a batch (Sparrow, arXiv:2209.14375). Knows nothing about what the roles are for.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.batches import Batch
from prefloop.forward import hidden_states, plain
from prefloop.modeling import layers_of


def share_trunk(models: Sequence[Any]) -> int:
    """Lets all models use the memory of the first for the embeddings and the lowest layers that are equal in all.

    Returns the number of layers shared; 0 where the embeddings already differ. Shared weights no longer ask for gradients,
    because training one role would move the others.
    """
    stacks = [[_embeddings(model), *layers_of(plain(model))] for model in models]
    shared = 0
    for first, *others in zip(*stacks, strict=False):
        if not all(_equal(first, other) for other in others):
            break
        for other in others:
            for weight, source in zip(other.parameters(), first.parameters(), strict=True):
                weight.data = source.data
        for module in (first, *others):
            module.requires_grad_(False)
        shared += 1
    return max(0, shared - 1)


def unique_bytes(models: Sequence[nn.Module]) -> int:
    """Memory of the weights of several models, shared ones counted once."""
    weights = {one.data_ptr(): one.nbytes for model in models for one in model.parameters()}
    return sum(weights.values())


def hidden_of_all(models: Sequence[Any], batch: Batch, *, shared_layers: int) -> list[Tensor]:
    """The last hidden states [rows * T, D] of each model; the shared lowest layers are computed once."""
    first, *others = map(plain, models)
    if not shared_layers:
        return [hidden_states(model, batch) for model in (first, *others)]
    kept: list[Any] = []
    top = layers_of(first)[shared_layers - 1]
    hook = top.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        states = [hidden_states(first, batch)]
    finally:
        hook.remove()
    for model in others:
        with _continuing(layers_of(model)[:shared_layers], kept[0]):
            states.append(hidden_states(model, batch))
    return states


@contextlib.contextmanager
def _continuing(layers: Sequence[nn.Module], known: Any) -> Iterator[None]:
    """Layers that give what is known already, whatever goes in."""
    for layer in layers:
        layer.forward = lambda *_arguments, **_options: known
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _embeddings(model: Any) -> nn.ModuleList:
    """The embeddings of a trunk; the output embedding is one of them where the two are tied."""
    base = plain(model)
    trunk = getattr(base, base.base_model_prefix)
    return nn.ModuleList([one for one in trunk.modules() if isinstance(one, nn.Embedding)])


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same weights, bit by bit."""
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
