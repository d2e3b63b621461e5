"""Several OpenAI-compatible servers that answer the same questions: who gets the next one, and what happens when one fails.

A server is used once it has answered a probe. Requests go to the least loaded one, so a slow server gets fewer. One that
fails is left out, probed with growing pauses, and let back in on trial: one request at a time until one succeeds. The
requests that it failed go to others. Knows nothing about what is asked.
"""

import asyncio
import contextlib
import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import httpx

from prefloop.config import RemoteEngine
from prefloop.interfaces import InputError, Unavailable
from prefloop.servers import BUSY, DENIED, MAX_REPLY_BYTES, NoAnswerError, Server

PROBE_TIMEOUT_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
"""Before a server that failed is probed; twice as long after each failure."""
LOOKAHEAD = 4
"""Calls taken on ahead of the one whose result is due, per request that may be under way."""

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Call(NamedTuple, Generic[Result]):
    """One question."""

    body: Callable[[], Mapping[str, object]]
    """The request as JSON; made when a server is there to send it to."""
    read: Callable[[str, Server], Result]
    """What the reply says. Raises NoAnswerError where the server should be asked again, InputError where nobody should."""
    max_bytes: int = MAX_REPLY_BYTES
    """The longest reply that could be an answer."""


Check = Callable[[Server, str], None]
"""Told what a server says about its models when it is let in. Raises InputError where it cannot be used."""


@dataclass(eq=False)
class _Place:
    """A server and how it does."""

    server: Server
    admitted: bool = False
    failures: int = 0
    """Since the last request that it answered."""
    under_way: int = 0
    answered: int = 0
    error: str = "it was not asked yet"

    def has_room(self, concurrency: int) -> bool:
        """Whether it takes another request; on trial it takes one."""
        return self.admitted and self.under_way < (1 if self.failures else concurrency)


@contextlib.contextmanager
def pool(options: RemoteEngine, urls: Sequence[str], check: Check) -> Iterator["Pool"]:
    """A pool of servers, probed from now on; requests still under way at the end are given up."""
    servers = [Server(url, options.api_key_env, where="generate.engine.urls:") for url in urls]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="pool", daemon=True)
    thread.start()
    found = Pool(servers, options, check, loop)
    try:
        found.begin()
        yield found
    finally:
        asyncio.run_coroutine_threadsafe(found.end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Pool:
    """Made by `pool`. Its methods may be called from one thread; everything with an underscore runs in the loop's own."""

    def __init__(
        self,
        servers: Sequence[Server],
        options: RemoteEngine,
        check: Check,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.options = options
        self._check = check
        self._loop = loop
        self._places = [_Place(one) for one in servers]
        self._changed = asyncio.Condition()
        self._client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=None)
        self._probes: set[asyncio.Task[None]] = set()
        self._refused: InputError | None = None
        self._lost_since: float | None = time.monotonic()

    @property
    def at_once(self) -> int:
        """Requests that can be under way."""
        return self.options.concurrency * len(self._places)

    def begin(self) -> None:
        """Starts to probe."""

        async def probe_all() -> None:
            for place in self._places:
                self._start_probing(place, 0.0)

        self._run(probe_all())

    async def end(self) -> None:
        """Gives up what is under way."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    def wait_until_ready(self) -> None:
        """Returns when a server has been let in. Raises Unavailable when none is for `patience_s`, and InputError."""

        async def wait() -> None:
            await self._until(lambda: any(one.admitted for one in self._places) or None)

        self._run(wait())

    def run(self, path: str, calls: Iterable[Call[Result]]) -> Iterator[Result]:
        """Yields the result of each call, in order, many under way at once.

        Raises, after the results before it, Unavailable where no server answers a call, and InputError.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for call in calls:
                waiting.append(asyncio.run_coroutine_threadsafe(self._answer(path, call), self._loop))
                if len(waiting) >= LOOKAHEAD * self.at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _run(self, work: Coroutine[object, object, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # --- requests ---

    async def _answer(self, path: str, call: Call[Result]) -> Result:
        """Sends a call to one server after the other until one answers it."""
        for number in range(self.options.retries + 1):
            place = await self._until(self._least_loaded)
            place.under_way += 1
            try:
                text = await self._post(place.server, path, call)
                result = call.read(text, place.server)
            except NoAnswerError as error:
                self._failed(place, error)
                if number == self.options.retries:
                    raise Unavailable(
                        f"{place.server.shown_url}: no answer after {number + 1} tries; the last one: {error}. "
                        "What was finished is kept: see to the servers, then run again"
                    ) from None
            else:
                place.answered += 1
                if place.failures:
                    logger.info("server=%s back=true", place.server.shown_url)
                place.failures = 0
                self._admit(place)
                return result
            finally:
                place.under_way -= 1
                await self._tell()
        raise AssertionError("the last try returns or raises")

    async def _post(self, server: Server, path: str, call: Call[Result]) -> str:
        content = json.dumps(call.body()).encode("ascii")
        return server.text_of(
            *await self._send(server, "POST", path, content, self.options.timeout_s, call.max_bytes)
        )

    async def _send(
        self,
        server: Server,
        method: str,
        path: str,
        content: bytes | None,
        timeout_s: float,
        max_bytes: int = MAX_REPLY_BYTES,
    ) -> tuple[int, httpx.Headers, bytes]:
        """One request, whose whole reply has to come in time. Raises NoAnswerError."""
        pieces: list[bytes] = []
        size = 0
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(
                    method, f"{server.base_url}/{path}", content=content, headers=server.headers
                ) as response,
            ):
                async for piece in response.aiter_bytes():
                    pieces.append(piece)
                    size += len(piece)
                    if size > max_bytes:
                        raise NoAnswerError(f"the reply is longer than {max_bytes} bytes")
                return response.status_code, response.headers, b"".join(pieces)
        except httpx.TransportError as error:
            raise server.failure(error, timeout_s) from None
        except TimeoutError:
            raise NoAnswerError(f"nothing within {timeout_s:g} s") from None

    # --- who is used ---

    def _least_loaded(self) -> _Place | None:
        free = [one for one in self._places if one.has_room(self.options.concurrency)]
        return min(free, key=lambda one: (one.under_way, one.answered), default=None)

    async def _until(self, found: Callable[[], Result | None]) -> Result:
        """Waits until there is something. Raises Unavailable when there has been no server for too long, and InputError."""
        async with self._changed:
            while True:
                if self._refused is not None:
                    raise self._refused
                result = found()
                if result is not None:
                    return result
                self._raise_if_lost()
                await self._changed.wait()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _raise_if_lost(self) -> None:
        if any(one.admitted or one.under_way for one in self._places):
            self._lost_since = None
            return
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        if now - self._lost_since >= self.options.patience_s:
            errors = "; ".join(f"{one.server.shown_url}: {one.error}" for one in self._places)
            raise Unavailable(
                f"no server answered for {self.options.patience_s:g} s: {errors}. What was finished is kept: "
                "see to the servers, then run again"
            )

    def _failed(self, place: _Place, error: NoAnswerError) -> None:
        """Leaves a server out until a probe finds it well; the requests that fail with it count once."""
        place.error = str(error)
        if not place.admitted:
            return
        place.admitted = False
        place.failures += 1
        pause = _pause(place.failures) if error.pause_s is None else error.pause_s
        logger.warning(
            "server=%s left_out=true pause_s=%.2f error=%s", place.server.shown_url, pause, place.error
        )
        self._start_probing(place, pause)

    def _start_probing(self, place: _Place, pause: float) -> None:
        task = self._loop.create_task(self._probe(place, pause))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _probe(self, place: _Place, pause: float) -> None:
        """Asks a server for its models until it answers, with growing pauses, then lets it in."""
        while True:
            await self._sleep(pause)
            if place.admitted:  # a request that was under way has been answered
                return
            try:
                await self._look_at(place)
            except NoAnswerError as error:
                place.error = str(error)
                place.failures += 1
                pause = _pause(place.failures) if error.pause_s is None else error.pause_s
            except InputError as error:
                self._refused = error
            else:
                self._admit(place)
            await self._tell()
            if place.admitted or self._refused is not None:
                return

    def _admit(self, place: _Place) -> None:
        place.admitted = True
        self._lost_since = None

    async def _sleep(self, pause: float) -> None:
        """Waits, but not past the moment at which patience ends: who waits for a server is told by probes."""
        if self._lost_since is not None:
            left = self._lost_since + self.options.patience_s - time.monotonic()
            pause = min(pause, left) if left > 0 else pause
        await asyncio.sleep(pause)

    async def _look_at(self, place: _Place) -> None:
        status, headers, raw = await self._send(place.server, "GET", "models", None, PROBE_TIMEOUT_S)
        if status in BUSY or status >= 500 or status in DENIED or status == 200:
            self._check(place.server, place.server.text_of(status, headers, raw))
        # any other status is that of a server that lives and has no list of models


def _pause(failures: int) -> float:
    """Twice as long after each failure, and never quite the same, so that clients do not come back all at once."""
    return min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S) * random.uniform(0.75, 1.0)
