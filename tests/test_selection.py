"""The fixture is the table of three prompts in the description of the reference workflow."""

import pytest

from prefloop.config import SelectSection
from prefloop.records import Comparison, Group, Message, Prompt, Score, file_completion
from prefloop.selection import (
    choose,
    group_statistics,
    knockout,
    knockout_places,
    pairs_of,
    propose,
    propose_by_heads,
    win_shares,
)

TEXTS = {"A": ["x" * 100, "y" * 10, "z" * 50], "B": ["q", "w", "e"], "C": ["L" * 3000, "s" * 100, "m" * 90]}
SCORES = {"A": [1.0, 0.95, 0.2], "B": [0.5, 0.5, 0.5], "C": [2.0, 1.5, 1.2]}


def group(name: str) -> Group:
    prompt = Prompt.of((Message(role="user", content=name),))
    return Group(
        prompt=prompt,
        completions=tuple(file_completion(prompt, text, index) for index, text in enumerate(TEXTS[name])),
    )


def scores_of(one: Group, values) -> list[Score]:
    return [
        Score(prompt_id=one.prompt.id, completion_id=completion.id, value=value, annotator="fixture")
        for completion, value in zip(one.completions, values, strict=True)
    ]


def picked(name: str, rule: str, **options):
    one = group(name)
    pairs, reason = pairs_of(one, scores_of(one, SCORES[name]), SelectSection(rule=rule, **options), seed=0)
    if not pairs:
        return reason
    ids = [completion.id for completion in one.completions]
    return ids.index(pairs[0].chosen.id), ids.index(pairs[0].rejected.id), pytest.approx(pairs[0].margin)


@pytest.mark.parametrize(
    ("rule", "a", "c"),
    [
        ("first_two", (0, 1, 0.05), (0, 1, 0.5)),
        ("max_min", (0, 2, 0.8), (0, 2, 0.8)),
        ("max_max", (0, 1, 0.05), (0, 1, 0.5)),
    ],
)
def test_rules_pick_the_pairs_of_the_fixture(rule, a, c):
    assert picked("A", rule) == a
    assert picked("C", rule) == c
    assert picked("B", rule) == "tie"


def test_length_penalty_counts_for_choice_order_and_margin():
    assert picked("A", "max_min_penalised", length_penalty=0.001) == (1, 2, 0.79)
    assert picked("C", "max_min_penalised", length_penalty=0.001) == (1, 0, 2.4)


@pytest.mark.parametrize(("name", "seen"), [("A", {1, 2}), ("C", {1, 2})])
def test_max_random_always_chooses_the_best_and_rejects_each_other_one_over_seeds(name, seen):
    rejected = set()
    for seed in range(40):
        choice = choose(
            SCORES[name],
            "max_random",
            lengths=[len(one) for one in TEXTS[name]],
            length_penalty=0,
            seed=[seed],
        )
        assert choice is not None
        assert choice.chosen == 0
        rejected.add(choice.rejected)
    assert rejected == seen


def test_random_takes_two_different_ones_and_orders_them_by_score():
    seen = set()
    for seed in range(60):
        choice = choose(SCORES["A"], "random", lengths=[1, 1, 1], length_penalty=0, seed=[seed])
        assert choice is not None
        assert SCORES["A"][choice.chosen] > SCORES["A"][choice.rejected]
        assert choice.margin == SCORES["A"][choice.chosen] - SCORES["A"][choice.rejected]
        seen.add((choice.chosen, choice.rejected))
    assert seen == {(0, 1), (0, 2), (1, 2)}


def test_the_same_seed_gives_the_same_random_pair():
    once = [choose(SCORES["A"], "random", lengths=[1, 1, 1], length_penalty=0, seed=[7]) for _ in range(3)]
    assert once[0] == once[1] == once[2]


def test_margin_scale_multiplies_the_margin():
    assert picked("A", "max_min", margin_scale=2.5) == (0, 2, 2.0)


def test_equal_best_scores_resolve_to_the_lowest_position():
    choice = choose([1.0, 1.0, 0.0, 0.0], "max_min", lengths=[1] * 4, length_penalty=0, seed=[0])
    assert (choice.chosen, choice.rejected) == (0, 2)


def test_identical_texts_are_not_a_pair():
    prompt = Prompt.of((Message(role="user", content="p"),))
    one = Group(
        prompt=prompt, completions=tuple(file_completion(prompt, "same", index) for index in range(2))
    )
    assert pairs_of(one, scores_of(one, [1.0, 0.0]), SelectSection(), seed=0) == ([], "identical")


def test_fewer_than_two_scored_completions_are_short():
    one = group("A")
    only = scores_of(one, SCORES["A"])[:1]
    assert pairs_of(one, only, SelectSection(), seed=0) == ([], "short")
    assert pairs_of(one, [], SelectSection(), seed=0) == ([], "short")


def test_all_pairs_of_a_ranking_weigh_one_prompt_together():
    one = group("C")
    pairs, _ = pairs_of(one, scores_of(one, [2.0, 1.0, 1.0]), SelectSection(pairs_per_prompt="all"), seed=0)
    assert [(pair.margin, pair.weight) for pair in pairs] == [(1.0, 0.5), (1.0, 0.5)]


def comparison(one: Group, a: int, b: int, p_a: float) -> Comparison:
    ids = [completion.id for completion in one.completions]
    return Comparison(prompt_id=one.prompt.id, a=ids[a], b=ids[b], p_a=p_a, annotator="x")


def test_one_comparison_is_the_pair_and_a_tie_is_none():
    one = group("A")
    pairs, _ = pairs_of(one, [comparison(one, 0, 2, 0.25)], SelectSection(), seed=0)
    assert (pairs[0].chosen.text, pairs[0].rejected.text) == ("z" * 50, "x" * 100)
    assert (pairs[0].p_chosen, pairs[0].margin) == (0.75, 0.5)
    assert pairs_of(one, [comparison(one, 0, 2, 0.5)], SelectSection(), seed=0) == ([], "tie")


def test_votes_on_the_same_two_are_averaged_whatever_side_they_stood_on():
    one = group("A")
    votes = [comparison(one, 0, 1, 1.0), comparison(one, 1, 0, 0.0), comparison(one, 0, 1, 0.0)]
    pairs, _ = pairs_of(one, votes, SelectSection(), seed=0)
    assert pairs[0].chosen.text == "x" * 100
    assert pairs[0].p_chosen == pytest.approx(2 / 3)


def test_many_comparisons_rank_by_mean_win_share():
    one = group("A")
    shares = win_shares([comparison(one, 0, 1, 1.0), comparison(one, 0, 2, 0.0), comparison(one, 1, 2, 0.25)])
    assert list(shares.values()) == [0.5, 0.125, 0.875]


def test_file_statistics_of_the_fixture():
    groups = [group(name) for name in "ABC"]
    scores = {
        completion.id: value
        for name, one in zip("ABC", groups, strict=True)
        for completion, value in zip(one.completions, SCORES[name], strict=True)
    }
    found = group_statistics(groups, scores, lambda one: len(one.text))
    assert found["mean"] == pytest.approx(0.927778, abs=1e-6)
    assert found["best_of_k"] == pytest.approx(1.166667, abs=1e-6)
    assert found["longest"] == pytest.approx((1.0 + 0.5 + 2.0) / 3)
    assert found["shortest"] == pytest.approx((0.95 + 0.5 + 1.2) / 3)


def test_proposals_are_two_different_texts():
    prompt = Prompt.of((Message(role="user", content="p"),))
    texts = ["same", "same", "other"]
    one = Group(
        prompt=prompt,
        completions=tuple(file_completion(prompt, text, index) for index, text in enumerate(texts)),
    )
    for seed in range(20):
        choice = propose(one, None, "max_min", seed)
        assert {texts[choice.chosen], texts[choice.rejected]} == {"same", "other"}
    ranked = {
        completion.id: value for completion, value in zip(one.completions, [3.0, 1.0, 2.0], strict=True)
    }
    best = propose(one, ranked, "max_min", 0)
    assert (best.chosen, best.rejected) == (0, 2)


# --- knockouts -------------------------------------------------------------------------------------------------------


def knocked_out(strengths: list[float]) -> tuple[dict[str, float], int]:
    """How far each of the completions 0, 1, ... comes where the stronger wins, and the number of matches."""
    rounds, matches, number = knockout([str(one) for one in range(len(strengths))]), None, 0
    verdicts: dict[tuple[str, str], float] = {}
    try:
        matches = next(rounds)
        while True:
            number += len(matches)
            verdicts |= {(a, b): float(strengths[int(a)] > strengths[int(b)]) for a, b in matches}
            matches = rounds.send(verdicts)
    except StopIteration as end:
        return end.value, number


def test_a_knockout_of_k_takes_k_minus_one_matches_and_the_best_wins():
    for strengths in ([3, 1, 2, 4], [5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7], [1, 2]):
        places, number = knocked_out(strengths)
        assert number == len(strengths) - 1
        assert max(places, key=lambda one: places[one]) == str(strengths.index(max(strengths)))
    # 0 beats 1, 3 beats 2, then 3 beats 0
    assert knocked_out([3, 1, 2, 4])[0] == {"0": 1.0, "1": 0.0, "2": 0.0, "3": 2.0}
    # two byes: 4 is in the final without having won before
    assert knocked_out([5, 4, 3, 2, 1])[0] == {"0": 3.0, "1": 0.0, "2": 1.0, "3": 0.0, "4": 2.0}


def test_the_ranking_of_a_knockout_is_who_came_how_far():
    """By mean probability 0 would be ahead: it won one match surely, and lost the final."""
    prompt = Prompt.of((Message(role="user", content="Which?"),))
    completions = tuple(file_completion(prompt, text, place) for place, text in enumerate("abcd"))
    one = Group(prompt=prompt, completions=completions)
    ids = [completion.id for completion in one.completions]
    played = [(0, 1, 0.99), (2, 3, 0.55), (0, 2, 0.45)]
    rows = [
        Comparison(prompt_id=one.prompt.id, a=ids[a], b=ids[b], p_a=p, annotator="t") for a, b, p in played
    ]
    pairs, reason = pairs_of(one, rows, SelectSection(rule="max_max"), seed=0)
    assert reason is None
    assert (pairs[0].chosen.text, pairs[0].rejected.text, pairs[0].margin) == ("c", "a", 1.0)
    everyone = [*rows, rows[0].model_copy(update={"a": ids[1], "b": ids[2]})]
    assert knockout_places(one, everyone) is None  # not the matches of a knockout


# --- ensembles --------------------------------------------------------------------------------------------------------


def texts(*given: str) -> Group:
    prompt = Prompt.of((Message(role="user", content="Which?"),))
    return Group(
        prompt=prompt, completions=tuple(file_completion(prompt, one, at) for at, one in enumerate(given))
    )


def heads_of(one, *rows) -> dict:
    """Scores of each head, a row a completion."""
    return {each.id: row for each, row in zip(one.completions, rows, strict=True)}


def test_uncertainty_asks_about_the_two_on_whose_difference_the_heads_agree_least():
    one = texts("a", "b", "c")
    # differences over three heads: a-b 0 1 2 (sd 0.82), a-c -3 0 3 (2.45), b-c -3 -1 1 (1.63)
    found = propose_by_heads(one, heads_of(one, (0, 1, 2), (0, 0, 0), (3, 1, -1)), "uncertainty", 0)
    assert {found.chosen, found.rejected} == {0, 2}
    assert found.margin == 0  # both have the mean 1


def test_thompson_asks_about_the_bests_of_two_heads():
    one = texts("a", "b", "c")
    heads = heads_of(one, (5, 0), (0, 5), (1, 1))
    for seed in range(20):
        found = propose_by_heads(one, heads, "thompson", seed)
        assert {found.chosen, found.rejected} == {0, 1}


def test_where_all_heads_have_one_best_the_other_is_the_best_of_the_rest_by_the_last():
    one = texts("a", "b", "c")
    found = propose_by_heads(one, heads_of(one, (9, 9), (2, 1), (1, 2)), "thompson", 0)
    assert found.chosen == 0 and found.rejected in (1, 2)
    picked = {
        propose_by_heads(one, heads_of(one, (9, 9), (2, 1), (1, 2)), "thompson", seed) for seed in range(20)
    }
    assert {one.rejected for one in picked} == {1, 2}  # either head may come last


def test_an_ensemble_asks_nothing_about_one_text():
    one = texts("a", "a")
    assert propose_by_heads(one, heads_of(one, (1, 2), (1, 2)), "thompson", 0) is None
