"""The examples run as they stand and print what their first lines promise."""

import json
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


@pytest.mark.slow
def test_whole_rankings_and_shuffled_pairs_are_trained_on_as_many_tokens(tiny_model, tmp_path):
    rows = [
        {"prompt": f"Tale {number}?", "ranked_responses": ["Ada smiled.", "Ada went home.", "It rained."]}
        for number in range(10)
    ]
    rankings = tmp_path / "rankings.jsonl"
    rankings.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        [
            *(sys.executable, EXAMPLES / "k_way_reward.py", "--model", tiny_model, "--rankings", rankings),
            *("--epochs", "4", "--seeds", "1", "--max-length", "64"),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "held out" in line]
    ways = ["whole rankings", "shuffled pairs, a prompt counts once", "shuffled pairs, all alike"]
    assert [line[:38].strip() for line in lines] == ways
    assert "whole rankings lead by   0.0 (0.0 to 0.0)" in lines[0]


@pytest.mark.slow
def test_a_search_is_set_beside_samples_of_the_same_number_and_of_the_same_tokens(tmp_path):
    done = subprocess.run(
        [
            *(
                sys.executable,
                EXAMPLES / "tree_search.py",
                "--seeds",
                "1",
                "--prompts",
                "2",
                "--labels",
                "16",
            ),
            *("--num-completions", "4", "--iterations", "4", "--sft-steps", "2"),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("guided by")] == [
        line for line in lines if "tokens a prompt" in line
    ]
    ways = [line[2:30].strip() for line in lines if line.startswith("  ")]
    assert ways == ["4 samples", "samples of as many tokens", "search"] * 2
