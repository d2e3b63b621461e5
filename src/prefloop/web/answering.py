"""Where live answers come from: OpenAI-compatible servers, worker processes with a policy folder, or a scripted stub.

Each source is one policy under one name. Keys of servers come from the environment. Nothing here imports torch; a worker
process does.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import httpx

from prefloop.interfaces import InputError
from prefloop.records import FinishReason, Message, content_id
from prefloop.servers import MAX_REPLY_BYTES, NoAnswerError, Server

API_KEY_ENV = "PREFLOOP_CHAT_API_KEY"
"""Names the key that servers of policies get, if they want one."""
TRIES = 2
PAUSE_S = 0.5
TIMEOUT_S = 120.0
POLICY_NAME = re.compile(r"^[\w.:/@+-]{1,200}$")
LONGEST_LINE = 16_000_000
"""Bytes of a worker's answer, with its log-probabilities."""


@dataclass(frozen=True)
class Wish:
    """How an answer is to be drawn."""

    temperature: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """One answer of a policy."""

    text: str
    finish_reason: FinishReason | None = None
    token_ids: tuple[int, ...] | None = None
    token_logps: tuple[float, ...] | None = None


class Answerer(Protocol):
    """A policy that can be talked with."""

    @property
    def uri(self) -> str:
        """Where it is, without credentials."""
        ...

    async def answer(self, messages: Sequence[Message], wish: Wish) -> Answer:
        """The next turn. Raises NoAnswerError, InputError or OSError where there is none."""
        ...

    async def close(self) -> None:
        """Ends what it holds."""
        ...


# --- a stub ------------------------------------------------------------------------------------------------------------

SENTENCES = (
    "That is a good question to start from.",
    "It depends on what you want in the end.",
    "First, look at what you already have.",
    "Most people would begin with the smallest step.",
    "There are two sides to it, and both matter.",
    "In short: yes, with some care.",
    "You could try it once and see what happens.",
    "I would not worry about the details yet.",
)


@dataclass
class Scripted:
    """Answers from a list, the same for the same conversation and seed; as slow and as unreliable as it is told."""

    name: str
    latency_s: float = 0.0
    fail_first: int = 0
    """How many of its answers fail before one comes."""
    texts: tuple[str, ...] = ()
    """Said one after the other instead of drawn sentences."""
    asked: list[Sequence[Message]] = field(default_factory=list)
    """What it has been asked."""

    @property
    def uri(self) -> str:
        """It is nowhere."""
        return "scripted:"

    async def answer(self, messages: Sequence[Message], wish: Wish) -> Answer:
        """A few sentences about the last turn. Raises NoAnswerError as often as it was told."""
        number = len(self.asked)
        self.asked.append(tuple(messages))
        await asyncio.sleep(self.latency_s)
        if number < self.fail_first:
            raise NoAnswerError("the script says that this answer fails")
        if self.texts:
            text = self.texts[(number - self.fail_first) % len(self.texts)]
        else:
            drawn = int(content_id(self.name, [one.content for one in messages], wish.seed), 16)
            chosen = [SENTENCES[drawn >> shift & 7] for shift in range(0, 3 * (2 + drawn % 3), 3)]
            text = f"You wrote: “{messages[-1].content[:80]}”.\n\n" + " ".join(dict.fromkeys(chosen))
        words = text.split()
        if len(words) > wish.max_new_tokens:
            return Answer(" ".join(words[: wish.max_new_tokens]), "length")
        return Answer(text, "stop")

    async def close(self) -> None:
        """It holds nothing."""


# --- a server ----------------------------------------------------------------------------------------------------------


class Served:
    """A policy behind an OpenAI-compatible server. Asks for token ids and log-probabilities until the server refuses."""

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        api_key_env: str = API_KEY_ENV,
        timeout_s: float = TIMEOUT_S,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self.server = Server(url, api_key_env, where="--policy")
        self._model = model
        self._timeout_s = timeout_s
        self._client = client or httpx.AsyncClient(timeout=timeout_s)
        self._asks_for_tokens = True

    @property
    def uri(self) -> str:
        """Its address, and the model that it is asked for."""
        return f"{self.server.shown_url}#{self._model}" if self._model else self.server.shown_url

    async def answer(self, messages: Sequence[Message], wish: Wish) -> Answer:
        """The next turn; asked for once more where the first try failed in a way that may pass."""
        for number in range(TRIES):
            try:
                return await self._try(messages, wish)
            except NoAnswerError as error:
                if number == TRIES - 1:
                    raise
                await asyncio.sleep(PAUSE_S if error.pause_s is None else min(error.pause_s, self._timeout_s))
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aclose()

    async def _try(self, messages: Sequence[Message], wish: Wish) -> Answer:
        if not self._model:
            self._model = await self._only_model()
        body: dict[str, object] = {
            "model": self._model,
            "messages": [{"role": one.role, "content": one.content} for one in messages],
            "n": 1,
            "max_tokens": wish.max_new_tokens,
            "temperature": wish.temperature,
            "seed": wish.seed,
        }
        if self._asks_for_tokens:
            try:
                more = {"logprobs": True, "return_token_ids": True}
                return self._read(await self._send("POST", "chat/completions", body | more))
            except InputError:
                self._asks_for_tokens = False  # some servers refuse keys that they do not know
        return self._read(await self._send("POST", "chat/completions", body))

    async def _only_model(self) -> str:
        try:
            names = [one["id"] for one in json.loads(await self._send("GET", "models"))["data"]]
        except (ValueError, LookupError, TypeError):
            names = []
        if len(names) != 1 or not isinstance(names[0], str):
            raise InputError(
                f"{self.server.shown_url}: serves {', '.join(map(str, names)) or 'no model that it names'}; name one "
                "behind the address: --policy NAME=URL#MODEL"
            )
        return names[0]

    async def _send(self, method: str, path: str, body: Mapping[str, object] | None = None) -> str:
        content = None if body is None else json.dumps(body).encode("ascii")
        request = self._client.build_request(
            method, f"{self.server.base_url}/{path}", content=content, headers=self.server.headers
        )
        try:
            reply = await self._client.send(request, stream=True)
            try:
                raw = bytearray()
                async for part in reply.aiter_bytes():
                    raw += part
                    if len(raw) > MAX_REPLY_BYTES:
                        raise NoAnswerError(f"a reply of more than {MAX_REPLY_BYTES} bytes")
            finally:
                await reply.aclose()
        except httpx.TransportError as error:
            raise self.server.failure(error, self._timeout_s) from None
        return self.server.text_of(reply.status_code, reply.headers, bytes(raw))

    def _read(self, text: str) -> Answer:
        try:
            choice = json.loads(text)["choices"][0]
            said = choice["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise NoAnswerError("a reply without an answer in it") from None
        if not isinstance(said, str) or not said.strip():
            raise NoAnswerError("an empty answer")
        reason = choice.get("finish_reason")
        return Answer(
            self.server.safe(said),
            reason if reason in ("stop", "length") else None,
            *_tokens_and_logps(choice),
        )


def _tokens_and_logps(choice: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """What a reply tells of its tokens; None for what it does not, or not in a way that fits together."""
    given = choice.get("logprobs")
    listed = given.get("content") if isinstance(given, dict) else None
    logps = None
    if isinstance(listed, list) and listed:
        numbers = [one.get("logprob") if isinstance(one, dict) else None for one in listed]
        if all(isinstance(one, int | float) for one in numbers):
            logps = tuple(float(one) for one in numbers if one is not None)
    ids = choice.get("token_ids")
    tokens = (
        tuple(ids) if isinstance(ids, list) and ids and all(isinstance(one, int) for one in ids) else None
    )
    if tokens is not None and logps is not None and len(tokens) != len(logps):
        return tokens, None
    return tokens, logps


# --- a worker process --------------------------------------------------------------------------------------------------


class Launched:
    """A policy folder, or the name of a model, in a process of its own that ends with this one. It loads when it is first
    needed, answers one at a time, and is started again after it died.
    """

    def __init__(self, folder: str, *, command: Sequence[str] = ()) -> None:
        self.folder = folder
        self._command = tuple(command) or (sys.executable, "-m", "prefloop.chat", folder)
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    @property
    def uri(self) -> str:
        """The folder."""
        return self.folder

    async def answer(self, messages: Sequence[Message], wish: Wish) -> Answer:
        """The next turn. Raises NoAnswerError where the process has none, or ended."""
        asked = {
            "messages": [one.model_dump() for one in messages],
            "temperature": wish.temperature,
            "max_new_tokens": wish.max_new_tokens,
            "seed": wish.seed,
        }
        async with self._lock:
            process = await self._running()
            assert process.stdin is not None and process.stdout is not None, "it was started with pipes"
            try:
                process.stdin.write(json.dumps(asked).encode("ascii") + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            except (ConnectionError, ValueError) as error:  # it is gone, or wrote a line without an end
                await self._stop()
                raise NoAnswerError(f"{self.folder}: the process of the policy broke: {error}") from None
            except asyncio.CancelledError:  # its answer would be taken for that of the next question
                await self._stop()
                raise
        if not line:
            code = await process.wait()
            raise NoAnswerError(
                f"{self.folder}: the process of the policy ended with code {code}; see the log"
            )
        found = json.loads(line)
        if "error" in found:
            raise NoAnswerError(f"{self.folder}: {found['error']}")
        tokens, logps = found["token_ids"], found["token_logps"]
        return Answer(
            found["text"],
            found["finish_reason"],
            None if tokens is None else tuple(tokens),
            None if logps is None else tuple(logps),
        )

    async def close(self) -> None:
        """Ends the process."""
        await self._stop()

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LONGEST_LINE,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        return self._process

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


# --- by name -----------------------------------------------------------------------------------------------------------


def answerers_of(values: Sequence[str]) -> dict[str, Answerer]:
    """Policies to talk with, from `NAME=WHERE`: an address of a server (`#MODEL` names one of several), a policy folder,
    or `scripted` (`scripted?latency_s=2&fail_first=1`). Raises InputError.
    """
    found: dict[str, Answerer] = {}
    for value in values:
        name, separator, where = value.partition("=")
        if not separator or not POLICY_NAME.match(name) or not where:
            raise InputError(f"--policy {value!r}: write NAME=URL, NAME=FOLDER or NAME=scripted")
        if name in found:
            raise InputError(f"--policy {value!r}: {name} is there already; names tell policies apart")
        found[name] = _answerer(name, where)
    return found


def _answerer(name: str, where: str) -> Answerer:
    kind, _, options = where.partition("?")
    if kind == "scripted":
        return _scripted(name, options)
    if where.startswith(("http://", "https://")):
        url, _, model = where.partition("#")
        return Served(url, model=model)
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"--policy {name}={where}: no folder of this name; give one, an http address, or `scripted`"
        )
    return Launched(str(folder))


def _scripted(name: str, options: str) -> Scripted:
    given = dict(parse_qsl(options, keep_blank_values=True))
    if unknown := given.keys() - {"latency_s", "fail_first"}:
        raise InputError(
            f"--policy {name}: scripted has no {', '.join(sorted(unknown))}; use latency_s, fail_first"
        )
    try:
        return Scripted(name, float(given.get("latency_s", 0)), int(given.get("fail_first", 0)))
    except ValueError as error:
        raise InputError(f"--policy {name}: {error}; latency_s and fail_first are numbers") from error
