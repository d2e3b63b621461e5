"""`prefloop label export` and `import`: labels out, labels in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import yaml
from pydantic import ValidationError
from rich.markup import escape

from prefloop.commands.label.shared import ProjectOption, StoreOption, app, opened, the_project
from prefloop.commands.options import WorkspaceOption
from prefloop.config.annotate import MOST_RANKED
from prefloop.interfaces import InputError
from prefloop.labels.browsing import Filter
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.reading import ImportFormat, ImportOptions, TaskReader
from prefloop.labels.formats.table import FORMATS
from prefloop.labels.formats.writing import Manifest, write_export
from prefloop.labels.streaming import judgement_rows, up_to
from prefloop.labels.transfer import ask_anew, bring_in, note_export
from prefloop.screen import console

FORMAT_NAMES = ", ".join(FORMATS)
RoundOption = Annotated[
    int | None, typer.Option("--round", help="Number of a round; left out, all.", show_default=False)
]


@app.command(epilog="Example: `prefloop label export trl-preference -o pairs.jsonl --round 2`")
def export(
    format: Annotated[str, typer.Argument(help=f"One of {FORMAT_NAMES}.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .jsonl, .json, .csv or .parquet.")],
    round: RoundOption = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            help="Judgements of `human` or `ai`; may be repeated; left out, of people.",
            show_default=False,
        ),
    ] = None,
    watermark: Annotated[
        int | None, typer.Option(help="Read up to this judgement, to repeat an export.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An option of the format, as `min_agreement=0.7`; may be repeated.",
            show_default=False,
        ),
    ] = None,
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write judgements in a format that other tools read, with a manifest of what is in it and what was left out."""
    with opened(store, workspace) as database:
        asked = Filter(
            the_project(database, project),
            rounds=() if round is None else (round,),
            annotator_kinds=tuple(kinds or ("human",)),
            watermark=watermark or 0,
        )
        with database.snapshot() as connection:
            wanted = up_to(connection, asked)
            options = export_options(set_ or (), wanted)
            manifest = write_export(judgement_rows(connection, wanted), format, out, options)
        database.write(
            lambda c: note_export(
                c,
                database.now(),
                wanted.project_id,
                format=manifest.format,
                filter=options.filter,
                watermark=wanted.watermark,
                sha256=manifest.sha256,
                rows=manifest.records,
            )
        )
    console.print(_said(out, manifest), highlight=False, soft_wrap=True)


def export_options(given: Any, wanted: Filter) -> ExportOptions:
    """The options of an export, from `name=value` with YAML values. Raises InputError."""
    values: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or name not in ExportOptions.model_fields or name in ("filter", "watermark"):
            known = ", ".join(key for key in ExportOptions.model_fields if key not in ("filter", "watermark"))
            raise InputError(f"--set {one}: write an option, =, and its value; there is {known}")
        values[name] = yaml.safe_load(text)
    chosen = {"project": wanted.project_id} | wanted.told()
    try:
        return ExportOptions(**values, filter=chosen, watermark=wanted.watermark)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--set {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _said(out: Path, manifest: Manifest) -> str:
    left_out = in_words(manifest.drops)
    said = f"{escape(str(out))}: {manifest.records} rows from {manifest.rows_out} of {manifest.rows_in} judgements"
    return f"{said} up to {manifest.watermark}" + (f"; left out: {left_out}" if left_out else "")


FormatArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(get_args(ImportFormat))}.")]
BadRows = Annotated[
    bool, typer.Option("--drop-bad-rows", help="Count bad rows instead of stopping at the first.")
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field", help="Renames a column, as `chosen=better`; may be repeated.", show_default=False
    ),
]
LabelStudioConfig = Annotated[str, typer.Option(help="Label Studio's labelling configuration (XML).")]
RowLimit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Take the first rows only.", show_default=False)
]


def import_options(
    file: Path,
    format: str,
    *,
    bad_rows: bool,
    fields: Sequence[str],
    labelstudio_config: str,
    limit: int | None,
) -> ImportOptions:
    """What the command line says of a file to read. Raises InputError."""
    if format not in get_args(ImportFormat):
        raise InputError(f"no import format {format!r}; choose {', '.join(get_args(ImportFormat))}")
    return ImportOptions.model_validate(
        {
            "path": str(file),
            "format": format,
            "fields": dict(one.split("=", 1) for one in fields if "=" in one),
            "labelstudio_config": labelstudio_config,
            "bad_rows": "drop" if bad_rows else "stop",
            "limit": limit,
        }
    )


def in_words(dropped: Mapping[str, int]) -> str:
    """Rows by the reason for which they were left out."""
    return ", ".join(f"{number} {reason}" for reason, number in dropped.items())


@app.command("import", epilog="Example: `prefloop label import auto pairs.jsonl --project tales`")
def import_(
    format: FormatArgument,
    file: Annotated[Path, typer.Argument(help="File with prompts and completions, perhaps with judgements.")],
    bad_rows: BadRows = False,
    tasks_only: Annotated[
        bool,
        typer.Option(
            "--tasks-only", help="Ask people anew: leave out what the file says about its completions."
        ),
    ] = False,
    field: Fields = None,
    labelstudio_config: LabelStudioConfig = "",
    limit: RowLimit = None,
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Publish what a file asks as tasks, and store what it says about them; the same file twice is the same tasks."""
    reader = TaskReader(
        import_options(
            file,
            format,
            bad_rows=bad_rows,
            fields=field or (),
            labelstudio_config=labelstudio_config,
            limit=limit,
        )
    )
    with opened(store, workspace) as database:
        name = the_project(database, project)
        brought = (ask_anew if tasks_only else bring_in)(database, name, reader)
    dropped = in_words(reader.dropped)
    console.print(
        f"project {name}: {brought.tasks} tasks, {brought.judgements} judgements from {reader.rows_in} rows"
        + (f"; {brought.cut} ask about the first {MOST_RANKED} completions only" if brought.cut else "")
        + (f"; {brought.refused} judgements of more than a task can show" if brought.refused else "")
        + (f"; {brought.unheard} judgements of the file left out" if brought.unheard else "")
        + (f"; left out: {dropped}" if dropped else ""),
        highlight=False,
        soft_wrap=True,
    )
