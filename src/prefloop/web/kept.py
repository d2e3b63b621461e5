"""Figures that took long, kept in memory for a while."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Generic, TypeVar

V = TypeVar("V")
FRESH_S = 60.0
"""A result of this age is shown as it is, though judgements have come since."""
TIMES_ITS_COST = 20.0
"""What took long is kept longer: figures take a twentieth of the time at most."""
MOST_KEPT = 64
PATIENCE_S = 1.0
"""How long a page waits for a result that is being computed."""


@dataclass
class _Kept(Generic[V]):
    value: V
    watermark: int
    at: float
    cost: float


@dataclass
class Kept(Generic[V]):
    """Results by project and filter. One is computed at a time, so that a dashboard cannot crowd out those who judge."""

    fresh_s: float = FRESH_S
    patience_s: float = PATIENCE_S
    _found: dict[Hashable, _Kept[V]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _coming: dict[Hashable, Future[V]] = field(default_factory=dict)
    _beside: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "kept"))

    def soon(self, key: Hashable, watermark: int, compute: Callable[[], V], *, anew: bool) -> V | None:
        """Like `get`, but waits only so long; then gives the result of before, or None for the first one.

        It is computed on in a thread of its own, where `compute` may not use what the caller will have closed by then.
        """
        if (kept := self._usable(key, watermark)) is not None and not anew:
            return kept
        coming = self._coming.get(key)
        if coming is None:
            coming = self._beside.submit(self.get, key, watermark, compute, anew=anew)
            self._coming[key] = coming
            coming.add_done_callback(lambda done: done.exception() or self._coming.pop(key, None))
        try:
            return coming.result(self.patience_s)
        except NotYet:
            before = self._found.get(key)
            return None if before is None else before.value
        except Exception:
            self._coming.pop(key, None)  # told once; the next visit tries again
            raise

    def get(self, key: Hashable, watermark: int, compute: Callable[[], V], *, anew: bool) -> V:
        """The result for this key, computed where there is none, or where it is too old for the watermark."""
        if (kept := self._usable(key, watermark)) is not None and not anew:
            return kept
        asked = time.monotonic()
        with self._lock:
            kept = self._found.get(key)
            if kept is not None and (kept.at > asked or (not anew and self._is_usable(kept, watermark))):
                return kept.value  # somebody else asked meanwhile
            started = time.monotonic()
            value = compute()
            done = time.monotonic()
            self._found[key] = _Kept(value, watermark, done, done - started)
            while len(self._found) > MOST_KEPT:
                del self._found[min(self._found, key=lambda one: self._found[one].at)]
            return value

    def forget(self, key: Hashable) -> None:
        """Has it computed anew next time."""
        self._found.pop(key, None)

    def _usable(self, key: Hashable, watermark: int) -> V | None:
        kept = self._found.get(key)
        return kept.value if kept is not None and self._is_usable(kept, watermark) else None

    def _is_usable(self, kept: _Kept[V], watermark: int) -> bool:
        age = time.monotonic() - kept.at
        return kept.watermark == watermark or age < max(self.fresh_s, TIMES_ITS_COST * kept.cost)
