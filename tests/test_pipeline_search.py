"""The loop with a tree search for candidates and pairs of its steps."""

from pathlib import Path

import pytest

import prefloop.generate.hf
from prefloop import pipeline
from prefloop.config import Experiment
from prefloop.pipeline import Entry, Watcher
from prefloop.records import Group, PreferencePair
from prefloop.report import write_report
from prefloop.stages.shared import read_judgements
from prefloop.store import RowFile, Workspace, read_records
from small import small

ENGINE = "generate.engine={kind: mcts, iterations: 2, first_actions: 2, step: 6}"
SEARCH = (ENGINE, "loop.batches=1", "select.rule=siblings", "policy.objective.label_smoothing=pair")
ALONE = (
    *SEARCH,
    "generate.engine.value={kind: rule, rule: tales}",
    "reward={}",
    "loop.gate.metric=none",
)
"""Nobody's labels are needed: the search goes by a rule."""


def of(entries: list[Entry], role: str) -> list[Entry]:
    return [entry for entry in entries if entry.role == role]


def groups_of(entry: Entry) -> list[Group]:
    return list(read_records(entry.artefact.path / "groups.jsonl", Group))


def pairs_of(entry: Entry) -> list[PreferencePair]:
    return list(read_records(entry.artefact.path / "pairs.jsonl", PreferencePair))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Workspace, list[Entry]]:
    workspace = Workspace(tmp_path_factory.mktemp("search") / "workspace")
    return workspace, pipeline.run(small(*SEARCH), workspace, Watcher())


def test_the_loop_ends_and_every_row_is_counted(finished):
    _, entries = finished
    for entry in entries:
        rows = entry.artefact.manifest["rows"]
        assert rows["in"] == rows["out"] + sum(rows["dropped"].values()), entry.role


def test_a_group_has_its_tree_and_the_stage_says_what_it_cost(finished):
    _, entries = finished
    first, searched = of(entries, "generate")
    groups = groups_of(searched)
    stats = searched.artefact.stats["search"]
    assert stats["completions_drawn"] == sum(group.tree.num_drawn for group in groups) > 6 * 2
    assert stats["tokens_drawn"] == sum(group.tree.num_tokens for group in groups)
    assert stats["tokens_drawn"] <= 12 * stats["completions_drawn"]
    assert searched.artefact.stats["trainer_gap"] < 1e-4
    (reward, _) = of(entries, "reward")
    assert {group.tree.annotator for group in groups} == {f"reward:{reward.artefact.key}"}
    assert all(group.tree is None for group in groups_of(first)), (
        "the first reward model has nothing to search by"
    )


def test_evaluation_samples_the_policy_itself(finished):
    _, entries = finished
    for entry in of(entries, "evaluate"):
        for group in groups_of(entry):
            assert group.tree is None
            assert all(one.sampling.is_plain for one in group.completions)


def test_the_policy_learns_from_steps_and_the_reward_model_from_labels(finished):
    _, entries = finished
    (_, steps), (labelled,) = of(entries, "select"), of(entries, "reward_data")
    (annotated,) = of(entries, "annotate")[1:]
    reward = of(entries, "reward")[1]
    (policy,) = of(entries, "policy")
    assert policy.artefact.manifest["inputs"]["pairs"] == [steps.artefact.key]
    assert labelled.artefact.key in reward.artefact.manifest["inputs"]["pairs"]
    assert steps.artefact.key not in reward.artefact.manifest["inputs"]["pairs"]
    assert {one.annotator.partition(":")[0] for one in pairs_of(steps)} == {"reward"}
    assert any(one.prefix_tokens for one in pairs_of(steps))
    assert not any(one.prefix_tokens for one in pairs_of(labelled))
    asked = {one.prompt_id for one in read_judgements(annotated.artefact.path / "judgements.jsonl")}
    assert {one.prompt.id for one in pairs_of(labelled)} <= asked
    # of each prompt the weights are those of one pair
    weights: dict[str, float] = {}
    for one in pairs_of(steps):
        weights[one.prompt.id] = weights.get(one.prompt.id, 0.0) + one.weight
    assert list(weights.values()) == pytest.approx([1.0] * len(weights))


def test_the_report_can_be_written(finished):
    workspace, _ = finished
    assert "small" in write_report(workspace, "small").read_text(encoding="utf-8")


def test_the_plan_says_that_it_searches_and_by_what():
    workspace = Workspace(Path("nowhere"))

    def work(*overrides: str) -> str:
        return of(pipeline.plan(small(*SEARCH, *overrides), workspace), "generate")[-1].stage.work

    assert work() == "6 prompts x 3 completions by tree search, 2 iterations a step, values by reward"
    assert work("generate.engine.value=self").endswith("values by self")


def keys(*overrides: str) -> dict[str, list[str]]:
    entries = pipeline.plan(small(*overrides), Workspace(Path("nowhere")))
    return {entry.role: [one.artefact.key for one in of(entries, entry.role)] for entry in entries}


def test_the_reward_model_is_part_of_the_key_where_the_search_goes_by_it():
    changed = "reward.learning_rate=2e-3"
    assert keys(*SEARCH)["generate"][0] == keys(*SEARCH, changed)["generate"][0]
    assert keys(*SEARCH)["generate"][1] != keys(*SEARCH, changed)["generate"][1]
    by_rule = (*SEARCH, "generate.engine.value={kind: rule, rule: tales}")
    assert keys(*by_rule)["generate"] == keys(*by_rule, changed)["generate"]


@pytest.mark.parametrize(
    "change",
    [
        "generate.engine.iterations=3",
        "generate.engine.exploration=2.0",
        "generate.engine.value=self",
        "generate.engine.value={kind: rule, rule: words, words: [kite]}",
    ],
)
def test_what_a_search_does_is_part_of_its_key(change):
    assert keys(*SEARCH)["generate"][1] != keys(*SEARCH, change)["generate"][1]
    assert keys(*SEARCH)["evaluate"][0] == keys(*SEARCH, change)["evaluate"][0]


def test_plain_stages_keep_their_keys_beside_a_search():
    plain, search = keys("loop.batches=1"), keys(*SEARCH)
    assert plain["evaluate"][0] == search["evaluate"][0]
    assert plain["generate"][0] == search["generate"][0]


def test_nobody_is_asked_where_no_reward_model_learns():
    x = small(*ALONE, "loop.max_labels=1")
    assert pipeline.label_costs(x) == [1, 0]
    entries = pipeline.plan(x, Workspace(Path("nowhere")))
    roles = [entry.role for entry in entries]
    assert "annotate" not in roles
    assert roles.count("select") == 1
    # with no label to spend the prompts are not cut
    assert pipeline.batch_sizes(x) == [0, 6]


class Killed(BaseException):
    """What a kill is to the code that runs."""


def test_a_search_goes_on_after_a_kill_and_ends_in_the_same_trees(tmp_path, monkeypatch):
    monkeypatch.setattr(prefloop.generate.hf, "BATCHES_AT_ONCE", 1)
    x = small(*ALONE, "runtime.generation_rows=4", "evaluate.num_prompts=0", "evaluate.scorer=null")

    def searched(x: Experiment, workspace: Workspace) -> list[Group]:
        return groups_of(of(pipeline.run(x, workspace, Watcher()), "generate")[0])

    expected = searched(x, Workspace(tmp_path / "whole"))
    append = RowFile.append

    def killed_after_the_first_chunk(self, rows, **options):
        append(self, rows, **options)
        if self.path.name == "groups.jsonl":
            raise Killed

    monkeypatch.setattr(RowFile, "append", killed_after_the_first_chunk)
    with pytest.raises(Killed):
        searched(x, Workspace(tmp_path / "killed"))
    monkeypatch.setattr(RowFile, "append", append)
    (partial,) = (tmp_path / "killed" / "artefacts").glob("generate-*.partial")
    assert len((partial / "groups.jsonl").read_text().splitlines()) == 2
    other = x.model_copy(update={"runtime": x.runtime.model_copy(update={"generation_rows": 64})})
    found = searched(other, Workspace(tmp_path / "killed"))
    assert [[one.token_ids for one in group.completions] for group in found] == [
        [one.token_ids for one in group.completions] for group in expected
    ]
    assert [[one.visits for one in group.tree.nodes] for group in found] == [
        [one.visits for one in group.tree.nodes] for group in expected
    ]
    assert len({one.prompt.id for one in found}) == 6
