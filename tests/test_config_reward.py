"""Reward sections: every key belongs to a kind that reads it."""

import pytest

from prefloop import config
from prefloop.config import BradleyTerryReward, RewardSection, hashed
from prefloop.interfaces import InputError

BASE = """
model: a-model
prompts: prompts.jsonl
reward: {data: pairs.jsonl}
"""


def read(*overrides: str, text: str = BASE):
    return config.parse(text, overrides, where="exp.yaml")


def message(*overrides: str, text: str = BASE) -> str:
    with pytest.raises(InputError) as error:
        read(*overrides, text=text)
    return str(error.value)


def test_what_has_the_default_objective_keeps_its_key():
    old = {"model", "data", "seed_prompts", "start", "grouping", "validation_share"}
    assert "objective" not in hashed(RewardSection())
    assert old <= set(hashed(RewardSection()))
    assert "objective" in hashed(RewardSection(data="x", objective=BradleyTerryReward(centring_weight=0.1)))


def test_the_kind_may_be_left_out():
    assert read("reward.objective.centring_weight=0.01").reward.objective.kind == "bradley_terry"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["reward.objective={kind: sparrow, margin_scale: 1}"], "reward.objective.margin_scale: unknown key"),
        (["reward.objective={kind: bradley_terry, template: x}"], "reward.objective.template: unknown key"),
        (["reward.objective={margin_scale: 1, margin_table: {1: 0}}"], "keep one of the two"),
        (["reward.objective={margin_table: {1: -1}}"], "cannot be asked to lead by less than 0"),
        (["reward.objective={kind: sparrow}", "reward.grouping=pair"], "grouping: sparrow needs prompt"),
        (
            ["reward.objective={kind: pairwise}", "reward.grouping=pair"],
            "grouping: pairwise does not read it",
        ),
        (["reward.objective={kind: sparrow}", "reward.pairs_per_prompt=one"], "sparrow reads whole groups"),
        (
            ["reward.objective={kind: rules}", "reward.seed_prompts=4"],
            "rules does not learn from preferences",
        ),
        (["reward.objective={kind: process}", "reward.gate={}"], "process does not learn from preferences"),
        (
            ["reward.objective={kind: ensemble}", "reward.lora={}"],
            "lora: ensemble trains heads on a frozen model",
        ),
        (
            ["reward.objective={kind: ensemble}", "reward.learning_rate=1e-4"],
            "use objective.head_learning_rate",
        ),
        (["reward.gate={}", "reward.validation_share=0"], "gate: needs a reward model that is retrained"),
        (["reward={model: m, gate: {}}"], "gate: needs a reward model that is retrained"),
        (["reward={model: m, objective: {kind: sparrow}}"], "objective: a finished model is not trained"),
        (["reward={objective: {kind: rules}}"], "objective: there is nothing to train on; name reward.data"),
        (
            ["reward.objective={zero_at: validation}", "reward.validation_share=0"],
            "zero_at: validation needs a validation_share above 0",
        ),
        (["reward.objective={zero_at: demonstrations}"], "zero_at: demonstrations are those of sft.data"),
        (
            ["reward.objective={kind: pairwise}"],
            "annotate.annotator: reward_model cannot use the loop's reward model, which compares",
        ),
        (
            ["annotate.annotator={kind: pairwise}"],
            "annotate.annotator: pairwise cannot use the loop's reward model, which scores",
        ),
        (
            [
                "reward.objective={kind: pairwise}",
                "annotate.annotator={kind: pairwise}",
                "loop.gate.metric=proxy",
            ],
            "loop.gate.metric: proxy needs a reward model that scores",
        ),
        (
            [
                "reward.objective={kind: pairwise}",
                "annotate.annotator={kind: pairwise}",
                "reward.seed_prompts=3",
            ],
            "labels from a reward model cannot train it",
        ),
        (["annotate.annotator={kind: composite, rule_weight: 2}"], "there are no rules to weigh"),
        (
            ["annotate.annotator={kind: composite, invalid_weight: 2}"],
            "nothing is invalid without a template",
        ),
        (["annotate.annotator={kind: composite, template: '('}"], "template: not a regular expression"),
        (
            ["annotate={annotator: {kind: human}, ask: knockout}"],
            "knockout asks round by round, which human cannot",
        ),
        (
            ["annotate.ask=knockout"],
            "ask: knockout needs an annotator that compares; reward_model gives scores",
        ),
    ],
)
def test_a_key_that_nothing_reads_is_an_error(overrides, expected):
    assert expected in message(*overrides)


def test_a_finished_pairwise_model_is_named_as_such():
    x = read("reward={model: m, objective: {kind: pairwise}}", "annotate.annotator={kind: pairwise}")
    assert not x.reward.objective.gives_scores
    assert not x.reward.learns_from_labels


def test_rankings_are_all_their_pairs_where_the_objective_reads_groups():
    assert not read().reward.reads_all_pairs
    assert read("reward.pairs_per_prompt=all").reward.reads_all_pairs
    assert read("reward.objective.kind=plackett_luce").reward.reads_all_pairs


def test_a_rule_model_may_evaluate():
    assert read("evaluate.scorer={kind: rule_model, model: m}").evaluate.scorer.reduction == "mean"
