"""The keys of `generate.engine` and what they refuse."""

import pytest

from prefloop.config import (
    HfEngine,
    MctsEngine,
    RewardModelAnnotator,
    RuleAnnotator,
    SelfEvaluation,
    hashed,
    parse,
)
from prefloop.interfaces import InputError

SEARCH = """
prompts: prompts.jsonl
model: a-model
reward: {model: a-reward-model}
generate: {engine: {kind: mcts}}
"""


def read(*overrides: str):
    return parse(SEARCH, overrides, where="exp.yaml")


def message(*overrides: str) -> str:
    with pytest.raises(InputError) as error:
        read(*overrides)
    return str(error.value)


def test_a_search_needs_one_word():
    engine = read().generate.engine
    assert isinstance(engine, MctsEngine)
    assert engine.engine == HfEngine()
    assert engine.value == RewardModelAnnotator(kind="reward_model")


@pytest.mark.parametrize(
    ("value", "section"),
    [
        ("reward", RewardModelAnnotator(kind="reward_model")),
        ("self", SelfEvaluation(kind="self")),
        ("{kind: rule, rule: tales}", RuleAnnotator(kind="rule", rule="tales")),
    ],
)
def test_a_value_may_be_named_for_short(value, section):
    assert read(f"generate.engine.value={value}").generate.engine.value == section


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("generate.engine.iterations=0", "greater than or equal to 1"),
        ("generate.engine.depth=0", "greater than or equal to 1"),
        ("generate.engine.first_actions=1", "greater than or equal to 2"),
        ("generate.engine.actions=1", "greater than or equal to 2"),
        ("generate.engine.step=0", "generate.engine.step = 0"),
        ("generate.engine.step=word", "Input should be 'sentence' or 'line'"),
        ("generate.engine.exploration=-1", "greater than or equal to 0"),
        ("generate.engine.length_power=-1", "greater than or equal to 0"),
        ("generate.engine.gamma=0", "greater than 0"),
        ("generate.engine.gamma=1.1", "less than or equal to 1"),
        ("generate.engine.same_from=0", "greater than 0"),
        ("generate.engine.same_from=1.1", "less than or equal to 1"),
        ("generate.engine.value=judge", "generate.engine.value = 'judge'"),
        ("generate.engine.value.kind=judge", "'judge'"),
        ("generate.engine.engine.kind=mcts", "'hf'"),
        ("generate.temperature=0", "greedy continuations are all the same"),
        (
            "generate.temperatures=[{count: 8, temperature: 1.0}]",
            "draws all continuations at one `temperature`",
        ),
        ("generate.num_completions=20", "may draw only 19 completions (first_actions"),
        ("reward.model=null", "annotate.annotator: reward_model needs a reward model"),
    ],
)
def test_wrong_values_are_named(override, expected):
    assert expected in message(override)


def test_the_fewest_completions_that_a_search_draws():
    # four at first, and one in each of the 15 iterations after that
    assert read().generate.engine.fewest_drawn == 19
    assert (
        read("generate.engine.actions=3", "generate.engine.first_actions=2").generate.engine.fewest_drawn
        == 32
    )


def test_a_search_by_the_reward_model_needs_one_that_scores():
    rule = "annotate.annotator={kind: rule, rule: tales}"
    assert "generate.engine.value: reward needs a reward model" in message(rule, "reward.model=null")
    assert read(rule, "reward.model=null", "generate.engine.value=self").generate.engine.value.kind == "self"
    compares = "reward.objective.kind=pairwise"
    assert "generate.engine.value: reward needs one that scores; pairwise compares" in message(
        compares, "annotate.annotator={kind: pairwise}"
    )


def test_step_pairs_need_a_search():
    assert "select.rule: siblings are the steps of a tree search" in message(
        "select.rule=siblings", "generate.engine={kind: hf}"
    )
    assert read("select.rule=siblings").select.score_rule == "max_min"


def test_step_pairs_need_labels_only_where_the_reward_model_learns_from_them():
    assert read().needs_labels
    assert not read("select.rule=siblings").needs_labels
    trained = ("select.rule=siblings", "reward={data: preferences.jsonl}")
    assert read(*trained).needs_labels
    assert not read(*trained, "loop.reward_refresh_every=never").needs_labels


def test_plain_sampling_is_by_the_engine_below_and_by_the_embedded_one_for_a_recorded_file():
    assert read().generate.plain.engine == HfEngine()
    assert read().generate.plain.num_completions == read().generate.num_completions
    recorded = read("generate.engine={kind: recorded, source: groups.jsonl}").generate
    assert recorded.plain.engine == HfEngine()
    plain = read("generate.engine={kind: hf}").generate
    assert plain.plain == plain


def test_every_key_of_a_search_is_hashed():
    assert set(hashed(read().generate.engine)) == set(MctsEngine.model_fields)


# --- beam search ---

BEAMS = "generate={search: beam}"


def test_beam_search_needs_one_word_and_is_left_out_of_keys_where_nothing_is_searched():
    from prefloop.config.generate import BeamSearch

    assert read(BEAMS).generate.search == BeamSearch(kind="beam", length_penalty=1.0)
    assert "search" in hashed(read(BEAMS).generate)
    assert "search" not in hashed(read("generate={}").generate)


def test_evaluations_sample_where_the_loop_searches_beams():
    assert read(BEAMS).generate.plain == read("generate={}").generate


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("generate.search=tree", "'beam'"),
        ("generate.search.length_penalty=-1", "greater than or equal to 0"),
        ("generate.engine={kind: vllm}", "search = beam: engine vllm has none; choose hf"),
        ("generate.engine={kind: remote, replicas: 1}", "search = beam: engine remote has none"),
        ("generate.engine={kind: mcts}", "search = beam: engine mcts has none"),
        ("generate.engine={kind: recorded, source: groups.jsonl}", "search = beam: engine recorded has none"),
        ("generate.temperature=0.7", "temperature: beams are ranked by the policy's own probabilities"),
        ("generate.temperatures=[{count: 8, temperature: 1.0}]", "temperatures: beams are ranked"),
        ("generate.top_p=0.9", "top_p: beams are ranked"),
        ("generate.top_k=5", "top_k: beams are ranked"),
        ("generate.min_p=0.1", "min_p: beams are ranked"),
        ("generate.repetition_penalty=1.1", "repetition_penalty: beams are ranked"),
    ],
)
def test_what_beam_search_cannot_do_is_named(override, expected):
    assert expected in message(BEAMS, override)
