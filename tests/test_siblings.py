"""Pairs of steps from a tree written by hand.

The search committed itself to (1) and (1, 3). Beside (1) it saw (2); after (1) it saw (3), (4) and (5).
"""

import pytest
from pydantic import ValidationError

from prefloop.config import SelectSection
from prefloop.records import (
    Completion,
    Group,
    Message,
    PreferencePair,
    Prompt,
    Sampling,
    Score,
    SearchTree,
    TreeNode,
    content_id,
)
from prefloop.selection import pairs_of
from prefloop.siblings import visit_confidence

PROMPT = Prompt.of((Message(role="user", content="Tell a tale."),))
SEARCHED = Sampling(temperature=1.0, seed=0, search="mcts")


def node(parent, tokens, *, start=0, visits=1, q=0.0, ends=False, text=None) -> TreeNode:
    return TreeNode(
        parent=parent,
        start=start,
        token_ids=tokens,
        text="".join(f" {one}" for one in tokens) if text is None else text,
        prior=0.5,
        visits=visits,
        q=q,
        value=0.0,
        ends=ends,
    )


NODES = (
    node(None, (), visits=9),
    node(0, (1, 1), visits=6, q=0.5),
    node(0, (2,), visits=2, q=-0.25),
    node(1, (3,), start=2, visits=2, q=0.75, ends=True),
    node(1, (4, 4), start=2, visits=3, q=0.25),
    node(1, (5,), start=2, visits=1, q=-0.5),
)


def group(nodes=NODES, committed=(0, 1, 3)) -> Group:
    answer = Completion(
        id="a", prompt_id=PROMPT.id, text=" 1 1 3", token_ids=(1, 1, 3), sampling=SEARCHED, policy="policy-x",
        policy_version=2,
    )  # fmt: skip
    tree = SearchTree(
        annotator="reward:r", nodes=nodes, committed=committed, leaves=(3,), num_drawn=4, num_tokens=10
    )
    return Group(prompt=PROMPT, completions=(answer,), tree=tree)


def pairs(one: Group, **options):
    return pairs_of(one, [], SelectSection(rule="siblings", **options), seed=0)


def test_each_committed_step_gives_its_best_child_against_its_worst():
    found, reason = pairs(group())
    assert reason is None
    assert [(one.chosen.text, one.rejected.text) for one in found] == [(" 1 1", " 2"), (" 1 1 3", " 1 1 5")]
    assert [(one.chosen.token_ids, one.rejected.token_ids) for one in found] == [
        ((1, 1), (2,)),
        ((1, 1, 3), (1, 1, 5)),
    ]
    assert [one.prefix_tokens for one in found] == [0, 2]
    assert [one.margin for one in found] == [0.75, 1.25]
    assert [one.weight for one in found] == [0.5, 0.5]
    assert {one.annotator for one in found} == {"reward:r"}


def test_margins_are_scaled():
    found, _ = pairs(group(), margin_scale=2.0)
    assert [one.margin for one in found] == [1.5, 2.5]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    # label smoothing min(1 - 1 / (1 + N_l / max(1, N_w)), 1/2), for visits 6 and 2, 2 and 6, 0 and 3
    [(6, 2, 0.75), (2, 6, 0.5), (1, 1, 0.5), (0, 3, 0.5), (4, 0, 1.0)],
)
def test_visits_say_how_sure_the_search_is(chosen, rejected, expected):
    assert visit_confidence(node(0, (1,), visits=chosen), node(0, (2,), visits=rejected)) == expected


def test_a_pair_carries_the_confidence():
    found, _ = pairs(group())
    # visits 6 against 2, and 2 against 1
    assert [one.p_chosen for one in found] == [0.75, pytest.approx(2 / 3)]


def test_steps_are_written_by_the_policy_of_the_group_and_are_no_samples_of_it():
    found, _ = pairs(group())
    for side in (side for one in found for side in (one.chosen, one.rejected)):
        assert (side.policy, side.policy_version, side.sampling) == ("policy-x", 2, SEARCHED)
        assert side.finish_reason is None
        assert side.id == content_id(PROMPT.id, "policy-x", side.token_ids)
    assert len({one.id for one in found}) == 2


def test_nothing_to_choose_from_is_short_and_equal_gains_are_a_tie():
    alone = (NODES[0], NODES[1], node(1, (3,), start=2, ends=True))
    assert pairs(group(alone, (0, 1, 2))) == ([], "short")
    even = (NODES[0], NODES[1], node(0, (2,), q=0.5))
    assert pairs(group(even, (0, 1))) == ([], "tie")
    assert pairs(Group(prompt=PROMPT, completions=())) == ([], "short")


def test_the_same_words_with_and_without_an_end_are_no_pair():
    nodes = (NODES[0], node(0, (1,), q=0.5, text=" home"), node(0, (1, 0), q=-0.5, text=" home", ends=True))
    assert pairs(group(nodes, (0, 1))) == ([], "tie")


def test_other_rules_ignore_the_tree():
    one = group()
    other = one.completions[0].model_copy(update={"id": "b", "text": "b"})
    both = one.model_copy(update={"completions": (one.completions[0], other)})
    scores = [
        Score(prompt_id=PROMPT.id, completion_id=name, value=value, annotator="x")
        for name, value in (("a", 1.0), ("b", 2.0))
    ]
    (pair,), _ = pairs_of(both, scores, SelectSection(rule="max_min"), seed=0)
    assert (pair.chosen.id, pair.rejected.id, pair.prefix_tokens) == ("b", "a", 0)


# --- records ---------------------------------------------------------------------------------------------------------


def test_groups_and_pairs_without_a_search_are_written_as_before():
    plain = Sampling(temperature=1.0, seed=7)
    one = Completion(id="a", prompt_id=PROMPT.id, text="x", sampling=plain)
    assert plain.model_dump_json() == (
        '{"temperature":1.0,"top_p":1.0,"top_k":0,"min_p":0.0,"repetition_penalty":1.0,"seed":7}'
    )
    assert Group(prompt=PROMPT, completions=(one,)).model_dump_json() == (
        f'{{"prompt":{PROMPT.model_dump_json()},"completions":[{one.model_dump_json()}]}}'
    )
    pair = PreferencePair.of(PROMPT, one, one, margin=1.0, annotator="x")
    assert list(pair.model_dump()) == [
        "id", "prompt", "chosen", "rejected", "margin", "p_chosen", "weight", "annotator",
    ]  # fmt: skip


def test_what_a_search_adds_is_read_as_it_was_written():
    one = group()
    assert Group.model_validate_json(one.model_dump_json()) == one
    (pair, *_), _ = pairs(one)
    assert PreferencePair.model_validate_json(pair.model_dump_json()) == pair
    assert not one.completions[0].sampling.is_plain


def test_a_prefix_that_is_not_shared_is_refused():
    (_, pair), _ = pairs(group())
    for changes in ({"prefix_tokens": 3}, {"rejected": pair.rejected.model_copy(update={"token_ids": None})}):
        with pytest.raises(ValidationError, match="do not share their first"):
            PreferencePair.model_validate({**dict(pair), **changes})
