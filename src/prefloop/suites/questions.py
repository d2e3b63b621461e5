"""What every benchmark is made of: questions with their turns, answers, and rows of verdicts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from prefloop.interfaces import InputError
from prefloop.records import Record, content_id
from prefloop.scoring.reading import need, rows_of
from prefloop.wording import Asking

Row = Mapping[str, Any]


class Question(NamedTuple):
    """One question, and what its file says about it."""

    key: str
    """How the benchmark tells it from others."""
    turns: tuple[str, ...]
    """What the user says; from the second on, after the policy has answered."""
    row: Row
    temperature: float = 0.0


class Answered(Record):
    """What a policy answered to a question, and how far it is from the end of what it wanted to say."""

    key: str
    answers: tuple[tuple[str, ...], ...]
    """For each sample, the answer to each turn."""
    truncated: bool
    """Whether any answer was cut off at the longest length."""


class Replies(Protocol):
    """Something that can be asked in words."""

    name: str

    def replies(self, questions: Iterable[Asking]) -> Iterator[str]:
        """Yields what is said to each question, in order."""
        ...


@dataclass(frozen=True)
class Asked:
    """The questions of a file."""

    questions: tuple[Question, ...]
    total: int
    """How many the file has."""
    digest: str
    """Of the questions that are asked, for the score's name."""

    @property
    def prompts(self) -> str:
        """How many are asked and which, for the score's name."""
        return f"{len(self.questions)}/{self.digest}"


def asked(path: str, read: "ReadQuestion", limit: int | None) -> Asked:
    """The questions of a file, in order. Raises InputError for keys that come twice."""
    found: dict[str, Question] = {}
    total = 0
    for place, row in rows_of(path):
        total += 1
        if limit is not None and len(found) >= limit:
            continue
        question = read(row, place)
        if question.key in found:
            raise InputError(
                f"{place}: the question {question.key[:60]!r} has been there before; keep one row"
            )
        found[question.key] = question
    questions = tuple(found.values())
    return Asked(questions, total, digest_of(*(one.turns for one in questions)))


class ReadQuestion(Protocol):
    """Makes a question of a row."""

    def __call__(self, row: Row, place: str) -> Question: ...


def digest_of(*parts: object) -> str:
    """Eight digits by which to tell texts apart in a name."""
    return content_id(*parts)[:8]


def text_of(row: Row, names: Sequence[str], place: str) -> str:
    """The first of several columns that is there."""
    name = next((one for one in names if row.get(one) not in (None, "")), names[0])
    return str(need(row, name, place))


def named(benchmark: str, asked: "Asked", **parts: object) -> str:
    """A benchmark's name with what its number depends on."""
    words = ", ".join(f"{name}={value}" for name, value in {**parts, "prompts": asked.prompts}.items())
    return f"{benchmark}[{words}]"
