"""Starts servers of a policy on this machine and keeps them running.

Each has a port, a log file and a keeper process, which ends it together with this one, however this one ends. A server
that dies after it was ready is started again, with growing pauses. Knows how vLLM's server is started; the rest would do
for any command.
"""

import contextlib
import importlib.util
import logging
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from prefloop.generate import keeper
from prefloop.interfaces import InputError, PrefloopError

HOST = "127.0.0.1"
PYTHON_VARIABLE = "PREFLOOP_VLLM_PYTHON"
"""Names the Python that has vLLM, where it is not this one."""
MODEL_NAME = "policy"
POLL_S = 0.1
READY_WITHIN_S = 1800.0
"""Loading a large model and compiling it may take this long."""
GRACE_S = 10.0
"""Between asking a server to end and ending it."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Before a server that died is started again; twice as long each time that it was not ready in between."""
SHOWN_LINES = 15
"""Of a log, in a message."""

Command = Callable[[int], Sequence[str]]
"""How a server is started on a port."""
Say = Callable[[str], None]
logger = logging.getLogger(__name__)


@dataclass
class _Replica:
    """One server: where it listens, what it writes, and the process that keeps it."""

    number: int
    port: int
    log: Path
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0
    """Since it was ready last."""
    ready: bool = False
    start_at: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        """Its OpenAI-compatible address."""
        return f"http://{HOST}:{self.port}/v1"


class Replicas:
    """Servers that are kept running; made by `replicas`."""

    def __init__(self, command: Command, members: Sequence[_Replica], say: Say) -> None:
        self._command = command
        self._members = members
        self._say = say
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="replicas", daemon=True)

    @property
    def urls(self) -> list[str]:
        """One a server; the same for as long as the servers are kept, whatever dies in between."""
        return [one.url for one in self._members]

    @property
    def processes(self) -> "list[subprocess.Popen[bytes]]":
        """The keepers of the servers that run."""
        return [one.process for one in self._members if one.process is not None]

    @property
    def logs(self) -> list[Path]:
        """What each server writes."""
        return [one.log for one in self._members]

    def start(self) -> None:
        """Returns when all servers are ready. Raises PrefloopError when one ends before, with the end of its log."""
        for one in self._members:
            self._start(one)
        deadline = time.monotonic() + READY_WITHIN_S
        with httpx.Client(timeout=2.0) as client:
            while not all(one.ready for one in self._members):
                for one in self._members:
                    self._check_start(one, client, deadline)
                time.sleep(POLL_S)
        self._thread.start()

    def stop(self) -> None:
        """Ends all servers and waits until they have ended."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        running = self.processes
        for process in running:
            assert process.stdin is not None, "keepers are started with a pipe"
            process.stdin.close()
        for process in running:
            process.wait()

    def _check_start(self, one: _Replica, client: httpx.Client, deadline: float) -> None:
        if one.ready:
            return
        assert one.process is not None, "it was started"
        code = one.process.poll()
        if code is not None or time.monotonic() > deadline:
            what = (
                f"ended with code {code}" if code is not None else f"is not ready after {READY_WITHIN_S:g} s"
            )
            raise PrefloopError(
                f"server {one.number} {what} before it was ready; the end of {one.log}:\n{tail(one.log)}"
            )
        if _is_healthy(client, one.port):
            one.ready = True
            self._say(f"server {one.number} is ready: {one.url}")

    def _start(self, one: _Replica) -> None:
        command = list(self._command(one.port))
        one.log.parent.mkdir(parents=True, exist_ok=True)
        with one.log.open("ab") as log:
            log.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
            log.flush()
            one.process = subprocess.Popen(
                [sys.executable, keeper.__file__, str(GRACE_S), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | one.environment,
            )

    def _keep(self) -> None:
        """Starts servers again that have died."""
        with httpx.Client(timeout=2.0) as client:
            while not self._stop.wait(POLL_S):
                for one in self._members:
                    self._look_after(one, client)

    def _look_after(self, one: _Replica, client: httpx.Client) -> None:
        if one.process is None:
            if time.monotonic() >= one.start_at:
                self._start(one)
        elif (code := one.process.poll()) is not None:
            assert one.process.stdin is not None, "keepers are started with a pipe"
            one.process.stdin.close()
            pause = min(FIRST_PAUSE_S * 2**one.deaths, LONGEST_PAUSE_S)
            one.process, one.ready = None, False
            one.deaths += 1
            one.start_at = time.monotonic() + pause
            self._say(
                f"server {one.number} ended with code {code}; starting it again in {pause:g} s, see {one.log}"
            )
        elif not one.ready and _is_healthy(client, one.port):
            one.ready, one.deaths = True, 0
            self._say(f"server {one.number} is ready again: {one.url}")


@contextlib.contextmanager
def replicas(
    command: Command,
    *,
    number: int,
    logs: Path,
    first_port: int | None = None,
    environments: Sequence[Mapping[str, str]] = (),
    say: Say = logger.info,
) -> Iterator[Replicas]:
    """So many servers, ready; all ended at the end. Raises InputError for a port that is taken, and PrefloopError."""
    ports = free_ports(number) if first_port is None else _these_ports(first_port, number)
    members = [
        _Replica(place, port, logs / f"server-{place}.log", environments[place] if environments else {})
        for place, port in enumerate(ports)
    ]
    found = Replicas(command, members, say)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@contextlib.contextmanager
def serve_policy(
    model: str,
    *,
    number: int,
    dtype: str,
    arguments: Sequence[str] = (),
    logs: Path,
    first_port: int | None = None,
    python: str | None = None,
    say: Say = logger.info,
) -> Iterator[Replicas]:
    """So many vLLM servers of a model folder or hub name, on the GPUs of this machine in equal shares."""
    chosen = python or os.environ.get(PYTHON_VARIABLE) or sys.executable
    _check_python(chosen)
    with replicas(
        lambda port: vllm_command(chosen, model, port, dtype=dtype, arguments=arguments),
        number=number,
        logs=logs,
        first_port=first_port,
        environments=[devices(place, number) for place in range(number)],
        say=say,
    ) as found:
        yield found


def vllm_command(python: str, model: str, port: int, *, dtype: str, arguments: Sequence[str]) -> list[str]:
    """vLLM's server so that it samples as it is told: the model's own generation settings do not count."""
    return [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={model}",
        f"--served-model-name={MODEL_NAME}",
        f"--host={HOST}",
        f"--port={port}",
        f"--dtype={dtype}",
        "--generation-config=vllm",
        *arguments,
    ]


def tail(log: Path) -> str:
    """The last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-SHOWN_LINES:])


def _check_python(python: str) -> None:
    if python == sys.executable and importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"vLLM is not installed in {python}; pip install vllm, or name a Python that has it in {PYTHON_VARIABLE}"
        )


def devices(place: int, number: int) -> dict[str, str]:
    """The GPUs of one server among several; servers share them where there are fewer GPUs than servers."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        devices = [one for one in given.split(",") if one.strip()]
    else:
        import torch

        devices = [str(one) for one in range(torch.cuda.device_count())]
    if not devices:
        return {}
    each = len(devices) // number
    own = devices[place * each : (place + 1) * each] if each else [devices[place % len(devices)]]
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)}


def _is_healthy(client: httpx.Client, port: int) -> bool:
    try:
        return client.get(f"http://{HOST}:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def free_ports(number: int) -> list[int]:
    """Ports that nothing listens at just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def _these_ports(first: int, number: int) -> list[int]:
    ports = list(range(first, first + number))
    for port in ports:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((HOST, port))
            except OSError as error:
                raise InputError(f"--port {first}: {HOST}:{port} cannot be used: {error}") from error
    return ports
