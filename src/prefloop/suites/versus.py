"""Benchmarks that compare a policy's answers with a baseline's: AlpacaEval and win rates on prompts of one's own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prefloop.config import AlpacaEvalSuite, WinRateSuite
from prefloop.interfaces import Comparer, InputError, PairTask
from prefloop.records import Comparison, Message, Prompt, file_completion
from prefloop.scoring import alpaca_eval, win_rate
from prefloop.scoring.figures import Scored
from prefloop.suites.questions import Answered, Asked, Question, Row, asked, text_of

PROMPT_COLUMNS = ("instruction", "prompt", "question")
ANSWER_COLUMNS = ("baseline_output", "output", "completion", "response")
Baseline = tuple[str, Mapping[str, str]]
"""Who answered, and what, by question."""


def questions(suite: AlpacaEvalSuite | WinRateSuite) -> Asked:
    """Reads one prompt a row."""

    def read(row: Row, place: str) -> Question:
        text = text_of(row, PROMPT_COLUMNS, place)
        return Question(text, (text,), row, suite.temperature)

    return asked(suite.path, read, suite.limit)


def baseline_of_file(path: str, asked: Asked, name: str) -> Baseline:
    """The answers beside the prompts. Raises InputError where one lacks."""
    answers = {
        one.key: text_of(one.row, ANSWER_COLUMNS, f"{path}, {one.key[:60]!r}") for one in asked.questions
    }
    said = {str(one.row["generator"]) for one in asked.questions if one.row.get("generator")}
    if len(said) > 1:
        raise InputError(f"{path}: answers of {', '.join(sorted(said))}; a baseline is one of them")
    return (said.pop() if said else name), answers


def baseline_of_answers(name: str, answers: Sequence[Answered]) -> Baseline:
    """The answers of another policy to the same questions."""
    return name, {one.key: one.answers[0][0] for one in answers}


def _judged(
    answers: Sequence[Answered], baseline: Baseline, judge: Comparer
) -> Iterator[tuple[str, str, str, float | None, str]]:
    """Question, the baseline's answer, the policy's, P(the policy's is better), and the judge's words."""
    both = [one for one in answers if one.key in baseline[1]]
    tasks = (_task(one.key, baseline[1][one.key], one.answers[0][0]) for one in both)
    for one, row in zip(both, judge.compare(tasks), strict=True):
        p_model = 1 - row.p_a if isinstance(row, Comparison) else None
        reason = row.reason or "" if isinstance(row, Comparison) else f"refused: {row.reason}"
        yield one.key, baseline[1][one.key], one.answers[0][0], p_model, reason


def _task(question: str, theirs: str, ours: str) -> PairTask:
    prompt = Prompt.of((Message(role="user", content=question),))
    return PairTask(prompt, file_completion(prompt, theirs, 0), file_completion(prompt, ours, 1))


def said_by(judge: Comparer) -> str:
    """The judge, with a digest of what it was asked where it was asked in words."""
    about = getattr(judge, "provenance", {})
    return f"{judge.name}/{about['prompt_sha'][:8]}" if "prompt_sha" in about else judge.name


# --- AlpacaEval -------------------------------------------------------------------------------------------------------


def alpaca_rows(
    answers: Sequence[Answered], model: str, baseline: Baseline, judge: Comparer
) -> Iterator[Row]:
    """Rows of `annotations.json`. Preferences go from 1, the baseline's answer, to 2."""
    for question, theirs, ours, p_model, reason in _judged(answers, baseline, judge):
        yield {
            "instruction": question,
            "output_1": theirs,
            "generator_1": baseline[0],
            "output_2": ours,
            "generator_2": model,
            "annotator": said_by(judge),
            "preference": None if p_model is None else 1 + p_model,
            "raw_completion": reason,
        }


def score_alpaca(path: str, suite: AlpacaEvalSuite, asked: Asked) -> list[Scored]:
    """Win rates, under a name that says who judged and what was asked."""
    inputs = alpaca_eval.load_inputs(Path(suite.inputs)) if suite.inputs is not None else None
    found = alpaca_eval.score(path, inputs=inputs, draws=suite.confidence_draws)
    for one in found:
        one.benchmark = with_prompts(one.benchmark, asked)
    return found


# --- win rate ---------------------------------------------------------------------------------------------------------


def win_rate_rows(
    answers: Sequence[Answered], model: str, baseline: Baseline, judge: Comparer
) -> Iterator[Row]:
    """One verdict a prompt, with both answers."""
    for question, theirs, ours, p_model, reason in _judged(answers, baseline, judge):
        yield {
            "prompt": question,
            "model_a": baseline[0],
            "model_b": model,
            "answer_a": theirs,
            "answer_b": ours,
            "p_a": None if p_model is None else 1 - p_model,
            "judge": said_by(judge),
            "reason": reason,
        }


def score_win_rate(path: str, suite: WinRateSuite, asked: Asked) -> list[Scored]:
    """The win rate, under a name that says what was asked."""
    found = win_rate.score(path, draws=suite.confidence_draws)
    for one in found:
        one.benchmark = with_prompts(one.benchmark, asked)
    return found


def units(rows: Iterable[Row]) -> dict[str, float]:
    """Probability, of each prompt, that the policy's answer is better."""
    found = {}
    for one in rows:
        if one.get("preference") is not None:
            found[one["instruction"]] = one["preference"] - 1
        elif one.get("p_a") is not None:
            found[one["prompt"]] = 1 - one["p_a"]
    return found


def with_prompts(benchmark: str, asked: Asked) -> str:
    """A name that says who judged and against whom, with the number and digest of the prompts."""
    parts = benchmark.rstrip("]").partition("[")[2].split(", ")
    kept = [one for one in parts if one and not one.startswith("prompts=")]
    return f"{benchmark.partition('[')[0]}[{', '.join([*kept, f'prompts={asked.prompts}'])}]"
