"""TRPO's step on quadratics that can be solved by hand, and on a small network."""

import math

import pytest
import torch
from torch import Tensor, nn, tensor
from torch.testing import assert_close

from prefloop.losses import categorical_kl
from prefloop.trust_region import (
    Tried,
    conjugate_gradient,
    difference_product,
    flat,
    hessian_product,
    line_search,
    natural_step,
    unflat,
)

MATRIX = tensor([[4.0, 1.0], [1.0, 3.0]])
BOUNDS = {"damping": 0.0, "iterations": 10}


def fisher(vector: Tensor) -> Tensor:
    return MATRIX @ vector


def test_conjugate_gradients_solve_a_system_in_as_many_products_as_it_has_unknowns():
    """4x + y = 1, x + 3y = 2: x = 1/11, y = 7/11."""
    found = conjugate_gradient(fisher, tensor([1.0, 2.0]), iterations=2)
    assert_close(found, tensor([1 / 11, 7 / 11]))


def test_the_step_on_a_quadratic_is_the_natural_gradient_to_the_bound():
    """Gradient (5, 4), F⁻¹ g = (1, 1), gᵀF⁻¹g = 9: with a bound of 0.01 the step is √(0.02 / 9) (1, 1), its KL ½ sᵀFs."""
    step = natural_step(tensor([5.0, 4.0]), fisher, max_kl=0.01, **BOUNDS)
    assert_close(step, torch.full((2,), math.sqrt(0.02 / 9)))
    assert (step @ MATRIX @ step / 2).item() == pytest.approx(0.01)


def test_damping_shortens_the_step_in_flat_directions():
    """F = diag(1, 0), damping 1, gradient (2, 1): direction (1, 1) and gᵀ(F + 1)⁻¹g = 3."""
    step = natural_step(
        tensor([2.0, 1.0]),
        lambda vector: vector * tensor([1.0, 0.0]),
        max_kl=0.06,
        damping=1.0,
        iterations=10,
    )
    assert_close(step, torch.full((2,), math.sqrt(0.12 / 3)))


def test_no_gradient_is_no_step():
    assert natural_step(torch.zeros(2), fisher, max_kl=0.01, **BOUNDS).tolist() == [0.0, 0.0]


def quadratic(change: Tensor) -> Tried:
    """Gains x - 2x² with a KL of x²."""
    x = float(change[0])
    return Tried(x - 2 * x**2, x**2)


def test_the_line_search_stops_at_the_first_step_that_gains_within_the_bound():
    """From 1 by halves: 1 loses, 1/2 gains nothing, 1/4 gains 1/8 with a KL of 1/16."""
    found = line_search(tensor([1.0]), quadratic, max_kl=0.1, backtrack=0.5, attempts=10)
    assert found.change.tolist() == [0.25]
    assert (found.tried, found.fraction) == (Tried(0.125, 0.0625), 0.25)


def test_the_bound_on_the_kl_is_hard():
    """With a bound of 0.01, 1/4 and 1/8 gain but go too far; 1/16 stays within."""
    found = line_search(tensor([1.0]), quadratic, max_kl=0.01, backtrack=0.5, attempts=10)
    assert found.change.tolist() == [0.0625]


def test_a_step_that_is_never_good_enough_changes_nothing():
    found = line_search(tensor([1.0]), quadratic, max_kl=0.01, backtrack=0.5, attempts=3)
    assert (found.change.tolist(), found.fraction) == ([0.0], 0.0)


def test_a_step_that_is_no_number_is_not_accepted():
    def broken(change: Tensor) -> Tried:
        return quadratic(change) if float(change[0]) < 0.3 else Tried(math.nan, math.nan)

    found = line_search(tensor([1.0]), broken, max_kl=0.1, backtrack=0.5, attempts=10)
    assert found.change.tolist() == [0.25]


def test_vectors_and_tensors_are_put_together_and_taken_apart():
    tensors = [torch.arange(4.0).view(2, 2), tensor([9.0])]
    assert flat(tensors).tolist() == [0.0, 1.0, 2.0, 3.0, 9.0]
    assert all(torch.equal(a, b) for a, b in zip(unflat(flat(tensors), tensors), tensors, strict=True))


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(), torch.randn(6, 3).double()


def test_products_with_the_hessian_of_the_kl_are_those_of_the_whole_matrix():
    """torch.autograd.functional.hessian makes the matrix; differences of gradients come close to it."""
    model, inputs = network()
    parameters = list(model.parameters())
    start = flat(parameters).detach()
    old = model(inputs).detach()
    names = [name for name, _ in model.named_parameters()]

    def kl_at(vector: Tensor) -> Tensor:
        moved = dict(zip(names, unflat(vector, parameters), strict=True))
        logits = torch.func.functional_call(model, moved, (inputs,))
        logps, old_logps = logits.log_softmax(-1), old.log_softmax(-1)
        return (old_logps.exp() * (old_logps - logps)).sum(-1).mean()

    matrix = torch.autograd.functional.hessian(kl_at, start)
    vector = torch.randn(len(start), generator=torch.Generator().manual_seed(1)).double()
    exact = hessian_product(kl_at_parameters(model, inputs, old), parameters)(vector)
    assert_close(exact, matrix @ vector)

    def gradient_at(change: Tensor) -> Tensor:
        point = (start + change).requires_grad_()
        return torch.autograd.grad(kl_at(point), point)[0]

    close = difference_product(gradient_at, width=1e-4)(vector)
    assert_close(close, matrix @ vector, rtol=1e-5, atol=1e-8)


def kl_at_parameters(model: nn.Module, inputs: Tensor, old: Tensor) -> Tensor:
    logps, old_logps = model(inputs).log_softmax(-1), old.log_softmax(-1)
    return (old_logps.exp() * (old_logps - logps)).sum(-1).mean()


def test_every_accepted_step_of_a_network_gains_within_the_bound():
    model, inputs = network()
    parameters = list(model.parameters())
    actions = tensor([0, 1, 2, 0, 1, 2])
    advantages = tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0]).double()

    def logps() -> Tensor:
        return model(inputs).log_softmax(-1)[torch.arange(6), actions]

    accepted = 0
    for _ in range(5):
        start, old, old_logps = flat(parameters).detach(), model(inputs).detach(), logps().detach()
        surrogate = (advantages * (logps() - old_logps).exp()).mean()
        gradient = flat(torch.autograd.grad(surrogate, parameters))
        product = hessian_product(kl_at_parameters(model, inputs, old), parameters)
        step = natural_step(gradient, product, max_kl=0.01, damping=0.1, iterations=10)

        @torch.no_grad()
        def measure(change: Tensor, start=start, old=old, old_logps=old_logps, before=surrogate) -> Tried:
            for parameter, value in zip(parameters, unflat(start + change, parameters), strict=True):
                parameter.copy_(value)
            gain = (advantages * (logps() - old_logps).exp()).mean() - before
            return Tried(float(gain), float(categorical_kl(old, model(inputs)).mean()))

        found = line_search(step, measure, max_kl=0.01, backtrack=0.8, attempts=10)
        after = measure(found.change)
        assert after.kl <= 0.01
        assert after.gain == pytest.approx(found.tried.gain)
        accepted += found.fraction > 0
    assert accepted == 5
