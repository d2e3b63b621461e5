"""What all label commands share: the app, the options that name a store and a project, opening it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import sqlalchemy as sa
import typer

from prefloop.commands.options import workspace_of
from prefloop.interfaces import InputError
from prefloop.labels.database import Database, open_database
from prefloop.labels.errors import NotFound
from prefloop.labels.people import Person, add_person, find_person, join_project
from prefloop.labels.schema import project
from prefloop.stages.people import STORE_VARIABLE, default_store

app = typer.Typer(rich_markup_mode="markdown")

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        help="SQLite file or postgresql:// URL; left out, labels.sqlite in the workspace.",
        show_default=False,
        show_envvar=True,
    ),
]
ProjectOption = Annotated[
    str | None,
    typer.Option("--project", "-p", help="Project; may be left out where there is one.", show_default=False),
]


def place_of(store: str | None, workspace: Path | None) -> str:
    """Path or URL of the store."""
    return store or default_store(workspace_of(workspace).root)


@contextlib.contextmanager
def opened(store: str | None, workspace: Path | None, *, may_be_new: bool = False) -> Iterator[Database]:
    """The store. Raises InputError where there is none, unless it may be made here."""
    place = place_of(store, workspace)
    if not may_be_new and "://" not in place and not Path(place).expanduser().is_file():
        raise InputError(
            f"{place}: no label store here; `prefloop run` of an experiment with people makes one, "
            "`prefloop label project create` makes one for labels alone, or name another with --store"
        )
    database = open_database(place)
    try:
        yield database
    finally:
        database.close()


def the_project(database: Database, named: str | None) -> str:
    """The project of that name, or the only one. Raises NotFound, InputError naming those that there are."""
    known = list(database.read(lambda c: c.execute(sa.select(project.c.id).order_by(project.c.id)).scalars()))
    if named is not None and named in known:
        return named
    there_are = ", ".join(known) or "none yet"
    if named is not None:
        raise NotFound(f"there is no project {named}; there is {there_are}")
    if len(known) != 1:
        raise InputError(f"say which --project; there is {there_are}")
    return known[0]


def member_named(
    connection: sa.Connection, now: int, name: str, project_id: str, *, role: str = "annotator"
) -> Person:
    """Somebody of this name as a member of the project; made where there is nobody."""
    try:
        found = find_person(connection, name=name)
    except NotFound:
        found = add_person(connection, now, name, role="judge" if role == "judge" else "annotator")
    join_project(connection, project_id, found.id)
    return found
