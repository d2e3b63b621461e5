"""What was stored goes back to the screen as it was said."""

import itertools

import pytest

from prefloop.labels.projects import ProjectConfig
from prefloop.labels.values import said_value, stored_value

CONFIG = ProjectConfig(axes=("helpful",))
PAIRWISE = [
    {"strength": 1},
    {"strength": 5, "axes": {"helpful": 8}},
    {"verdict": "tie"},
    {"verdict": "both_bad", "spans": [{"position": 1, "start": 2, "end": 7, "note": "wrong"}]},
]
RANKED = [
    {"groups": [[0], [1], [2]], "unrankable": []},
    {"groups": [[2], [0, 1]], "unrankable": []},
    {"groups": [[1]], "unrankable": [0, 2]},
]
STEPPED = [
    {"strength": 8, "labels": ["correct", "unsure"]},
    {"labels": ["incorrect", "correct"]},
    {"verdict": "tie"},
]


@pytest.mark.parametrize("presented", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("kind", "said"), [*(("pairwise", one) for one in PAIRWISE), *(("steps", one) for one in STEPPED)]
)
def test_two_texts_either_way_round(kind, said, presented):
    assert said_value(kind, stored_value(kind, said, presented, CONFIG), presented) == said


@pytest.mark.parametrize("presented", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("said", RANKED)
def test_rankings_in_every_order(said, presented):
    assert said_value("rank", stored_value("rank", said, presented, CONFIG), presented) == said


def test_a_form_and_an_edit_are_about_one_text_and_stay():
    form = {"ratings": {"overall": 6}, "flags": {"opinion": True}}
    assert said_value("form", stored_value("form", form, (0,), CONFIG), (0,)) == form
    assert said_value("edit", stored_value("edit", {"text": "Better."}, (0,), CONFIG), (0,)) == {
        "text": "Better."
    }


def test_the_strip_turns_with_the_texts():
    stored = {"choice": "a", "strength": 2}
    assert said_value("pairwise", stored, (0, 1)) == {"strength": 2}
    assert said_value("pairwise", stored, (1, 0)) == {"strength": 7}
