"""Opening the label store, and writing to it so that nothing acknowledged is ever lost.

SQLite has one writer: a thread that takes requests from a queue and commits up to 64 of them together, each in a
savepoint of its own, so that a failure takes back itself and not its neighbours. Many writers would wait for seconds on
SQLite's lock, and one commit a request costs a disk flush each. PostgreSQL has as many writers as it has clients.
"""

import contextlib
import random
import secrets
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from prefloop.interfaces import InputError, Unavailable
from prefloop.labels import audit, schema
from prefloop.labels.faults import TryAgain, told_plainly
from prefloop.labels.writer import Work, Writer

T = TypeVar("T")
RETRIES = 8
"""Of a transaction that gave way to another one."""
FIRST_PAUSE_S = 0.01
"""How long it waits at most before it begins anew; twice as long each time."""
CONNECT_SECONDS = 10
CACHE = "cache_size=-16384"
"""Of a connection, in KiB."""
BUSY_SECONDS = 30
"""How long a process waits for another one that writes to the same SQLite file."""


class Database:
    """An open label store. Safe to use from many threads; `close` it."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        self._clock = clock
        # the server's clock rules where there is a server: hosts may differ, and all of them hand out leases
        self._ahead = 0.0 if self.is_sqlite or clock is not time.time else _seconds_ahead(engine)
        self._writer = Writer(engine) if self.is_sqlite else None

    def now(self) -> int:
        """Milliseconds since 1970, by the one clock that leases are measured with."""
        return int((self._clock() + self._ahead) * 1000)

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
        with self.snapshot() as connection:
            return work(connection)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """A connection that sees one state of the store for as long as it is open."""
        with told_plainly(), self.engine.connect() as connection:
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
        for attempt in range(RETRIES):
            with contextlib.suppress(TryAgain), told_plainly(), self.engine.begin() as connection:
                return work(connection)
            time.sleep(random.uniform(0, FIRST_PAUSE_S * 2**attempt))
        with told_plainly(), self.engine.begin() as connection:
            return work(connection)


def _seconds_ahead(engine: sa.Engine) -> float:
    """How far the server's clock is ahead of this host's."""
    with engine.connect() as connection:
        before = time.time()
        there = connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
        return float(there) - (before + time.time()) / 2


# --- opening ---------------------------------------------------------------------------------------------------------


def database_url(place: str) -> sa.URL:
    """The URL of a store: a database URL as it is, or the path of a SQLite file. Raises InputError for another database."""
    if "://" not in place:
        return sa.URL.create("sqlite", database=str(Path(place).expanduser()))
    try:
        url = sa.make_url(place)
    except ArgumentError as error:
        raise InputError(f"{place}: not a database URL; give one like postgresql://host/name") from error
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql") or (
        backend == "sqlite" and url.database in (None, "", ":memory:")
    ):
        raise InputError(f"{place}: give the path of an SQLite file or a postgresql:// URL")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def open_database(place: str, *, clock: Callable[[], float] = time.time, pool_size: int = 16) -> Database:
    """Opens a store, made or brought up to date where it must be; an old SQLite file is copied beside itself before.

    Raises InputError where there can be none, Unavailable where its server does not answer.
    """
    url = database_url(place)
    is_sqlite = url.get_backend_name() == "sqlite"
    engine = None
    try:
        engine = _sqlite_engine(url, pool_size) if is_sqlite else _postgres_engine(url, pool_size)
        upgrade(engine)
        return Database(engine, clock)
    except ModuleNotFoundError as error:
        raise InputError(f"{url.render_as_string()}: {error}; pip install 'prefloop[postgresql]'") from error
    except (SQLAlchemyError, OSError) as error:
        if engine is not None:
            engine.dispose()
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        if is_sqlite and not (isinstance(error, DBAPIError) and "locked" in reason):
            raise InputError(
                f"{url.database}: {reason}; name another file, or a folder to write in"
            ) from error
        raise Unavailable(f"{url.render_as_string()}: {reason}") from error


def _postgres_engine(url: sa.URL, pool_size: int) -> sa.Engine:
    # no more than the pool: four workers of it fit what a server allows when nobody has set anything
    return sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_SECONDS},
        hide_parameters=True,
    )


def _sqlite_engine(url: sa.URL, pool_size: int) -> sa.Engine:
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=-1,
        poolclass=sa.pool.QueuePool,
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
        hide_parameters=True,  # what people say and what lets them in stays out of errors and logs
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, record: object) -> None:
        # transactions begin where `_begin` says, not where the driver guesses
        connection.isolation_level = None
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":  # some network folders have no shared memory
            raise OSError(f"SQLite cannot keep a write-ahead log here (journal mode {mode})")
        for pragma in ("synchronous=FULL", "fullfsync=ON", "foreign_keys=ON", "temp_store=MEMORY", CACHE):
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
    lock = FileLock(f"{Path(url.database or '').resolve()}.server.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout as error:
        raise InputError(
            f"{url.database}: another server has this store open, and SQLite takes one; stop it, or use PostgreSQL"
        ) from error


# --- migrations ------------------------------------------------------------------------------------------------------

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(engine: sa.Engine) -> None:
    """Brings the tables up to date. Raises InputError for a store of a newer prefloop, or a database of something else."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS))
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        others = [] if current else sa.inspect(connection).get_table_names()
    if current == scripts.get_current_head():
        return
    place = engine.url.render_as_string()
    if others:
        raise InputError(
            f"{place}: has tables of something else ({others[0]}); give the labels a database of their own"
        )
    if current is not None and current not in {one.revision for one in scripts.walk_revisions()}:
        raise InputError(f"{place}: written by a newer prefloop (schema {current}); update prefloop")
    if current is not None:
        back_up(engine)
    _migrate(engine)


def _migrate(engine: sa.Engine) -> None:
    from alembic import command
    from alembic.config import Config

    options = Config()
    options.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with (
        engine.connect().execution_options(prefloop_writes=True) as connection,
        _references_checked_last(connection),
        connection.begin(),
    ):
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('prefloop labels'))"))
        options.attributes["connection"] = connection
        command.upgrade(options, "head")
        audit.protect(connection)  # again, where a migration made the table anew
        has_secret = sa.select(schema.setting.c.key).where(schema.setting.c.key == "secret")
        if connection.execute(has_secret).first() is None:
            connection.execute(schema.setting.insert().values(key="secret", value=secrets.token_hex(32)))
        if engine.dialect.name == "sqlite" and (
            broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        ):
            raise InputError(
                f"{engine.url.database}: the upgrade would leave rows of {broken[0]} without their parents"
            )


@contextlib.contextmanager
def _references_checked_last(connection: sa.Connection) -> Iterator[None]:
    """SQLite changes a table by making it anew and dropping the old one, which would take along what refers to it."""
    raw = connection.connection.dbapi_connection
    if connection.dialect.name != "sqlite" or raw is None:
        yield
        return
    raw.execute("PRAGMA foreign_keys=OFF")  # before the transaction; within one it does nothing
    try:
        yield
    finally:
        raw.execute("PRAGMA foreign_keys=ON")


def back_up(engine: sa.Engine) -> Path | None:
    """A copy of an SQLite store beside it; PostgreSQL has its own tools."""
    if engine.dialect.name != "sqlite":
        return None
    target = Path(f"{engine.url.database}.before-upgrade-{time.strftime('%Y%m%d-%H%M%S')}")
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        raw.execute("VACUUM INTO ?", (str(partial),))  # in no transaction
    return partial.replace(target)


_secrets: "weakref.WeakKeyDictionary[sa.Engine, str]" = weakref.WeakKeyDictionary()
"""It never changes, and every claim needs it."""


def secret(connection: sa.Connection) -> str:
    """The store's own secret, which presentation orders are drawn with."""
    if connection.engine not in _secrets:
        wanted = sa.select(schema.setting.c.value).where(schema.setting.c.key == "secret")
        _secrets[connection.engine] = connection.execute(wanted).scalar_one()
    return _secrets[connection.engine]
