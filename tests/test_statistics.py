import numpy as np
import pytest
from scipy import stats

from prefloop.statistics import by_prompt, correlation, distinct_n, mean_interval, wins


def test_an_interval_agrees_with_the_normal_approximation_on_many_values():
    values = np.random.default_rng(0).normal(2.0, 3.0, 2000)
    found = mean_interval(list(values), confidence=0.95, resamples=4000)
    half_width = stats.norm.ppf(0.975) * values.std() / np.sqrt(2000)
    assert found["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert found["high"] - found["mean"] == pytest.approx(half_width, rel=0.08)
    assert found["mean"] - found["low"] == pytest.approx(half_width, rel=0.08)


def test_wider_confidence_gives_a_wider_interval():
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    narrow, wide = (mean_interval(values, confidence=one, resamples=2000) for one in (0.5, 0.99))
    assert wide["low"] < narrow["low"] < 0.5 < narrow["high"] < wide["high"]


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0]])
def test_values_that_do_not_vary_have_no_width(values):
    assert mean_interval(values, confidence=0.95, resamples=100) == {
        "mean": 3.0, "low": 3.0, "high": 3.0, "n": len(values),
    }  # fmt: skip


def test_nothing_has_no_interval():
    assert mean_interval([], confidence=0.95, resamples=100) is None


def test_wins_count_ties_one_half():
    assert wins([1.0, 2.0, 3.0], [0.0, 2.0, 5.0]) == [1.0, 0.5, 0.0]


def test_samples_of_a_prompt_are_averaged_first():
    assert by_prompt(["a", "a", "b"], [1.0, 3.0, 5.0]) == {"a": 2.0, "b": 5.0}


def test_distinct_n_counts_different_grams_of_all_texts():
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6, abs=1e-6)
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4, abs=1e-6)
    assert distinct_n(["a"], 2) == 0.0


def test_correlation_is_undefined_where_nothing_varies():
    assert correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1.0)
    assert correlation([1.0, 1.0], [2.0, 4.0]) is None
