"""Stages and commands that sample from servers: the whole loop, killed and resumed, with a server that computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefloop import pipeline
from prefloop.pipeline import Watcher
from prefloop.store import Workspace
from small import small

pytestmark = pytest.mark.slow

FAKE_SERVER = Path(__file__).with_name("fake_server.py")
KEY = "sk-very-secret-0123456789"


@pytest.fixture
def serving_python(tmp_path, monkeypatch):
    """Stands for a Python with vLLM: runs the fake server, which computes with the policy that it is given."""
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\nexec {sys.executable} {FAKE_SERVER} --compute --pids={tmp_path}/pids "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PREFLOOP_VLLM_PYTHON", str(script))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_loop_runs_on_servers_that_it_starts_itself(serving_python, tmp_path):
    space = Workspace(tmp_path / "w")
    entries = pipeline.run(
        small(
            "generate.engine.kind=remote",
            "generate.engine.replicas=1",
            "loop.batches=1",
            "loop.gate.metric=none",
        ),
        space,
        Watcher(),
    )
    stats = [one.artefact.stats for one in entries if one.role == "generate"]
    assert stats and all(0 <= one["trainer_gap"] < 1e-4 for one in stats)
    assert list((space.root / "logs").glob("*/server-0.log"))
    assert not any(Path(f"/proc/{pid}").exists() for pid in (tmp_path / "pids").read_text().split())


# --- sampling a file of prompts, in a process that can be looked at ---


@pytest.fixture
def command(tiny_model, tmp_path, monkeypatch):
    """`prefloop generate` with some servers; returns its exit code and what it printed."""
    monkeypatch.setenv("POOL_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "400")

    def command(servers, *overrides, space="w") -> tuple[int, str]:
        engine = {
            "kind": "remote", "urls": [one.url for one in servers], "patience_s": 2.0, "retries": 2, "concurrency": 2,
            "api_key_env": "POOL_KEY",
        }  # fmt: skip
        done = subprocess.run(
            [
                sys.executable, "-m", "prefloop.cli", "generate", str(tiny_model), "builtin:tales/prompts",
                str(tmp_path / space / "samples.jsonl"), f"generate.engine={json.dumps(engine)}", "prompts.limit=40",
                "generate.num_completions=2", "generate.max_new_tokens=6", "runtime.device=cpu", "runtime.threads=1",
                *overrides, "--workspace", str(tmp_path / space),
            ],
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return command


def samples(tmp_path, space="w") -> list[dict]:
    return [json.loads(line) for line in (tmp_path / space / "samples.jsonl").read_text().splitlines()]


def test_killed_servers_end_a_run_that_goes_on_to_the_same_file(fake_server, command, tmp_path):
    chat = "generate.engine.api=chat"
    code, out = command([fake_server()], chat, space="whole")
    assert code == 0, out
    dying = [fake_server('--faults={"dies_after": 14}') for _ in range(2)]
    code, out = command(dying, chat)
    assert code == 4, out
    assert "no server answered for 2 s" in out and all(one.url in out for one in dying)
    (partial,) = (tmp_path / "w" / "artefacts").glob("generate-*.partial/groups.jsonl")
    kept = len(partial.read_text().splitlines())
    assert 16 < kept < 40  # more than the first chunk: of the one under way, what was answered
    well = fake_server()
    code, out = command([well], chat)
    assert code == 0, out
    assert len(well.asked) == 40 - kept  # what was kept is not sampled again
    whole = samples(tmp_path, "whole")
    assert samples(tmp_path) == whole
    assert len({one["prompt"]["id"] for one in whole}) == 40
    files = [path for path in (tmp_path / "w").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in out


def test_servers_of_other_weights_stop_the_run_unless_rounding_explains_it(
    fake_server, command, tiny_model, tmp_path
):
    server = fake_server("--compute", f"--model={tiny_model}", '--faults={"wrong_logps": 0.03}')
    code, out = command([server])
    assert code == 1
    assert "the engine runs other weights" in out
    assert not any(path.read_bytes() for path in tmp_path.glob("w/artefacts/generate-*/groups.jsonl"))
    code, out = command([server], "generate.engine.dtype=bfloat16")
    assert code == 0, out
    (manifest,) = (tmp_path / "w" / "artefacts").glob("generate-*/manifest.json")
    assert json.loads(manifest.read_text())["stats"]["trainer_gap"] == pytest.approx(0.03, abs=1e-3)
