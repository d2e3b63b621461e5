"""A PostgreSQL server of one's own for as long as it is needed: a new cluster in a temporary folder, on a socket.

PostgreSQL refuses to run as root, so root lends it to an account that may do nothing else.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

OWNERS = ("postgres", "nobody")
PLACES = ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/local/pgsql/bin")
START_SECONDS = 60


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`; None where PostgreSQL is not installed."""
    named = shutil.which("initdb")
    if named:
        return Path(named).parent
    folders = sorted(
        one for place in PLACES for one in Path("/").glob(place.lstrip("/")) if (one / "initdb").exists()
    )
    return folders[-1] if folders else None


@contextlib.contextmanager
def cluster(*, settings: Sequence[str] = ()) -> Iterator[str]:
    """A running server; yields the URL of its empty database, which ends with the database's name.

    `settings` are `name=value` as in postgresql.conf.
    """
    folder = programs()
    if folder is None:
        raise RuntimeError("PostgreSQL is not installed: no initdb in the PATH")
    owner = _owner()
    home = Path(tempfile.mkdtemp(prefix="prefloop-postgres-"))
    if owner is not None:
        os.chown(home, owner, -1)
    as_owner = {"user": owner, "cwd": home, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    data = home / "data"
    options = [word for one in settings for word in ("-c", one)]
    try:
        made = [
            folder / "initdb",
            "-D",
            data,
            "-U",
            "prefloop",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        subprocess.run(made, check=True, **as_owner)
        command = [folder / "postgres", "-D", data, "-k", home, "-c", "listen_addresses=", *options]
        server = subprocess.Popen(command, **{**as_owner, "stderr": subprocess.DEVNULL})
        try:
            _await(home, server)
            yield f"postgresql://prefloop@/postgres?host={home}"
        finally:
            server.send_signal(signal.SIGINT)  # ends connections, and then itself in order
            server.wait()
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def new_database(server_url: str, name: str, *, template: str = "template1") -> Iterator[str]:
    """A database of this name, a copy of `template`, dropped afterwards; yields its URL."""
    import sqlalchemy as sa

    from prefloop.labels.database import database_url

    engine = sa.create_engine(database_url(server_url), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        yield server_url.replace("/postgres?", f"/{name}?")
        with engine.connect() as connection:
            connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        engine.dispose()


def _owner() -> int | None:
    if os.getuid() != 0:
        return None
    known = {one.pw_name: one.pw_uid for one in pwd.getpwall()}
    return next(known[name] for name in OWNERS if name in known)


def _await(home: Path, server: "subprocess.Popen[bytes]") -> None:
    import psycopg

    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(host=str(home), user="prefloop", dbname="postgres").close()
            return
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start (exit status {server.returncode})")
        time.sleep(0.05)
