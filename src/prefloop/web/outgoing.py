"""Requests that the server makes to addresses that people typed: webhooks, imports.

A name is resolved once, every address that it has must be a public one, and the connection goes to the address that was
checked: a name that changes its answer in between gains nothing. Redirects are checked like the first address.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpcore

from prefloop.labels.errors import LabelError
from prefloop.labels.webhooks import Envelope, UndeliveredError

TIMEOUT_S = 10.0
MOST_ANSWER = 64_000
"""Bytes of what a receiver of webhooks may answer."""
MOST_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
Resolve = Callable[[str, int], Iterable[str]]


class Blocked(LabelError):
    """The address is not one that the server may go to, or what is there is no good."""

    status = 422


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def is_public(address: str) -> bool:
    """Whether an IP address is of the internet: not of this machine, this network, or a way around to them."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def fetch(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    most_bytes: int = MOST_ANSWER,
    timeout_s: float = TIMEOUT_S,
    allowed_hosts: Iterable[str] = (),
    redirects: int = 0,
    resolve: Resolve = resolve,
) -> Answer:
    """Asks a public address, within a time and a size. `allowed_hosts`: names in the own network that are meant.

    Raises Blocked for an address that is not public, that answers too much, too slowly or with too many redirects.
    """
    deadline = time.monotonic() + timeout_s
    for _ in range(redirects + 1):
        answer = _ask(
            url, method, dict(headers or {}), body, most_bytes, deadline, set(allowed_hosts), resolve
        )
        if answer.status not in (301, 302, 303, 307, 308) or "location" not in answer.headers:
            return answer
        if redirects == 0:
            return answer
        url = urljoin(url, answer.headers["location"])
    raise Blocked("the address leads on too often")


def _ask(
    url: str,
    method: str,
    headers: dict[str, str],
    body: bytes,
    most_bytes: int,
    deadline: float,
    allowed: set[str],
    resolve: Resolve,
) -> Answer:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise Blocked("this is not an address") from error
    if parts.scheme not in PORTS or not host or parts.username is not None or not url.isascii():
        raise Blocked("give an http or https address without a user name")
    address = _checked_address(host, port, allowed, resolve)
    left = deadline - time.monotonic()
    sent = {"User-Agent": "prefloop", "Accept-Encoding": "identity"} | headers
    pool = httpcore.ConnectionPool(
        ssl_context=ssl.create_default_context(), network_backend=_Pinned(address), max_connections=1
    )
    try:
        with (
            pool,
            pool.stream(
                method,
                url,
                headers=list(sent.items()),
                content=body,
                extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), max(left, 0.01))},
            ) as response,
        ):
            got = bytearray()
            for piece in response.iter_stream():
                got += piece
                if len(got) > most_bytes:
                    raise Blocked(f"{host} answers with more than {most_bytes} bytes")
                if time.monotonic() > deadline:
                    raise Blocked(f"{host} answers too slowly")
            answered = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
            }
            return Answer(response.status, answered, bytes(got))
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        raise Blocked(f"{host} does not answer: {type(error).__name__}") from error


def _checked_address(host: str, port: int, allowed: set[str], resolve: Resolve) -> str:
    try:
        addresses = list(resolve(host, port))
    except (OSError, UnicodeError) as error:
        raise Blocked(f"{host}: no such name") from error
    if not addresses:
        raise Blocked(f"{host}: no such name")
    if host not in allowed and not all(is_public(one) for one in addresses):
        raise Blocked(f"{host} is not a public address; who runs the server can allow it with --webhook-host")
    return addresses[0]


class _Pinned(httpcore.NetworkBackend):
    """Connects to one address, whatever the name; certificates are still checked against the name."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        """The stream of a connection to the address."""
        return self._sockets.connect_tcp(self._address, port, timeout, local_address, socket_options)

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


def webhook_sender(
    allowed_hosts: Iterable[str] = (), resolve: Resolve = resolve
) -> Callable[[Envelope], None]:
    """How webhooks are sent: one POST, no redirects, and any 2xx is an arrival."""
    allowed = tuple(allowed_hosts)

    def send(envelope: Envelope) -> None:
        try:
            answer = fetch(
                envelope.url,
                method="POST",
                headers=envelope.headers,
                body=envelope.body,
                allowed_hosts=allowed,
                resolve=resolve,
            )
        except Blocked as error:
            raise UndeliveredError(str(error)) from error
        if not 200 <= answer.status < 300:
            raise UndeliveredError(f"answered {answer.status}")

    return send
