"""Who is asking, and may they: sessions, CSRF tokens, API tokens, roles. What needs no store is checked in `guard`."""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response

from prefloop.labels import accounts, tokens
from prefloop.labels.accounts import SESSION_MS, open_session, token_hash
from prefloop.labels.database import secret
from prefloop.labels.errors import Forbidden, LabelError
from prefloop.labels.people import Person, person_of
from prefloop.web.guard import SAFE_METHODS
from prefloop.web.limits import Limits
from prefloop.web.store import database_of, read, write
from prefloop.web.visitors import Visitors

__all__ = [
    "COOKIE",
    "Limits",
    "Unauthorised",
    "Visitor",
    "need_role",
    "need_scope",
    "open_session",
    "scoped",
    "token_hash",
    "visitor",
]

COOKIE = "prefloop_session"
FORM_COOKIE = "prefloop_form"
CSRF_HEADER = "x-csrf-token"
RANK = {"judge": 0, "annotator": 1, "reviewer": 2, "lead": 3, "admin": 4}


class Unauthorised(LabelError):
    """Nobody is logged in."""

    status = 401


@dataclass(frozen=True)
class Visitor:
    """Who sends a request."""

    person: Person
    csrf: str
    """Token of their session; empty for API tokens."""
    scopes: frozenset[str] | None = None
    """What an API token may do; None for a session."""
    opened_by: accounts.OpenedBy = "password"
    """How the session began."""
    opened_at: int = 0


# --- who is asking ---------------------------------------------------------------------------------------------------


async def visitor(request: Request) -> Visitor:
    """The person behind a request. Raises Unauthorised, and Forbidden for an unsafe request without its CSRF token."""
    header = request.headers.get("authorization", "")
    if header.lower().startswith("bearer "):
        if not request.url.path.startswith("/api/"):
            raise Forbidden("API tokens open what is under /api/; log in to see pages")
        return await _remembered(request, "token", header[7:].strip(), _by_api_token)
    token = session_token(request)
    if not token:
        raise Unauthorised("log in first")
    asking = await _remembered(request, "session", token, _by_session)
    if request.method not in SAFE_METHODS:
        await check_csrf(request, asking.csrf)
    return asking


async def _remembered(
    request: Request, kind: str, token: str, find: Callable[[Request, str], Awaitable[Visitor]]
) -> Visitor:
    visitors: Visitors[Visitor] = request.app.state.visitors
    key = f"{kind}/{token_hash(token)}"  # a cookie is no API token, and the other way round
    if (known := visitors.get(key)) is not None:
        return known
    asking = await find(request, token)
    visitors.put(key, asking)
    return asking


async def _by_session(request: Request, token: str) -> Visitor:
    now = database_of(request).now()
    row = await read(request, lambda connection: accounts.find_session(connection, now, token))
    if row is None:
        raise Unauthorised("your session has ended; log in again")
    if now - row.seen_at > accounts.SEEN_EVERY_MS:
        await write(request, lambda connection: accounts.touch_session(connection, now, token))
    return Visitor(person_of(row), row.csrf, opened_by=row.opened_by, opened_at=row.opened_at)


async def _by_api_token(request: Request, token: str) -> Visitor:
    now = database_of(request).now()
    row = await read(request, lambda connection: tokens.find_token(connection, now, token))
    if row is None:
        raise Unauthorised("this token is not known, has expired or was revoked")
    if now - (row.used_at or 0) > accounts.SEEN_EVERY_MS:
        await write(request, lambda connection: tokens.touch_token(connection, now, row.token_id))
    return Visitor(person_of(row), "", frozenset(row.scopes))


async def check_csrf(request: Request, csrf: str) -> None:
    """Raises Forbidden where a request does not carry the token that our own pages carry."""
    sent: object = request.headers.get(CSRF_HEADER)
    if sent is None and "form" in request.headers.get("content-type", ""):
        sent = (await request.form()).get("csrf")
    if not isinstance(sent, str) or not hmac.compare_digest(sent.encode(), csrf.encode()):
        raise Forbidden("the page is too old; load it again")


# --- may they --------------------------------------------------------------------------------------------------------


def need_scope(asking: Visitor, scope: str) -> None:
    """Raises Forbidden where an API token does not carry the scope."""
    if asking.scopes is not None and scope not in asking.scopes and "admin" not in asking.scopes:
        raise Forbidden(f"this token does not carry the scope {scope}")


def scoped(scope: str) -> Callable[[Visitor], Awaitable[Visitor]]:
    """A dependency: who asks, if what they come with carries the scope. It is asked before the body is looked at."""

    async def asking(found: Annotated[Visitor, Depends(visitor)]) -> Visitor:
        need_scope(found, scope)
        return found

    return asking


def need_role(asking: Visitor, role: str) -> None:
    """Raises Forbidden for who is below this role: annotator, reviewer, lead, admin."""
    if RANK[asking.person.role] < RANK[role]:
        raise Forbidden(f"this needs the role {role}")


# --- cookies ---------------------------------------------------------------------------------------------------------


def _is_https(request: Request) -> bool:
    return urlsplit(request.app.state.options.public_url).scheme == "https"


def _cookie_name(request: Request, name: str) -> str:
    # with this prefix a browser takes the cookie from this host alone, and over https alone
    return f"__Host-{name}" if _is_https(request) else name


def session_token(request: Request) -> str:
    """The token of the session cookie; empty without one."""
    return request.cookies.get(_cookie_name(request, COOKIE), "")


def set_session(request: Request, response: Response, token: str) -> None:
    """Gives a browser a session that no script can read."""
    response.set_cookie(
        _cookie_name(request, COOKIE),
        token,
        max_age=SESSION_MS // 1000,
        httponly=True,
        secure=_is_https(request),
        samesite="lax",
        path="/",
    )


def drop_session(request: Request, response: Response) -> None:
    """Takes the session cookie back."""
    response.delete_cookie(
        _cookie_name(request, COOKIE), httponly=True, secure=_is_https(request), samesite="lax", path="/"
    )


async def form_token(request: Request) -> tuple[str, str]:
    """For forms of people who are not logged in yet: the value of their form cookie, and the token that fits it."""
    nonce = request.cookies.get(_cookie_name(request, FORM_COOKIE), "") or secrets.token_urlsafe(24)
    key = await read(request, secret)
    return nonce, hmac.new(key.encode(), f"form/{nonce}".encode(), hashlib.sha256).hexdigest()


def set_form_cookie(request: Request, response: Response, nonce: str) -> None:
    """Remembers which forms this browser was given."""
    response.set_cookie(
        _cookie_name(request, FORM_COOKIE),
        nonce,
        httponly=True,
        secure=_is_https(request),
        samesite="strict",
        path="/",
    )


async def check_form(request: Request) -> None:
    """Dependency of what can be posted without a session. Raises Forbidden where our own form was not used."""
    _, token = await form_token(request)
    await check_csrf(request, token)


# --- where to --------------------------------------------------------------------------------------------------------


def local_path(text: str | None, otherwise: str = "/") -> str:
    """A path of this app to go on to; `otherwise` for anything that could lead to another site."""
    if not text or not text.startswith("/") or text[1:2] in ("/", "\\") or not text.isascii():
        return otherwise
    if any(ord(letter) <= 0x20 or letter == "\\" for letter in text):
        return otherwise
    return text


def link_url(public_url: str, token: str) -> str:
    """The address of a one-time link. The token follows the #, which browsers send to no server and no log sees."""
    return f"{public_url.rstrip('/')}/link#{token}"


def invite_url(public_url: str, token: str) -> str:
    """The address of an invite."""
    return f"{public_url.rstrip('/')}/invite#{token}"


def address_of(request: Request) -> str:
    """Where a request comes from; behind a proxy it is what the proxy says, if the server was told to believe it."""
    return request.client.host if request.client else ""


def account_key(called: str) -> str:
    """What attempts for an account are counted under: never the words, which may be a password in the wrong field."""
    return hashlib.sha256(called.strip().casefold().encode("utf-8", "surrogatepass")).hexdigest()
