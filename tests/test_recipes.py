"""The recipes of the documentation, run as they stand there and made smaller still."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefloop import pipeline
from prefloop.cli import app
from prefloop.config import preset
from prefloop.store import Workspace

HOW_TO = Path(__file__).resolve().parents[1] / "docs" / "how-to"
# three steps of fine-tuning teach nothing that the tales' own rule could tell apart
BY_LENGTH = "{kind: rule, rule: length}"
PEOPLE = f"annotate.annotator={{kind: simulated, gold: {BY_LENGTH}}}"
SMALLER = (
    "sft.max_steps=3",
    "sft.data.limit=60",
    "prompts.limit=200",
    "generate.max_new_tokens=10",
    "evaluate.resamples=200",
    "evaluate.num_prompts=4",
)
RL = (PEOPLE, "rl.max_new_tokens=8", "rl.steps=2")
ROUND = ["draw", "generate", "annotate", "select", "reward", "rl prompts", "policy", "evaluate"]
RECIPES = {
    "instructgpt": (
        2,
        ROUND,
        (
            *RL,
            "sft.text.limit=60",
            "rl.pretraining.limit=60",
            "reward.seed_prompts=6",
            "loop.prompts_per_batch=4",
        ),
    ),
    "anthropic-hh": (
        2,
        [*ROUND, "gate before", "gate after", "promote"],
        (*RL, "reward.seed_prompts=12", "loop.prompts_per_batch=6", "loop.gate.num_prompts=4"),
    ),
    "online-rlhf": (
        3,
        ["draw", "generate", "annotate", "select", "policy", "evaluate"],
        (f"annotate.annotator={BY_LENGTH}", "policy.max_steps=2", "loop.prompts_per_batch=6"),
    ),
    "sparrow": (
        1,
        ["rl prompts", "scale", "rl invent", "policy", "evaluate"],
        (*RL, "sft.text.limit=60", "reward.seed_prompts=8", "rules.data.limit=24", "rl.num_prompts=16"),
    ),
}
"""How many iterations, their stages, and what makes a recipe smaller."""


def small_run(page: str) -> list[str]:
    """The arguments of the last `prefloop run` of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", (HOW_TO / page).read_text(encoding="utf-8"), re.DOTALL)
    line = next(one for one in blocks[-1].replace("\\\n", " ").splitlines() if one.startswith("prefloop run"))
    return shlex.split(line)[2:]


@pytest.mark.slow
def test_a_recipe_whose_prompts_have_answers_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(preset("grpo-gsm8k"))
    rows = [{"question": f"What is {n} + 1?", "answer": f"One more. #### {n + 1}"} for n in range(16)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = CliRunner().invoke(app, ["run", *small_run("grpo-gsm8k.md"), "sft.text.limit=60"])
    assert found.exit_code == 0, found.output
    assert "2 steps of grpo, score -1.000 → -1.000" in found.output, "a model from scratch solves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_the_built_in_tales(tmp_path, monkeypatch, name):
    number, roles, smaller = RECIPES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(preset(name))
    found = CliRunner().invoke(app, ["run", *small_run(f"{name}.md"), *SMALLER, *smaller])
    assert found.exit_code == 0, found.output
    plan = pipeline.read_run(Workspace(tmp_path / "workspace"), name)
    iterations = {one["iteration"] for one in plan["entries"]} - {None}
    assert iterations == set(range(number))
    for iteration in iterations:
        assert [one["role"] for one in plan["entries"] if one["iteration"] == iteration] == roles
