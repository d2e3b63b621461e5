"""Passwords without blocking the server: a few hashes at a time, in threads of their own."""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from prefloop.labels import accounts

T = TypeVar("T")
AT_ONCE = 2
"""Each takes 64 MiB and a core for a tenth of a second: a flood of logins is to wait, not to fill the memory."""
_limiter: RunVar[CapacityLimiter] = RunVar("prefloop_hashing")


async def verify_password(hashed: str | None, password: str) -> accounts.Verified:
    """See `accounts.verify_password`."""
    return await _apart(lambda: accounts.verify_password(hashed, password))


async def hash_password(password: str) -> str:
    """See `accounts.hash_password`."""
    return await _apart(lambda: accounts.hash_password(password))


async def _apart(work: Callable[[], T]) -> T:
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = CapacityLimiter(AT_ONCE)
        _limiter.set(limiter)
    return await to_thread.run_sync(work, limiter=limiter)
