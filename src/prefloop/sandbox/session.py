"""The trusted side: starts the process that generated code runs in, and speaks with it within limits of time and size."""

import builtins
import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, Self

from prefloop.sandbox import values

Fencing = Literal["namespaces", "limits"]
"""With namespaces; or without, where a machine does not allow them."""
SECONDS = 3.0
"""HumanEval's own limit of a problem."""
WALL = 2
"""A program has its seconds on the processor, and so many times of them by the clock: one that sleeps is stopped, and one
that only waits for its turn on a busy machine is not."""
START_SECONDS = 60.0
"""For the interpreter, which is no program's fault."""
END_SECONDS = 0.5
"""Between the end of a program's answers and its own."""
LINE_BYTES = 1 << 20
"""The longest answer."""
CHUNK_BYTES = 1 << 16
NAME_LENGTH = 100
START = (
    "import sys, types; house = types.ModuleType('prefloop'); house.__path__ = [sys.argv[1]]; "
    "sys.modules['prefloop'] = house; from prefloop.sandbox import child; child.main(*sys.argv[2:])"
)
"""Imports this room without the rest of the package, whose folder the process shall not see."""


class Unfenced(Exception):
    """This machine does not allow one of the fences."""


class Stopped(BaseException):
    """A session is over before its time; no `except Exception` of a test may take that for an answer."""


class Session:
    """A program in a process of its own, whose function can be called from here until the session is left."""

    def __init__(self, *, seconds: float = SECONDS, fencing: Fencing = "namespaces") -> None:
        self._seconds = seconds
        self._fencing = fencing
        self._left = START_SECONDS
        self._received = bytearray()
        self.failure = ""
        """Why the session was stopped, if it was."""
        self._raised: tuple[Exception | None, str] = (None, "")

    def __enter__(self) -> Self:
        """Starts the process; raises Unfenced where a fence is not to be had."""
        self._folder = tempfile.TemporaryDirectory(prefix="prefloop-sandbox-", ignore_cleanup_errors=True)
        house, libraries = str(Path(__file__).parents[1]), ":".join(_libraries())
        words = [sys.executable, "-I", "-S", "-c", START, house, self._fencing, self._folder.name, libraries]
        try:
            self._process = subprocess.Popen(
                [*words, str(self._seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._folder.name,
                env={},
                start_new_session=True,
            )
        except OSError as error:
            self._folder.cleanup()
            raise Unfenced(f"the process did not start: {error}") from error
        assert self._process.stdin and self._process.stdout
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._answers, False)
        try:
            kind, told = self._receive()
        except Stopped as stop:
            reason = self._complaint.rpartition("\n")[2] or stop
            raise Unfenced(f"the process did not start: {reason}") from None
        if kind != "fenced":
            self.close()
            raise Unfenced(told)
        self._left = WALL * self._seconds
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and everything that it has started."""
        process = self._process
        if process.stdin is None or process.stdin.closed:
            return
        process.terminate()  # the guard, which ends with what it guards
        process.wait()
        assert process.stdout and process.stderr
        self._complaint = process.stderr.read().decode(errors="replace").strip()
        for end in (process.stdin, process.stdout, process.stderr):
            end.close()
        self._folder.cleanup()

    def define(self, source: str, function: str) -> None:
        """Runs a program, once; raises what it raises, and Stopped."""
        self._ask([source, function])

    def call(self, *arguments: object, **keywords: object) -> object:
        """What the program's function answers; raises what it raises, and Stopped."""
        return self._ask([arguments, keywords])

    def raised(self, error: Exception) -> str:
        """The name of an exception that came from the program; empty for any other."""
        return self._raised[1] if error is self._raised[0] else ""

    def _ask(self, request: object) -> object:
        if self.failure:
            raise Stopped(self.failure)
        try:
            line = values.dumps(request)
        except (TypeError, RecursionError) as error:
            raise self._stopped(f"refused: an argument of the test: {error}") from None
        self._send(line)
        kind, answer = self._receive()
        if kind == "value":
            return answer
        # what it says about itself is shown, so it has to be a name
        name = answer[:NAME_LENGTH] if isinstance(answer, str) and answer.isidentifier() else "unnamed"
        if kind == "raised":
            error = _exception(name)
            self._raised = error, name
            raise error
        raise self._stopped(f"refused: {name}" if kind == "refused" else "refused: an answer of another form")

    def _send(self, line: bytes) -> None:
        while line:
            self._wait(self._requests, select.POLLOUT)
            try:
                line = line[os.write(self._requests, line) :]
            except BrokenPipeError:
                raise self._ended() from None

    def _receive(self) -> tuple[str, Any]:
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > LINE_BYTES:
                raise self._stopped(f"refused: an answer of more than {LINE_BYTES:,} bytes")
            self._wait(self._answers, select.POLLIN)
            chunk = os.read(self._answers, CHUNK_BYTES)
            if not chunk:
                raise self._ended()
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        with contextlib.suppress(ValueError):
            answer = values.loads(line)
            if isinstance(answer, list) and len(answer) == 2 and isinstance(answer[0], str):
                return answer[0], answer[1]
        return "", None

    def _wait(self, place: int, event: int) -> None:
        """Until a pipe is ready; only this waiting counts as the program's time."""
        poll = select.poll()
        poll.register(place, event)
        began = time.monotonic()
        ready = poll.poll(max(self._left, 0) * 1000)
        self._left -= time.monotonic() - began
        if not ready:
            raise self._stopped("timed out")

    def _ended(self) -> Stopped:
        # a program that only closes its pipes goes on; it is not waited for long
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        return self._stopped("timed out" if self._process.returncode == values.OUT_OF_TIME else "ended")

    def _stopped(self, reason: str) -> Stopped:
        self.failure = reason
        self.close()
        return Stopped(reason)


def why_unfenced(fencing: Fencing = "namespaces") -> str:
    """Which fence this machine does not allow; empty where it allows all."""
    try:
        with Session(fencing=fencing):
            return ""
    except Unfenced as error:
        return str(error)


def _libraries() -> list[str]:
    """The folders that an interpreter loads modules and shared libraries from, none within another."""
    standard = str(Path(os.__file__).parent)
    folders = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", str(Path(sys.base_prefix) / "lib"), standard]
    found: list[str] = []
    for folder in folders:
        inside = any(folder == one or folder.startswith(f"{one}/") for one in found)
        if Path(folder).is_dir() and not inside:
            found.append(folder)
    return found


def _exception(name: str) -> Exception:
    """An exception of a built-in's name, so that a test can expect it; of any other name a plain one."""
    kind = getattr(builtins, name, None)
    if name != "StopIteration" and isinstance(kind, type) and issubclass(kind, Exception):
        # the one that is left out would end a test's `all(map(candidate, ...))` as if all had been asked
        with contextlib.suppress(TypeError):  # groups want more
            return kind.__new__(kind)
    return Exception(name)
