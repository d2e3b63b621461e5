"""Webhooks: another program is told what happens in a project.

An event is put down in the transaction that makes it happen, and sent afterwards: none is lost and none is made up. Each
is signed as by Standard Webhooks (HMAC-SHA256 over id, time and body), sent again with growing pauses, and put aside
after the last attempt, from where it can be sent anew. Who sends is given: this room knows no network.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import sqlalchemy as sa

from prefloop.labels.audit import audit
from prefloop.labels.database import Database
from prefloop.labels.errors import Invalid, NotFound
from prefloop.labels.publish import project_config
from prefloop.labels.schema import delivery, webhook

EVENTS = (
    "round.triggered",
    "round.frozen",
    "round.promoted",
    "round.rejected",
    "round.rolled_back",
)
TEST_EVENT = "webhook.test"
PAUSES_S = (10, 60, 5 * 60, 30 * 60, 2 * 3600, 6 * 3600)
"""Before the second, third … attempt; after the last one an event is dead."""
SENDING_MS = 60_000
"""How long a process has for a delivery before another one may try."""
AT_ONCE = 5
SECRET_PREFIX = "whsec_"
LONGEST_ERROR = 300


@dataclass(frozen=True)
class Envelope:
    """What goes to a receiver."""

    url: str
    body: bytes
    headers: Mapping[str, str]


class UndeliveredError(Exception):
    """The receiver did not take it; the message says why."""


Send = Callable[[Envelope], None]
"""Sends, or raises UndeliveredError."""


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """The signature of Standard Webhooks 1.0: `v1,` and the base64 of the HMAC of `id.timestamp.body`."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


# --- webhooks of a project -------------------------------------------------------------------------------------------


def add_webhook(
    connection: sa.Connection, now: int, project_id: str, url: str, events: Sequence[str], *, actor: str
) -> tuple[str, str]:
    """A new webhook; returns its id and the secret, for the receiver. Raises NotFound, Invalid."""
    project_config(connection, project_id)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or len(url) > 2000:
        raise Invalid("url: give an http or https address without a user name")
    if unknown := sorted(set(events) - set(EVENTS)):
        raise Invalid(f"event {unknown[0]!r}: choose among {', '.join(EVENTS)}")
    if not events:
        raise Invalid("events: choose at least one")
    id = secrets.token_hex(8)
    secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(24)).decode()
    connection.execute(
        sa.insert(webhook).values(
            id=id, project_id=project_id, url=url, secret=secret, events=sorted(set(events)), created_at=now
        )
    )
    audit(connection, now, actor, "webhook.add", id, {"project": project_id, "host": parts.hostname})
    return id, secret


def set_webhook_state(
    connection: sa.Connection, now: int, webhook_id: str, state: Literal["active", "disabled"], *, actor: str
) -> None:
    """Switches a webhook on or off. Raises NotFound."""
    _webhook(connection, webhook_id)
    connection.execute(sa.update(webhook).where(webhook.c.id == webhook_id).values(state=state))
    audit(connection, now, actor, f"webhook.{state}", webhook_id)


def list_webhooks(connection: sa.Connection) -> Sequence[sa.Row]:
    """All webhooks, with how many events wait and how many are dead; never their secrets."""

    def count(state: str) -> sa.ScalarSelect[int]:
        of_it = sa.select(sa.func.count()).where(
            delivery.c.webhook_id == webhook.c.id, delivery.c.state == state
        )
        return of_it.scalar_subquery()

    return connection.execute(
        sa.select(
            webhook.c.id,
            webhook.c.project_id,
            webhook.c.url,
            webhook.c.events,
            webhook.c.state,
            count("waiting").label("waiting"),
            count("delivered").label("delivered"),
            count("dead").label("dead"),
        ).order_by(webhook.c.project_id, webhook.c.created_at)
    ).all()


def last_deliveries(connection: sa.Connection, limit: int = 50) -> Sequence[sa.Row]:
    """The newest events with where they went."""
    return connection.execute(
        sa.select(delivery, webhook.c.url, webhook.c.project_id)
        .join(webhook, webhook.c.id == delivery.c.webhook_id)
        .order_by(delivery.c.created_at.desc(), delivery.c.id)
        .limit(limit)
    ).all()


# --- events ----------------------------------------------------------------------------------------------------------


def announce(
    connection: sa.Connection, now: int, project_id: str, event: str, data: Mapping[str, Any]
) -> int:
    """Puts an event down for all webhooks of a project that want it; returns for how many."""
    wanting = connection.execute(
        sa.select(webhook.c.id, webhook.c.events).where(
            webhook.c.project_id == project_id, webhook.c.state == "active"
        )
    ).all()
    chosen = [row.id for row in wanting if event in row.events]
    for webhook_id in chosen:
        _put_down(connection, now, webhook_id, event, {"project": project_id, **data})
    return len(chosen)


def send_test(connection: sa.Connection, now: int, webhook_id: str) -> None:
    """Puts down an event that only this webhook gets. Raises NotFound."""
    row = _webhook(connection, webhook_id)
    _put_down(connection, now, webhook_id, TEST_EVENT, {"project": row.project_id})


def send_again(connection: sa.Connection, now: int, delivery_id: str, *, actor: str) -> None:
    """Gives a dead event all its attempts anew. Raises NotFound."""
    changed = connection.execute(
        sa.update(delivery)
        .where(delivery.c.id == delivery_id, delivery.c.state == "dead")
        .values(state="waiting", attempts=0, next_at=now)
    )
    if changed.rowcount != 1:
        raise NotFound("there is no such dead event")
    audit(connection, now, actor, "delivery.again", delivery_id)


def _webhook(connection: sa.Connection, webhook_id: str) -> sa.Row:
    row = connection.execute(sa.select(webhook).where(webhook.c.id == webhook_id)).first()
    if row is None:
        raise NotFound("there is no such webhook")
    return row


def _put_down(
    connection: sa.Connection, now: int, webhook_id: str, event: str, data: Mapping[str, Any]
) -> None:
    connection.execute(
        sa.insert(delivery).values(
            id=f"msg_{secrets.token_hex(12)}",
            webhook_id=webhook_id,
            event=event,
            body={"type": event, "timestamp": now, "data": dict(data)},
            next_at=now,
            created_at=now,
        )
    )


# --- sending ---------------------------------------------------------------------------------------------------------


def deliver_due(database: Database, send: Send) -> int:
    """Sends what is due, outside of any transaction; returns how many events arrived."""
    if not database.read(lambda connection: _is_due(connection, database.now())):
        return 0
    arrived = 0
    for row in database.write(lambda connection: _take_due(connection, database.now())):
        error = _try_to_send(row, database.now(), send)
        database.write(lambda connection, row=row, error=error: _note(connection, database.now(), row, error))
        arrived += error is None
    return arrived


def _due(now: int) -> sa.Select:
    """Events that are to be sent, with where to, those that wait longest first."""
    return (
        sa.select(delivery, webhook.c.url, webhook.c.secret)
        .join(webhook, webhook.c.id == delivery.c.webhook_id)
        .where(delivery.c.state == "waiting", delivery.c.next_at <= now, webhook.c.state == "active")
        .order_by(delivery.c.next_at)
    )


def _is_due(connection: sa.Connection, now: int) -> bool:
    return connection.execute(_due(now).limit(1)).first() is not None


def _take_due(connection: sa.Connection, now: int) -> Sequence[sa.Row]:
    """Events that this process sends now; a process that dies over it leaves them to others after a minute."""
    rows = connection.execute(_due(now).limit(AT_ONCE).with_for_update(skip_locked=True, of=delivery)).all()
    connection.execute(
        sa.update(delivery)
        .where(delivery.c.id.in_([row.id for row in rows]))
        .values(next_at=now + SENDING_MS, attempts=delivery.c.attempts + 1)
    )
    return rows


def _try_to_send(row: sa.Row, now: int, send: Send) -> str | None:
    body = json.dumps(row.body, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")
    timestamp = now // 1000
    headers = {
        "content-type": "application/json",
        "webhook-id": row.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(row.secret, row.id, timestamp, body),
    }
    try:
        send(Envelope(row.url, body, headers))
    except UndeliveredError as error:
        return str(error)[:LONGEST_ERROR] or "not delivered"
    return None


def _note(connection: sa.Connection, now: int, row: sa.Row, error: str | None) -> None:
    attempts = row.attempts + 1
    if error is None:
        values = {"state": "delivered", "error": ""}
    elif attempts > len(PAUSES_S):
        values = {"state": "dead", "error": error}
    else:
        values = {"error": error, "next_at": now + PAUSES_S[attempts - 1] * 1000}
    connection.execute(sa.update(delivery).where(delivery.c.id == row.id).values(values))
