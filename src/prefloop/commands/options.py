"""What commands share: options, the workspace, JSON, and an end by Ctrl-C."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from prefloop.config import Experiment
from prefloop.interfaces import InputError
from prefloop.screen import Screen
from prefloop.store import Workspace

errors = Console(stderr=True, emoji=False)
INTERRUPTED = 130

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


@contextlib.contextmanager
def interruptible(screen: Screen | None, command: str) -> Iterator[None]:
    """Ctrl-C ends the process and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if screen is not None:
            screen.stop()
        errors.print(f"\nStopped. Finished work is kept: `{command}` continues from here.", highlight=False)
        leave_interrupted()


def leave_interrupted() -> NoReturn:
    """Ends the process with the exit code of Ctrl-C, whatever the interrupt hit.

    Python remembers an interrupt that went through code run by an extension, torch while it is imported for one, and
    would end by the signal even though it was handled. Nothing is left to clean up here: files are written whole, and
    the system frees the locks.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def workspace_of(given: Path | None, x: Experiment | None = None) -> Workspace:
    """The workspace that is named on the command line, in the experiment, or by the environment."""
    return Workspace(
        given or Path(x.runtime.workspace if x else os.environ.get("PREFLOOP_WORKSPACE", "workspace"))
    )


def latest_run(workspace: Workspace) -> str:
    """The run whose plan was written last."""
    runs = sorted(workspace.runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise InputError(
            f"no runs in {workspace.root} yet; start one with `prefloop run` or name a --workspace"
        )
    return runs[-1].parent.name


def print_json(value: Any) -> None:
    """For programs."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))
