"""`prefloop study`: runs a study, tells how far it is and how long the rest takes, and writes what came out."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from prefloop.commands.options import WorkspaceOption, workspace_of
from prefloop.interfaces import InputError, PrefloopError
from prefloop.pipeline import Entry
from prefloop.screen import console, duration, table_of
from prefloop.store import Workspace
from prefloop.studies import definition, running
from prefloop.studies.definition import Run, Study

if TYPE_CHECKING:  # the page is imported when it is written
    from prefloop.studies.measuring import Found
    from prefloop.studies.report import Failed, Result

app = typer.Typer()
PANEL = "Run"


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: `prefloop study algorithms --arm ppo --seeds 1 --first-seed 100` tries one out before it runs whole. "
    f"Built in are {', '.join(definition.built_in())}. "
    "Make your own: `prefloop study algorithms --definition > mine.yaml`, change it, `prefloop study mine.yaml`.",
)
def study(
    name: Annotated[str, typer.Argument(help="A built-in study, or a file like them.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to every run, as for `prefloop run`: `evaluate.num_prompts=64`."),
    ] = None,
    workspace: WorkspaceOption = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="How many seeds; left out, as many as the study says.", show_default=False),
    ] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Run this arm only; may be repeated.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at once, a thread each; left out, one a core.", show_default=False),
    ] = None,
    show_definition: Annotated[
        bool, typer.Option("--definition", help="Print the study's file and run nothing.")
    ] = False,
) -> None:
    """Run an experiment in several arms over several seeds, and decide the claims that the study made before.

    Every arm and seed is an ordinary run in a process of its own; all share the workspace. Stopped at any moment, the same
    command goes on where it was, and runs that are finished are not run again. A run that fails is named, the others go on.
    In the end `studies/NAME` in the workspace has report.md, results.json and plots.
    """
    from prefloop.studies.report import Result, write

    text = definition.text_of(name)
    if show_definition:
        typer.echo(text, nl=False)
        return
    asked = definition.parse(text, where=name)
    chosen = tuple(range(first_seed, first_seed + (seeds or asked.seeds)))
    arms = tuple(one for one in asked.arms if not arm or one in arm)
    runs = definition.runs_of(asked, chosen, arms=arm or (), overrides=overrides or ())
    space = workspace_of(workspace)
    folder = space.root / "studies" / asked.name
    space.create()
    try:
        found, failed = _run(asked, runs, space, folder, workers=workers or os.cpu_count() or 1)
    except KeyboardInterrupt:
        typer.echo("\nStopped. Finished work is kept: the same command continues from here.", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    order = {one.label: place for place, one in enumerate(sorted(runs, key=_place_in(asked)))}
    result = Result(
        asked,
        chosen,
        arms,
        tuple(overrides or ()),
        tuple(found[label] for label in sorted(found, key=order.__getitem__)),
        tuple(sorted(failed, key=lambda one: order[one.label])),
    )
    path = write(result, folder)
    _conclude(result, path)
    if failed:
        raise typer.Exit(PrefloopError.exit_code)


def _run(
    asked: Study, runs: Sequence[Run], space: Workspace, folder: Path, *, workers: int
) -> "tuple[dict[str, Found], list[Failed]]":
    """Runs what is not finished; what each run found, by label, and those that failed."""
    from prefloop.studies.measuring import read
    from prefloop.studies.report import Failed

    plans = {one.label: running.plan_of(one, space) for one in runs}
    to_do = [one for one in runs if not running.is_finished(plans[one.label])]
    _say(
        f"{asked.name}: {len(runs)} runs, {len(runs) - len(to_do)} finished already; "
        f"{min(workers, max(len(to_do), 1))} at once"
    )
    left = {one.label: plans[one.label] for one in to_do}
    found = {one.label: read(one, asked, plans[one.label]) for one in runs if one.label not in left}
    failed: list[Failed] = []
    clock = _Clock(space, list(plans.values()), workers)
    with contextlib.closing(running.run_all(to_do, space, folder, workers=workers)) as endings:
        for number, ended in enumerate(endings, 1):
            entries = left.pop(ended.run.label)
            clock.note(ended.seconds, entries)
            error = ended.error
            if error is None:
                try:
                    found[ended.run.label] = read(ended.run, asked, entries)
                except InputError as problem:
                    error = str(problem)
            if error is not None:
                failed.append(Failed(ended.run.label, error, str(ended.log)))
            _say(
                f"{number:>4}/{len(to_do)}  {ended.run.label:<32} {duration(ended.seconds):>12}  "
                + (
                    f"failed: {error}"
                    if error is not None
                    else _first_value(asked, found[ended.run.label]) + clock.left(list(left.values()))
                )
            )
    return found, failed


def _place_in(asked: Study) -> Callable[[Run], tuple[int, ...]]:
    """Where a run stands in tables: by setting, arm and seed."""
    settings, arms = [*asked.settings, definition.ONLY], list(asked.arms)
    return lambda one: (settings.index(one.setting), arms.index(one.arm), one.seed)


class _Clock:
    """How long the rest will take, by what went before."""

    def __init__(self, space: Workspace, plans: Sequence[Sequence[Entry]], workers: int) -> None:
        self._space = space
        self._plans = plans
        self._workers = workers
        self._began = time.time()
        self._busy = 0.0
        self._built: dict[str, float] = {}

    def note(self, seconds: float, entries: Sequence[Entry]) -> None:
        """A run has ended."""
        self._busy += seconds
        for one in entries:
            if one.artefact.exists and one.artefact.manifest["started"] >= self._began:
                self._built[one.artefact.key] = one.artefact.manifest["seconds"]

    def left(self, plans: Sequence[Sequence[Entry]]) -> str:
        """In words; nothing where nothing is left."""
        built = sum(self._built.values())
        overhead = max(self._busy / built, 1.0) if built else 1.0
        seconds, is_all = running.seconds_left(
            self._plans, plans, self._space, workers=self._workers, overhead=overhead
        )
        return f"  ({'about' if is_all else 'at least'} {duration(seconds)} left)" if plans else ""


def _first_value(asked: Study, found: "Found") -> str:
    name = next(iter(asked.measures))
    return f"{name} {found.values[name]:.3f}"


def _conclude(result: "Result", path: Path) -> None:
    from prefloop.studies.report import bound_of, shown

    study = result.study
    if result.decisions:
        table = table_of(f"{study.name}: claims, {study.confidence:.0%} intervals over seeds")
        for column in ("claim", "in", "interval", "wanted", "verdict"):
            table.add_column(column, overflow="fold")
        for one in result.decisions:
            where = ", ".join(filter(None, (one.setting, one.arm)))
            table.add_row(
                one.criterion.claim, where, shown(one.interval), bound_of(one.criterion), one.outcome
            )
        console.print(table)
    for one in result.failed:
        _say(f"failed: {one.label}: {one.error}\n  its log: {one.log}; the same command tries it again")
    console.print(f"Report: [link=file://{path.resolve()}]{escape(str(path))}[/link]", soft_wrap=True)


def _say(text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
