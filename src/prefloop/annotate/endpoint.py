"""An OpenAI-compatible chat endpoint that can be slow, full or broken, and is paid by the token.

Every answer is kept in a cache folder, one file per request, so that no question is paid for twice.
"""

import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)

from prefloop.config import JudgeAnnotator
from prefloop.interfaces import Unavailable
from prefloop.servers import MAX_REPLY_BYTES, NoAnswerError, Server, shortened
from prefloop.store import read_json, write_json

LOOKAHEAD = 4
"""Jobs taken on ahead of the one whose result is due, per request under way."""

Job = TypeVar("Job")
Result = TypeVar("Result")
Body = Mapping[str, object]
"""A request as the endpoint's JSON: keys and values are the protocol's."""


class Reply(NamedTuple):
    """What the model said and what it cost; this is what the cache keeps."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    top_logprobs: Mapping[str, float] | None = None
    """Log-probabilities of the likeliest first tokens, where they were asked for and given."""


Ask = Callable[[Body], Reply]


class Endpoint:
    """The endpoint, its cache, and what has been spent so far in `stats`."""

    def __init__(self, options: JudgeAnnotator, cache: Path) -> None:
        self._server = Server(options.base_url, options.api_key_env, where="base_url")
        self.url = f"{self._server.base_url}/chat/completions"
        self._shown_url = f"{self._server.shown_url}/chat/completions"
        self.options = options
        self.cache = cache
        self.stats: dict[str, float] = {
            "calls": 0, "cached": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0
        }  # fmt: skip
        self._lock = threading.Lock()

    def run(self, work: Callable[[Ask, Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yields `work(ask, job)` for each job, in order, several at once.

        `ask` sends a request and returns the reply. When a job fails, the results before it have been
        yielded and the replies to requests under way are still kept in the cache.
        """
        self.cache.mkdir(parents=True, exist_ok=True)
        limits = httpx.Limits(max_connections=self.options.concurrency)
        stop = threading.Event()
        waiting: deque[Future[Result]] = deque()
        with (
            httpx.Client(timeout=self.options.timeout_s, limits=limits) as client,
            ThreadPoolExecutor(self.options.concurrency) as pool,
        ):
            try:
                for job in jobs:
                    waiting.append(pool.submit(work, lambda body: self._ask(client, stop, body), job))
                    if len(waiting) >= LOOKAHEAD * self.options.concurrency:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                stop.set()
                for future in waiting:
                    future.cancel()

    def _ask(self, client: httpx.Client, stop: threading.Event, body: Body) -> Reply:
        content = json.dumps(body, sort_keys=True)
        digest = hashlib.sha256(json.dumps([self._shown_url, content]).encode()).hexdigest()
        path = self.cache / f"{digest}.json"
        if path.is_file():
            self._count(cached=1)
            return Reply(**read_json(path))
        if stop.is_set():  # nobody waits for this result any more, so nobody should pay for it
            raise NoAnswerError("stopped")
        self._check_budget()
        reply = self._send_patiently(client, stop, content)
        # two threads may ask the same: each writes a file of its own, and the last rename wins
        own = path.with_name(f"{digest}.{os.getpid()}-{threading.get_ident()}")
        write_json(own, reply._asdict())
        own.replace(path)
        tokens = reply.prompt_tokens + reply.completion_tokens
        self._count(
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cost=tokens * self.options.price_per_million_tokens / 1_000_000,
        )
        return reply

    def _check_budget(self) -> None:
        most, spent = self.options.max_cost, self.stats["cost"]
        if most is not None and spent >= most:
            raise Unavailable(
                f"{self._shown_url}: {spent:.4g} is spent of max_cost = {most:g}. Verdicts so far are kept: raise it, "
                "then run again"
            )

    def _send_patiently(self, client: httpx.Client, stop: threading.Event, content: str) -> Reply:
        tries = self.options.retries + 1
        retrying = Retrying(
            stop=stop_after_attempt(tries) | stop_when_event_set(stop),
            wait=_pause,
            sleep=sleep_using_event(stop),
            retry=retry_if_exception_type(NoAnswerError),
            reraise=True,
        )
        try:
            return retrying(self._send, client, content)
        except NoAnswerError as error:
            raise Unavailable(
                f"{self._shown_url}: no answer after {tries} tries; the last one: {error}. "
                "Verdicts so far are kept: see to the server, then run again"
            ) from error

    def _send(self, client: httpx.Client, content: str) -> Reply:
        self._count(calls=1)
        try:
            reply = self._server.text_of(*self._post(client, content))
        except httpx.TransportError as error:
            raise self._server.failure(error, self.options.timeout_s) from None
        read = _read_reply(reply)
        if read is None:
            raise NoAnswerError(f"HTTP 200 without a chat completion in it: {shortened(reply)}")
        # once more: in the JSON the key may have stood in another spelling
        return read._replace(text=self._server.safe(read.text))

    def _post(self, client: httpx.Client, content: str) -> tuple[int, httpx.Headers, bytes]:
        """One request. httpx limits the time between two pieces; here the whole reply has to come in time."""
        headers = self._server.headers
        deadline = time.monotonic() + self.options.timeout_s
        raw = b""
        with client.stream("POST", self.url, content=content.encode("ascii"), headers=headers) as response:
            for piece in response.iter_bytes():
                raw += piece
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the reply came too slowly")
                if len(raw) > MAX_REPLY_BYTES:
                    raise httpx.ReadError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")
            return response.status_code, response.headers, raw

    def _count(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self.stats[name] += amount


def _read_reply(text: str) -> Reply | None:
    """Text and token counts of a chat completion; None where it is not one."""
    try:
        value = json.loads(text)
        content = value["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if content is not None and not isinstance(content, str):
        return None
    usage = value.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Reply(
        content or "",
        _count_of(counts.get("prompt_tokens")),
        _count_of(counts.get("completion_tokens")),
        _first_logprobs(value["choices"][0]),
    )


def _first_logprobs(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """The likeliest first tokens of a choice; None where the server gives none."""
    try:
        pairs = [
            (one["token"], float(one["logprob"])) for one in choice["logprobs"]["content"][0]["top_logprobs"]
        ]
    except (LookupError, TypeError, ValueError):
        return None
    return {
        str(token): logp for token, logp in pairs if logp <= 0
    }  # neither NaN nor an overflow gets through


def _count_of(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


_growing_pause = wait_random_exponential(multiplier=0.5, max=60)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, NoAnswerError) and error.pause_s is not None:
        return error.pause_s
    return _growing_pause(state)
