"""Candidates by tree search: many prompts' trees grow side by side, on any engine that continues token ids.

Every node is completed by the policy and its completions are scored whole, because that is what reward models and rules are
made for, and because then every token that was drawn belongs to an answer that can be kept (decision 12).
"""

from collections.abc import Iterable, Iterator, Sequence

from prefloop.batches import Codec
from prefloop.config import GenerateSection, MctsEngine
from prefloop.generate.groups import PolicyGenerator
from prefloop.generate.sampling import Request, Sampled, Stops
from prefloop.generate.steps import cutter
from prefloop.generate.tree import Drawn, Expansion, Node, Tree
from prefloop.interfaces import InputError, Scorer
from prefloop.records import Completion, Group, Prompt, Score


def one_at_a_time(options: GenerateSection) -> GenerateSection:
    """How the engine below samples: one continuation a request."""
    return options.plain.model_copy(update={"num_completions": 1})


class TreeGenerator:
    """Finds the K completions of each prompt by tree search.

    `plain` samples as `one_at_a_time` says. A tree depends on the seed and its prompt only, not on the trees beside it.
    """

    def __init__(
        self, plain: PolicyGenerator, scorer: Scorer, engine: MctsEngine, num_completions: int
    ) -> None:
        self.plain = plain
        self.scorer = scorer
        self.engine = engine
        self.num_completions = num_completions
        self._cut = cutter(plain.codec, engine.step)
        self._stops = Stops(plain.codec, plain.options)

    @property
    def codec(self) -> Codec:
        """The policy's."""
        return self.plain.codec

    @property
    def prompts_per_chunk(self) -> int:
        """As many as first requests fill what the engine below samples at once."""
        return max(1, self.plain.prompts_per_chunk // self.engine.first_actions)

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[Group]:
        """Yields one group a prompt, in order, of at most K different completions; none for a prompt that is too long."""
        growing = [
            _Growing(prompt, self.plain.request(prompt), Tree(self.engine, self._cut)) for prompt in prompts
        ]
        while waiting := [one for one in growing if one.wanted is not None]:
            for one, drawn in zip(waiting, self._draw(waiting), strict=True):
                one.go_on(drawn)
        for one in growing:
            yield self._group(one)

    def _group(self, one: "_Growing") -> Group:
        kept = one.tree.best(self.num_completions)
        if not kept:
            return Group(prompt=one.prompt, completions=())
        return Group(
            prompt=one.prompt,
            completions=tuple(drawn.completion for drawn in kept),
            tree=one.tree.record(kept, self.scorer.name),
        )

    def _draw(self, waiting: Sequence["_Growing"]) -> list[list[Drawn]]:
        """What each tree wants, drawn and scored together."""
        requests = [request for one in waiting for request in one.requests()]
        placed = [request._replace(place=place) for place, request in enumerate(requests)]
        sampled = iter(list(self.plain.sampler.sample(placed)))
        completions = [
            [self._completion(one, number, next(sampled)[0]) for number in one.numbers()] for one in waiting
        ]
        groups = [
            Group(prompt=one.prompt, completions=tuple(some))
            for one, some in zip(waiting, completions, strict=True)
        ]
        scores = {row.completion_id: row.value for row in self.scorer.score(groups) if isinstance(row, Score)}
        return [
            [Drawn(completion, scores.get(completion.id), one.start) for completion in some]
            for one, some in zip(waiting, completions, strict=True)
        ]

    def _completion(self, one: "_Growing", number: int, new: Sampled) -> Completion:
        """The whole completion: what led to the node, and what the engine wrote after it."""
        if new.token_ids is None or new.token_logps is None:
            raise InputError(
                f"generate.engine.engine: {self.engine.engine.kind} gives no token ids or no log-probabilities, and a tree "
                "search goes on from tokens and needs the policy's prior; choose another engine"
            )
        before = one.begun
        tokens, logps, sampled_logps = new.token_ids, new.token_logps, new.sampled_logps
        finish = new.finish_reason
        if before is not None:
            assert before.token_ids is not None and before.token_logps is not None
            tokens = before.token_ids[: one.start] + tokens
            logps = before.token_logps[: one.start] + logps
            if before.sampled_logps is not None and sampled_logps is not None:
                sampled_logps = before.sampled_logps[: one.start] + sampled_logps
            end = self._stopped(tokens, one.start)
            if end < len(tokens):
                tokens, logps, finish = tokens[:end], logps[:end], "stop"
                sampled_logps = sampled_logps[:end] if sampled_logps is not None else None
        whole = Sampled(tokens, finish, logps, sampled_logps)
        return self.plain.completion(one.prompt, number, whole, self.plain.options.temperature, search="mcts")

    def _stopped(self, tokens: tuple[int, ...], start: int) -> int:
        """Where a stop string ends that begins before `start`, which the engine could not see; else all tokens."""
        if not self._stops.strings:
            return len(tokens)
        ends = range(start + 1, len(tokens) + 1)
        return next((end for end in ends if self._stops(tokens[:end])), len(tokens))


class _Growing:
    """The search of one prompt, and what it waits for."""

    def __init__(self, prompt: Prompt, request: Request | None, tree: Tree) -> None:
        self.prompt = prompt
        self.tree = tree
        self._request = request
        self._search = tree.search()
        self.wanted: Expansion | None = next(self._search) if request is not None else None

    @property
    def node(self) -> Node:
        """What is to be gone on from."""
        assert self.wanted is not None, "asked only of those that wait"
        return self.wanted.node

    @property
    def start(self) -> int:
        """Tokens of a completion that are there already."""
        return self.node.end

    @property
    def begun(self) -> Completion | None:
        """A completion that runs through the node."""
        return self.node.found[0].completion if self.node.found else None

    def numbers(self) -> range:
        """Of the completions that are to be drawn, among all of the prompt."""
        assert self.wanted is not None
        return range(len(self.tree.drawn), len(self.tree.drawn) + self.wanted.number)

    def requests(self) -> list[Request]:
        """One for each completion that is to be drawn."""
        assert self._request is not None
        before = self.begun.token_ids if self.begun is not None else None
        ids = [*self._request.ids, *(before or ())[: self.start]]
        return [
            Request(f"{self.prompt.id}/{number}", self.prompt, ids, self._request.budget - self.start)
            for number in self.numbers()
        ]

    def go_on(self, drawn: Sequence[Drawn]) -> None:
        """Lets the search learn, up to its next wish."""
        try:
            self.wanted = self._search.send(drawn)
        except StopIteration:
            self.wanted = None
