"""The loop with a policy that learns by reinforcement."""

import pytest
from typer.testing import CliRunner

from prefloop import pipeline
from prefloop.cli import app
from prefloop.interfaces import InputError
from prefloop.pipeline import Entry, Watcher
from prefloop.records import Prompt
from prefloop.report import write_report
from prefloop.store import Workspace, read_records
from small import SMALL, small

RL = (
    "rl={algorithm: ppo, num_prompts: 6, prompts_per_step: 3, num_completions: 2, steps: 2, max_new_tokens: 8, "
    "learning_rate: 1e-4}",
)
COMPARED = (
    "rl={algorithm: online_dpo, num_prompts: 6, prompts_per_step: 3, num_completions: 4, steps: 2, max_new_tokens: 8, "
    "learning_rate: 1e-4, ahead: 1}",
    "rl.reward={kind: rule, rule: tales}", "loop.batches=0", "reward={}", "loop.gate.metric=none",
)  # fmt: skip
BY_RULE = (*RL, "rl.reward={kind: rule, rule: tales}", "loop.batches=0", "reward={}", "loop.gate.metric=none")


def of(entries: list[Entry], role: str) -> list[Entry]:
    return [entry for entry in entries if entry.role == role]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Workspace, list[Entry]]:
    workspace = Workspace(tmp_path_factory.mktemp("rl") / "workspace")
    return workspace, pipeline.run(small(*RL), workspace, Watcher())


def test_labels_teach_the_reward_model_before_the_policy_learns_from_it(finished):
    _, entries = finished
    roles = [entry.role for entry in entries if entry.iteration == 0]
    assert roles.index("select") < roles.index("reward") < roles.index("policy")
    rewards, policies = of(entries, "reward"), of(entries, "policy")
    assert len(rewards) == 3, "the first, and one after each label batch"
    assert len(policies) == 2
    for reward, policy in zip(rewards[1:], policies, strict=True):
        assert policy.stage.inputs["reward"] == reward.artefact


def test_rows_are_counted_and_the_report_is_written(finished):
    workspace, entries = finished
    for entry in entries:
        rows = entry.artefact.manifest["rows"]
        assert rows["in"] == rows["out"] + sum(rows["dropped"].values()), entry.role
    policy = of(entries, "policy")[0].artefact
    assert policy.manifest["rows"]["in"] == 2 * 3, "steps times prompts"
    assert policy.stats["algorithm"] == "ppo"
    assert write_report(workspace, "small").is_file()


def test_reinforcement_has_prompts_that_no_label_batch_has(finished):
    _, entries = finished
    drawn = [read_records(one.artefact.path / "prompts.jsonl", Prompt) for one in of(entries, "draw")]
    for_rl = read_records(of(entries, "rl prompts")[0].artefact.path / "prompts.jsonl", Prompt)
    assert len(for_rl) == 6
    labelled = {prompt.id for batch in drawn for prompt in batch}
    assert not labelled & {prompt.id for prompt in for_rl}


def test_the_same_again_is_kept_and_another_coefficient_is_not(finished):
    workspace, _ = finished
    kept = pipeline.plan(small(*RL), workspace)
    assert all(entry.artefact.exists for entry in kept)
    other = pipeline.plan(small(*RL, "rl.algorithm={name: ppo, kl_coef: 0.5}"), workspace)
    assert [one.artefact.exists for one in of(other, "policy")] == [False, False]
    spelled = pipeline.plan(small(*RL, "rl.algorithm.kl_coef=0.02"), workspace)
    assert all(one.artefact.exists for one in of(spelled, "policy")), "what the row says already"


def test_a_rule_alone_is_enough_and_the_screen_says_how_it_went(tmp_path):
    file = tmp_path / "rl.yaml"
    file.write_text(SMALL)
    args = ["run", str(file), "--workspace", str(tmp_path / "w"), *BY_RULE]
    found = CliRunner().invoke(app, args)
    assert found.exit_code == 0, found.output
    assert "2 steps of ppo, score" in found.output
    assert "nats from the reference" in found.output
    (policy,) = (tmp_path / "w" / "artefacts").glob("policy-*")
    shown = CliRunner().invoke(app, ["show", policy.name, "--workspace", str(tmp_path / "w")])
    assert "rows 1 to" in shown.output
    assert "batch 1" in shown.output


def test_completions_compared_in_every_batch_make_a_policy_too(tmp_path):
    workspace = Workspace(tmp_path / "w")
    entries = pipeline.run(small(*COMPARED), workspace, Watcher())
    policy = of(entries, "policy")[0].artefact
    assert policy.stats["algorithm"] == "online_dpo"
    assert policy.stats["engine_gap"] < 1e-4
    assert write_report(workspace, "small").is_file()
    other = pipeline.plan(small(*COMPARED, "rl.algorithm.objective={kind: dpo, beta: 0.5}"), workspace)
    assert [one.artefact.exists for one in of(other, "policy")] == [False]
    spelled = pipeline.plan(small(*COMPARED, "rl.algorithm.objective={kind: dpo, beta: 0.1}"), workspace)
    assert [one.artefact.exists for one in of(spelled, "policy")] == [True], "what the name says already"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            (*RL, "reward={}", "loop.batches=0", "loop.gate.metric=none"),
            "rl.reward: needs a reward model that scores",
        ),
        (
            (*BY_RULE, "loop.batches=2"),
            "loop.batches: with rl only a reward model learns from labels, and none does",
        ),
        ((*RL, "rl.algorithm=ppoo"), "rl.algorithm.name = 'ppoo': there is none of this name; choose ppo, "),
        ((*RL, "rl.algorithm.clp=1"), "did you mean rl.algorithm.clip?"),
        ((*BY_RULE, "rl.num_prompts=100"), "+ rl.num_prompts 100"),
        (
            (*BY_RULE, "rl.critic.start=reward"),
            "rl.critic.start: rl.reward is not the loop's own reward model",
        ),
        (
            (*BY_RULE, "runtime.sharding=fsdp", "runtime.num_processes=2"),
            "runtime.sharding, deepspeed: rl samples from the weights that it trains",
        ),
        (
            (*BY_RULE, "rl.algorithm=trpo", "runtime.num_processes=2"),
            "runtime.num_processes: trpo runs in one process",
        ),
    ],
)
def test_what_cannot_be_is_told(tmp_path, overrides, told):
    with pytest.raises(InputError) as error:
        pipeline.run(small(*overrides), Workspace(tmp_path / "w"), Watcher())
    assert told in str(error.value)
