"""Pages of reviewers and leads: their projects, flags, guidelines, and who is let in.

Further pages are in `lead_review` (adjudication), `lead_figures` (quality, rounds) and `lead_data` (browser, exports).
Every one of them begins with a desk: who asks, on which project, checked for role and membership.
"""

import time
from dataclasses import dataclass
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from prefloop.labels import flagging, guidelines, people, publish, qualification, rounds
from prefloop.labels.audit import audit
from prefloop.labels.errors import Invalid
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.reading import Progress, progress
from prefloop.labels.schema import member, project
from prefloop.web.pages.shared import page
from prefloop.web.render import markdown_html
from prefloop.web.security import Visitor, need_role, visitor
from prefloop.web.store import database_of, read, write

router = APIRouter(prefix="/lead")
Text = Annotated[str, Form()]
LONGEST_GUIDELINES = 200_000


@dataclass(frozen=True)
class Desk:
    """Somebody at work on a project."""

    asking: Visitor
    id: str
    title: str
    config: ProjectConfig
    flags: int
    """That wait for a decision."""

    @property
    def is_lead(self) -> bool:
        """Whether they may do what only leads do."""
        return self.asking.person.role in ("lead", "admin")


async def review_desk(
    request: Request, project_id: str, asking: Annotated[Visitor, Depends(visitor)]
) -> Desk:
    """For reviewers and up who are of the project."""
    need_role(asking, "reviewer")

    def find(connection: sa.Connection) -> Desk:
        people.require_member(connection, project_id, asking.person)
        title = connection.execute(sa.select(project.c.title).where(project.c.id == project_id)).scalar_one()
        config = publish.project_config(connection, project_id)
        return Desk(asking, project_id, title, config, flagging.count_open(connection, project_id))

    return await read(request, find)


async def lead_desk(request: Request, project_id: str, asking: Annotated[Visitor, Depends(visitor)]) -> Desk:
    """For leads and admins."""
    need_role(asking, "lead")
    return await review_desk(request, project_id, asking)


Reviewing = Annotated[Desk, Depends(review_desk)]
Leading = Annotated[Desk, Depends(lead_desk)]


def when(milliseconds: int | None) -> str:
    """A time as it is shown: in UTC, to the minute."""
    return "" if milliseconds is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(milliseconds / 1000))


def euros(cents: int | None) -> str:
    """Cents as an amount; the currency is the project's own affair."""
    return "" if cents is None else f"{cents / 100:,.2f}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share as people read it."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


def render(
    request: Request, template: str, desk: Desk, tab: str = "", *, status: int = 200, **values: object
) -> HTMLResponse:
    """A page of the project."""
    html = page(
        request,
        template,
        desk.asking,
        desk=desk,
        tab=tab,
        when=when,
        euros=euros,
        percent=percent,
        **values,
    )
    return HTMLResponse(html, status_code=status)


def seen(path: str) -> Response:
    """After a change: the page that shows it."""
    return RedirectResponse(path, status_code=303)


# --- projects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overview:
    """A project at a glance."""

    id: str
    title: str
    state: str
    progress: Progress
    round: rounds.Round | None
    flags: int


@router.get("")
async def projects(request: Request, asking: Annotated[Visitor, Depends(visitor)]) -> HTMLResponse:
    """The projects that this person reviews or leads."""
    need_role(asking, "reviewer")

    def find(connection: sa.Connection) -> list[Overview]:
        wanted = sa.select(project).order_by(project.c.state.desc(), sa.func.lower(project.c.title))
        if asking.person.role != "admin":
            own = sa.select(member.c.project_id).where(member.c.annotator_id == asking.person.id)
            wanted = wanted.where(project.c.id.in_(own))
        found = []
        for row in connection.execute(wanted).all():
            of = rounds.rounds_of(connection, row.id)
            current = of[-1] if of else None
            found.append(
                Overview(
                    row.id,
                    row.title,
                    row.state,
                    progress(connection, row.id, round_id=current.id if current else None),
                    current,
                    flagging.count_open(connection, row.id),
                )
            )
        return found

    html = page(request, "lead/projects.html", asking, projects=await read(request, find))
    return HTMLResponse(html)


@router.get("/{project_id}")
async def start(desk: Reviewing) -> Response:
    """The first page of a project: rounds for leads, disagreements for reviewers."""
    return seen(f"/lead/{desk.id}/rounds" if desk.is_lead else f"/lead/{desk.id}/review")


# --- flags -----------------------------------------------------------------------------------------------------------


@router.get("/{project_id}/flags")
async def flags(request: Request, desk: Reviewing) -> HTMLResponse:
    """What people flagged."""
    found = await read(request, lambda connection: flagging.open_flags(connection, desk.id))
    return render(request, "lead/flags.html", desk, "flags", flags=found)


@router.post("/{project_id}/flags/{flag_id}")
async def resolve_flag(request: Request, desk: Reviewing, flag_id: int, resolution: Text = "") -> Response:
    """Decides a flag."""
    now = database_of(request).now()
    await write(
        request,
        lambda connection: flagging.resolve(
            connection, now, desk.id, flag_id, resolution, desk.asking.person
        ),
    )
    return seen(f"/lead/{desk.id}/flags")


# --- guidelines ------------------------------------------------------------------------------------------------------


@router.get("/{project_id}/guidelines")
async def guideline_editor(request: Request, desk: Leading) -> HTMLResponse:
    """The guidelines as they are, to be written anew."""
    versions = await read(request, lambda connection: guidelines.guidelines_of(connection, desk.id))
    text = versions[0].text if versions else ""
    return render(request, "lead/guidelines.html", desk, "guidelines", versions=versions, text=text)


@router.post("/{project_id}/guidelines/preview")
async def preview_guidelines(desk: Leading, text: Text = "") -> HTMLResponse:
    """How the guidelines will look."""
    return HTMLResponse(str(markdown_html(text.replace("\r\n", "\n"))))


@router.post("/{project_id}/guidelines")
async def publish_guidelines(request: Request, desk: Leading, text: Text = "") -> Response:
    """A new version, which everybody has to acknowledge before their next task."""
    now, plain = database_of(request).now(), text.replace("\r\n", "\n")
    if not plain.strip() or len(plain) > LONGEST_GUIDELINES:
        raise Invalid(f"text: write 1 to {LONGEST_GUIDELINES} characters")

    def work(connection: sa.Connection) -> None:
        version = publish.publish_guidelines(connection, now, desk.id, plain)
        audit(connection, now, desk.asking.person.id, "guidelines.publish", desk.id, {"version": version})

    await write(request, work)
    return seen(f"/lead/{desk.id}/guidelines")


# --- qualification ---------------------------------------------------------------------------------------------------


@router.get("/{project_id}/people")
async def newcomers(request: Request, desk: Leading) -> HTMLResponse:
    """Who has passed the qualification."""
    found = await read(
        request,
        lambda connection: (
            qualification.newcomers(connection, desk.id),
            qualification.num_tasks(connection, desk.id),
        ),
    )
    return render(request, "lead/people.html", desk, "people", people=found[0], num_tasks=found[1])


@router.post("/{project_id}/people/{person_id}")
async def set_qualification(request: Request, desk: Leading, person_id: str, state: Text = "") -> Response:
    """Lets somebody in, keeps them out, or lets them try again."""
    now, actor = database_of(request).now(), desk.asking.person.id
    await write(
        request,
        lambda connection: qualification.set_qualification(
            connection, now, desk.id, person_id, state, actor=actor
        ),
    )
    return seen(f"/lead/{desk.id}/people")
