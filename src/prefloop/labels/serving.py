"""Where the server of a label store is: it leaves its address in the store, and who needs it asks whether it answers."""

import json
import urllib.error
import urllib.request

import sqlalchemy as sa

from prefloop.labels.database import database_url
from prefloop.labels.schema import setting

KEY = "server"
HEALTH_PATH = "/health"
HEALTH = {"prefloop": "labels"}
"""What our server says there, and no other."""
PATIENCE_S = 1.0


def announce(connection: sa.Connection, url: str) -> None:
    """Leaves the address of a server that has started."""
    withdraw(connection)
    connection.execute(sa.insert(setting).values(key=KEY, value=url))


def withdraw(connection: sa.Connection) -> None:
    """Takes the address back."""
    connection.execute(sa.delete(setting).where(setting.c.key == KEY))


def announced(connection: sa.Connection) -> str | None:
    """The address that was left last; its server may be gone."""
    return connection.execute(sa.select(setting.c.value).where(setting.c.key == KEY)).scalar()


def answers(url: str) -> bool:
    """Whether a labelling server is at this address."""
    try:
        with urllib.request.urlopen(url.rstrip("/") + HEALTH_PATH, timeout=PATIENCE_S) as reply:
            return json.loads(reply.read(1000)) == HEALTH
    except (urllib.error.URLError, ValueError, OSError):
        return False


def shown_place(place: str) -> str:
    """A store as it can be shown: without a password."""
    url = database_url(place)
    return url.database or ":memory:" if url.get_backend_name() == "sqlite" else url.render_as_string()
