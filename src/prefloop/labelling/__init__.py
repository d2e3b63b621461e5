"""`prefloop label ...`: the label store from the command line. `app` has all commands, by module."""

from prefloop.labelling import (
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
from prefloop.labelling.shared import app

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
