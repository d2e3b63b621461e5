"""A run can be killed, stopped, doubled or starved of disk at any moment, and ends in the same artefacts."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import commands
from prefloop import pipeline
from prefloop.store import Workspace
from small import SMALL, small

NUM_KILLS = 25
LONGEST_WAIT_S = 0.4


def words(folder: Path, *, workspace: str = "workspace") -> list[str]:
    """What follows `prefloop`."""
    experiment = folder / "small.yaml"
    experiment.write_text(SMALL)
    return ["run", str(experiment), "--workspace", str(folder / workspace)]


def command(folder: Path, *, workspace: str = "workspace") -> list[str]:
    return [sys.executable, "-m", "prefloop.cli", *words(folder, workspace=workspace)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(args: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        args,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(args: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(args, env=environment(), capture_output=True, text=True, timeout=480)


def digests(workspace: Path) -> dict[str, str]:
    return {
        path.parent.name: json.loads(path.read_text())["digest"]
        for path in (workspace / "artefacts").glob("*/manifest.json")
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = finish(command(folder))
    assert done.returncode == 0, done.stderr
    return digests(folder / "workspace")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_at_25_moments_ends_in_the_same_artefacts(tmp_path, uninterrupted):
    artefacts = tmp_path / "workspace" / "artefacts"
    names = list(
        dict.fromkeys(entry.artefact.name for entry in pipeline.plan(small(), Workspace(tmp_path / "x")))
    )
    rng = random.Random(0)
    targets = sorted(rng.choices(range(len(names)), k=NUM_KILLS))
    killed_in = []
    for target in targets:
        running = commands.start(words(tmp_path), tmp_path / "out", tmp_path / "errors", environment())
        wait_s = rng.uniform(0, LONGEST_WAIT_S)
        building = artefacts / (names[target] + ".partial")
        while running.is_running and not building.exists() and not (artefacts / names[target]).exists():
            time.sleep(0.002)
        time.sleep(wait_s)
        if running.is_running:
            left = [path.name for path in artefacts.glob("*.partial")]
            running.kill()
            killed_in += left or ["between stages"]
        assert running.end() in (0, -signal.SIGKILL), (tmp_path / "errors").read_text()
    assert len(killed_in) >= NUM_KILLS * 0.6, killed_in
    assert len({name.split("-")[0] for name in killed_in}) >= 4, killed_in
    done = finish(command(tmp_path))
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "workspace") == uninterrupted
    assert not list(artefacts.glob("*.partial"))


def test_ctrl_c_stops_cleanly_and_says_how_to_continue(tmp_path, uninterrupted):
    args = command(tmp_path)
    process = start(args)
    artefacts = tmp_path / "workspace" / "artefacts"
    while not list(artefacts.glob("sft-*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Finished work is kept" in errors
    assert "prefloop run" in errors
    assert "Traceback" not in errors
    assert finish(args).returncode == 0
    assert digests(tmp_path / "workspace") == uninterrupted


def test_two_runs_on_one_workspace_do_not_disturb_each_other(tmp_path, uninterrupted):
    args = command(tmp_path)
    both = [start(args), start(args)]
    outputs = [process.communicate(timeout=480) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert digests(tmp_path / "workspace") == uninterrupted


@contextlib.contextmanager
def small_disk(folder: Path, options: str):
    """A file system of its own, where mounting is allowed."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(tmp_path, uninterrupted):
    with small_disk(tmp_path / "disk", "size=9m") as disk:
        args = command(tmp_path, workspace="disk/workspace")
        stopped = finish(args)
        assert stopped.returncode == 4
        assert "the disk is full; free some space and run again, finished work is kept" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert finish(args).returncode == 0
        assert digests(disk / "workspace") == uninterrupted


def test_a_read_only_workspace_is_named(tmp_path):
    with small_disk(tmp_path / "disk", "size=1m,ro"):
        stopped = finish(command(tmp_path, workspace="disk/workspace"))
    assert stopped.returncode == 4
    assert "the file system is read-only; choose another folder with --workspace" in stopped.stderr
    assert "Traceback" not in stopped.stderr
