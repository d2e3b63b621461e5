"""`prefloop score` and its siblings, run in this process; the files that they read, and a scorer that needs no model."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from prefloop.cli import app
from prefloop.records import Score


def command(*words: object) -> Any:
    """What a command prints with --json."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def printed(*words: object) -> str:
    """What a command prints for people."""
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    return done.output


def command_of(name: str) -> Any:
    """A command or group of commands, as typer knows it."""
    return typer.main.get_command(app).commands[name]  # pyright: ignore[reportAttributeAccessIssue]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Longer:
    """Scores the number of characters."""

    name = "longer"

    def score(self, groups):
        for group in groups:
            for one in group.completions:
                yield Score(
                    prompt_id=group.prompt.id, completion_id=one.id, value=len(one.text), annotator=self.name
                )
