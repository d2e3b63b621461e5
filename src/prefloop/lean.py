"""Stock modules made to pass over memory less often, on any transformers model: same weights, same names, same mathematics.

Outside matrix products training waits for memory. So what flows between the products is as narrow as the products
themselves, norms keep one number a row for the backward pass instead of several copies of their input, and float32 products
on a CPU take the faster of torch's two libraries. Knows nothing about what the model is for.
"""

import functools
import inspect
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

PROBE_ROWS = 3
"""Rows on which a norm is compared with the formula."""


def make_lean(model: PreTrainedModel) -> None:
    """Changes the modules of a model in place. Weights, their names and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear and _has_onednn():
            _become(module, LeanLinear)
        elif isinstance(module, nn.Embedding) or _is_norm(module):
            offset = _rms_offset(module)
            if offset is not None:
                _become(module, _lean_norm(type(module), offset))
            if _narrowed not in module._forward_hooks.values():
                module.register_forward_hook(_narrowed)


def _become(module: Any, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter)


def _narrowed(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
    """Under autocast, what embeddings and norms pass on in the type of the products that read it: converted once, and kept
    by the residual stream."""
    if isinstance(output, Tensor) and torch.is_autocast_enabled(output.device.type):
        return output.to(torch.get_autocast_dtype(output.device.type))
    return None


# --- norms -----------------------------------------------------------------------------------------------------------


class _RmsNorm(torch.autograd.Function):
    """Root-mean-square norm (arXiv:1910.07467) of x [..., D] with weight + offset [D], computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)  # [..., 1]
        scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = offset
        return (x * scale).mul_(weight + offset if offset else weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        gain = (weight + ctx.offset if ctx.offset else weight).float()
        normal = x * scale  # [..., D], float32
        product = gradients[0] * normal
        along = (product @ gain).unsqueeze(-1) / x.shape[-1]  # [..., 1]
        to_x = torch.addcmul(gradients[0] * gain, normal, along, value=-1).mul_(scale)
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = product.reshape(-1, len(weight)).sum(0).to(weight.dtype)
        return to_x.to(x.dtype), to_weight, None, None


class LeanNorm(nn.Module):
    """Forward pass of a model's RMS norm, put before the model's own class."""

    offset = 0.0

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _RmsNorm.apply(hidden_states, self.weight, _epsilon(self), self.offset)  # type: ignore[return-value]


@functools.cache
def _lean_norm(kind: type[nn.Module], offset: float) -> type[nn.Module]:
    return type(kind.__name__, (LeanNorm, kind), {"offset": offset})


def _epsilon(module: Any) -> float:
    return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps


@torch.no_grad()
def _rms_offset(module: Any) -> float | None:
    """What the norm adds to its weight, 0 or 1; None where it is not a plain RMS norm, or lean already."""
    if isinstance(module, LeanNorm) or not (hasattr(module, "variance_epsilon") or hasattr(module, "eps")):
        return None
    if module.weight.ndim != 1 or len(inspect.signature(module.forward).parameters) != 1:
        return None
    weight = module.weight.float()
    x = torch.linspace(-1, 2, PROBE_ROWS * len(weight), device=weight.device).view(PROBE_ROWS, -1).sin()
    given = module(x.to(module.weight.dtype)).float()
    for offset in (0.0, 1.0):
        expected = functional.rms_norm(x, weight.shape, weight + offset, _epsilon(module))
        if torch.allclose(given, expected, rtol=1e-4, atol=1e-5):
            return offset
    return None


# --- products --------------------------------------------------------------------------------------------------------


FEW_ROWS = 128
"""Up to so many rows MKL is the faster."""


@functools.cache
def _has_onednn() -> bool:
    """Whether oneDNN multiplies plain float32 matrices here; torch itself gives them to MKL, which is a tenth slower."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] times weight [O, I] transposed."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """A linear layer by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0]
        rows, inputs = gradient.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
        wanted = ctx.needs_input_grad
        return (
            _onednn(gradient, weight.t()) if wanted[0] else None,
            rows.t() @ inputs if wanted[1] else None,  # oneDNN is slower where both are transposed
            rows.sum(0) if wanted[2] else None,
        )


class LeanLinear(nn.Linear):
    """A linear layer that asks oneDNN for float32 products on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        plain = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        if not plain or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if torch.is_grad_enabled():
            return _Product.apply(input, self.weight, self.bias)  # type: ignore[return-value]
        if input.numel() <= FEW_ROWS * self.in_features:  # a token of each sequence that is being sampled
            return super().forward(input)
        return _onednn(input, self.weight, self.bias)
