"""Comparisons by a scorer: how much better it finds one completion than the other."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice

from prefloop.interfaces import PairTask, Scorer
from prefloop.records import Comparison, Group, Refusal, Score

TASKS_AT_ONCE = 64


class ScoreComparer:
    """P(a is better) = sigmoid((score a - score b) / scale), the Bradley-Terry model; scale 0 says who has more.

    A scorer that was trained on comparisons has scale 1; one whose scores are points on a scale of its own has none.
    """

    def __init__(self, scorer: Scorer, *, scale: float) -> None:
        self.name = scorer.name
        self._scorer = scorer
        self._scale = scale

    def compare(self, tasks: Iterable[PairTask]) -> Iterator[Comparison | Refusal]:
        """Yields one row a task, in order; a completion that gets no score refuses its comparison."""
        remaining = iter(tasks)
        while chunk := list(islice(remaining, TASKS_AT_ONCE)):
            groups = [Group(prompt=one.prompt, completions=(one.a, one.b)) for one in chunk]
            rows = iter(self._scorer.score(groups))
            for task in chunk:
                yield self._compared(task, next(rows), next(rows))

    def _compared(self, task: PairTask, a: Score | Refusal, b: Score | Refusal) -> Comparison | Refusal:
        for row in (a, b):
            if isinstance(row, Refusal):
                return row.model_copy(update={"completion_ids": (task.a.id, task.b.id)})
        assert isinstance(a, Score) and isinstance(b, Score)
        return Comparison(
            prompt_id=task.prompt.id,
            a=task.a.id,
            b=task.b.id,
            p_a=self._p_first(a.value - b.value),
            annotator=self.name,
            labels=0,
        )

    def _p_first(self, gap: float) -> float:
        if not self._scale:
            return 0.5 if gap == 0 else float(gap > 0)
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, gap / self._scale))))
