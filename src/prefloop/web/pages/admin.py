"""Projects, webhooks and the audit, for admins (S18). People and tokens are in `admin_people`."""

import time
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from prefloop.labels import audit as audits
from prefloop.labels import people, publish, webhooks
from prefloop.labels.audit import audit
from prefloop.labels.errors import Conflict, Invalid
from prefloop.labels.projects import parse_config
from prefloop.labels.schema import annotator, member, project, task
from prefloop.web.pages.shared import page
from prefloop.web.security import Visitor, need_role, visitor
from prefloop.web.store import database_of, read, write

Text = Annotated[str, Form()]


async def admin(asking: Annotated[Visitor, Depends(visitor)]) -> Visitor:
    """Who asks, if they are an admin."""
    need_role(asking, "admin")
    return asking


Admin = Annotated[Visitor, Depends(admin)]
router = APIRouter(prefix="/admin", dependencies=[Depends(admin)])


def when(milliseconds: int | None) -> str:
    """A time as it is shown: in UTC, to the minute."""
    return "" if milliseconds is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(milliseconds / 1000))


def render(
    request: Request, template: str, asking: Visitor, *, status: int = 200, **values: object
) -> HTMLResponse:
    """An admin page."""
    return HTMLResponse(page(request, template, asking, when=when, **values), status_code=status)


@router.get("")
async def start(asking: Admin) -> Response:
    """The first of the admin pages."""
    return RedirectResponse("/admin/projects", status_code=303)


# --- projects --------------------------------------------------------------------------------------------------------


@router.get("/projects")
async def projects_page(request: Request, asking: Admin) -> HTMLResponse:
    """All projects."""

    def find(connection: sa.Connection) -> list[dict[str, object]]:
        members = _counts(connection, member)
        tasks = _counts(connection, task)
        return [
            {
                "row": row,
                "config": publish.project_config(connection, row.id),
                "members": members.get(row.id, 0),
                "tasks": tasks.get(row.id, 0),
            }
            for row in connection.execute(sa.select(project).order_by(project.c.created_at.desc()))
        ]

    return render(request, "admin/projects.html", asking, projects=await read(request, find))


def _counts(connection: sa.Connection, table: sa.Table) -> dict[str, int]:
    counted = sa.select(table.c.project_id, sa.func.count().label("number")).group_by(table.c.project_id)
    return {row.project_id: row.number for row in connection.execute(counted)}


@router.get("/projects/new")
async def new_project_page(request: Request, asking: Admin) -> HTMLResponse:
    """The form for a new project."""
    return render(
        request,
        "admin/project_new.html",
        asking,
        id="",
        title="",
        source="kind: pairwise\noverlap: 2\ngold_share: 0.04\n",
        guidelines="",
        errors=(),
    )


@router.post("/projects/new")
async def new_project(
    request: Request,
    asking: Admin,
    id: Text = "",
    title: Text = "",
    source: Text = "",
    guidelines: Text = "",
) -> Response:
    """Makes a project; what is wrong is said beside what was written."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        config = parse_config(source)
        publish.add_project(
            connection, now, id, config, title=title.strip(), guidelines=guidelines, source=source
        )
        people.join_project(connection, id, asking.person.id)
        audit(connection, now, asking.person.id, "project.add", id)

    try:
        await write(request, work)
    except (Invalid, Conflict) as error:
        return render(
            request,
            "admin/project_new.html",
            asking,
            status=error.status,
            id=id,
            title=title,
            source=source,
            guidelines=guidelines,
            errors=str(error).splitlines(),
        )
    return RedirectResponse(f"/admin/projects/{id}", status_code=303)


@router.get("/projects/{project_id}")
async def project_page(request: Request, asking: Admin, project_id: str) -> HTMLResponse:
    """One project: what it asks, who is of it, what it says to others."""
    return await _project(request, asking, project_id)


async def _project(
    request: Request,
    asking: Visitor,
    project_id: str,
    *,
    source: str | None = None,
    errors: tuple[str, ...] = (),
    secret: str = "",
    status: int = 200,
) -> HTMLResponse:
    def find(connection: sa.Connection) -> dict[str, object]:
        config = publish.project_config(connection, project_id)
        members = (
            sa.select(
                annotator.c.id, annotator.c.name, annotator.c.role, member.c.served, member.c.qualification
            )
            .join(member, member.c.annotator_id == annotator.c.id)
            .where(member.c.project_id == project_id)
            .order_by(sa.func.lower(annotator.c.name))
        )
        found = connection.execute(members).all()
        ids = {row.id for row in found}
        return {
            "project": connection.execute(sa.select(project).where(project.c.id == project_id)).one(),
            "config": config,
            "source": publish.project_source(connection, project_id) if source is None else source,
            "members": found,
            "others": [
                row for row in people.list_people(connection) if row.id not in ids and row.state == "active"
            ],
            "webhooks": [row for row in webhooks.list_webhooks(connection) if row.project_id == project_id],
        }

    values = await read(request, find)
    return render(
        request,
        "admin/project.html",
        asking,
        status=status,
        errors=errors,
        secret=secret,
        events=webhooks.EVENTS,
        **values,
    )


@router.post("/projects/{project_id}")
async def change_project(
    request: Request, asking: Admin, project_id: str, source: Text = "", title: Text = ""
) -> Response:
    """Gives a project another configuration."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        publish.configure_project(connection, project_id, parse_config(source), source=source)
        if title.strip():
            connection.execute(
                sa.update(project).where(project.c.id == project_id).values(title=title.strip()[:200])
            )
        audit(connection, now, asking.person.id, "project.configure", project_id)

    try:
        await write(request, work)
    except Invalid as error:
        return await _project(
            request,
            asking,
            project_id,
            source=source,
            errors=tuple(str(error).splitlines()),
            status=error.status,
        )
    return RedirectResponse(f"/admin/projects/{project_id}", status_code=303)


@router.post("/projects/{project_id}/state")
async def change_project_state(
    request: Request, asking: Admin, project_id: str, state: Text = ""
) -> Response:
    """Opens or closes a project."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        publish.project_config(connection, project_id)
        if state not in ("open", "closed"):
            raise Invalid(f"state {state[:20]!r}: choose open or closed")
        connection.execute(sa.update(project).where(project.c.id == project_id).values(state=state))
        audit(connection, now, asking.person.id, f"project.{state}", project_id)

    await write(request, work)
    return RedirectResponse(f"/admin/projects/{project_id}", status_code=303)


@router.post("/projects/{project_id}/members")
async def add_member(request: Request, asking: Admin, project_id: str, person_id: Text = "") -> Response:
    """Lets somebody into a project."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        people.find_person(connection, id=person_id)
        people.join_project(connection, project_id, person_id)
        audit(connection, now, asking.person.id, "member.add", person_id, {"project": project_id})

    await write(request, work)
    return RedirectResponse(f"/admin/projects/{project_id}", status_code=303)


@router.post("/projects/{project_id}/members/{person_id}/remove")
async def remove_member(request: Request, asking: Admin, project_id: str, person_id: str) -> Response:
    """Takes somebody out of a project."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        people.leave_project(connection, now, project_id, person_id, actor=asking.person.id)

    await write(request, work)
    return RedirectResponse(f"/admin/projects/{project_id}", status_code=303)


# --- webhooks --------------------------------------------------------------------------------------------------------


@router.get("/webhooks")
async def webhooks_page(request: Request, asking: Admin) -> HTMLResponse:
    """All webhooks, and what was sent last."""
    found = await read(
        request,
        lambda connection: (webhooks.list_webhooks(connection), webhooks.last_deliveries(connection)),
    )
    return render(request, "admin/webhooks.html", asking, webhooks=found[0], deliveries=found[1])


@router.post("/projects/{project_id}/webhooks")
async def add_webhook(
    request: Request,
    asking: Admin,
    project_id: str,
    url: Text = "",
    events: Annotated[list[str] | None, Form()] = None,
) -> Response:
    """Adds a webhook; its secret is shown this once."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> tuple[str, str]:
        return webhooks.add_webhook(
            connection, now, project_id, url.strip(), events or [], actor=asking.person.id
        )

    try:
        _, secret = await write(request, work)
    except Invalid as error:
        return await _project(request, asking, project_id, errors=(str(error),), status=error.status)
    return await _project(request, asking, project_id, secret=secret)


@router.post("/webhooks/{webhook_id}/state")
async def change_webhook_state(
    request: Request, asking: Admin, webhook_id: str, state: Text = ""
) -> Response:
    """Switches a webhook on or off."""
    now = database_of(request).now()
    wanted = "active" if state == "active" else "disabled"

    def work(connection: sa.Connection) -> None:
        webhooks.set_webhook_state(connection, now, webhook_id, wanted, actor=asking.person.id)

    await write(request, work)
    return RedirectResponse("/admin/webhooks", status_code=303)


@router.post("/webhooks/{webhook_id}/test")
async def test_webhook(request: Request, asking: Admin, webhook_id: str) -> Response:
    """Sends an event that says nothing."""
    now = database_of(request).now()
    await write(request, lambda connection: webhooks.send_test(connection, now, webhook_id))
    return RedirectResponse("/admin/webhooks", status_code=303)


@router.post("/deliveries/{delivery_id}/again")
async def send_again(request: Request, asking: Admin, delivery_id: str) -> Response:
    """Sends a dead event anew."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        webhooks.send_again(connection, now, delivery_id, actor=asking.person.id)

    await write(request, work)
    return RedirectResponse("/admin/webhooks", status_code=303)


# --- audit -----------------------------------------------------------------------------------------------------------


@router.get("/audit")
async def audit_page(
    request: Request, asking: Admin, before: int | None = None, actor: str = "", action: str = ""
) -> HTMLResponse:
    """Who changed what."""
    found = await read(
        request, lambda connection: audits.entries(connection, before=before, actor=actor, action=action)
    )
    return render(
        request,
        "admin/audit.html",
        asking,
        entries=found,
        actor=actor,
        action=action,
        older=found[-1].id if len(found) == audits.PAGE else None,
    )
