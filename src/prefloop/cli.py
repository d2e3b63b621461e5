"""The command line: `prefloop run`, `plan`, `status`, `show`, `report` and friends.

How a run is drawn is in `screen.py`. Commands other than `run`, `quickstart`, `chat` and `reward-card` start without torch.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from typer.core import TyperGroup
from typer.main import get_group

from prefloop import __version__, config, leaderboard, pipeline, scores
from prefloop.config import Experiment, preset
from prefloop.interfaces import InputError, PrefloopError, Waiting
from prefloop.records import Group
from prefloop.screen import (
    Screen,
    bar,
    console,
    duration,
    print_results,
    summary,
    table_of,
)
from prefloop.store import Artefact, Workspace, garbage, read_records, remove
from prefloop.studies import command as study_command

errors = Console(stderr=True, emoji=False)
app = typer.Typer(
    help="Online iterative RLHF: SFT, reward model, generate, annotate, select, train, evaluate, and round again.",
    epilog="Start with `prefloop quickstart`, or `prefloop init online-rlhf > my.yaml` and `prefloop run my.yaml`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""Between two looks at a label store."""
PRESETS = (
    "quickstart",
    "online-rlhf",
    "offline-dpo",
    "raft",
    "human",
    "instructgpt",
    "anthropic-hh",
    "grpo-gsm8k",
    "sparrow",
)

ExperimentFile = Annotated[Path, typer.Argument(help="Experiment file (YAML); `prefloop init` writes one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the file, such as `loop.batches=5` or `policy.objective.beta=0.05`."),
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        envvar="PREFLOOP_WORKSPACE",
        help="Folder of artefacts and runs.",
        show_default=False,
    ),
]
RunName = Annotated[
    str | None, typer.Argument(help="Name of the run; left out, the latest.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]


class LabelCommands(TyperGroup):
    """`prefloop label ...`, imported when it is asked for: a label store takes as long to import as all the rest."""

    @property
    def commands(self) -> MutableMapping[str, Any]:
        return label_commands()

    @commands.setter
    def commands(self, none_yet: MutableMapping[str, Any]) -> None:
        """Typer sets what it knows, which is nothing."""


@functools.cache
def label_commands() -> MutableMapping[str, Any]:
    from prefloop import labelling

    return get_group(labelling.app).commands


label = typer.Typer(
    cls=LabelCommands,
    help="People's labels: serve the labelling app, see how far they are, take labels in and out, decide about rounds.",
    epilog="Example: `prefloop label serve --demo`. For a run that waits: `prefloop label serve`, then run with `--wait`.",
    no_args_is_help=True,
)
app.add_typer(label, name="label")


class EvalCommands(TyperGroup):
    """`prefloop eval FILE MODEL…` is `prefloop eval run FILE MODEL…`."""

    default = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Names the default where no command is named."""
        if args and args[0] not in (*self.commands, "--help"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


evaluation = typer.Typer(
    cls=EvalCommands,
    help="Measure policies and reward models on benchmarks: answers, verdicts, scores.",
    epilog="Example: `prefloop eval suites.yaml policy-3f2a sft-91bc --suite maths`; `run` need not be said. "
    "`prefloop eval run --help` has all options.",
    no_args_is_help=True,
)
app.add_typer(evaluation, name="eval")
app.add_typer(scores.app, name="score")
app.command("compare", epilog=scores.COMPARE_EPILOG)(scores.compare)
app.command("tournament", epilog=leaderboard.EPILOG)(leaderboard.tournament)


def main() -> None:
    """Runs the command line and turns expected stops into messages and exit codes."""
    # threads that spin while they wait make torch several times slower when another process is busy; read at its import
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=True)
    except PrefloopError as error:
        errors.print(
            f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("\nStopped. Finished work is kept: run the same command again to continue.")
        _leave_interrupted()


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit


# --- running ---------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: `prefloop run my.yaml loop.batches=5 runtime.device=cpu`")
def run(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    workspace: WorkspaceOption = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Stay while people judge, and go on when there are enough judgements."),
    ] = False,
) -> None:
    """Run an experiment, or continue it where it stopped."""
    x = config.load(experiment, overrides or [])
    command = f"prefloop run {experiment}"
    while True:
        try:
            return _run(x, _workspace(x, workspace), command=command)
        except Waiting as waiting:
            if not wait or waiting.look is None:
                raise
            console.print(escape(str(waiting)), highlight=False, soft_wrap=True)
            with _interruptible(None, f"{command} --wait"):
                _wait_for_people(waiting.look)


@app.command(epilog="Example: `prefloop quickstart --workspace /tmp/first --seed 1`")
def quickstart(
    workspace: WorkspaceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Run the whole loop on the built-in tales: no GPU, no downloads, a few minutes."""
    x = config.parse(preset("quickstart"), [f"seed={seed}"], where="quickstart")
    console.print(
        Panel(
            "A small Llama is made from scratch and learns to tell tales. Simulated people, who flip a quarter of their\n"
            "verdicts, say which of two tales they like better. In three online iterations the policy learns from them;\n"
            "an offline arm spends the same number of labels on tales of the first policy only. What people really like\n"
            "is hidden from training and used to evaluate at the end.",
            title="prefloop quickstart",
            border_style="blue",
        )
    )
    _run(x, _workspace(x, workspace), command="prefloop quickstart")


def _wait_for_people(look: Callable[[], tuple[int, int]]) -> None:
    """Looks now and then how far people are, more rarely while nothing happens, until a run can go on."""
    pause, before = SHORTEST_PAUSE_S, -1
    with bar("judged") as progress:
        while True:
            done, wanted = look()
            progress(done, wanted)
            if done >= wanted:
                return
            pause = SHORTEST_PAUSE_S if done > before else min(1.5 * pause, LONGEST_PAUSE_S)
            before = done
            time.sleep(pause)


def _run(x: Experiment, workspace: Workspace, *, command: str) -> None:
    for warning in warnings_of(x):
        console.print(f"[yellow]Note:[/] {escape(warning)}")
    started = time.monotonic()
    with Screen(workspace) as screen, _interruptible(screen, command):
        entries = pipeline.run(x, workspace, screen)
    print_results(x, entries)
    from prefloop.report import write_report

    page = write_report(workspace, x.name)
    console.print(
        f"\nDone in {duration(time.monotonic() - started)}. Report: [link=file://{page.resolve()}]{page}[/link]",
        soft_wrap=True,
    )


@contextlib.contextmanager
def _interruptible(screen: "Screen | None", command: str) -> Iterator[None]:
    """Ctrl-C ends the process and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if screen is not None:
            screen.stop()
        errors.print(f"\nStopped. Finished work is kept: `{command}` continues from here.", highlight=False)
        _leave_interrupted()


def _leave_interrupted() -> NoReturn:
    """Ends the process with the exit code of Ctrl-C, whatever the interrupt hit.

    Python remembers an interrupt that went through code run by an extension, torch while it is imported for one, and
    would end by the signal even though it was handled. Nothing is left to clean up here: files are written whole, and
    the system frees the locks.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def warnings_of(x: Experiment) -> list[str]:
    """What a careful colleague would say before the run."""
    found = []
    if x.evaluator_is_annotator:
        found.append(
            "evaluate.scorer is also the annotator: its score says how well the policy pleases its own teacher, "
            "not how good it is. Use another scorer for the headline."
        )
    if x.evaluate.num_prompts and x.evaluate.scorer is None and x.has_reward_model:
        found.append(
            "no evaluate.scorer: win rates come from the reward model that the policy is trained against."
        )
    if x.policy.reference == "previous":
        found.append("policy.reference: previous is mirror descent; it is less stable than the fixed start.")
    return found


app.command(epilog=study_command.EPILOG)(study_command.study)


# --- looking ---------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: `prefloop plan my.yaml loop.batches=5`")
def plan(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Show what would be computed or reused, before anything runs."""
    x = config.load(experiment, overrides or [])
    entries = pipeline.plan(x, _workspace(x, workspace))
    if as_json:
        _print_json(
            [
                {
                    "arm": one.arm,
                    "iteration": one.iteration,
                    "role": one.role,
                    "artefact": one.artefact.name,
                    "exists": one.artefact.exists,
                    "work": one.stage.work,
                }
                for one in entries
            ]
        )
        return
    for warning in warnings_of(x):
        console.print(f"[yellow]Note:[/] {escape(warning)}")
    table = table_of(f"{x.name}: plan")
    for name in ("arm", "iteration", "stage", "work", "state", "artefact"):
        table.add_column(name, no_wrap=name != "work", overflow="fold")
    seen: set[str] = set()
    for one in entries:
        state = (
            "[green]reused[/]"
            if one.artefact.exists
            else "[dim]shared[/]"
            if one.artefact.name in seen
            else "to do"
        )
        seen.add(one.artefact.name)
        step = "" if one.iteration is None else str(one.iteration + 1)
        table.add_row(one.arm, step, one.role, escape(one.stage.work), state, one.artefact.name)
    console.print(table)
    todo = {one.artefact.name for one in entries if not one.artefact.exists}
    sizes = pipeline.batch_sizes(x)
    costs = pipeline.label_costs(x)
    labels = sum(size * cost for size, cost in zip(sizes, costs, strict=True))
    console.print(
        f"{len(todo)} of {len(seen)} artefacts to build; {labels} labels per arm, "
        f"{costs[-1]} a prompt by {x.annotate.annotator.kind}"
    )


@app.command(epilog="Example: `prefloop status --json`")
def status(run_name: RunName = None, workspace: WorkspaceOption = None, as_json: Json = False) -> None:
    """Show how far a run is: every artefact with its key and content digest."""
    space = _workspace(None, workspace)
    read = pipeline.read_run(space, run_name or _latest(space))
    rows = []
    for one in read["entries"]:
        artefact = Artefact(one["kind"], one["key"], space.artefacts / f"{one['kind']}-{one['key']}")
        state = "done" if artefact.exists else "building" if space.is_building(artefact.name) else "to do"
        digest = artefact.manifest["digest"] if artefact.exists else None
        rows.append({**one, "state": state, "digest": digest, "path": str(artefact.path)})
    if as_json:
        _print_json({"run": read["name"], "artefacts": rows})
        return
    done = sum(row["state"] == "done" for row in rows)
    table = table_of(f"run {read['name']}: {done} of {len(rows)} stages done")
    table.expand = True
    for name in ("arm", "iteration", "stage", "state", "artefact", "what"):
        table.add_column(name, no_wrap=True, ratio=1 if name == "what" else None)  # only `what` may be cut
    for row in rows:
        artefact = Artefact(row["kind"], row["key"], Path(row["path"]))
        step = "" if row["iteration"] is None else str(row["iteration"] + 1)
        color = {"done": "green", "building": "yellow", "to do": "dim"}[row["state"]]
        what = summary(artefact) if row["state"] == "done" else row["work"]
        table.add_row(
            row["arm"], step, row["role"], f"[{color}]{row['state']}[/]", artefact.name, escape(what)
        )
    console.print(table)


@app.command(epilog="Example: `prefloop show select-3f2a --start 20 --number 5`")
def show(
    name: Annotated[str, typer.Argument(help="An artefact (or the beginning of its name or key), or a run.")],
    workspace: WorkspaceOption = None,
    start: Annotated[int, typer.Option(min=0, help="First row to show.")] = 0,
    number: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
) -> None:
    """Browse prompts, groups with scores, pairs, or the lineage of a policy back to every pair and annotator."""
    from prefloop import browse

    space = _workspace(None, workspace)
    if (pipeline.run_folder(space, name) / "run.json").is_file():
        read = pipeline.read_run(space, name)
        console.print(browse.run_page(read, pipeline.run_artefacts(space, read)))
        return
    console.print(browse.artefact_page(space, space.find(name), start=start, number=number))


@app.command(epilog="Example: `prefloop report quickstart --json > report.json`")
def report(run_name: RunName = None, workspace: WorkspaceOption = None, as_json: Json = False) -> None:
    """Write the report of a run, finished or not, as one HTML file that opens offline."""
    from prefloop.report import as_dict, collect, write_report

    space = _workspace(None, workspace)
    chosen = run_name or _latest(space)
    pipeline.read_run(space, chosen)
    if as_json:
        _print_json(as_dict(collect(space, chosen)))
        return
    page = write_report(space, chosen)
    console.print(f"[link=file://{page.resolve()}]{page}[/link]", highlight=False, soft_wrap=True)


@app.command(
    epilog="Example: `prefloop generate policy-3f2a prompts.jsonl samples.jsonl generate.num_completions=4`"
)
def generate(
    policy: Annotated[str, typer.Argument(help="Artefact, model folder or hub name.")],
    prompts: Annotated[
        str, typer.Argument(help="File, folder or hub data set of prompts, in any known format.")
    ],
    out: Annotated[Path, typer.Argument(help="File to write: .jsonl, or .parquet.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="As in an experiment: `generate.temperature=0.7`, `prompts.limit=100`, `seed=1`."
        ),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Sample completions for a file of prompts. Killed at any moment, the same command goes on where it stopped."""
    from prefloop import browse
    from prefloop.export import check_samples_file, export_samples

    check_samples_file(out)
    space = _workspace(None, workspace)
    artefact = browse.model_artefact(space, policy)
    x = config.parse(
        "loop: {batches: 0}\nevaluate: {num_prompts: 0}",
        [f"prompts.path={json.dumps(prompts)}", f"model.path={json.dumps(policy)}", *(overrides or [])],
        where="prefloop generate",
    )
    with Screen(space) as screen, _interruptible(screen, f"prefloop generate {policy} {prompts} {out}"):
        groups = pipeline.sample(x, space, screen, artefact)
    written = export_samples(read_records(groups.path / "groups.jsonl", Group), out)
    dropped = sum(groups.manifest["rows"]["dropped"].values())
    left = f"; prompts dropped as too long: {dropped}" if dropped else ""
    console.print(f"{escape(str(out))}: {written} groups{left}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: `prefloop serve policy-3f2a --replicas 2 -- --max-model-len=4096`")
def serve(
    policy: Annotated[str, typer.Argument(help="Artefact, model folder or hub name.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Further arguments of vLLM's server, behind `--`.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Servers; they share the GPUs of this machine.")] = 1,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Of the first server, the next ones follow; left out, free ones.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="What they compute in: float32 or bfloat16.")] = "float32",
    python: Annotated[
        str | None,
        typer.Option(
            envvar="PREFLOOP_VLLM_PYTHON",
            help="A Python that has vLLM; left out, this one.",
            show_default=False,
        ),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve a policy with vLLM and keep the servers running until Ctrl-C; all end with this command, however it ends."""
    from prefloop import browse
    from prefloop.generate.serve import serve_policy

    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"--dtype {dtype}: choose float32 or bfloat16")
    space = _workspace(None, workspace)
    model = browse.named_model(space, policy)
    logs = space.root / "logs" / f"serve-{Path(policy).name}"
    say(f"starting {replicas} of {model}; logs in {logs}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        serve_policy(
            model,
            number=replicas,
            dtype=dtype,
            arguments=arguments or (),
            logs=logs,
            first_port=port,
            python=python,
            say=say,
        ) as found,
    ):
        engine = f"{{kind: remote, urls: {json.dumps(found.urls)}, dtype: {dtype}}}"
        say(f"use them in an experiment:\n\ngenerate:\n  engine: {engine}\n")
        say("Ctrl-C ends them")
        threading.Event().wait()
    say("ended")


@app.command("reward-card", epilog="Example: `prefloop reward-card reward-3f2a --data held-out.jsonl`")
def reward_card(
    model: Annotated[
        str,
        typer.Argument(
            help="Scalar reward model or pairwise model (artefact, model folder or hub name), or a YAML file that describes "
            "a judge behind an endpoint, with the keys of `annotate.annotator`."
        ),
    ],
    data: Annotated[
        str, typer.Option(help="Preferences: a file of pairs, rankings or scores, or an artefact with pairs.")
    ],
    previous: Annotated[
        str | None, typer.Option(help="Earlier model to compare with on the same pairs.", show_default=False)
    ] = None,
    pairwise: Annotated[
        bool, typer.Option("--pairwise", help="The model answers A or B; needed where its files do not tell.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for card.html and card.json; left out, one in the workspace.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take the first rows only.", show_default=False)
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="Renames a column, as `rewards=my_column`; may be repeated.", show_default=False),
    ] = None,
    drop_bad_rows: Annotated[
        bool, typer.Option("--drop-bad-rows", help="Count bad rows instead of stopping at the first.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Loss of accuracy against --previous that is accepted.")
    ] = 0.0,
    examples: Annotated[int, typer.Option(min=0, help="Most confident mistakes to show on the page.")] = 5,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Try texts that are written to fool a judge.")
    ] = True,
    as_json: Json = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure a reward model or a judge on preferences: accuracy beside length, calibration, biases, an earlier model."""
    from prefloop.card import CardOptions, as_dict, card_folder, make_card, write_card
    from prefloop.card.terminal import pages

    space = _workspace(None, workspace)
    source = config.SourceSection(
        path=data, fields=_fields(field or []), limit=limit, bad_rows="drop" if drop_bad_rows else "stop"
    )
    with bar("judging") as progress:
        card = make_card(
            space, model, source, previous, CardOptions(pairwise, tolerance, examples, probe), progress
        )
    if as_json:
        if out:
            write_card(card, out)
        _print_json(as_dict(card))
        return
    page = write_card(card, out or card_folder(space, model, data))
    for one in pages(card):
        console.print(one, highlight=False)
    console.print(f"[link=file://{page.resolve()}]{page}[/link]", highlight=False, soft_wrap=True)


@evaluation.command("run", epilog="Example: `prefloop eval suites.yaml policy-3f2a sft-91bc --suite maths`")
def evaluate(
    experiment: Annotated[
        Path, typer.Argument(help="Experiment file, or any YAML file with `evaluate.suites`.")
    ],
    policies: Annotated[
        list[str],
        typer.Argument(
            help="Policies, or reward models for reward_bench: artefacts, folders or hub names. What holds `=` changes "
            "the file, such as `evaluate.suites.maths.limit=50`."
        ),
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Only this benchmark of the file; may be given several times.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Policy that win rates with `baseline: start`, and implied rewards, are measured against.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure policies and reward models on benchmarks: answers, verdicts, scores. Killed at any moment, the same command
    goes on.

    Answers and verdicts stay in the workspace, in the formats that the benchmarks publish: `prefloop score` reads them.
    """
    from prefloop import browse
    from prefloop.scoring.figures import Scored

    names = [one for one in policies if "=" not in one]
    if not names:
        raise InputError("name a policy or a reward model to evaluate")
    changes = [one for one in policies if "=" in one]
    space = _workspace(None, workspace)
    kinds = (*browse.POLICY_KINDS, *pipeline.REWARD_KINDS)

    def known(text: str) -> Artefact | None:
        return browse.model_artefact(space, text, kinds=kinds, what="policy and no reward model")

    theirs = browse.model_artefact(space, against) if against else None
    outside = [one for one in names if not known(one)] + ([against] if against and not theirs else [])
    if outside:
        changes.append(f"model.path={json.dumps(outside[0])}")
    x = browse.only_suites(config.load_suites(experiment, changes), suite or [])
    shown = errors if as_json else console
    with (
        Screen(space, shown) as screen,
        _interruptible(screen, f"prefloop eval {experiment} {' '.join(policies)}"),
    ):

        def found(text: str) -> Artefact:
            if (artefact := known(text)) is not None:
                return artefact
            reward = text if browse.is_reward_model(x, text) else None
            return pipeline.base(x.starting_from(text), space, screen, reward=reward)

        if against and theirs is None:
            theirs = pipeline.base(x.starting_from(against), space, screen)
        done = pipeline.evaluate(x, space, screen, [found(one) for one in names], theirs)
    scored = [Scored.from_json(one) for artefact in done for one in artefact.stats["scores"]]
    scores.show(scored, as_json)
    if not as_json:
        for artefact in done:
            console.print(f"{artefact.path / 'verdicts.jsonl'}", highlight=False, soft_wrap=True)


@evaluation.command(
    epilog="Example: `prefloop eval prepare alpaca-eval my-alpaca-eval`, then `inputs: my-alpaca-eval` in the file"
)
def prepare(
    benchmark: Annotated[Literal["alpaca-eval"], typer.Argument(help="Which benchmark's.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Folder with the published files; left out, the model hub.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str, typer.Option(help="Version on the model hub: a branch, tag or commit.")
    ] = "main",
) -> None:
    """Fetch what a benchmark publishes and this package may not contain: prompts, the baseline's answers, and what the
    length-controlled win rate is fitted with. Mind its licence, which SOURCE.md in the folder names."""
    from prefloop.scoring.preparing import LICENCE, prepare_alpaca_eval

    assert benchmark == "alpaca-eval", "the only one"
    done = prepare_alpaca_eval(folder, source=source, revision=revision)
    counts = f"{done.instructions} instructions, {done.gamed_rows} judgements to fit lengths with"
    console.print(f"{done.folder}: {counts}", highlight=False, soft_wrap=True)
    console.print(f"Licence of the data: {LICENCE}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: `prefloop chat policy-3f2a sft-91bc` puts the same message to both")
def chat(
    policies: Annotated[
        list[str], typer.Argument(help="One or two policies: artefact, model folder or hub name.")
    ],
    workspace: WorkspaceOption = None,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    once: Annotated[str | None, typer.Option(help="Answer this message and stop.")] = None,
) -> None:
    """Talk to a policy, or to two side by side. An empty line starts over; Ctrl-D ends."""
    from prefloop.chat import Conversation

    if len(policies) > 2:
        raise InputError(f"chat: {len(policies)} policies; one or two can be talked to at a time")
    from prefloop import browse

    space = _workspace(None, workspace)
    sides = [
        Conversation(browse.named_model(space, name), temperature=temperature, max_new_tokens=max_new_tokens)
        for name in policies
    ]
    while True:
        try:
            message = once if once is not None else console.input("[bold blue]you[/] ")
        except EOFError:
            return
        if message.strip():
            for name, side in zip(policies, sides, strict=True):
                title = f"[dim]{escape(name)}[/] " if len(sides) > 1 else ""
                console.print(f"{title}{browse.shown(side.answer(message))}", highlight=False)
        else:
            for side in sides:
                side.start_over()
            console.print("[dim]a new conversation[/]")
        if once is not None:
            return


@app.command(epilog="Example: `prefloop init online-rlhf > my.yaml`")
def init(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(PRESETS)}.")] = "quickstart",
) -> None:
    """Print a commented experiment file to start from."""
    if name not in PRESETS:
        raise InputError(f"no experiment {name!r}; choose {', '.join(PRESETS)}")
    print(preset(name), end="")


@app.command(epilog="Example: `prefloop export select-3f2a pairs.jsonl --format trl`")
def export(
    name: Annotated[
        str,
        typer.Argument(help="Artefact with pairs (select, import), groups (generate, annotate) or a policy."),
    ],
    out: Annotated[Path, typer.Argument(help="File to write; for a policy, a folder.")],
    format: Annotated[
        str,
        typer.Option("--format", help="trl, hh, ultrafeedback, online_rlhf, parquet, or model for a policy."),
    ] = "trl",
    workspace: WorkspaceOption = None,
) -> None:
    """Write pairs or groups in a format that other tools read, or copy a policy as a transformers folder."""
    space = _workspace(None, workspace)
    artefact = space.find(name)
    if artefact.kind in ("base", "sft", "policy", "promote", "reward"):
        from prefloop.stages.shared import model_folder

        if out.exists():
            raise InputError(f"{out}: exists; choose a new folder")
        shutil.copytree(model_folder(artefact), out)
        console.print(f"{escape(str(out))}: an ordinary transformers folder", highlight=False, soft_wrap=True)
        return
    from prefloop.export import export as write

    judgements = None
    if artefact.kind == "annotate":
        judgements = artefact.path
        artefact = space.find(f"generate-{artefact.manifest['inputs']['groups']}")
    written = write(artefact.path, format, out, judgements)
    console.print(f"{escape(str(out))}: {written} rows", highlight=False, soft_wrap=True)


@app.command(epilog="Example: `prefloop gc --yes`")
def gc(
    workspace: WorkspaceOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only say what would go.")] = False,
) -> None:
    """Delete artefacts that no run needs any more."""
    space = _workspace(None, workspace)
    keep = {
        artefact.name
        for path in space.runs.glob("*/run.json")
        for artefact in pipeline.run_artefacts(space, pipeline.read_run(space, path.parent.name))
    }
    found = garbage(space, keep)
    for path, size in found:
        console.print(f"{'deleted' if yes else 'unneeded'} {path.name} {size / 1e6:.1f} MB", highlight=False)
        if yes:
            remove(path)
    total = sum(size for _, size in found) / 1e6
    console.print(
        f"{len(found)} artefacts, {total:.1f} MB"
        + ("" if yes or not found else "; `prefloop gc --yes` deletes them")
    )


@app.command(epilog="Example: `prefloop doctor --tokens my.yaml`")
def doctor(
    overrides: Overrides = None,
    workspace: WorkspaceOption = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            help="Show instead what this experiment's model reads and writes, token by token, and check it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check what is installed, the devices and memory, and which backends work here; or the tokens of an experiment."""
    if tokens is not None:
        _show_tokens(config.load(tokens, overrides or []), workspace)
        return
    if overrides:
        raise InputError(f"{overrides[0]}: changes are for an experiment; name it with --tokens")
    from prefloop.doctor import examine

    states = [
        _print_finding(one.state, one.topic, one.detail) for one in examine(_workspace(None, workspace).root)
    ]
    if "problem" in states:
        raise typer.Exit(1)


def _print_finding(state: str, topic: str, detail: str) -> str:
    color = {"ok": "green", "missing": "dim", "note": "yellow", "problem": "red"}[state]
    console.print(f"[{color}]{state:<8}[/] {topic:<15} {escape(detail)}", highlight=False, soft_wrap=True)
    return state


def _show_tokens(x: Experiment, workspace: Path | None) -> None:
    from prefloop.browse import legend, token_text
    from prefloop.tokens import Sample, look

    space = _workspace(x, workspace)
    console.print(legend())
    states = []
    with Screen(space) as screen:
        for found in look(x, space, screen):
            if isinstance(found, Sample):
                trained = sum(piece.trained for piece in found.pieces)
                console.print(
                    f"\n[bold]{escape(found.title)}[/]: {len(found.pieces)} tokens, the last {trained} trained",
                    highlight=False,
                )
                console.print(token_text(found.pieces))
            else:
                states.append(_print_finding(found.state, found.name, found.detail))
    if "problem" in states:
        raise typer.Exit(1)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _workspace(x: Experiment | None, given: Path | None) -> Workspace:
    return Workspace(
        given or Path(x.runtime.workspace if x else os.environ.get("PREFLOOP_WORKSPACE", "workspace"))
    )


def _latest(workspace: Workspace) -> str:
    """The run whose plan was written last."""
    runs = sorted(workspace.runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise InputError(
            f"no runs in {workspace.root} yet; start one with `prefloop run` or name a --workspace"
        )
    return runs[-1].parent.name


def _fields(renamed: Sequence[str]) -> dict[str, str]:
    """Columns by prefloop's names, from `name=column`."""
    for one in renamed:
        if "=" not in one:
            raise InputError(
                f"--field {one}: write prefloop's name, =, and the name in the file, as chosen=better"
            )
    return dict(one.split("=", 1) for one in renamed)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
