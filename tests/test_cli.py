"""Every command, as typed: what it prints, what it leaves on the disk, and its exit code."""

import builtins
import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet
import pytest
import typer.main
import yaml
from transformers import AutoModelForCausalLM

from people import judge, likes
from prefloop import __version__, cli, config, tales
from prefloop.commands import files, running
from prefloop.records import Group, Prompt
from prefloop.store import Workspace, read_records
from small import SMALL

NUM_STAGES = 29
COMMANDS = sorted(typer.main.get_command(cli.app).commands)


class Ran(NamedTuple):
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    errors: str


def prefloop(*args: object) -> Ran:
    """Runs a command line in this process, through the function that the installed command calls."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", ["prefloop", *map(str, args)])
        patch.delenv("PREFLOOP_WORKSPACE", raising=False)
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Ran(code, out.getvalue(), errors.getvalue())


class Finished(NamedTuple):
    """A finished run, the file it came from and what it printed."""

    experiment: Path
    workspace: Path
    ran: Ran

    def names(self, role: str) -> list[str]:
        """Artefacts of a role, in the order of the loop."""
        run = json.loads((self.workspace / "runs/small/run.json").read_text())
        return [f"{one['kind']}-{one['key']}" for one in run["entries"] if one["role"] == role]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    experiment, workspace = folder / "small.yaml", folder / "workspace"
    experiment.write_text(SMALL)
    return Finished(experiment, workspace, prefloop("run", experiment, "--workspace", workspace))


# --- running ---------------------------------------------------------------------------------------------------------


def test_a_run_prints_a_line_a_stage_a_table_of_results_samples_and_the_report(finished):
    code, out, errors = finished.ran
    assert (code, errors) == (0, "")
    assert len(re.findall(r"^  [a-z ]+ \d+\.\d s  \S", out, re.MULTILINE)) == NUM_STAGES
    assert re.search(r"^  generate +\d+\.\d s  18 completions, ", out, re.MULTILINE)
    assert "small: held-out evaluation, 95 % intervals over prompts" in out
    assert re.findall(r"^ (start|iteration) +(\d+) ", out, re.MULTILINE)[1:] == [
        ("iteration", "12"),
        ("iteration", "18"),
    ]
    assert [out.count(f"\n {side} ") for side in ("prompt", "before", "after")] == [3, 3, 3]
    page = finished.workspace / "runs/small/report.html"
    assert page.is_file()
    assert out.endswith(f"Report: {page}\n")


def test_the_samples_are_those_of_the_first_and_the_last_evaluation(finished):
    prompts = [line.split(maxsplit=1)[1] for line in finished.ran.out.splitlines() if line[:7] == " prompt"]
    folder = finished.workspace / "artefacts" / finished.names("prompts")[0]
    assert {one.strip() for one in prompts} <= {
        one.text for one in read_records(folder / "evaluation.jsonl", Prompt)
    }


def test_a_second_run_keeps_every_stage_and_says_so(finished):
    code, out, _ = prefloop("run", finished.experiment, "--workspace", finished.workspace)
    assert code == 0
    assert len(re.findall(r"^  [a-z ]+ kept  \S", out, re.MULTILINE)) == NUM_STAGES
    assert not re.search(r"^  [a-z ]+ \d+\.\d s", out, re.MULTILINE)


def test_an_evaluator_that_is_the_annotator_is_pointed_out_before_the_run(finished):
    scorer = "{kind: rule, rule: tales}"
    _, out, _ = prefloop(
        "plan", finished.experiment, f"annotate.annotator={scorer}", "reward.seed_prompts=0", "loop.gate.metric=none"
    )  # fmt: skip
    assert "Note: evaluate.scorer is also the annotator" in out


# --- looking ---------------------------------------------------------------------------------------------------------


def test_plan_says_what_is_reused_and_what_there_is_to_do(finished):
    code, out, _ = prefloop("plan", finished.experiment, "policy.max_grad_norm=2", "-w", finished.workspace)
    assert code == 0
    assert "reused" in out and "to do" in out
    assert "18 labels per arm, 1 a prompt by simulated" in out
    assert re.search(r"^\d+ of 29 artefacts to build", out, re.MULTILINE)
    assert all(name in out for name in finished.names("sft") + finished.names("prompts"))


def test_plan_as_json_names_every_artefact(finished):
    code, out, _ = prefloop("plan", finished.experiment, "--json", "-w", finished.workspace)
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == NUM_STAGES
    assert all(row["exists"] for row in rows)
    assert {row["artefact"] for row in rows} == {
        path.name for path in (finished.workspace / "artefacts").iterdir()
    }


def test_planning_writes_nothing(finished, tmp_path):
    assert prefloop("plan", finished.experiment, "-w", tmp_path / "new").code == 0
    assert not (tmp_path / "new").exists()


def test_status_shows_how_far_the_latest_run_is(finished):
    code, out, _ = prefloop("status", "-w", finished.workspace)
    assert code == 0
    assert f"run small: {NUM_STAGES} of {NUM_STAGES} stages done" in out
    assert all(name in out for name in finished.names("policy") + finished.names("generate"))


def test_status_as_json_has_the_key_and_digest_of_every_artefact(finished):
    code, out, _ = prefloop("status", "small", "--json", "-w", finished.workspace)
    status = json.loads(out)
    assert code == 0
    assert (status["run"], len(status["artefacts"])) == ("small", NUM_STAGES)
    for row in status["artefacts"]:
        manifest = json.loads((Path(row["path"]) / "manifest.json").read_text())
        assert (row["state"], row["key"], row["digest"]) == ("done", manifest["key"], manifest["digest"])


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("prompts", ["60 in, 28 out, dropped: 32 not_needed", "rows 1 to 3 of 28", "train "]),
        ("draw", ["rows 1 to 3 of 6", "prompts "]),
        ("generate", ["num_completions", "rows 1 to 3 of 6", "completion"]),
        ("annotate", ["pseudo_labels", "rows 1 to 3 of 6", "better simulated/", "worse simulated/"]),
        ("select", ["rows 1 to 3 of 6", "chosen", "rejected", "margin ", "written by "]),
        ("evaluate", ["score", "rows 1 to 3 of 6", "second ", "kl "]),
        ("sft", ["loss_last", "base base-"]),
        ("reward", ["validation", "trunk sft-", "pairs select-"]),
        ("base", ["made_from"]),
    ],
)
def test_show_knows_every_kind_of_artefact(finished, role, expected):
    code, out, _ = prefloop("show", finished.names(role)[-1], "-w", finished.workspace)
    assert code == 0
    assert [one for one in [finished.names(role)[-1], "digest", *expected] if one not in out] == []


def test_show_leads_from_a_policy_back_to_every_pair_and_annotator(finished):
    code, out, _ = prefloop("show", finished.names("policy")[-1], "-w", finished.workspace)
    assert code == 0
    for role in ("base", "sft", "generate", "annotate", "select", "reward", "policy", "promote"):
        assert finished.names(role)[0] in out, role
    assert out.count("labels (") == 3
    assert len(re.findall(r"\d by\s+(?:[│ ]*)simulated/\d\d", out)) >= 6


def test_show_pages_through_rows_and_finds_beginnings_of_names(finished):
    name = finished.names("select")[0]
    _, out, _ = prefloop("show", name[:14], "--start", 4, "--number", 1, "-w", finished.workspace)
    assert name in out
    assert "rows 5 to 5 of 6" in out
    assert out.count("│ chosen ") == 1


def test_show_lists_the_stages_of_a_run(finished):
    code, out, _ = prefloop("show", "small", "-w", finished.workspace)
    assert code == 0
    assert "run small" in out
    assert out.count("done") == NUM_STAGES


def test_report_writes_a_page_and_names_it(finished):
    page = finished.workspace / "runs/small/report.html"
    page.unlink()
    assert prefloop("report", "-w", finished.workspace) == (0, f"{page}\n", "")
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_report_as_json_has_the_policies(finished):
    code, out, _ = prefloop("report", "small", "--json", "-w", finished.workspace)
    assert code == 0
    assert [one["labels"] for one in json.loads(out)["policies"]][1:] == [12, 18]


def test_chat_answers_once_from_one_policy_or_from_two_side_by_side(finished):
    first, last = finished.names("sft")[0], finished.names("promote")[-1]
    options = ("--once", "Tell a tale.", "--temperature", 0, "--max-new-tokens", 4, "-w", finished.workspace)
    one = prefloop("chat", first, *options)
    two = prefloop("chat", first, last, *options)
    assert (one.code, two.code) == (0, 0)
    left, right = two.out.splitlines()
    assert left == f"{first} {one.out.rstrip()}"
    assert right.startswith(f"{last} ")


def test_chat_starts_over_at_an_empty_line_and_ends_with_the_input(finished, monkeypatch):
    typed = iter(["Tell a tale.", "", "Tell a tale."])

    def answer(prompt: object = "") -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", answer)
    options = ("--temperature", 0, "--max-new-tokens", 4, "-w", finished.workspace)
    code, out, _ = prefloop("chat", finished.names("sft")[0], *options)
    assert code == 0
    before, after = out.split("a new conversation")
    assert before.replace("you", "").split() == after.replace("you", "").split()


# --- sampling alone --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory) -> Path:
    """Seven prompts, one of them twice and one too long."""
    rows = [{"prompt": one.text} for one in tales.prompts()[:6]]
    rows[3:3] = [{"prompt": "Tell a tale of Ada the fox. " * 100}, rows[0]]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def workspace(finished, tmp_path) -> Path:
    """A copy: what is sampled into it is needed by no run."""
    return shutil.copytree(finished.workspace, tmp_path / "workspace")


SAMPLING = ("generate.num_completions=2", "generate.max_new_tokens=6", "generate.max_prompt_length=100")


def test_generate_writes_a_group_a_prompt_and_counts_those_that_are_too_long(
    finished, workspace, prompts_file, tmp_path
):
    policy, out = finished.names("policy")[0], tmp_path / "samples.jsonl"
    ran = prefloop("generate", policy, prompts_file, out, *SAMPLING, "--workspace", workspace)
    assert (ran.code, ran.errors) == (0, "")
    assert "samples.jsonl: 6 groups; prompts dropped as too long: 1" in ran.out
    assert re.search(r"prompts .* 7 rows; dropped 1 duplicate", ran.out)
    groups = read_records(out, Group)
    assert [one.prompt.text for one in groups] == [one.text for one in tales.prompts()[:6]]
    assert {len(one.completions) for one in groups} == {2}
    assert {one.policy for group in groups for one in group.completions} == {policy}


def test_generate_writes_the_same_to_parquet_and_keeps_what_was_sampled(
    finished, workspace, prompts_file, tmp_path
):
    policy, lines, table = finished.names("policy")[0], tmp_path / "a.jsonl", tmp_path / "b.parquet"
    for out in (lines, table):
        ran = prefloop("generate", policy, prompts_file, out, *SAMPLING, "--workspace", workspace)
    assert re.search(r"generate +kept", ran.out)
    rows = pyarrow.parquet.read_table(table).to_pylist()
    assert [Group.model_validate_json(json.dumps(row)) for row in rows] == read_records(lines, Group)


def test_generate_takes_a_model_folder_and_any_seed(tiny_model, prompts_file, tmp_path):
    def sampled(seed: int) -> list[Group]:
        args = ("generate", tiny_model, prompts_file, tmp_path / "out.jsonl", *SAMPLING, f"seed={seed}")
        assert prefloop(*args, "--workspace", tmp_path / "workspace").code == 0
        return read_records(tmp_path / "out.jsonl", Group)

    once, again, other = sampled(0), sampled(0), sampled(1)
    assert once == again
    assert [one.prompt for one in once] == [one.prompt for one in other]
    assert once != other


@pytest.mark.parametrize(
    ("policy", "out", "message"),
    [
        ("generate", "out.jsonl", "no policy; artefacts of base, sft, policy, promote have one"),
        ("policy", "out.csv", "samples are written to a .jsonl or .parquet file"),
    ],
)
def test_generate_refuses_what_it_could_not_finish(
    finished, workspace, prompts_file, tmp_path, policy, out, message
):
    name = finished.names(policy)[0]
    ran = prefloop("generate", name, prompts_file, tmp_path / out, "--workspace", workspace)
    assert ran.code == 1
    assert message in " ".join(ran.errors.split())
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", files.PRESETS)
def test_init_prints_experiments_that_can_be_read(name):
    code, out, errors = prefloop("init", name)
    assert (code, errors) == (0, "")
    assert config.parse(out, where=name).name == name


@pytest.mark.parametrize(
    ("format", "suffix"),
    [("trl", "jsonl"), ("hh", "jsonl"), ("ultrafeedback", "jsonl"), ("parquet", "parquet")],
)
def test_pairs_are_exported_in_every_format_and_read_back(finished, tiny_model, tmp_path, format, suffix):
    out = tmp_path / f"pairs.{suffix}"
    ran = prefloop("export", finished.names("select")[0], out, "--format", format, "-w", finished.workspace)
    assert ran == (0, f"{out}: 6 rows\n", "")
    again = prefloop(
        "run", scored(tmp_path, tiny_model), f"policy.offline_data={out}", "loop.batches=0", "evaluate.num_prompts=0",
        "-w", tmp_path / "workspace",
    )  # fmt: skip
    assert again.code == 0
    assert "6 pairs (" in again.out


@pytest.mark.parametrize("role", ["generate", "annotate"])
def test_groups_are_exported_with_the_scores_there_are(finished, tmp_path, role):
    out = tmp_path / "groups.jsonl"
    ran = prefloop(
        "export", finished.names(role)[-1], out, "--format", "online_rlhf", "-w", finished.workspace
    )
    assert ran.code == 0, ran.errors
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(len(row["responses"]), row["rewards"]) for row in rows] == [(3, [None] * 3)] * 6


def test_scores_are_exported_next_to_their_completions(tiny_model, tmp_path):
    experiment = scored(tmp_path, tiny_model)
    workspace = tmp_path / "workspace"
    assert prefloop("run", experiment, "-w", workspace).code == 0
    (judged,) = [one.name for one in Workspace(workspace).published() if one.kind == "annotate"]
    out = tmp_path / "groups.jsonl"
    assert prefloop("export", judged, out, "--format", "online_rlhf", "-w", workspace).code == 0
    for row in map(json.loads, out.read_text().splitlines()):
        assert row["rewards"] == [len(text) for text in row["responses"]]


def scored(folder: Path, model: Path) -> Path:
    """An experiment in which a rule scores completions by their length."""
    experiment = folder / "scored.yaml"
    experiment.write_text(
        f"""
name: scored
model: {model}
prompts: {{path: builtin:tales/prompts, limit: 8}}
generate: {{num_completions: 2, max_new_tokens: 6}}
annotate: {{annotator: {{kind: rule, rule: length}}}}
policy: {{max_steps: 1, batch_size: 2}}
evaluate: {{num_prompts: 2}}
loop: {{batches: 1, prompts_per_batch: 4}}
runtime: {{device: cpu, threads: 1}}
"""
    )
    return experiment


@pytest.mark.parametrize("role", ["sft", "policy", "promote"])
def test_an_exported_policy_is_opened_by_transformers(finished, tmp_path, role):
    out = tmp_path / "policy"
    ran = prefloop("export", finished.names(role)[-1], out, "-w", finished.workspace)
    assert ran == (0, f"{out}: an ordinary transformers folder\n", "")
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 100_000
    again = prefloop("export", finished.names(role)[-1], out, "-w", finished.workspace)
    assert (again.code, again.errors) == (1, f"InputError: {out}: exists; choose a new folder\n")


def test_gc_lists_what_no_run_needs_and_deletes_it_only_when_told(finished):
    artefacts = finished.workspace / "artefacts"
    needed = {path.name for path in artefacts.iterdir()}
    shutil.copytree(artefacts / finished.names("draw")[0], artefacts / "draw-0123456789abcdef")
    (artefacts / "policy-0123456789abcdef.partial").mkdir()
    asked = prefloop("gc", "-w", finished.workspace)
    assert re.findall(r"^unneeded (\S+) \d+\.\d MB$", asked.out, re.MULTILINE) == [
        "draw-0123456789abcdef",
        "policy-0123456789abcdef.partial",
    ]
    assert "2 artefacts, 0.0 MB; `prefloop gc --yes` deletes them" in asked.out
    assert (artefacts / "draw-0123456789abcdef").is_dir()
    told = prefloop("gc", "--yes", "-w", finished.workspace)
    assert told.out.count("deleted ") == 2
    assert {path.name for path in artefacts.iterdir()} == needed
    assert prefloop("gc", "-w", finished.workspace).out == "0 artefacts, 0.0 MB\n"
    assert "to do" not in prefloop("status", "small", "-w", finished.workspace).out


def test_doctor_finds_a_working_engine(tmp_path):
    code, out, _ = prefloop("doctor", "-w", tmp_path)
    assert code == 0
    assert re.search(r"^ok +hf engine +sampled \d+ tokens on ", out, re.MULTILINE)


def test_doctor_shows_the_tokens_of_an_experiment_and_checks_them(finished, tmp_path):
    ran = prefloop("doctor", "--tokens", finished.experiment, "--workspace", tmp_path / "workspace")
    assert (ran.code, ran.errors) == (0, "")
    assert re.search(r"a demonstration of sft\.data: \d+ tokens, the last \d+ trained", ran.out)
    assert "<|bos|><|user|>" in ran.out
    assert len(re.findall(r"^ok  ", ran.out, re.MULTILINE)) == 4


def test_doctor_ends_with_an_error_where_tokens_do_not_agree(finished, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Who?", "completion": "Ada<|end|> and a fox."}))
    args = ("doctor", "--tokens", finished.experiment, f"sft.data={rows}")
    ran = prefloop(*args, "--workspace", tmp_path / "workspace")
    assert ran.code == 1
    assert re.search(r"^problem +terminator +<\|end\|> does not end, once, the answer", ran.out, re.MULTILINE)


# --- help and errors -------------------------------------------------------------------------------------------------


def test_help_groups_every_command_by_what_it_is_for():
    out = prefloop("--help").out
    panels = re.findall(r"╭─ (\w+) ", out)
    assert panels == ["Options", "Run", "Look", "Measure", "Files", "People"]
    assert all(re.search(rf"^│ {command} ", out, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command):
    code, out, _ = prefloop(command, "--help")
    assert code == 0
    assert f"Example: prefloop {command}" in out


def test_the_version_is_printed():
    assert prefloop("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("init", "iterative"), "no experiment 'iterative'; choose " + ", ".join(files.PRESETS)),
        (("status", "other"), "no run 'other' in {workspace}; there is small"),
        (("report", "other"), "no run 'other' in {workspace}; there is small"),
        (("show", "policy-zz"), "no artefact 'policy-zz' in {workspace}/artefacts; `prefloop status` lists them"),
        (("export", "zz", "x.jsonl"), "no artefact 'zz' in {workspace}/artefacts; `prefloop status` lists them"),
        (("chat", "a", "b", "c"), "chat: 3 policies; one or two can be talked to at a time"),
        (
            ("label", "status"),
            "{workspace}/labels.sqlite: no label store here; `prefloop run` of an experiment with people makes one, "
            "`prefloop label project create` makes one for labels alone, or name another with --store",
        ),
    ],
)  # fmt: skip
def test_unknown_names_are_input_errors_that_say_what_there_is(finished, args, message):
    named = [one.format(workspace=finished.workspace) for one in args]
    workspace = () if args[0] == "init" else ("-w", finished.workspace)
    ran = prefloop(*named, *workspace)
    assert (ran.code, ran.out) == (1, "")
    assert ran.errors == f"InputError: {message.format(workspace=finished.workspace)}\n"


def test_an_ambiguous_name_lists_what_it_fits(finished):
    ran = prefloop("show", "policy", "-w", finished.workspace)
    assert ran.code == 1
    assert ran.errors.startswith("InputError: 'policy' fits ")
    assert all(name in ran.errors for name in finished.names("policy"))


def test_a_workspace_without_runs_says_how_to_start_one(tmp_path):
    ran = prefloop("status", "-w", tmp_path)
    assert (ran.code, ran.errors) == (
        1,
        f"InputError: no runs in {tmp_path} yet; start one with `prefloop run` or name a --workspace\n",
    )


def test_a_workspace_that_cannot_be_made_is_unavailable(finished, tmp_path):
    (tmp_path / "file").write_text("")
    ran = prefloop("run", finished.experiment, "-w", tmp_path / "file")
    assert (ran.code, ran.errors) == (
        4,
        f"Unavailable: workspace {tmp_path}/file: a file is in the way; choose another folder with --workspace\n",
    )


# --- people in the loop ----------------------------------------------------------------------------------------------

WAITS = re.compile(r"Waiting: (\d) of 3 judged in round (\d) of people, 3 wanted; label in a browser with")


def people(folder: Path, model: Path) -> Path:
    """An experiment in which people judge two batches of three prompts."""
    experiment = yaml.safe_load(scored(folder, model).read_text())
    experiment |= {"name": "people", "annotate": {"annotator": {"kind": "human"}}}
    experiment["loop"] = {"batches": 2, "prompts_per_batch": 3}
    path = folder / "people.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


def test_people_are_waited_for_batch_by_batch_until_the_run_is_done(tiny_model, tmp_path, monkeypatch):
    workspace = tmp_path / "workspace"
    command = ("run", people(tmp_path, tiny_model), "-w", workspace)

    assert waiting(prefloop(*command)) == (0, 1)
    assert label(workspace, "ada", monkeypatch, "a") == "1 judgements by ada."
    assert waiting(prefloop(*command)) == (1, 1)
    assert label(workspace, "ada", monkeypatch, "b", "s", "l") == "3 judgements by ada."

    assert waiting(prefloop(*command)) == (0, 2)
    listed = prefloop("label", "round", "list", "-w", workspace)
    assert re.search(r"1 +promoted", listed.out), listed.out
    assert label(workspace, "bob", monkeypatch, "1", "2", "t") == "3 judgements by bob."

    done = prefloop(*command)
    assert (done.code, done.errors) == (0, "")
    assert len(re.findall(r"^  annotate .* 3 labels, 1 (refusals|ties)", done.out, re.MULTILINE)) == 2
    _, lineage, _ = prefloop("show", policies(workspace)[-1], "-w", workspace)
    assert len(re.findall(r"3 by\s+human/\w{16}", lineage.replace("│", ""))) == 2

    status = json.loads(prefloop("label", "status", "--json", "-w", workspace).out)
    rounds, labels = (status["projects"]["people"][key] for key in ("rounds", "people"))
    assert [(one["number"], one["state"], one["settled"]) for one in rounds] == [
        (1, "promoted", 3),
        (2, "promoted", 3),
    ]
    assert [one["policy_out"] for one in rounds] == [
        name.removeprefix("policy-") for name in policies(workspace)
    ]
    assert {(one["name"], one["valid"], one["skipped"]) for one in labels} == {("ada", 2, 1), ("bob", 3, 0)}


def test_a_policy_that_is_rolled_back_is_left_and_comes_back_when_it_is_promoted_again(
    tiny_model, tmp_path, monkeypatch
):
    workspace = tmp_path / "workspace"
    command = ("run", people(tmp_path, tiny_model), "-w", workspace)
    assert waiting(prefloop(*command)) == (0, 1)
    label(workspace, "ada", monkeypatch, "a", "a", "a")
    assert waiting(prefloop(*command)) == (0, 2)
    before = planned(workspace)

    rolled = prefloop("label", "round", "rollback", "-w", workspace)
    first = before["policy"][0].removeprefix("policy-")
    assert rolled.out == (
        f"round 1: policy {first} is rolled back; `prefloop run` goes on from the one before\n"
    )
    assert waiting(prefloop(*command)) == (0, 3)  # new answers, by the policy before
    after = planned(workspace)
    assert after["policy"][0] == before["policy"][0]
    assert after["generate"][0] == before["generate"][0]
    assert after["generate"][1] != before["generate"][1]
    choice = json.loads((workspace / "artefacts" / after["promote"][0] / "policy.json").read_text())
    base = next((workspace / "artefacts").glob("base-*")).name
    assert (choice["promoted"], choice["folder"]) == (False, base)

    assert prefloop("label", "round", "promote", "1", "-w", workspace).code == 0
    assert waiting(prefloop(*command)) == (0, 2)  # the questions of before
    label(workspace, "ada", monkeypatch, "a", "a", "a")  # of the round that is waited for, and no other
    assert prefloop(*command).code == 0
    again = planned(workspace)
    kept = json.loads((workspace / "artefacts" / again["promote"][0] / "policy.json").read_text())
    assert (kept["promoted"], kept["folder"]) == (True, before["policy"][0])


def test_a_run_that_waits_for_people_looks_ever_more_rarely_and_goes_on_when_they_are_done(monkeypatch):
    looks, pauses = iter([(0, 3)] * 4 + [(2, 3)] * 3 + [(3, 3)]), []
    monkeypatch.setattr(running.time, "sleep", pauses.append)
    running._wait_for_people(lambda: next(looks))
    assert pauses == [0.5, 0.75, 1.125, 1.6875, 0.5, 0.75, 1.125]


def test_with_wait_a_run_goes_on_by_itself_once_people_have_judged(tiny_model, tmp_path, monkeypatch):
    workspace = tmp_path / "workspace"

    def judging(seconds: float) -> None:  # in place of the pause
        judge(workspace / "labels.sqlite", "people", likes("nothing"))

    monkeypatch.setattr(running.time, "sleep", judging)
    done = prefloop("run", people(tmp_path, tiny_model), "-w", workspace, "--wait")
    assert (done.code, done.errors) == (0, "")
    assert "0 of 3 judged in round 2 of people" in done.out.replace("\n", " ")


def planned(workspace: Path) -> dict[str, list[str]]:
    """Names of artefacts by role, in order."""
    found: dict[str, list[str]] = {}
    for one in json.loads((workspace / "runs/people/run.json").read_text())["entries"]:
        found.setdefault(one["role"], []).append(f"{one['kind']}-{one['key']}")
    return found


def waiting(ran: Ran) -> tuple[int, int]:
    """How many of three are judged, and the number of the round."""
    said = WAITS.search(ran.errors)
    assert ran.code == 3
    assert said is not None, ran.errors
    return int(said[1]), int(said[2])


def label(workspace: Path, name: str, monkeypatch, *keys: str) -> str:
    """Somebody presses these keys and then closes the terminal; returns the last line that they see."""
    monkeypatch.setattr(builtins, "input", typing(*keys))
    labelled = prefloop("label", "terminal", "--as", name, "-w", workspace)
    assert labelled.code == 0, labelled.errors
    return labelled.out.splitlines()[-1]


def typing(*keys: str):
    """Somebody who presses these keys and then closes the terminal."""
    left = iter(keys)

    def ask(question: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return ask


def policies(workspace: Path) -> list[str]:
    run = json.loads((workspace / "runs/people/run.json").read_text())
    return [f"policy-{one['key']}" for one in run["entries"] if one["role"] == "policy"]
