"""`prefloop init`, `export` and `gc`: files to start from, to take along, to be rid of."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from prefloop import pipeline
from prefloop.commands.options import WorkspaceOption, workspace_of
from prefloop.config import preset
from prefloop.interfaces import InputError
from prefloop.screen import console
from prefloop.store import garbage, remove

app = typer.Typer()
PANEL = "Files"
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


@app.command(rich_help_panel=PANEL, epilog="Example: `prefloop init online-rlhf > my.yaml`")
def init(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(PRESETS)}.")] = "quickstart",
) -> None:
    """Print a commented experiment file to start from."""
    if name not in PRESETS:
        raise InputError(f"no experiment {name!r}; choose {', '.join(PRESETS)}")
    typer.echo(preset(name), nl=False)


@app.command(rich_help_panel=PANEL, epilog="Example: `prefloop export select-3f2a pairs.jsonl --format trl`")
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
    space = workspace_of(workspace)
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


@app.command(rich_help_panel=PANEL, epilog="Example: `prefloop gc --yes`")
def gc(
    workspace: WorkspaceOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only say what would go.")] = False,
) -> None:
    """Delete artefacts that no run needs any more."""
    space = workspace_of(workspace)
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
