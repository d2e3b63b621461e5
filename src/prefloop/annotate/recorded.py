"""Verdicts from a file: scores next to the completions they judge, or prefloop's own judgement rows."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

from pydantic import ValidationError

from prefloop.config import RecordedAnnotator
from prefloop.containers import Broken, raw_rows
from prefloop.data import read_recorded_scores
from prefloop.interfaces import InputError, PairTask
from prefloop.records import Comparison, Completion, Group, Judgement, Refusal, Score, judgement_adapter

JUDGEMENT_TYPES = frozenset({"score", "comparison", "refusal"})
NOT_JUDGED = "not_judged"


class RecordedScorer:
    """Replays the verdicts of a file, as one that scores and as one that compares.

    Scores of a file of groups belong to completions by prompt and position, and carry the name `recorded`; judgement
    rows belong to them by id and come out as they are. A null score is a refusal that cost nothing.
    """

    def __init__(self, options: RecordedAnnotator) -> None:
        self.name = "recorded"
        self.path = options.path
        self._by_position: dict[tuple[str, int], float | None] | None = None
        self._by_ids: dict[frozenset[str], list[Judgement]] = defaultdict(list)
        if _holds_judgements(options.path):
            for judgement in _read_judgements(options.path):
                self._by_ids[_subject(judgement)].append(judgement)
        else:
            self._by_position = read_recorded_scores(options.path, options.score_field)

    def score(self, groups: Iterable[Group]) -> Iterator[Score | Refusal]:
        """Yields one row a completion, in order. Raises InputError for completions that the file does not judge."""
        for group in groups:
            for index, completion in enumerate(group.completions):
                yield self._score(group, index, completion)

    def compare(self, tasks: Iterable[PairTask]) -> Iterator[Comparison | Refusal]:
        """Yields every recorded row on the two completions of each task, in order. Raises InputError for others."""
        for task in tasks:
            rows = [one for one in self._rows(task.a, task.b) if not isinstance(one, Score)]
            if not rows:
                raise InputError(
                    f"{self.path}: no comparison of completions {task.a.id} and {task.b.id} of prompt "
                    f"{task.prompt.id}; record it, or leave this prompt out"
                )
            yield from rows

    def replay(self, groups: Iterable[Group]) -> Iterator[Judgement]:
        """Yields what the file has on each group: all comparisons of its completions, or else one score each."""
        for group in groups:
            comparisons = [row for a, b in combinations(group.completions, 2) for row in self._rows(a, b)]
            yield from comparisons or self.score([group])

    def _score(self, group: Group, index: int, completion: Completion) -> Score | Refusal:
        if self._by_position is not None:
            return self._score_by_position(self._by_position, group, index, completion)
        rows = [one for one in self._rows(completion) if not isinstance(one, Comparison)]
        if len(rows) != 1:
            raise InputError(
                f"{self.path}: {len(rows) or 'no'} scores of completion {completion.id} (position {index}) of prompt "
                f"{group.prompt.id}; one is needed"
            )
        return rows[0]

    def _score_by_position(
        self, scores: Mapping[tuple[str, int], float | None], group: Group, index: int, completion: Completion
    ) -> Score | Refusal:
        prompt_id = group.prompt.id
        if (prompt_id, index) not in scores:
            raise InputError(
                f"{self.path}: no score of completion {completion.id} (position {index}) of prompt {prompt_id}; "
                "a recorded annotator can only judge the completions of its own file"
            )
        value = scores[prompt_id, index]
        if value is None:
            return Refusal(
                prompt_id=prompt_id,
                completion_ids=(completion.id,),
                annotator=self.name,
                reason=NOT_JUDGED,
                labels=0,
            )
        return Score(prompt_id=prompt_id, completion_id=completion.id, value=value, annotator=self.name)

    def _rows(self, *completions: Completion) -> list[Judgement]:
        return self._by_ids.get(frozenset(one.id for one in completions), [])


def _holds_judgements(path: str) -> bool:
    first = next(raw_rows(path, "train"), None)
    return (
        first is not None and isinstance(first.value, Mapping) and first.value.get("type") in JUDGEMENT_TYPES
    )


def _read_judgements(path: str) -> Iterator[Judgement]:
    for row in raw_rows(path, "train"):
        if isinstance(row.value, Broken):
            raise InputError(f"{row.file} row {row.number}: {row.value.message}")
        try:
            yield judgement_adapter.validate_python(row.value)
        except ValidationError as error:
            detail = error.errors()[0]
            field = ".".join(str(part) for part in detail["loc"])
            raise InputError(
                f"{row.file} row {row.number}: not a judgement: {field}: {detail['msg']}"
            ) from error


def _subject(judgement: Judgement) -> frozenset[str]:
    """The ids of the completions that a row judges."""
    match judgement:
        case Score():
            return frozenset((judgement.completion_id,))
        case Comparison():
            return frozenset((judgement.a, judgement.b))
        case Refusal():
            return frozenset(judgement.completion_ids)
