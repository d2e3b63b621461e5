"""`prefloop label status`: rounds, how far they are, and who did how much."""

import json
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
import typer
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from prefloop.browse import shown
from prefloop.commands.label.shared import ProjectOption, StoreOption, app, opened, the_project
from prefloop.commands.options import Json, WorkspaceOption
from prefloop.labels import rounds, serving
from prefloop.labels.database import Database
from prefloop.labels.reading import progress
from prefloop.labels.rounds import Round, Standing
from prefloop.labels.schema import annotator, judgement, ledger, project
from prefloop.screen import console, table_of

STATE_STYLES = {"open": "yellow", "promoted": "green", "rejected": "red"}
BAR_WIDTH = 24


@app.command(epilog="Example: `prefloop label status --json`")
def status(
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Show rounds with their progress, what they cost, and who judged how much."""
    with opened(store, workspace) as database:
        names = [the_project(database, project)] if project else _projects(database)
        found = {name: _status(database, name) for name in names}
        url = database.read(serving.announced)
        server = url if url is not None and serving.answers(url) else None
    if as_json:
        typer.echo(json.dumps({"server": server, "projects": found}, ensure_ascii=False, indent=1))
        return
    console.print(f"server: {server}" if server else "server: not running; `prefloop label serve` starts it")
    for name, about in found.items():
        tasks = about["tasks"]
        console.print(
            f"\n[bold]{escape(name)}[/]: {tasks['done']} of {tasks['tasks']} tasks judged", highlight=False
        )
        if about["rounds"]:
            console.print(_rounds_table(about["rounds"]))
        if about["people"]:
            console.print(_people_table(about["people"]))


def _projects(database: Database) -> list[str]:
    return list(database.read(lambda c: c.execute(sa.select(project.c.id).order_by(project.c.id)).scalars()))


def _status(database: Database, name: str) -> dict[str, Any]:
    return database.read(
        lambda c: {
            "rounds": [_about(one, rounds.standing(c, one.id)) for one in rounds.rounds_of(c, name)],
            "people": _people(c, name),
            "tasks": asdict(progress(c, name)),
        }
    )


def _about(one: Round, stands: Standing) -> dict[str, Any]:
    return asdict(one) | asdict(stands)


def _people(connection: sa.Connection, name: str) -> list[dict[str, Any]]:
    newer = judgement.alias("newer")
    last = ~sa.exists().where(newer.c.supersedes == judgement.c.id)
    paid = sa.select(sa.func.coalesce(sa.func.sum(ledger.c.cents), 0)).where(
        ledger.c.annotator_id == annotator.c.id, ledger.c.project_id == name
    )
    rows = connection.execute(
        sa.select(
            annotator.c.name,
            annotator.c.role,
            sa.func.sum(sa.case((judgement.c.state == "valid", 1), else_=0)).label("valid"),
            sa.func.sum(sa.case((judgement.c.state == "skipped", 1), else_=0)).label("skipped"),
            sa.func.sum(sa.case((judgement.c.state.in_(("late", "surplus")), 1), else_=0)).label("late"),
            paid.scalar_subquery().label("cents"),
        )
        .join(annotator, annotator.c.id == judgement.c.annotator_id)
        .where(judgement.c.project_id == name, last)
        .group_by(annotator.c.id, annotator.c.name, annotator.c.role)
        .order_by(sa.desc("valid"), annotator.c.name)
    )
    return [dict(row._mapping) for row in rows]


def _rounds_table(found: list[dict[str, Any]]) -> Table:
    table = table_of("rounds")
    for column in ("round", "state", "judged", "", "judgements", "cents", "policy"):
        table.add_column(column, no_wrap=True)
    for one in found:
        cents = (
            str(one["spent_cents"])
            if one["budget_cents"] is None
            else f"{one['spent_cents']}/{one['budget_cents']}"
        )
        style = STATE_STYLES.get(one["state"], "blue")
        table.add_row(
            str(one["number"]),
            f"[{style}]{one['state']}[/]",
            f"{one['settled']}/{one['tasks']}",
            ProgressBar(total=max(1, one["tasks"]), completed=one["settled"], width=BAR_WIDTH),
            str(one["judgements"]),
            cents,
            one["policy_out"] or one["policy_in"],
        )
    return table


def _people_table(found: list[dict[str, Any]]) -> Table:
    table = table_of("who judged")
    for column in ("name", "role", "valid", "skipped", "late or surplus", "cents"):
        table.add_column(column, no_wrap=True)
    for one in found:
        numbers = [str(one[key]) for key in ("valid", "skipped", "late", "cents")]
        table.add_row(shown(one["name"]), one["role"], *numbers)
    return table
