"""How often somebody may ask: sliding windows in the memory of one process.

With SQLite there is one process, so the limits hold for all. Several workers on PostgreSQL have a window each: what
people can ask for is the limit times the workers, which still stops guessing and runaway scripts.
"""

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Literal, get_args

from fastapi import Request

from prefloop.labels.errors import LabelError
from prefloop.web.store import database_of

Kind = Literal["login", "claim", "submit", "chat", "export"]
MINUTE_MS = 60_000
WINDOW_MS: dict[str, int] = dict.fromkeys(get_args(Kind), MINUTE_MS) | {"export": 60 * MINUTE_MS}
MOST_KEYS = 50_000
"""Windows that are kept; the one that was not used for longest goes first, so that addresses cannot fill the memory."""


class TooMany(LabelError):
    """Asked too often."""

    status = 429

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many requests; try again in {retry_after_s} seconds")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Limits:
    """Requests of one person a minute; exports an hour."""

    claim: int = 60
    submit: int = 60
    login: int = 5
    """Attempts for one account, and attempts from one address."""
    chat: int = 20
    export: int = 5


class Windows:
    """When everybody asked for what, as far back as it matters."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._times: OrderedDict[tuple[str, str], deque[int]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, kind: Kind, who: str, now: int) -> None:
        """Notes a request. Raises TooMany, and notes nothing, where the last ones were too many."""
        limit, span = getattr(self._limits, kind), WINDOW_MS[kind]
        with self._lock:
            times = self._times.setdefault((kind, who), deque())
            self._times.move_to_end((kind, who))
            while times and times[0] <= now - span:
                times.popleft()
            if len(times) >= limit:
                raise TooMany(-(-(times[0] + span - now) // 1000) if times else span // 1000)
            times.append(now)
            while len(self._times) > MOST_KEYS:
                self._times.popitem(last=False)


def limit(request: Request, kind: Kind, who: str) -> None:
    """Counts a request of a person, an account or an address. Raises TooMany (429) past the limit."""
    windows: Windows = request.app.state.windows
    windows.take(kind, who, database_of(request).now())
