"""Reward models that are more than one score: letters, rules, steps, ensembles, objectives with a gate."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from prefloop.annotate.pairwise import load_pairwise
from prefloop.annotate.reward_model import load_rule_scorer, load_scorer
from prefloop.batches import TokenGroup
from prefloop.config import PairwiseAnnotator, RewardSection, RuntimeSection
from prefloop.forward import ScoresModule, cost
from prefloop.interfaces import InputError, PairTask, no_progress
from prefloop.modeling import load_codec, load_policy, load_reward_model, new_reward_model
from prefloop.records import Completion, Group, Message, PreferencePair, Prompt, file_completion
from prefloop.reward.heads import FeaturesModule, all_features
from prefloop.reward.questions import Questions, conversation_text, letter_ids
from prefloop.reward.steps import reduced, step_ids, steps_of
from prefloop.statistics import rank_correlation
from prefloop.train.groups import PairGroup
from prefloop.train.reward import RewardJob, train_reward
from prefloop.train.rewards.ensemble import with_bootstrap
from prefloop.train.rewards.features import FeatureGroup
from prefloop.train.rewards.job import area_under_curve
from prefloop.train.rewards.pairwise import ask_in_random_order
from prefloop.train.rewards.probes import corrections, ridge, ridge_probe
from prefloop.train.rewards.rules import encode_dialogues
from prefloop.verdicts import Rated, RuleVerdict, StepVerdicts

RUNTIME = RuntimeSection(device="cpu", threads=1)
GOOD, POOR = "Ada the fox smiled.", "It rained all day in the mud."


def prompt(number: int) -> Prompt:
    return Prompt.of((Message(role="user", content=f"Write about a fox named Ada and map {number}."),))


def answer(number: int, text: str, place: int = 0) -> Completion:
    return file_completion(prompt(number), text, place)


def pair(number: int, chosen: str = GOOD, rejected: str = POOR, **options) -> PreferencePair:
    return PreferencePair.of(
        prompt(number),
        answer(number, chosen),
        answer(number, rejected, 1),
        margin=1.0,
        annotator="test",
        **options,
    )


PAIRS = tuple(pair(number) for number in range(16))


def job(
    trunk: Path, out: Path, objective: dict, *, pairs=PAIRS[:12], validation=PAIRS[12:], **options
) -> RewardJob:
    rows = {name: options.pop(name) for name in ("rows", "held_out") if name in options}
    section = {"batch_size": 4, "epochs": 8, "data": "x.jsonl", "objective": objective}
    out.mkdir(exist_ok=True)
    return RewardJob(
        trunk=str(trunk),
        pairs=tuple(pairs),
        validation=tuple(validation),
        options=RewardSection.model_validate(section | options),
        dtype="float32",
        seed=0,
        runtime=RUNTIME,
        out=out,
        **rows,
    )


def group(number: int, *texts: str) -> Group:
    return Group(
        prompt=prompt(number),
        completions=tuple(answer(number, text, place) for place, text in enumerate(texts)),
    )


def scorer(folder: Path):
    return load_scorer(folder, RUNTIME, name="reward", same_tokens=False, labels=0)


# --- letters ---------------------------------------------------------------------------------------------------------

PAIRWISE = {"kind": "pairwise", "template": "{context} A: {a} B: {b}"}


def test_a_question_is_the_template_filled_and_its_answers_are_the_two_letters(tiny_model):
    codec = load_codec(tiny_model)
    questions = Questions(codec, template="{context}|{a}|{b}", name="m")
    asked = questions.ask(prompt(0), answer(0, "{b}"), answer(0, "two", 1))
    text = f"{conversation_text(prompt(0).messages)}|{{b}}|two"
    assert asked.prompt_ids == tuple(codec.prompt_ids((Message(role="user", content=text),)))
    assert asked.completions == tuple((one,) for one in letter_ids(codec, "m"))


def test_the_order_is_random_by_the_seed_and_half_of_the_answers_are_a(tiny_model):
    questions = Questions(load_codec(tiny_model), template=PAIRWISE["template"], name="m")
    many = [pair(number) for number in range(400)]
    asked = ask_in_random_order(many, questions, seed=0)
    share = np.mean([one.p_a for one in asked])
    assert abs(share - 0.5) < 0.1  # four deviations of 400 coins
    assert {one.p_a for one in asked} == {0.0, 1.0}
    first = questions.ask(many[0].prompt, many[0].chosen, many[0].rejected)
    assert (asked[0].tokens == first) == (asked[0].p_a == 1.0)
    assert [one.p_a for one in asked] != [one.p_a for one in ask_in_random_order(many, questions, seed=1)]
    soft = ask_in_random_order([pair(0, p_chosen=0.7)], questions, seed=0)[0].p_a
    assert soft == pytest.approx(0.7) or soft == pytest.approx(0.3)


def test_a_pairwise_model_learns_and_is_read_as_it_was_trained(tiny_model, tmp_path):
    stats = train_reward(job(tiny_model, tmp_path, PAIRWISE, learning_rate=1e-3, epochs=12), no_progress)
    assert stats["validation"]["accuracy"]["mean"] == 1.0
    # at the start the answer is one token of a vocabulary of 1024
    assert stats["loss_first"] > stats["loss_last"]
    comparer = load_pairwise(PairwiseAnnotator(kind="pairwise", model=str(tmp_path / "model")), RUNTIME)
    assert comparer._questions._template == PAIRWISE["template"]
    task = PairTask(prompt(99), answer(99, GOOD), answer(99, POOR, 1))
    (row,) = comparer.compare([task])
    assert row.p_a > 0.5
    load_policy(tmp_path / "model", RUNTIME)  # an ordinary language model
    with pytest.raises(InputError, match="not a scalar reward model"):
        load_reward_model(tmp_path / "model", RUNTIME)


def test_comparisons_that_do_not_fit_are_left_out_and_counted(tiny_model, tmp_path):
    long = pair(50, chosen=GOOD * 30)
    stats = train_reward(
        job(tiny_model, tmp_path, PAIRWISE, pairs=(*PAIRS[:3], long), max_length=128, max_steps=1),
        no_progress,
    )
    assert stats["dropped"] == {"too_long": 1}
    with pytest.raises(InputError, match="all 1 comparisons are longer than 128 tokens"):
        train_reward(job(tiny_model, tmp_path / "none", PAIRWISE, pairs=(long,), max_length=128), no_progress)


def test_a_pairwise_template_needs_its_places(tiny_model):
    with pytest.raises(InputError, match=r"lacks \{context\}"):
        Questions(load_codec(tiny_model), template="{a} {b}", name="m")


# --- rules -----------------------------------------------------------------------------------------------------------

RULES = ("Smile.", "Do not smile.", "Mention no weather.")


def verdict(number: int, text: str, rule: str, violated: bool) -> RuleVerdict:
    completion = answer(number, text)
    return RuleVerdict(
        id=f"{number}{text}{rule}", prompt=prompt(number), completion=completion, rule=rule, violated=violated
    )


VERDICTS = [
    verdict(number, text, rule, violated)
    for number, text in itertools.product(range(10), (GOOD, POOR))
    for rule, violated in zip(RULES, (text == POOR, text == GOOD, text == POOR), strict=True)
]


def test_rules_share_their_dialogue_and_each_is_read_after_it(tiny_model):
    codec = load_codec(tiny_model)
    (dialogue,), _ = encode_dialogues(VERDICTS[:3], codec, 512)
    assert len(dialogue.tokens.completions) == 3
    alone = [encode_dialogues([one], codec, 512)[0][0].tokens for one in VERDICTS[:3]]
    module = ScoresModule(new_model(tiny_model), pad_id=codec.pad_id, runtime=RUNTIME)
    shared = cost(dialogue.tokens, module)
    assert shared == sum(cost(one, module) for one in alone) - 2 * len(dialogue.tokens.prompt_ids)
    assert all(one[-1] == codec.terminator_id for one in dialogue.tokens.completions)


def new_model(trunk: Path):
    return new_reward_model(trunk, RUNTIME)[0]


def test_a_rule_model_tells_which_rule_is_broken_and_knows_its_rules(tiny_model, tmp_path):
    made = job(
        tiny_model,
        tmp_path,
        {"kind": "rules"},
        pairs=(),
        validation=(),
        learning_rate=1e-3,
        epochs=15,
        rows=tuple(VERDICTS[:48]),
        held_out=tuple(VERDICTS[48:]),
    )
    stats = train_reward(made, no_progress)
    assert (stats["rules"], stats["prompts"], stats["num_rows"]) == (3, 16, 48)
    assert stats["held_out"]["accuracy"]["mean"] == 1.0
    assert stats["held_out"]["auc"] == 1.0
    rules = load_rule_scorer(
        str(tmp_path / "model"),
        RUNTIME,
        name="rules",
        rules=(),
        reduction="mean",
        same_tokens=False,
        labels=1,
    )
    good, poor = rules.score([group(70, GOOD, POOR)])
    assert set(good.parts) == set(RULES)
    assert good.parts["Smile."] > 0.5 > good.parts["Do not smile."]
    assert poor.parts["Do not smile."] > 0.5 > poor.parts["Smile."]
    assert good.value == pytest.approx(sum(good.parts.values()) / 3)
    assert [row.value for row in scorer(tmp_path / "model").score([group(70, GOOD, POOR)])] == [
        good.value,
        poor.value,
    ]
    with pytest.raises(InputError, match="is a reward model of kind rules, but bradley_terry or"):
        load_reward_model(tmp_path / "model", RUNTIME)  # its logit says that a rule is broken


def test_area_under_the_curve_is_the_probability_to_rank_a_positive_higher():
    assert area_under_curve([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0]) == 0.75
    assert area_under_curve([0.5, 0.5], [1, 0]) == 0.5
    assert area_under_curve([0.1, 0.2], [1, 1]) is None


# --- steps -----------------------------------------------------------------------------------------------------------


def test_the_score_of_a_solution_is_the_mean_the_least_or_the_last_of_its_steps():
    steps = [0.9, 0.3, 0.6]
    assert reduced(steps, "mean") == pytest.approx(0.6)
    assert (reduced(steps, "min"), reduced(steps, "last")) == (0.3, 0.6)


def test_steps_end_at_their_separator_and_texts_are_cut_there(tiny_model):
    codec = load_codec(tiny_model)
    ids, ends = step_ids(codec, ["One fox.", "Two foxes."], "\n\n")
    assert codec.decode(ids) == "One fox.\n\nTwo foxes.\n\n"
    assert codec.decode(ids[: ends[0] + 1]) == "One fox.\n\n"
    assert ends[1] == len(ids) - 1
    assert steps_of("One.\n\nTwo.\n\n", "\n\n") == ["One.", "Two."]
    assert steps_of("  ", "\n\n") == ["  "]


def test_a_process_model_finds_the_wrong_step_and_picks_the_better_solution(tiny_model, tmp_path):
    rows = [
        StepVerdicts(
            id=f"{number}{order}",
            prompt=prompt(number),
            steps=tuple(GOOD if right else POOR for right in order),
            right=tuple(float(right) if place != 1 else None for place, right in enumerate(order)),
        )
        for number, order in itertools.product(range(8), [(1, 1, 0), (0, 0, 1), (1, 0, 0)])
    ]
    too_long = rows[0].model_copy(update={"id": "long", "steps": (GOOD * 90, GOOD, GOOD)})
    made = job(
        tiny_model,
        tmp_path,
        {"kind": "process", "reduction": "min"},
        pairs=(),
        validation=(),
        learning_rate=1e-3,
        epochs=15,
        max_length=256,
        rows=(*rows[:18], too_long),
        held_out=tuple(rows[18:]),
    )
    stats = train_reward(made, no_progress)
    assert stats["dropped"] == {"too_long": 1}
    assert stats["held_out"]["num_verdicts"] == 12
    assert stats["held_out"]["accuracy"]["mean"] > 0.9
    solutions = group(80, f"{GOOD}\n\n{POOR}\n\n{GOOD}", f"{GOOD}\n\n{GOOD}\n\n{GOOD}")
    one, best = scorer(tmp_path / "model").score([solutions])
    assert best.value > one.value
    assert list(one.parts) == ["step_0", "step_1", "step_2"]
    assert one.value == min(one.parts.values())


# --- heads -----------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_last_token_of_completion_and_prompt(tiny_model):
    model = new_model(tiny_model).eval()
    codec = load_codec(tiny_model)
    groups = [one.tokens for one in encode_dialogues(VERDICTS[:6], codec, 512)[0]]
    expected = []
    for one in groups:
        hidden = [
            model.model(torch.tensor([[*one.prompt_ids, *ids]])).last_hidden_state[0]
            for ids in one.completions
        ]
        expected.append((torch.stack([row[-1] for row in hidden]), hidden[0][len(one.prompt_ids) - 1]))
    for share in (True, False):
        runtime = RuntimeSection(device="cpu", share_prompts=share)
        module = FeaturesModule(new_model(tiny_model).eval(), pad_id=codec.pad_id, runtime=runtime)
        for found, wanted in zip(all_features(module, groups, runtime), expected, strict=True):
            torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=1e-5)


def test_each_head_has_its_own_sample_of_as_many_prompts():
    empty = FeatureGroup(
        PairGroup(TokenGroup((1,), ((2,),)), ()), torch.zeros(1, 1), torch.zeros(1), torch.ones(1)
    )
    drawn = torch.stack([one.head_weights for one in with_bootstrap([empty] * 50, 4, seed=0)])
    assert drawn.shape == (50, 4)
    assert drawn.sum(0).tolist() == [50.0] * 4
    assert len({tuple(head.tolist()) for head in drawn.T}) == 4
    assert 0.5 < float((drawn > 0).float().mean()) < 0.75  # 1 - 1/e of the prompts are in a sample


@pytest.mark.parametrize("hidden_size", [0, 16])
def test_an_ensemble_learns_on_a_frozen_model_and_is_less_sure_away_from_its_data(
    tiny_model, tmp_path, hidden_size
):
    objective = {"kind": "ensemble", "num_heads": 5, "hidden_size": hidden_size, "normalise": "standardise"}
    stats = train_reward(job(tiny_model, tmp_path, objective, epochs=40), no_progress)
    assert stats["validation"]["accuracy"]["mean"] == 1.0
    before = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items() if name != "score.weight")
    read = scorer(tmp_path / "model")
    seen = [row for number in range(12) for row in read.score([group(number, GOOD, POOR)])]
    assert np.mean([row.value for row in seen]) == pytest.approx(0, abs=1e-3)
    assert np.std([row.value for row in seen]) == pytest.approx(1, abs=1e-3)
    heads = np.array([[row.parts[f"head_{head}"] for head in range(5)] for row in seen])
    assert [row.value for row in seen] == pytest.approx(heads.mean(1).tolist(), abs=1e-5)
    assert [row.parts["deviation"] for row in seen] == pytest.approx(heads.std(1).tolist(), abs=1e-5)
    strange = [row.parts["deviation"] for row in read.score([group(90, "map map map map", "?", "Z" * 50)])]
    assert np.mean(strange) > np.mean([row.parts["deviation"] for row in seen])
    with pytest.raises(InputError, match="is a reward model of kind ensemble"):
        load_reward_model(tmp_path / "model", RUNTIME)  # its own head is empty: every score would be 0


def test_heads_that_are_missing_are_named(tiny_model, tmp_path):
    train_reward(job(tiny_model, tmp_path, {"kind": "ensemble"}, max_steps=1), no_progress)
    (tmp_path / "model" / "heads.safetensors").unlink()
    with pytest.raises(InputError, match=r"model: its heads.safetensors cannot be read"):
        scorer(tmp_path / "model")


# --- objectives and their gate ---------------------------------------------------------------------------------------


def test_ridge_is_the_minimum_of_its_objective():
    """One feature of 1s, ratings 1, 2, 3: the sum 6 over (3 + alpha)."""
    (zero, three) = ridge(np.ones((3, 1)), np.array([1.0, 2.0, 3.0]), (0.0, 3.0))
    assert (zero[0], three[0]) == pytest.approx((2.0, 1.0))


def test_a_probe_finds_a_linear_rating_and_prefers_strength_where_there_is_none():
    rng = np.random.default_rng(0)
    features, true = rng.standard_normal((200, 8)), rng.standard_normal(8)
    probe = ridge_probe(features, features @ true, seed=0)
    np.testing.assert_allclose(probe.weights, true, atol=1e-2)
    assert probe.held_out_error < 1e-4
    noise = ridge_probe(features, rng.standard_normal(200), seed=0)
    assert noise.alpha > probe.alpha


def test_verbosity_is_taken_out_until_objectives_no_longer_rank_by_it():
    rng = np.random.default_rng(0)
    length = rng.standard_normal(500)
    scores = np.stack([length + rng.standard_normal(500), length, rng.standard_normal(500) - 0.5 * length], 1)
    scores = (scores - scores.mean(0)) / scores.std(0)
    assert rank_correlation(scores[:, 0].tolist(), length.tolist()) > 0.5
    matrix, left = corrections(scores, 1, max_correlation=0.03)
    after = scores @ matrix
    for column in (0, 2):
        assert abs(rank_correlation(after[:, column].tolist(), length.tolist())) <= 0.03
    assert max(map(abs, left)) <= 0.03
    assert not after[:, 1].any()


def rated(number: int, text: str, ratings: dict[str, float]) -> Rated:
    completion = answer(number, text)
    return Rated(id=completion.id, prompt=prompt(number), completion=completion, ratings=ratings)


def test_the_gate_weighs_objectives_by_the_prompt_and_ratings_may_be_missing(tiny_model, tmp_path):
    """Prompts about foxes want smiles, prompts about rain want rain: only a gate that reads the prompt gets both."""
    smiling = tuple(pair(number) for number in range(12))
    rainy_prompts = [
        Prompt.of((Message(role="user", content=f"Rain rain rain, umbrella {number}, storm and wind!"),))
        for number in range(12)
    ]
    rainy = tuple(
        PreferencePair.of(
            one, file_completion(one, POOR), file_completion(one, GOOD, 1), margin=1.0, annotator="test"
        )
        for one in rainy_prompts
    )
    rows = [
        rated(
            number,
            text,
            {"smile": float(text == GOOD)} | ({"rain": float(text == POOR)} if number % 2 else {}),
        )
        for number, text in itertools.product(range(20), (GOOD, POOR))
    ]
    objective = {
        "kind": "multi_objective",
        "ratings": "r.jsonl",
        "gate_hidden_size": 16,
        "gate_temperature": 1.0,
        "head_learning_rate": 0.01,
    }
    stats = train_reward(
        job(
            tiny_model,
            tmp_path,
            objective,
            pairs=(*smiling[:9], *rainy[:9]),
            validation=(*smiling[9:], *rainy[9:]),
            epochs=40,
            rows=tuple(rows),
        ),
        no_progress,
    )
    assert stats["validation"]["accuracy"]["mean"] == 1.0
    assert {name: one["ratings"] for name, one in stats["objectives"].items()} == {"rain": 20, "smile": 40}
    assert stats["gate"]["smile"]["deviation"] > 0.1
    read = scorer(tmp_path / "model")
    texts = [GOOD, POOR]
    fox = list(read.score([group(60, *texts)]))
    storm = rainy_prompts[0]
    rain = list(
        read.score(
            [
                Group(
                    prompt=storm,
                    completions=tuple(
                        file_completion(storm, text, place) for place, text in enumerate(texts)
                    ),
                )
            ]
        )
    )
    for row in (*fox, *rain):
        weights = [row.parts["weight/rain"], row.parts["weight/smile"]]
        assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert fox[0].parts["weight/smile"] == pytest.approx(fox[1].parts["weight/smile"], abs=1e-5)
    assert fox[0].parts["weight/smile"] > rain[0].parts["weight/smile"] + 0.2
    assert fox[0].value > fox[1].value
    assert rain[0].value < rain[1].value


def test_an_unknown_verbosity_and_a_single_rating_are_errors(tiny_model, tmp_path):
    rows = (rated(0, GOOD, {"smile": 1.0}), rated(1, POOR, {"smile": 0.0, "rain": 1.0}))
    objective = {"kind": "multi_objective", "ratings": "r.jsonl"}
    with pytest.raises(InputError, match="objective rain has 1 ratings; give more, or drop it"):
        train_reward(job(tiny_model, tmp_path, objective, rows=rows), no_progress)
    with pytest.raises(InputError, match="verbosity = 'length': the ratings have rain, smile"):
        made = job(tiny_model, tmp_path, objective | {"verbosity": "length"}, rows=rows)
        train_reward(replace(made, seed=1), no_progress)
