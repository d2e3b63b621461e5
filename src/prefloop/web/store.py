"""From a request to the store, without blocking the server's loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection

from prefloop.labels.database import Database

T = TypeVar("T")


def database_of(request: Request) -> Database:
    """The store that the app was made over."""
    return request.app.state.database


async def write(request: Request, work: Callable[[Connection], T]) -> T:
    """Runs `work` in a transaction; returns after the commit."""
    database = database_of(request)
    if database.is_sqlite:
        return await asyncio.wrap_future(database.write_soon(work))
    return await run_in_threadpool(database.write, work)


async def read(request: Request, work: Callable[[Connection], T]) -> T:
    """Runs `work` on one state of the store."""
    return await run_in_threadpool(database_of(request).read, work)
