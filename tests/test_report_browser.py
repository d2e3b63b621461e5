"""The report in a real browser, without a network: it draws, and text from models stays text."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from prefloop import pipeline
from prefloop.pipeline import Watcher
from prefloop.report import write_report
from prefloop.store import Workspace
from small import small

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = (
    "<img src=x onerror=\"document.title='broken in'\"></script><script>document.title='broken in'</script>"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium"),
]


def browse(page: Path, folder: Path, *options: str) -> str:
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}/profile",
            "--window-size=1280,2000", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    workspace = Workspace(tmp_path_factory.mktemp("report") / "workspace")
    entries = pipeline.run(small(), workspace, Watcher())
    for entry in entries:
        if entry.role == "evaluate":
            path = entry.artefact.path / "groups.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                row["completions"][0]["text"] = HOSTILE
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_report(workspace, "small")


def test_text_of_a_model_runs_nothing_in_the_browser(page, tmp_path):
    dom = browse(page, tmp_path, "--dump-dom")
    assert "<title>broken in" not in dom
    assert "&lt;img src=x" in dom
    assert dom.count("<svg") >= 4


def test_the_page_draws_something(page, tmp_path):
    picture = tmp_path / "page.png"
    browse(page, tmp_path, f"--screenshot={picture}")
    assert picture.stat().st_size > 50_000
