"""Opening the label store, and writing to it so that nothing acknowledged is ever lost.

SQLite has one writer: a thread that takes requests from a queue and commits up to 64 of them together, each in a
savepoint of its own, so that a failure takes back itself and not its neighbours. Many writers would wait for seconds on
SQLite's lock, and one commit a request costs a disk flush each. PostgreSQL has as many writers as it has clients.
"""

import contextlib
import queue
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from prefloop.interfaces import InputError, Unavailable
from prefloop.labels import audit, schema

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

MOST_IN_A_COMMIT = 64
RETRIES = 5
"""Of a transaction that PostgreSQL ended to end a deadlock."""
RETRIED_STATES = frozenset({"40001", "40P01"})
BUSY_SECONDS = 30
"""How long a process waits for another one that writes to the same SQLite file."""


class Database:
    """An open label store. Safe to use from many threads; `close` it."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        self._clock = clock
        self._writer = _Writer(engine) if self.is_sqlite else None

    def now(self) -> int:
        """Milliseconds since 1970, by the one clock that leases are measured with."""
        return int(self._clock() * 1000)

    def write(self, work: Work[T]) -> T:
        """Runs `work` in a transaction and returns after the commit. Raises what it raises; nothing of it is kept then."""
        if self._writer is not None:
            return self._writer.submit(work).result()
        return self._write_retrying(work)

    def write_soon(self, work: Work[T]) -> "Future[T]":
        """Like `write`, at once; the future has the result after the commit. SQLite only."""
        assert self._writer is not None
        return self._writer.submit(work)

    def read(self, work: Work[T]) -> T:
        """Runs `work` on one consistent state of the store."""
        with self.engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                return work(connection)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """A connection that sees one state of the store for as long as it is open."""
        with self.engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Finishes what is queued."""
        if self._writer is not None:
            self._writer.close()
        self.engine.dispose()

    def _write_retrying(self, work: Work[T]) -> T:
        for attempt in range(RETRIES + 1):
            try:
                with self.engine.begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if state not in RETRIED_STATES or attempt == RETRIES:
                    raise
                time.sleep(0.01 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


class _Writer:
    """One thread, one connection, many requests a commit."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="label-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T]) -> "Future[T]":
        if self._closed:
            raise Unavailable("the label store is being closed; try again when it is back")
        future: Future[T] = Future()
        self._queue.put((work, future))
        return future

    def close(self) -> None:
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        with self._engine.connect().execution_options(prefloop_writes=True) as connection:
            while batch := self._next_batch():
                self._commit(connection, batch)

    def _next_batch(self) -> list[tuple[Work[Any], Future[Any]]]:
        """What waits, up to a limit; empty when the writer is closed."""
        if (first := self._queue.get()) is None:
            return []
        batch = [first]
        with contextlib.suppress(queue.Empty):
            while len(batch) < MOST_IN_A_COMMIT:
                if (one := self._queue.get_nowait()) is None:
                    self._queue.put(None)  # close after this batch
                    break
                batch.append(one)
        return batch

    def _commit(self, connection: sa.Connection, batch: list[tuple[Work[Any], Future[Any]]]) -> None:
        results: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with connection.begin():
                for work, future in batch:
                    results.append((future, *_outcome(connection, work)))
        except (
            SQLAlchemyError,
            OSError,
        ) as error:  # the disk is full or gone: nobody in this batch was stored
            for _, future in batch:
                future.set_exception(Unavailable(f"the label store cannot be written: {error}"))
            return
        for future, result, error in results:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


def _outcome(connection: sa.Connection, work: Work[Any]) -> tuple[Any, BaseException | None]:
    """What the work returns, or raises; then nothing of it is kept."""
    savepoint = connection.begin_nested()
    try:
        result = work(connection)
    except BaseException as error:  # noqa: BLE001  it is raised again where the result is waited for
        savepoint.rollback()
        return None, error
    savepoint.commit()
    return result, None


# --- opening ---------------------------------------------------------------------------------------------------------


def database_url(place: str) -> sa.URL:
    """The URL of a store: a database URL as it is, or the path of a SQLite file."""
    if "://" in place:
        url = sa.make_url(place)
        if url.get_backend_name() == "postgresql" and url.drivername == "postgresql":
            return url.set(drivername="postgresql+psycopg")
        return url
    return sa.URL.create("sqlite", database=str(Path(place).expanduser()))


def open_database(place: str, *, clock: Callable[[], float] = time.time, pool_size: int = 16) -> Database:
    """Opens a store, made or brought up to date where it must be; an old SQLite file is copied beside itself before.

    Raises InputError where there can be none, Unavailable where its server does not answer.
    """
    url = database_url(place)
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(f"{place}: give the path of an SQLite file or a postgresql:// URL")
    try:
        engine = (
            _sqlite_engine(url, pool_size)
            if url.get_backend_name() == "sqlite"
            else _postgres_engine(url, pool_size)
        )
        upgrade(engine)
    except ModuleNotFoundError as error:
        raise InputError(f"{url.render_as_string()}: {error}; pip install 'prefloop[postgresql]'") from error
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        raise Unavailable(f"{url.render_as_string()}: {reason}") from error
    return Database(engine, clock)


def _postgres_engine(url: sa.URL, pool_size: int) -> sa.Engine:
    return sa.create_engine(
        url, pool_size=pool_size, max_overflow=pool_size, pool_pre_ping=True, hide_parameters=True
    )


def _sqlite_engine(url: sa.URL, pool_size: int) -> sa.Engine:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=-1,
        poolclass=sa.pool.QueuePool,
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
        hide_parameters=True,  # what people say and what lets them in stays out of errors and logs
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, record: object) -> None:
        connection.isolation_level = (
            None  # transactions begin where `_begin` says, not where the driver guesses
        )
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "cache_size=-65536",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # a writer takes its lock at once; taking it at the first write fails where another one wrote since
        writes = connection.get_execution_options().get("prefloop_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def the_only_server(url: sa.URL) -> contextlib.AbstractContextManager[object]:
    """Holds what only one web server of an SQLite store may hold. Raises InputError where another one has it."""
    if url.get_backend_name() != "sqlite":
        return contextlib.nullcontext()
    lock = FileLock(f"{url.database}.server.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(
            f"{url.database}: another server has this store open, and SQLite takes one; stop it, or use PostgreSQL"
        ) from error


# --- migrations ------------------------------------------------------------------------------------------------------

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(engine: sa.Engine) -> None:
    """Brings the tables up to date; says InputError for a store of a newer prefloop."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS))
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    head = scripts.get_current_head()
    if current == head:
        return
    known = {one.revision for one in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise InputError(
            f"{engine.url.render_as_string()}: written by a newer prefloop (schema {current}); update prefloop"
        )
    if current is not None:
        back_up(engine)
    _migrate(engine)


def _migrate(engine: sa.Engine) -> None:
    from alembic import command
    from alembic.config import Config

    options = Config()
    options.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.connect().execution_options(prefloop_writes=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('prefloop labels'))"))
        options.attributes["connection"] = connection
        command.upgrade(options, "head")
        audit.protect(connection)  # again, where a migration made the table anew
        if (
            connection.execute(
                sa.select(schema.setting.c.key).where(schema.setting.c.key == "secret")
            ).first()
            is None
        ):
            connection.execute(schema.setting.insert().values(key="secret", value=secrets.token_hex(32)))


def back_up(engine: sa.Engine) -> Path | None:
    """A copy of an SQLite store beside it; PostgreSQL has its own tools."""
    if engine.dialect.name != "sqlite" or not engine.url.database or engine.url.database == ":memory:":
        return None
    target = Path(f"{engine.url.database}.before-upgrade-{time.strftime('%Y%m%d-%H%M%S')}")
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    with engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")  # VACUUM runs in no transaction
        connection.exec_driver_sql("VACUUM INTO ?", (str(partial),))
        connection.exec_driver_sql("BEGIN")
    shutil.move(partial, target)
    return target


_secrets: "weakref.WeakKeyDictionary[sa.Engine, str]" = weakref.WeakKeyDictionary()
"""It never changes, and every claim needs it."""


def secret(connection: sa.Connection) -> str:
    """The store's own secret, which presentation orders are drawn with."""
    if connection.engine not in _secrets:
        wanted = sa.select(schema.setting.c.value).where(schema.setting.c.key == "secret")
        _secrets[connection.engine] = connection.execute(wanted).scalar_one()
    return _secrets[connection.engine]
