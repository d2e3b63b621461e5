"""`prefloop label round ...`: closing rounds, budgets, and what people decide about the policies trained on them."""

from collections.abc import Callable
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from prefloop.commands.label.shared import ProjectOption, StoreOption, app, opened, the_project
from prefloop.commands.options import WorkspaceOption
from prefloop.labels import rounds
from prefloop.labels.audit import SYSTEM
from prefloop.labels.browsing import Filter
from prefloop.labels.database import Database
from prefloop.labels.errors import Conflict
from prefloop.labels.rounds import Round, Verdict
from prefloop.screen import console, table_of

round_app = typer.Typer(
    help="Rounds: list them, close them, give them a budget, promote, reject or roll back what was trained on them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(round_app, name="round")

Number = Annotated[
    int | None, typer.Argument(help="Number of the round; left out, the newest.", show_default=False)
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept with the decision.")]


@round_app.command("list", epilog="Example: `prefloop label round list`")
def list_rounds(
    project: ProjectOption = None, store: StoreOption = None, workspace: WorkspaceOption = None
) -> None:
    """List the rounds of a project and what became of them."""
    with opened(store, workspace) as database:
        name = the_project(database, project)
        found = database.read(lambda c: rounds.rounds_of(c, name))
        verdicts = database.read(lambda c: rounds.decisions(c, name))
    table = table_of(f"project {name}")
    for column in ("round", "state", "watermark", "cents", "asked about", "trained", "decided"):
        table.add_column(column, no_wrap=True)
    for one in found:
        watermark = "" if one.watermark is None else str(one.watermark)
        decided = verdicts.get(one.policy_out, "") if one.policy_out else ""
        table.add_row(
            str(one.number),
            one.state,
            watermark,
            str(one.spent_cents),
            one.policy_in,
            one.policy_out,
            decided,
        )
    console.print(table)


@round_app.command(epilog="Example: `prefloop label round freeze`, then `prefloop run my.yaml`")
def freeze(
    number: Number = None,
    reason: Reason = "by hand",
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Close a round before its quorum is there: the next run goes on with what was judged."""

    def work(connection: sa.Connection, now: int, found: Round) -> str:
        if found.state != "open":
            raise Conflict(f"round {found.number} is {found.state} already")
        watermark = rounds.freeze(connection, now, found.id, actor=SYSTEM, reason=reason)
        stands = rounds.standing(connection, found.id)
        return f"round {found.number} is frozen at judgement {watermark}: {stands.settled} of {stands.tasks} judged"

    _on_round(work, number, project, store, workspace, afterwards=_keep_figures)


def _keep_figures(database: Database, project_id: str) -> None:
    """What people see of themselves knows all of the round."""
    from prefloop.web.keeping import compute_and_keep

    compute_and_keep(database, Filter(project_id))


@round_app.command(epilog="Example: `prefloop label round budget 3 --cents 5000`")
def budget(
    number: Number = None,
    cents: Annotated[
        int | None,
        typer.Option(min=0, help="What the round may cost; left out, no limit.", show_default=False),
    ] = None,
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Give a round another budget; when it is spent, nobody gets a task."""

    def work(connection: sa.Connection, now: int, found: Round) -> str:
        rounds.set_budget(connection, now, found, cents, actor=SYSTEM)
        limit = "has no limit" if cents is None else f"may cost {cents} cents"
        return f"round {found.number} {limit}; {found.spent_cents} are spent"

    _on_round(work, number, project, store, workspace)


@round_app.command(epilog="Example: `prefloop label round promote 2 --reason 'read 50 answers'`")
def promote(
    number: Number = None,
    reason: Reason = "",
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Keep the policy trained on a round, whatever the gate said; the next run goes on from it."""
    _decide("promote", number, reason, project, store, workspace)


@round_app.command(epilog="Example: `prefloop label round reject 2`")
def reject(
    number: Number = None,
    reason: Reason = "",
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Send the policy trained on a round back; the next run goes on from the one before it."""
    _decide("reject", number, reason, project, store, workspace)


@round_app.command(epilog="Example: `prefloop label round rollback`, then `prefloop run my.yaml`")
def rollback(
    number: Number = None,
    reason: Reason = "rolled back",
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Go back to the policy before the newest promoted one, or before that of a round."""
    with opened(store, workspace) as database:
        name = the_project(database, project)
        found = database.write(
            lambda c: rounds.roll_back(c, database.now(), name, actor=SYSTEM, number=number, reason=reason)
        )
    console.print(
        f"round {found.number}: policy {found.policy_out} is rolled back; `prefloop run` goes on from the one before",
        highlight=False,
        soft_wrap=True,
    )


def _decide(
    verdict: Verdict, number: int | None, reason: str, project: str | None, store: str | None, workspace: Any
) -> None:
    def work(connection: sa.Connection, now: int, found: Round) -> str:
        rounds.decide(connection, now, found, verdict, actor=SYSTEM, reason=reason)
        state = rounds.STATE_AFTER[verdict]
        return (
            f"round {found.number}: policy {found.policy_out} is {state}; the next `prefloop run` goes by it"
        )

    _on_round(work, number, project, store, workspace)


def _on_round(
    work: Any,
    number: int | None,
    project: str | None,
    store: str | None,
    workspace: Any,
    *,
    afterwards: Callable[[Database, str], None] | None = None,
) -> None:
    """Runs `work` on a round in one transaction and says what it returns."""
    with opened(store, workspace) as database:
        name = the_project(database, project)
        said = database.write(lambda c: work(c, database.now(), rounds.numbered_round(c, name, number)))
        if afterwards is not None:
            afterwards(database, name)
    console.print(said, highlight=False, soft_wrap=True)
