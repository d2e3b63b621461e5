"""The composite score: its parts, its weights, and the scale they are brought to."""

from collections.abc import Iterable, Iterator

import pytest

from prefloop.annotate.composite import CompositeScorer, token_counter
from prefloop.annotate.reward_model import over_rules
from prefloop.config import CompositeAnnotator
from prefloop.interfaces import InputError
from prefloop.records import Completion, Group, Message, Prompt, Refusal, Score

PROMPT = Prompt.of((Message(role="user", content="Hi"),))
FOLLOWS = {"be kind": 0.9, "be brief": 0.8, "be right": 0.5}


class Fixed:
    """Gives each text a value that is known."""

    def __init__(self, values: dict[str, float], parts: dict[str, float] | None = None) -> None:
        self.name = "fixed"
        self.values = values
        self.parts = parts

    def score(self, groups: Iterable[Group]) -> Iterator[Score | Refusal]:
        for group in groups:
            for one in group.completions:
                if one.text not in self.values:
                    yield Refusal(
                        prompt_id=PROMPT.id, completion_ids=(one.id,), annotator="fixed", reason="no"
                    )
                else:
                    value = self.values[one.text]
                    yield Score(
                        prompt_id=PROMPT.id,
                        completion_id=one.id,
                        value=value,
                        annotator="fixed",
                        parts=self.parts,
                    )


def group(*texts: str, tokens: int | None = 40) -> Group:
    ids = None if tokens is None else (7,) * tokens
    completions = tuple(
        Completion(id=f"{place}{text}", prompt_id=PROMPT.id, text=text, token_ids=ids)
        for place, text in enumerate(texts)
    )
    return Group(prompt=PROMPT, completions=completions)


def composite(preference: dict[str, float], rule_scorer=None, *, reference=(), **options) -> CompositeScorer:
    section = CompositeAnnotator(kind="composite", **options)
    scorer = Fixed(preference)
    return CompositeScorer(
        section, scorer, rule_scorer, count_tokens=token_counter(scorer), reference=reference
    )


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 1.833333), ("sum", 3.3)])
def test_the_score_is_the_one_of_the_specification(reduction, expected):
    """Preference 1.5, rules followed with .9 .8 .5, 40 tokens at .01, in the form that is asked for."""
    rules = Fixed({"text": over_rules(list(FOLLOWS.values()), reduction)}, FOLLOWS)
    options = {"rules": {"model": "m", "reduction": reduction}, "template": "te.t"}
    (row,) = composite({"text": 1.5}, rules, **options).score([group("text")])
    assert row.value == pytest.approx(expected, abs=1e-6)
    assert row.parts["preference"] == 1.5
    assert (row.parts["length"], row.parts["invalid"]) == (40.0, 0.0)
    assert {name: row.parts[f"rules/{name}"] for name in FOLLOWS} == FOLLOWS
    assert sum(value for name, value in row.parts.items() if name.startswith("weighted/")) == pytest.approx(
        row.value
    )
    assert row.parts["weighted/length"] == pytest.approx(-0.4)


def test_a_weight_of_nothing_leaves_a_part_out_of_the_score_but_not_out_of_the_log():
    """Sparrow's trade-off: preference alone, rules alone, or both."""
    rules = Fixed({"text": 0.25})
    both = {"rules": {"model": "m"}, "rule_weight": 4.0, "length_weight": 0.0}
    (row,) = composite({"text": 1.5}, rules, **both, preference_weight=0.0).score([group("text")])
    assert row.value == 1.0
    assert (row.parts["preference"], row.parts["weighted/preference"]) == (1.5, 0.0)
    (row,) = composite({"text": 1.5}, rules, **both, preference_weight=2.0).score([group("text")])
    assert row.value == 4.0
    with pytest.raises(ValueError, match="preference_weight: 0 leaves nothing to score by"):
        composite({"text": 1.5}, preference_weight=0.0)


def test_text_that_does_not_match_the_whole_template_is_invalid():
    scorer = composite({"a\nb": 1.0, "a\nbc": 1.0}, template="a.b", invalid_weight=5.0, length_weight=0.0)
    assert [row.value for row in scorer.score([group("a\nb", "a\nbc")])] == [1.0, -4.0]


def test_parts_that_are_not_asked_for_do_not_count():
    (row,) = composite({"text": 1.5}, length_weight=0.0).score([group("text", tokens=None)])
    assert (row.value, row.parts) == (1.5, {"preference": 1.5, "weighted/preference": 1.5})


def test_parts_are_standardised_on_the_reference_groups():
    """Preference has mean 2 and deviation 1 there; all texts are 40 tokens long, which counts as deviation 1."""
    reference = [group("low", "high")]
    scorer = composite({"low": 1.0, "high": 3.0, "text": 4.0}, reference=reference, length_weight=0.5)
    assert scorer.standardised_by == {"preference": (2.0, 1.0), "length": (40.0, 1.0)}
    (row,) = scorer.score([group("text", tokens=44)])
    assert row.value == pytest.approx(2.0 - 0.5 * 4)
    assert row.parts["preference"] == 4.0  # what was measured, before scale and weight


def test_a_part_that_is_always_the_same_is_not_blown_up_by_rounding():
    """The mean of three times 0.1 is not 0.1 in binary, so that numpy's deviation is 1.4e-17 and not 0."""
    same = {"a": 0.1, "b": 0.1, "c": 0.1}
    scorer = composite({**same, "text": 0.3}, reference=[group(*same)], length_weight=0.0)
    assert scorer.standardised_by["preference"] == pytest.approx((0.1, 1.0))
    (row,) = scorer.score([group("text")])
    assert row.value == pytest.approx(0.2)


def test_a_refusal_of_one_part_is_a_refusal():
    rows = list(composite({"good": 1.0}).score([group("good", "unknown")]))
    assert [type(row) for row in rows] == [Score, Refusal]
    with pytest.raises(InputError, match="every completion was refused"):
        composite({}, reference=[group("x")])


def test_tokens_of_text_from_a_file_need_a_model_that_can_count_them():
    with pytest.raises(InputError, match=r"came from a file.*length_weight=0"):
        list(composite({"text": 1.0}).score([group("text", tokens=None)]))
