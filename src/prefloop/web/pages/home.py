"""The queue of a person: their projects and what remains; and the language of the pages."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from prefloop.labels.reading import OwnProject, own_projects
from prefloop.web.pages.shared import LANGUAGE_COOKIE, LANGUAGES, page
from prefloop.web.security import Visitor, local_path, visitor
from prefloop.web.store import database_of, read

router = APIRouter()
Asking = Annotated[Visitor, Depends(visitor)]
TIMEZONE_COOKIE = "prefloop_utc_offset"
"""Minutes that the reader's clock is ahead of UTC; a script sets it."""
MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS
YEAR_S = 365 * 24 * 60 * 60
ABOUT = 10
"""Waiting tasks are told in tens: a number that stays the same after an answer would tell that this one was a gold task
or a repeat."""


@router.get("/")
async def home(request: Request, asking: Asking) -> HTMLResponse:
    """The projects of this person and what remains."""
    now = database_of(request).now()
    start = day_start(request, now)
    projects = await read(
        request, lambda connection: own_projects(connection, now, asking.person, day_start=start)
    )
    html = page(
        request,
        "home.html",
        asking,
        projects=[(one, about_waiting(one)) for one in projects],
        today=sum(one.today for one in projects),
    )
    return HTMLResponse(html)


@router.get("/language")
async def choose_language(request: Request, to: str, back: str = "/") -> Response:
    """Keeps the language of the pages in a cookie, so that it can be chosen before login too."""
    response = RedirectResponse(local_path(back), status_code=303)
    if to in LANGUAGES:
        response.set_cookie(
            LANGUAGE_COOKIE,
            to,
            max_age=YEAR_S,
            samesite="lax",
            httponly=True,
            secure=request.app.state.options.public_url.startswith("https:"),
        )
    return response


def day_start(request: Request, now: int) -> int:
    """When the reader's day began, by the clock of their browser; by UTC where it is not known."""
    text = request.cookies.get(TIMEZONE_COOKIE, "0")
    minutes = int(text) if text.lstrip("-").isdecimal() and len(text) <= 4 else 0
    ahead = max(-14 * 60, min(14 * 60, minutes)) * MINUTE_MS
    return (now + ahead) // DAY_MS * DAY_MS - ahead


def about_waiting(project: OwnProject) -> int:
    """Waiting tasks, rounded up to tens."""
    return -(-project.waiting // ABOUT) * ABOUT
