"""The command line: `prefloop run`, `plan`, `status`, `show`, `report` and friends.

Everything that prints is here. Commands other than `run`, `quickstart` and `chat` start without torch.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from prefloop import __version__, config, pipeline
from prefloop.config import MAIN_ARM, Experiment
from prefloop.interfaces import PrefloopError
from prefloop.interfaces import Progress as Report
from prefloop.pipeline import Entry, Watcher
from prefloop.records import Group
from prefloop.store import Artefact, Workspace, read_records

console = Console()
errors = Console(stderr=True)
app = typer.Typer(
    help="Online iterative RLHF: SFT, reward model, generate, annotate, select, train, evaluate, and round again.",
    epilog="Start with `prefloop quickstart`, or `prefloop init iterative-dpo > my.yaml` and `prefloop run my.yaml`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
PRESETS = ("quickstart", "iterative-dpo", "offline-dpo", "raft", "human")

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


def main() -> None:
    """Runs the command line and turns expected stops into messages and exit codes."""
    try:
        app(standalone_mode=True)
    except PrefloopError as error:
        errors.print(
            f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("\nStopped. Finished work is kept: run the same command again to continue.")
        sys.exit(INTERRUPTED)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit


# --- running ---------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: `prefloop run my.yaml loop.batches=5 runtime.device=cpu`")
def run(experiment: ExperimentFile, overrides: Overrides = None, workspace: WorkspaceOption = None) -> None:
    """Run an experiment, or continue it where it stopped."""
    x = config.load(experiment, overrides or [])
    _run(x, _workspace(x, workspace), command=f"prefloop run {experiment}")


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


def _run(x: Experiment, workspace: Workspace, *, command: str) -> None:
    for warning in warnings_of(x):
        console.print(f"[yellow]Note:[/] {escape(warning)}")
    started = time.monotonic()
    with Screen(workspace) as screen:
        try:
            entries = pipeline.run(x, workspace, screen)
        except KeyboardInterrupt:
            screen.stop()
            errors.print(
                f"\nStopped. Finished work is kept: `{command}` continues from here.", highlight=False
            )
            sys.exit(INTERRUPTED)
    _print_results(x, entries)
    from prefloop.report import write_report

    page = write_report(workspace, x.name)
    console.print(
        f"\nDone in {_duration(time.monotonic() - started)}. Report: [link=file://{page.resolve()}]{page}[/link]"
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


class Screen(Watcher):
    """Draws a run: one line a finished stage, a bar with the time left for the one under way."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            transient=True,
        )
        self._bar: Any = None
        self._header: tuple[str, int | None] | None = None
        self._reused = 0

    def __enter__(self) -> "Screen":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the bars off the screen."""
        self._bars.stop()

    def begins(self, entry: Entry, number: int, total: int) -> Report:
        """Starts a bar."""
        self._say_where(entry)
        self._bar = self._bars.add_task(f"  {entry.role}", total=None, note=entry.stage.work)

        def progress(done: int, total: int, note: str = "") -> None:
            self._bars.update(self._bar, completed=done, total=total, note=note or entry.stage.work)

        return progress

    def ends(self, entry: Entry, seconds: float, reused: bool) -> None:
        """Replaces the bar by a line."""
        self._say_where(entry)
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
        time_text = "kept" if reused else _duration(seconds)
        console.print(
            f"  {entry.role:<10} {time_text:>7}  {escape(summary(entry.artefact))}", highlight=False
        )

    def waits(self, entry: Entry) -> None:
        """Says that another process is at it."""
        console.print(f"  {entry.role}: another run is building this; waiting for it", style="yellow")

    def _say_where(self, entry: Entry) -> None:
        where = (entry.arm, entry.iteration)
        if where != self._header:
            self._header = where
            arm = "" if entry.arm == MAIN_ARM else f"arm {entry.arm}, "
            step = "preparation" if entry.iteration is None else f"iteration {entry.iteration + 1}"
            console.print(f"[bold blue]{arm}{step}[/]")


def summary(artefact: Artefact) -> str:
    """One line about an artefact: what went in, came out, was dropped, and how good it is."""
    manifest = artefact.manifest
    stats, rows = manifest["stats"], manifest["rows"]
    dropped = ", ".join(f"{number} {reason}" for reason, number in rows["dropped"].items())
    lines = {
        "base": lambda: (
            f"{stats.get('parameters', '')} {stats.get('architecture', 'made from scratch')}".strip()
        ),
        "sft": lambda: _training_summary(stats),
        "policy": lambda: f"{_training_summary(stats)}, {stats['pairs']} pairs",
        "reward": lambda: _reward_summary(stats),
        "generate": lambda: (
            f"{stats['num_completions']} completions, {_number(stats['mean_tokens'])} tokens on average"
        ),
        "annotate": lambda: _labels_summary(stats),
        "select": lambda: f"{stats['pairs']} pairs",
        "evaluate": lambda: _evaluation_summary(stats),
        "promote": lambda: f"{'kept' if stats['promoted'] else 'rolled back'}: {stats['reason']}",
        "import": lambda: f"{stats['pairs']} pairs ({stats['format']})",
    }
    line = lines.get(artefact.kind, lambda: f"{rows['out']} rows")()
    return f"{line}; dropped {dropped}" if dropped else line


def _training_summary(stats: dict[str, Any]) -> str:
    return f"{stats['steps']} steps, loss {stats['loss_first']:.3f} → {stats['loss_last']:.3f}"


def _reward_summary(stats: dict[str, Any]) -> str:
    if not stats.get("validation"):
        return f"{stats['num_rows']} pairs" if stats["num_rows"] else "imported"
    accuracy, length = stats["validation"]["accuracy"], stats["validation"]["length_baseline"]
    return (
        f"{stats['num_rows']} pairs, held-out accuracy {_interval(accuracy, percent=True)} "
        f"(longer answer: {100 * length['mean']:.1f} %)"
    )


def _labels_summary(stats: dict[str, Any]) -> str:
    parts = [f"{stats['labels']} labels"]
    for name in ("ties", "refusals"):
        if stats[name]:
            parts.append(f"{stats[name]} {name}")
    if stats["gold_agreement"] is not None:
        parts.append(f"{100 * stats['gold_agreement']:.0f} % agree with the hidden truth")
    if stats["score"]:
        parts.append(f"mean {stats['score']['mean']:.3f}, best of K {stats['score']['best_of_k']:.3f}")
    return ", ".join(parts)


def _evaluation_summary(stats: dict[str, Any]) -> str:
    judged = stats["judged_by"]
    parts = [f"{judged} {_interval(stats[judged])}"] if judged else []
    if stats["win_rate_vs_start"]:
        parts.append(f"wins {_interval(stats['win_rate_vs_start'], percent=True)} against the start")
    parts.append(f"KL {_number(stats['kl']['mean'] if stats['kl'] else None)}")
    return ", ".join(parts)


def _print_results(x: Experiment, entries: Sequence[Entry]) -> None:
    measured = [one for one in entries if one.role == "evaluate"]
    if not measured:
        return
    table = Table(
        title=f"{x.name}: held-out evaluation, {100 * x.evaluate.confidence:g} % intervals over prompts"
    )
    for name in (
        "policy",
        "labels",
        "score",
        "gain on the one before",
        "wins vs start",
        "KL",
        "tokens",
        "distinct-2",
    ):
        table.add_column(name, justify="left" if name == "policy" else "right")
    shown: set[str] = set()
    for one in measured:
        if one.artefact.name in shown:
            continue
        shown.add(one.artefact.name)
        stats = one.artefact.stats
        judged = stats["judged_by"]
        arm = "" if one.arm == MAIN_ARM else f"{one.arm}: "
        table.add_row(
            arm + ("start (SFT)" if one.iteration is None else f"iteration {one.iteration + 1}"),
            str(labels_until(entries, one)),
            _interval(stats[judged]) if judged else "–",
            _interval(stats[f"{judged}_gain_vs_previous"], sign=True) if judged else "–",
            _interval(stats["win_rate_vs_start"], percent=True),
            _number(stats["kl"]["mean"] if stats["kl"] else None),
            _number(stats["mean_tokens"]),
            _number(stats["distinct_2"]),
        )
    console.print(table)
    _print_samples(measured)


def labels_until(entries: Iterable[Entry], until: Entry) -> int:
    """Labels that an arm had spent when an evaluation was made."""
    last = -1 if until.iteration is None else until.iteration
    spent = {
        one.artefact.name: one.artefact.stats["labels"]
        for one in entries
        if one.role == "annotate"
        and one.arm == until.arm
        and (-1 if one.iteration is None else one.iteration) <= last
    }
    return sum(spent.values())


def _print_samples(measured: Sequence[Entry], number: int = 3) -> None:
    mine = [one for one in measured if one.arm == MAIN_ARM]
    if len(mine) < 2:
        return
    before, after = (read_records(one.artefact.path / "groups.jsonl", Group) for one in (mine[0], mine[-1]))
    later = {group.prompt.id: group for group in after}
    console.print("[bold]Before and after[/] (same prompt, same random numbers)")
    for group in [one for one in before if one.prompt.id in later][:number]:
        table = Table(show_header=False, box=None, padding=(0, 1))
        table.add_row("[blue]prompt[/]", escape(group.prompt.text))
        table.add_row("[blue]before[/]", escape(group.completions[0].text))
        table.add_row("[blue]after[/]", escape(later[group.prompt.id].completions[0].text))
        console.print(table)


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
    table = Table(title=f"{x.name}: plan")
    for name in ("arm", "iteration", "stage", "work", "state", "artefact"):
        table.add_column(name)
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
    from prefloop.stages import labels_per_prompt

    console.print(
        f"{len(todo)} of {len(seen)} artefacts to build; {sum(sizes) * labels_per_prompt(x)} labels per arm, "
        f"{labels_per_prompt(x)} a prompt by {x.annotate.annotator.kind}"
    )


# --- helpers ---------------------------------------------------------------------------------------------------------


def preset(name: str) -> str:
    """The text of a built-in experiment."""
    return (files("prefloop") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def _workspace(x: Experiment | None, given: Path | None) -> Workspace:
    return Workspace(
        given or Path(x.runtime.workspace if x else os.environ.get("PREFLOOP_WORKSPACE", "workspace"))
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _interval(value: dict[str, float] | None, *, percent: bool = False, sign: bool = False) -> str:
    if value is None:
        return "–"
    factor, digits = (100, 1) if percent else (1, 3)
    plus = "+" if sign else ""
    mean, low, high = (factor * value[one] for one in ("mean", "low", "high"))
    return f"{mean:{plus}.{digits}f} [{low:{plus}.{digits}f}, {high:{plus}.{digits}f}]" + (
        " %" if percent else ""
    )


if __name__ == "__main__":
    main()
