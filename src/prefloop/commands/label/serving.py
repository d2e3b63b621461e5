"""`prefloop label serve`, `invite` and `token`: the labelling app in a browser, and who may come in."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import sqlalchemy as sa
import typer
from rich.markup import escape

from prefloop.commands.label.shared import (
    ProjectOption,
    StoreOption,
    app,
    member_named,
    opened,
    place_of,
    the_project,
)
from prefloop.commands.options import WorkspaceOption
from prefloop.interfaces import InputError
from prefloop.labels import accounts, serving, tokens
from prefloop.labels.audit import SYSTEM
from prefloop.labels.database import Database, database_url, open_database, the_only_server
from prefloop.labels.people import ROLES, Role, join_admins
from prefloop.labels.schema import project as project_table
from prefloop.screen import console
from prefloop.stages.people import STORE_VARIABLE

if TYPE_CHECKING:
    from prefloop.web.app import WebOptions

DEMO_FILE = "demo.sqlite"
PUBLIC_URL_VARIABLE = "PREFLOOP_LABELS_URL"
OPTIONS_VARIABLE = "PREFLOOP_LABELS_OPTIONS"
"""How the processes of one server learn what the command line said."""
PublicUrl = Annotated[
    str | None,
    typer.Option(
        "--public-url",
        envvar=PUBLIC_URL_VARIABLE,
        help="Address that people type, of a proxy with https for instance.",
        show_default=False,
    ),
]


@app.command(epilog="Example: `prefloop label serve --demo` shows every screen without a model or a run")
def serve(
    host: Annotated[
        str,
        typer.Option(help="Address to listen at; any but this machine's own needs an admin with a password."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8765,
    public_url: PublicUrl = None,
    host_name: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name under which the app is reached, as often as you like; with a port, at that port alone.",
            show_default=False,
        ),
    ] = None,
    webhook_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or address in your own network that webhooks may go to, as often as you like; others must be "
            "public.",
            show_default=False,
        ),
    ] = None,
    plain_http: Annotated[
        bool,
        typer.Option("--plain-http", help="Accept that a trusted network could read along, without https."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes; more than one needs PostgreSQL.")] = 1,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A policy to talk with, NAME=WHERE, as often as you like: the address of an OpenAI-compatible server, "
            "a policy folder, or `scripted`.",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Serve built-in tales to try everything, in a store of their own.")
    ] = False,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve the labelling app until Ctrl-C. Prints a link that lets you in once, as the admin."""
    place = str(Path(place_of(None, workspace)).with_name(DEMO_FILE)) if demo else place_of(store, workspace)
    names = _host_names(host_name or ())
    reached = Reached(
        public_url or f"http://{host}:{port}",
        names,
        _webhook_hosts(webhook_host or ()),
        tuple(policy or ()),
    )
    with _held(place, workers) as database:
        from prefloop.web.serve import check_binding, link_url

        check_binding(database, host, reached.url, "accept" if plain_http else "refuse", names=names)
        if demo:
            from prefloop.commands.label.demo import POLICIES, publish_demo

            reached = replace(reached, policies=reached.policies or POLICIES)
            database.write(lambda connection: publish_demo(connection, database.now()))
        token = database.write(lambda connection: _let_admin_in(connection, database.now()))
        _say(f"labels in {escape(serving.shown_place(place))}")
        _say(f"open {link_url(reached.url, token)}")
        _say("the link lets you in once, as the admin; Ctrl-C ends the server")
        with _announced(database, reached.url):
            _run(database, place, reached, host=host, port=port, workers=workers)


@dataclass(frozen=True)
class Reached:
    """How the app is reached and what it reaches, as the command line says; see `WebOptions`."""

    url: str
    host_names: Sequence[str]
    webhook_hosts: Sequence[str]
    policies: Sequence[str]


def _host_names(given: Sequence[str]) -> tuple[str, ...]:
    """Names under which the app is reached. Raises InputError."""
    for one in given:
        _name_in("--host-name", one)
    return tuple(given)


def _webhook_hosts(given: Sequence[str]) -> tuple[str, ...]:
    """Names without ports, as addresses are compared with them. Raises InputError."""
    names = [_name_in("--webhook-host", one) for one in given]
    for one, name in zip(given, names, strict=True):
        if one.lower().strip("[]") != name:
            raise InputError(f"--webhook-host {one}: give the name alone; all its ports are meant")
    return tuple(names)


def _name_in(option: str, given: str) -> str:
    try:
        parts = urlsplit(f"//{given}")
        name = parts.hostname if parts.port != 0 and parts.netloc == given else None
    except ValueError:
        name = None
    if not name or any(sign in given for sign in " ,*@"):
        raise InputError(f"{option} {given}: give one name as it stands in an address, such as label.lan")
    return name


@contextlib.contextmanager
def _held(place: str, workers: int) -> Iterator[Database]:
    """The open store, which no other server has where it is SQLite's."""
    url = database_url(place)
    if url.get_backend_name() == "sqlite":
        if workers > 1:
            raise InputError(
                f"--workers {workers}: SQLite takes one process; name a postgresql:// --store to serve with several"
            )
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    with the_only_server(url), contextlib.closing(open_database(place)) as database:
        yield database


@contextlib.contextmanager
def _announced(database: Database, url: str) -> Iterator[None]:
    """Runs that wait for labels say where the server is."""
    database.write(lambda connection: serving.announce(connection, url))
    try:
        yield
    finally:
        database.write(serving.withdraw)


def _let_admin_in(connection: sa.Connection, now: int) -> str:
    """A one-time link for the admin, who is made a member of every project: who works alone sees what a run asks."""
    token = accounts.first_admin_link(connection, now)
    for project_id in connection.execute(sa.select(project_table.c.id)).scalars().all():
        join_admins(connection, project_id)
    return token


def _run(database: Database, place: str, reached: Reached, *, host: str, port: int, workers: int) -> None:
    import uvicorn

    from prefloop.web.app import create_app
    from prefloop.web.serve import uvicorn_options

    options: dict[str, Any] = {"host": host, "port": port, "log_level": "warning", **uvicorn_options()}
    web = web_options(reached)
    if workers == 1:
        uvicorn.run(create_app(database, web), **options)
        return
    os.environ[STORE_VARIABLE], os.environ[OPTIONS_VARIABLE] = place, json.dumps(asdict(reached))
    uvicorn.run(f"{__name__}:app_of_a_worker", factory=True, workers=workers, **options)


def web_options(reached: Reached) -> "WebOptions":
    """What the app is told. Raises InputError for a policy that cannot be talked with."""
    from prefloop.web.answering import answerers_of
    from prefloop.web.app import WebOptions

    return WebOptions(
        public_url=reached.url,
        trusted_hosts=tuple(reached.host_names),
        reachable_hosts=tuple(reached.webhook_hosts),
        answerers=answerers_of(reached.policies),
    )


def app_of_a_worker() -> Any:
    """The app in one of several processes, over the store that the environment names."""
    from prefloop.web.app import create_app

    reached = Reached(**json.loads(os.environ[OPTIONS_VARIABLE]))
    return create_app(open_database(os.environ[STORE_VARIABLE]), web_options(reached))


# --- who may come in -------------------------------------------------------------------------------------------------


@app.command(epilog="Example: `prefloop label invite --role reviewer --email ada@example.org`")
def invite(
    role: Annotated[str, typer.Option(help=f"One of {', '.join(ROLES[:-1])}.")] = "annotator",
    email: Annotated[str, typer.Option(help="For whom; nobody else can use the link then.")] = "",
    hours: Annotated[int, typer.Option(min=1, max=720, help="How long the link is good.")] = 72,
    public_url: PublicUrl = None,
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Print a link with which somebody makes an account, once, and joins a project."""
    from prefloop.web.serve import invite_url

    with opened(store, workspace) as database:
        name = the_project(database, project)
        known: dict[str, Role] = {one: one for one in ROLES[:-1]}
        wanted = known.get(role)
        if wanted is None:
            raise InputError(f"--role {role}: choose one of {', '.join(ROLES[:-1])}")
        token = database.write(
            lambda c: accounts.make_invite(
                c, database.now(), actor=SYSTEM, role=wanted, project_ids=[name], email=email, hours=hours
            )
        )
        url = public_url or database.read(serving.announced) or "http://127.0.0.1:8765"
    _say(invite_url(url, token))


@app.command(epilog="Example: `prefloop label token gpt-judge --role judge`")
def token(
    name: Annotated[str, typer.Argument(help="Whose token: an AI judge, or somebody who is there already.")],
    role: Annotated[str, typer.Option(help="Of a new one: judge or annotator.")] = "judge",
    days: Annotated[int, typer.Option(min=1, max=366, help="How long the token is good.")] = 90,
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Print an API token with which a program claims tasks and answers them. It is shown here and never again."""
    with opened(store, workspace) as database:
        chosen = the_project(database, project)

        def work(connection: sa.Connection) -> str:
            person = member_named(connection, database.now(), name, chosen, role=role)
            scopes = ["tasks:read", "judge:write"]
            made = tokens.make_token(
                connection,
                database.now(),
                person.id,
                actor=SYSTEM,
                name="command line",
                scopes=scopes,
                days=days,
            )
            return made[1]

        typer.echo(database.write(work))


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
