"""Studies: what runs, what is resumed, what is measured, and what may be said of a claim."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from prefloop import pipeline
from prefloop.algorithms import ALGORITHMS
from prefloop.cli import app
from prefloop.interfaces import InputError
from prefloop.statistics import StudentInterval, student_interval
from prefloop.store import Workspace
from prefloop.studies import definition
from prefloop.studies.deciding import decisions_of, estimate, outcome
from prefloop.studies.definition import Course, Measure
from prefloop.studies.measuring import Found, course_of, part, value_of
from prefloop.studies.report import shown
from prefloop.studies.running import last_words, seconds_left
from prefloop.watching import Watcher
from small import SMALL, small

TINY = """
name: tiny
question: does a larger step change more?
experiment: {experiment}
overrides:
  loop: {{batches: 0}}
  reward: {{}}
  rl: {{algorithm: grpo, num_prompts: 6, prompts_per_step: 3, num_completions: 2, steps: 4, max_new_tokens: 8}}
  rl.reward: {{kind: rule, rule: tales}}
  rl.gold: {{kind: rule, rule: length}}
arms:
  small: {{rl.learning_rate: 1.0e-4}}
  large: {{rl.learning_rate: 1.0e-2}}
baseline: small
measures:
  KL: {{figure: kl.mean}}
  longer: {{figure: tokens.mean, of: change}}
  late gold: {{stage: policy, metric: rl/gold, between: [0.5, 1]}}
curves: [rl/gold, rl/score]
courses: [{{figure: tokens.mean, against: root_kl}}]
criteria:
  - {{claim: a larger step leads further, measure: KL, arm: large, minus: small, above: 0}}
  - {{claim: nothing leads this far, measure: KL, above: 1000000}}
"""


def study_file(folder: Path, text: str = TINY) -> Path:
    experiment, file = folder / "small.yaml", folder / "tiny.yaml"
    experiment.write_text(SMALL)
    file.write_text(text.format(experiment=experiment))
    return file


def study(*args: object):
    return CliRunner().invoke(app, ["study", *map(str, args)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of two arms and two seeds, and a third arm that fails."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "scorer.py").write_text(
        "def score(prompt, completion, answer):\n    raise ValueError('no idea')\n"
    )
    broken = f"  broken: {{{{rl.reward: {{{{kind: function, target: '{folder}/scorer.py:score'}}}}}}}}\n"
    file = study_file(folder, TINY.replace("baseline:", f"{broken}baseline:"))
    return folder, file, study(file, "--seeds", 2, "-w", folder / "w", "--workers", 2)


def results(folder: Path) -> dict:
    return json.loads((folder / "w/studies/tiny/results.json").read_text())


def test_every_arm_runs_with_every_seed_and_is_measured(finished):
    folder, _, ran = finished
    assert "tiny: 6 runs, 0 finished already; 2 at once" in ran.output
    found = results(folder)
    assert [(one["arm"], one["seed"]) for one in found["runs"]] == [
        ("small", 0), ("small", 1), ("large", 0), ("large", 1)
    ]  # fmt: skip
    for one in found["runs"]:
        gold = one["curves"]["rl/gold"]
        assert len(gold) == 4
        assert one["values"]["late gold"] == pytest.approx((gold[2] + gold[3]) / 2)
        run = json.loads((folder / f"w/runs/tiny-{one['arm']}-seed{one['seed']}/run.json").read_text())
        assert run["experiment"]["seed"] == one["seed"]
        first, last = (
            json.loads((folder / f"w/artefacts/evaluate-{entry['key']}/manifest.json").read_text())["stats"]
            for entry in run["entries"]
            if entry["role"] == "evaluate"
        )
        assert one["values"]["KL"] == last["kl"]["mean"]
        assert one["values"]["longer"] == pytest.approx(last["tokens"]["mean"] - first["tokens"]["mean"])


def test_arms_of_a_seed_share_the_model_that_they_start_from(finished):
    folder, *_ = finished
    assert (
        len([one for one in (folder / "w/artefacts").glob("sft-*") if not one.name.endswith(".partial")]) == 2
    )


def test_a_failed_run_is_named_with_its_error_and_the_others_are_kept(finished):
    folder, _, ran = finished
    assert ran.exit_code == 1
    assert "failed: broken, seed 1: InputError: " in ran.output
    assert "no idea" in ran.output
    failed = results(folder)["failed"]
    assert [one["label"] for one in failed] == ["broken, seed 0", "broken, seed 1"]
    assert "ValueError: no idea" in failed[0]["error"]
    assert "no idea" in Path(failed[0]["log"]).read_text()
    assert "## Runs that failed" in (folder / "w/studies/tiny/report.md").read_text()


def test_claims_are_decided_and_written_down_with_plots(finished):
    folder, *_ = finished
    decided = {(one["claim"], one["arm"]): one["outcome"] for one in results(folder)["decisions"]}
    assert decided["nothing leads this far", "small"] == "not held"
    assert decided["nothing leads this far", "broken"] == "cannot be told", "no run of it ended well"
    assert len(decided) == 4
    written = yaml.safe_dump(results(folder)["study"], sort_keys=False)
    assert definition.parse(written, where="results.json").criteria[1].above == 1_000_000
    page = (folder / "w/studies/tiny/report.md").read_text()
    assert page.index("Claims, written before the runs") < page.index("## Figures")
    assert "| nothing leads this far | large |" in page
    for name in ("measures.png", "curves.png", "courses.png"):
        assert (folder / "w/studies/tiny" / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in page


def test_finished_runs_are_not_run_again(finished):
    folder, file, _ = finished
    logs = {
        path: path.stat().st_mtime_ns for path in (folder / "w/studies/tiny/logs").glob("tiny-*-seed?.log")
    }
    again = study(file, "--seeds", 2, "-w", folder / "w", "--arm", "small", "--arm", "large")
    assert again.exit_code == 0, again.output
    assert "tiny: 4 runs, 4 finished already" in again.output
    assert {path: path.stat().st_mtime_ns for path in logs} == logs
    page = (folder / "w/studies/tiny/report.md").read_text()
    assert "**Not the study as it was written:** arms small, large only; seeds 0 to 1." in page


def test_ctrl_c_ends_the_runs_under_way(tmp_path):
    file = study_file(tmp_path)
    command = [
        sys.executable,
        "-m",
        "prefloop.cli",
        "study",
        str(file),
        "-w",
        str(tmp_path / "w"),
        "--seeds",
        "2",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env=dict(os.environ)
    ) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "w").glob("artefacts/*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2, "the process that is forked, and runs"
        process.send_signal(signal.SIGINT)  # to the command alone, as `kill -INT` does
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == b"Stopped. Finished work is kept: the same command continues from here."
    assert psutil.wait_procs(children, timeout=30)[1] == []


# --- definitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", definition.built_in())
def test_a_built_in_study_is_valid_and_goes_by_its_file(name):
    parsed = definition.parse(definition.text_of(name), where=name)
    assert parsed.name == name
    assert parsed.criteria, "a study says before what it wants to know"


def test_the_study_of_algorithms_has_every_row_of_the_table():
    parsed = definition.parse(definition.text_of("algorithms"), where="algorithms")
    runs = definition.runs_of(parsed, [0])
    rows = [one.experiment.rl.algorithm.name for one in runs if one.experiment.rl is not None]
    assert sorted(rows) == sorted(ALGORITHMS)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"baseline": "smal"}, "baseline = smal: no such arm; there is small, large"),
        ({"measures": {"KL": {}}}, "measures.KL: give figure or metric"),
        ({"measures": {"KL": {"figure": "kl.mean", "less": [0, 1]}}}, "are parts of a metric"),
        ({"measures": {"x": {"metric": "rl/kl", "between": [0.5, 0.5]}}}, "[0.5, 0.5] is empty"),
        ({"measures": {"x": {"figure": "kl.mean"}}}, "criteria.0.measure = KL: no such measure; there is x"),
        ({"measures": {"x": {"metric": "rl/kl", "of": "first"}}}, "of: chooses a figure's stage"),
        ({"criteria": [{"claim": "c", "measure": "KL"}]}, "criteria.0: give above or below"),
        ({"arms": {"a": {"rl.learning_rat": 1}}, "baseline": None, "criteria": []}, "did you mean rl.learning_rate?"),
        ({"experiment": "quickstat"}, "no built-in experiment 'quickstat'"),
        ({"seed": 3}, "seed: Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_definition_is_told(tmp_path, change, told):
    file = study_file(tmp_path)
    values = yaml.safe_load(file.read_text()) | change
    with pytest.raises(InputError) as error:
        definition.parse(yaml.safe_dump(values, sort_keys=False), where="tiny.yaml")
    assert told in str(error.value)
    assert str(error.value).startswith(("tiny.yaml: ", "tiny, ", "no built-in"))


def test_an_unknown_study_and_an_unknown_arm_are_told(tmp_path):
    with pytest.raises(InputError, match="no study 'algoritms': choose .*algorithms"):
        definition.text_of("algoritms")
    parsed = definition.parse(study_file(tmp_path).read_text(), where="tiny.yaml")
    with pytest.raises(InputError, match="--arm medium: no such arm in tiny; there is small, large"):
        definition.runs_of(parsed, [0], arms=["medium"])


def test_settings_are_crossed_with_arms_and_what_is_given_later_wins(tmp_path):
    values = yaml.safe_load(study_file(tmp_path).read_text())
    values["settings"] = {"few": {"rl.steps": 1}, "many": {"rl.steps": 9}}
    values["arms"]["large"]["rl.steps"] = 7
    parsed = definition.parse(yaml.safe_dump(values, sort_keys=False), where="tiny.yaml")
    runs = definition.runs_of(parsed, [3], overrides=["rl.num_completions=5"])
    steps = {one.label: one.experiment.rl.steps for one in runs if one.experiment.rl is not None}
    assert steps == {
        "few, small, seed 3": 1, "few, large, seed 3": 7, "many, small, seed 3": 9, "many, large, seed 3": 7
    }  # fmt: skip
    assert {one.experiment.rl.num_completions for one in runs if one.experiment.rl is not None} == {5}
    assert [one.experiment.name for one in runs][:2] == ["tiny-few-small-seed3", "tiny-few-large-seed3"]


def test_the_definition_is_printed_to_start_from():
    assert study("algorithms", "--definition").output == definition.text_of("algorithms")


# --- intervals and verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [
        # the quantile 0.975 of Student's t is 4.30265 with 2 degrees of freedom and 2.77645 with 4
        ([1.0, 2.0, 3.0], 2.0, 4.30265 * 1 / math.sqrt(3)),
        ([0.0, 1.0, 2.0, 3.0, 4.0], 2.0, 2.77645 * math.sqrt(2.5) / math.sqrt(5)),
        ([5.0, 5.0], 5.0, 0.0),
    ],
)
def test_students_interval_by_hand(values, mean, half):
    found = student_interval(values, confidence=0.95)
    assert found is not None
    assert (found.mean, found.half) == (pytest.approx(mean), pytest.approx(half, rel=1e-5))
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)


def test_one_run_has_no_interval_and_none_has_no_mean():
    assert student_interval([], confidence=0.95) is None
    found = student_interval([0.7], confidence=0.95)
    assert found == StudentInterval(0.7, math.inf, 1)
    assert shown(found) == "0.700 (one seed)"
    assert outcome(found, above=0.0) == "cannot be told"


@pytest.mark.parametrize(
    ("mean", "half", "bounds", "expected"),
    [
        (0.5, 0.4, {"above": 0.0}, "held"),
        (0.5, 0.6, {"above": 0.0}, "cannot be told"),
        (-0.5, 0.4, {"above": 0.0}, "not held"),
        (-0.05, 0.1, {"above": -0.2}, "held"),
        (-0.5, 0.4, {"below": 0.0}, "held"),
        (0.5, 0.4, {"below": 0.0}, "not held"),
        (0.0, 0.0, {"above": 0.0}, "cannot be told"),
    ],
)
def test_a_claim_is_held_where_the_whole_interval_is_on_its_side(mean, half, bounds, expected):
    assert outcome(StudentInterval(mean, half, 5), **bounds) == expected


def found(arm: str, seed: int, value: float, setting: str = "") -> Found:
    return Found(setting, arm, seed, seconds=1.0, values={"KL": value}, curves={}, courses={})


def test_arms_are_compared_seed_by_seed_within_a_setting(tmp_path):
    values = yaml.safe_load(study_file(tmp_path).read_text()) | {"settings": {"few": {}, "many": {}}}
    parsed = definition.parse(yaml.safe_dump(values, sort_keys=False), where="tiny.yaml")
    runs = [
        # seeds differ by far more than arms do: unpaired, nothing could be told
        *(found("small", seed, value, "few") for seed, value in enumerate([0.0, 10.0, 20.0])),
        *(found("large", seed, value, "few") for seed, value in enumerate([1.0, 11.1, 20.9])),
        found("small", 0, 5.0, "many"), found("large", 1, 7.0, "many"),
    ]  # fmt: skip
    few, many = decisions_of(parsed, runs)[:2]
    assert few.interval is not None
    assert (few.interval.mean, few.interval.n, few.outcome) == (pytest.approx(1.0), 3, "held")
    # deviations 0, 0.1, -0.1: standard deviation 0.1
    assert few.interval.half == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)
    assert (many.setting, many.interval, many.outcome) == ("many", None, "cannot be told"), "no seed has both"


def test_an_arm_is_compared_with_the_mean_of_others_over_seeds_that_all_have(tmp_path):
    runs = [
        found("a", 0, 1.0), found("b", 0, 5.0), found("c", 0, 2.0),
        found("a", 1, 2.0), found("b", 1, 6.0), found("c", 1, 4.0),
        found("a", 2, 9.0), found("c", 2, 9.0),
    ]  # fmt: skip
    middle = estimate(runs, "KL", "", "c", minus=["a", "b"], confidence=0.95)
    assert middle is not None
    assert (middle.mean, middle.n) == (pytest.approx(-0.5), 2)  # 2 - 3 and 4 - 4

    values = yaml.safe_load(study_file(tmp_path).read_text())
    values["criteria"][0]["minus"] = ["small", "nobody"]
    with pytest.raises(InputError, match=r"criteria\.0\.minus = nobody: no such arm"):
        definition.parse(yaml.safe_dump(values), where="tiny.yaml")


def test_a_course_is_drawn_at_the_labels_spent_and_a_replay_follows_the_loop(tmp_path):
    entries = pipeline.run(
        small("loop.gate.metric=none", "loop.batches=2", "loop.replay=ordered", "evaluate.num_prompts=4"),
        Workspace(tmp_path),
        Watcher(),
    )
    experiment = small("loop.batches=2")
    against_labels = Course(figure="tokens.mean")
    loop = course_of(against_labels, entries[: len(entries) - 6], experiment.loop)
    spent = [one.artefact.stats["labels"] for one in entries if one.role == "annotate"]
    before, first, second = spent  # for the reward model, and two batches
    assert [x for x, _ in loop] == [before, before + first, before + first + second]

    again = experiment.model_copy(update={"loop": experiment.loop.model_copy(update={"replay": "ordered"})})
    assert course_of(against_labels, entries, again.loop) == loop, "the same weights, from the same pairs"
    by_kl = course_of(Course(figure="tokens.mean", against="root_kl"), entries, again.loop)
    last = [one for one in entries if one.role == "evaluate"][-1].artefact.stats
    assert by_kl[0][0] == 0.0
    assert by_kl[-1] == (pytest.approx(math.sqrt(max(last["kl"]["mean"], 0.0))), last["tokens"]["mean"])


def test_how_long_the_rest_takes_is_told_by_what_others_of_a_role_took():
    def entry(role: str, key: str) -> Any:
        return SimpleNamespace(role=role, artefact=SimpleNamespace(key=key, name=f"{role}-{key}"))

    built = {"a": 10.0, "b": 20.0, "c": 4.0}
    space: Any = SimpleNamespace(
        published=lambda: [SimpleNamespace(key=key, manifest={"seconds": one}) for key, one in built.items()]
    )
    done = [entry("policy", "a"), entry("policy", "b"), entry("evaluate", "c")]
    shared = entry("policy", "d")
    left = [[shared, entry("evaluate", "e")], [shared]]

    def told(*plans: list[Any]) -> tuple[float, bool]:
        return seconds_left([done, *plans], plans, space, workers=2, overhead=1.5)

    assert told(*left) == (1.5 * (15 + 4) / 2, True)  # what two runs share is built once
    assert told(*left, [entry("mix", "f")]) == (1.5 * (15 + 4) / 2, False)


@pytest.mark.parametrize(
    ("of", "value"), [("last", 0.5), ("first", 0.2), ("highest", 0.8), ("mean", 0.5), ("change", 0.3)]
)
def test_a_figure_is_of_one_stage_or_of_all(of, value):
    stats = [{"rate": {"mean": one}} for one in (0.2, 0.8, 0.5)]
    entries: Any = [SimpleNamespace(role="evaluate", artefact=SimpleNamespace(stats=one)) for one in stats]
    assert value_of(Measure(figure="rate.mean", of=of), entries, where="rate") == pytest.approx(value)


@pytest.mark.parametrize(
    ("between", "mean"),
    [((0.0, 1.0), 4.5), ((0.0, 0.2), 0.5), ((0.8, 1.0), 8.5), ((0.5, 0.6), 5.0), ((0.95, 1.0), 9.0)],
)
def test_a_part_of_training_is_a_share_of_its_batches(between, mean):
    assert part([float(one) for one in range(10)], between) == mean


def test_the_error_of_a_run_is_what_it_said_last():
    log = "preparation\n  sft  1.2 s\nInputError: rl: no prompt\n  (in iteration 1, policy)\n"
    assert last_words(log) == "InputError: rl: no prompt (in iteration 1, policy)"
    assert last_words("Traceback\n  File x\nKeyError: 'a'\n") == "KeyError: 'a'"
    assert last_words("") == ""
