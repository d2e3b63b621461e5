"""GSM8K: solutions in words, of which the final number counts."""

from collections.abc import Iterable, Iterator, Sequence

from prefloop.config import Gsm8kSuite
from prefloop.scoring import gsm8k
from prefloop.scoring.figures import Scored
from prefloop.suites.questions import Answered, Asked, Question, Row, asked, digest_of, named, text_of
from prefloop.wording import fill


def questions(suite: Gsm8kSuite) -> Asked:
    """Reads question and answer of each row."""

    def read(row: Row, place: str) -> Question:
        text = text_of(row, ("question",), place)
        text_of(row, ("answer",), place)
        return Question(text, (fill(suite.template, {"question": text}),), row)

    return asked(suite.path, read, suite.limit)


def rows(asked: Asked, answers: Sequence[Answered], model: str) -> Iterator[Row]:
    """Solutions beside the truth."""
    said = {one.key: one.answers[0][0] for one in answers}
    for one in asked.questions:
        if one.key in said:
            yield {
                "model": model,
                "question": one.key,
                "answer": one.row["answer"],
                "solution": said[one.key],
            }


def score(path: str, suite: Gsm8kSuite, asked: Asked) -> list[Scored]:
    """Accuracy, under a name that says what was asked."""
    found = gsm8k.score(path, draws=suite.confidence_draws)
    for one in found:
        one.benchmark = named(gsm8k.NAME, asked, template=digest_of(suite.template))
    return found


def units(rows: Iterable[Row]) -> dict[str, float]:
    """1 for each question that is solved, else 0."""
    return {one["question"]: float(gsm8k.is_right(one["solution"], _truth(one["answer"]))) for one in rows}


def _truth(answer: str) -> str:
    return answer if gsm8k.final_number(answer) is not None else f"#### {answer}"
