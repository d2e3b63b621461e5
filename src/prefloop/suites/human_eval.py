"""HumanEval: programs that run in the sandbox. What became of each is kept, and the scores are read from that."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from prefloop.config import HumanEvalSuite
from prefloop.interfaces import Progress
from prefloop.scoring import human_eval
from prefloop.scoring.figures import Scored
from prefloop.scoring.reading import rows_of
from prefloop.suites.questions import Answered, Asked, Question, Row, asked, digest_of, named
from prefloop.wording import fill


def questions(suite: HumanEvalSuite) -> Asked:
    """Reads the problems."""
    human_eval.read_problems(suite.path)  # complains about what is no problem

    def read(row: Row, place: str) -> Question:
        turn = fill(suite.template, {"prompt": str(row["prompt"])})
        return Question(str(row["task_id"]), (turn,), row, suite.temperature)

    return asked(suite.path, read, suite.limit)


def rows(
    asked: Asked, answers: Sequence[Answered], suite: HumanEvalSuite, progress: Progress
) -> Iterator[Row]:
    """Samples in the benchmark's format, with what became of them."""
    problems = human_eval.read_problems(suite.path)
    samples = [(one.key, turns[0]) for one in answers for turns in one.answers]
    outcomes = human_eval.run_samples(
        [(problems[key], text) for key, text in samples],
        fencing="limits" if suite.without_namespaces else "namespaces",
        progress=progress,
    )
    for (key, text), outcome in zip(samples, outcomes, strict=True):
        yield {"task_id": key, "completion": text, "passed": outcome.passed, "reason": outcome.reason}


def units(rows: Iterable[Row]) -> dict[str, float]:
    """The share of each problem's programs that pass."""
    found: dict[str, list[bool]] = defaultdict(list)
    for one in rows:
        found[one["task_id"]].append(one["passed"])
    return {key: sum(some) / len(some) for key, some in found.items()}


def score(path: str, suite: HumanEvalSuite, asked: Asked, model: str) -> list[Scored]:
    """pass@k, under a name that says what was asked. Nothing is run again."""
    every = human_eval.read_problems(suite.path)
    outcomes = [human_eval.Outcome(row["task_id"], row["passed"], row["reason"]) for _, row in rows_of(path)]
    answered = {one.task_id for one in outcomes}
    known = {key: one for key, one in every.items() if key in answered}
    found = human_eval.scored(outcomes, known, model, draws=suite.confidence_draws)
    found.benchmark = named(human_eval.NAME, asked, template=digest_of(suite.template))
    return [found]
