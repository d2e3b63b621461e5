"""How many labels an arm needs to come as far as the baseline: values by hand."""

import numpy as np
import pytest

from prefloop.studies.definition import Study
from prefloop.studies.label_cost import label_costs, labels_to_reach
from prefloop.studies.measuring import Found

LABELS = (100.0, 200.0, 300.0)
STUDY = Study.model_validate(
    {
        "name": "asking",
        "question": "which questions teach most?",
        "experiment": "quickstart",
        "arms": {"random": {}, "doubt": {}},
        "baseline": "random",
        "measures": {"gain": {"figure": "win.mean"}},
        "courses": [{"figure": "win.mean"}, {"figure": "win.mean", "against": "root_kl"}],
    }
)


def found(arm: str, seed: int, *values: float) -> Found:
    course = tuple(zip(LABELS, values, strict=True))
    return Found("", arm, seed, 1.0, {}, {}, {one.name: course for one in STUDY.courses})


@pytest.mark.parametrize(
    ("level", "labels"),
    [(0.6, 250.0), (0.2, 100.0), (0.1, 100.0), (0.4, 200.0), (0.8, 300.0), (0.81, float("inf"))],
)
def test_a_level_is_reached_in_a_straight_line_between_two_evaluations(level, labels):
    assert labels_to_reach(np.array([LABELS, (0.2, 0.4, 0.8)]), level) == pytest.approx(labels)


def test_a_curve_that_falls_again_has_reached_what_it_first_reached():
    assert labels_to_reach(np.array([LABELS, (0.2, 0.6, 0.4)]), 0.4) == pytest.approx(150.0)


def test_the_ratio_is_to_when_the_baseline_itself_is_at_its_last_value():
    runs = [
        found(arm, seed, *values)
        for seed in range(3)
        for arm, values in (("random", (0.2, 0.4, 0.5)), ("doubt", (0.3, 0.5, 0.6)))
    ]
    (cost,) = label_costs(STUDY, ("random", "doubt"), runs)
    assert (cost.course, cost.arm, cost.n) == ("win.mean against labels", "doubt", 3)
    assert (cost.level, cost.labels, cost.baseline_labels) == pytest.approx((0.5, 200.0, 300.0))
    assert (cost.ratio, cost.low, cost.high) == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_never_is_not_a_number():
    runs = [found("random", 0, 0.2, 0.4, 0.5), found("doubt", 0, 0.2, 0.3, 0.4)]
    (cost,) = label_costs(STUDY, ("random", "doubt"), runs)
    assert (cost.labels, cost.ratio, cost.low, cost.high) == (None, None, None, None)


def test_a_seed_that_never_arrives_opens_the_interval():
    """Means reach the level at 300. A quarter of the samples has the first seed twice, 100 of 300; one never arrives."""
    runs = [
        found("random", 0, 0.2, 0.4, 0.5),
        found("random", 1, 0.2, 0.4, 0.5),
        found("doubt", 0, 0.5, 0.7, 0.9),
        found("doubt", 1, 0.1, 0.1, 0.1),
    ]
    (cost,) = label_costs(STUDY, ("random", "doubt"), runs)
    assert (cost.labels, cost.ratio) == pytest.approx((300.0, 1.0))
    assert cost.low == pytest.approx(1 / 3)
    assert cost.high is None


def test_seeds_that_one_of_the_two_lacks_are_left_out():
    runs = [
        found("random", 0, 0.2, 0.4, 0.5),
        found("random", 1, 0.9, 0.9, 0.9),
        found("doubt", 0, 0.2, 0.5, 0.6),
        found("doubt", 2, 0.0, 0.0, 0.0),
    ]
    (cost,) = label_costs(STUDY, ("random", "doubt"), runs)
    assert (cost.n, cost.level, cost.labels) == (1, pytest.approx(0.5), pytest.approx(200.0))


def test_without_a_baseline_nothing_is_compared():
    study = STUDY.model_copy(update={"baseline": None})
    assert label_costs(study, ("random",), [found("random", 0, 0.2, 0.4, 0.5)]) == []
