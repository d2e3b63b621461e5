"""`prefloop label ...`: the label store from the command line. `app` has all commands, by module."""

from prefloop.commands.label import (
    agreeing,
    files,
    gold,
    judging,
    project_commands,
    round_commands,
    serving,
    status,
    terminal,
)
from prefloop.commands.label.shared import app

__all__ = [
    "agreeing",
    "app",
    "files",
    "gold",
    "judging",
    "project_commands",
    "round_commands",
    "serving",
    "status",
    "terminal",
]
