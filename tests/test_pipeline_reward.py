"""Reward models of every kind in the loop: trained by the public stage, gated, and asked for labels."""

import json
import shutil
from pathlib import Path

import pytest

from prefloop import pipeline, stages, tales
from prefloop.interfaces import InputError, no_progress
from prefloop.modeling import load_reward_model
from prefloop.pipeline import Entry, Watcher
from prefloop.records import Comparison, Message, PreferencePair, Prompt, Score, file_completion
from prefloop.stages.shared import model_folder, read_judgements
from prefloop.store import Artefact, Stage, Workspace, write_rows
from prefloop.train.reward import RewardJob, train_reward
from small import small

GOOD, FAIR, POOR = "Ada the fox smiled.", "Ada went home alone.", "It rained all day in the mud."
ALONE = ("loop.batches=0", "loop.gate.metric=none", "evaluate.num_prompts=0")
FAST = "max_steps: 2, batch_size: 2, validation_share: 0.2, max_length: 96"


def rows_file(folder: Path, *rows: object) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts() -> list[str]:
    return [one.text for one in tales.prompts()[200:212]]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """Shared, so that the base model and the SFT policy are made once."""
    return Workspace(tmp_path_factory.mktemp("shared") / "workspace")


def run(workspace: Workspace, *overrides: str) -> list[Entry]:
    return pipeline.run(small(*overrides), workspace, Watcher())


def last(entries: list[Entry], role: str) -> Artefact:
    return [entry.artefact for entry in entries if entry.role == role][-1]


def pairs_file(folder: Path) -> str:
    return rows_file(folder, *({"prompt": one, "chosen": GOOD, "rejected": POOR} for one in prompts()))


# --- trained by the stage --------------------------------------------------------------------------------------------


def test_rankings_choices_and_verdicts_that_all_are_bad_reach_training(workspace, tmp_path):
    rows = [{"prompt": one, "responses": [POOR, GOOD, FAIR], "choice": 1} for one in prompts()[:10]]
    bad = [{"prompt": one, "responses": [POOR, FAIR], "choice": "all_bad"} for one in prompts()[10:]]
    entries = run(
        workspace,
        f"reward={{data: {rows_file(tmp_path, *rows, *bad)}, objective: {{kind: sparrow}}, {FAST}}}",
        *ALONE,
    )
    imported, reward = last(entries, "reward_data"), last(entries, "reward")
    assert imported.stats["rankings"] == 12
    assert (imported.stats["pairs"], imported.stats["all_bad"]) == (20, 2)
    kept = reward.stats["prompts"] - reward.stats["all_bad"] + reward.stats["validation"]["num_pairs"] // 2
    assert kept == 10
    assert (reward.path / "random_statements.jsonl").is_file()
    counts = reward.manifest["rows"]
    assert counts["in"] == counts["out"] == 20 + reward.stats["all_bad"]


def test_k_way_training_is_one_key_away(workspace, tmp_path):
    rows = [{"prompt": one, "responses": [POOR, GOOD, FAIR], "ranks": [2, 1, 2]} for one in prompts()]
    path = rows_file(tmp_path, *rows)
    best = run(workspace, f"reward={{data: {path}, {FAST}}}", *ALONE)
    whole = run(workspace, f"reward={{data: {path}, pairs_per_prompt: all, {FAST}}}", *ALONE)
    assert [last(one, "reward_data").stats["pairs"] for one in (best, whole)] == [12, 24]
    assert [last(one, "reward").stats["prompts"] for one in (best, whole)] == [
        last(best, "reward").stats["prompts"]
    ] * 2


def verdict_rows(kind: str) -> list[dict]:
    if kind == "rules":
        return [
            {"prompt": one, "completion": GOOD, "rule": rule, "verdict": verdict}
            for one in prompts()
            for rule, verdict in (
                ("Smile.", "probably_follow"),
                ("Cry.", "definitely_break"),
                ("Run.", "unsure"),
            )
        ]
    return [{"prompt": one, "steps": [GOOD, POOR], "labels": ["+", "-"]} for one in prompts()]


@pytest.mark.parametrize(("kind", "dropped"), [("rules", {"unsure": 12}), ("process", {})])
def test_verdicts_that_are_no_pairs_are_read_by_the_stage_and_counted(workspace, tmp_path, kind, dropped):
    data = rows_file(tmp_path, *verdict_rows(kind))
    overrides = (f"reward={{data: {data}, objective: {{kind: {kind}}}, {FAST}}}", *ALONE)
    entries = run(workspace, *overrides)
    assert [entry.role for entry in entries if entry.artefact.kind in ("import", "reward")] == ["reward"]
    reward = last(entries, "reward")
    assert reward.manifest["rows"]["dropped"] == dropped
    assert reward.stats["held_out"]["num_verdicts"] > 0
    before = reward.key
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("smiled", "laughed"))
    again = pipeline.plan(small(*overrides), workspace)
    assert next(one.artefact.key for one in again if one.role == "reward") != before


def test_nothing_to_train_on_says_where_it_went(workspace, tmp_path):
    rows = [{"prompt": "Hi", "completion": GOOD, "rule": "Smile.", "verdict": "unsure"}]
    data = rows_file(tmp_path, *rows)
    with pytest.raises(InputError, match=r"1 rows, but none to train the reward model on.*'unsure': 1"):
        run(workspace, f"reward={{data: {data}, objective: {{kind: rules}}, {FAST}}}", *ALONE)


def test_an_ensemble_is_brought_along_with_its_heads_and_scores_with_its_parts(workspace, tmp_path):
    objective = "{kind: ensemble, num_heads: 3, hidden_size: 4}"
    trained = run(
        workspace, f"reward={{data: {pairs_file(tmp_path)}, objective: {objective}, {FAST}}}", *ALONE
    )
    folder = model_folder(last(trained, "reward"))
    entries = run(
        workspace,
        f"reward={{model: {folder}}}",
        "annotate.annotator={kind: reward_model}",
        "loop.batches=1",
        "loop.gate.metric=none",
        "policy.max_steps=1",
    )
    assert (model_folder(last(entries, "reward")) / "heads.safetensors").is_file()
    judged = last(entries, "annotate")
    assert set(judged.stats["parts"]) == {"deviation", "head_0", "head_1", "head_2"}
    rows = read_judgements(judged.path / "judgements.jsonl")
    assert all(isinstance(row, Score) and row.parts["deviation"] > 0 for row in rows)
    assert last(entries, "evaluate").stats["proxy"] is not None


# --- asked for labels ------------------------------------------------------------------------------------------------


def test_the_loops_own_pairwise_model_judges_and_is_refreshed_and_gated(workspace, tmp_path):
    entries = run(
        workspace,
        f"reward={{data: {pairs_file(tmp_path)}, objective: {{kind: pairwise}}, max_length: 256, gate: {{}}, "
        "max_steps: 2, batch_size: 2, learning_rate: 1e-3, validation_share: 0.3}",
        "annotate={annotator: {kind: pairwise}, ask: all_pairs}",
        "loop.gate.metric=none",
        "policy.max_steps=1",
    )
    first, *_ = (entry.artefact for entry in entries if entry.role == "reward")
    gates = [entry.artefact for entry in entries if entry.role == "promote_reward"]
    assert gates[0].stats["drift"] is None  # it gives no scores
    judgements = [entry.artefact for entry in entries if entry.role == "annotate"]
    for reward, judged in zip((first, gates[0]), judgements, strict=True):
        assert judged.manifest["inputs"]["reward"] == reward.key
        rows = read_judgements(judged.path / "judgements.jsonl")
        assert {row.annotator for row in rows} == {f"pairwise:{model_folder(reward).parent.name}"}
    assert last(entries, "evaluate").stats["proxy"] is None
    finished = run(
        workspace,
        f"reward={{model: {model_folder(first)}, objective: {{kind: pairwise}}}}",
        "annotate={annotator: {kind: pairwise}}",
        "loop.batches=1",
        "loop.gate.metric=none",
        "policy.max_steps=1",
    )
    assert last(finished, "annotate").stats["labels"] > 0


def test_a_composite_keeps_its_parts_apart_and_its_scale_with_the_labels(workspace, tmp_path):
    data = rows_file(tmp_path, *verdict_rows("rules"))
    rules = run(workspace, f"reward={{data: {data}, objective: {{kind: rules}}, {FAST}}}", *ALONE)
    reference = tmp_path / "reference.jsonl"
    reference.write_text(json.dumps({"prompt": "Tell a tale.", "responses": [GOOD, FAIR, POOR]}) + "\n")
    entries = run(
        workspace,
        "reward.seed_prompts=0",
        f"annotate.annotator={{kind: composite, preference: {{kind: rule, rule: tales}}, template: '.*', "
        f"rules: {{model: {model_folder(last(rules, 'reward'))}}}, length_weight: 0.1, reference: {reference}}}",
        "loop.batches=1",
        "loop.gate.metric=none",
        "policy.max_steps=1",
    )
    judged = last(entries, "annotate")
    assert {"preference", "rules", "length", "invalid", "rules/Smile.", "weighted/length"} <= set(
        judged.stats["parts"]
    )
    moments = json.loads((judged.path / "standardised_by.json").read_text())
    assert set(moments) == {"preference", "rules", "length", "invalid"}
    assert moments["invalid"] == [0.0, 1.0]


def test_a_knockout_costs_k_minus_one_labels_a_prompt_and_ranks_the_group(workspace):
    overrides = (
        "annotate={annotator: {kind: simulated, gold: {kind: rule, rule: tales}, flip: 0}, ask: knockout}",
        "reward.seed_prompts=0",
        "generate.num_completions=4",
        "loop.batches=1",
        "loop.gate.metric=none",
        "policy.max_steps=1",
    )
    entries = run(workspace, *overrides)
    judged = last(entries, "annotate")
    rows = read_judgements(judged.path / "judgements.jsonl")
    by_prompt = {row.prompt_id: 0 for row in rows}
    for row in rows:
        assert isinstance(row, Comparison)
        by_prompt[row.prompt_id] += 1
    assert set(by_prompt.values()) <= {1, 2, 3}
    assert judged.stats["labels"] == len(rows)
    assert pipeline.batch_sizes(small(*overrides, "loop.max_labels=7")) == [0, 2]  # three a prompt
    assert last(entries, "select").stats["pairs"] > 0


# --- the gate --------------------------------------------------------------------------------------------------------


def preferences(number: int) -> list[PreferencePair]:
    found = []
    for place in range(number):
        prompt = Prompt.of((Message(role="user", content=f"Write about a fox named Ada and map {place}."),))
        answers = file_completion(prompt, GOOD), file_completion(prompt, POOR, 1)
        found.append(PreferencePair.of(prompt, *answers, margin=1.0, annotator="test"))
    return found


@pytest.fixture(scope="module")
def rivals(tiny_model, tmp_path_factory) -> tuple[Workspace, dict[str, Artefact]]:
    """A reward model that is right, one that is always wrong, and the pairs they are compared on."""
    folder = tmp_path_factory.mktemp("rivals")
    workspace = Workspace(folder / "workspace")
    workspace.create()
    pairs = preferences(40)
    swapped = [one.model_copy(update={"chosen": one.rejected, "rejected": one.chosen}) for one in pairs]
    made = {}
    for name, rows in (("right", pairs), ("wrong", swapped)):
        x = small("reward.max_steps=20", "reward.batch_size=8")
        (folder / name).mkdir()
        job = RewardJob(str(tiny_model), tuple(rows), (), x.reward, "float32", 0, x.runtime, folder / name)
        train_reward(job, no_progress)
        stage = Stage(
            "reward",
            1,
            {"name": name},
            {},
            lambda build, name=name: shutil.copytree(folder / name / "model", build.path / "model"),
        )
        made[name] = workspace.build(stage)
    stage = Stage("import", 1, {}, {}, lambda build: write_rows(build.path / "pairs.jsonl", pairs))
    made["pairs"] = workspace.build(stage)
    return workspace, made


def promoted(rivals, candidate: str, previous: str, *overrides: str) -> Artefact:
    workspace, made = rivals
    x = small("reward.gate={}", *overrides)
    stage = stages.promote_reward(x, made[candidate], made[previous], [made["pairs"]])
    return workspace.build(stage)


def test_a_worse_reward_model_is_sent_back_and_a_better_one_is_kept(rivals):
    _, made = rivals
    refused, kept = promoted(rivals, "wrong", "right"), promoted(rivals, "right", "wrong")
    assert model_folder(refused) == model_folder(made["right"])
    assert model_folder(kept) == model_folder(made["right"])
    assert (refused.stats["promoted"], kept.stats["promoted"]) == (False, True)
    assert (refused.stats["direction"], kept.stats["direction"]) == ("worse", "better")
    assert refused.stats["accuracy_change"]["mean"] == -1.0
    assert refused.stats["agreement"] == 0.0
    assert refused.stats["drift"]["rank_correlation"] < 0
    assert "-100.0 points of" in refused.stats["reason"]
    load_reward_model(model_folder(refused), small().runtime)


def test_equal_models_pass_agree_and_have_not_moved(rivals):
    same = promoted(rivals, "right", "right")
    assert same.stats["promoted"]
    assert (same.stats["agreement"], same.stats["drift"]["mean"]) == (1.0, 0.0)
    assert same.stats["drift"]["rank_correlation"] == pytest.approx(1.0)


def test_a_tolerance_of_one_keeps_every_new_model_and_reports(rivals):
    told = promoted(rivals, "wrong", "right", "reward.gate.tolerance=1.0")
    assert told.stats["promoted"]
    assert told.stats["direction"] == "worse"


def test_the_gate_stands_between_refreshes_and_the_loop_uses_what_it_keeps(workspace):
    entries = run(workspace, "reward.gate={tolerance: 0.1}", "reward.validation_share=0.3")
    gates = [entry.artefact for entry in entries if entry.role == "promote_reward"]
    rewards = [entry.artefact for entry in entries if entry.role == "reward"]
    assert len(gates) == 2
    assert gates[0].manifest["inputs"]["previous"] == rewards[0].key
    assert gates[0].manifest["inputs"]["candidate"] == rewards[1].key
    assert gates[1].manifest["inputs"]["previous"] == gates[0].key
    after = [entry.artefact for entry in entries if entry.role == "annotate" and entry.iteration == 1]
    assert after[0].manifest["inputs"]["reward"] == gates[0].key
    plain = pipeline.plan(small("reward.validation_share=0.3"), workspace)
    assert [one.artefact.key for one in plain if one.role == "reward"][:2] == [one.key for one in rewards[:2]]
