"""The examples run as they stand and print what their first lines promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_the_loop_on_one_page_prints_a_mean_gold_score_for_the_start_and_each_iteration(tmp_path):
    page = EXAMPLES / "one_page_loop.py"
    assert len(page.read_text().splitlines()) <= 80
    done = subprocess.run(
        [sys.executable, page],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    gold = [re.fullmatch(r"(start|iteration \d): .*mean gold score (-?\d+\.\d\d)", line) for line in lines]
    assert all(gold), lines
    assert [one[1] for one in gold] == ["start", "iteration 1", "iteration 2"]
    # what prefloop.tales says about its quality
    assert all(-3 <= float(one[2]) <= 4 for one in gold)
    assert not list(tmp_path.iterdir())
