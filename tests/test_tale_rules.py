"""The tales' rules: who breaks one, what simulated people say about it, and what a policy learns to ask."""

from collections import Counter

import pytest

from prefloop import tale_rules, tales, verdicts
from prefloop.annotate.rules import RuleScorer
from prefloop.config import RuleAnnotator, SourceSection
from prefloop.data import read_demonstrations, read_prompts, read_texts
from prefloop.interfaces import InputError
from prefloop.records import Group, file_completion

FOOD, SONG, MORAL = tale_rules.RULES


@pytest.mark.parametrize(
    ("tale", "broken"),
    [
        ("She carried the tired hen home. Everyone cheered for Ada.", set()),
        ("She shared her Soup with a bee.", {FOOD}),
        ("She wanted a honey cake.", {FOOD}),
        ("She sang to a lonely moth.", {SONG}),
        ("They danced until the moon rose. A kind heart is never alone.", {SONG, MORAL}),
        ("At last she found the new song. She ate some nuts. What you give comes back to you.", {FOOD, SONG, MORAL}),
        # within other words they break nothing
        ("The doughnuts were unsung.", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_a_rule_is_broken_by_its_words(tale, broken):
    assert {rule for rule in tale_rules.RULES if tale_rules.breaks(rule, tale)} == broken
    prompt = tales.prompts(1)[0]
    group = Group(prompt=prompt, completions=(file_completion(prompt, tale),))
    (row,) = RuleScorer(RuleAnnotator(kind="rule", rule="tales_rules")).score([group])
    assert row.value == pytest.approx(1 - len(broken) / 3)


def test_what_people_enjoy_in_a_tale_breaks_rules():
    """So that preference and rules can want different things."""
    request = "Tell a tale of Ada the fox who wanted a map."
    plain = "Ada the fox lived by the lake. She wanted a map more than anything."
    for liked in ("She shared her soup with a bee.", "They danced until the moon rose.", tales.MORALS[0]):
        assert tales.quality(request, f"{plain} {liked}") > tales.quality(request, plain)
        assert tale_rules.follows(f"{plain} {liked}") < tale_rules.follows(plain)


def test_verdicts_are_mostly_right_and_unsure_ones_are_dropped():
    loaded = verdicts.read_rule_verdicts(SourceSection(path="builtin:tales/verdicts", limit=1000))
    assert loaded.rows_in == 1000 == len(loaded.rows) + sum(loaded.dropped.values())
    # 8 in 100 say unsure
    assert 50 < loaded.dropped["unsure"] < 110
    right = [one.violated == tale_rules.breaks(one.rule, one.completion.text) for one in loaded.rows]
    # of a hundred, 86 are right, 6 wrong and 8 unsure
    assert 0.9 < sum(right) / len(right) < 0.96
    assert {len(one.prompt.messages) for one in loaded.rows} == {1, 3}
    by_rule = Counter((one.rule, one.violated) for one in loaded.rows)
    assert len(by_rule) == 6
    assert min(by_rule.values()) > 90, "every rule is broken and kept often enough to learn it"


def test_probes_are_prompts_that_name_what_is_forbidden():
    found = tale_rules.probes()
    assert {one.id for one in found} < {one.id for one in tales.prompts()}
    assert all(tale_rules.follows(one.text) < 1 for one in found)
    assert len(found) > 200


def test_dialogues_wait_for_an_answer_and_are_about_nobody_that_prompts_are_about():
    asked = {one.text for one in tales.prompts()}
    for one in tale_rules.dialogues(50):
        assert [turn.role for turn in one.messages] == ["user", "assistant", "user"]
        assert tales.craft(one.messages[0].content, one.messages[1].content) == 1.0
        assert not asked & {one.messages[0].content, one.text}


def test_talks_show_how_to_answer_and_how_to_ask():
    answers = {"ask": 0, "probe": 0, "tale": 0}
    for one in tale_rules.talks(300):
        request, answer = one.messages[-2].content, one.messages[-1].content
        if request.endswith(tale_rules.ASK):
            answers["ask"] += 1
            assert tales.read_prompt(answer)
        elif request.endswith(tale_rules.PROBE):
            answers["probe"] += 1
            assert tales.read_prompt(answer).thing in tale_rules.TEMPTING
        else:
            answers["tale"] += 1
            assert tales.craft(request, answer) == 1.0
    assert min(answers.values()) > 15


def test_everything_is_the_same_every_time_and_a_limit_takes_the_first():
    for made in (tale_rules.dialogues, tale_rules.probes, tale_rules.verdicts, tale_rules.talks):
        assert made(20)[:7] == made(7)


def test_built_in_names_are_read_where_they_fit_and_named_where_not():
    assert len(read_prompts(SourceSection(path="builtin:tales/dialogues", limit=3)).rows) == 3
    assert len(read_demonstrations(SourceSection(path="builtin:tales/talks", limit=3)).rows) == 3
    with pytest.raises(
        InputError, match="builtin:tales/texts or .* is wanted here; built in are .*tales/verdicts"
    ):
        read_texts(SourceSection(path="builtin:tales/verdicts"))
    with pytest.raises(InputError, match="a file is wanted here"):
        verdicts.read_steps(SourceSection(path="builtin:tales/verdicts"))
