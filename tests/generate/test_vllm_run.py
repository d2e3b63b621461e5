"""A whole run that samples with real vLLM, killed in the middle and resumed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small import SMALL

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed; `make test-vllm` brings it"
    ),
]
ENGINE = "generate.engine={kind: vllm, keep: true}"


def started(folder: Path) -> subprocess.Popen[str]:
    experiment = folder / "small.yaml"
    experiment.write_text(SMALL)
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "prefloop.cli",
            "run",
            experiment,
            ENGINE,
            "--workspace",
            folder / "workspace",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(folder: Path) -> str:
    process = started(folder)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def manifests(folder: Path) -> dict[str, dict]:
    found = (folder / "workspace" / "artefacts").glob("*/manifest.json")
    return {path.parent.name: json.loads(path.read_text()) for path in found}


@pytest.mark.timeout(600)
def test_a_run_killed_while_it_samples_ends_in_the_same_artefacts(tmp_path):
    """Two iterations; the second run is killed as the second label batch is under way."""
    import psutil

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    output = finished(whole)
    assert "Traceback" not in output and "WARNING" not in output
    expected = manifests(whole)
    sampled = {name: one["stats"] for name, one in expected.items() if name.startswith("generate-")}
    assert sorted(one["policy_version"] for one in sampled.values()) == [0, 0, 1]
    assert all(0 < one["trainer_gap"] < 1e-4 for one in sampled.values())

    process = started(killed)
    second = next(name for name, one in sampled.items() if one["policy_version"] == 1)
    deadline = time.monotonic() + 240
    while not (killed / "workspace" / "artefacts" / f"{second}.partial").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.002)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("spawn_main" in " ".join(one.cmdline()) for one in family)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert second not in manifests(killed)
    assert not psutil.wait_procs(family, timeout=20)[1]

    finished(killed)
    assert {name: one["digest"] for name, one in manifests(killed).items()} == {
        name: one["digest"] for name, one in expected.items()
    }
