"""Monte Carlo tree search over the steps of completions (arXiv:2405.00451): what to draw next, and what it taught.

A node is a step, and was found by a whole completion whose score is its value; the rest of that completion is the first way
to go on from there. Knows nothing about models and text: the caller draws completions, scores them and says where a step
ends.
"""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prefloop.config import MctsEngine
from prefloop.records import Completion, SearchTree, TreeNode

DIGITS = 6
"""Of the numbers that are written down."""


@dataclass(frozen=True)
class Drawn:
    """A whole completion that was drawn, with what it began with."""

    completion: Completion
    score: float | None
    """None where the scorer refused; such a completion teaches nothing, and is only kept where there are too few."""
    start: int = 0
    """Tokens that it began with; the others are new."""


class Step(NamedTuple):
    """The part of a completion that begins after some of its tokens."""

    end: int
    """Tokens of the completion up to its end."""
    text: str


Cut = Callable[[Completion, int], Step]
"""The step of a completion that begins after so many tokens."""


@dataclass(eq=False)
class Node:
    """A step; changed in place as the search learns."""

    parent: "Node | None"
    token_ids: tuple[int, ...]
    text: str = ""
    prior: float = 1.0
    found: list[Drawn] = field(default_factory=list)
    """The completions that it was found with and that run through these very tokens."""
    scores: list[float] = field(default_factory=list)
    """Of the completions that it was found with, those through a step almost the same included."""
    ends: bool = False
    visits: int = 0
    q: float = 0.0
    children: list["Node"] = field(default_factory=list)
    start: int = 0
    depth: int = 0

    @property
    def end(self) -> int:
        """Tokens of a completion up to here."""
        return self.start + len(self.token_ids)

    @property
    def value(self) -> float:
        """Mean score of the completions that it was found with."""
        return sum(self.scores) / len(self.scores)

    @property
    def future(self) -> float:
        """V: the mean gain of the steps from here, by their visits; 0 where there are none."""
        visits = sum(one.visits for one in self.children)
        return sum(one.visits * one.q for one in self.children) / visits if visits else 0.0

    @property
    def path(self) -> Iterator["Node"]:
        """This node, and all before it up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


class Expansion(NamedTuple):
    """What a search wants drawn: completions that begin with the tokens up to a node."""

    node: Node
    number: int


Search = Generator[Expansion, Sequence[Drawn], None]


class Tree:
    """The tree of one prompt."""

    def __init__(self, options: MctsEngine, cut: Cut) -> None:
        self.options = options
        self.root = Node(None, ())
        self.nodes = [self.root]
        """Parents before children."""
        self.committed = [self.root]
        self.drawn: list[Drawn] = []
        """All completions, in order."""
        self._cut = cut

    def search(self) -> Search:
        """Yields what is to be drawn and is sent what was drawn, until the search has committed itself to an end."""
        while not self.committed[-1].ends:
            for _ in range(self.options.iterations):
                leaf = self._select()
                if leaf.ends or leaf.depth - self.committed[-1].depth >= self.options.depth:
                    self._learn(leaf, 1)
                else:
                    self._expand(leaf, (yield Expansion(leaf, self._wanted(leaf))))
            if not self.committed[-1].children:
                return  # nothing that was drawn has a score
            self.committed.append(max(self.committed[-1].children, key=lambda one: (one.visits, one.q)))

    def _wanted(self, leaf: Node) -> int:
        if leaf is self.root:
            return self.options.first_actions
        return max(1, self.options.actions - len(leaf.found))

    def _select(self) -> Node:
        """The node that the search comes to from the last committed one."""
        scores = [one.score for one in self.drawn if one.score is not None]
        spread = (max(scores) - min(scores) if scores else 0.0) or 1.0
        node = self.committed[-1]
        while node.children:
            parent = node
            node = max(
                parent.children,
                key=lambda one: puct(
                    one.q / spread,
                    one.prior,
                    parent.visits,
                    one.visits,
                    exploration=self.options.exploration,
                ),
            )
        return node

    def _expand(self, leaf: Node, drawn: Sequence[Drawn]) -> None:
        self.drawn += drawn
        new = [one for one in drawn if one.score is not None]
        if leaf is self.root:
            leaf.scores += [one.score for one in new if one.score is not None]
        for one in [*leaf.found, *new]:
            self._add(leaf, one)
        for child in leaf.children:
            child.q = child.value - leaf.value
        self._learn(leaf, len(new))

    def _add(self, parent: Node, drawn: Drawn) -> None:
        """Makes the next step of a completion a child, or one with the child that is the same step."""
        completion, start = drawn.completion, parent.end
        assert (
            drawn.score is not None
            and completion.token_ids is not None
            and completion.token_logps is not None
        )
        step = self._cut(completion, start)
        tokens, ends = completion.token_ids[start : step.end], step.end == len(completion.token_ids)
        node = next((one for one in parent.children if self._same(one, tokens, step.text, ends)), None)
        if node is None:
            logp = sum(completion.token_logps[start : step.end])
            prior = length_prior(logp, len(tokens), power=self.options.length_power)
            node = Node(
                parent, tokens, step.text, prior, ends=ends, start=start, depth=parent.depth + 1
            )  # fmt: skip
            parent.children.append(node)
            self.nodes.append(node)
        if node.token_ids == tokens:
            node.found.append(drawn)
        node.scores.append(drawn.score)
        node.visits += 1

    def _same(self, node: Node, tokens: tuple[int, ...], text: str, ends: bool) -> bool:
        if node.token_ids == tokens:
            return True
        return node.ends == ends and alike(node.text, text, self.options.same_from)

    def _learn(self, leaf: Node, visits: int) -> None:
        """Backs up: visits, then Q = r + gamma V from the leaf to the root."""
        for node in leaf.path:
            node.visits += visits
            if node.parent is not None:
                node.q = node.value - node.parent.value + self.options.gamma * node.future

    # --- what was found ---

    def best(self, number: int) -> list[Drawn]:
        """Different completions in the order in which they were drawn: what the search committed itself to, then the best of
        each leaf, then the others by their scores."""
        ranked: list[tuple[tuple[bool, bool, int], Drawn]] = []
        of_leaf: Counter[int] = Counter()
        for one in sorted(
            self.drawn, key=lambda one: -math.inf if one.score is None else one.score, reverse=True
        ):
            if all(one.completion.text != other.completion.text for _, other in ranked):
                leaf = self.leaf(one)
                ranked.append(
                    ((one.score is None, leaf is not self.committed[-1], of_leaf[id(leaf)]), one)
                )  # fmt: skip
                of_leaf[id(leaf)] += 1
        ranked.sort(key=lambda one: one[0])
        kept = {id(one) for _, one in ranked[:number]}
        return [one for one in self.drawn if id(one) in kept]

    def leaf(self, drawn: Drawn) -> Node:
        """The last node that a completion runs through."""
        tokens, node = drawn.completion.token_ids or (), self.root
        while after := [one for one in node.children if tokens[one.start : one.end] == one.token_ids]:
            node = max(after, key=lambda one: one.end)  # the same words may also go on where another ends
        return node

    def record(self, kept: Sequence[Drawn], annotator: str) -> SearchTree:
        """The tree as it is written down, with the completions that are kept."""
        numbers = {id(node): number for number, node in enumerate(self.nodes)}
        return SearchTree(
            annotator=annotator,
            nodes=tuple(
                TreeNode(
                    parent=None if one.parent is None else numbers[id(one.parent)],
                    start=one.start,
                    token_ids=one.token_ids,
                    text=one.text,
                    prior=round(one.prior, DIGITS),
                    visits=one.visits,
                    q=round(one.q, DIGITS),
                    value=round(one.value, DIGITS) if one.scores else 0.0,
                    ends=one.ends,
                )
                for one in self.nodes
            ),
            committed=tuple(numbers[id(one)] for one in self.committed),
            leaves=tuple(numbers[id(self.leaf(one))] for one in kept),
            num_drawn=len(self.drawn),
            num_tokens=sum(len(one.completion.token_ids or ()) - one.start for one in self.drawn),
        )


def puct(q: float, prior: float, parent_visits: int, visits: int, *, exploration: float) -> float:
    """Q + w p √N(s) / (1 + N(s, a)), section 3.1 of arXiv:2405.00451."""
    return q + exploration * prior * math.sqrt(parent_visits) / (1 + visits)


def length_prior(logp: float, num_tokens: int, *, power: float) -> float:
    """exp(log π / tokens^power): the policy's probability of a step, evened out over its length."""
    return math.exp(logp / num_tokens**power)


def alike(a: str, b: str, share: float) -> bool:
    """Whether two texts have this share of their characters in common, in order; 1 takes only equal texts."""
    if a == b or share == 1:
        return a == b
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return (
        matcher.quick_ratio() >= share and matcher.ratio() >= share
    )  # the first is an upper bound, and quick
