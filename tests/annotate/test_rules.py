"""Scores by rule."""

import pytest

from prefloop.annotate.rules import RuleScorer
from prefloop.config import RuleAnnotator
from prefloop.interfaces import InputError
from prefloop.records import Completion, Group, Message, Prompt, file_completion


def group_of(*texts: str, answer: str | None = None) -> Group:
    prompt = Prompt.of((Message(role="user", content="What is half of one?"),), answer=answer)
    return Group(
        prompt=prompt,
        completions=tuple(file_completion(prompt, text, index) for index, text in enumerate(texts)),
    )


def values(group: Group, **options) -> list[float]:
    scorer = RuleScorer(RuleAnnotator(kind="rule", **options))
    return [row.value for row in scorer.score([group])]


def test_words_score_is_the_share_of_words_found_as_whole_words():
    group = group_of("The Cat sat.", "category theory", "cat and DOG", "I like C++!")
    assert values(group, rule="words", words=["cat", "dog"]) == [0.5, 0.0, 1.0, 0.0]
    assert values(group, rule="words", words=["C++"]) == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("words", [[], ["cat", " "]])
def test_words_rule_without_words_is_an_error(words):
    with pytest.raises(InputError, match="list at least one word"):
        RuleScorer(RuleAnnotator(kind="rule", rule="words", words=words))


def test_length_scores_characters_or_minus_the_distance_from_the_target():
    group = group_of("four", "é" * 10)
    assert values(group, rule="length") == [4.0, 10.0]
    assert values(group, rule="length", target_length=6) == [-2.0, -4.0]


def test_math_rule_gives_one_minus_half_and_minus_one():
    group = group_of(r"so \boxed{\frac{1}{2}}", r"so \boxed{2}", "I do not know", answer="0.5")
    assert values(group, rule="math_answer") == [1.0, -0.5, -1.0]


def test_math_rule_without_a_reference_answer_names_the_prompt():
    group = group_of("1")
    with pytest.raises(InputError, match=group.prompt.id):
        values(group, rule="math_answer")


def test_tales_rules_prefer_a_kind_tale_about_the_hero_to_noise():
    from prefloop import tales

    prompt, demonstration = tales.prompts()[0], tales.demonstrations(1)[0]
    prompt = Prompt.of(demonstration.messages[:-1])
    group = Group(
        prompt=prompt,
        completions=tuple(
            file_completion(prompt, text, index)
            for index, text in enumerate((demonstration.messages[-1].content, "xx yy zz"))
        ),
    )
    for rule in ("tales", "tales_craft"):
        good, noise = values(group, rule=rule)
        assert good > noise


def test_rows_name_prompt_completion_and_rule_and_cost_one_label():
    group = group_of("a", "bb")
    rows = list(RuleScorer(RuleAnnotator(kind="rule", rule="length")).score([group]))
    assert [row.completion_id for row in rows] == [one.id for one in group.completions]
    assert {row.prompt_id for row in rows} == {group.prompt.id}
    assert {(row.annotator, row.labels) for row in rows} == {("rule/length", 1)}
    assert isinstance(group.completions[0], Completion)
