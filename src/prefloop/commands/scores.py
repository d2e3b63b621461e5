"""`prefloop score` and `prefloop compare`: benchmarks from files of judgements, without a model and without a network."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefloop.commands.options import Json
from prefloop.interfaces import InputError
from prefloop.sandbox.session import SECONDS
from prefloop.scoring import (
    agreement,
    alpaca_eval,
    arena_hard,
    arena_style,
    gsm8k,
    human_eval,
    judging,
    mt_bench,
    mt_bench_pairs,
    outputs,
    reward_bench,
    truthful_qa,
    truthful_qa_binary,
    win_rate,
)
from prefloop.scoring.comparing import Benchmark, compare_files
from prefloop.scoring.figures import DRAWS, LEVEL, Figure, Scored
from prefloop.scoring.style import Control
from prefloop.screen import bar
from prefloop.store import write_text

app = typer.Typer()
PANEL = "Measure"
score = typer.Typer(
    help="Score files of judgements, ratings or solutions in the formats that the benchmarks publish.",
    epilog="Example: `prefloop score mt-bench gpt-4_single.jsonl`. Nothing is asked of a model or of the network.",
    no_args_is_help=True,
)
app.add_typer(score, name="score", rich_help_panel=PANEL)
console = Console()

Files = Annotated[list[Path], typer.Argument(help="Files (.json, .jsonl, .csv, .parquet; each also .gz).")]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="Only this model; may be given several times.")
]
Draws = Annotated[int, typer.Option("--draws", min=2, help="Bootstrap samples of every interval.")]
Inputs = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        help="Folder with `instruction_difficulty.csv`, `gamed_rows.csv` and `prompts_and_baseline.jsonl` for the "
        "length-controlled rate; prefloop ships none of them.",
    ),
]


@score.command(
    "alpaca-eval", epilog="Example: `prefloop score alpaca-eval annotations.json --inputs my-alpaca-eval`."
)
def score_alpaca_eval(
    files: Files, inputs: Inputs = None, model: Models = None, draws: Draws = DRAWS, as_json: Json = False
) -> None:
    """AlpacaEval 2: win rate, discrete and length-controlled.

    Reads `annotations.json`, tables with model, index, preference and lengths, published regression weights, and the
    log-probabilities of the judge.
    """
    loaded = alpaca_eval.load_inputs(inputs) if inputs is not None else None
    show(
        [
            one
            for file in files
            for one in alpaca_eval.score(str(file), inputs=loaded, draws=draws, models=model or ())
        ],
        as_json,
    )


@score.command(
    "arena-hard",
    epilog="Example: `prefloop score arena-hard judgements.jsonl --answers model.jsonl --answers baseline.jsonl`.",
)
def score_arena_hard(
    files: Files,
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="Who judged, where a file does not say so: part of the name."),
    ] = None,
    answers: Annotated[
        list[str] | None,
        typer.Option(
            "--answers",
            help="A file of answers, one for each model and the baseline: adds scores with style controlled.",
        ),
    ] = None,
    control: Annotated[
        Literal["length", "markdown", "both"],
        typer.Option("--control", help="What style is, with `--answers`."),
    ] = "both",
    model: Models = None,
    draws: Draws = DRAWS,
    as_json: Json = False,
) -> None:
    """Arena-Hard v0.1 and v2.0: the win rate against the baseline, with the interval over questions.

    Reads battles (question_id, model_a, model_b, winner) and judgements with two games a question. With `--answers` one
    fit over all models given also says what each wins beside what its length and Markdown win.
    """
    found = [
        one
        for file in files
        for one in arena_hard.score(str(file), draws=draws, models=model or (), judge=judge)
    ]
    if answers:
        battles = [one for file in files for one in arena_hard.read_battles(str(file), model or ())]
        styles = arena_style.read_answers(answers)
        controls: list[Control] = ["length", "markdown"] if control == "both" else [control]
        found += arena_style.score(battles, styles, controls, draws=draws, judge=judge)
    show(found, as_json)


@score.command("mt-bench", epilog="Example: `prefloop score mt-bench gpt-4_single.jsonl`.")
def score_mt_bench(
    files: Files,
    reference: Annotated[
        str,
        typer.Option("--reference", help="Name of the reference answers that the judge was shown."),
    ] = mt_bench.REFERENCE,
    model: Models = None,
    draws: Draws = DRAWS,
    as_json: Json = False,
) -> None:
    """MT-bench: mean rating, by turn and category, read out of what the judge wrote.

    Reads FastChat's judgements of single answers. Thirteen answers of the official reference set are wrong: the mean
    without their questions stands beside the official one. Pairs of answers are for `prefloop score mt-bench-pairs`.
    """
    show(
        [
            one
            for file in files
            for one in mt_bench.score(str(file), draws=draws, models=model or (), reference=reference)
        ],
        as_json,
    )


@score.command(
    "mt-bench-pairs",
    epilog="Example: `prefloop score mt-bench-pairs gpt-4_pair.jsonl --baseline gpt-3.5-turbo`.",
)
def score_mt_bench_pairs(
    files: Files,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Only games against this model; left out, against all.")
    ] = None,
    model: Models = None,
    draws: Draws = DRAWS,
    as_json: Json = False,
) -> None:
    """MT-bench's pairwise mode: wins where both orders agree, else a tie; the adjusted rate counts ties one half.

    Reads FastChat's rows of two games: question_id, model_1, model_2, and g1_judgment, g2_judgment or g1_winner, g2_winner.
    """
    show(
        [
            one
            for file in files
            for one in mt_bench_pairs.score(str(file), draws=draws, models=model or (), baseline=baseline)
        ],
        as_json,
    )


@score.command("win-rate", epilog="Example: `prefloop score win-rate verdicts.jsonl`.")
def score_win_rate(files: Files, model: Models = None, draws: Draws = DRAWS, as_json: Json = False) -> None:
    """Win rates from verdicts on pairs of answers: rows with prompt, model_a, model_b and p_a."""
    show(
        [one for file in files for one in win_rate.score(str(file), draws=draws, models=model or ())], as_json
    )


@score.command("gsm8k", epilog="Example: `prefloop score gsm8k solutions.jsonl`.")
def score_gsm8k(files: Files, model: Models = None, draws: Draws = DRAWS, as_json: Json = False) -> None:
    """GSM8K: how many solutions end in the right number."""
    show([one for file in files for one in gsm8k.score(str(file), draws=draws, models=model or ())], as_json)


@score.command(
    "human-eval", epilog="Example: `prefloop score human-eval samples.jsonl --problems HumanEval.jsonl.gz`."
)
def score_human_eval(
    files: Files,
    problems: Annotated[
        Path | None,
        typer.Option(
            "--problems",
            envvar="HUMANEVAL_OVERRIDE_PATH",
            help="HumanEval's file of problems, or HumanEval+'s. Its tests are trusted: they run in this process.",
        ),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option(
            "--k", min=1, help="pass@k where every problem has k samples; 1, 10 and 100 if not given."
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="File (.jsonl) for what became of each sample.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Time that a sample has on the processor.")
    ] = SECONDS,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Samples at a time; as many as there are processors."),
    ] = None,
    without_namespaces: Annotated[
        bool,
        typer.Option(
            "--without-namespaces",
            help="Go on where the machine allows no namespaces: a filter of system calls and Landlock hold the code then.",
        ),
    ] = False,
    draws: Draws = DRAWS,
    as_json: Json = False,
) -> None:
    """HumanEval: pass@k of generated functions, run in a sandbox.

    Reads samples (task_id, completion, perhaps passed) and the problems themselves, whose canonical solutions all pass.
    """
    if results is not None and not results.parent.is_dir():
        raise InputError(f"{results}: there is no folder {results.parent}; make it first")
    found, rows = [], []
    for file in files:
        with bar(file.name) as progress:
            scored, outcomes = human_eval.score(
                str(file),
                problems=str(problems) if problems is not None else None,
                ks=k or human_eval.KS,
                draws=draws,
                seconds=seconds,
                fencing="limits" if without_namespaces else "namespaces",
                workers=workers,
                progress=progress,
            )
        found.append(scored)
        rows += [{"file": str(file), **asdict(one)} for one in outcomes]
    if results is not None:
        write_text(results, "".join(json.dumps(row) + "\n" for row in rows))
    show(found, as_json)


@score.command(
    "truthful-qa",
    epilog="Example: `prefloop score truthful-qa log-likelihoods.jsonl --questions mc_task.json`.",
)
def score_truthful_qa(
    files: Files,
    questions: Annotated[
        str | None, typer.Option("--questions", help="TruthfulQA's file of multiple-choice questions.")
    ] = None,
    model: Models = None,
    draws: Draws = DRAWS,
    as_json: Json = False,
) -> None:
    """TruthfulQA: MC1 and MC2 from log-likelihoods of the answers, or the binary setting.

    A row is a question with lists `mc1` and `mc2`, one number an answer; with the table of 2025 as `--questions` a list
    `binary` of two, the best answer's first. Questions alone get what a scorer reaches that finds all equally likely.
    """
    found = []
    for file in map(str, files):
        setting = truthful_qa_binary if truthful_qa_binary.is_binary(questions or file) else truthful_qa
        found += setting.score(file, questions=questions, draws=draws, models=model or ())
    show(found, as_json)


@score.command("reward-bench", epilog="Example: `prefloop score reward-bench pairs.csv`.")
def score_reward_bench(files: Files, draws: Draws = DRAWS, as_json: Json = False) -> None:
    """RewardBench: accuracy by section and their mean, from a table of subsets or from scored pairs; version 2's best of
    four and Ties from scores of several answers.

    Equal scores share: half for a pair, a quarter for a best of four whose answers all score the same.
    """
    show([one for file in files for one in reward_bench.score(str(file), draws=draws)], as_json)


@score.command("judge", epilog="Example: `prefloop score judge verdicts.json`.")
def score_judge(files: Files, draws: Draws = DRAWS, as_json: Json = False) -> None:
    """A judge's verdicts in both orders, and what the longest answer would reach on pairs, rankings and best of n."""
    show([one for file in files for one in judging.score(str(file), draws=draws)], as_json)


@score.command("agreement", epilog="Example: `prefloop score agreement ratings.csv`.")
def score_agreement(files: Files, draws: Draws = DRAWS, as_json: Json = False) -> None:
    """Agreement of annotators: raw, Krippendorff's alpha at each level, Fleiss, Cohen, Gwet's AC1.

    Reads ratings (unit, annotator, value; prompt, where units share one), one a row, and tables as textbooks print them.
    What cannot be defined, as for ratings that never vary, is said to be undefined: neither 0 nor 1.
    """
    show([one for file in files for one in agreement.score(str(file), draws=draws)], as_json)


@score.command("outputs", epilog="Example: `prefloop score outputs model_outputs.json`.")
def score_outputs(files: Files, model: Models = None, draws: Draws = DRAWS, as_json: Json = False) -> None:
    """Whether answers are answers: constant or empty ones, text written for a judge, refusals, lengths, diversity.

    Look at it beside every score that a judge gave: a constant text can top a leaderboard. Shares are in percent. Reads
    `groups.jsonl`, AlpacaEval's outputs and annotations (instruction, output), and rows of prompt and completion.
    """
    show(
        [one for file in files for one in outputs.score(str(file), draws=draws, models=model or ())], as_json
    )


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: `prefloop compare model-2 model-1 gpt-4_single.jsonl --benchmark mt-bench`.",
)
def compare(
    ours: Annotated[str, typer.Argument(help="A model, as the file names it.")],
    theirs: Annotated[str, typer.Argument(help="The model to compare with.")],
    files: Annotated[list[Path], typer.Argument(help="Files with judgements on both.")],
    benchmark: Annotated[Benchmark, typer.Option("--benchmark", help="What the files are of.")],
    inputs: Inputs = None,
    draws: Draws = DRAWS,
    as_json: Json = False,
) -> None:
    """Compare two models on the same prompts: the paired difference with its interval, a test, wins, ties and losses.

    The p value is of the sign-flip test: models change places by chance, prompt by prompt. The line under the table says
    which difference these prompts can show. Reads the files of `prefloop score`; for `human-eval`
    rows with task_id and passed.
    """
    loaded = alpaca_eval.load_inputs(inputs) if inputs is not None else None
    found = compare_files(benchmark, ours, theirs, [str(file) for file in files], inputs=loaded, draws=draws)
    show([found], as_json)


def show(found: Sequence[Scored], as_json: bool) -> None:
    """Prints scores as tables, or as JSON."""
    if as_json:
        typer.echo(json.dumps([one.to_json() for one in found], indent=1))
        return
    for one in found:
        table = Table(
            "figure",
            "value",
            "95 % interval",
            "n",
            title=escape(f"{one.benchmark}: {one.subject}"),
            title_justify="left",
        )
        for name, figure in one.figures.items():
            table.add_row(escape(name), _number(figure.value), _interval(figure), f"{figure.n:,}")
        console.print(table)
        dropped = ", ".join(f"{count} {reason}" for reason, count in one.dropped.items())
        scored = one.rows_in - sum(one.dropped.values())
        console.print(
            f"rows: {one.rows_in} in, {scored} scored" + (f", dropped: {dropped}" if dropped else "")
        )
        for name, fact in one.facts.items():
            console.print(escape(f"{name}: {fact}"), soft_wrap=True)
        for note in one.notes:
            console.print(escape(note))


def _number(value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    other = f" ({figure.level:.0%})" if figure.level != LEVEL else ""
    return f"[{figure.low:.4g}, {figure.high:.4g}]{other}"
