"""Who is asking, and may they: sessions, CSRF tokens, API tokens, and the headers that keep a browser from harm."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

import sqlalchemy as sa
from fastapi import Request

from prefloop.labels.errors import Forbidden, LabelError
from prefloop.labels.people import Person, person_of
from prefloop.labels.schema import annotator, api_token, session
from prefloop.web.store import database_of, read

COOKIE = "prefloop_session"
CSRF_HEADER = "x-csrf-token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_MS = 12 * 60 * 60 * 1000
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self'; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'self'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
RANK = {"judge": 0, "annotator": 1, "reviewer": 2, "lead": 3, "admin": 4}


class Unauthorised(LabelError):
    """Nobody is logged in."""

    status = 401


@dataclass(frozen=True)
class Limits:
    """Requests a minute."""

    claim: int = 60
    submit: int = 60
    login: int = 5
    chat: int = 20


@dataclass(frozen=True)
class Visitor:
    """Who sends a request."""

    person: Person
    csrf: str
    """Token of their session; empty for API tokens."""
    scopes: frozenset[str] | None = None
    """What an API token may do; None for a session."""


def token_hash(token: str) -> str:
    """What is stored of a token: it cannot be used to log in."""
    return hashlib.sha256(token.encode()).hexdigest()


async def visitor(request: Request) -> Visitor:
    """The person behind a request. Raises Unauthorised, and Forbidden for an unsafe request without its CSRF token."""
    header = request.headers.get("authorization", "")
    if header.lower().startswith("bearer "):
        return await _by_api_token(request, header[7:].strip())
    cookie = request.cookies.get(COOKIE)
    if not cookie:
        raise Unauthorised("log in first")
    now = database_of(request).now()
    row = await read(request, lambda connection: _session_row(connection, token_hash(cookie), now))
    if row is None:
        raise Unauthorised("your session has ended; log in again")
    if request.method not in SAFE_METHODS:
        await check_csrf(request, row.csrf)
    return Visitor(person_of(row), row.csrf)


async def check_csrf(request: Request, csrf: str) -> None:
    """Raises Forbidden where an unsafe request does not come from our own pages."""
    origin = request.headers.get("origin")
    if origin is not None and origin.split("://")[-1] != request.headers.get("host"):
        raise Forbidden("this request comes from another site")
    sent = request.headers.get(CSRF_HEADER)
    if sent is None and "form" in request.headers.get("content-type", ""):
        sent = (await request.form()).get("csrf")  # type: ignore[assignment]
    if not isinstance(sent, str) or not hmac.compare_digest(sent, csrf):
        raise Forbidden("the page is too old; load it again")


def _session_row(connection: sa.Connection, hashed: str, now: int) -> sa.Row | None:
    return connection.execute(
        sa.select(annotator, session.c.csrf)
        .join(session, session.c.annotator_id == annotator.c.id)
        .where(session.c.token_hash == hashed, session.c.expires_at > now, annotator.c.state == "active")
    ).first()


async def _by_api_token(request: Request, token: str) -> Visitor:
    now = database_of(request).now()

    def find(connection: sa.Connection) -> sa.Row | None:
        return connection.execute(
            sa.select(annotator, api_token.c.scopes)
            .join(api_token, api_token.c.annotator_id == annotator.c.id)
            .where(
                api_token.c.token_hash == token_hash(token),
                api_token.c.revoked_at.is_(None),
                api_token.c.expires_at > now,
                annotator.c.state == "active",
            )
        ).first()

    row = await read(request, find)
    if row is None:
        raise Unauthorised("this token is not known, has expired or was revoked")
    return Visitor(person_of(row), "", frozenset(row.scopes))


def need_scope(asking: Visitor, scope: str) -> None:
    """Raises Forbidden where an API token does not carry the scope."""
    if asking.scopes is not None and scope not in asking.scopes and "admin" not in asking.scopes:
        raise Forbidden(f"this token does not carry the scope {scope}")


def need_role(asking: Visitor, role: str) -> None:
    """Raises Forbidden for who is below this role: annotator, reviewer, lead, admin."""
    if RANK[asking.person.role] < RANK[role]:
        raise Forbidden(f"this needs the role {role}")


def open_session(connection: sa.Connection, now: int, person_id: str) -> str:
    """A new session; returns the token for the cookie, which is stored nowhere."""
    token = secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(session).values(
            token_hash=token_hash(token),
            annotator_id=person_id,
            csrf=secrets.token_urlsafe(24),
            created_at=now,
            seen_at=now,
            expires_at=now + SESSION_MS,
        )
    )
    return token
