"""The pages, by who uses them. Each module has a `router`."""

from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from prefloop.labels.errors import ConsentNeeded
from prefloop.web.pages import (
    account,
    admin,
    admin_people,
    chat,
    home,
    judge,
    lead,
    lead_data,
    lead_figures,
    lead_gold,
    lead_review,
)
from prefloop.web.pages.shared import page

ROUTERS: tuple[APIRouter, ...] = (
    home.router,
    account.router,
    admin.router,
    admin_people.router,
    judge.router,
    chat.router,
    lead_review.router,
    lead_figures.router,
    lead_gold.router,
    lead_data.router,
    lead.router,
)


def error_response(request: Request, status: int, message: str) -> Response:
    """An error as JSON for programs, as a page for people."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message}, status_code=status)
    if status == 401:
        came_from = request.url.path if request.method == "GET" and request.url.path != "/" else ""
        return RedirectResponse(f"/login?next={quote(came_from)}" if came_from else "/login", status_code=303)
    html = page(request, "error.html", None, status=status, message=message)
    return HTMLResponse(html, status_code=status)


def consent_response(request: Request, error: ConsentNeeded) -> Response:
    """Where somebody reads what they must agree to first."""
    path = f"/consent/{error.project_id}"
    if request.method != "GET" or request.url.path.startswith("/api/"):
        return JSONResponse({"error": str(error), "next": path}, status_code=error.status)
    return RedirectResponse(f"{path}?next={quote(request.url.path)}", status_code=303)
