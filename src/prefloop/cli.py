"""The command line: all commands, by what they are for, and how it ends. What each does is in `commands/`.

Commands other than `run`, `quickstart`, `chat` and `reward-card` start without torch.
"""

import functools
import os
import sys
from collections.abc import MutableMapping
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup
from typer.main import get_group

from prefloop import __version__
from prefloop.commands import evaluating, files, looking, running, scores, study, tournament
from prefloop.commands.options import errors, leave_interrupted
from prefloop.interfaces import PrefloopError
from prefloop.screen import console

app = typer.Typer(
    help="Online iterative RLHF: SFT, reward model, generate, annotate, select, train, evaluate, and round again.",
    epilog="Start with `prefloop quickstart`, or `prefloop init online-rlhf > my.yaml` and `prefloop run my.yaml`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for one in (running, study, looking, evaluating, scores, tournament, files):
    app.add_typer(one.app)


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
    from prefloop.commands import label

    return get_group(label.app).commands


label = typer.Typer(
    cls=LabelCommands,
    help="People's labels: serve the labelling app, see how far they are, take labels in and out, decide about rounds.",
    epilog="Example: `prefloop label serve --demo`. For a run that waits: `prefloop label serve`, then run with `--wait`.",
    no_args_is_help=True,
)
app.add_typer(label, name="label", rich_help_panel="People")


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
        leave_interrupted()


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print(__version__, highlight=False)
        raise typer.Exit


if __name__ == "__main__":
    main()
