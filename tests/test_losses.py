import pytest
import torch

from prefloop.config import DpoObjective, HingeObjective, IpoObjective, RaftObjective
from prefloop.losses import (
    PairLogps,
    bradley_terry_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kl_k1,
    kl_k3,
    pair_loss,
    raft_loss,
)


def pair_of(chosen, rejected, reference_chosen, reference_rejected, lengths=(1.0, 1.0)) -> PairLogps:
    def as_tensor(values):
        return torch.tensor(values, dtype=torch.float64).reshape(-1)

    size = len(as_tensor(chosen))
    return PairLogps(
        as_tensor(chosen),
        as_tensor(rejected),
        as_tensor(reference_chosen),
        as_tensor(reference_rejected),
        torch.full((size,), lengths[0], dtype=torch.float64),
        torch.full((size,), lengths[1], dtype=torch.float64),
    )


ONE = pair_of(-10.0, -14.0, -11.0, -13.0)
"""Log-ratios +1 and -1: the margin is 2, and with beta 0.1 the implicit rewards are +0.1 and -0.1."""
TWO = pair_of([-10.0, -12.0], [-14.0, -13.0], [-11.0, -11.0], [-12.0, -13.5])
EQUAL = pair_of(-10.0, -14.0, -10.0, -14.0)


def close(value, expected):
    torch.testing.assert_close(
        value, torch.tensor(expected, dtype=torch.float64).reshape(-1), rtol=0, atol=1e-6
    )


# Golden values were derived by hand for this input and agree with an independent implementation.
@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (DpoObjective(beta=0.1), 0.598139),
        (DpoObjective(beta=0.1, label_smoothing=0.1), 0.618139),
        (IpoObjective(kind="ipo", beta=0.1), 9.0),
        (HingeObjective(kind="hinge", beta=0.1), 0.8),
        (RaftObjective(kind="raft"), 10.0),
    ],
)
def test_losses_have_their_golden_values(objective, expected):
    close(pair_loss(ONE, objective), expected)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (DpoObjective(beta=0.1), [0.554355, 0.770957]),
        (IpoObjective(kind="ipo", beta=0.1), [4.0, 42.25]),
        (HingeObjective(kind="hinge", beta=0.1), [0.70, 1.15]),
    ],
)
def test_losses_of_a_batch_are_per_pair(objective, expected):
    close(pair_loss(TWO, objective), expected)


def test_dpo_is_log_two_when_policy_equals_reference():
    close(dpo_loss(EQUAL, beta=0.1, label_smoothing=0.0), 0.693147)


def test_ipo_and_hinge_when_policy_equals_reference():
    close(ipo_loss(EQUAL, beta=0.1), 25.0)
    close(hinge_loss(EQUAL, beta=0.1), 1.0)


def test_ipo_averages_log_ratios_over_length():
    close(ipo_loss(pair_of(-10.0, -14.0, -11.0, -13.0, lengths=(2.0, 4.0)), beta=0.1), 18.0625)


def test_raft_is_the_mean_negative_log_likelihood_of_the_chosen_tokens():
    close(raft_loss(pair_of(-10.0, -14.0, -11.0, -13.0, lengths=(5.0, 7.0))), 2.0)


def test_margin_is_the_difference_of_the_log_ratios():
    close(ONE.margins, 2.0)
    close(TWO.margins, [3.0, -1.5])


def test_bradley_terry_is_log_two_at_equal_scores():
    zero = torch.zeros(1, dtype=torch.float64)
    close(bradley_terry_loss(zero, zero, torch.ones(1, dtype=torch.float64)), 0.693147)


def test_bradley_terry_of_a_difference_of_one():
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    close(bradley_terry_loss(one, zero, torch.ones(1, dtype=torch.float64)), 0.313262)
    # half the annotators disagree: the mean of both directions, 0.313262 and 1.313262
    close(bradley_terry_loss(one, zero, torch.full((1,), 0.5, dtype=torch.float64)), 0.813262)


def test_kl_estimators_average_to_the_exact_divergence():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_k1(p.log(), q.log())).sum(), exact)
    torch.testing.assert_close((p * kl_k3(p.log(), q.log())).sum(), exact)
    assert (kl_k3(p.log(), q.log()) >= 0).all()


@pytest.mark.parametrize("function", [dpo_loss, ipo_loss, hinge_loss, raft_loss])
def test_keyword_parameters_of_a_loss_are_the_keys_of_its_section(function):
    import inspect

    sections = {
        "dpo_loss": DpoObjective,
        "ipo_loss": IpoObjective,
        "hinge_loss": HingeObjective,
        "raft_loss": RaftObjective,
    }
    parameters = {
        name
        for name, one in inspect.signature(function).parameters.items()
        if one.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert parameters == set(sections[function.__name__].model_fields) - {"kind"}
