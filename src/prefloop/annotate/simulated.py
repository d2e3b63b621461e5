"""Simulated people who see a hidden gold score through their own taste and noise, as in AlpacaFarm (arXiv:2305.14387).

Every random choice follows from the seed and the ids of what is judged, never from the order of the calls, so that a
resumed run asks the same people and gets the same answers.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Literal

import numpy as np
from scipy.special import expit

from prefloop.config import SimulatedAnnotator
from prefloop.interfaces import InputError, PairTask, Scorer
from prefloop.records import Comparison, Completion, Group, Refusal, Score, content_id

TASKS_AT_ONCE = 64
"""Tasks whose completions go to the gold scorer together."""
CHARACTERS_PER_BIAS = 100
"""`length_bias` is added once per this many characters."""
DECLINED = "declined"


class SimulatedComparer:
    """A pool of annotators; each task is put to `votes` of them."""

    def __init__(self, options: SimulatedAnnotator, gold: Scorer, *, seed: int) -> None:
        if options.votes > options.pool:
            raise InputError(
                f"annotator simulated: votes = {options.votes} from different people need a pool of at least as many, "
                f"but pool = {options.pool}"
            )
        self.name = "simulated"
        self.options = options
        self.gold = gold
        self.seed = seed

    def compare(self, tasks: Iterable[PairTask]) -> Iterator[Comparison | Refusal]:
        """Yields one row a vote, in the order of the tasks."""
        remaining = iter(tasks)
        while chunk := list(islice(remaining, TASKS_AT_ONCE)):
            scores = _gold_scores(self.gold, chunk)
            for task in chunk:
                yield from self._votes(task, scores)

    def _votes(self, task: PairTask, scores: Mapping[str, float]) -> Iterator[Comparison | Refusal]:
        # in the order of ids, so that (a, b) and (b, a) are the same question
        x, y = sorted((task.a, task.b), key=lambda completion: completion.id)
        people = self._rng("people", x.id, y.id).permutation(self.options.pool)[: self.options.votes]
        for person in people.tolist():
            rng = self._rng("vote", person, x.id, y.id)
            x_first = bool(rng.random() < 0.5)
            name = f"{self.name}/{person:02d}"
            if rng.random() < self.options.refusal_rate:
                yield _refusal(task.prompt.id, (task.a.id, task.b.id), name)
                continue
            perceived = self._perceived_difference(person, x, y, scores, x_first=x_first)
            p_x = self._verdict(person, perceived, draw=rng.random())
            presented: Literal["ab", "ba"] = "ab" if (x is task.a) == x_first else "ba"
            yield Comparison(
                prompt_id=task.prompt.id,
                a=task.a.id,
                b=task.b.id,
                p_a=p_x if x is task.a else 1 - p_x,
                annotator=name,
                presented=presented,
            )

    def _perceived_difference(
        self, person: int, x: Completion, y: Completion, scores: Mapping[str, float], *, x_first: bool
    ) -> float:
        """How much better x looks than y to this person: gold, length, position and taste, all in units of gold."""
        options = self.options
        difference = scores[x.id] - scores[y.id]
        difference += options.length_bias * (len(x.text) - len(y.text)) / CHARACTERS_PER_BIAS
        difference += options.position_bias * (1 if x_first else -1)
        return difference + self._taste(person, x) - self._taste(person, y)

    def _probability(self, person: int, difference: float) -> float:
        """P' = (1 - 2 f) P + f with P = sigmoid(difference / tau), or the sign of the difference where tau is 0."""
        options = self.options
        if options.temperature:
            spread = self._rng("scale", person).standard_normal() * options.scale_spread
            p = float(expit(difference / (options.temperature * np.exp(spread))))
        else:
            p = float(difference > 0)
        return (1 - 2 * options.flip) * p + options.flip

    def _verdict(self, person: int, difference: float, *, draw: float) -> float:
        undecided = difference == 0 and not self.options.temperature
        if undecided or abs(difference) < self.options.tie_band:
            return 0.5
        return float(draw < self._probability(person, difference))

    def _taste(self, person: int, completion: Completion) -> float:
        if not self.options.taste_spread:
            return 0.0
        return float(self._rng("taste", person, completion.id).standard_normal() * self.options.taste_spread)

    def _rng(self, *about: object) -> np.random.Generator:
        return _rng(self.seed, *about)


class SimulatedScorer:
    """The noise-free oracle: the gold score itself, one label a completion. Only refusals are simulated."""

    def __init__(self, options: SimulatedAnnotator, gold: Scorer, *, seed: int) -> None:
        self.name = "simulated"
        self.options = options
        self.gold = gold
        self.seed = seed

    def score(self, groups: Iterable[Group]) -> Iterator[Score | Refusal]:
        """Yields one row a completion, in order."""
        for row in self.gold.score(groups):
            if isinstance(row, Refusal):
                yield row
            elif _rng(self.seed, "score", row.completion_id).random() < self.options.refusal_rate:
                yield _refusal(row.prompt_id, (row.completion_id,), self.name)
            else:
                yield Score(
                    prompt_id=row.prompt_id,
                    completion_id=row.completion_id,
                    value=row.value,
                    annotator=self.name,
                )


def _gold_scores(gold: Scorer, tasks: Iterable[PairTask]) -> dict[str, float]:
    """The gold score of every completion of the tasks, each asked for once."""
    prompts = {task.prompt.id: task.prompt for task in tasks}
    asked: dict[str, dict[str, Completion]] = {prompt_id: {} for prompt_id in prompts}
    for task in tasks:
        asked[task.prompt.id] |= {task.a.id: task.a, task.b.id: task.b}
    groups = [Group(prompt=prompts[key], completions=tuple(asked[key].values())) for key in prompts]
    scores: dict[str, float] = {}
    for row in gold.score(groups):
        if isinstance(row, Refusal):
            raise InputError(
                f"annotator simulated: the gold scorer {gold.name} refused prompt {row.prompt_id}: {row.reason}; "
                "the hidden truth must score every completion"
            )
        scores[row.completion_id] = row.value
    return scores


def _refusal(prompt_id: str, completion_ids: tuple[str, ...], annotator: str) -> Refusal:
    return Refusal(prompt_id=prompt_id, completion_ids=completion_ids, annotator=annotator, reason=DECLINED)


def _rng(seed: int, *about: object) -> np.random.Generator:
    return np.random.default_rng(int(content_id("simulated", seed, *about), 16))
