"""Coming in and being somebody: login, one-time link, invite, consent, one's own account (S1)."""

import logging
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from prefloop.labels import accounts, people
from prefloop.labels.audit import audit
from prefloop.labels.errors import Conflict, Invalid, LabelError, NotFound
from prefloop.labels.publish import project_config
from prefloop.labels.schema import annotator, project, session
from prefloop.web import security
from prefloop.web.hashing import hash_password, verify_password
from prefloop.web.limits import limit
from prefloop.web.pages.shared import page
from prefloop.web.security import Visitor, visitor
from prefloop.web.store import database_of, read, write

router = APIRouter()
Asking = Annotated[Visitor, Depends(visitor)]
OurForm = Depends(security.check_form)
Text = Annotated[str, Form()]
DONE = frozenset({"password", "profile", "exposure", "sessions"})
"""What the account page can say was done."""
logger = logging.getLogger(__name__)


# --- login -----------------------------------------------------------------------------------------------------------


@router.get("/login")
async def login_page(request: Request, next: str = "") -> Response:
    """The form; who is logged in goes on."""
    if await _is_logged_in(request):
        return RedirectResponse(security.local_path(next), status_code=303)
    return await _form(request, "account/login.html", next=security.local_path(next, ""), called="", error="")


@router.post("/login", dependencies=[OurForm])
async def login(request: Request, called: Text = "", password: Text = "", next: Text = "") -> Response:
    """Lets in who knows the password of an account; the answer to a wrong one does not say what was wrong."""
    limit(request, "login", f"address/{security.address_of(request)}")
    limit(request, "login", f"account/{security.account_key(called)}")
    row = await read(request, lambda connection: accounts.login_account(connection, called))
    verified = await verify_password(None if row is None else row.password_hash, password)
    if row is None or not verified.is_right:
        logger.info("login refused address=%s", security.address_of(request))
        return await _form(
            request,
            "account/login.html",
            status=401,
            next=security.local_path(next, ""),
            called=called[:200],
            error="account.wrong",
        )
    now = database_of(request).now()

    def work(connection: sa.Connection) -> str:
        if verified.rehashed is not None:
            connection.execute(
                sa.update(annotator).where(annotator.c.id == row.id).values(password_hash=verified.rehashed)
            )
        audit(connection, now, row.id, "session.open", row.id)
        return accounts.open_session(connection, now, row.id)

    return await _come_in(request, await _with_new_session(request, work), security.local_path(next))


@router.post("/logout")
async def logout(request: Request, asking: Asking) -> Response:
    """Ends this session."""
    token = security.session_token(request)
    await write(request, lambda connection: accounts.close_session(connection, token))
    response = RedirectResponse("/login", status_code=303)
    security.drop_session(request, response)
    return response


# --- one-time links and invites --------------------------------------------------------------------------------------


@router.get("/link")
async def link_page(request: Request) -> Response:
    """The token stands behind the # of the address, so that it reaches us by the button alone, not by a preview."""
    return await _form(request, "account/link.html", error="")


@router.post("/link", dependencies=[OurForm])
async def redeem_link(request: Request, token: Text = "") -> Response:
    """Lets in by a one-time link."""
    limit(request, "login", f"address/{security.address_of(request)}")
    now = database_of(request).now()

    def work(connection: sa.Connection) -> str:
        person = accounts.redeem_link(connection, now, token)
        return accounts.open_session(connection, now, person.id, opened_by="link")

    try:
        opened = await _with_new_session(request, work)
    except NotFound:
        return await _form(request, "account/link.html", status=404, error="account.link_over")
    return await _come_in(request, opened, "/account")


@router.get("/invite")
async def invite_page(request: Request) -> Response:
    """Like `/link`: a script moves the token from behind the # into the form."""
    return await _form(request, "account/invite_open.html", error="")


@router.post("/invite", dependencies=[OurForm])
async def open_invite(request: Request, token: Text = "") -> Response:
    """What somebody is invited to, and the form for the account. The invite stays good."""
    limit(request, "login", f"address/{security.address_of(request)}")
    return await _invite_form(request, token, error="", name="", email="")


@router.post("/invite/accept", dependencies=[OurForm])
async def accept_invite(
    request: Request, token: Text = "", name: Text = "", email: Text = "", password: Text = ""
) -> Response:
    """Makes the account and lets in."""
    limit(request, "login", f"address/{security.address_of(request)}")
    now = database_of(request).now()
    try:
        await read(request, lambda connection: accounts.open_invite(connection, now, token))
        people.visible_name(name)
        accounts.check_new_password(password, name, email)
        hashed = await hash_password(password)

        def work(connection: sa.Connection) -> str:
            person = accounts.accept_invite(
                connection, now, token, name=name, email=email, password_hash=hashed
            )
            return accounts.open_session(connection, now, person.id, opened_by="invite")

        opened = await _with_new_session(request, work)
    except (Invalid, Conflict) as error:
        return await _invite_form(
            request, token, error=str(error), name=name, email=email, status=error.status
        )
    except NotFound:
        return await _form(request, "account/invite_open.html", status=404, error="account.invite_over")
    return await _come_in(request, opened, "/")


async def _invite_form(
    request: Request, token: str, *, error: str, name: str, email: str, status: int = 200
) -> Response:
    now = database_of(request).now()
    try:
        found = await read(request, lambda connection: accounts.open_invite(connection, now, token))
    except NotFound:
        return await _form(request, "account/invite_open.html", status=404, error="account.invite_over")
    return await _form(
        request,
        "account/invite.html",
        status=status,
        token=token,
        invite=found,
        name=name[: people.LONGEST_NAME],
        email=email[:300],
        error=error,
    )


async def _with_new_session(request: Request, work) -> str:
    """Runs `work`, which opens a session, and ends the one that this browser had: no session outlives a login."""
    before = security.session_token(request)

    def both(connection: sa.Connection) -> str:
        opened = work(connection)
        if before:
            accounts.close_session(connection, before)
        return opened

    return await write(request, both)


async def _come_in(request: Request, token: str, to: str) -> Response:
    response = RedirectResponse(to, status_code=303)
    security.set_session(request, response, token)
    return response


async def _is_logged_in(request: Request) -> bool:
    if not security.session_token(request):
        return False
    try:
        await visitor(request)
    except LabelError:
        return False
    return True


async def _form(request: Request, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
    """A page with a form for who is not logged in."""
    nonce, csrf = await security.form_token(request)
    html = page(request, template, None, csrf=csrf, **values)
    response = HTMLResponse(html, status_code=status)
    security.set_form_cookie(request, response, nonce)
    return response


# --- consent ---------------------------------------------------------------------------------------------------------


@router.get("/consent/{project_id}")
async def consent_page(request: Request, asking: Asking, project_id: str, next: str = "") -> Response:
    """What a project asks people to agree to, and what they may come to read."""

    def find(connection: sa.Connection) -> sa.Row:
        people.require_member(connection, project_id, asking.person)
        return connection.execute(sa.select(project).where(project.c.id == project_id)).one()

    row = await read(request, find)
    config = await read(request, lambda connection: project_config(connection, project_id))
    if not config.consent_version:
        return RedirectResponse(security.local_path(next), status_code=303)
    html = page(
        request,
        "account/consent.html",
        asking,
        project=row,
        config=config,
        next=security.local_path(next),
    )
    return HTMLResponse(html)


@router.post("/consent/{project_id}")
async def accept_consent(
    request: Request, asking: Asking, project_id: str, version: Text = "", next: Text = ""
) -> Response:
    """Notes that somebody agrees."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        people.accept_consent(connection, now, project_id, asking.person, version)

    try:
        await write(request, work)
    except Conflict:
        return await consent_page(request, asking, project_id, next)
    return RedirectResponse(security.local_path(next), status_code=303)


# --- one's own account -----------------------------------------------------------------------------------------------


@router.get("/account")
async def account_page(request: Request, asking: Asking, done: str = "") -> HTMLResponse:
    """What somebody can see and change about themselves."""
    return await _account(request, asking, done=done if done in DONE else "")


@router.post("/account/password")
async def change_password(request: Request, asking: Asking, old: Text = "", new: Text = "") -> Response:
    """A new password; all sessions end, and this browser gets a new one."""
    limit(request, "login", f"account/{asking.person.id}")
    row = await _own_row(request, asking)
    if (
        not _needs_no_old_password(request, asking, row)
        and not (await verify_password(row.password_hash, old)).is_right
    ):
        return await _account(request, asking, error="account.old_wrong", status=403)
    try:
        accounts.check_new_password(new, row.name, row.email or "")
    except Invalid as error:
        return await _account(request, asking, error=str(error), status=error.status)
    hashed, now = await hash_password(new), database_of(request).now()

    def work(connection: sa.Connection) -> str:
        accounts.set_password(connection, now, asking.person.id, hashed, actor=asking.person.id)
        return accounts.open_session(connection, now, asking.person.id)

    return await _come_in(request, await write(request, work), "/account?done=password")


@router.post("/account/profile")
async def change_profile(request: Request, asking: Asking, languages: Text = "") -> Response:
    """The languages that somebody reads."""
    now, me = database_of(request).now(), asking.person.id

    def work(connection: sa.Connection) -> None:
        people.change_profile(connection, now, me, actor=me, languages=languages.split(","))

    await write(request, work)
    return RedirectResponse("/account?done=profile", status_code=303)


@router.post("/account/exposure")
async def change_exposure(
    request: Request, asking: Asking, cap: Annotated[int, Form(ge=0, le=1000)] = 0
) -> Response:
    """How many tasks a day that may disturb; 0 for none."""
    now, me = database_of(request).now(), asking.person.id
    await write(request, lambda connection: people.set_exposure_cap(connection, now, me, cap, actor=me))
    return RedirectResponse("/account?done=exposure", status_code=303)


@router.post("/account/sessions")
async def end_sessions(request: Request, asking: Asking) -> Response:
    """Ends all other sessions; this browser gets a new one."""
    now, me = database_of(request).now(), asking.person.id

    def work(connection: sa.Connection) -> str:
        accounts.close_sessions(connection, me)
        return accounts.open_session(connection, now, me)

    return await _come_in(request, await write(request, work), "/account?done=sessions")


@router.post("/account/delete")
async def delete_account(request: Request, asking: Asking, password: Text = "", name: Text = "") -> Response:
    """Deletes who somebody is; what they judged stays without a name."""
    limit(request, "login", f"account/{asking.person.id}")
    row = await _own_row(request, asking)
    knows = (
        _needs_no_old_password(request, asking, row)
        or (await verify_password(row.password_hash, password)).is_right
    )
    if not knows or name.strip() != row.name:
        return await _account(request, asking, error="account.delete_wrong", status=403)
    now, me = database_of(request).now(), asking.person.id
    try:
        await write(request, lambda connection: people.delete_person(connection, now, me, actor=me))
    except Invalid as error:
        return await _account(request, asking, error=str(error), status=error.status)
    response = RedirectResponse("/login", status_code=303)
    security.drop_session(request, response)
    return response


async def _account(
    request: Request, asking: Visitor, *, error: str = "", done: str = "", status: int = 200
) -> HTMLResponse:
    row = await _own_row(request, asking)
    now = database_of(request).now()
    running = sa.select(sa.func.count()).where(
        session.c.annotator_id == asking.person.id,
        session.c.expires_at > now,
        session.c.seen_at > now - accounts.IDLE_MS,
    )
    sessions = await read(request, lambda connection: connection.execute(running).scalar_one())
    html = page(
        request,
        "account/account.html",
        asking,
        row=row,
        sessions=sessions,
        needs_old=not _needs_no_old_password(request, asking, row),
        error=error,
        done=done,
    )
    return HTMLResponse(html, status_code=status)


async def _own_row(request: Request, asking: Visitor) -> sa.Row:
    mine = sa.select(annotator).where(annotator.c.id == asking.person.id)
    return await read(request, lambda connection: connection.execute(mine).one())


def _needs_no_old_password(request: Request, asking: Visitor, row: sa.Row) -> bool:
    """Who has none, and who just came by a link because they forgot theirs."""
    is_recent = database_of(request).now() - asking.opened_at < accounts.RECENT_MS
    return row.password_hash is None or (asking.opened_by == "link" and is_recent)
