"""HumanEval: what is run for a completion, pass@k by hand, files that cannot be scored, and what the command writes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefloop.cli import app
from prefloop.interfaces import InputError
from prefloop.sandbox.session import why_unfenced
from prefloop.scoring import human_eval
from prefloop.scoring.human_eval import Problem, pass_at_k

HELPED = {
    "task_id": "made/0",
    "prompt": 'import math\n\ndef helper(x):\n    return math.floor(x)\n\n\ndef whole(x):\n    """Its floor."""\n',
    "entry_point": "whole",
    "test": "def check(candidate):\n    for x in (0.5, 2.0, -1.5):\n        assert candidate(x) == helper(x) == whole(x)\n",
    "canonical_solution": "    return helper(x)\n",
}
OTHER = {
    "task_id": "made/1",
    "prompt": "def one():\n",
    "entry_point": "one",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
    "canonical_solution": "    return 1\n",
}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def way() -> list[str]:
    """So that everything here runs on machines without namespaces too."""
    return ["--without-namespaces"] if why_unfenced() else []


def command(*words) -> list[dict]:
    done = CliRunner().invoke(
        app, ["score", "human-eval", *map(str, words), "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_whole_programs_bodies_and_fenced_blocks_are_told_apart():
    problem = Problem("made/0", HELPED["prompt"], HELPED["entry_point"], HELPED["test"])
    before = "import math\n\ndef helper(x):\n    return math.floor(x)\n\n\n"
    whole, body = "def whole(x):\n    return 1\n", "    return 1\n"
    assert problem.before == before
    assert problem.program(body) == problem.prompt + body
    assert problem.program(whole) == before + whole
    assert problem.program(f"Here:\n```python\n{whole}```\nIt is 1.") == before + whole
    assert problem.program(f"```\n{body}```") == problem.prompt + body
    assert problem.program(f"```py\nimport os\n```\nand\n```py\n{whole}```") == before + whole
    assert problem.program(f"```python\n{whole}") == before + whole, "a block that is cut off"
    longer = "def whole_part(x):\n    return 1\n"
    assert problem.program(longer) == problem.prompt + longer, "another function's name begins like it"


@pytest.mark.parametrize(
    ("number", "passed", "k"), [(6, 3, 1), (6, 3, 2), (10, 1, 10), (10, 0, 5), (5, 4, 2), (200, 7, 100)]
)
def test_pass_at_k_is_one_minus_the_share_of_draws_without_a_right_one(number, passed, k):
    expected = 1 - math.comb(number - passed, k) / math.comb(number, k)
    assert pass_at_k(number, passed, k) == pytest.approx(expected, abs=1e-12)


def test_canonical_solutions_pass_and_a_test_may_use_the_prompts_helpers(tmp_path, way):
    (found,) = command(write(tmp_path / "problems.jsonl", [HELPED, OTHER]), *way)
    assert found["figures"]["num_passed"]["value"] == 2
    assert found["benchmark"].startswith("human_eval[problems=2/")


def test_samples_are_counted_by_problem_and_compared_with_stored_flags(tmp_path, way):
    problems = write(tmp_path / "problems.jsonl", [HELPED, OTHER])
    samples = [
        {"task_id": "made/0", "completion": "    return math.floor(x)", "passed": "True"},
        {"task_id": "made/0", "completion": "    return x", "passed": False},
        {"task_id": "made/0", "completion": "    return unknown", "passed": True},
        {"task_id": "made/1", "completion": "    import sys; sys.exit()"},
        {"task_id": "made/1", "completion": "    return 1"},
    ]
    out = tmp_path / "results.jsonl"
    given = write(tmp_path / "samples.jsonl", samples)
    (found,) = command(given, "--problems", problems, "--k", 1, "--k", 2, "--k", 3, "--results", out, *way)
    figures = found["figures"]
    # 1/3 and 1/2; of two draws of three, one in three has no right one, of two draws of two none
    assert figures["pass_at_1"]["value"] == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)
    assert figures["pass_at_2"]["value"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert "pass_at_3" not in figures, "made/1 has two samples"
    assert found["notes"][-1] == "no pass@3: a problem has 2 samples only"
    assert figures["share_equal_to_stored"]["value"] == pytest.approx(2 / 3)
    assert found["rows"] == {"in": 5, "scored": 5, "dropped": {}}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    reasons = ["passed", "wrong answer", "raised NameError", "raised SystemExit", "passed"]
    assert [row["reason"] for row in rows] == reasons
    assert [(row["task_id"], row["passed"]) for row in rows[:2]] == [("made/0", True), ("made/0", False)]


def test_the_variable_of_human_eval_plus_names_the_problems(tmp_path, way, monkeypatch):
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", write(tmp_path / "plus.jsonl", [OTHER]))
    samples = write(tmp_path / "samples.jsonl", [{"task_id": "made/1", "completion": "    return 1"}])
    (found,) = command(samples, *way)
    assert found["figures"]["pass_at_1"]["value"] == 100


def test_human_eval_plus_compares_with_its_own_solutions(tmp_path, way):
    halves = {
        "task_id": "plus/0",
        "prompt": 'def halves(xs):\n    """Half of each, in a list that it may change."""\n',
        "entry_point": "halves",
        "canonical_solution": "    for place, x in enumerate(xs): xs[place] = x / 2\n    return xs\n",
        "base_input": [[[1, 2]]],
        "plus_input": [[[]], [[0.3]]],
        "atol": 0,
    }
    zero = {
        "task_id": "plus/1",
        "prompt": 'def poly(xs, x):\n    return xs[0] + xs[1] * x\n\n\ndef find_zero(xs):\n    """Where poly is zero."""\n',
        "entry_point": "find_zero",
        "canonical_solution": "    return -xs[0] / xs[1]\n",
        "base_input": [[[1, 2]], [[4, -8]]],
        "plus_input": [],
        "atol": 1e-4,
    }
    problems = write(tmp_path / "plus.jsonl", [halves, zero])
    (found,) = command(problems, *way)
    assert found["figures"]["num_passed"]["value"] == 2
    assert found["benchmark"].startswith("human_eval_plus[problems=2/")
    right = {
        "plus/0": ["[x / 2 + 1e-9 for x in xs]", "[(x / 2) for x in xs]"],
        "plus/1": ["-xs[0] / xs[1] + 1e-5", "round(-xs[0] / xs[1], 4)"],
    }
    wrong = {
        "plus/0": [
            "[x / 2 + 1e-3 for x in xs]",
            "tuple(x / 2 + 1e-9 for x in xs)",
            "[x / 2 for x in xs[1:]]",
            "None",
        ],
        "plus/1": ["0", "None", "[-xs[0] / xs[1]]", "float('nan')"],
    }
    for answers, count in ((right, 4), (wrong, 0)):
        rows = [
            {
                "task_id": name,
                "solution": f"def {'halves' if name == 'plus/0' else 'find_zero'}(xs):\n    return {one}",
            }
            for name, some in answers.items()
            for one in some
        ]
        (found,) = command(write(tmp_path / "samples.jsonl", rows), "--problems", problems, *way)
        assert found["figures"]["num_passed"]["value"] == count


def test_another_limit_is_part_of_the_name(tmp_path, way):
    (found,) = command(write(tmp_path / "problems.jsonl", [OTHER]), "--seconds", 10, *way)
    assert found["benchmark"].endswith(", seconds=10.0]")


SAMPLE = {"task_id": "made/1", "completion": "    return 1"}


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (
            [{"task_id": "made/7", "completion": ""}],
            "samples.jsonl row 1: made/7 is no problem of .*problems.jsonl",
        ),
        ([SAMPLE], "samples.jsonl: no sample of made/0, and of 1 of 2 problems in all"),
        ([SAMPLE, {"task_id": "made/0", "completion": None}], "row 2: completion is None, not text"),
        ([SAMPLE | {"passed": "yes"}], "row 1: passed is 'yes', not true or false"),
        ([{"task_id": "made/0", "text": ""}], "columns task_id, text are of no format that is known here"),
    ],
)
def test_samples_that_cannot_be_scored_name_the_place(tmp_path, samples, told):
    problems = write(tmp_path / "problems.jsonl", [HELPED, OTHER])
    with pytest.raises(InputError, match=told):
        human_eval.score(write(tmp_path / "samples.jsonl", samples), problems=problems, draws=2)


def test_results_need_a_folder_before_anything_is_run(tmp_path):
    problems = write(tmp_path / "problems.jsonl", [OTHER])
    with pytest.raises(InputError, match="there is no folder .*nowhere; make it first"):
        command(problems, "--results", tmp_path / "nowhere" / "results.jsonl")


def test_problems_that_are_none_are_told(tmp_path, way):
    with pytest.raises(InputError, match="row 1: no problem of HumanEval .* name the problems by --problems"):
        human_eval.score(write(tmp_path / "samples.jsonl", [SAMPLE]), draws=2)
    with pytest.raises(InputError, match="row 2: made/1 has been there before"):
        human_eval.read_problems(write(tmp_path / "twice.jsonl", [OTHER, OTHER]))
    broken = write(tmp_path / "broken.jsonl", [OTHER | {"test": "import nothing_of_that_name"}])
    with pytest.raises(InputError, match="made/1: its test cannot be run: ModuleNotFoundError"):
        human_eval.score(broken, draws=2, fencing="limits" if way else "namespaces")


def test_a_machine_without_namespaces_is_refused_and_told_what_to_do(tmp_path):
    problems = write(tmp_path / "problems.jsonl", [OTHER])
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces"
    inner = f'{forbid} && exec "$@"'
    words = ["unshare", "--map-root-user", "sh", "-c", inner, "sh", sys.executable, "-m", "prefloop.cli"]
    try:
        subprocess.run(["unshare", "--map-root-user", "sh", "-c", forbid], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a machine without namespaces cannot be made here: {error}")
    score = [*words, "score", "human-eval", problems, "--json"]
    refused = subprocess.run(score, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    for part in ("does not allow them (", "unshare", "In a container", "--without-namespaces"):
        assert part in refused.stderr
    allowed = subprocess.run([*score, "--without-namespaces"], capture_output=True, text=True, check=True)
    (found,) = json.loads(allowed.stdout)
    assert found["figures"]["num_passed"]["value"] == 1
    assert found["notes"] == ["generated code ran without namespaces"]


@pytest.mark.shared
@pytest.mark.slow
def test_canonical_solutions_pass_without_namespaces_and_equal_objects_pass_nothing(shared, tmp_path, way):
    problems = shared / "data" / "humaneval" / "HumanEval.jsonl.gz"
    (found,) = command(problems, "--without-namespaces", "--draws", 2)
    assert found["figures"]["num_passed"]["value"] == 164
    assert found["benchmark"] == "human_eval"
    equal = "class Equal:\n    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = lambda *_: True\n"
    samples = [
        {"task_id": one.task_id, "completion": f"{equal}def {one.entry_point}(*_): return Equal()\n"}
        for one in human_eval.read_problems(str(problems)).values()
    ]
    (found,) = command(write(tmp_path / "equal.jsonl", samples), "--problems", problems, "--draws", 2, *way)
    assert found["figures"]["num_passed"]["value"] == 0
    assert found["notes"][-1] == "not passed: 164 refused: Equal"
