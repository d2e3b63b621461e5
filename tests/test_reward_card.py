"""What a reward card measures, on a handful of pairs counted by hand."""

import math

import pytest

from prefloop.evaluate.card_types import Opinion
from prefloop.evaluate.reward_card import reward_card
from prefloop.interfaces import InputError
from prefloop.records import Message, PreferencePair, Prompt, file_completion
from prefloop.statistics import (
    calibration,
    clustered_interval,
    cohen_kappa,
    fitted_temperature,
    mcnemar_p_value,
    mean_interval,
    not_worse,
    rank_correlation,
    wilson_interval,
)

LN = math.log


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_newcombe_1998(successes, n, low, high):
    found = wilson_interval(successes, n, confidence=0.95)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=5e-5)
    assert (found["mean"], found["n"]) == (pytest.approx(successes / n, abs=1e-6), n)


def test_copies_inside_a_cluster_do_not_narrow_the_interval():
    values = [float(index % 3 == 0) for index in range(90)]
    once = mean_interval(values, confidence=0.95, resamples=4000)
    copied = [value for value in values for _ in range(4)]
    clusters = [index for index in range(90) for _ in range(4)]
    found = clustered_interval(copied, clusters, confidence=0.95, resamples=4000)
    assert found["n"] == 360
    assert found["mean"] == once["mean"]
    assert found["high"] - found["low"] == pytest.approx(once["high"] - once["low"], rel=0.05)


def test_a_cluster_counts_by_its_values():
    found = clustered_interval([1.0, 1.0, 0.0], ["a", "a", "b"], confidence=0.95, resamples=2000)
    # both clusters drawn: 2/3; a twice: 1; b twice: 0
    assert found == {"mean": 0.666667, "low": 0.0, "high": 1.0, "n": 3}


def test_mcnemar_is_a_fair_coin_on_the_pairs_that_differ():
    assert mcnemar_p_value(1, 7) == pytest.approx(
        2 * (1 + 8) / 2**8, abs=1e-6
    )  # 0.0703, Fagerland et al. 2013
    assert mcnemar_p_value(0, 6) == pytest.approx(2 / 2**6, abs=1e-6)
    assert (mcnemar_p_value(5, 5), mcnemar_p_value(0, 0)) == (1.0, 1.0)


def test_kappa_of_a_known_table_is_two_fifths():
    # yes-yes 20, yes-no 5, no-yes 10, no-no 15: observed 0.7, expected 0.5
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert cohen_kappa(a, a) == 1.0
    assert cohen_kappa(["yes"] * 3, ["yes"] * 3) is None
    assert cohen_kappa([], []) is None


def test_rank_correlation_looks_at_order_only():
    assert rank_correlation([1.0, 2.0, 300.0], [10.0, 30.0, 20.0]) == pytest.approx(0.5)  # 1 - 6 * 2 / 24
    assert rank_correlation([1.0, 1.0], [2.0, 3.0]) is None
    assert rank_correlation([], []) is None


def compared(new, old, tolerance=0.0):
    return not_worse(new, old, tolerance=tolerance, confidence=0.95, resamples=2000)


def test_a_model_is_not_worse_than_itself():
    verdict = compared([1.0, 0.0, 0.5], [1.0, 0.0, 0.5])
    assert (verdict.not_worse, verdict.direction, verdict.p_value) == (True, "not told apart", 1.0)
    assert (verdict.difference["low"], verdict.difference["high"]) == (0.0, 0.0)


def test_without_a_tolerance_the_share_decides_and_with_one_a_small_loss_must_be_shown():
    old, new = [1.0] * 100, [0.0] + [1.0] * 99
    assert not compared(new, old).not_worse
    assert compared(old, new).not_worse
    # the interval of a loss of 1 in 100 reaches down to -3 in 100
    assert not compared(new, old, 0.02).not_worse
    assert compared(new, old, 0.05).not_worse


def test_a_larger_tolerance_never_refuses_what_a_smaller_one_lets_pass():
    ahead = ([1.0, 1.0, 0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0, 1.0])  # +1/6, interval far below 0
    passes = [compared(*ahead, tolerance).not_worse for tolerance in (0.0, 0.01, 0.1, 0.5, 1.0)]
    assert passes == [True] * 5


def test_five_pairs_on_one_side_are_chance_and_six_are_not():
    five = compared([1.0] * 5, [0.0] * 5)
    assert (five.direction, five.p_value) == ("not told apart", 0.0625)  # though the bootstrap says 1 to 1
    six = compared([1.0] * 6, [0.0] * 6)
    assert (six.direction, six.p_value, six.new_only, six.old_only) == ("better", 0.03125, 6, 0)
    assert compared([0.0] * 6, [1.0] * 6).direction == "worse"


def test_no_pairs_cannot_be_compared():
    with pytest.raises(ValueError, match="no pairs"):
        compared([], [])


def test_a_model_that_says_four_fifths_and_is_right_in_four_of_five_is_calibrated():
    found = calibration([LN(4)] * 4 + [-LN(4)], confidence=0.95)
    (only,) = found.bins
    assert (only.low, only.high, only.stated, only.right["mean"]) == pytest.approx((0.8, 0.85, 0.8, 0.8))
    assert found.expected_calibration_error == pytest.approx(0.0, abs=1e-6)
    assert found.brier == pytest.approx((4 * 0.2**2 + 0.8**2) / 5)
    assert found.log_loss == pytest.approx(0.500402, abs=1e-6)  # (4 * 0.223144 + 1.609438) / 5
    assert found.temperature == pytest.approx(1.0, abs=1e-5)


def test_the_temperature_brings_nine_tenths_down_to_three_quarters():
    # log-odds ln 9, right in 3 of 4: the best log-odds are ln 3, half of it
    assert fitted_temperature([LN(9)] * 3 + [-LN(9)]) == pytest.approx(2.0, abs=1e-5)
    found = calibration([LN(9)] * 3 + [-LN(9)], confidence=0.95)
    assert found.expected_calibration_error == pytest.approx(0.15, abs=1e-6)
    assert found.log_loss_at_temperature == pytest.approx(0.562335, abs=1e-6)  # entropy of 3/4


def test_the_calibration_error_weighs_bins_by_their_pairs():
    # four pairs at 0.6 and one at 0.9, all right: gaps 0.4 and 0.1
    found = calibration([LN(1.5)] * 4 + [LN(9)], confidence=0.95)
    assert found.expected_calibration_error == pytest.approx((4 * 0.4 + 0.1) / 5, abs=1e-6)


def test_no_temperature_helps_a_model_that_is_always_right_or_no_better_than_reversed():
    assert fitted_temperature([0.1, 2.0]) is None
    assert fitted_temperature([1.0, -1.0]) is None
    assert fitted_temperature([0.0, 0.0]) is None


def test_ties_are_coins():
    found = calibration([0.0, 0.0], confidence=0.95)
    assert (found.stated, found.brier, found.expected_calibration_error) == (0.5, 0.25, 0.0)
    assert found.log_loss == pytest.approx(LN(2), abs=1e-6)


def test_a_huge_difference_has_a_finite_log_loss():
    assert calibration([-2000.0, 1.0], confidence=0.95).log_loss == pytest.approx(
        (2000 + 0.313262) / 2, abs=1e-5
    )


# --- the card --------------------------------------------------------------------------------------------------------


def pair(
    chosen: int, rejected: int, *, question: str = "", margin: float = 1.0, source: str = ""
) -> PreferencePair:
    """A pair whose completions have these lengths."""
    prompt = Prompt.of((Message(role="user", content=question or f"{chosen}, {rejected}?"),), source=source)
    sides = (
        file_completion(prompt, letter * length, place)
        for place, (letter, length) in enumerate((("c", chosen), ("r", rejected)))
    )
    return PreferencePair.of(prompt, *sides, margin=margin, annotator="people")


PAIRS = [pair(3, 1), pair(5, 2), pair(2, 2), pair(2, 6)]
SCORES = ((2.0, 1.0), (0.0, 1.0), (1.0, 1.0), (3.0, 0.0))
"""Right, wrong, tie, right."""


def card(values, *, pairs=PAIRS, kind="scalar", previous=None, num_mistakes=5):
    return reward_card(
        pairs,
        Opinion("new", kind, tuple(values)),
        None if previous is None else Opinion("old", kind, tuple(previous)),
        tolerance=0.0,
        confidence=0.95,
        resamples=200,
        num_mistakes=num_mistakes,
    )


def test_accuracy_counts_ties_one_half_and_apart():
    found = card(SCORES)
    assert (found.accuracy["mean"], found.ties) == (0.625, 1)
    assert (found.num_pairs, found.num_prompts) == (4, 4)


def test_length_baselines_and_what_the_model_prefers():
    length = card(SCORES).length
    assert (length.longer["mean"], length.shorter["mean"], length.stronger) == (0.625, 0.375, "longer")
    assert length.verdict.difference["mean"] == 0.0
    # of the three with different lengths and scores it prefers the longer in the first only
    assert (length.prefers_longer["mean"], length.prefers_longer["n"]) == (pytest.approx(1 / 3, abs=1e-6), 3)


def test_the_stronger_baseline_may_be_the_shorter_answer():
    pairs = [pair(1, 4, question=str(number)) for number in range(6)]
    length = card([(1.0, 0.0)] * 6, pairs=pairs).length
    assert (length.stronger, length.longer["mean"], length.shorter["mean"]) == ("shorter", 0.0, 1.0)
    assert length.verdict.direction == "not told apart"
    assert length.prefers_longer["mean"] == 0.0


def test_a_score_that_is_the_length_correlates_perfectly_with_it():
    length = card([(3, 1), (5, 2), (2, 2), (2, 6)]).length
    assert (length.correlation, length.correlation_within) == (1.0, 1.0)


def test_a_completion_in_several_pairs_counts_once_for_the_correlation():
    prompt = Prompt.of((Message(role="user", content="?"),))
    a, b, c = (file_completion(prompt, "x" * length, length) for length in (1, 2, 3))
    pairs = [PreferencePair.of(prompt, *sides, margin=1.0, annotator="p") for sides in ((a, b), (a, c))]
    # ranks of the scores 3, 1, 2 against the lengths 1, 2, 3: 1 - 6 * 6 / 24
    assert card([(3.0, 1.0), (3.0, 2.0)], pairs=pairs).length.correlation == pytest.approx(-0.5)


def buckets(found, name):
    (breakdown,) = (one for one in found.breakdowns if one.name == name)
    return [(one.name, one.right["n"], one.right["mean"]) for one in breakdown.buckets]


def test_length_buckets_mirror_each_other():
    pairs = [pair(10 + difference, 10) for difference in (-9, -3, 0, 3, 9)]
    found = card([(1.0, 0.0)] * 4 + [(0.0, 1.0)], pairs=pairs)
    # thirds of 0, 3, 3, 9, 9 are 3 and 7
    assert buckets(found, "length of chosen against rejected") == [
        ("much shorter, over 7", 1, 1.0),
        ("as long, within 3", 3, 1.0),
        ("much longer, over 7", 1, 0.0),
    ]


def test_few_margins_have_a_bucket_each_and_many_are_cut_into_quarters():
    few = [pair(1, 2, question=str(place), margin=margin) for place, margin in enumerate((0.5, 2.0, 2.0))]
    assert buckets(card(SCORES[:3], pairs=few), "label margin") == [("0.5", 1, 1.0), ("2", 2, 0.25)]
    many = [pair(1, 2, question=str(place), margin=float(place)) for place in range(8)]
    quarters = buckets(card([(1.0, 0.0)] * 8, pairs=many), "label margin")
    assert [number for _, number, _ in quarters] == [2, 2, 2, 2]


def test_accuracy_at_the_high_end_of_the_scores_and_by_source():
    pairs = [pair(1, 2, question=str(place), source="ab"[place > 1]) for place in range(4)]
    found = card([(1.0, 0.0), (2.0, 1.0), (9.0, 8.0), (8.0, 9.0)], pairs=pairs)
    assert buckets(found, "mean score of the two") == [("0.5", 1, 1.0), ("1.5", 1, 1.0), ("8.5", 2, 0.5)]
    assert buckets(found, "source") == [("a", 2, 1.0), ("b", 2, 0.5)]
    assert "annotator" not in [one.name for one in found.breakdowns]  # there is one


def test_both_orders_of_a_pairwise_model():
    # first pair: chosen in both orders; second: whichever is shown first
    found = card([(0.9, 0.3), (0.8, 0.6)], pairs=PAIRS[:2], kind="pairwise")
    position = found.position
    assert found.accuracy["mean"] == 1.0  # p(chosen) is 0.8 and 0.6
    assert found.calibration.stated == pytest.approx(0.7)
    assert position.agree["mean"] == 0.5
    assert position.inconsistency == pytest.approx(0.3)
    assert position.first_bias["mean"] == pytest.approx(0.15)
    assert position.first_share == 0.75
    assert (position.right_chosen_first["mean"], position.right_chosen_second["mean"]) == (1.0, 0.5)
    assert found.length.correlation is None


def test_a_pairwise_model_that_is_certain_has_finite_log_odds():
    found = card([(1.0, 0.0), (0.0, 1.0)], pairs=PAIRS[:2], kind="pairwise")
    assert found.accuracy["mean"] == 0.5
    assert found.calibration.log_loss == pytest.approx(-LN(1e-6) / 2, abs=1e-3)


def test_beside_the_previous_model():
    # new: right, right, wrong, tie; old: right, wrong, right, tie
    new = ((1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (2.0, 2.0))
    old = ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0))
    previous = card(new, previous=old).previous
    assert previous.accuracy["mean"] == 0.625
    assert previous.agree["mean"] == 0.5
    assert previous.kappa == pytest.approx(0.2)  # observed 8/16, expected 6/16
    assert (previous.gained, previous.lost) == ((PAIRS[1].id,), (PAIRS[2].id,))
    assert previous.verdict.not_worse
    assert previous.shift.mean == pytest.approx(7 / 8 - 3 / 8)
    assert previous.shift.sd_old == pytest.approx(math.sqrt(15 / 64), abs=1e-6)


def test_the_most_confident_mistakes_come_first():
    found = card([(0.0, 1.0), (0.0, 3.0), (1.0, 0.0), (0.0, 2.0)], num_mistakes=2).mistakes
    assert [one.pair_id for one in found] == [PAIRS[1].id, PAIRS[3].id]
    assert found[0].stated == pytest.approx(0.952574, abs=1e-6)  # sigmoid(3)


def test_a_prompt_has_its_worst_mistake_shown_only():
    pairs = [pair(1, 2, question="?"), pair(3, 4, question="?"), pair(5, 6)]
    found = card([(0.0, 2.0), (0.0, 3.0), (0.0, 1.0)], pairs=pairs).mistakes
    assert [one.pair_id for one in found] == [pairs[1].id, pairs[2].id]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_names_its_pair(value):
    with pytest.raises(InputError, match=rf"pair 2 of 4 \(id {PAIRS[1].id}\): new says 1.0 and {value}"):
        card([SCORES[0], (1.0, value), *SCORES[2:]])


def test_no_pairs_are_an_error():
    with pytest.raises(InputError, match="no pairs to judge"):
        card((), pairs=[])
