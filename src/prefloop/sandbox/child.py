"""The untrusted side: takes a program and answers calls of one of its functions.

Two processes, in fact. The guard is trusted: it enters the namespaces, starts the other one, and kills it when it is told to
or when the trusted side is gone. The other one shuts itself in and runs the program.
"""

import contextlib
import math
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, cast

from prefloop.sandbox import fences, values

CHUNK_BYTES = 1 << 16
STOPS = {signal.SIGTERM, signal.SIGCHLD}


def main(fencing: str, folder: str, libraries: str, cpu_seconds: str) -> None:
    """One session in an empty folder; `libraries` are folders joined by colons."""
    limit = math.ceil(float(cpu_seconds)) + 1  # the interpreter needs some of it
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    fences.die_with_parent(signal.SIGTERM)
    try:
        if fencing == "namespaces":
            fences.enter_namespaces()
    except OSError as error:
        os.write(1, values.dumps(["unfenced", str(error)]))
        return
    program = os.fork()
    if program:
        _guard(program, limit)
    os.setsid()  # what it sends to its own group must not reach the guard
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    requests, answers = _channel()
    try:
        fences.die_with_parent(signal.SIGKILL)
        if fencing == "namespaces":
            fences.enter_empty_root(folder, libraries.split(":"))
        fences.set_limits(limit)
        fences.drop_privileges()
        if fencing == "limits":
            with contextlib.suppress(OSError):  # the best that there is on this machine
                fences.restrict_files(folder, libraries.split(":"))
        fences.filter_system_calls()
    except OSError as error:
        os.write(answers, values.dumps(["unfenced", str(error)]))
        return
    os.write(answers, values.dumps(["fenced", None]))
    _serve(requests, answers)


def _guard(program: int, cpu_limit: int) -> None:
    """Waits for the end of the program, or ends it, and with it all of its namespace."""
    os.closerange(0, 3)
    signal.sigwait(STOPS)
    os.kill(program, signal.SIGKILL)
    _, _, usage = os.wait4(program, 0)
    os._exit(values.OUT_OF_TIME if usage.ru_utime + usage.ru_stime > cpu_limit - 0.5 else 0)


def _channel() -> tuple[int, int]:
    """Moves the protocol away from descriptors 0 and 1; nothing is at 0, 1 and 2 from now on."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for place in (0, 1, 2):
        os.dup2(nothing, place)
    os.close(nothing)
    return requests, answers


def _serve(requests: int, answers: int) -> None:
    """Runs the program of the first line, then calls its function with the arguments of each line that follows."""
    lines = _lines(requests)
    source, name = cast("tuple[str, str]", values.loads(next(lines)))
    names: dict[str, Any] = {}

    def define() -> None:
        exec(source, names)
        if name not in names:
            raise NameError(name)

    _write(answers, _outcome(define))
    for line in lines:
        arguments, keywords = cast("tuple[tuple, dict]", values.loads(line))
        _write(answers, _outcome(lambda given=arguments, named=keywords: names[name](*given, **named)))


def _outcome(act: Callable[[], object]) -> bytes:
    try:
        value = act()
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the answer
        return values.dumps(["raised", type(error).__name__])
    try:
        return values.dumps(["value", value])
    except (TypeError, RecursionError, MemoryError):
        return values.dumps(["refused", type(value).__name__])


def _lines(place: int) -> Iterator[bytes]:
    rest = b""
    while chunk := os.read(place, CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def _write(place: int, line: bytes) -> None:
    while line:
        line = line[os.write(place, line) :]
