"""RewardBench, both versions: how a reward model, or a policy's own likelihoods, score answers known as right or wrong."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from prefloop.config import RewardBenchSuite
from prefloop.interfaces import InputError, Scorer
from prefloop.records import Group, Message, Prompt, Score, file_completion
from prefloop.scoring import reward_bench
from prefloop.scoring.figures import Scored
from prefloop.scoring.reading import need, rows_of
from prefloop.suites.questions import Row, digest_of

AT_ONCE = 64
"""Prompts between two signs of progress."""


class Candidates(NamedTuple):
    """A prompt with its answers, the right ones first."""

    id: str
    subset: str
    prompt: Prompt
    texts: tuple[str, ...]
    num_right: int
    is_pair: bool
    """Of version 1."""

    @property
    def key(self) -> str:
        """How it is told from others."""
        return key_of(self.subset, self.id)

    @property
    def group(self) -> Group:
        """For a scorer."""
        completions = tuple(
            file_completion(self.prompt, text, place) for place, text in enumerate(self.texts)
        )
        return Group(prompt=self.prompt, completions=completions)


@dataclass(frozen=True)
class AskedCandidates:
    """The prompts of a file."""

    questions: tuple[Candidates, ...]
    digest: str

    @property
    def prompts(self) -> str:
        """How many are asked and which, for the score's name."""
        return f"{len(self.questions)}/{self.digest}"


def questions(suite: RewardBenchSuite) -> AskedCandidates:
    """Reads prompts with `chosen` and `rejected`: one of each (version 1) or lists of them. Raises InputError."""
    found: dict[str, Candidates] = {}
    for place, row in rows_of(suite.path):
        if suite.limit is not None and len(found) >= suite.limit:
            break
        one = _candidates(row, place)
        if one.key in found:
            raise InputError(f"{place}: subset {one.subset} has had the id {one.id} before; keep one row")
        found[one.key] = one
    asked = tuple(found.values())
    if len({one.is_pair for one in asked}) > 1:
        raise InputError(
            f"{suite.path}: pairs of version 1 beside several answers of version 2; make two files of them"
        )
    return AskedCandidates(asked, digest_of(*((one.prompt.id, *one.texts) for one in asked)))


def _candidates(row: Row, place: str) -> Candidates:
    right, wrong = need(row, "chosen", place), need(row, "rejected", place)
    is_pair = isinstance(right, str)
    if isinstance(wrong, str) != is_pair:
        raise InputError(f"{place}: chosen and rejected are two texts, or two lists of texts")
    texts = [right, wrong] if is_pair else [*right, *wrong]
    if not all(isinstance(one, str) for one in texts):
        raise InputError(f"{place}: an answer is no text")
    return Candidates(
        id=str(need(row, "id", place)),
        subset=str(need(row, "subset", place)),
        prompt=_prompt(need(row, "prompt", place), place),
        texts=tuple(texts),
        num_right=1 if is_pair else len(right),
        is_pair=is_pair,
    )


def _prompt(value: Any, place: str) -> Prompt:
    """A text, or the messages of a conversation."""
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
    try:
        return Prompt.of(tuple(Message.model_validate(one) for one in turns))
    except (TypeError, ValidationError) as error:
        raise InputError(
            f"{place}: prompt is neither a text nor a list of messages with role and content"
        ) from error


def rows(
    asked: AskedCandidates, scorer: Scorer, model: str, fits: Callable[[Group], bool]
) -> Iterator[Row | None]:
    """Prompts with their answers' scores, in the benchmark's own columns; None for what does not fit the model."""
    for start in range(0, len(asked.questions), AT_ONCE):
        some = [(one, one.group) for one in asked.questions[start : start + AT_ONCE]]
        fitting = {one.key for one, group in some if fits(group)}
        scores = iter(list(scorer.score([group for one, group in some if one.key in fitting])))
        for one, _ in some:
            found = [next(scores) for _ in one.texts] if one.key in fitting else []
            values = [each.value for each in found if isinstance(each, Score)]
            yield _row(one, values, model) if len(values) == len(one.texts) else None


def _row(one: Candidates, values: list[float], model: str) -> Row:
    row = {"id": one.id, "subset": one.subset, "model": model, "prompt": one.prompt.text}
    if one.is_pair:
        sides = {"chosen": one.texts[0], "rejected": one.texts[1]}
        return {**row, **sides, "score_chosen": values[0], "score_rejected": values[1]}
    answers = {"chosen": one.texts[: one.num_right], "rejected": one.texts[one.num_right :]}
    return {**row, **answers, "num_correct": one.num_right, "scores": values}


def score(path: str, suite: RewardBenchSuite, asked: AskedCandidates) -> list[Scored]:
    """Sections and their mean, under a name that says what was asked of whom."""
    found = reward_bench.score(path, draws=suite.confidence_draws)
    for one in found:
        reward = "" if suite.of == "reward" else "reward=implicit, "
        one.benchmark = f"{one.benchmark}[{reward}prompts={asked.prompts}]"
    return found


def key_of(subset: str, id: str) -> str:
    """Of a question and of its row."""
    return f"{subset}/{id}"


def categories(asked: AskedCandidates) -> dict[str, str]:
    """The section of each prompt, where the benchmark has one for its subset."""
    return {one.key: reward_bench.section_of(one.subset) or one.subset for one in asked.questions}


def units(rows: Iterable[Row]) -> dict[str, float]:
    """How far the best answer of each prompt is a right one; in Ties, whether all right ones beat all wrong ones."""
    found = {}
    for row in rows:
        if "scores" in row:
            answers = reward_bench.answers_of(row, row["id"])
        else:
            answers = reward_bench.Answers((row["score_chosen"],), (row["score_rejected"],))
        is_tie = row["subset"].lower() == reward_bench.TIES
        found[key_of(row["subset"], row["id"])] = float(answers.gap > 0) if is_tie else answers.best_is_right
    return found
