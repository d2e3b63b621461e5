"""Servers started and kept by prefloop: a fake one, as a process that can be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from prefloop.generate import serve
from prefloop.interfaces import InputError, PrefloopError

FAKE_SERVER = Path(__file__).with_name("fake_server.py")
PARENT = """
import sys, threading
from pathlib import Path
from prefloop.generate.serve import replicas

command = lambda port: [sys.executable, sys.argv[1], f"--port={port}", f"--pids={sys.argv[2]}/pids"]
with replicas(command, number=2, logs=Path(sys.argv[2]), say=lambda text: None) as found:
    print(*found.urls, flush=True)
    threading.Event().wait()
"""
STUBBORN = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not os.fork():
    signal.pause()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever(0.01)
"""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(serve, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(serve, "GRACE_S", 0.5)


def fake(pids: Path, *arguments: str):
    return lambda port: [sys.executable, str(FAKE_SERVER), f"--port={port}", f"--pids={pids}", *arguments]


def pids_in(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def is_running(pid: int) -> bool:
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models").status_code == 200
    except httpx.TransportError:
        return False


def test_servers_are_ready_have_logs_and_end_with_the_block(tmp_path):
    said = []
    with serve.replicas(fake(tmp_path / "pids"), number=2, logs=tmp_path / "logs", say=said.append) as found:
        assert len(set(found.urls)) == 2
        assert all(answers(url) for url in found.urls)
        assert all("fake server" in log.read_text() for log in found.logs)
        assert [line.split(" is ready")[0] for line in sorted(said)] == ["server 0", "server 1"]
    assert len(pids_in(tmp_path / "pids")) == 2
    assert not any(is_running(pid) for pid in pids_in(tmp_path / "pids"))


def test_a_server_that_is_killed_is_started_again_at_the_same_address(tmp_path):
    said = []
    with serve.replicas(fake(tmp_path / "pids"), number=2, logs=tmp_path, say=said.append) as found:
        urls = found.urls
        os.kill(pids_in(tmp_path / "pids")[0], signal.SIGKILL)
        wait_until(lambda: len(pids_in(tmp_path / "pids")) == 3)
        wait_until(lambda: any("is ready again" in line for line in said))
        assert found.urls == urls
        assert all(answers(url) for url in urls)
    assert any("ended with code 137; starting it again in 0.1 s, see " in line for line in said)
    assert not any(is_running(pid) for pid in pids_in(tmp_path / "pids"))


def test_pauses_grow_while_a_server_does_not_get_ready(tmp_path):
    said = []
    fails = tmp_path / "fails"

    def command(port: int) -> list[str]:
        return fake(tmp_path / "pids", *(["--fails"] if fails.exists() else []))(port)

    with serve.replicas(command, number=1, logs=tmp_path, say=said.append):
        fails.touch()
        os.kill(pids_in(tmp_path / "pids")[0], signal.SIGKILL)
        wait_until(lambda: sum("ended with" in line for line in said) >= 3)
    pauses = [float(line.split(" again in ")[1].split(" s")[0]) for line in said if "ended with" in line]
    assert pauses[:3] == [0.1, 0.2, 0.4]


def test_a_server_that_ends_before_it_is_ready_is_told_with_the_end_of_its_log(tmp_path):
    with (
        pytest.raises(PrefloopError) as caught,
        serve.replicas(fake(tmp_path / "pids", "--fails"), number=2, logs=tmp_path),
    ):
        pass
    assert "ended with code 1 before it was ready" in str(caught.value)
    assert "no memory left for the keys and values" in str(caught.value)
    assert not any(is_running(pid) for pid in pids_in(tmp_path / "pids"))


def test_a_port_that_is_taken_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"--port {port}: 127.0.0.1:{port} cannot be used"),
            serve.replicas(fake(tmp_path / "pids"), number=1, logs=tmp_path, first_port=port),
        ):
            pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_server_outlives_the_process_that_keeps_it(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, FAKE_SERVER, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    assert len(parent.stdout.readline().split()) == 2
    pids = pids_in(tmp_path / "pids")
    assert len(pids) == 2 and all(is_running(pid) for pid in pids)
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_a_server_that_will_not_end_is_killed_with_what_it_has_started(tmp_path):
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    with serve.replicas(lambda port: [sys.executable, str(script), str(port)], number=1, logs=tmp_path):
        mine = [
            pid
            for pid in map(int, filter(str.isdigit, (one.name for one in Path("/proc").iterdir())))
            if str(script) in command_of(pid)
        ]
        assert len(mine) == 3  # keeper, server, and the server's own child
    assert not any(is_running(pid) for pid in mine)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    shares = [serve.devices(place, 2)["CUDA_VISIBLE_DEVICES"] for place in range(2)]
    assert shares == ["0,1", "2,3"]
    assert [serve.devices(place, 6)["CUDA_VISIBLE_DEVICES"] for place in range(6)] == [
        "0",
        "1",
        "2",
        "3",
        "0",
        "1",
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert serve.devices(0, 2) == {}


def test_without_vllm_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv(serve.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(InputError, match="vLLM is not installed .* PREFLOOP_VLLM_PYTHON"),
        serve.serve_policy("model", number=1, dtype="float32", logs=tmp_path),
    ):
        pass
