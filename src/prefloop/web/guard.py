"""What every request passes before any page, and every answer after: hosts, origins, sizes, headers.

It is the outermost layer, so a page that forgets something, an unknown path, a static file and an error are guarded as
well. The parts that need the store, who is asking and the CSRF token, are in `security`.
"""

import asyncio
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MOST_BODY = 2_000_000
MOST_IMPORT = 200_000_000
"""Bytes of a request whose path ends in `/import`."""
BODY_SECONDS = 60
"""How long a sender may be silent in the middle of a request."""
STATIC = "/static/"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self'; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'self'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}


def headers_for(public_url: str, path: str = "/") -> dict[str, str]:
    """The headers of every answer."""
    headers = dict(HEADERS)
    parts = urlsplit(public_url)
    if parts.scheme == "https":
        headers["Strict-Transport-Security"] = "max-age=31536000"
    elif parts.hostname not in LOOPBACK:
        # with no-referrer a form says "Origin: null", and on plain http no other header says where it came from
        headers["Referrer-Policy"] = "same-origin"
    if path.startswith(STATIC):
        headers["Cache-Control"] = "no-cache"  # kept, but asked for again: the same file is not sent twice
    return headers


def is_our_host(host: str, public_url: str, trusted: tuple[str, ...] = ()) -> bool:
    """Whether a Host header names this app; another site's name in it is a trick to make a browser think it is theirs.

    A trusted name without a port is good at every port.
    """
    known = {one.lower() for one in trusted}
    if host.lower() in known | {urlsplit(public_url).netloc.lower()}:
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name in LOOPBACK or (f"[{name}]" if ":" in name else name) in known


def is_our_origin(headers: Headers, scheme: str) -> bool:
    """Whether an unsafe request comes from our own pages, as far as its headers tell."""
    origin = headers.get("origin")
    if origin is None or origin == "null":
        # browsers hide the origin of a page that hides referrers; this header they send to safe places, and no script
        # can set it. What sends neither is no browser, or an old one, and the CSRF token decides.
        site = headers.get("sec-fetch-site")
        return site == "same-origin" if site is not None else origin is None
    return origin.lower() == f"{scheme}://{headers.get('host', '')}".lower()


class Guard:
    """An ASGI layer around the app."""

    def __init__(self, app: ASGIApp, public_url: str, trusted_hosts: tuple[str, ...] = ()) -> None:
        self._app = app
        self._public_url = public_url
        self._scheme = urlsplit(public_url).scheme
        self._trusted = trusted_hosts
        self._added = {path: _as_sent(headers_for(public_url, path)) for path in ("/", STATIC)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves, or refuses what no page should see."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added = self._added[STATIC if scope["path"].startswith(STATIC) else "/"]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in added if one[0] not in own)]
            await send(message)

        headers = Headers(scope=scope)
        if (refusal := self._refusal(scope, headers)) is not None:
            await refusal(scope, receive, send_guarded)
            return
        most = MOST_IMPORT if scope["path"].endswith("/import") else MOST_BODY
        if _announced(headers) > most:
            await PlainTextResponse(f"at most {most} bytes", 413)(scope, receive, send_guarded)
            return
        await self._app(scope, _counted(receive, most), send_guarded)

    def _refusal(self, scope: MutableMapping[str, Any], headers: Headers) -> PlainTextResponse | None:
        if not is_our_host(headers.get("host", ""), self._public_url, self._trusted):
            return PlainTextResponse(
                "this app is not reached under this name; see --public-url and --host-name", 400
            )
        with_token = headers.get("authorization", "").lower().startswith("bearer ")
        if scope["method"] in SAFE_METHODS or with_token:
            return None
        if not is_our_origin(headers, self._scheme):
            return PlainTextResponse("this request comes from another site", 403)
        return None


def _as_sent(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _announced(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _counted(receive: Receive, most: int) -> Receive:
    """Receives a body that is neither too long nor too slow."""
    got, is_whole = 0, False

    async def receive_counted() -> Message:
        nonlocal got, is_whole
        if is_whole:  # what follows is the end of the connection, which may take its time
            return await receive()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "the request came too slowly") from error
        got += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        if got > most:
            raise HTTPException(413, f"at most {most} bytes")
        return message

    return receive_counted
