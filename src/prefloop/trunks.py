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


def share_trunk(models: Sequence[Any], *, at_most: int | None = None) -> int:
    """Lets all models use the memory of the first for the embeddings and the lowest layers that are equal in all.

    Returns the number of layers shared, `at_most` so many; 0 where the embeddings already differ. Shared weights no longer
    ask for gradients, because training one role would move the others.
    """
    stacks = [[_embeddings(model), *layers_of(plain(model))[:at_most]] for model in models]
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
    with computed_once(models, shared_layers=shared_layers):
        return [hidden_states(plain(model), batch) for model in models]


@contextlib.contextmanager
def computed_once(models: Sequence[Any], *, shared_layers: int) -> Iterator[None]:
    """Within it, the shared layers of all models but the first give what the first's gave last, whatever goes in."""
    if not shared_layers:
        yield
        return
    first, *others = (layers_of(plain(model))[:shared_layers] for model in models)
    kept: list[Any] = [None]

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept[0] = output

    hook = first[-1].register_forward_hook(keep)
    skipped = [layer for layers in others for layer in layers]
    for layer in skipped:
        layer.forward = lambda *_arguments, **_options: kept[0]
    try:
        yield
    finally:
        hook.remove()
        for layer in skipped:
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
