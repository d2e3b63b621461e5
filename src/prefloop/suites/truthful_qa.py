"""TruthfulQA: how probable a policy finds true and false answers. Nothing is generated."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from prefloop.batches import TokenGroup
from prefloop.config import RuntimeSection, TruthfulQaSuite, read_text
from prefloop.forward import LogpsModule, all_sequence_logps
from prefloop.interfaces import Progress
from prefloop.modeling import load_codec, load_policy
from prefloop.scoring import truthful_qa, truthful_qa_binary
from prefloop.scoring.figures import Scored
from prefloop.scoring.truthful_qa import Question as Choices
from prefloop.scoring.truthful_qa_binary import Pair
from prefloop.suites.questions import Row, digest_of

AT_ONCE = 64
"""Questions between two signs of progress."""


class AskedChoices(NamedTuple):
    """The questions of a file, with what stands before each."""

    questions: tuple[Choices | Pair, ...]
    context: str
    digest: str
    is_binary: bool
    """Whether the file is the authors' table of the best answer and the best wrong one."""

    @property
    def prompts(self) -> str:
        """How many are asked and which, for the score's name."""
        return f"{len(self.questions)}/{self.digest}"


def questions(suite: TruthfulQaSuite) -> AskedChoices:
    """Reads the questions and the text before them. Raises InputError."""
    is_binary = truthful_qa_binary.is_binary(suite.path)
    read = truthful_qa_binary.read_pairs if is_binary else truthful_qa.read_questions
    found = tuple(read(suite.path)[: suite.limit])
    context = truthful_qa.SIX_SHOTS if suite.context is None else read_text(Path(suite.context))
    return AskedChoices(found, context, digest_of(context, [one.text for one in found]), is_binary)


def _lists(one: Choices | Pair) -> dict[str, Sequence[str]]:
    """The lists of answers whose likelihoods a row has, by its column."""
    if isinstance(one, Pair):
        return {"binary": (one.best, one.wrong)}
    return {"mc1": one.mc1.texts, "mc2": one.mc2.texts}


def rows(
    asked: AskedChoices, policy: Path, model: str, runtime: RuntimeSection, progress: Progress
) -> Iterator[Row]:
    """Log-likelihoods of all answers. Raises InputError for questions that do not fit into the model."""
    codec = load_codec(policy)
    module = LogpsModule(load_policy(policy, runtime), pad_id=codec.pad_id, runtime=runtime)
    for start in range(0, len(asked.questions), AT_ONCE):
        progress(start, len(asked.questions), "answers")
        some = asked.questions[start : start + AT_ONCE]
        groups = [
            _group(codec.tokenizer, truthful_qa.context_of(one.text, asked.context), answers)
            for one in some
            for answers in _lists(one).values()
        ]
        found = iter(all_sequence_logps(module, groups, runtime))
        for one in some:
            yield {"model": model, "question": one.text, **{name: next(found) for name in _lists(one)}}


def _group(tokenizer: Callable, context: str, answers: Sequence[str]) -> TokenGroup:
    """The context's tokens, and those that follow them for each answer."""
    before = tokenizer(context).input_ids
    whole = [tokenizer(f"{context} {answer}").input_ids for answer in answers]
    return TokenGroup(tuple(before), tuple(tuple(ids[len(before) :]) for ids in whole))


def units(rows: Iterable[Row], asked: AskedChoices) -> dict[str, float]:
    """MC2 of each question; in the binary setting, whether the best answer is the likelier."""
    if asked.is_binary:
        return {one["question"]: truthful_qa.mc1(one["binary"], (1, 0)) for one in rows}
    labels = {one.text: one.mc2.labels for one in asked.questions if isinstance(one, Choices)}
    return {one["question"]: truthful_qa.mc2(one["mc2"], labels[one["question"]]) for one in rows}


def score(path: str, suite: TruthfulQaSuite, asked: AskedChoices) -> list[Scored]:
    """MC1 and MC2, or the binary setting's rate, under a name that says what was asked."""
    setting = truthful_qa_binary if asked.is_binary else truthful_qa
    found = setting.score(path, questions=suite.path, draws=suite.confidence_draws)
    for one in found:
        one.benchmark = f"{setting.NAME}[prompts={asked.prompts}]"
        if suite.limit is not None:
            one.notes.clear()  # that others were not asked is what the limit is for
    return found
