"""What goes wrong with a database, told plainly: gave way to others, cannot be reached, or is our own mistake."""

import contextlib
import sqlite3
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from prefloop.interfaces import Unavailable

RETRIED_STATES = frozenset({"40001", "40P01"})
"""Of PostgreSQL: serialisation failure, deadlock."""
POSTGRES_OUT_OF_ORDER = frozenset({"08", "53", "57", "58"})
"""Classes of its errors: no connection, no disk or memory, shut down, input and output."""
SQLITE_OUT_OF_ORDER = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
    }
)


class TryAgain(Unavailable):
    """What was wanted is being changed by others at this moment; `Database.write` begins anew a few times."""


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Raises TryAgain for a transaction that gave way to another one, Unavailable for a store that cannot be reached."""
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in RETRIED_STATES:
            raise TryAgain("others were writing the same at this moment; try again") from error
        if error.connection_invalidated or is_out_of_order(error):
            raise unavailable(error) from error
        raise
    except PoolTimeout as error:
        raise Unavailable("the label store has too much to do; try again in a moment") from error


def is_out_of_order(error: DBAPIError) -> bool:
    """Whether the disk, the server or the way to it is to blame, and not the statement."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in SQLITE_OUT_OF_ORDER
    state = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, OperationalError) and (not state or state[:2] in POSTGRES_OUT_OF_ORDER)


def unavailable(error: Exception) -> Unavailable:
    reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
    return Unavailable(f"the label store cannot be reached or written: {reason}")
