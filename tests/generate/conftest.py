"""Servers for tests, as processes that can be killed."""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from prefloop.generate.serve import free_ports

FAKE_SERVER = Path(__file__).with_name("fake_server.py")


class FakeServer:
    """A fake server's process."""

    def __init__(self, *arguments: str) -> None:
        (self.port,) = free_ports(1)
        self._command = [sys.executable, str(FAKE_SERVER), f"--port={self.port}", *arguments]
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 150
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError("the fake server does not start")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.root}/health").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def faults(self, **faults: object) -> None:
        httpx.post(f"{self.root}/faults", json=faults).raise_for_status()

    @property
    def seen(self) -> dict:
        return httpx.get(f"{self.root}/seen").json()

    @property
    def asked(self) -> list[dict]:
        return self.seen["bodies"]


@pytest.fixture
def fake_server():
    """Makes servers; all end with the test."""
    made: list[FakeServer] = []

    def make(*arguments: str) -> FakeServer:
        made.append(FakeServer(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.kill()
