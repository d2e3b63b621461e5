"""What a server of the app needs: limits that hold against strangers, and a refusal to be reached where it is not safe."""

import ipaddress
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from prefloop.interfaces import InputError
from prefloop.labels import accounts
from prefloop.labels.database import Database
from prefloop.web.security import invite_url, link_url

__all__ = ["PlainHttp", "check_binding", "invite_url", "is_loopback", "link_url", "uvicorn_options"]

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


def check_binding(
    database: Database,
    host: str,
    public_url: str,
    plain_http: PlainHttp = "refuse",
    *,
    names: Sequence[str] = (),
) -> None:
    """Raises InputError where a network would reach an app that nobody guards, or read along.

    `names` are those beside that of `public_url`: an app that has others than this machine's own is reached from outside.
    """
    parts = urlsplit(public_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise InputError(f"public_url = {public_url}: give http:// or https://, a name, and perhaps a port")
    called = [parts.hostname, *(urlsplit(f"//{one}").hostname or "" for one in names)]
    if is_loopback(host) and all(map(is_loopback, called)):
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


def uvicorn_options() -> dict[str, Any]:
    """Limits on connections. A proxy on this machine may say whom it asks for; FORWARDED_ALLOW_IPS names others."""
    return {
        "limit_concurrency": MOST_CONNECTIONS,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": LAST_REQUESTS_S,
        "h11_max_incomplete_event_size": 64_000,
        "server_header": False,
        "access_log": False,
        "proxy_headers": True,
    }
