"""TRPO's step, arXiv:1502.05477, section 6 and appendix C: the natural gradient, as long as a bound on the KL allows.

Everything here works on one flat vector [P] of all parameters, and on functions that the caller gives. Knows nothing about
models: who moves the weights, and over how many microbatches a function is summed, is the caller's business.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix, by what it makes of a vector."""
RESIDUAL = 1e-10
"""Squared residual, relative to the first, at which conjugate gradients stop."""


class Tried(NamedTuple):
    """What a step was found to do."""

    gain: float
    """How much the surrogate objective rose."""
    kl: float
    """Mean KL(old ‖ new) of the tokens' distributions."""


class Step(NamedTuple):
    """A step that was accepted, or none at all."""

    change: Tensor
    """What is added to the parameters, [P]; 0 where nothing was accepted."""
    tried: Tried
    fraction: float
    """Of the longest step that the bound allows to second order; 0 where nothing was accepted."""


def natural_step(
    gradient: Tensor, fisher: Product, *, max_kl: float, damping: float, iterations: int
) -> Tensor:
    """The step [P] along F⁻¹ g whose KL is `max_kl` to second order: √(2 max_kl / gᵀF⁻¹g) F⁻¹ g.

    `fisher` multiplies by the Hessian of the mean KL at the old parameters, `gradient` is that of the surrogate objective.
    0 where the gradient is.
    """

    def damped(vector: Tensor) -> Tensor:
        return fisher(vector) + damping * vector

    direction = conjugate_gradient(damped, gradient, iterations=iterations)
    curvature = direction @ damped(direction)
    if not curvature > 0:
        return torch.zeros_like(gradient)
    return direction * (2 * max_kl / curvature).sqrt()


def conjugate_gradient(product: Product, target: Tensor, *, iterations: int) -> Tensor:
    """Solves A x = target for a positive definite A in at most that many products (Hestenes and Stiefel 1952)."""
    found, residual = torch.zeros_like(target), target.clone()
    direction, size = residual.clone(), residual @ residual
    enough = RESIDUAL * size
    for _ in range(iterations):
        if size <= enough:
            break
        image = product(direction)
        length = size / (direction @ image)
        found, residual = found + length * direction, residual - length * image
        size, before = residual @ residual, size
        direction = residual + size / before * direction
    return found


def line_search(
    step: Tensor,
    measure: Callable[[Tensor], Tried],
    *,
    max_kl: float,
    backtrack: float,
    attempts: int,
) -> Step:
    """The longest of step, backtrack · step, backtrack² · step, … that gains something and keeps the KL within the bound.

    `measure` says what a change of the old parameters does.
    """
    for attempt in range(attempts):
        fraction = backtrack**attempt
        tried = measure(step * fraction)
        # a comparison with NaN is false, so that a step that breaks the model is not accepted
        if tried.gain > 0 and tried.kl <= max_kl:
            return Step(step * fraction, tried, fraction)
    return Step(torch.zeros_like(step), Tried(0.0, 0.0), 0.0)


# --- products with the Hessian ---------------------------------------------------------------------------------------


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors as one vector."""
    return torch.cat([one.reshape(-1) for one in tensors])


def unflat(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """One vector as tensors of the given shapes."""
    parts = vector.split([one.numel() for one in like])
    return [part.view_as(one) for part, one in zip(parts, like, strict=True)]


def hessian_product(value: Tensor, parameters: Sequence[Tensor]) -> Product:
    """Multiplies by the Hessian of a value, by differentiating twice."""
    slope = flat(torch.autograd.grad(value, parameters, create_graph=True))

    def product(vector: Tensor) -> Tensor:
        return flat(torch.autograd.grad(slope @ vector, parameters, retain_graph=True)).detach()

    return product


def difference_product(gradient_at: Product, *, width: float) -> Product:
    """Multiplies by the Hessian where the gradient is known only as a function of the change of the parameters.

    A central difference over ± `width` along the vector: two gradients a product, for models whose kernels cannot be
    differentiated twice, as torch's fused attention. In float32 a width of about 0.01 balances rounding and curvature.
    """

    def product(vector: Tensor) -> Tensor:
        norm = vector.norm()
        if norm == 0:
            return torch.zeros_like(vector)
        way = vector * (width / norm)
        return (gradient_at(way) - gradient_at(-way)) * (norm / (2 * width))

    return product
