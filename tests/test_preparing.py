"""What AlpacaEval publishes, made into the folder that its length-controlled win rate reads."""

import contextlib
import csv
import gzip
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefloop.cli import app
from prefloop.interfaces import InputError
from prefloop.scoring.alpaca_eval import load_inputs
from prefloop.scoring.preparing import BASELINE, GAMED, prepare_alpaca_eval
from scored import command

ROWS = [
    {"index": index, "model": model, "preference": preference, "std_delta_len": gap, "instruction_difficulty": difficulty,
     "not_gamed_baseline": False}
    for model, preference, gap in (("concise", 0.25, 2.5), ("verbose", 0.75, -1.5))
    for index, difficulty in enumerate((0.0, -1.25))
]  # fmt: skip
PROMPTS = [
    {"dataset": "d", "instruction": one, "output": f"answer to {one}", "generator": "base"} for one in ("Why?", "How?")
]  # fmt: skip


def published(folder: Path, rows: list[dict] = ROWS, prompts: list[dict] = PROMPTS) -> Path:
    """The files as the benchmark has them."""
    folder.mkdir(exist_ok=True)
    with (folder / GAMED).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / BASELINE).write_text(json.dumps(prompts))
    return folder


def test_a_folder_of_published_files_becomes_inputs(tmp_path):
    ran = CliRunner().invoke(
        app,
        [
            "eval",
            "prepare",
            "alpaca-eval",
            str(tmp_path / "in"),
            "--from",
            str(published(tmp_path / "files")),
        ],
    )
    assert ran.exit_code == 0 and "2 instructions, 4 judgements" in ran.stdout and "CC BY-NC" in ran.stdout
    inputs = load_inputs(tmp_path / "in")
    assert inputs.difficulty == {0: 0.0, 1: -1.25, "Why?": 0.0, "How?": -1.25}
    assert inputs.instructions == {0: "Why?", 1: "How?"}
    assert inputs.gamed[:, 2].tolist() == [0.25, 0.25, 0.75, 0.75]
    prompts = [
        json.loads(one) for one in (tmp_path / "in/prompts_and_baseline.jsonl").read_text().splitlines()
    ]
    assert prompts[1]["baseline_output"] == "answer to How?" and prompts[1]["generator"] == "base"
    assert "CC BY-NC 4.0" in (tmp_path / "in/SOURCE.md").read_text()


@pytest.mark.parametrize(
    ("rows", "prompts", "told"),
    [
        ([*ROWS[:3], ROWS[3] | {"instruction_difficulty": 2}], PROMPTS, "two difficulties of instruction 1"),
        ([ROWS[0] | {"preference": 1.5}], PROMPTS, "row 1: preference is 1.5; shares from 0 to 1"),
        (ROWS, [*PROMPTS, PROMPTS[0] | {"instruction": "Who?"}], "no difficulty of instruction 2"),
        (ROWS, [{"instruction": "Why?", "output": "x"}], "row 1: no generator"),
        ([ROWS[0] | {"std_delta_len": "inf"}], PROMPTS, "not a finite number"),
    ],
)
def test_what_is_wrong_with_the_files_is_told_and_nothing_is_written(tmp_path, rows, prompts, told):
    with pytest.raises(InputError, match=told):
        prepare_alpaca_eval(tmp_path / "in", source=published(tmp_path / "files", rows, prompts))
    assert not (tmp_path / "in").exists()
    with pytest.raises(InputError, match=f"no {GAMED}"):
        prepare_alpaca_eval(tmp_path / "in", source=tmp_path)


@pytest.mark.shared
def test_prepared_inputs_give_the_published_rates(shared, tmp_path):
    data = shared / "data/alpaca_eval"
    with (data / "gamed_rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    with gzip.open(data / "prompts_and_baseline.jsonl.gz", "rt") as file:
        prompts = [json.loads(one) for one in file]
    renamed = [one | {"output": one["baseline_output"], "generator": "gpt4_1106_preview"} for one in prompts]
    prepare_alpaca_eval(tmp_path / "in", source=published(tmp_path / "files", rows, renamed))
    scored = command(
        "score", "alpaca-eval", data / "annotations_compact.csv.gz", "--inputs", tmp_path / "in", "--model", "claude-2",
        "--draws", 2,
    )  # fmt: skip
    (found,) = scored
    assert found["figures"]["lc_win_rate"]["value"] == pytest.approx(28.1552, abs=0.11)  # the leaderboard's


# --- the model hub ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub(folder: Path):
    """Serves files as the model hub does; yields its address and the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            path = folder / self.path.rpartition("/")[2]
            if not path.is_file():
                self.send_error(404)
                return
            body = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{len(body)}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_HEAD()

        def log_message(self, *_):
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def prepared_from(endpoint: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
    }
    code = "from prefloop.cli import main; main()"
    words = [
        sys.executable,
        "-c",
        code,
        "eval",
        "prepare",
        "alpaca-eval",
        str(tmp_path / "in"),
        "--revision",
        "v1",
    ]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


def test_files_are_fetched_from_the_model_hub_at_a_revision(tmp_path):
    with hub(published(tmp_path / "files")) as (endpoint, asked):
        ran = prepared_from(endpoint, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert f"/datasets/tatsu-lab/alpaca_eval/resolve/v1/{GAMED}" in asked
    assert load_inputs(tmp_path / "in").instructions == {0: "Why?", 1: "How?"}
    assert "at v1, a dataset of the model hub" in (tmp_path / "in/SOURCE.md").read_text()


def test_a_file_that_the_hub_does_not_give_is_told_with_what_to_do(tmp_path):
    (tmp_path / "files").mkdir()
    with hub(tmp_path / "files") as (endpoint, _):
        ran = prepared_from(endpoint, tmp_path)
    assert ran.returncode == 4
    assert f"tatsu-lab/alpaca_eval: {GAMED} cannot be fetched" in ran.stderr and "--from" in ran.stderr
    assert "Traceback" not in ran.stderr
