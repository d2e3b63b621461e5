"""An OpenAI-compatible server as its clients see it: its address, the key it wants, and what a reply of it means.

The API key is read from the environment, sent, and removed from everything that comes back; it is in no file and no
message. Sends nothing itself: judges wait for one server, pools of servers for whichever is free.
"""

import email.utils
import os
import time
from collections.abc import Mapping

import httpx

from prefloop.interfaces import InputError

BUSY = frozenset({408, 425, 429})
"""Client errors that a later try may get over."""
DENIED = frozenset({401, 403})
MAX_PAUSE_S = 300.0
"""The longest pause between two tries, whatever the server asks for."""
MAX_REPLY_BYTES = 10_000_000
SHOWN_CHARACTERS = 300
"""How much of a server's text goes into a message."""


class NoAnswerError(Exception):
    """One try failed in a way that another try may get over."""

    def __init__(self, what: str, pause_s: float | None = None) -> None:
        super().__init__(what)
        self.pause_s = pause_s


class Server:
    """One server. Raises InputError for an address or a key that cannot be one; `where` is the config key to name."""

    def __init__(self, base_url: str, api_key_env: str, *, where: str) -> None:
        self.base_url = base_url.rstrip("/")
        self.shown_url = _without_credentials(self.base_url, where)
        self._variable = api_key_env
        self._key = _key(api_key_env)

    @property
    def headers(self) -> Mapping[str, str]:
        """Of every request."""
        kind = {"Content-Type": "application/json"}
        return kind | {"Authorization": f"Bearer {self._key}"} if self._key else kind

    def safe(self, text: str) -> str:
        """Text that the server had a hand in, without the key."""
        return text.replace(self._key, "***") if self._key else text

    def text_of(self, status: int, headers: httpx.Headers, raw: bytes) -> str:
        """The text of a reply that is one. Raises NoAnswerError, and InputError where the request itself is wrong."""
        text = self.safe(raw.decode("utf-8", "replace"))
        shown = shortened(text)
        if status in BUSY or status >= 500:
            raise NoAnswerError(f"HTTP {status}: {shown}", _retry_after(headers))
        if status != 200:
            hint = f"; is the key in {self._variable} right?" if status in DENIED else ""
            raise InputError(f"{self.shown_url}: HTTP {status}: {shown}{hint}")
        return text

    def failure(self, error: httpx.TransportError, timeout_s: float) -> NoAnswerError:
        """What a try came to that brought no reply."""
        if isinstance(error, httpx.TimeoutException):
            return NoAnswerError(f"nothing within {timeout_s:g} s ({type(error).__name__})")
        return NoAnswerError(self.safe(f"{type(error).__name__}: {error}"))


def shortened(text: str) -> str:
    """As much of a server's text as a message shows."""
    return " ".join(text.split())[:SHOWN_CHARACTERS] or "no text"


def _key(variable: str) -> str:
    """The API key, or nothing: a server of one's own needs none. Raises InputError for what cannot be sent."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"environment variable {variable}: holds characters that no API key has; set it again"
        )
    return key


def _without_credentials(url: str, where: str) -> str:
    """The address as it may be shown. Raises InputError for what is no address."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"{where} {url!r}: not an address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"{where} {url!r}: write it in full, for instance http://127.0.0.1:8000/v1")
    return str(parsed.copy_with(userinfo=b"")).rstrip("/")


def _retry_after(headers: httpx.Headers) -> float | None:
    """The pause that a server asks for, in seconds: it may give a number or a date."""
    wanted = headers.get("Retry-After", "")
    try:
        pause = float(wanted)
    except ValueError:
        try:
            pause = email.utils.parsedate_to_datetime(wanted).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(pause, 0.0), MAX_PAUSE_S) if pause == pause else None
