"""Rankings, choices, rules, steps and ratings from files."""

import json
from pathlib import Path

import pytest

from prefloop.config import SourceSection
from prefloop.data import read_pairs
from prefloop.interfaces import InputError
from prefloop.verdicts import read_rankings, read_ratings, read_rule_verdicts, read_steps


def source(folder: Path, *rows: object, **options) -> SourceSection:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSection(path=str(path), **options)


# --- rankings --------------------------------------------------------------------------------------------------------


def texts(ranking) -> list[tuple[str, str]]:
    return [(pair.chosen.text, pair.rejected.text) for pair in ranking.pairs]


def test_a_ranking_is_all_its_pairs_and_counts_once(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}], "ranked_responses": ["a", "b", "c"]}
    loaded = read_rankings(source(tmp_path, row))
    (ranking,) = loaded.rows
    assert texts(ranking) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert {(pair.weight, pair.margin) for pair in ranking.pairs} == {(1 / 3, 1.0)}
    assert len({id for pair in ranking.pairs for id in (pair.chosen.id, pair.rejected.id)}) == 3
    assert (loaded.rows_in, loaded.dropped, loaded.format) == (1, {}, "groups")


def test_ties_in_ranks_are_dropped_and_the_weight_follows_from_what_is_left(tmp_path):
    row = {"prompt": "Hi", "responses": ["c", "a", "b", "b2"], "ranks": [3, 1, 2, 2]}
    (ranking,) = read_rankings(source(tmp_path, row)).rows
    assert sorted(texts(ranking)) == [("a", "b"), ("a", "b2"), ("a", "c"), ("b", "c"), ("b2", "c")]
    assert {pair.weight for pair in ranking.pairs} == {1 / 5}
    # best against worst, where only one pair is wanted
    (pair,) = read_pairs(source(tmp_path, row)).rows
    assert (pair.chosen.text, pair.rejected.text, pair.margin) == ("a", "c", 1.0)


def test_scores_give_pairs_with_their_differences_and_those_not_judged_are_left_out(tmp_path):
    row = {"prompt": "Hi", "responses": ["a", "b", "c"], "rewards": [0.5, None, 2]}
    (ranking,) = read_rankings(source(tmp_path, row)).rows
    assert [(*one, pair.margin) for one, pair in zip(texts(ranking), ranking.pairs, strict=True)] == [
        ("c", "a", 1.5)
    ]


def test_a_choice_is_the_best_against_each_other_and_all_can_be_bad(tmp_path):
    chosen = {"prompt": "Hi", "responses": ["a", "b", "c"], "choice": 1}
    bad = {"prompt": "Ho", "responses": ["a", "b"], "choice": "all_bad"}
    first, second = read_rankings(source(tmp_path, chosen, bad)).rows
    assert texts(first) == [("b", "a"), ("b", "c")]
    assert (second.pairs, second.all_bad) == ((), True)
    assert read_pairs(source(tmp_path, chosen, bad)).dropped == {"all_bad": 1}


def test_rows_without_any_pair_are_counted_by_reason(tmp_path):
    rows = [
        {"prompt": "1", "responses": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "2", "responses": ["a"], "ranks": [1]},
        {"prompt": "3", "responses": ["a", "a"], "ranks": [1, 2]},
        {"prompt": "4", "responses": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "4", "responses": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "4", "chosen": "a", "rejected": "c"},
    ]
    loaded = read_rankings(source(tmp_path, *rows[:5]))
    assert loaded.dropped == {"duplicate": 1, "identical": 1, "short": 1, "tie": 1}
    assert loaded.rows_in == len(loaded.rows) + sum(loaded.dropped.values())
    assert texts(read_rankings(source(tmp_path, rows[5])).rows[0]) == [("a", "c")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"responses": ["a", "b"], "ranks": [1]}, "1 ranks for 2 completions; give one each"),
        (
            {"responses": ["a", "b"], "ranks": [1, "x"]},
            "the rank of completion 1 is 'x'; use a number or null",
        ),
        (
            {"responses": ["a", "b"], "choice": 2},
            "choice is 2; use the place of the best completion, 0 to 1, or 'all_bad'",
        ),
        ({"responses": ["a", "b"], "choice": True}, "choice is True"),
        ({"responses": ["a", "b"]}, "the completions have no scores; add rewards or ranks"),
    ],
)
def test_bad_rankings_are_named(tmp_path, row, message):
    with pytest.raises(InputError, match=r"rows.jsonl row 1: ") as error:
        read_rankings(source(tmp_path, {"prompt": "Hi", **row}))
    assert message in str(error.value)


@pytest.mark.shared
def test_the_shared_rankings_have_507_pairs_of_150_prompts(shared):
    loaded = read_rankings(SourceSection(path=str(shared / "data/oasst_en100/ranked.jsonl.gz")))
    assert (len(loaded.rows), sum(len(one.pairs) for one in loaded.rows)) == (150, 507)
    assert sum(pair.weight for one in loaded.rows for pair in one.pairs) == pytest.approx(150)


# --- rules -----------------------------------------------------------------------------------------------------------

DIALOGUE = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}


def test_five_levels_become_two_and_unsure_rows_are_dropped_and_counted(tmp_path):
    levels = ["definitely_break", "probably_break", "unsure", "probably_follow", "definitely_follow"]
    rows = [{**DIALOGUE, "rule": f"Rule {number}.", "verdict": level} for number, level in enumerate(levels)]
    loaded = read_rule_verdicts(source(tmp_path, *rows))
    assert [one.violated for one in loaded.rows] == [True, True, False, False]
    assert loaded.dropped == {"unsure": 1}
    assert {(one.prompt.text, one.completion.text) for one in loaded.rows} == {("Hi", "Ho")}
    short = {"prompt": "Hi", "completion": "Ho", "rule": "Rule 0.", "verdict": "probably_break"}
    assert read_rule_verdicts(source(tmp_path, short)).rows[0].completion.id == loaded.rows[0].completion.id


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**DIALOGUE, "rule": "x", "verdict": "maybe"}, "verdict is 'maybe'; use one of definitely_break"),
        ({**DIALOGUE, "rule": " ", "verdict": "unsure"}, "the rule is empty; write it in words"),
        ({**DIALOGUE, "verdict": "unsure"}, "no field 'rule'"),
        (
            {"messages": DIALOGUE["messages"][:1], "rule": "x", "verdict": "unsure"},
            "must end with the assistant's turn",
        ),
        ({"text": "x", "rule": "x", "verdict": "unsure"}, "no dialogue with an answer"),
    ],
)
def test_bad_rule_rows_are_named_or_dropped(tmp_path, row, message):
    with pytest.raises(InputError, match=r"rows.jsonl row 1: ") as error:
        read_rule_verdicts(source(tmp_path, row))
    assert message in str(error.value)
    good = {**DIALOGUE, "rule": "x", "verdict": "definitely_follow"}
    loaded = read_rule_verdicts(source(tmp_path, row, good, bad_rows="drop"))
    assert (loaded.rows_in, len(loaded.rows)) == (2, 1)


def test_a_format_means_nothing_to_verdicts(tmp_path):
    row = {**DIALOGUE, "rule": "x", "verdict": "definitely_follow"}
    with pytest.raises(InputError, match="format messages has no such verdicts; leave format out"):
        read_rule_verdicts(source(tmp_path, row, format="messages"))


# --- steps and ratings -----------------------------------------------------------------------------------------------


def test_steps_have_labels_in_many_spellings(tmp_path):
    labels = ["+", "-", True, False, 1, 0, -1, 0.25, None]
    row = {"prompt": "2 + 2?", "steps": [f"Step {one}" for one in range(9)], "labels": labels}
    (found,) = read_steps(source(tmp_path, row)).rows
    assert found.right == (1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.25, None)
    nothing = {"prompt": "2 + 2?", "steps": ["a"], "labels": [None]}
    assert read_steps(source(tmp_path, nothing)).dropped == {"not_judged": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"steps": ["a", "b"], "labels": ["+"]}, "1 labels for 2 steps; give one each"),
        ({"steps": ["a"], "labels": ["good"]}, "the label of step 0 is 'good'"),
        ({"steps": [""], "labels": ["+"]}, "step 0 is text without text; every step needs some"),
        ({"labels": ["+"]}, "no field 'steps'"),
    ],
)
def test_bad_steps_are_named(tmp_path, row, message):
    with pytest.raises(InputError, match=r"rows.jsonl row 1: ") as error:
        read_steps(source(tmp_path, {"prompt": "2 + 2?", **row}))
    assert message in str(error.value)


def test_ratings_that_are_missing_are_left_out(tmp_path):
    rows = [
        {**DIALOGUE, "ratings": {"helpful": 3, "verbose": None}},
        {"prompt": "Hi", "completion": "He", "ratings": {"verbose": None}},
    ]
    loaded = read_ratings(source(tmp_path, *rows))
    assert loaded.rows[0].ratings == {"helpful": 3.0}
    assert loaded.dropped == {"not_judged": 1}
    with pytest.raises(InputError, match="the rating helpful is 'high'; use a number"):
        read_ratings(source(tmp_path, {**DIALOGUE, "ratings": {"helpful": "high"}}))
    with pytest.raises(InputError, match="ratings is a list, not an object of numbers by objective"):
        read_ratings(source(tmp_path, {**DIALOGUE, "ratings": [1]}))
