"""`prefloop label project ...` and `invite`: what people are asked, and who they are."""

from pathlib import Path
from typing import Annotated

import sqlalchemy as sa
import typer
import yaml
from rich.markup import escape

from prefloop.commands.label.shared import StoreOption, app, opened, the_project
from prefloop.commands.options import WorkspaceOption
from prefloop.interfaces import InputError
from prefloop.labels.errors import Invalid
from prefloop.labels.people import join_admins
from prefloop.labels.projects import ProjectConfig, parse_config
from prefloop.labels.publish import add_project, configure_project, project_config, publish_guidelines
from prefloop.labels.schema import project
from prefloop.labels.written import INSTRUCTION, USE_CASES, ask_for_prompts
from prefloop.screen import console

project_app = typer.Typer(
    help="Projects: what people are asked, how often, and what they read first.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(project_app, name="project")

Name = Annotated[str, typer.Argument(help="Project: small letters, digits, dots and dashes.")]
Known = Annotated[
    str | None, typer.Argument(help="Project; may be left out where there is one.", show_default=False)
]
Settings = Annotated[
    Path | None,
    typer.Option("--settings", help="YAML file of settings; `show` prints them.", show_default=False),
]
Guidelines = Annotated[
    Path | None,
    typer.Option("--guidelines", help="Markdown file that people read first.", show_default=False),
]


@project_app.command(
    epilog="Example: `prefloop label project create tales --settings tales.yaml --guidelines guide.md`"
)
def create(
    name: Name,
    title: Annotated[str, typer.Option(help="What people see.")] = "",
    settings: Settings = None,
    guidelines: Guidelines = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Make a project for labels without a loop; a run makes its own."""
    config, text = _config(settings), _text(guidelines) if guidelines else ""

    def work(connection: sa.Connection) -> None:
        add_project(connection, database.now(), name, config, title=title, guidelines=text)
        join_admins(connection, name)

    with opened(store, workspace, may_be_new=True) as database:
        database.write(work)
    console.print(f"project {name}: {config.kind} tasks", highlight=False)


@project_app.command(
    "ask-prompts", epilog="Example: `prefloop label project ask-prompts 50 --use-case rewrite`"
)
def ask_prompts(
    count: Annotated[int, typer.Argument(min=1, help="How many prompts.")],
    name: Known = None,
    instruction: Annotated[str, typer.Option(help="What people are told to write.")] = INSTRUCTION,
    use_case: Annotated[str, typer.Option(help=f"Of one kind only: {', '.join(USE_CASES)}.")] = "",
    sensitive: Annotated[
        bool, typer.Option("--sensitive", help="Only for people who have opted in to what may disturb.")
    ] = False,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask people to write prompts; `prefloop label export trl-prompt` has them for the next run."""
    if use_case and use_case not in USE_CASES:
        raise InputError(f"--use-case {use_case}: choose one of {', '.join(USE_CASES)}")
    with opened(store, workspace) as database:
        found = the_project(database, name)
        database.write(
            lambda c: ask_for_prompts(
                c,
                database.now(),
                found,
                count,
                instruction=instruction,
                use_case=use_case,
                is_sensitive=sensitive,
            )
        )
    console.print(f"project {found}: {count} prompts are asked for", highlight=False)


@project_app.command("list", epilog="Example: `prefloop label project list`")
def list_projects(store: StoreOption = None, workspace: WorkspaceOption = None) -> None:
    """List the projects of the store."""
    with opened(store, workspace) as database:
        rows = database.read(lambda c: c.execute(sa.select(project).order_by(project.c.id)).all())
    for row in rows:
        console.print(f"{row.id}  {escape(row.title)}", highlight=False)


@project_app.command(epilog="Example: `prefloop label project show tales > tales.yaml`")
def show(name: Known = None, store: StoreOption = None, workspace: WorkspaceOption = None) -> None:
    """Print the settings of a project as YAML, those at their default as well."""
    with opened(store, workspace) as database:
        config = database.read(lambda c: project_config(c, the_project(database, name)))
    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)


@project_app.command(epilog="Example: `prefloop label project configure tales --settings tales.yaml`")
def configure(
    name: Known = None,
    settings: Settings = None,
    guidelines: Guidelines = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Give a project other settings or guidelines; tasks that are published keep their kind and overlap."""
    if settings is None and guidelines is None:
        raise InputError("project configure: name --settings, --guidelines or both")
    text = _text(guidelines) if guidelines else None

    def work(connection: sa.Connection) -> None:
        if settings is not None:
            configure_project(connection, chosen, _config(settings))
        if text is not None:
            publish_guidelines(connection, database.now(), chosen, text)

    with opened(store, workspace) as database:
        chosen = the_project(database, name)
        database.write(work)
    console.print(f"project {chosen} has its new settings", highlight=False)


def _config(path: Path | None) -> ProjectConfig:
    if path is None:
        return ProjectConfig()
    try:
        return parse_config(_text(path))
    except Invalid as error:
        raise InputError(f"{path}: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or 'not a UTF-8 text file'}") from error
