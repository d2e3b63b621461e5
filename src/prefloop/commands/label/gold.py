"""`prefloop label gold`: tasks with known answers out of a file."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from prefloop.commands.label.files import (
    BadRows,
    Fields,
    LabelStudioConfig,
    RowLimit,
    import_options,
    in_words,
)
from prefloop.commands.label.shared import ProjectOption, StoreOption, app, opened, the_project
from prefloop.commands.options import WorkspaceOption
from prefloop.labels.formats.reading import ImportFormat
from prefloop.labels.gold import GOLD, MOST_TOLERANCE, remark
from prefloop.labels.gold_files import bring_gold_in
from prefloop.labels.qualification import STRATEGY
from prefloop.screen import console


@app.command(epilog="Example: `prefloop label gold known.jsonl --project tales --qualification`")
def gold(
    file: Annotated[
        Path,
        typer.Argument(
            help="File of prompts, completions and which is right; `why` and `expected` are columns of their own."
        ),
    ],
    qualification: Annotated[
        bool,
        typer.Option(
            "--qualification",
            help="Ask them of newcomers, with feedback, instead of unnoticed among the others.",
        ),
    ] = False,
    tolerance: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_TOLERANCE, help="Steps by which a rating, level or strength may be off."
        ),
    ] = 0,
    format: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(ImportFormat))}.")] = "auto",
    bad_rows: BadRows = False,
    field: Fields = None,
    labelstudio_config: LabelStudioConfig = "",
    limit: RowLimit = None,
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Publish tasks with known answers; the same file twice is the same tasks, and with an error there are none."""
    options = import_options(
        file,
        format,
        bad_rows=bad_rows,
        fields=field or (),
        labelstudio_config=labelstudio_config,
        limit=limit,
    )
    strategy = STRATEGY if qualification else GOLD
    with opened(store, workspace) as database:
        name = the_project(database, project)
        made = bring_gold_in(database, name, options, strategy=strategy, tolerance=tolerance)
        to_note = database.read(lambda connection: remark(connection, name, strategy))
    dropped = in_words(made.dropped)
    console.print(
        f"project {name}: {made.tasks} {strategy} tasks from {made.rows} rows"
        + (f"; {made.there} were there already" if made.there else "")
        + (f"; left out: {dropped}" if dropped else "")
        + (f"; note: {to_note}" if to_note else ""),
        highlight=False,
        soft_wrap=True,
    )
