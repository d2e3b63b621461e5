"""The one writer of an SQLite file: a thread that commits up to 64 requests together.

Each has a savepoint of its own, so that a failure takes back itself and not its neighbours; everybody is answered after
the commit.
"""

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from prefloop.interfaces import Unavailable
from prefloop.labels.faults import is_out_of_order, unavailable

T = TypeVar("T")
Work = Callable[[sa.Connection], T]
MOST_IN_A_COMMIT = 64


@dataclass(frozen=True)
class _Request:
    work: Work[Any]
    future: "Future[Any]"


class Writer:
    """One thread, one connection, many requests a commit."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._is_closed = False
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="label-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T]) -> "Future[T]":
        assert threading.current_thread() is not self._thread, "a write within a write would wait for itself"
        future: Future[T] = Future()
        with self._door:  # nothing may come after the end mark, where nobody would answer it
            if self._is_closed:
                raise Unavailable("the label store is being closed; try again when it is back")
            self._queue.put(_Request(work, future))
        return future

    def close(self) -> None:
        with self._door:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        connection = None
        while (batch := self._next_batch()) is not None:
            # who has gone meanwhile, with a closed browser, asks for nothing any more
            wanted = [one for one in batch if one.future.set_running_or_notify_cancel()]
            try:
                if connection is None:
                    connection = self._engine.connect().execution_options(prefloop_writes=True)
                outcomes = _committed(connection, wanted)
            except BaseException as error:  # noqa: BLE001  whatever it is, nobody may wait for ever
                told = (
                    unavailable(error)
                    if isinstance(error, (SQLAlchemyError, sqlite3.Error, OSError))
                    else error
                )
                outcomes = [(None, told)] * len(wanted)
                connection = _thrown_away(connection)  # in whatever transaction it was
            for one, (result, error) in zip(wanted, outcomes, strict=True):
                if error is None:
                    one.future.set_result(result)
                else:
                    one.future.set_exception(error)
        _thrown_away(connection)

    def _next_batch(self) -> list[_Request] | None:
        """What waits, up to a limit; None when the writer is closed."""
        if (first := self._queue.get()) is None:
            return None
        batch = [first]
        with contextlib.suppress(queue.Empty):
            while len(batch) < MOST_IN_A_COMMIT:
                if (one := self._queue.get_nowait()) is None:
                    self._queue.put(None)  # close after this batch
                    break
                batch.append(one)
        return batch


Outcome = tuple[Any, BaseException | None]


def _committed(connection: sa.Connection, batch: list[_Request]) -> list[Outcome]:
    """What became of each request, once that is on the disk. Raises where nothing of the batch is."""
    with connection.begin():
        # straight to the driver: savepoints of SQLAlchemy cost as much as two statements each
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        return [_outcome(connection, raw, one.work) for one in batch]


def _thrown_away(connection: sa.Connection | None) -> None:
    if connection is not None:
        with contextlib.suppress(SQLAlchemyError):
            connection.invalidate()
        connection.close()


def _outcome(connection: sa.Connection, raw: sqlite3.Connection, work: Work[Any]) -> Outcome:
    """What the work returns, or raises; then nothing of it is kept. Raises where nothing of the batch is."""
    raw.execute("SAVEPOINT request")
    try:
        result = work(connection)
    except BaseException as error:
        if not raw.in_transaction:  # where the disk is full, SQLite may have rolled back everybody
            raise
        raw.execute("ROLLBACK TO request")
        raw.execute("RELEASE request")
        if isinstance(error, DBAPIError) and is_out_of_order(error):
            return None, unavailable(error)
        return None, error
    raw.execute("RELEASE request")
    return result, None
