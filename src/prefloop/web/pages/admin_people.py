"""People, invites and API tokens, for admins (S18)."""

from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from prefloop.labels import accounts, people, tokens
from prefloop.labels.audit import audit
from prefloop.labels.errors import Invalid, LabelError, NotFound
from prefloop.labels.schema import annotator, project
from prefloop.web.pages.admin import Admin, Text, admin, render
from prefloop.web.security import Visitor, invite_url, link_url
from prefloop.web.store import database_of, read, write

router = APIRouter(prefix="/admin", dependencies=[Depends(admin)])
Number = Annotated[int, Form()]
Several = Annotated[list[str] | None, Form()]


# --- everybody -------------------------------------------------------------------------------------------------------


@router.get("/people")
async def people_page(request: Request, asking: Admin) -> HTMLResponse:
    """Everybody, and who is invited."""
    return await _people(request, asking)


async def _people(
    request: Request, asking: Visitor, *, link: str = "", error: str = "", status: int = 200
) -> HTMLResponse:
    now = database_of(request).now()

    def find(connection: sa.Connection) -> dict[str, object]:
        return {
            "people": people.list_people(connection),
            "memberships": people.projects_of_people(connection),
            "invites": accounts.open_invites(connection, now),
            "projects": connection.execute(
                sa.select(project.c.id, project.c.title).order_by(project.c.id)
            ).all(),
        }

    values = await read(request, find)
    return render(
        request,
        "admin/people.html",
        asking,
        status=status,
        link=link,
        error=error,
        roles=people.ROLES,
        **values,
    )


@router.post("/invites")
async def make_invite(
    request: Request,
    asking: Admin,
    role: Text = "annotator",
    email: Text = "",
    projects: Several = None,
    hours: Number = accounts.INVITE_HOURS,
) -> Response:
    """Makes an invite; its link is shown this once."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> str:
        return accounts.make_invite(
            connection,
            now,
            actor=asking.person.id,
            role=role,  # pyright: ignore[reportArgumentType]  checked there
            project_ids=projects or [],
            email=email,
            hours=hours,
        )

    try:
        token = await write(request, work)
    except LabelError as error:
        return await _people(request, asking, error=str(error), status=error.status)
    return await _people(request, asking, link=invite_url(request.app.state.options.public_url, token))


@router.post("/invites/{hashed}/withdraw")
async def withdraw_invite(request: Request, asking: Admin, hashed: str) -> Response:
    """Takes an invite back."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        accounts.withdraw_invite(connection, now, hashed, actor=asking.person.id)

    await write(request, work)
    return RedirectResponse("/admin/people", status_code=303)


@router.post("/programs")
async def add_program(request: Request, asking: Admin, name: Text = "", projects: Several = None) -> Response:
    """Makes an account for an AI judge, which comes in by tokens."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> str:
        person = people.add_person(connection, now, name, role="judge")
        for project_id in projects or []:
            people.join_project(connection, project_id, person.id)
        audit(connection, now, asking.person.id, "person.add", person.id, {"role": "judge"})
        return person.id

    try:
        person_id = await write(request, work)
    except LabelError as error:
        return await _people(request, asking, error=str(error), status=error.status)
    return RedirectResponse(f"/admin/people/{person_id}", status_code=303)


# --- one person ------------------------------------------------------------------------------------------------------


@router.get("/people/{person_id}")
async def person_page(request: Request, asking: Admin, person_id: str) -> HTMLResponse:
    """One person or program, and what can be changed."""
    return await _person(request, asking, person_id)


async def _person(
    request: Request,
    asking: Visitor,
    person_id: str,
    *,
    link: str = "",
    token: str = "",
    error: str = "",
    status: int = 200,
) -> HTMLResponse:
    now = database_of(request).now()

    def find(connection: sa.Connection) -> dict[str, object]:
        row = connection.execute(
            sa.select(annotator).where(annotator.c.id == person_id, annotator.c.state != "deleted")
        ).first()
        if row is None:
            raise NotFound("there is nobody with this id")
        return {
            "row": row,
            "project_ids": people.projects_of_people(connection).get(person_id, []),
            "tokens": tokens.list_tokens(connection, person_id=person_id),
        }

    values = await read(request, find)
    return render(
        request,
        "admin/person.html",
        asking,
        status=status,
        link=link,
        token=token,
        error=error,
        now=now,
        roles=people.ROLES,
        scopes=tokens.SCOPES,
        **values,
    )


@router.post("/people/{person_id}")
async def change_person(
    request: Request,
    asking: Admin,
    person_id: str,
    role: Text = "",
    skills: Text = "",
    languages: Text = "",
    cap: Number = 0,
) -> Response:
    """Role, skills, languages, and a lower number of sensitive tasks."""
    now, me = database_of(request).now(), asking.person.id

    def work(connection: sa.Connection) -> None:
        people.change_role(connection, now, person_id, role, actor=me)
        people.change_profile(
            connection, now, person_id, actor=me, skills=skills.split(","), languages=languages.split(",")
        )
        if cap != (people.find_person(connection, id=person_id).exposure_cap or 0):
            people.set_exposure_cap(connection, now, person_id, cap, actor=me)

    try:
        await write(request, work)
    except LabelError as error:
        return await _person(request, asking, person_id, error=str(error), status=error.status)
    return RedirectResponse(f"/admin/people/{person_id}", status_code=303)


@router.post("/people/{person_id}/link")
async def make_link(request: Request, asking: Admin, person_id: str) -> Response:
    """A one-time link for who forgot their password; shown this once."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> str:
        if people.find_person(connection, id=person_id).role == "judge":
            raise Invalid("a program comes in by a token")
        return accounts.make_link(connection, now, person_id, actor=asking.person.id)

    try:
        token = await write(request, work)
    except LabelError as error:
        return await _person(request, asking, person_id, error=str(error), status=error.status)
    return await _person(
        request, asking, person_id, link=link_url(request.app.state.options.public_url, token)
    )


@router.post("/people/{person_id}/disable")
async def disable(request: Request, asking: Admin, person_id: str) -> Response:
    """Shuts somebody out."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        people.disable_person(connection, now, person_id, actor=asking.person.id)

    return await _done_or_error(request, asking, person_id, work)


@router.post("/people/{person_id}/enable")
async def enable(request: Request, asking: Admin, person_id: str) -> Response:
    """Lets somebody in again."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        people.enable_person(connection, now, person_id, actor=asking.person.id)

    return await _done_or_error(request, asking, person_id, work)


@router.post("/people/{person_id}/delete")
async def delete(request: Request, asking: Admin, person_id: str, name: Text = "") -> Response:
    """Deletes who somebody is. The name is typed again, since there is no way back."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        wanted = sa.select(annotator.c.name).where(annotator.c.id == person_id)
        if connection.execute(wanted).scalar() != name.strip():
            raise Invalid("type the name as it stands, to delete this account")
        people.delete_person(connection, now, person_id, actor=asking.person.id)

    return await _done_or_error(request, asking, person_id, work, to="/admin/people")


async def _done_or_error(
    request: Request, asking: Visitor, person_id: str, work, *, to: str = ""
) -> Response:
    try:
        await write(request, work)
    except Invalid as error:
        return await _person(request, asking, person_id, error=str(error), status=error.status)
    return RedirectResponse(to or f"/admin/people/{person_id}", status_code=303)


# --- tokens ----------------------------------------------------------------------------------------------------------


@router.get("/tokens")
async def tokens_page(request: Request, asking: Admin) -> HTMLResponse:
    """All API tokens."""
    found = await read(request, tokens.list_tokens)
    return render(request, "admin/tokens.html", asking, tokens=found, now=database_of(request).now())


@router.post("/people/{person_id}/tokens")
async def make_token(
    request: Request,
    asking: Admin,
    person_id: str,
    name: Text = "",
    scopes: Several = None,
    days: Number = 90,
) -> Response:
    """Makes a token; it is shown this once."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> tuple[str, str]:
        return tokens.make_token(
            connection, now, person_id, actor=asking.person.id, name=name, scopes=scopes or [], days=days
        )

    try:
        _, token = await write(request, work)
    except Invalid as error:
        return await _person(request, asking, person_id, error=str(error), status=error.status)
    return await _person(request, asking, person_id, token=token)


@router.post("/tokens/{token_id}/revoke")
async def revoke_token(request: Request, asking: Admin, token_id: str) -> Response:
    """Ends a token."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        tokens.revoke_token(connection, now, token_id, actor=asking.person.id)

    await write(request, work)
    return RedirectResponse("/admin/tokens", status_code=303)
