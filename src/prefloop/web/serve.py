"""Runs the app, with the limits of a server that strangers can reach, and refuses to be reached where it is not safe."""

import ipaddress
from typing import Any, Literal
from urllib.parse import urlsplit

import uvicorn

from prefloop.interfaces import InputError
from prefloop.labels import accounts
from prefloop.labels.database import Database
from prefloop.web.app import WebOptions, create_app

MOST_CONNECTIONS = 1000
"""At once; further ones get 503. A client that never finishes its request holds one."""
KEEP_ALIVE_S = 15
LAST_REQUESTS_S = 20
"""How long requests that run may go on when the server is told to stop."""
PlainHttp = Literal["refuse", "accept"]


def is_loopback(host: str) -> bool:
    """Whether what is bound to is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_binding(database: Database, host: str, public_url: str, plain_http: PlainHttp = "refuse") -> None:
    """Raises InputError where a network would reach an app that nobody guards, or read along."""
    parts = urlsplit(public_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise InputError(f"public_url = {public_url}: give http:// or https://, a name, and perhaps a port")
    if is_loopback(host) and is_loopback(parts.hostname):
        return
    if not database.read(accounts.has_admin_with_password):
        raise InputError(
            f"host = {host}: no admin has a password yet, so nobody is in charge; start on 127.0.0.1, follow the link, "
            "set a password, and start again"
        )
    if parts.scheme != "https" and plain_http == "refuse":
        raise InputError(
            f"public_url = {public_url}: over plain http anybody on the way reads passwords; put a proxy with a "
            "certificate in front and give its https:// address, or accept plain http in a network that you trust"
        )


def uvicorn_options(*, forwarded_from: str = "127.0.0.1") -> dict[str, Any]:
    """Limits on connections, and whose word counts for where a request comes from: that of the proxy in front."""
    return {
        "limit_concurrency": MOST_CONNECTIONS,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": LAST_REQUESTS_S,
        "h11_max_incomplete_event_size": 64_000,
        "server_header": False,
        "access_log": False,
        "proxy_headers": True,
        "forwarded_allow_ips": forwarded_from,
    }


def serve(
    database: Database,
    options: WebOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    plain_http: PlainHttp = "refuse",
    forwarded_from: str = "127.0.0.1",
) -> None:
    """Serves until it is told to stop. Raises InputError where it is not safe to."""
    check_binding(database, host, options.public_url, plain_http)
    app = create_app(database, options)
    uvicorn.run(app, host=host, port=port, **uvicorn_options(forwarded_from=forwarded_from))
