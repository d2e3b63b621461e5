"""Puts the labelling app together."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from prefloop.interfaces import PrefloopError
from prefloop.labels import accounts, webhooks
from prefloop.labels.database import Database
from prefloop.labels.errors import ConsentNeeded, LabelError
from prefloop.web import api, guard, health, keeping, pages
from prefloop.web.answering import Answerer
from prefloop.web.limits import Limits, TooMany, Windows
from prefloop.web.outgoing import webhook_sender
from prefloop.web.remembered import Remembered
from prefloop.web.talking import Talks
from prefloop.web.visitors import Visitors

HERE = Path(__file__).parent
DELIVER_EVERY_S = 5.0
FORGET_EVERY_S = 600.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WebOptions:
    """How the app is reached, and what it may reach."""

    public_url: str = "http://127.0.0.1:8765"
    """The address that people type, which decides whether cookies need https."""
    limits: Limits = field(default_factory=Limits)
    """Requests that one person may make."""
    trusted_hosts: tuple[str, ...] = ()
    """Further names, as in a Host header, under which the app is reached; without a port, at any port."""
    reachable_hosts: tuple[str, ...] = ()
    """Names in one's own network that webhooks may go to; all others must be public."""
    answerers: Mapping[str, Answerer] = field(default_factory=dict)
    """The policies that people can talk with, by name; see `answering.answerers_of`."""


def create_app(database: Database, options: WebOptions) -> FastAPI:
    """The app over an open store; whoever opened the store closes it."""
    app = FastAPI(title="prefloop", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.database = database
    app.state.options = options
    app.state.windows = Windows(options.limits)
    app.state.visitors = Visitors(database)
    app.router.routes.extend(api.MOST_ASKED)
    app.state.talks = Talks(database, options.answerers)
    app.state.remembered = Remembered()
    app.include_router(api.router)
    app.include_router(health.router)
    for router in pages.ROUTERS:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_exception_handler(LabelError, _refuse)
    app.add_exception_handler(PrefloopError, _unavailable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(
        guard.Guard,  # pyright: ignore[reportArgumentType]
        public_url=options.public_url,
        trusted_hosts=options.trusted_hosts,
    )
    return app


# --- beside the requests ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    talks: Talks = app.state.talks
    tasks = [asyncio.create_task(work) for work in (_deliver(app), _forget(app), _keep(app), talks.run())]
    for task in tasks:
        task.add_done_callback(_report)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await talks.close()


def _report(task: "asyncio.Task[None]") -> None:
    """Says that something beside the requests ended that should not have."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a task of the server ended task=%s", task.get_coro(), exc_info=error)


async def _deliver(app: FastAPI) -> None:
    """Sends what happened to those who want to know, for as long as the app runs."""
    send = webhook_sender(app.state.options.reachable_hosts)
    while True:
        try:
            await run_in_threadpool(webhooks.deliver_due, app.state.database, send)
        except (PrefloopError, SQLAlchemyError) as error:  # the store is away; the events wait in it
            logger.warning("webhooks wait error=%s", error)
        await asyncio.sleep(DELIVER_EVERY_S)


async def _forget(app: FastAPI) -> None:
    """Deletes what has run out, now and then."""
    database: Database = app.state.database
    while True:
        await asyncio.sleep(FORGET_EVERY_S)
        try:
            await run_in_threadpool(
                database.write, lambda connection: accounts.forget_expired(connection, database.now())
            )
        except (PrefloopError, SQLAlchemyError) as error:
            logger.warning("expired sessions stay error=%s", error)


async def _keep(app: FastAPI) -> None:
    """Keeps figures about labels that nobody asked for."""
    wait_s = keeping.LOOK_EVERY_S
    while True:
        await asyncio.sleep(wait_s)
        try:
            wait_s = await run_in_threadpool(
                keeping.keep_what_is_due, app.state.database, app.state.remembered.quality
            )
        except (PrefloopError, SQLAlchemyError) as error:
            wait_s = keeping.LOOK_EVERY_S
            logger.warning("figures are not kept error=%s", error)


# --- errors ----------------------------------------------------------------------------------------------------------


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, LabelError)
    if isinstance(error, ConsentNeeded):
        return pages.consent_response(request, error)
    response = pages.error_response(request, error.status, str(error))
    if isinstance(error, TooMany):
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


async def _unavailable(request: Request, error: Exception) -> Response:
    return pages.error_response(request, 503, str(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(one) for one in first["loc"][1:])
    return pages.error_response(request, 422, f"{place}: {first['msg']}" if place else first["msg"])


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = pages.error_response(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _broken(request: Request, error: Exception) -> Response:
    """Our own bug: the log has it, whoever asked gets to know that it is not their fault, and nothing more."""
    response = pages.error_response(request, 500, "something broke here; it was noted, please tell the lead")
    public_url = request.app.state.options.public_url
    response.headers.update(
        guard.headers_for(public_url, request.url.path)
    )  # the guard is further in than this
    return response
