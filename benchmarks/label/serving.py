"""The app as a server process of its own: `python -m benchmarks.label.serving STORE PORT WORKERS`, without rate limits."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI

ROOT = Path(__file__).resolve().parents[2]
STORE = "PREFLOOP_BENCHMARK_STORE"
"""Tells the workers of a server which store it is over."""
READY = "PREFLOOP_BENCHMARK_READY"
"""And in which folder to say that they are up: the first would be given all connections."""
MOST = 10**9
START_SECONDS = 120


def app() -> FastAPI:
    """What each worker serves."""
    from prefloop.labels.database import open_database
    from prefloop.web.app import WebOptions, create_app
    from prefloop.web.security import Limits

    made = create_app(open_database(os.environ[STORE]), WebOptions(limits=Limits(claim=MOST, submit=MOST)))
    if READY in os.environ:
        (Path(os.environ[READY]) / str(os.getpid())).touch()
    return made


def main() -> None:
    """Serves until it is ended."""
    import uvicorn

    from prefloop.labels.database import database_url, the_only_server

    store, port, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.environ[STORE] = store
    with the_only_server(database_url(store)):
        uvicorn.run(
            "benchmarks.label.serving:app",
            factory=True,
            port=port,
            workers=workers,
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level="warning",
        )


@contextlib.contextmanager
def served(store: str, *, workers: int = 1) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """A running server; yields its port and process. It is killed at the end, unless it is dead by then."""
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.label.serving", store, str(port), str(workers)]
    ready = tempfile.TemporaryDirectory(prefix="prefloop-ready-")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", READY: ready.name}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        _await(port, process, Path(ready.name), workers)
        yield port, process
    finally:
        ready.cleanup()
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _await(port: int, process: "subprocess.Popen[bytes]", ready: Path, workers: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        is_up = len(list(ready.iterdir())) >= workers
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            if is_up:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start (exit status {process.returncode})")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
