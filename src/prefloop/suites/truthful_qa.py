"""TruthfulQA: how probable a policy finds true and false answers. Nothing is generated."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from prefloop.batches import TokenGroup
from prefloop.config import RuntimeSection, TruthfulQaSuite, read_text
from prefloop.forward import LogpsModule, all_sequence_logps
from prefloop.interfaces import Progress
from prefloop.modeling import load_codec, load_policy
from prefloop.scoring import truthful_qa
from prefloop.scoring.figures import Scored
from prefloop.scoring.truthful_qa import Question as Choices
from prefloop.suites.questions import Row, digest_of

AT_ONCE = 64
"""Questions between two signs of progress."""


class AskedChoices(NamedTuple):
    """The questions of a file, with what stands before each."""

    questions: tuple[Choices, ...]
    context: str
    digest: str

    @property
    def prompts(self) -> str:
        """How many are asked and which, for the score's name."""
        return f"{len(self.questions)}/{self.digest}"


def questions(suite: TruthfulQaSuite) -> AskedChoices:
    """Reads the questions and the text before them. Raises InputError."""
    found = tuple(truthful_qa.read_questions(suite.path)[: suite.limit])
    context = truthful_qa.SIX_SHOTS if suite.context is None else read_text(Path(suite.context))
    return AskedChoices(found, context, digest_of(context, [one.text for one in found]))


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
            _group(codec.tokenizer, truthful_qa.context_of(one.text, asked.context), choices.texts)
            for one in some
            for choices in (one.mc1, one.mc2)
        ]
        found = iter(all_sequence_logps(module, groups, runtime))
        for one in some:
            yield {"model": model, "question": one.text, "mc1": next(found), "mc2": next(found)}


def _group(tokenizer: Callable, context: str, answers: Sequence[str]) -> TokenGroup:
    """The context's tokens, and those that follow them for each answer."""
    before = tokenizer(context).input_ids
    whole = [tokenizer(f"{context} {answer}").input_ids for answer in answers]
    return TokenGroup(tuple(before), tuple(tuple(ids[len(before) :]) for ids in whole))


def units(rows: Iterable[Row], asked: AskedChoices) -> dict[str, float]:
    """MC2 of each question."""
    labels = {one.text: one.mc2.labels for one in asked.questions}
    return {one["question"]: truthful_qa.mc2(one["mc2"], labels[one["question"]]) for one in rows}


def score(path: str, suite: TruthfulQaSuite, asked: AskedChoices) -> list[Scored]:
    """MC1 and MC2, under a name that says what was asked."""
    found = truthful_qa.score(path, questions=suite.path, draws=suite.confidence_draws)
    for one in found:
        one.benchmark = f"{truthful_qa.NAME}[prompts={asked.prompts}]"
        if suite.limit is not None:
            one.notes.clear()  # that others were not asked is what the limit is for
    return found
