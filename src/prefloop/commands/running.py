"""`prefloop run` and `quickstart`; `generate`, `serve` and `chat`, which use a policy that there is."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.panel import Panel

from prefloop import config, pipeline
from prefloop.commands.options import ExperimentFile, Overrides, WorkspaceOption, interruptible, workspace_of
from prefloop.config import Experiment, preset
from prefloop.interfaces import InputError, Waiting
from prefloop.records import Group
from prefloop.screen import Screen, bar, console, duration, print_results
from prefloop.store import Workspace, read_records

app = typer.Typer()
PANEL = "Run"
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""Between two looks at a label store."""


@app.command(
    rich_help_panel=PANEL, epilog="Example: `prefloop run my.yaml loop.batches=5 runtime.device=cpu`"
)
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
            return _run(x, workspace_of(workspace, x), command=command)
        except Waiting as waiting:
            if not wait or waiting.look is None:
                raise
            console.print(escape(str(waiting)), highlight=False, soft_wrap=True)
            with interruptible(None, f"{command} --wait"):
                _wait_for_people(waiting.look)


@app.command(rich_help_panel=PANEL, epilog="Example: `prefloop quickstart --workspace /tmp/first --seed 1`")
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
    _run(x, workspace_of(workspace, x), command="prefloop quickstart")


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: `prefloop generate policy-3f2a prompts.jsonl samples.jsonl generate.num_completions=4`",
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
    space = workspace_of(workspace)
    artefact = browse.model_artefact(space, policy)
    x = config.parse(
        "loop: {batches: 0}\nevaluate: {num_prompts: 0}",
        [f"prompts.path={json.dumps(prompts)}", f"model.path={json.dumps(policy)}", *(overrides or [])],
        where="prefloop generate",
    )
    with Screen(space) as screen, interruptible(screen, f"prefloop generate {policy} {prompts} {out}"):
        groups = pipeline.sample(x, space, screen, artefact)
    written = export_samples(read_records(groups.path / "groups.jsonl", Group), out)
    dropped = sum(groups.manifest["rows"]["dropped"].values())
    left = f"; prompts dropped as too long: {dropped}" if dropped else ""
    console.print(f"{escape(str(out))}: {written} groups{left}", highlight=False, soft_wrap=True)


@app.command(
    rich_help_panel=PANEL, epilog="Example: `prefloop serve policy-3f2a --replicas 2 -- --max-model-len=4096`"
)
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
    space = workspace_of(workspace)
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


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: `prefloop chat policy-3f2a sft-91bc` puts the same message to both",
)
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

    space = workspace_of(workspace)
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
    with Screen(workspace) as screen, interruptible(screen, command):
        entries = pipeline.run(x, workspace, screen)
    print_results(x, entries)
    from prefloop.report import write_report

    page = write_report(workspace, x.name)
    console.print(
        f"\nDone in {duration(time.monotonic() - started)}. Report: [link=file://{page.resolve()}]{page}[/link]",
        soft_wrap=True,
    )


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
