"""Benchmarks that policies are measured on, each on a file of the user's."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from prefloop.config.annotate import (
    FunctionAnnotator,
    JudgeAnnotator,
    PairwiseAnnotator,
    RecordedAnnotator,
    RewardModelAnnotator,
    RuleAnnotator,
)
from prefloop.config.section import NOT_HASHED, Section

PairJudge = Annotated[
    JudgeAnnotator
    | PairwiseAnnotator
    | RewardModelAnnotator
    | RuleAnnotator
    | FunctionAnnotator
    | RecordedAnnotator,
    Field(discriminator="kind"),
]
"""Who says which of two answers is better. One that scores prefers the higher score."""
GSM8K_TEMPLATE = """\
{question}

Work it out step by step. Write the final number alone on the last line, behind "#### "."""
HUMAN_EVAL_TEMPLATE = """\
Complete this Python function. Answer with the whole function in one block of code.

```python
{prompt}
```"""


class SuiteSection(Section):
    """What all benchmarks have in common."""

    path: str
    """File of the benchmark's questions, in its own format."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first questions only; the score is then named after their number."""
    confidence_draws: int = Field(default=2000, ge=100)
    """Bootstrap samples of every interval."""


class AnsweredSuite(SuiteSection):
    """A benchmark that the policy answers in words."""

    max_new_tokens: int = Field(default=512, ge=1)
    """Longest answer."""
    max_prompt_length: int = Field(default=2048, ge=1)
    """Longer questions are dropped and counted."""


class Gsm8kSuite(AnsweredSuite):
    """GSM8K (arXiv:2110.14168): whether the number that a solution ends in is the right one. Zero-shot and greedy."""

    kind: Literal["gsm8k"]
    """Name of the benchmark."""
    template: str = GSM8K_TEMPLATE
    """What is asked, with {question}. The benchmark's bare name stands for none, so that this one is part of the name."""

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("lacks {question}")
        return value


class HumanEvalSuite(AnsweredSuite):
    """HumanEval (arXiv:2107.03374): whether programs pass their tests, which run in a sandbox."""

    kind: Literal["human_eval"]
    """Name of the benchmark."""
    num_completions: int = Field(default=1, ge=1)
    """Programs a problem: pass@k is known up to this k."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the greedy program; several programs need more."""
    template: str = HUMAN_EVAL_TEMPLATE
    """What is asked, with {prompt}."""
    without_namespaces: bool = Field(default=False, json_schema_extra=NOT_HASHED)
    """Run programs also where the machine allows no namespaces: a filter of system calls and Landlock hold them then."""

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if "{prompt}" not in value:
            raise ValueError("lacks {prompt}")
        return value

    @model_validator(mode="after")
    def _samples_differ(self) -> "HumanEvalSuite":
        if self.num_completions > 1 and not self.temperature:
            raise ValueError("num_completions: greedy programs are all the same; raise temperature")
        return self


class AlpacaEvalSuite(AnsweredSuite):
    """AlpacaEval 2: win rate against a baseline's answers, plain and at equal length (arXiv:2404.04475)."""

    kind: Literal["alpaca_eval"]
    """Name of the benchmark."""
    judge: PairJudge
    """Who compares. Another judge than the benchmark's own is part of the score's name."""
    inputs: str | None = None
    """Folder with difficulties and regulariser rows of the length-controlled rate; left out, it is fitted without them."""
    baseline: str = "baseline"
    """Name of who wrote the baseline's answers, where the file does not say it."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""


class WinRateSuite(AnsweredSuite):
    """Win rate on prompts of your own, against answers in the same file or those of another policy."""

    kind: Literal["win_rate"]
    """Name of the benchmark."""
    judge: PairJudge
    """Who compares."""
    baseline: Literal["file", "start"] = "start"
    """`file`: the answers beside the prompts; `start`: those of the SFT policy that a run begins with, or of the policy
    that `prefloop eval --against` names."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""


class ArenaHardSuite(AnsweredSuite):
    """Arena-Hard v0.1 (arXiv:2406.11939): verdicts of five degrees, in both orders, against a baseline's answers."""

    kind: Literal["arena_hard"]
    """Name of the benchmark."""
    baseline: str
    """File of the baseline's answers, in the benchmark's format."""
    judge: JudgeAnnotator
    """The endpoint that judges; its `template` is the question with {prompt}, {a} and {b}."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""


class MtBenchSuite(AnsweredSuite):
    """MT-bench (arXiv:2306.05685): two turns, each rated from 1 to 10. Sampling temperatures are those of the categories."""

    kind: Literal["mt_bench"]
    """Name of the benchmark."""
    judge: JudgeAnnotator
    """The endpoint that rates."""
    references: str | None = None
    """File of reference answers; left out, none are shown to the judge."""
    templates: str | None = None
    """The benchmark's file of judge prompts; left out, a question in words of our own, which is part of the name."""


class TruthfulQaSuite(SuiteSection):
    """TruthfulQA (arXiv:2109.07958): how probable true and false answers are, in lists (MC1, MC2) or of the best and best
    wrong one (the binary setting), as the file has them. Nothing is generated."""

    kind: Literal["truthful_qa"]
    """Name of the benchmark."""
    context: str | None = None
    """Text file that stands before every question; left out, the benchmark's own six questions with answers."""


class RewardBenchSuite(SuiteSection):
    """RewardBench and RewardBench 2 (arXiv:2403.13787, 2506.01937): how a reward model scores right and wrong answers."""

    kind: Literal["reward_bench"]
    """Name of the benchmark."""
    of: Literal["reward", "policy"] = "reward"
    """`reward`: the reward model of the loop, or that `prefloop eval` names; `policy`: the reward that the policy implies,
    by how much likelier it makes an answer than the policy that the loop started with, or that `--against` names."""


class LmEvalSuite(Section):
    """Tasks of EleutherAI's lm-evaluation-harness, an extra: `pip install 'prefloop[lm-eval]'`. The policy writes by the
    experiment's engine."""

    kind: Literal["lm_eval"]
    """Name of the benchmark."""
    tasks: list[str] = Field(min_length=1)
    """Names of tasks, groups or tags, as the harness has them."""
    path: str | None = None
    """Folder of task files of your own, beside those that come with the harness, which download their data."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples before each question; left out, as many as the task says."""
    chat: bool = False
    """Put questions and examples through the policy's chat template."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first documents of each task only."""
    confidence_draws: int = Field(default=2000, ge=100)
    """Bootstrap samples of every interval."""


WordedSuite = Gsm8kSuite | HumanEvalSuite | AlpacaEvalSuite | WinRateSuite | ArenaHardSuite | MtBenchSuite
"""A benchmark that is answered in words."""
Suite = Annotated[WordedSuite | TruthfulQaSuite | RewardBenchSuite | LmEvalSuite, Field(discriminator="kind")]
