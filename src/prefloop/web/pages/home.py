"""Coming in, and what is to be done: login by link, the queue."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse

from prefloop.web.pages.shared import page
from prefloop.web.security import Visitor, visitor

router = APIRouter()
Asking = Annotated[Visitor, Depends(visitor)]


@router.get("/")
async def home(request: Request, asking: Asking) -> HTMLResponse:
    """The projects of this person and what remains."""
    return HTMLResponse(page(request, "home.html", asking))
