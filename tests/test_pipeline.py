import json
from collections import Counter
from pathlib import Path

import pytest

import prefloop.generate.hf
from prefloop import pipeline
from prefloop.config import MAIN_ARM, Experiment
from prefloop.interfaces import InputError
from prefloop.pipeline import Entry, Watcher
from prefloop.records import Group, PreferencePair, Prompt
from prefloop.stages.shared import read_judgements
from prefloop.store import RowFile, Workspace, read_records
from small import small


class Recorder(Watcher):
    """Notes what was built and what was there."""

    def __init__(self) -> None:
        self.built: list[Entry] = []

    def ends(self, entry, seconds, reused):
        if not reused:
            self.built.append(entry)


def run(x: Experiment, workspace: Workspace) -> list[str]:
    """Runs and returns the roles of what had to be built."""
    recorder = Recorder()
    pipeline.run(x, workspace, recorder)
    return [entry.role for entry in recorder.built]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Workspace, list[Entry]]:
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "workspace")
    return workspace, pipeline.run(small(), workspace, Watcher())


def of(entries, role: str, arm: str = MAIN_ARM) -> list[Entry]:
    return [entry for entry in entries if entry.role == role and entry.arm == arm]


def test_the_plan_names_exactly_what_the_run_builds(finished, tmp_path):
    workspace, entries = finished
    planned = pipeline.plan(small(), Workspace(tmp_path))
    assert [entry.artefact.name for entry in planned] == [entry.artefact.name for entry in entries]
    assert {path.name for path in workspace.artefacts.iterdir()} == {entry.artefact.name for entry in entries}


def test_a_finished_run_builds_nothing_again(finished):
    workspace, _ = finished
    assert run(small(), workspace) == []


def test_rows_in_are_rows_out_plus_rows_dropped_everywhere(finished):
    _, entries = finished
    for entry in entries:
        rows = entry.artefact.manifest["rows"]
        assert rows["in"] == rows["out"] + sum(rows["dropped"].values()), entry.role


def test_evaluation_gate_and_training_prompts_are_disjoint(finished):
    _, entries = finished
    folder = of(entries, "prompts")[0].artefact.path
    splits = [
        {prompt.id for prompt in read_records(folder / f"{name}.jsonl", Prompt)}
        for name in ("train", "gate", "evaluation")
    ]
    assert [len(one) for one in splits] == [18, 4, 6]
    assert len(set.union(*splits)) == 28


def test_label_batches_share_no_prompt(finished):
    _, entries = finished
    drawn = [
        {prompt.id for prompt in read_records(entry.artefact.path / "prompts.jsonl", Prompt)}
        for entry in of(entries, "draw")
    ]
    assert [len(one) for one in drawn] == [6, 6, 6]
    assert len(set.union(*drawn)) == 18


def test_completions_carry_policy_version_and_their_own_tokens(finished):
    _, entries = finished
    versions = []
    for entry in of(entries, "generate"):
        for group in read_records(entry.artefact.path / "groups.jsonl", Group):
            # the first labels compare two random completions, so only two are sampled
            assert len(group.completions) == (2 if entry.iteration is None else 3)
            for one in group.completions:
                versions.append((entry.iteration, one.policy_version))
                assert len(one.token_ids) == len(one.token_logps) <= 12
                assert one.policy.startswith(("sft-", "policy-"))
    assert set(versions) == {(None, 0), (0, 0), (1, 1)}


def test_the_ledger_equals_the_labels_of_the_judgement_rows(finished):
    _, entries = finished
    for entry in of(entries, "annotate"):
        rows = read_judgements(entry.artefact.path / "judgements.jsonl")
        assert entry.artefact.stats["labels"] == sum(row.labels for row in rows)
    total = sum(entry.artefact.stats["labels"] for entry in of(entries, "annotate"))
    assert total <= 18


def test_pairs_are_self_contained_and_reach_training_with_their_tokens(finished):
    _, entries = finished
    pairs = [
        pair
        for entry in of(entries, "select")
        for pair in read_records(entry.artefact.path / "pairs.jsonl", PreferencePair)
    ]
    assert pairs
    assert all(pair.chosen.token_ids and pair.rejected.token_ids for pair in pairs)
    assert all(pair.chosen.text != pair.rejected.text for pair in pairs)


def test_the_reference_stays_the_sft_policy(finished):
    _, entries = finished
    sft = of(entries, "sft")[0].artefact
    for entry in of(entries, "policy"):
        assert entry.artefact.manifest["inputs"]["reference"] == sft.key
        assert entry.artefact.stats["reference"] == sft.name


def test_evaluation_agrees_with_sampling_to_rounding(finished):
    _, entries = finished
    for entry in of(entries, "evaluate"):
        assert entry.artefact.stats["sampler_logp_gap"] < 1e-4
    start = of(entries, "evaluate")[0].artefact.stats
    assert start["kl"]["mean"] == pytest.approx(0, abs=1e-5)


def test_metrics_are_written_once_for_every_stage(finished):
    workspace, entries = finished
    rows = [
        json.loads(line) for line in (workspace.runs / "small" / "metrics.jsonl").read_text().splitlines()
    ]
    steps = Counter((row["arm"], row["iteration"], row["stage"], row.get("step")) for row in rows)
    assert steps[("main", 1, "policy", 3)] == 1
    assert {row["stage"] for row in rows} == {entry.role for entry in entries}


@pytest.mark.parametrize(
    ("change", "rebuilt"),
    [
        ("evaluate.resamples=300", {"evaluate", "gate before", "gate after", "promote"}),
        ("evaluate.num_samples_shown=2", set()),
        ("runtime.save_every_steps=50", set()),
        ("select.margin_scale=2.0", {"select", "reward"}),
        ("generate.top_p=0.9", {"generate"}),
        ("generate.search=beam", {"generate"}),
        ("policy.objective.beta=0.2", {"policy"}),
        ("reward.max_steps=4", {"reward"}),
        ("sft.max_steps=5", {"sft"}),
        ("model.dtype=bfloat16", {"sft", "reward"}),
        ("loop.gate.max_kl=1.0", {"promote"}),
    ],
)
def test_a_changed_key_recomputes_what_depends_on_it_and_nothing_before(finished, change, rebuilt):
    workspace, entries = finished
    old = {entry.artefact.name for entry in entries}
    planned = pipeline.plan(small(change), workspace)
    todo = [entry for entry in planned if entry.artefact.name not in old]
    kept = [entry for entry in planned if entry.artefact.name in old]
    assert rebuilt <= {entry.role for entry in todo}
    upstream = {
        "evaluate.resamples=300": {
            "policy",
            "generate",
            "annotate",
            "select",
            "sft",
            "base",
            "prompts",
            "reward",
        },
        "select.margin_scale=2.0": {"sft", "base", "prompts"},
        "generate.top_p=0.9": {"sft", "base", "prompts", "draw"},
        "generate.search=beam": {"sft", "base", "prompts", "draw"},
        "policy.objective.beta=0.2": {"sft", "base", "prompts", "draw"},
        "reward.max_steps=4": {"sft", "base", "prompts", "draw"},
        "sft.max_steps=5": {"base", "prompts", "draw"},
        "model.dtype=bfloat16": {"prompts", "draw"},
    }.get(change, set())
    for role in upstream:
        count = sum(entry.role == role for entry in entries)
        assert sum(entry.role == role for entry in kept) >= min(count, 1), role
    if not rebuilt:
        assert not todo


def test_changing_only_the_evaluator_keeps_every_policy(finished):
    workspace, entries = finished
    x = small("evaluate.scorer={kind: rule, rule: tales_craft}", "loop.gate.metric=none")
    names = {entry.artefact.name for entry in entries}
    planned = pipeline.plan(x, workspace)
    assert {entry.role for entry in planned if entry.artefact.name not in names and entry.iteration in (None, 0)} == {
        "prompts", "draw", "generate", "annotate", "select", "reward", "policy", "evaluate",
    }  # fmt: skip
    same_gate = small("evaluate.scorer={kind: rule, rule: tales_craft}")
    planned = pipeline.plan(same_gate, workspace)
    first = [entry for entry in planned if entry.iteration == 0 and entry.role == "policy"]
    assert all(entry.artefact.name in names for entry in first)


def test_a_seed_changes_everything(finished):
    workspace, entries = finished
    names = {entry.artefact.name for entry in entries}
    assert not [
        entry
        for entry in pipeline.plan(small("seed=1"), workspace)
        if entry.artefact.name in names and entry.role != "draw"
    ]


def test_offline_and_online_differ_only_in_who_writes(tmp_path):
    x = small(
        "arms={offline: {loop.refresh_every: never}}", "loop.gate.metric=none", "evaluate.num_prompts=0"
    )
    workspace = Workspace(tmp_path / "workspace")
    entries = pipeline.run(x, workspace, Watcher())
    for role in ("draw",):
        assert [one.artefact.key for one in of(entries, role)] == [
            one.artefact.key for one in of(entries, role, "offline")
        ]
    labels = [
        sum(
            one.artefact.stats["labels"] + one.artefact.manifest["rows"]["dropped"].get("identical", 0)
            for one in of(entries, "annotate", arm)
        )
        for arm in (MAIN_ARM, "offline")
    ]
    steps = [
        sum(one.artefact.stats["steps"] for one in of(entries, "policy", arm))
        for arm in (MAIN_ARM, "offline")
    ]
    assert steps[0] == steps[1] == 6
    assert abs(labels[0] - labels[1]) <= 2  # ties of the proxy are not asked about
    versions = {
        completion.policy_version
        for entry in of(entries, "generate", "offline")
        for group in read_records(entry.artefact.path / "groups.jsonl", Group)
        for completion in group.completions
    }
    assert versions == {0}


@pytest.mark.parametrize(
    ("budget", "sizes"), [(100, [6, 6, 6]), (15, [6, 6, 3]), (12, [6, 6, 0]), (7, [6, 1, 0])]
)
def test_the_label_budget_cuts_batches_exactly(budget, sizes):
    assert pipeline.batch_sizes(small(f"loop.max_labels={budget}")) == sizes


def test_a_budget_that_leaves_nothing_for_the_loop_is_an_error():
    with pytest.raises(InputError, match="loop.max_labels = 6: the first reward model alone needs 6"):
        pipeline.batch_sizes(small("loop.max_labels=6"))


def test_scores_by_the_annotator_cost_a_label_each():
    x = small(
        "annotate.annotator={kind: rule, rule: tales}", "reward.seed_prompts=0", "loop.gate.metric=none"
    )
    assert pipeline.batch_sizes(x) == [0, 6, 6]
    assert pipeline.batch_sizes(small("annotate.annotator.votes=3", "loop.max_labels=40")) == [6, 6, 1]


def test_too_few_prompts_are_explained(tmp_path):
    with pytest.raises(
        InputError, match=r"builtin:tales/prompts: 20 different prompts are left .* needs 606"
    ):
        pipeline.run(small("loop.prompts_per_batch=300", "prompts.limit=30"), Workspace(tmp_path), Watcher())


def test_offline_data_alone_runs_no_generation(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": f"Write about a fox named Ada and a map {n}.",
            "chosen": f"Good {n}.",
            "rejected": f"Bad {n}.",
        }
        for n in range(4)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    x = small(
        f"policy.offline_data={pairs}", "loop.batches=0", "loop.gate.metric=none", "reward.seed_prompts=0",
        "evaluate.num_prompts=0",
    )  # fmt: skip
    entries = pipeline.run(x, Workspace(tmp_path / "workspace"), Watcher())
    assert [entry.role for entry in entries] == ["base", "sft", "import", "policy"]
    assert entries[-1].artefact.stats["pairs"] == 4


def test_accumulated_data_grows_and_stale_samples_are_counted(tmp_path):
    x = small(
        "policy.data=accumulated", "loop.max_staleness=0", "loop.gate.metric=none", "evaluate.num_prompts=0"
    )
    entries = pipeline.run(x, Workspace(tmp_path / "workspace"), Watcher())
    first, second = (entry.artefact.manifest["rows"] for entry in of(entries, "policy"))
    assert first["dropped"] == {}
    assert second["in"] > second["out"]
    assert second["dropped"] == {"stale": first["in"]}


def test_a_rolled_back_policy_is_not_the_start_of_the_next_iteration(tmp_path):
    x = small("loop.gate.max_kl=1e-9", "loop.gate.num_prompts=30", "policy.learning_rate=5e-3")
    entries = pipeline.run(x, Workspace(tmp_path / "workspace"), Watcher())
    sft = of(entries, "sft")[0].artefact
    choices = [entry.artefact.stats for entry in of(entries, "promote")]
    assert [one["promoted"] for one in choices] == [False, False]
    assert "is above 1e-09" in choices[0]["reason"]
    second = of(entries, "generate")[-1].artefact
    groups = read_records(second.path / "groups.jsonl", Group)
    assert {one.policy for group in groups for one in group.completions} == {sft.name}


def test_content_not_paths_enters_the_key(tmp_path):
    keys = []
    for name in ("a.jsonl", "b.jsonl"):
        path = tmp_path / name
        path.write_text(json.dumps({"prompt": "p", "chosen": "x", "rejected": "y"}) + "\n")
        x = small(f"policy.offline_data={path}")
        keys.append(
            [
                entry.artefact.key
                for entry in pipeline.plan(x, Workspace(tmp_path / "w"))
                if entry.role == "import"
            ]
        )
    assert keys[0] == keys[1]
    path.write_text(json.dumps({"prompt": "p", "chosen": "changed", "rejected": "y"}) + "\n")
    changed = [
        entry.artefact.key for entry in pipeline.plan(x, Workspace(tmp_path / "w")) if entry.role == "import"
    ]
    assert changed != keys[0]


def test_planning_imports_neither_torch_nor_a_database(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from small import small; from prefloop import cli, pipeline; from prefloop.store import Workspace;"
        "from pathlib import Path; pipeline.plan(small(), Workspace(Path(sys.argv[2])));"
        "print([name for name in ('torch', 'transformers', 'datasets', 'sqlalchemy') if name in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "[]"


class Killed(BaseException):
    """What a kill is to the code that runs."""


@pytest.mark.parametrize("search", ["null", "beam"])
def test_generation_goes_on_with_other_batches_after_a_kill(tmp_path, monkeypatch, search):
    """How many rows are sampled at once is not part of a key, so it may change between a kill and the next run."""
    monkeypatch.setattr(prefloop.generate.hf, "BATCHES_AT_ONCE", 1)

    def sampled(workspace: Workspace, rows: int) -> list[list[tuple[int, ...]]]:
        short = ("loop.batches=1", "loop.gate.metric=none", "evaluate.num_prompts=0", "policy.max_steps=1")
        x = small(f"runtime.generation_rows={rows}", f"generate.search={search}", *short)
        entries = pipeline.run(x, workspace, Watcher())
        groups = read_records(of(entries, "generate")[0].artefact.path / "groups.jsonl", Group)
        return [[one.token_ids for one in group.completions] for group in groups]

    expected = sampled(Workspace(tmp_path / "whole"), 6)
    append = RowFile.append

    def killed_after_the_first_chunk(self, rows, **options):
        append(self, rows, **options)
        if self.path.name == "groups.jsonl" and "generate" in self.path.parent.name:
            assert self.items < len(expected), "nothing is left to go on with"
            raise Killed

    monkeypatch.setattr(RowFile, "append", killed_after_the_first_chunk)
    with pytest.raises(Killed):
        sampled(Workspace(tmp_path / "killed"), 6)
    monkeypatch.setattr(RowFile, "append", append)
    assert sampled(Workspace(tmp_path / "killed"), 9) == expected
