"""RewardBench as a benchmark of reward models and of the rewards that policies imply."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from prefloop import pipeline, report
from prefloop.annotate.implicit import ImplicitScorer
from prefloop.cli import app
from prefloop.config import RewardBenchSuite, RuntimeSection
from prefloop.interfaces import InputError
from prefloop.records import Group, Message, Prompt, file_completion
from prefloop.stages.shared import model_folder
from prefloop.store import Workspace, read_rows
from prefloop.suites import reward_bench
from prefloop.watching import Watcher
from scored import Longer, write
from small import small

PAIRS = [
    {"id": 1, "subset": "hep-go", "prompt": "Write.", "chosen": "a longer text", "rejected": "short"},
    {"id": 2, "subset": "donotanswer", "prompt": [{"role": "user", "content": "How?"}], "chosen": "No.",
     "rejected": "Like so:"},
    {"id": 3, "subset": "donotanswer", "prompt": "And now?", "chosen": "same", "rejected": "size"},
]  # fmt: skip
SEVERAL = [
    {
        "id": "1",
        "subset": "Math",
        "prompt": "1 + 1?",
        "chosen": ["2, of course"],
        "rejected": ["3", "4", "5"],
    },
    {"id": "ref:0", "subset": "Ties", "prompt": "A colour?", "chosen": ["vermilion"], "rejected": ["a cat"]},
    {
        "id": "tied:0",
        "subset": "Ties",
        "prompt": "Colours?",
        "chosen": ["ultramarine", "red"],
        "rejected": ["dogs"],
    },
]


def suite(path: str, **options) -> RewardBenchSuite:
    return RewardBenchSuite(kind="reward_bench", path=path, **options)


def judged(tmp_path: Path, rows: list[dict], fits=lambda _: True):
    """Rows, figures and units of the longer answer."""
    asked = reward_bench.questions(suite(write(tmp_path / "data.jsonl", rows)))
    found = list(reward_bench.rows(asked, Longer(), "longer", fits))
    kept = [one for one in found if one is not None]
    (scored,) = reward_bench.score(write(tmp_path / "verdicts.jsonl", kept), suite("x"), asked)
    return kept, scored, reward_bench.units(kept)


def test_pairs_are_scored_in_the_columns_that_score_reads(tmp_path):
    rows, scored, units = judged(tmp_path, PAIRS)
    assert rows[0] == {
        "id": "1", "subset": "hep-go", "model": "longer", "prompt": "Write.",
        "chosen": "a longer text", "rejected": "short", "score_chosen": 13, "score_rejected": 5,
    }  # fmt: skip
    assert units == {"hep-go/1": 1, "donotanswer/2": 0, "donotanswer/3": 0.5}
    assert (scored.figures["Reasoning"].value, scored.figures["Safety"].value) == (100, 25)
    assert scored.figures["mean"].value == 62.5
    assert scored.figures["accuracy"].value == 50
    assert scored.benchmark.startswith("reward_bench[prompts=3/") and scored.subject == "longer"


def test_several_answers_keep_the_right_ones_first(tmp_path):
    rows, scored, units = judged(tmp_path, SEVERAL)
    assert (rows[2]["num_correct"], rows[2]["scores"]) == (2, [11, 3, 4])
    assert units == {"Math/1": 1, "Ties/ref:0": 1, "Ties/tied:0": 0}  # red is shorter than dogs
    assert scored.benchmark.startswith("reward_bench_2[prompts=3/")
    assert scored.figures["Math"].value == 100


def test_what_does_not_fit_the_model_is_left_out(tmp_path):
    rows, scored, units = judged(tmp_path, PAIRS, fits=lambda group: group.prompt.text != "Write.")
    assert [one["id"] for one in rows] == ["2", "3"]
    assert set(units) == {"donotanswer/2", "donotanswer/3"} and scored.rows_in == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": 2}, "subset donotanswer has had the id 2 before"),
        ({"chosen": ["a list"]}, "two texts, or two lists of texts"),
        ({"chosen": [1], "rejected": [2]}, "an answer is no text"),
        ({"chosen": ["a"], "rejected": ["b"]}, "pairs of version 1 beside several answers of version 2"),
        ({"prompt": 7}, "neither a text nor a list of messages"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "neither a text nor a list of messages"),
        ({"subset": ""}, "row 3: no subset"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(tmp_path, change, told):
    path = write(tmp_path / "data.jsonl", [*PAIRS[:2], PAIRS[2] | change])
    with pytest.raises(InputError, match=told):
        reward_bench.questions(suite(path))


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run whose reward models and policies are measured."""
    folder = tmp_path_factory.mktemp("rewards")
    path = write(folder / "data.jsonl", [*PAIRS, PAIRS[0] | {"id": 9, "chosen": "word " * 4000}])
    suites = {
        "scores": {"kind": "reward_bench", "path": path},
        "implied": {"kind": "reward_bench", "path": path, "of": "policy"},
    }
    x = small(f"evaluate.suites={json.dumps(suites)}", "loop.gate.metric=none", "evaluate.num_prompts=0")
    workspace = Workspace(folder / "w")
    return folder, x, workspace, pipeline.run(x, workspace, Watcher())


def test_the_loop_measures_its_reward_models_and_what_its_policies_imply(ran):
    _, _, workspace, entries = ran
    rewards = [one.artefact for one in entries if one.artefact.kind == "reward"]
    policies = [one.artefact for one in entries if one.artefact.kind == "policy"]
    of = {
        name: [one.artefact for one in entries if one.role == f"suite {name}"]
        for name in ("scores", "implied")
    }
    assert len(rewards) == 3 and len(policies) == 2
    assert [one.manifest["inputs"]["policy"] for one in of["scores"]] == [one.key for one in rewards]
    assert [one.manifest["inputs"]["policy"] for one in of["implied"]] == [one.key for one in policies]
    for one in (*of["scores"], *of["implied"]):
        assert one.manifest["rows"] == {"in": 4, "out": 3, "dropped": {"too_long": 1}}
        assert one.stats["scores"][0]["rows"] == {"in": 4, "scored": 3, "dropped": {"too_long": 1}}
    assert "[reward=implicit, prompts=4/" in of["implied"][0].stats["scores"][0]["benchmark"]
    collected = report.collect(workspace, "small")
    shown = {one.suite: one for one in collected.benchmarks}
    assert [one.iteration for one in shown["scores"].scores] == [None, 0, 1]
    assert shown["scores"].scores[1].gain is not None
    assert "right, " in report.render(collected)


def test_an_implied_reward_is_the_difference_of_log_likelihoods(ran):
    _, _, _, entries = ran
    start, policy = (
        model_folder([one.artefact for one in entries if one.artefact.kind == kind][-1])
        for kind in ("sft", "policy")
    )
    prompt = Prompt.of((Message(role="user", content="Write about a fox."),))
    group = Group(
        prompt=prompt, completions=(file_completion(prompt, "A fox ran."), file_completion(prompt, "No", 1))
    )
    scorer = ImplicitScorer(policy, start, name="implied", runtime=RuntimeSection(device="cpu", threads=1))
    found = [one.value for one in scorer.score([group])]

    def log_likelihood(folder: Path, text: str) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        before = list(scorer.codec.prompt_ids(prompt.messages))
        after = list(scorer.codec.answer_ids(prompt.messages, text))
        with torch.no_grad():
            logps = model(torch.tensor([before + after])).logits.log_softmax(-1)[0]
        return sum(float(logps[len(before) - 1 + at, token]) for at, token in enumerate(after))

    for value, text in zip(found, ("A fox ran.", "No"), strict=True):
        assert value == pytest.approx(log_likelihood(policy, text) - log_likelihood(start, text), abs=1e-4)
    same = ImplicitScorer(start, start, name="same", runtime=RuntimeSection(device="cpu", threads=1))
    assert [one.value for one in same.score([group])] == [0, 0]


def test_eval_takes_reward_models_from_the_workspace_and_from_folders(ran):
    folder, _, workspace, entries = ran
    reward = next(one.artefact for one in entries if one.artefact.kind == "reward")
    file = folder / "suites.yaml"
    measured = {"scores": {"kind": "reward_bench", "path": f"{folder}/data.jsonl"}}
    file.write_text(json.dumps({"evaluate": {"num_prompts": 0, "suites": measured}, "loop": {"batches": 0}}))

    def told(*words: str) -> tuple[int, str]:
        ran = CliRunner().invoke(app, ["eval", str(file), *words, "-w", str(workspace.root), "--json"])
        return ran.exit_code, ran.stdout if ran.exit_code == 0 else repr(ran.exception)

    copied = model_folder(reward)
    (code, inside), (_, outside) = told(reward.name), told(str(copied))
    assert code == 0
    ours, theirs = (json.loads(one)[0]["figures"]["mean"]["value"] for one in (inside, outside))
    assert ours == theirs
    verdicts = next(one for one in entries if one.role == "suite scores").artefact.path / "verdicts.jsonl"
    again = json.loads(CliRunner().invoke(app, ["score", "reward-bench", str(verdicts), "--json"]).stdout)
    assert again[0]["figures"]["mean"]["value"] == ours and len(list(read_rows(verdicts))) == 3
    start = next(one.artefact for one in entries if one.artefact.kind == "sft")
    code, message = told(start.name)
    assert code == 1 and f"{start.name}: none of the benchmarks is about it: scores" in message
    code, message = told(reward.name, "--against", reward.name)
    assert code == 1 and f"{reward.name}: no policy" in message
    policy = next(one.artefact for one in entries if one.artefact.kind == "policy")
    own = {"kind": "reward_bench", "path": f"{folder}/data.jsonl", "of": "policy"}
    implied = f"evaluate.suites.implied={json.dumps(own)}"
    code, message = told(policy.name, implied)
    assert (
        code == 1
        and "evaluate.suites.implied: compares with another policy; name it with --against" in message
    )
    code, found = told(policy.name, implied, "--against", start.name)
    assert code == 0 and "[reward=implicit" in json.loads(found)[0]["benchmark"]


def test_an_experiment_without_a_reward_model_says_so(tmp_path):
    suites = {"scores": {"kind": "reward_bench", "path": write(tmp_path / "d.jsonl", PAIRS)}}
    x = small(
        f"evaluate.suites={json.dumps(suites)}",
        "reward.seed_prompts=0",
        "loop.gate.metric=none",
        "annotate.propose=first_two",
    )
    with pytest.raises(
        InputError, match=r"evaluate\.suites\.scores: scores answers by a reward model, and this experiment"
    ):
        pipeline.plan(x, Workspace(tmp_path / "w"))
