"""`prefloop plan`, `status`, `show`, `report` and `doctor`: what a run will do, has done, and where."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from prefloop import config, pipeline
from prefloop.commands.options import (
    ExperimentFile,
    Json,
    Overrides,
    RunName,
    WorkspaceOption,
    latest_run,
    print_json,
    workspace_of,
)
from prefloop.commands.running import warnings_of
from prefloop.config import Experiment
from prefloop.interfaces import InputError
from prefloop.screen import Screen, console, summary, table_of
from prefloop.store import Artefact

app = typer.Typer()
PANEL = "Look"


@app.command(rich_help_panel=PANEL, epilog="Example: `prefloop plan my.yaml loop.batches=5`")
def plan(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Show what would be computed or reused, before anything runs."""
    x = config.load(experiment, overrides or [])
    entries = pipeline.plan(x, workspace_of(workspace, x))
    if as_json:
        print_json(
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


@app.command(rich_help_panel=PANEL, epilog="Example: `prefloop status --json`")
def status(run_name: RunName = None, workspace: WorkspaceOption = None, as_json: Json = False) -> None:
    """Show how far a run is: every artefact with its key and content digest."""
    space = workspace_of(workspace)
    read = pipeline.read_run(space, run_name or latest_run(space))
    rows = []
    for one in read["entries"]:
        artefact = Artefact(one["kind"], one["key"], space.artefacts / f"{one['kind']}-{one['key']}")
        state = "done" if artefact.exists else "building" if space.is_building(artefact.name) else "to do"
        digest = artefact.manifest["digest"] if artefact.exists else None
        rows.append({**one, "state": state, "digest": digest, "path": str(artefact.path)})
    if as_json:
        print_json({"run": read["name"], "artefacts": rows})
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


@app.command(rich_help_panel=PANEL, epilog="Example: `prefloop show select-3f2a --start 20 --number 5`")
def show(
    name: Annotated[str, typer.Argument(help="An artefact (or the beginning of its name or key), or a run.")],
    workspace: WorkspaceOption = None,
    start: Annotated[int, typer.Option(min=0, help="First row to show.")] = 0,
    number: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
) -> None:
    """Browse prompts, groups with scores, pairs, or the lineage of a policy back to every pair and annotator."""
    from prefloop import browse

    space = workspace_of(workspace)
    if (pipeline.run_folder(space, name) / "run.json").is_file():
        read = pipeline.read_run(space, name)
        console.print(browse.run_page(read, pipeline.run_artefacts(space, read)))
        return
    console.print(browse.artefact_page(space, space.find(name), start=start, number=number))


@app.command(rich_help_panel=PANEL, epilog="Example: `prefloop report quickstart --json > report.json`")
def report(run_name: RunName = None, workspace: WorkspaceOption = None, as_json: Json = False) -> None:
    """Write the report of a run, finished or not, as one HTML file that opens offline."""
    from prefloop.report import as_dict, collect, write_report

    space = workspace_of(workspace)
    chosen = run_name or latest_run(space)
    pipeline.read_run(space, chosen)
    if as_json:
        print_json(as_dict(collect(space, chosen)))
        return
    page = write_report(space, chosen)
    console.print(f"[link=file://{page.resolve()}]{page}[/link]", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=PANEL, epilog="Example: `prefloop doctor --tokens my.yaml`")
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
        _print_finding(one.state, one.topic, one.detail) for one in examine(workspace_of(workspace).root)
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

    space = workspace_of(workspace, x)
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
