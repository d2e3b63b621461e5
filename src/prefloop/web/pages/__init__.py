"""The pages, by who uses them. Each module has a `router`."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from prefloop.web.pages import home
from prefloop.web.pages.shared import page

ROUTERS: tuple[APIRouter, ...] = (home.router,)


def error_response(request: Request, status: int, message: str) -> Response:
    """An error as JSON for programs, as a page for people."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message}, status_code=status)
    if status == 401:
        return RedirectResponse("/login", status_code=303)
    html = page(request, "error.html", None, status=status, message=message)
    return HTMLResponse(html, status_code=status)
