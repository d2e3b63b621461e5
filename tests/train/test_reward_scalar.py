"""Scalar reward models: what the losses of a batch come to, what a prompt costs, where 0 is, and what is refused."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dropout import save_with_dropout
from prefloop.annotate.reward_model import load_scorer
from prefloop.batches import TokenGroup
from prefloop.config import (
    BradleyTerryReward,
    MarginRankingReward,
    PlackettLuceReward,
    RewardSection,
    RuntimeSection,
    SparrowReward,
)
from prefloop.forward import ScoresModule, all_scores
from prefloop.interfaces import InputError, no_progress
from prefloop.modeling import load_codec, load_reward_model, new_reward_model, note_reward, reward_notes
from prefloop.records import Demonstration, Group, Message, PreferencePair, Prompt, Score, file_completion
from prefloop.train.groups import Pair, PairGroup
from prefloop.train.reward import RewardJob, train_reward
from prefloop.train.rewards.choices import choices, dialogue_of
from prefloop.train.rewards.losses import ChoiceGroup, choice_loss, pairs_loss, ranking_loss
from prefloop.train.rewards.scalar import encode_groups
from prefloop.train.rewards.scale import mean_and_deviation

RUNTIME = RuntimeSection(device="cpu", threads=1)
TOLERANCE = {"rtol": 0, "atol": 1e-6}


def ranked(*ranks: int, p_chosen: float = 1.0, margin: float = 0.0) -> PairGroup:
    """All untied pairs of a ranking, weighted so that the prompt counts once."""
    places = [(a, b) for a, b in itertools.permutations(range(len(ranks)), 2) if ranks[a] < ranks[b]]
    tokens = TokenGroup((1,), tuple((2 + place,) for place in range(len(ranks))))
    pairs = (Pair(a, b, p_chosen, margin, 1 / len(places), f"{a}-{b}") for a, b in places)
    return PairGroup(tokens, tuple(pairs))


def loss_of(function, scores, groups, objective) -> torch.Tensor:
    return function(torch.tensor(scores), groups, objective)[0]


# --- values of labs and papers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "expected"), [((1, 2, 3, 4), 0.207038), ((1, 2, 2, 3), 0.185793)], ids=["strict", "one tie"]
)
def test_a_ranking_costs_the_mean_over_its_untied_pairs(ranks, expected):
    loss = loss_of(pairs_loss, [2.0, 1.0, 0.0, -1.0], [ranked(*ranks)], BradleyTerryReward())
    torch.testing.assert_close(loss, torch.tensor(expected), **TOLERANCE)


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0, 0.313262), (1 / 3, 0.414370), (2 / 3, 0.540306), (1, 0.693147), (2, 1.313262), (3, 2.126928)],
)
def test_the_lead_that_is_asked_for_raises_the_loss_as_in_llama_2(margin, expected):
    loss = loss_of(pairs_loss, [1.0, 0.0], [ranked(1, 2, margin=margin)], BradleyTerryReward())
    torch.testing.assert_close(loss, torch.tensor(expected), **TOLERANCE)


def test_soft_labels_weigh_both_orders():
    """-(0.75 log sigmoid(1) + 0.25 log sigmoid(-1)) = 0.313262 + 0.25."""
    loss = loss_of(pairs_loss, [1.0, 0.0], [ranked(1, 2, p_chosen=0.75)], BradleyTerryReward())
    torch.testing.assert_close(loss, torch.tensor(0.563262), **TOLERANCE)
    hinge = loss_of(
        pairs_loss, [0.5, 0.0], [ranked(1, 2, p_chosen=0.75)], MarginRankingReward(kind="margin_ranking")
    )
    torch.testing.assert_close(hinge, torch.tensor(0.75 * 0.5 + 0.25 * 1.5), **TOLERANCE)


def test_margin_ranking_is_what_lacks_to_the_lead():
    objective = MarginRankingReward(kind="margin_ranking", margin=2.0)
    assert float(loss_of(pairs_loss, [1.5, 0.0, 5.0, 0.0], [ranked(1, 2), ranked(1, 2)], objective)) == 0.5


def test_centring_adds_the_squared_mean_score_of_each_prompt():
    """Means 0.5 and 2: 0.25 + 4."""
    groups = [ranked(1, 2), ranked(1, 2)]
    plain = loss_of(pairs_loss, [1.0, 0.0, 3.0, 1.0], groups, BradleyTerryReward())
    held = loss_of(pairs_loss, [1.0, 0.0, 3.0, 1.0], groups, BradleyTerryReward(centring_weight=0.1))
    torch.testing.assert_close(held - plain, torch.tensor(0.425), rtol=0, atol=1e-6)


def test_plackett_luce_is_the_likelihood_of_drawing_the_ranking():
    """Equal scores: one of 3! orders; a tie at the bottom leaves only the first draw, one of three."""
    objective = PlackettLuceReward(kind="plackett_luce")
    strict = loss_of(ranking_loss, [0.0] * 3, [ranked(1, 2, 3)], objective)
    torch.testing.assert_close(strict, torch.tensor(6.0).log(), **TOLERANCE)
    tied = loss_of(ranking_loss, [0.0] * 3, [ranked(1, 2, 2)], objective)
    torch.testing.assert_close(tied, torch.tensor(3.0).log(), **TOLERANCE)
    both = loss_of(ranking_loss, [0.0] * 5, [ranked(1, 2, 3), ranked(1, 2)], objective)
    torch.testing.assert_close(both, torch.tensor(12.0).log(), **TOLERANCE)


def choice(num_options: int, chosen: int, number: int) -> ChoiceGroup:
    return ChoiceGroup(TokenGroup((1,), ((2,),) * number), num_options, chosen, "turn")


def test_the_sparrow_loss_has_the_specified_terms():
    """Options 1, 0.5, -1, the first chosen; random -2: CE 0.583139, BT 0.601005, centring 0.140625."""
    scores, groups = [1.0, 0.5, -1.0, -2.0], [choice(3, 0, 4)]
    for weights, expected in [
        ((1, 0, 0), 0.583139),
        ((0, 1, 0), 0.601005),
        ((0, 0, 1), 0.140625),
        ((1, 1, 0.01), 0.583139 + 0.601005 + 0.00140625),
    ]:
        objective = SparrowReward(
            kind="sparrow",
            cross_entropy_weight=weights[0],
            bradley_terry_weight=weights[1],
            centring_weight=weights[2],
        )
        loss = loss_of(choice_loss, scores, groups, objective)
        torch.testing.assert_close(loss, torch.tensor(expected), rtol=0, atol=2e-6)


def test_where_all_are_bad_a_fixed_score_wins():
    """All at 0 with a fixed 0: the fixed one is one of three in the choice, and wins one half of two comparisons."""
    objective = SparrowReward(kind="sparrow", centring_weight=0.0)
    loss = loss_of(choice_loss, [0.0, 0.0], [choice(2, -1, 2)], objective)
    torch.testing.assert_close(loss, torch.tensor(3.0).log() + 2 * torch.tensor(2.0).log(), **TOLERANCE)


# --- what is trained on ----------------------------------------------------------------------------------------------


def prompt(text: str) -> Prompt:
    return Prompt.of((Message(role="user", content=text),))


def ranking(text: str, *answers: str) -> list[PreferencePair]:
    """All pairs of answers given best first, with the ids that single pairs of a file would have."""
    one = prompt(text)
    return [
        PreferencePair.of(
            one,
            file_completion(one, answers[a], 0),
            file_completion(one, answers[b], 1),
            margin=1.0,
            annotator="test",
        )
        for a, b in itertools.combinations(range(len(answers)), 2)
    ]


GOOD, FAIR, POOR = "Ada the fox smiled.", "Ada went home alone.", "It rained all day in the mud."
RANKED = [
    pair
    for number in range(8)
    for pair in ranking(f"Write about a fox named Ada and map {number}.", GOOD, FAIR, POOR)
]


def job(trunk: Path, out: Path, *, pairs=RANKED, validation=(), objective=None, **options) -> RewardJob:
    out.mkdir(exist_ok=True)
    section = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 6, "data": "x.jsonl", **options}
    return RewardJob(
        trunk=str(trunk),
        pairs=tuple(pairs),
        validation=tuple(validation),
        options=RewardSection.model_validate(section | ({"objective": objective} if objective else {})),
        dtype="float32",
        seed=0,
        runtime=RUNTIME,
        out=out,
    )


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(one) for one in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]


def test_a_ranking_of_k_costs_k_rows_and_counts_once(tiny_model):
    codec = load_codec(tiny_model)
    answers = [f"Tale number {number}." for number in range(5)]
    pairs = ranking("Tell a tale.", *answers)
    (group,), _ = encode_groups(pairs, codec, RewardSection(data="x.jsonl"))
    assert (len(pairs), len(group.tokens.completions)) == (10, 5)
    assert group.weight == pytest.approx(1.0)
    single, _ = encode_groups(pairs, codec, RewardSection(data="x.jsonl", grouping="pair"))
    assert sum(len(one.tokens.completions) for one in single) == 20


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, 0.0),
        ({"margin_scale": 0.5}, 1.0),
        ({"margin_table": {1: 0, 2: 0.25, 3: 1}}, 0.25),
        ({"kind": "margin_ranking"}, 0.0),
    ],
)
def test_the_margin_of_a_label_becomes_the_lead_that_is_asked_for(tiny_model, objective, expected):
    pair = RANKED[0].model_copy(update={"margin": 2.0})
    options = RewardSection.model_validate({"data": "x.jsonl", "objective": objective})
    (group,), _ = encode_groups([pair], load_codec(tiny_model), options)
    assert group.pairs[0].margin == expected


def test_a_margin_that_the_table_does_not_know_is_an_error(tiny_model):
    options = RewardSection.model_validate({"data": "x.jsonl", "objective": {"margin_table": {1: 0, 2: 0.5}}})
    pair = RANKED[0].model_copy(update={"margin": 2.5})
    with pytest.raises(
        InputError, match=rf"pair {pair.id}: its label has margin 2.5, but .* knows 1, 2; add"
    ):
        encode_groups([pair], load_codec(tiny_model), options)


def test_pairs_that_are_no_ranking_are_refused_by_plackett_luce(tiny_model, tmp_path):
    with pytest.raises(InputError, match="are not all pairs of one ranking, which plackett_luce needs"):
        train_reward(
            job(tiny_model, tmp_path, pairs=RANKED[:3:2], objective={"kind": "plackett_luce"}), no_progress
        )


@pytest.mark.parametrize(
    "objective",
    [{"kind": "bradley_terry"}, {"kind": "margin_ranking"}, {"kind": "plackett_luce"}, {"kind": "sparrow"}],
    ids=lambda one: one["kind"],
)
def test_every_objective_learns_the_order(tiny_model, tmp_path, objective):
    stats = train_reward(
        job(tiny_model, tmp_path, pairs=RANKED[:18], validation=RANKED[18:], objective=objective), no_progress
    )
    assert stats["validation"]["accuracy"]["mean"] == 1.0
    assert stats["validation"]["num_pairs"] == 6
    assert stats["loss_last"] < stats["loss_first"]
    assert reward_notes(load_reward_model(tmp_path / "model", RUNTIME)[0].config)["kind"] == objective["kind"]


def test_random_statements_come_from_other_dialogues_by_the_seed_and_are_written_down(tiny_model, tmp_path):
    codec = load_codec(tiny_model)
    first, follow_up = (
        prompt("Hello."),
        Prompt.of(
            (
                Message(role="user", content="Hello."),
                Message(role="assistant", content="Yes?"),
                Message(role="user", content="Tell me more."),
            )
        ),
    )
    assert dialogue_of(first.messages) == dialogue_of(follow_up.messages)
    pairs = [
        PreferencePair.of(
            one, file_completion(one, "Good."), file_completion(one, "Bad.", 1), margin=1.0, annotator="t"
        )
        for one in (first, follow_up, prompt("Other."))
    ]
    other = {pairs[2].chosen.id, pairs[2].rejected.id}
    groups, unclear = choices(pairs, [], codec, random_per_option=2, seed=0)
    assert unclear == 0
    assert all(set(one.random_ids) == other for one in groups[:2])  # there are only two, four were wanted
    assert not set(groups[2].random_ids) & other
    assert len(groups[2].random_ids) == 4
    again, _ = choices(pairs, [], codec, random_per_option=1, seed=0)
    assert again == choices(pairs, [], codec, random_per_option=1, seed=0)[0]
    drawn = {
        seed: [one.random_ids for one in choices(RANKED, [], codec, random_per_option=1, seed=seed)[0]]
        for seed in (0, 1)
    }
    assert drawn[0] != drawn[1]
    train_reward(job(tiny_model, tmp_path, objective={"kind": "sparrow"}, max_steps=1), no_progress)
    rows = [json.loads(one) for one in (tmp_path / "random_statements.jsonl").read_text().splitlines()]
    assert [len(row["completion_ids"]) for row in rows] == [3] * 8


def test_choices_count_what_they_cannot_use_and_take_verdicts_that_all_are_bad(tiny_model):
    codec = load_codec(tiny_model)
    two_best = ranking("Which?", "A tale.", "B tale.")[:1] + ranking("Which?", "C tale.", "D tale.")[:1]
    bad = prompt("Bad ones.")
    groups, unclear = choices(
        [*RANKED[:3], *two_best],
        [Group(prompt=bad, completions=(file_completion(bad, "No."), file_completion(bad, "Never.", 1)))],
        codec,
        random_per_option=0,
        seed=0,
    )
    assert unclear == 1
    assert [(one.chosen, one.num_options, len(one.tokens.completions)) for one in groups] == [
        (0, 3, 3),
        (-1, 2, 2),
    ]
    with pytest.raises(InputError, match="no other dialogue to take statements from; set it to 0"):
        choices(RANKED[:3], [], codec, random_per_option=1, seed=0)


# --- scale -----------------------------------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_the_population():
    mean, deviation = mean_and_deviation([1.0, 2.0, 3.0, 6.0])
    assert [(one - mean) / deviation for one in (1, 2, 3, 6)] == pytest.approx(
        [-1.069045, -0.534522, 0, 1.603567], abs=1e-6
    )
    assert mean_and_deviation([2.0, 2.0]) == (2.0, 1.0)


def scores(folder: Path, pairs, **options) -> list[float]:
    scorer = load_scorer(folder, RUNTIME, name="reward", same_tokens=False, labels=0)
    one = {pair.prompt.id: pair for pair in pairs}
    groups = [
        Group(
            prompt=pair.prompt,
            completions=tuple(file_completion(pair.prompt, text) for text in (GOOD, FAIR, POOR)),
        )
        for pair in one.values()
    ]
    return [row.value for row in scorer.score(groups) if isinstance(row, Score)]


def test_standardised_scores_have_mean_0_and_deviation_1_on_the_training_completions(tiny_model, tmp_path):
    train_reward(job(tiny_model, tmp_path, objective={"normalise": "standardise"}), no_progress)
    found = scores(tmp_path / "model", RANKED)
    assert mean_and_deviation(found) == pytest.approx((0, 1), abs=1e-4)
    plain = tmp_path / "plain"
    train_reward(job(tiny_model, plain), no_progress)
    notes = reward_notes(load_reward_model(tmp_path / "model", RUNTIME)[0].config)
    raw = scores(plain / "model", RANKED)
    assert found == pytest.approx([(one - notes["shift"]) / notes["scale"] for one in raw], abs=1e-4)


def test_zero_can_be_put_at_demonstrations_or_at_held_out_completions(tiny_model, tmp_path):
    shown = tuple(
        Demonstration.of((*pair.prompt.messages, Message(role="assistant", content=GOOD)))
        for pair in RANKED[::3]
    )
    at_demonstrations = job(tiny_model, tmp_path / "d", objective={"zero_at": "demonstrations"})
    with pytest.raises(InputError, match="zero_at: sft.data has no demonstrations"):
        train_reward(at_demonstrations, no_progress)
    train_reward(
        RewardJob(**(vars(at_demonstrations) | {"demonstrations": shown, "out": tmp_path / "d"})), no_progress
    )
    found = scores(tmp_path / "d" / "model", RANKED)
    assert sum(found[::3]) / 8 == pytest.approx(0, abs=1e-5)
    assert min(found) < -0.01
    validation = RANKED[18:]
    train_reward(
        job(
            tiny_model,
            tmp_path / "v",
            pairs=RANKED[:18],
            validation=validation,
            objective={"zero_at": "validation"},
        ),
        no_progress,
    )
    held_out = scores(tmp_path / "v" / "model", validation)
    assert sum(held_out) / len(held_out) == pytest.approx(0, abs=1e-5)


def test_a_reward_model_is_trained_without_dropout(tiny_model, tmp_path):
    """What the seed decides besides is the order of the prompts, and there is but one."""
    trunk = save_with_dropout("gpt2", tiny_model, tmp_path / "trunk")
    found = []
    for seed in range(2):
        one = job(trunk, tmp_path / str(seed), pairs=RANKED[:3], batch_size=1, epochs=3)
        train_reward(replace(one, seed=seed), no_progress)
        found.append(scores(tmp_path / str(seed) / "model", RANKED[:3]))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert max(map(abs, found[0])) > 1e-4, "it has learned"


def test_a_reward_model_that_starts_from_another_forgets_its_scale(tiny_model, tmp_path):
    train_reward(job(tiny_model, tmp_path, objective={"normalise": "standardise"}, max_steps=2), no_progress)
    model, _ = new_reward_model(tmp_path / "model", RUNTIME)
    assert reward_notes(model.config) == {}


def test_a_score_does_not_depend_on_the_batch(tiny_model, tmp_path):
    train_reward(job(tiny_model, tmp_path, objective={"normalise": "standardise"}), no_progress)
    one = prompt("Write about a fox named Ada.")
    texts = [GOOD, FAIR, POOR, "A.", "B " * 40, "Ada.", GOOD * 3, "The map."]
    completions = tuple(file_completion(one, text, place) for place, text in enumerate(texts))
    found = {}
    for share in (True, False):
        runtime = RuntimeSection(device="cpu", share_prompts=share)
        scorer = load_scorer(tmp_path / "model", runtime, name="r", same_tokens=False, labels=0)
        found[share, 8] = [row.value for row in scorer.score([Group(prompt=one, completions=completions)])]
        found[share, 1] = [
            row.value
            for completion in completions
            for row in scorer.score([Group(prompt=one, completions=(completion,))])
        ]
    for values in found.values():
        assert values == pytest.approx(found[True, 8], abs=1e-4)


def test_a_scale_is_applied_by_the_module_that_scores(tiny_model):
    model, codec = new_reward_model(tiny_model, RUNTIME)
    note_reward(model, kind="bradley_terry", shift=3.0, scale=2.0)
    module = ScoresModule(model, pad_id=codec.pad_id, runtime=RUNTIME)
    assert all_scores(module, [TokenGroup((1, 5), ((6,), (7, 8)))], RUNTIME) == [[-1.5, -1.5]]
