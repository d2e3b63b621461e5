"""Who asked a moment ago: spares a request of the same session or token a look into the store.

Nothing is believed for longer than two seconds, so what another process revokes ends then. What this process changes on
people, sessions or tokens empties the memory at once.
"""

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sqlalchemy import event

from prefloop.labels.database import Database

V = TypeVar("V")
BELIEVED_S = 2.0
MOST = 10_000
REVOKING = ("annotator", "session", "api_token")
"""Tables that say who may come in."""
TOUCHES = ("UPDATE session SET seen_at=", "UPDATE api_token SET used_at=")
"""What only notes that somebody came."""


class Visitors(Generic[V]):
    """Visitors by the kind and hash of their token."""

    def __init__(self, database: Database, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or (lambda: database.now() / 1000)  # the clock that sessions end by
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, V]] = {}
        event.listen(database.engine, "after_cursor_execute", self._watch)

    def get(self, key: str) -> V | None:
        """Who came with this token a moment ago."""
        found = self._known.get(key)
        # not below 0: a clock that was set back would let everybody in until it has caught up
        return found[1] if found is not None and 0 <= self._clock() - found[0] < BELIEVED_S else None

    def put(self, key: str, visitor: V) -> None:
        """Remembers who came with this token just now."""
        with self._lock:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[key] = (self._clock(), visitor)

    def clear(self) -> None:
        """Forgets everybody."""
        with self._lock:
            self._known.clear()

    def _watch(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement[0] == "S" or statement.startswith(TOUCHES):  # by far the most are SELECTs
            return
        words = statement.split(None, 3)
        if words[0] in ("UPDATE", "DELETE") and words[1 if words[0] == "UPDATE" else 2] in REVOKING:
            self.clear()
