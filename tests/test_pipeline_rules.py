"""Preference and rules in one run: the rule model of an experiment, and what may ask it."""

import pytest
import torch

from prefloop import pipeline
from prefloop.interfaces import InputError
from prefloop.modeling import layers_of, load_policy, load_reward_model
from prefloop.pipeline import Watcher
from prefloop.records import Prompt
from prefloop.screen import summary
from prefloop.stages.shared import model_folder
from prefloop.store import Workspace, read_records
from prefloop.trunks import share_trunk
from small import small

RULES = "rules={data: {path: 'builtin:tales/verdicts', limit: 30}, max_steps: 4, batch_size: 4, learning_rate: 1e-3}"
RL = (
    "rl={algorithm: a2c, num_prompts: 8, prompts_per_step: 4, num_completions: 2, steps: 2, max_new_tokens: 8}",
    "rl.learning_rate=1e-3",
    "rl.reward={kind: composite, rules: {}, reference: sft}",
    "loop={batches: 0}",
)
FROZEN = ("reward.frozen_layers=2", "rules.frozen_layers=2", "rl.frozen_layers=2", "rl.critic.start=policy")
SOURCES = "rl.prompt_sources=[{kind: file, share: 0.5, prompts: 'builtin:tales/dialogues'}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("rules"))
    x = small(*RL, RULES, *FROZEN, SOURCES)
    return x, workspace, {one.role: one for one in pipeline.run(x, workspace, Watcher())}


def test_one_experiment_trains_both_models_and_the_policy_learns_from_both(run):
    _, _, entries = run
    policy, reward, rules = (entries[role] for role in ("policy", "reward", "rules"))
    assert policy.stage.inputs["reward"] == reward.artefact
    assert policy.stage.inputs["rules"] == rules.artefact
    assert rules.artefact.stats["rules"] == 3
    assert "verdicts on 3 rules" in summary(rules.artefact)
    assert set(policy.artefact.stats["standardised_by"]) == {"preference", "rules", "length"}


def test_parts_are_standardised_on_what_the_sft_policy_says(run):
    _, _, entries = run
    scale = entries["scale"]
    assert scale.stage.inputs["policy"] == entries["sft"].artefact
    assert scale.artefact.manifest["rows"]["out"] == 8, "one answer to each prompt of rl"


def test_prompts_of_rl_come_from_several_sources_and_are_counted(run):
    _, _, entries = run
    stats = entries["rl invent"].artefact.stats["sources"]
    assert stats == {"builtin:tales-1/dialogues": 4, "builtin:tales-1": 4}
    rows = read_records(entries["rl invent"].artefact.path / "prompts.jsonl", Prompt)
    assert {len(one.messages) for one in rows} == {1, 3}
    assert entries["policy"].artefact.stats["sources"] == stats, "two batches of four are all eight"


def test_the_trunk_is_equal_bit_by_bit_in_all_roles(run):
    x, _, entries = run
    folders = {role: model_folder(entries[role].artefact) for role in ("sft", "policy", "reward", "rules")}
    start, policy = (load_policy(folders[role], x.runtime) for role in ("sft", "policy"))
    reward, _ = load_reward_model(folders["reward"], x.runtime)
    rules, _ = load_reward_model(folders["rules"], x.runtime, kinds=frozenset({"rules"}))
    before, *after = (layers_of(one)[3].mlp.up_proj.weight for one in (start, policy, reward, rules))
    assert not any(torch.equal(before, one) for one in after), "the upper layers have learned"
    assert share_trunk([start, policy, reward, rules]) == 2


def test_a_rule_model_that_an_experiment_trains_alone_is_the_same_artefact(run):
    _, workspace, entries = run
    data = "{path: 'builtin:tales/verdicts', limit: 30}"
    alone = small(
        f"reward={{data: {data}, objective: {{kind: rules}}, max_steps: 4, batch_size: 4, learning_rate: 1e-3}}",
        "reward.frozen_layers=2",
        "loop={batches: 0}",
    )
    (found,) = (one.artefact for one in pipeline.plan(alone, workspace) if one.stage.kind == "reward")
    assert found == entries["rules"].artefact


def test_weights_change_the_policy_alone(run):
    _, workspace, _ = run
    x = small(*RL, RULES, *FROZEN, SOURCES, "rl.reward.preference_weight=0")
    assert [one.role for one in pipeline.plan(x, workspace) if not one.artefact.exists] == [
        "policy",
        "evaluate",
    ]


def test_too_few_prompts_for_a_batch_are_told_before_anything_is_trained(run):
    _, workspace, _ = run
    nothing = "rl.prompt_sources=[{kind: adversarial, share: 1.0, template: '{examples}'}]"
    x = small(*RL, RULES, *FROZEN, nothing, "generate.max_new_tokens=1", "evaluate.num_prompts=2")
    with pytest.raises(InputError, match=r"rl.prompts_per_step = 4: of rl.num_prompts only 0 are left"):
        pipeline.run(x, workspace, Watcher())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (RL, "rules.data: missing; name verdicts on rules that train the rule model"),
        ((*RL[:2], RL[3], RULES), "rules: nothing asks this rule model; give rl.reward kind composite"),
        ((RULES,), "rules: nothing asks this rule model"),
        (
            (*RL, RULES, "evaluate.second_scorer={kind: rule_model}"),
            "evaluate.second_scorer: only rl asks the loop's own rule model; name one in model",
        ),
        (
            ("annotate.annotator={kind: composite, preference: {kind: rule, rule: tales}, reference: sft}",),
            "annotate.annotator.reference: sft is for rl.reward; name a file of groups",
        ),
        (
            (
                *RL,
                RULES,
                "rl.prompt_sources=[{kind: self_play, share: 0.7}, {kind: adversarial, share: 0.7}]",
            ),
            "rl.prompt_sources: their shares make 1.4; they cannot make more than 1",
        ),
    ],
)
def test_what_cannot_be_is_told(overrides, told):
    with pytest.raises(InputError) as error:
        small("reward={data: pairs.jsonl}", *overrides)
    assert told in str(error.value)
