"""Puts the labelling app together."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from prefloop.interfaces import PrefloopError
from prefloop.labels.database import Database
from prefloop.labels.errors import LabelError
from prefloop.web import api, pages, security

HERE = Path(__file__).parent


@dataclass(frozen=True)
class WebOptions:
    """How the app is reached."""

    public_url: str = "http://127.0.0.1:8765"
    """The address that people type, which decides whether cookies need https."""
    limits: security.Limits = field(default_factory=security.Limits)
    """Requests that one person may make."""


def create_app(database: Database, options: WebOptions) -> FastAPI:
    """The app over an open store; whoever opened the store closes it."""
    app = FastAPI(title="prefloop", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.database = database
    app.state.options = options
    app.include_router(api.router)
    for router in pages.ROUTERS:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_exception_handler(LabelError, _refuse)
    app.add_exception_handler(PrefloopError, _unavailable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.middleware("http")(_with_headers)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


async def _with_headers(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await go_on(request)
    for name, value in security.HEADERS.items():
        response.headers.setdefault(name, value)
    return response


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, LabelError)
    return pages.error_response(request, error.status, str(error))


async def _unavailable(request: Request, error: Exception) -> Response:
    return pages.error_response(request, 503, str(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(one) for one in first["loc"][1:])
    return JSONResponse({"error": f"{place}: {first['msg']}"}, status_code=422)
