"""The search against trees worked out by hand: every token is a step, and scores are given."""

import math
import random

import pytest

from prefloop.config import MctsEngine
from prefloop.generate.tree import Drawn, Step, Tree, alike, length_prior, puct
from prefloop.records import Completion


def engine(**options) -> MctsEngine:
    """Two completions at every node, and nothing but values to go by."""
    return MctsEngine(
        kind="mcts",
        **{
            "iterations": 2,
            "first_actions": 2,
            "actions": 2,
            "exploration": 0.0,
            "same_from": 1.0,
            **options,
        },
    )


def each_token(completion: Completion, start: int) -> Step:
    return Step(start + 1, f" {completion.token_ids[start]}")


def drawn(tokens, score: float | None, *, start: int = 0, logps=None) -> Drawn:
    """A completion whose text is its tokens."""
    logps = logps or (-1.0,) * len(tokens)
    text = "".join(f" {one}" for one in tokens)
    one = Completion(id=text, prompt_id="p", text=text, token_ids=tuple(tokens), token_logps=tuple(logps))
    return Drawn(one, score, start)


def grown(tree: Tree, *answers: list[Drawn]) -> list[tuple[tuple[int, ...], int]]:
    """Lets a tree have these answers one after the other; returns what it asked: the tokens of a node and a number."""
    asked, left, search = [], list(answers), tree.search()
    try:
        wish = next(search)
        while True:
            path = [token for node in [*wish.node.path][::-1] for token in node.token_ids]
            asked.append((tuple(path), wish.number))
            wish = search.send(left.pop(0))
    except StopIteration:
        assert not left
        return asked


def of(tree: Tree, *tokens: int):
    """The node at the end of a path."""
    node = tree.root
    for token in tokens:
        (node,) = (one for one in node.children if one.token_ids == (token,))
    return node


A, B = drawn((1, 2, 3), 3.0), drawn((4, 5, 6), 1.0)
C, D = drawn((1, 7, 8), 5.0, start=1), drawn((1, 7, 9), 7.0, start=2)


# --- the formulas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "prior", "visits", "expected"),
    # 0.2 + 0.5 * 3 / 3 and 0.1 + 0.4 * 3 / 1
    [(0.2, 0.5, 2, 0.7), (0.1, 0.4, 0, 1.3)],
)
def test_a_step_counts_by_its_value_and_by_how_little_it_was_seen(q, prior, visits, expected):
    assert puct(q, prior, 9, visits, exploration=1.0) == pytest.approx(expected)


def test_exploration_weighs_the_prior_and_not_the_value():
    assert puct(0.2, 0.5, 9, 2, exploration=3.0) == pytest.approx(1.7)
    assert puct(0.2, 0.5, 9, 2, exploration=0.0) == 0.2


def test_the_prior_is_evened_out_over_the_length():
    # exp(-6 / 5^1.25), 5^1.25 = 7.476744
    assert length_prior(-6.0, 5, power=1.25) == pytest.approx(0.448212, abs=1e-6)
    assert length_prior(-6.0, 5, power=0.0) == pytest.approx(math.exp(-6))
    assert length_prior(-6.0, 5, power=1.0) == pytest.approx(math.exp(-1.2))


def test_texts_are_alike_by_the_share_of_their_common_characters():
    # 2 * 3 / (4 + 4)
    assert alike("abcd", "abxd", 0.75)
    assert not alike("abcd", "abxd", 0.76)
    # the same characters, but of "ab" and "ba" only one is in order
    assert not alike("ab", "ba", 0.6)
    assert alike("abc", "abc", 1.0)
    assert not alike("a" * 99 + "b", "a" * 99 + "c", 1.0)


# --- a search by hand ------------------------------------------------------------------------------------------------


def test_the_first_completions_are_the_first_steps_and_their_mean_is_the_value_of_the_prompt():
    tree = Tree(engine(), each_token)
    search = tree.search()
    wish = next(search)
    assert (wish.node, wish.number) == (tree.root, 2)
    search.send([A, B])
    assert tree.root.value == 2.0
    assert [(one.token_ids, one.value, one.q, one.visits) for one in tree.root.children] == [
        ((1,), 3.0, 1.0, 1),
        ((4,), 1.0, -1.0, 1),
    ]
    assert tree.root.visits == 2


def test_a_node_grows_by_the_completion_that_found_it_and_by_new_ones_and_all_before_it_learn():
    tree = Tree(engine(), each_token)
    search = tree.search()
    next(search)
    wish = search.send([A, B])
    assert (wish.node, wish.number) == (of(tree, 1), 1)
    search.send([C])
    # r = 3 - 3 and 5 - 3; V = (0 + 2) / 2; Q = (3 - 2) + 1
    assert (of(tree, 1, 2).q, of(tree, 1, 7).q) == (0.0, 2.0)
    assert (of(tree, 1).q, of(tree, 1).visits, of(tree, 4).visits) == (2.0, 2, 1)
    assert tree.root.visits == 3


def test_what_follows_is_discounted():
    tree = Tree(engine(gamma=0.5), each_token)
    search = tree.search()
    next(search)
    search.send([A, B])
    search.send([C])
    assert of(tree, 1).q == 1.5


def test_a_whole_search_by_hand():
    """Two iterations a step: after (1), and after (1, 7) with its two ends, which are only visited."""
    tree = Tree(engine(), each_token)
    assert grown(tree, [A, B], [C], [D]) == [((), 2), ((1,), 1), ((1, 7), 1)]
    assert [one.token_ids for one in tree.committed] == [(), (1,), (7,), (9,)]
    # the end (9), worth 7 - 5, was visited when it was found, once from (1) and twice from (1, 7)
    assert [(of(tree, 1, 7, end).q, of(tree, 1, 7, end).visits) for end in (8, 9)] == [(0.0, 1), (2.0, 4)]
    # (5 - 3) + (0 + 4 * 2) / 5, then (3 - 2) + (1 * 0 + 5 * 3.6) / 6
    assert (of(tree, 1, 7).q, of(tree, 1, 7).visits) == (pytest.approx(3.6), 5)
    assert (of(tree, 1).q, of(tree, 1).visits) == (pytest.approx(4.0), 6)
    assert tree.root.visits == 7


def test_the_search_commits_itself_to_the_most_visited_step_not_to_the_best():
    """With much exploration both first steps are seen; the second is likelier and is seen more often."""
    tree = Tree(engine(iterations=3, depth=1, exploration=50.0), each_token)
    first = drawn((1,), 1.0, logps=(-3.0,))
    second = drawn((2,), 0.0, logps=(-0.1,))
    grown(tree, [first, second])
    assert (of(tree, 1).visits, of(tree, 2).visits) == (1, 3)
    assert tree.committed == [tree.root, of(tree, 2)]


def test_equally_visited_steps_are_decided_by_their_gain():
    tree = Tree(engine(iterations=1), each_token)
    grown(tree, [drawn((4,), 1.0), drawn((1,), 3.0)])
    assert tree.committed == [tree.root, of(tree, 1)]


def test_the_scale_of_the_scores_changes_nothing():
    scores = {A: 3.0, B: 1.0, C: 5.0, D: 7.0}
    trees = []
    for factor, shift in ((1.0, 0.0), (100.0, -7.0)):
        tree = Tree(engine(exploration=1.0, iterations=3), each_token)
        policy = Policy(lambda tokens, f=factor, s=shift: f * sum(tokens) + s)
        policy.answer(tree)
        trees.append([(one.token_ids, one.visits) for one in tree.nodes])
    assert trees[0] == trees[1]
    assert len(trees[0]) > len(scores)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_steps_beyond_the_depth_are_visited_and_not_grown():
    tree = Tree(engine(depth=1, iterations=3), each_token)
    # both iterations after the first come back to (1); only from there on does (1) grow
    asked = grown(tree, [A, B], [C], [D])
    assert asked == [((), 2), ((1,), 1), ((1, 7), 1)]
    assert [one.token_ids for one in tree.committed] == [(), (1,), (7,), (9,)]


def test_equal_steps_are_one_with_the_mean_of_their_scores_and_both_ways_to_go_on():
    tree = Tree(engine(iterations=2), each_token)
    twin = drawn((1, 8, 9), 5.0)
    search = tree.search()
    next(search)
    wish = search.send([A, twin])
    (child,) = tree.root.children
    assert (child.value, child.visits) == (4.0, 2)
    # two completions went through it, which are its two actions; one is drawn nevertheless
    assert wish.number == 1
    search.send([C])
    assert [(one.token_ids, one.value) for one in child.children] == [((2,), 3.0), ((8,), 5.0), ((7,), 5.0)]


def test_steps_that_are_almost_the_same_are_one_and_the_other_completion_is_still_a_candidate():
    long_step = {1: "She ate some bread.", 2: "She ate some breads.", 3: "The wind blew."}
    tree = Tree(
        engine(same_from=0.9, iterations=1, depth=1, first_actions=3),
        lambda completion, start: Step(start + 1, long_step[completion.token_ids[0]]),
    )
    alike, other = drawn((2,), 2.0), drawn((3,), 0.0)
    grown(tree, [drawn((1,), 4.0), alike, other])
    assert [(one.token_ids, one.value, one.visits) for one in tree.root.children] == [
        ((1,), 3.0, 2),
        ((3,), 0.0, 1),
    ]
    assert tree.leaf(alike) is tree.root
    assert alike in tree.best(3)


def test_an_end_and_a_step_of_the_same_words_stay_apart():
    """Home, with the terminator is another step than home that goes on."""
    tree = Tree(
        engine(iterations=1),
        lambda completion, start: Step(2, " home") if 0 in completion.token_ids else Step(1, " home"),
    )
    ends, goes_on = drawn((1, 0), 2.0), drawn((1, 5), 1.0)
    search = tree.search()
    next(search)
    with pytest.raises(StopIteration):
        search.send([ends, goes_on])
    assert [(one.token_ids, one.ends) for one in tree.root.children] == [((1, 0), True), ((1,), False)]
    assert tree.leaf(ends) is tree.root.children[0]


def test_a_completion_without_a_score_teaches_nothing_and_is_kept_last():
    tree = Tree(engine(iterations=1), each_token)
    refused = drawn((9, 9), None)
    grown(tree, [refused, B], [drawn((4, 4), 0.0, start=1)], [drawn((4, 5, 6), 1.0, start=2)])
    assert [one.token_ids for one in tree.root.children] == [(4,)]
    assert tree.root.value == 1.0
    assert refused not in tree.best(2)
    assert refused in tree.best(3)


def test_a_search_in_which_nothing_has_a_score_ends_with_what_was_drawn():
    tree = Tree(engine(iterations=1), each_token)
    one, other = drawn((1,), None), drawn((2,), None)
    grown(tree, [one, other])
    assert tree.committed == [tree.root]
    assert tree.best(2) == [one, other]
    assert tree.record(tree.best(2), "x").nodes[0].value == 0.0


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_best_are_what_was_committed_to_and_the_best_of_each_leaf_in_the_order_drawn():
    tree = Tree(engine(), each_token)
    grown(tree, [A, B], [C], [D])
    assert tree.best(1) == [D]
    assert tree.best(2) == [C, D]
    assert tree.best(3) == [A, C, D]
    assert tree.best(9) == [A, B, C, D]


def test_leaves_come_before_more_of_the_same_leaf():
    """(1) has two completions, 6 and 5, and nothing below; (2) has one, 1."""
    tree = Tree(engine(first_actions=4), each_token)
    search = tree.search()
    next(search)
    better, good, poor = drawn((1, 3), 6.0), drawn((1, 4), 5.0), drawn((2, 5), 1.0)
    search.send([better, good, poor, drawn((7, 7), 9.0)])
    assert tree.best(3) == [better, poor, tree.drawn[3]]
    assert tree.best(4) == [better, good, poor, tree.drawn[3]]


def test_the_same_text_is_kept_once():
    tree = Tree(engine(iterations=1), each_token)
    grown(tree, [A, drawn((1, 2, 3), 3.0)], [C], [drawn((1, 2, 3), 3.0, start=2)])
    assert [one.completion.text for one in tree.best(4)] == [A.completion.text, C.completion.text]


def test_the_record_says_where_every_step_is_and_what_it_cost():
    tree = Tree(engine(), each_token)
    grown(tree, [A, B], [C], [D])
    kept = tree.best(2)
    record = tree.record(kept, "rule/x")
    assert [(one.parent, one.start, one.token_ids, one.visits) for one in record.nodes] == [
        (None, 0, (), 7),
        (0, 0, (1,), 6),
        (0, 0, (4,), 1),
        (1, 1, (2,), 1),
        (1, 1, (7,), 5),
        (4, 2, (8,), 1),
        (4, 2, (9,), 4),
    ]
    assert record.committed == (0, 1, 4, 6)
    assert record.leaves == (5, 6)
    # three, three, two and one token were drawn
    assert (record.num_drawn, record.num_tokens, record.annotator) == (4, 9, "rule/x")
    assert record.nodes[4].text == " 7"
    assert record.nodes[1].prior == pytest.approx(math.exp(-1), abs=1e-6)


# --- any search ------------------------------------------------------------------------------------------------------


class Policy:
    """Completions of five tokens out of three, by chance, scored by a function."""

    def __init__(self, score) -> None:
        self.score = score

    def answer(self, tree: Tree) -> None:
        chance, search = random.Random(0), tree.search()
        try:
            wish = next(search)
            while True:
                node = wish.node
                before = node.found[0].completion.token_ids[: node.end] if node.found else ()
                new = [
                    (*before, *(chance.randint(1, 3) for _ in range(5 - len(before))))
                    for _ in range(wish.number)
                ]
                wish = search.send([drawn(one, self.score(one), start=len(before)) for one in new])
        except StopIteration:
            return


def mean_beneath(node) -> float:
    """Mean value of the ends and leaves beneath a node, by their visits."""
    if not node.children:
        return node.value
    visits = sum(one.visits for one in node.children)
    return sum(one.visits * mean_beneath(one) for one in node.children) / visits


@pytest.mark.parametrize("exploration", [0.0, 1.0, 5.0])
def test_without_discount_a_gain_is_the_mean_value_of_what_was_found_beneath_less_the_parents_value(
    exploration,
):
    tree = Tree(engine(iterations=12, actions=3, first_actions=4, exploration=exploration), each_token)
    Policy(lambda tokens: float(sum(tokens))).answer(tree)
    assert len(tree.nodes) > 10
    for node in tree.nodes[1:]:
        assert node.q == pytest.approx(mean_beneath(node) - node.parent.value)
        assert sum(one.visits for one in node.children) <= node.visits
    # what was drawn before and what is kept run through the same steps
    assert all(tree.leaf(one).end == 5 or tree.leaf(one).children == [] for one in tree.drawn)


def test_a_search_finds_the_best_completion_of_a_simple_policy():
    """The most that five tokens out of three can sum to."""
    tree = Tree(engine(iterations=24, actions=4, first_actions=4, exploration=1.0), each_token)
    Policy(lambda tokens: float(sum(tokens))).answer(tree)
    assert tree.leaf(tree.best(1)[0]) is tree.committed[-1]
    assert tree.best(1)[0].score >= 14
