import inspect
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from prefloop.config import LogRatioSection, Objective, sections_in, shaping_problem
from prefloop.losses import (
    LOSSES,
    PairLogps,
    bradley_terry_loss,
    centring_loss,
    collision_logps,
    dpo_loss,
    elo_difference,
    elo_probability,
    k_way_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    ld_weights,
    llama2_combined_score,
    margin_ranking_loss,
    nll,
    pair_loss,
    pair_weights,
    plackett_luce_loss,
    rule_loss,
    sparrow_preference_loss,
    step_baseline,
    wpo_weights,
)

KINDS = sorted(LOSSES)
NEED_MARGIN = ("odpo", "soft_kl", "soft_tv", "soft_hellinger", "soft_rev_kl")


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair_of(chosen, rejected, reference_chosen, reference_rejected, lengths=(1.0, 1.0), **more) -> PairLogps:
    logps = [f64(one).reshape(-1) for one in (chosen, rejected, reference_chosen, reference_rejected)]
    sizes = [torch.full_like(logps[0], length) for length in lengths]
    return PairLogps(*logps, *sizes, **{name: f64(value) for name, value in more.items()})


def objective(kind: str, **keys) -> Objective:
    return TypeAdapter(Objective).validate_python({"kind": kind, **keys})


def close(value, expected):
    torch.testing.assert_close(value, f64(expected).reshape(value.shape), rtol=0, atol=1e-6)


ONE = pair_of(-10.0, -14.0, -11.0, -13.0)
"""Log-ratios c = 1 and r = -1: the margin is 2, and with beta 0.1 the implicit rewards are +0.1 and -0.1."""
TWO = pair_of([-10.0, -12.0], [-14.0, -13.0], [-11.0, -11.0], [-12.0, -13.5])
"""Log-ratios c = (1, -1) and r = (-2, 0.5)."""
EQUAL = pair_of(-10.0, -14.0, -10.0, -14.0)


# Golden values for beta 0.1, derived by hand; those of the online RLHF workflow agree with its own code.
@pytest.mark.parametrize(
    ("kind", "keys", "expected"),
    [
        ("dpo", {}, 0.598139),
        ("dpo", {"label_smoothing": 0.1}, 0.618139),
        ("robust", {"label_smoothing": 0.1}, 0.573139),
        ("robust", {"label_smoothing": 0.0}, 0.598139),
        ("exo_pair", {"label_smoothing": 0.0}, 2.422015),
        ("exo_pair", {"label_smoothing": 0.1}, 0.406304),
        ("hinge", {}, 0.8),
        ("ipo", {}, 9.0),
        ("bco_pair", {}, 1.288793),
        ("sppo_hard", {}, 32.0),
        ("nca_pair", {}, 1.338793),
        ("aot", {}, 0.598139),
        ("aot_pair", {}, 0.598139),
        ("apo_zero", {}, 0.950042),
        ("apo_down", {}, 0.975145),
        ("cross_entropy", {}, 0.644397),
        ("raft", {}, 10.0),
        # 0.950042 is apo_zero's: 2 (1 - σ(0.1)); weights 2 and 0.5 make (2 + 0.5) / 2 of it
        ("kto", {}, 0.950042),
        ("kto", {"desirable_weight": 2.0, "undesirable_weight": 0.5}, 1.187552),
        # x = 0.2, σ(0.2 / 0.05) = 0.982014: 0.017986 * 0.598139 + 0.982014 * e^-0.2
        ("discopop", {}, 0.814763),
        # the chosen completion did not lose likelihood, so it is dpo's
        ("dpop", {"beta": 0.1}, 0.598139),
        # policy margin 4: -log σ(0.4) = 0.513015, and 10 per token
        ("cpo", {}, 10.513015),
        ("cpo", {"nll_weight": 0.5}, 5.513015),
    ],
)
def test_losses_have_their_golden_values(kind, keys, expected):
    close(pair_loss(ONE, objective(kind, **keys)), expected)


@pytest.mark.parametrize(
    ("kind", "keys", "margin", "expected"),
    [
        ("soft_kl", {}, 1.0, 0.075075),
        ("soft_kl", {"target_excess": 0.0}, 1.0, 0.075256),
        ("soft_tv", {}, 1.0, 0.181225),
        ("soft_hellinger", {}, 1.0, 0.018047),
        ("soft_rev_kl", {}, 1.0, 0.651927),
        # log e = 1, so both ask for 0.5 more than the margin of 0.2: -log σ(-0.3)
        ("odpo", {"alpha": 0.5}, math.e, 0.854355),
        ("odpo", {"alpha": 0.5, "offset": "identity"}, 1.0, 0.854355),
        ("odpo", {"alpha": 0.0}, 5.0, 0.598139),
    ],
)
def test_losses_that_read_the_margin_of_the_label(kind, keys, margin, expected):
    close(pair_loss(replace(ONE, label_margins=f64([margin])), objective(kind, **keys)), expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dpo", [0.554355, 0.770957]),
        ("aot", [0.693147, 0.620957]),
        ("aot_pair", [0.644397, 0.668460]),
        ("ipo", [4.0, 42.25]),
        ("hinge", [0.70, 1.15]),
        ("sppo_hard", [25.0, 66.25]),
        ("nca_pair", [1.315664, 1.425825]),
        ("apo_zero", [0.925187, 1.037477]),
        ("apo_down", [0.950537, 1.012451]),
    ],
)
def test_losses_of_a_batch_of_two(kind, expected):
    close(pair_loss(TWO, objective(kind)), expected)


@pytest.mark.parametrize(("kind", "mean"), [("dpo", 0.662656), ("aot", 0.657052), ("aot_pair", 0.656428)])
def test_mean_losses_of_a_batch_of_two(kind, mean):
    close(pair_loss(TWO, objective(kind)).mean(), mean)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("dpo", "robust", "aot", "aot_pair", "cross_entropy"), 0.693147),
        (("bco_pair", "nca_pair"), 1.386294),
        (("hinge", "apo_zero", "apo_down", "kto"), 1.0),
        (("ipo",), 25.0),
        (("sppo_hard",), 50.0),
        (("exo_pair",), 2.761231),
        # half logistic, half exponential: (log 2 + 1) / 2
        (("discopop",), 0.846574),
        (("dpop",), 0.693147),
    ],
)
def test_losses_where_policy_and_reference_agree(kinds, expected):
    for kind in kinds:
        close(pair_loss(EQUAL, objective(kind)), expected)


def test_ipo_averages_log_ratios_over_length():
    close(
        pair_loss(replace(ONE, chosen_lengths=f64([2]), rejected_lengths=f64([4])), objective("ipo")), 18.0625
    )


def test_simpo_compares_log_probabilities_per_token():
    # -10 / 5 = -2 and -14 / 4 = -3.5: 2 * 1.5 - 1 = 2, -log σ(2)
    pair = pair_of(-10.0, -14.0, 0.0, 0.0, lengths=(5.0, 4.0))
    close(pair_loss(pair, objective("simpo", beta=2.0, gamma=1.0)), 0.126928)


def test_orpo_adds_the_odds_ratio_to_the_likelihood():
    # 1/2 and 1/4 a token: odds 1 and 1/3, so -log σ(log 3) = -log(3/4) = 0.287682; likelihood log 2
    pair = pair_of(5 * math.log(0.5), 4 * math.log(0.25), 0.0, 0.0, lengths=(5.0, 4.0))
    close(pair_loss(pair, objective("orpo", odds_weight=0.1)), 0.693147 + 0.0287682)


def test_dpop_asks_for_what_the_chosen_completion_lost():
    # c = -1, r = -1: beta (0 - 5 * 1) = -0.5, -log σ(-0.5)
    pair = pair_of(-12.0, -14.0, -11.0, -13.0)
    close(pair_loss(pair, objective("dpop", beta=0.1, penalty=5.0)), 0.974077)


def test_raft_is_the_mean_negative_log_likelihood_of_the_chosen_tokens():
    pair = replace(ONE, chosen_lengths=f64([5.0]))
    close(nll(pair), 2.0)
    close(pair_loss(pair, objective("raft")), 2.0)


def test_exo_smooths_where_no_smoothing_is_set_and_leaves_the_setting_alone():
    section = objective("exo_pair", label_smoothing=0.0)
    close(pair_loss(ONE, section), pair_loss(ONE, objective("exo_pair", label_smoothing=1e-3)).tolist())
    assert section.label_smoothing == 0


def test_robust_loss_averages_to_dpo_over_flipped_labels():
    flipped = pair_of(-14.0, -10.0, -13.0, -11.0)
    robust = objective("robust", label_smoothing=0.2)
    close(0.8 * pair_loss(ONE, robust) + 0.2 * pair_loss(flipped, robust), 0.598139)


def test_bco_and_kto_compare_with_the_baseline():
    shifted = replace(TWO, baseline=f64(-0.0375))
    close(pair_loss(shifted, objective("bco_pair")), [1.241953, 1.462739])
    # z0 = 0.5: (1 - σ(0.1 * 0.5)) + (1 - σ(0.1 * 1.5)) = 0.487503 + 0.462570
    close(pair_loss(replace(ONE, baseline=f64(0.5)), objective("kto")), 0.950073)


def test_the_baseline_is_estimated_from_the_whole_step():
    # rewards 0.1, -0.1, -0.2, 0.05
    foreign = f64([3.0, 1.0])
    close(step_baseline(TWO, foreign, objective("bco_pair")), -0.0375)
    # log-ratios of other prompts' completions; their mean, where it can be a KL
    close(step_baseline(TWO, foreign, objective("kto")), 2.0)
    close(step_baseline(TWO, -foreign, objective("kto")), 0.0)
    assert step_baseline(TWO, foreign, objective("dpo")) is None
    mix = objective("mix", parts=[{"objective": {}}, {"objective": {"kind": "bco_pair"}}])
    close(step_baseline(TWO, foreign, mix), -0.0375)


def test_the_baseline_carries_no_gradient():
    chosen = f64([-10.0]).requires_grad_()
    baseline = step_baseline(replace(ONE, chosen=chosen), f64([0.0]), objective("bco_pair"))
    assert baseline is not None
    assert not baseline.requires_grad


def test_a_mix_is_the_weighted_sum_of_its_parts():
    # MPO: 0.8 * 0.598139 + 0.2 * 1.288793 + 10
    parts = [
        {"objective": {"kind": "dpo"}, "weight": 0.8},
        {"objective": {"kind": "bco_pair"}, "weight": 0.2},
        {"objective": {"kind": "raft"}},
    ]
    close(pair_loss(ONE, objective("mix", parts=parts)), 10.736270)


def test_the_nll_term_adds_exactly_its_share():
    mix = objective("mix", parts=[{"objective": {}}, {"objective": {"kind": "raft"}, "weight": 0.5}])
    pair = replace(ONE, chosen_lengths=f64([4.0]))
    close(pair_loss(pair, mix) - pair_loss(pair, objective("dpo")), 0.5 * 2.5)


def test_margin_is_the_difference_of_the_log_ratios():
    close(ONE.margins, 2.0)
    close(TWO.margins, [3.0, -1.5])


# --- how log-ratios are formed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.598139),
        ({"divergence": "js"}, 0.644397),
        ({"divergence": "alpha", "alpha": 1.0}, 0.582517),
        # e^1 - e^-1 = 2.350402, -log σ(0.235040)
        ({"divergence": "forward_kl"}, 0.582517),
        # 2 (e^0.5 - e^-0.5) = 2.084381, -log σ(0.208438)
        ({"divergence": "alpha", "alpha": 0.5}, 0.594349),
        ({"reference_free": True}, 0.513015),
    ],
)
def test_dpo_with_shaped_log_ratios(options, expected):
    close(pair_loss(replace(ONE, log_ratios=LogRatioSection(**options)), objective("dpo")), expected)


def test_the_alpha_divergence_tends_to_the_reverse_kl():
    options = LogRatioSection(divergence="alpha", alpha=1e-6)
    torch.testing.assert_close(replace(TWO, log_ratios=options).margins, TWO.margins, rtol=0, atol=1e-5)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_every_divergence_is_zero_where_policy_and_reference_agree(divergence):
    pair = replace(EQUAL, log_ratios=LogRatioSection(divergence=divergence))
    close(pair.chosen_logratios, 0.0)
    close(pair_loss(pair, objective("nca_pair")), 1.386294)


def test_the_length_term_takes_the_margin_away_where_the_rejected_completion_is_longer():
    # 0.1 * (10 - 30) = -2 against a margin of 2
    options = LogRatioSection(length_penalty=0.1)
    pair = pair_of(-10.0, -14.0, -11.0, -13.0, lengths=(10.0, 30.0))
    close(pair_loss(replace(pair, log_ratios=options), objective("dpo")), 0.693147)


def test_the_length_term_lets_length_explain_the_preference_for_a_longer_completion():
    # R-DPO, Eq. 9 of arXiv:2403.19159: 0.1 * 2 + 0.01 * (30 - 10) = 0.4, -log σ(0.4); its alpha is beta times ours
    options = LogRatioSection(length_penalty=0.1)
    pair = pair_of(-10.0, -14.0, -11.0, -13.0, lengths=(30.0, 10.0))
    close(pair_loss(replace(pair, log_ratios=options), objective("dpo")), 0.513015)


def test_a_reference_free_aot_sorts_the_margins_of_the_policy():
    # policy margins 4 and 1, reference margins 0: -log σ(0.1) and -log σ(0.4)
    pair = replace(TWO, log_ratios=LogRatioSection(reference_free=True))
    close(pair_loss(pair, objective("aot")), [0.644397, 0.513015])


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        ("dpo", {"divergence": "js", "length_penalty": 0.1}, None),
        ("simpo", {}, None),
        ("simpo", {"divergence": "js"}, "simpo uses no log-ratios; leave log_ratios out"),
        (
            "ipo",
            {"length_penalty": 0.1},
            "ipo averages over length, so that length_penalty cancels; set it to 0",
        ),
        ("aot", {"reference_free": True}, None),
        (
            "aot",
            {"divergence": "js"},
            "aot sorts policy and reference apart; divergence js has no meaning for it",
        ),
    ],
)
def test_shapings_that_do_not_fit_an_objective_are_named(kind, options, problem):
    one, options = objective(kind), LogRatioSection(**options)
    assert shaping_problem(one, options) == problem
    assert (
        shaping_problem(objective("mix", parts=[{"objective": {}}, {"objective": one}]), options) == problem
    )


def test_ld_weights_count_tokens_beyond_the_other_side_less():
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]])
    weights = ld_weights(mask, torch.tensor([2, 4]), alpha=0.25)
    assert weights.tolist() == [[0, 1, 1, 0.25, 0.25, 0], [0, 0, 1, 1, 0, 0]]


def test_collision_is_the_log_of_the_summed_squares():
    # 0.5² + 0.3² + 0.2² = 0.38
    close(collision_logps(f64([0.5, 0.3, 0.2]).log() + 7), math.log(0.38))


def test_wpo_weights_are_one_for_uniform_samples_and_fall_with_unlikely_tokens():
    collisions = f64([[0.25, 0.25, 1], [0.5, 0.5, 1]]).log()
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    close(wpo_weights(f64([[0.25, 0.25, 1], [0.5, 0.5, 1]]).log(), collisions, mask), 1.0)
    # chosen: (1/2 * 1)^(1/2), rejected: (1/2 * 1/2)^(1/2); the token outside the mask does not count
    unlikely = f64([[0.125, 0.25, 0.1], [0.25, 0.25, 0.1]]).log()
    close(wpo_weights(unlikely, collisions, mask), math.sqrt(0.5) * 0.5)
    # twice as likely as a sample of the policy's own: at most 1
    close(wpo_weights(f64([[0.5, 0.5, 1], [0.5, 0.5, 1]]).log(), collisions, mask), 1.0)


def test_wpo_weights_carry_no_gradient():
    logps = f64([[-1.0], [-2.0]]).requires_grad_()
    assert not wpo_weights(logps, f64([[-1.0], [-1.0]]), torch.ones(2, 1)).requires_grad


# --- sections and losses belong together -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [one for one in sections_in(Objective) if one.model_fields["kind"].annotation.__args__[0] in LOSSES],
)
def test_keyword_parameters_of_a_loss_are_the_keys_of_its_section(section):
    kind = section.model_fields["kind"].annotation.__args__[0]
    parameters = inspect.signature(LOSSES[kind]).parameters.values()
    keywords = {one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords == set(section.model_fields) - {"kind"}


def test_every_loss_has_a_section_and_an_example_in_the_documentation():
    kinds = {one.model_fields["kind"].annotation.__args__[0] for one in sections_in(Objective)}
    assert kinds == {*LOSSES, "plackett_luce", "mix"}
    page = Path(__file__).parents[1] / "docs/concepts/objectives.md"
    examples = re.findall(r"`(\{kind: .*\})` \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    documented = [objective(**yaml.safe_load(example)).kind for example in examples]
    assert sorted(documented) == sorted(kinds)


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_says_what_its_loss_reads(kind):
    one = objective(kind)
    pair = replace(TWO, label_margins=f64([1.0, 2.0]))
    other_reference = replace(pair, reference_chosen=f64([-20.0, -5.0]))
    changed = not torch.equal(pair_loss(pair, one), pair_loss(other_reference, one))
    assert changed == one.needs_reference
    changed = not torch.equal(
        pair_loss(pair, one), pair_loss(replace(pair, label_margins=f64([3.0, 0.5])), one)
    )
    assert changed == one.needs_margin == (kind in NEED_MARGIN)


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_says_whether_it_needs_the_whole_step(kind):
    one = objective(kind)

    def loss(pair: PairLogps) -> torch.Tensor:
        baseline = step_baseline(pair, pair.chosen_logratios, one)
        return pair_loss(replace(pair, baseline=baseline), one).sum()

    # log-ratios c = (3, 1), r = (-1, 2), policy margins (6, 5), reference margins (2, 6): sorting changes all of them,
    # and they average above 0, so that kto has a baseline
    logps = [-8.0, -6.0], [-14.0, -11.0], [-11.0, -7.0], [-13.0, -13.0]
    first, second = (pair_of(*(side[i] for side in logps), label_margins=[1.0]) for i in (0, 1))
    whole = pair_of(*logps, label_margins=[1.0, 1.0])
    same = torch.allclose(loss(whole), loss(first) + loss(second), rtol=0, atol=1e-9)
    assert same == (not one.whole_step)


def test_a_mix_needs_what_its_parts_need():
    parts = {"simpo": objective("simpo"), "kto": objective("kto"), "odpo": objective("odpo")}
    mix = objective("mix", parts=[{"objective": parts["simpo"]}, {"objective": objective("raft")}])
    assert (mix.needs_reference, mix.needs_margin, mix.whole_step) == (False, False, False)
    mix = objective("mix", parts=[{"objective": one} for one in parts.values()])
    assert (mix.needs_reference, mix.needs_margin, mix.whole_step) == (True, True, True)


def test_a_mix_with_two_baselines_is_refused():
    with pytest.raises(ValidationError, match="bco_pair and kto cannot share one running baseline; keep one"):
        objective("mix", parts=[{"objective": {"kind": "bco_pair"}}, {"objective": {"kind": "kto"}}])


# --- numbers at the edge ---------------------------------------------------------------------------------------------

EXTREME = st.one_of(st.sampled_from([-1e4, -1e3, -50.0, 0.0, 50.0, 1e3, 1e4]), st.floats(-1e4, 1e4, width=32))


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
@pytest.mark.parametrize("kind", KINDS)
@given(chosen=EXTREME, rejected=EXTREME, margin=st.floats(-100, 100, width=32))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_loss_and_gradient_are_finite_at_extreme_log_ratios(kind, divergence, chosen, rejected, margin):
    reference = torch.tensor([-1e4])  # log-probabilities stay at or below 0
    logps = (torch.tensor([chosen, rejected]) + reference).requires_grad_()
    one = torch.ones(1)
    pair = PairLogps(
        logps[:1], logps[1:], reference, reference, one, one, label_margins=torch.tensor([margin]),
        log_ratios=LogRatioSection(divergence=divergence),
    )  # fmt: skip
    loss = pair_loss(pair, objective(kind))
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("apo_down", "discopop")])
def test_the_first_step_raises_chosen_and_does_not_raise_rejected(kind):
    """apo_down lowers both on purpose, and discopop is not monotone around a margin of 0."""
    logps = f64([-10.0, -14.0]).requires_grad_()
    sides = logps[:1], logps[1:]
    pair = PairLogps(*sides, f64([-10.0]), f64([-14.0]), f64([5.0]), f64([5.0]), label_margins=f64([1.0]))
    (gradient,) = torch.autograd.grad(pair_loss(pair, objective(kind)).sum(), logps)
    assert gradient[0] < 0 <= gradient[1]


# --- reward models ---------------------------------------------------------------------------------------------------


def test_bradley_terry_of_differences():
    zero, one = f64([0.0]), f64([1.0])
    close(bradley_terry_loss(zero, zero, one), 0.693147)
    close(bradley_terry_loss(one, zero, one), 0.313262)
    # half the annotators disagree: the mean of both directions, 0.313262 and 1.313262
    close(bradley_terry_loss(one, zero, f64([0.5])), 0.813262)


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0, 0.313262), (1 / 3, 0.414370), (2 / 3, 0.540306), (1, 0.693147), (2, 1.313262), (3, 2.126928)],
)
def test_bradley_terry_with_the_margins_of_llama_2(margin, expected):
    close(bradley_terry_loss(f64([1.5]), f64([0.5]), f64([1.0]), f64([margin])), expected)


def test_margin_ranking_is_what_lacks_to_the_margin():
    close(margin_ranking_loss(f64([1.0, 3.0]), f64([0.5, 0.0]), margin=2.0), [1.5, 0.0])


FOUR = [2.0, 1.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [([1, 2, 3, 4], 0.207038), ([1, 2, 2, 3], 0.185793), ([1, 1, 1, 1], 0.0)],
)
def test_k_way_loss_is_the_mean_over_untied_pairs(ranks, expected):
    scores = f64([FOUR]).requires_grad_()
    loss = k_way_loss(scores, torch.tensor([ranks]), torch.ones(1, 4))
    close(loss, expected)
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_k_way_loss_ignores_padding():
    scores, ranks = f64([[*FOUR, math.inf]]), torch.tensor([[1, 2, 3, 4, 0]])
    close(k_way_loss(scores, ranks, torch.tensor([[1, 1, 1, 1, 0]])), 0.207038)


def test_pair_weights_share_out_one_prompt():
    weights = pair_weights(torch.tensor([[1, 2, 2, 3], [1, 1, 1, 1]]), torch.ones(2, 4))
    assert weights.sum((1, 2)).tolist() == pytest.approx([1, 0])
    assert weights[0].tolist() == [
        pytest.approx([0, 0.2, 0.2, 0.2]),
        pytest.approx([0, 0, 0, 0.2]),
        pytest.approx([0, 0, 0, 0.2]),
        pytest.approx([0, 0, 0, 0]),
    ]


@pytest.mark.parametrize(
    ("scores", "ranks", "expected"),
    [
        # log(e² + e + 1) - 2 = 0.407606, then log(e + 1) - 1 = 0.313262
        ([2.0, 1.0, 0.0], [1, 2, 3], 0.720868),
        # the two tied ones have nobody to beat
        ([2.0, 1.0, 0.0], [1, 2, 2], 0.407606),
        # each of the tied ones against the last: log(1 + e^-2) + log(1 + e^-1)
        ([2.0, 1.0, 0.0], [1, 1, 2], 0.440190),
        ([2.0, 1.0, 0.0], [1, 1, 1], 0.0),
        ([1.0, 0.0], [1, 2], 0.313262),
        ([0.0, 0.0, 0.0, 0.0], [4, 2, 3, 1], math.log(24)),
    ],
)
def test_plackett_luce_of_a_ranking(scores, ranks, expected):
    padded = f64([[*scores, math.nan]])
    mask = torch.tensor([[*[1] * len(scores), 0]])
    close(plackett_luce_loss(padded, torch.tensor([[*ranks, 1]]), mask), expected)


def test_plackett_luce_of_one_tie_has_a_gradient_of_zero():
    scores = f64([[2.0, 1.0, 0.0]]).requires_grad_()
    plackett_luce_loss(scores, torch.ones(1, 3), torch.ones(1, 3)).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0, 0]]


@given(
    scores=st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    ranks=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    order=st.permutations(range(4)),
    shift=st.floats(-10, 10),
)
@settings(max_examples=50, deadline=None)
def test_plackett_luce_knows_neither_places_nor_the_zero_of_scores(scores, ranks, order, shift):
    scores, ranks, mask = f64([scores]), torch.tensor([ranks]), torch.ones(1, 4)
    again = plackett_luce_loss(scores[:, order] + shift, ranks[:, order], mask)
    torch.testing.assert_close(again, plackett_luce_loss(scores, ranks, mask))


STATEMENTS = f64([[1.0, 0.5, -1.0, -2.0]])
OPTIONS, RANDOM = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 0, 0, 1]])


def sparrow(chosen=0, options=OPTIONS, random=RANDOM, *, ce=0.0, bt=0.0, centring=0.0, bad=0.0):
    return sparrow_preference_loss(
        STATEMENTS, torch.tensor([chosen]), options, random,
        cross_entropy_weight=ce, bradley_terry_weight=bt, centring_weight=centring, bad_score=bad,
    )  # fmt: skip


def test_terms_of_the_sparrow_preference_loss():
    close(sparrow(ce=1.0), 0.583139)
    close(sparrow(ce=1.0, random=torch.zeros(1, 4)), 0.554957)
    close(sparrow(bt=1.0), 0.601005)
    close(sparrow(bt=1.0, options=OPTIONS + RANDOM), 0.649592)
    close(sparrow(centring=1.0), 0.140625)
    close(centring_loss(STATEMENTS, torch.ones(1, 4)), 0.140625)
    # 0.583139 + 2 * 0.601005 + 0.01 * 0.140625
    close(sparrow(ce=1.0, bt=2.0, centring=0.01), 1.786555)


def test_every_option_loses_against_the_fixed_score_where_all_are_bad():
    # log(1 + e + e^0.5 + e^-1 + e^-2), and log(1 + e) + log(1 + e^0.5) + log(1 + e^-1)
    close(sparrow(-1, ce=1.0), math.log(1 + math.e + 1.648721 + 0.367879 + 0.135335))
    close(sparrow(-1, bt=1.0), 1.313262 + 0.974077 + 0.313262)
    # against a score of 1 the best option draws: log 2
    close(
        sparrow(-1, options=torch.tensor([[1, 0, 0, 0]]), random=torch.zeros(1, 4), bt=1.0, bad=1.0), 0.693147
    )


def test_rule_loss_of_a_violation_probability():
    logits = f64([math.log(4), math.log(4)])  # p = 0.8
    close(rule_loss(logits, f64([1.0, 0.0])), [0.223144, 1.609438])


def test_the_combined_score_of_llama_2_falls_back_on_safety():
    def logit(p):
        return math.log(p / (1 - p))

    safety = f64([logit(0.1), logit(0.9), logit(0.9)])
    helpfulness = f64([logit(0.6)] * 3)
    combined = llama2_combined_score(helpfulness, safety, torch.tensor([False, False, True]))
    close(combined, [-2.197225, 0.405465, 2.197225])


def test_a_score_difference_in_elo():
    close(elo_difference(f64([1.0])), 173.7177928)
    close(elo_probability(f64([173.7177928, 400.0])), [0.731059, 10 / 11])


# --- KL estimators ---------------------------------------------------------------------------------------------------


def test_kl_estimators_average_to_the_exact_divergence():
    p, q = f64([0.5, 0.3, 0.2]), f64([0.2, 0.2, 0.6])
    # 0.5 log 2.5 + 0.3 log 1.5 + 0.2 log(1/3)
    exact = 0.5 * 0.916290732 + 0.3 * 0.405465108 - 0.2 * 1.098612289
    close((p * kl_k1(p.log(), q.log())).sum(), exact)
    close((p * kl_k3(p.log(), q.log())).sum(), exact)
    assert (kl_k3(p.log(), q.log()) >= 0).all()
    # biased: half of 0.5 * 0.839589 + 0.3 * 0.164402 + 0.2 * 1.206949
    close((p * kl_k2(p.log(), q.log())).sum(), 0.355252)


def test_dpo_can_be_called_without_a_section():
    close(dpo_loss(EQUAL, beta=0.1, label_smoothing=0.0), 0.693147)


def test_dpo_can_take_each_pairs_own_word_for_how_sure_its_label_is():
    # log-ratio margins of 10 at beta 0.1: 0.75 * 0.313262 + 0.25 * 1.313262, and with p = 0.5 their mean
    two = pair_of([6.0, 6.0], [-4.0, -4.0], [0.0, 0.0], [0.0, 0.0], p_chosen=[0.75, 0.5])
    close(dpo_loss(two, beta=0.1, label_smoothing="pair"), [0.563262, 0.813262])
    sure = replace(two, p_chosen=None)
    close(dpo_loss(sure, beta=0.1, label_smoothing="pair"), [0.313262, 0.313262])
    close(dpo_loss(two, beta=0.1, label_smoothing=0.0), [0.313262, 0.313262])
