"""Controls of the loop: its pairs learned from once more, in order and shuffled, and pairs that are half of the start's."""

import pytest
from safetensors.torch import load_file

from prefloop import pipeline
from prefloop.interfaces import InputError
from prefloop.pipeline import Entry
from prefloop.records import Group, PreferencePair
from prefloop.stages.shared import model_folder
from prefloop.store import Workspace, read_records
from prefloop.watching import Watcher
from small import small

PLAIN = ("loop.gate.metric=none", "evaluate.num_prompts=0", "loop.batches=2")


def run(tmp_path, *overrides: str) -> list[Entry]:
    return pipeline.run(small(*PLAIN, *overrides), Workspace(tmp_path), Watcher())


def of(entries: list[Entry], kind: str) -> list[Entry]:
    return [one for one in entries if one.artefact.kind == kind]


def pairs(entry: Entry) -> list[PreferencePair]:
    return read_records(entry.artefact.path / "pairs.jsonl", PreferencePair)


def test_pairs_replayed_in_order_give_the_same_weights(tmp_path):
    policies = of(run(tmp_path, "loop.replay=ordered"), "policy")
    assert (
        len(policies) == 4 and len({one.artefact.key for one in policies}) == 4
    )  # trained, not taken from the loop
    for first, again in zip(policies[:2], policies[2:], strict=True):
        weights, others = (
            load_file(model_folder(one.artefact) / "model.safetensors") for one in (first, again)
        )
        assert all((weights[name] == others[name]).all() for name in weights)


def test_shuffled_pairs_are_the_same_in_as_many_batches(tmp_path):
    entries = run(tmp_path, "loop.replay=shuffled")
    collected = [pairs(one) for one in of(entries, "select") if one.iteration is not None]
    replayed = [pairs(one) for one in of(entries, "replay")]
    assert [len(one) for one in replayed] == [len(one) for one in collected]
    ids = [[pair.id for one in some for pair in one] for some in (collected, replayed)]
    assert sorted(ids[0]) == sorted(ids[1]) and ids[0] != ids[1]
    steps = [one.artefact.stats["steps"] for one in of(entries, "policy")]
    assert steps[:2] == steps[2:]


def test_half_of_each_group_is_of_the_policy_that_the_loop_started_with(tmp_path):
    entries = run(tmp_path, "loop.from_start=half", "generate.num_completions=4")
    start = of(entries, "sft")[0].artefact.name
    mixed = of(entries, "mix")
    policies = [start, of(entries, "policy")[0].artefact.name]
    assert len(mixed) == 2
    for entry, current in zip(mixed, policies, strict=True):
        groups = read_records(entry.artefact.path / "groups.jsonl", Group)
        assert groups
        for group in groups:
            assert [one.policy for one in group.completions] == [start, current] * 2
            texts = [one.text for one in group.completions]
            assert len(set(texts)) > 1  # also where both are the start


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loop.from_start=half",), "needs an even generate.num_completions"),
        (("loop.replay=shuffled", "loop.gate.metric=proxy"), "what a gate has rejected cannot be replayed"),
        (("loop.replay=ordered", "loop.batches=0"), "here it collects none"),
    ],
)
def test_what_cannot_be_replayed_or_halved_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        small(*PLAIN, *overrides)


@pytest.mark.parametrize("rule", ["thompson", "uncertainty"])
def test_an_ensemble_picks_the_pairs_and_says_so(tmp_path, rule):
    entries = run(
        tmp_path,
        "reward={seed_prompts: 6, max_steps: 3, batch_size: 2, objective: {kind: ensemble, num_heads: 4}}",
        f"annotate.propose={rule}",
    )
    judged = [one for one in of(entries, "annotate") if one.iteration is not None]
    assert judged
    for one in judged:
        assert set(one.artefact.stats["strategies"]) == {rule}


def test_a_single_head_cannot_pick_by_its_doubts():
    with pytest.raises(InputError, match="thompson asks the heads of an ensemble"):
        small(*PLAIN, "annotate.propose=thompson")
