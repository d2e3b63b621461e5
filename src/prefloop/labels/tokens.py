"""API tokens: how programs come in. Shown once, stored as SHA-256, scoped, expiring, revocable."""

import secrets
from collections.abc import Sequence
from typing import Literal, get_args

import sqlalchemy as sa

from prefloop.labels.accounts import MINUTE_MS, token_hash
from prefloop.labels.audit import audit
from prefloop.labels.errors import Invalid, NotFound
from prefloop.labels.people import find_person
from prefloop.labels.schema import annotator, api_token

Scope = Literal["tasks:read", "judge:write", "export:read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
DAY_MS = 24 * 60 * MINUTE_MS
LONGEST_DAYS = 366
PREFIX = "pfl_"
"""Lets scanners of leaked secrets know it."""


def make_token(
    connection: sa.Connection,
    now: int,
    person_id: str,
    *,
    actor: str,
    name: str,
    scopes: Sequence[str],
    days: int = 90,
) -> tuple[str, str]:
    """A new token of a person: its id, and the token, which is stored nowhere. Raises Invalid, NotFound."""
    find_person(connection, id=person_id)
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise Invalid(f"scope {unknown[0]!r}: choose among {', '.join(SCOPES)}")
    if not scopes:
        raise Invalid("scopes: choose at least one")
    if not 1 <= days <= LONGEST_DAYS:
        raise Invalid(f"days {days}: a token is good for 1 to {LONGEST_DAYS} days")
    if not name.strip().isprintable() or not 1 <= len(name.strip()) <= 80:
        raise Invalid("name: say in 1 to 80 characters what the token is for")
    token, id = PREFIX + secrets.token_urlsafe(32), secrets.token_hex(8)
    connection.execute(
        sa.insert(api_token).values(
            token_hash=token_hash(token),
            id=id,
            annotator_id=person_id,
            name=name.strip(),
            scopes=sorted(set(scopes)),
            created_at=now,
            expires_at=now + days * DAY_MS,
        )
    )
    audit(connection, now, actor, "token.make", id, {"person": person_id, "scopes": sorted(set(scopes))})
    return id, token


def find_token(connection: sa.Connection, now: int, token: str) -> sa.Row | None:
    """The active person of a token that is good, with its `scopes`, `token_id` and `used_at`."""
    return connection.execute(
        sa.select(annotator, api_token.c.scopes, api_token.c.id.label("token_id"), api_token.c.used_at)
        .join(api_token, api_token.c.annotator_id == annotator.c.id)
        .where(
            api_token.c.token_hash == token_hash(token),
            api_token.c.revoked_at.is_(None),
            api_token.c.expires_at > now,
            annotator.c.state == "active",
        )
    ).first()


def touch_token(connection: sa.Connection, now: int, token_id: str) -> None:
    """Notes that a token is in use."""
    connection.execute(sa.update(api_token).where(api_token.c.id == token_id).values(used_at=now))


def revoke_token(connection: sa.Connection, now: int, token_id: str, *, actor: str) -> None:
    """Ends a token; again is the same. Raises NotFound."""
    row = connection.execute(sa.select(api_token).where(api_token.c.id == token_id)).first()
    if row is None:
        raise NotFound("there is no such token")
    if row.revoked_at is None:
        connection.execute(sa.update(api_token).where(api_token.c.id == token_id).values(revoked_at=now))
        audit(connection, now, actor, "token.revoke", token_id)


def list_tokens(connection: sa.Connection, *, person_id: str = "") -> Sequence[sa.Row]:
    """Tokens, newest first, with the name of their person; never what could be used."""
    wanted = [api_token.c.annotator_id == person_id] if person_id else []
    return connection.execute(
        sa.select(
            api_token.c.id,
            api_token.c.name,
            api_token.c.scopes,
            api_token.c.annotator_id,
            api_token.c.created_at,
            api_token.c.expires_at,
            api_token.c.revoked_at,
            api_token.c.used_at,
            annotator.c.name.label("person"),
        )
        .join(annotator, annotator.c.id == api_token.c.annotator_id)
        .where(*wanted)
        .order_by(api_token.c.created_at.desc())
    ).all()
