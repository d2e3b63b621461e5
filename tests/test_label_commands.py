"""`prefloop label ...`: every command against a real store, through the command line's own parser."""

import json
import re
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from people import always, judge, likes, opened, person, tasks
from prefloop.annotate.human import Asked, People, Question
from prefloop.cli import app
from prefloop.commands.label.judging import HttpQueue, StoreQueue, judge_all, read_judge
from prefloop.commands.label.serving import OPTIONS_VARIABLE, Reached, app_of_a_worker, web_options
from prefloop.config import HumanAnnotator
from prefloop.interfaces import InputError, PrefloopError, Waiting
from prefloop.labels import queue, rounds, schema, serving
from prefloop.labels.accounts import hash_password, set_password
from prefloop.labels.browsing import Filter
from prefloop.labels.errors import Conflict, NotFound
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import NewTask, add_project, publish_tasks
from prefloop.labels.streaming import judgement_rows, up_to
from prefloop.records import Message, Prompt, file_completion
from prefloop.stages.people import STORE_VARIABLE
from simulated_people import client_of

PROJECT = "tales"


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "labels.sqlite"


def label(*words: object, store: Path | str | None = None, typed: str = "") -> str:
    """What a command prints. Raises what it ends with."""
    given = ["label", *map(str, words), *(["--store", str(store)] if store else [])]
    done = CliRunner().invoke(app, given, input=typed, env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def new_task(index: int, *texts: str, **about) -> NewTask:
    prompt = Prompt.of((Message(role="user", content=f"question {index}"),), source="test")
    answers = tuple(
        file_completion(prompt, text, place) for place, text in enumerate(texts or ("left", "right"))
    )
    return NewTask(prompt, answers, id=f"task-{index}", strategy="random", probability=1.0, **about)


def publish(store: Path, *new: NewTask, **settings) -> None:
    with opened(store) as database:
        config = ProjectConfig(gold_share=0, repeat_share=0, **settings)
        database.write(lambda c: add_project(c, database.now(), PROJECT, config))
        database.write(lambda c: publish_tasks(c, database.now(), PROJECT, new))


def test_without_a_store_a_command_says_how_to_get_one(store):
    with pytest.raises(
        InputError, match="no label store here; `prefloop run` of an experiment with people makes one"
    ):
        label("status", store=store)


def test_a_project_is_made_shown_and_configured_from_yaml(store, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("overlap: 2\nties: false\n")
    guide = tmp_path / "guide.md"
    guide.write_text("Be kind.")
    label("project", "create", PROJECT, "--settings", settings, "--guidelines", guide, store=store)
    assert "overlap: 2\n" in label("project", "show", store=store)
    settings.write_text("overlap: 3\n")
    label("project", "configure", PROJECT, "--settings", settings, store=store)
    shown = label("project", "show", store=store)
    assert "overlap: 3\n" in shown and "ties: true\n" in shown
    assert label("project", "list", store=store).startswith(f"{PROJECT} ")
    with pytest.raises(Conflict, match="there is a project tales already"):
        label("project", "create", PROJECT, store=store)
    settings.write_text("overlaps: 3\n")
    with pytest.raises(InputError, match="settings.yaml: line 1: overlaps"):
        label("project", "configure", PROJECT, "--settings", settings, store=store)


def test_people_are_asked_for_prompts_of_one_kind(store):
    label("project", "create", PROJECT, store=store)
    assert "3 prompts are asked for" in label(
        "project", "ask-prompts", 3, "--use-case", "rewrite", store=store
    )
    assert [(one.kind, one.payload) for one in tasks(store)] == [("prompt", {"use_case": "rewrite"})] * 3
    with pytest.raises(InputError, match="--use-case sonnets: choose one of generation, "):
        label("project", "ask-prompts", 1, "--use-case", "sonnets", store=store)


def test_of_several_projects_one_must_be_named(store):
    label("project", "create", "one", store=store)
    label("project", "create", "two", store=store)
    with pytest.raises(InputError, match="say which --project; there is one, two"):
        label("round", "list", store=store)
    with pytest.raises(NotFound, match="there is no project three; there is one, two"):
        label("status", "--project", "three", store=store)


def test_the_terminal_asks_of_the_queue_and_undo_is_a_new_revision(store):
    publish(store, new_task(0), new_task(1))
    said = label("terminal", "--as", "ada", store=store, typed="1\nu\n8\nq\n")
    assert "ANSWER A\n  | " in said and said.endswith("1 judgements by ada.\n")
    with opened(store) as database:
        rows = database.read(
            lambda c: c.execute(sa.select(schema.judgement).order_by(schema.judgement.c.id)).all()
        )
    first, second = rows
    wanted = [1, 8] if first.presented == [0, 1] else [8, 1]
    assert [one.value["strength"] for one in rows] == wanted
    assert (second.supersedes, second.revision) == (first.id, 1)


def test_the_terminal_shows_guidelines_and_what_is_to_be_agreed_to_first(store, tmp_path):
    publish(store, new_task(0), consent="You may stop at any time.", warning="Sad tales.")
    guide = tmp_path / "guide.md"
    guide.write_text("Be kind.\x1b[2J")
    label("project", "configure", PROJECT, "--guidelines", guide, store=store)
    assert "ANSWER" not in label("terminal", store=store, typed="q\n")
    assert "ANSWER" not in label("terminal", store=store, typed="\nno\n")
    said = label("terminal", store=store, typed="\nt\n\n")
    assert "  | Be kind.\n" in label("terminal", "--as", "bob", store=store, typed="q\n")
    assert "\x1b" not in said
    assert "Have you read them?" not in said and "  | You may stop at any time." in said
    assert said.endswith("1 judgements by me.\n")


def test_ranks_and_ratings_can_be_typed(store):
    publish(store, new_task(0, "w", "x", "y", kind="rank"), new_task(1, "z", kind="form"))
    label("terminal", store=store, typed="b a\nb a=c\n9\n6\n\n")
    with opened(store) as database:
        rows = database.read(
            lambda c: c.execute(sa.select(schema.judgement).order_by(schema.judgement.c.id)).all()
        )
    order = rows[0].presented
    assert rows[0].value["groups"] == [[order[1]], sorted([order[0], order[2]])]
    assert rows[1].value["ratings"] == {"overall": 6}


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("\x1b[2J\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("x\nANSWER B\n  fake", "x\n  | ANSWER B\n  |   fake"),
        ("\u202etxt.exe\u2066", "txt.exe"),
    ],
)
def test_a_judged_text_neither_steers_the_terminal_nor_passes_for_one_of_our_lines(store, hostile, harmless):
    publish(store, new_task(0, hostile, "other"))
    said = label("terminal", store=store, typed="q\n")
    assert "\x1b" not in said
    assert f"  | {harmless}\n" in said
    assert said.count("\nANSWER B") == 1


def test_status_tells_how_far_rounds_are_and_who_did_how_much(any_place):
    wait_for_people(any_place, 3)
    judge(any_place, PROJECT, likes("left"), name="ada", most=1)
    judge(any_place, PROJECT, always(skip="unclear"), name="bob", most=1)
    said = label("status", store=any_place)
    assert "server: not running" in said
    assert "2/3" in said and "ada" in said and "bob" in said
    found = json.loads(label("status", "--json", store=any_place))["projects"][PROJECT]
    assert [(one["number"], one["settled"], one["tasks"]) for one in found["rounds"]] == [(1, 2, 3)]
    assert [(one["name"], one["valid"], one["skipped"]) for one in found["people"]] == [
        ("ada", 1, 0),
        ("bob", 0, 1),
    ]


def wait_for_people(store: Path | str, number: int, **options) -> Waiting:
    asked = []
    for index in range(number):
        one = new_task(index)
        asked.append(Question(one.prompt, one.completions))
    with pytest.raises(Waiting) as waiting:
        People(HumanAnnotator(kind="human", **options), Asked(str(store), PROJECT)).judge(asked)
    return waiting.value


def test_a_round_is_frozen_by_hand_once_and_has_a_budget(any_place):
    waiting = wait_for_people(any_place, 2)
    judge(any_place, PROJECT, likes("left"), most=1)
    assert (
        label("round", "budget", "--cents", "50", store=any_place)
        == "round 1 may cost 50 cents; 0 are spent\n"
    )
    assert label("round", "freeze", store=any_place) == "round 1 is frozen at judgement 1: 1 of 2 judged\n"
    assert waiting.look is not None and waiting.look() == (2, 2)
    with opened(any_place) as database:
        (kept,) = database.read(lambda c: c.execute(sa.select(schema.quality.c.figures)).scalars().all())
    assert (kept["judgements"], kept["watermark"]) == (1, 1)
    with pytest.raises(Conflict, match="round 1 is frozen already"):
        label("round", "freeze", store=any_place)
    with pytest.raises(Conflict, match="no policy has been trained on it yet"):
        label("round", "promote", store=any_place)
    with pytest.raises(NotFound, match="has no round 7; it has 1 to 1"):
        label("round", "reject", "7", store=any_place)


def test_decisions_about_a_policy_are_kept_and_the_last_one_counts(any_place):
    wait_for_people(any_place, 1)
    judge(any_place, PROJECT, likes("left"))
    label("round", "freeze", store=any_place)
    with opened(any_place) as database:
        (found,) = database.read(lambda c: rounds.rounds_of(c, PROJECT))
        database.write(lambda c: rounds.set_state(c, 0, found.id, "promoted", policy_out="p1"))
        for id, parent, state in (("p0", "", "retired"), ("p1", "p0", "current")):
            database.write(
                lambda c, id=id, parent=parent, state=state: rounds.register_policy(
                    c, id, uri="", parent_id=parent, iteration=1, state=state
                )
            )
        assert "p1 is rolled back" in label("round", "rollback", store=any_place)
        assert states(database) == {"p0": "current", "p1": "retired"}
        with pytest.raises(Conflict, match="none to roll back"):
            label("round", "rollback", store=any_place)
        assert "p1 is promoted" in label("round", "promote", "1", store=any_place)
        assert states(database) == {"p0": "retired", "p1": "current"}
        assert database.read(lambda c: rounds.decisions(c, PROJECT)) == {"p1": "promote"}


def states(database) -> dict[str, str]:
    return dict(
        database.read(
            lambda c: c.execute(sa.select(schema.policy.c.id, schema.policy.c.state)).tuples().all()
        )
    )


# --- labels out and in -----------------------------------------------------------------------------------------------


def test_an_export_is_the_same_bytes_at_one_watermark_whatever_is_said_meanwhile(store, tmp_path):
    publish(store, *(new_task(index) for index in range(4)))
    judge(store, PROJECT, likes("left", strength=1), most=3)
    first = tmp_path / "first.jsonl"
    said = label("export", "trl-preference", "-o", first, store=store)
    assert said == f"{first}: 3 rows from 3 of 3 judgements up to 3\n"
    judge(store, PROJECT, likes("right"))
    with opened(store) as database:
        somebody = person(database, "ann", PROJECT)
        changed = queue.Submission(value={"verdict": "tie"})
        database.write(lambda c: queue.revise(c, database.now(), 1, somebody, changed, "another-key"))
    again = tmp_path / "again.jsonl"
    label("export", "trl-preference", "-o", again, "--watermark", 3, store=store)
    assert again.read_bytes() == first.read_bytes()
    assert json.loads(first.read_text().splitlines()[0])["margin"] == 1.0
    manifest = json.loads((tmp_path / "first.manifest.json").read_text())
    assert (manifest["watermark"], manifest["rows_in"], manifest["records"]) == (3, 3, 3)


def test_an_option_of_an_export_that_is_not_there_is_named(store, tmp_path):
    publish(store, new_task(0))
    with pytest.raises(
        InputError, match="--set agreement=1: write an option, =, and its value; there is margins"
    ):
        label("export", "pairs", "-o", tmp_path / "x.jsonl", "--set", "agreement=1", store=store)


def test_what_is_exported_raw_comes_into_another_store_as_it_was_and_once(store, tmp_path):
    publish(store, new_task(0), new_task(1), new_task(2, "a", "b", "c", kind="rank"), overlap=2)
    judge(store, PROJECT, likes("left"), name="ada", most=2)
    judge(store, PROJECT, always(skip="too_long"), name="bob", most=1)
    with opened(store) as database:
        changed = queue.Submission(value={"strength": 4}, comment="on second thoughts")
        ada = person(database, "ada", PROJECT)
        database.write(lambda c: queue.revise(c, 5, 1, ada, changed, "another-key"))
    raw = tmp_path / "raw.jsonl"
    label("export", "judgements-raw", "-o", raw, store=store)

    other = tmp_path / "other.sqlite"
    label("project", "create", PROJECT, store=other)
    assert (
        label("import", "auto", raw, store=other) == f"project {PROJECT}: 2 tasks, 4 judgements from 4 rows\n"
    )
    assert (
        label("import", "auto", raw, store=other) == f"project {PROJECT}: 0 tasks, 0 judgements from 4 rows\n"
    )
    assert [said_in(one) for one in (store, other)] == [said_in(store)] * 2
    assert {(one.valid, one.skips) for one in tasks(other)} == {(1, 1), (1, 0)}


def said_in(store: Path):
    with opened(store) as database, database.snapshot() as connection:
        rows = list(judgement_rows(connection, up_to(connection, Filter(PROJECT))))
    return sorted((one.prompt.id, one.state, str(one.value), one.revision, one.comment) for one in rows)


def test_pairs_from_a_file_become_judged_tasks_and_prompts_become_open_ones(store, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}) + "\n")
    label("project", "create", PROJECT, store=store)
    assert "1 tasks, 1 judgements" in label("import", "preference", pairs, store=store)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "How?"}) + "\n")
    assert "1 tasks, 0 judgements" in label("import", "prompt", prompts, store=store)
    assert [(one.kind, one.valid) for one in tasks(store)] == [("pairwise", 1), ("demonstration", 0)]
    out = tmp_path / "out.jsonl"
    label("export", "trl-preference", "-o", out, store=store)
    assert json.loads(out.read_text())["chosen"] == [{"role": "assistant", "content": "Because."}]


def test_a_file_asks_about_no_more_completions_than_people_can_rank(store, tmp_path):
    rows = [
        {"prompt": f"Why {number}?", "responses": [f"{one}." for one in range(number)]} for number in (9, 16)
    ]
    file = tmp_path / "groups.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    label("project", "create", PROJECT, store=store)
    assert label("import", "groups", file, store=store) == (
        f"project {PROJECT}: 2 tasks, 0 judgements from 2 rows; 1 ask about the first 9 completions only\n"
    )
    assert [(one.kind, len(one.completion_ids)) for one in tasks(store)] == [("rank", 9)] * 2


def test_people_are_asked_anew_about_what_a_file_has_judged(store, tmp_path):
    rows = [
        {"prompt": "Two?", "ranked_responses": ["yes", "no"]},
        {"prompt": "Three?", "ranked_responses": ["1.", "2.", "3."]},
        {"prompt": "Many?", "ranked_responses": [f"{one}." for one in range(16)]},
    ]
    file = tmp_path / "ranked.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    label("project", "create", PROJECT, store=store)
    assert label("import", "groups", file, "--tasks-only", store=store) == (
        f"project {PROJECT}: 3 tasks, 0 judgements from 3 rows; 1 ask about the first 9 completions only; "
        "3 judgements of the file left out\n"
    )
    assert [(one.kind, one.valid, one.done_at) for one in tasks(store)] == [
        ("pairwise", 0, None),
        ("rank", 0, None),
        ("rank", 0, None),
    ]
    assert judge(store, PROJECT, always(strength=1), most=1) == 1


def test_an_import_asks_what_the_project_asks_where_that_fits(store, tmp_path):
    settings, file = tmp_path / "settings.yaml", tmp_path / "groups.jsonl"
    settings.write_text("kind: edit\n")
    rows = [{"prompt": "One?", "responses": ["1."]}, {"prompt": "Two?", "responses": ["1.", "2."]}]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    label("project", "create", PROJECT, "--settings", settings, store=store)
    label("import", "groups", file, store=store)
    assert [one.kind for one in tasks(store)] == ["edit", "pairwise"]


def test_a_judgement_of_more_than_a_task_shows_is_counted_and_left_out(store, tmp_path):
    row = {"prompt": "Why?", "ranked_responses": [f"{one}." for one in range(16)]}
    file = tmp_path / "groups.jsonl"
    file.write_text(json.dumps(row) + "\n")
    label("project", "create", PROJECT, store=store)
    assert label("import", "groups", file, store=store) == (
        f"project {PROJECT}: 0 tasks, 0 judgements from 1 rows; 1 judgements of more than a task can show\n"
    )


def test_tasks_with_known_answers_come_from_a_file_and_the_command_says_who_gets_them(store, tmp_path):
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "why": "It answers."}
    file = tmp_path / "known.jsonl"
    file.write_text(json.dumps(row) + "\n")
    settings = tmp_path / "tales.yaml"
    settings.write_text("gold_share: 0\nqualification: {tasks: 2}\n")
    label("project", "create", PROJECT, "--settings", settings, store=store)
    assert label("gold", file, "--qualification", store=store) == (
        f"project {PROJECT}: 1 qualification tasks from 1 rows; "
        "note: there are 1 qualification tasks and 2 are asked for\n"
    )
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(row | {"prompt": "How?"}) + "\n" + json.dumps({"prompt": "What?"}) + "\n")
    with pytest.raises(InputError, match=r"other\.jsonl row 2: no field 'chosen'"):
        label("gold", other, store=store)
    assert label("gold", other, "--drop-bad-rows", store=store) == (
        f"project {PROJECT}: 1 gold tasks from 2 rows; left out: 1 missing_field; "
        "note: gold_share is 0: nobody gets gold tasks\n"
    )
    assert [(one.strategy, one.is_gold) for one in tasks(store)] == [("qualification", True), ("gold", True)]


def test_agreement_is_shown_with_intervals_and_unanimity_is_undefined(any_place):
    publish(any_place, *(new_task(index) for index in range(6)), overlap=2)
    judge(any_place, PROJECT, likes("left"), name="ada")
    judge(any_place, PROJECT, likes("left"), name="bob", most=6)
    found = json.loads(label("agreement", "--json", store=any_place))
    assert found["measures"]["choice, raw"]["value"] == 1.0
    assert found["measures"]["choice, alpha (nominal)"]["value"] is None
    assert [one["judgements"] for one in found["people"]] == [6, 6]
    assert "undefined" in label("agreement", store=any_place)


# --- judges ----------------------------------------------------------------------------------------------------------


class Fake:
    """A judge that is sure of `left`, more so when it is shown first."""

    name = "judge/fake"
    provenance = {"model": "fake", "prompt_sha": "0", "temperature": 0.0}  # noqa: RUF012

    def probabilities(self, pairs):
        for one in pairs:
            if one.a.text == "unreadable":
                yield None
            else:
                yield (0.9, 0.7) if one.a.text == "left" else (0.3, 0.1)


def judged(store: Path):
    with opened(store) as database:
        return database.read(
            lambda c: c.execute(sa.select(schema.judgement).order_by(schema.judgement.c.id)).all()
        )


def test_an_ai_judge_submits_both_orders_and_never_takes_a_persons_place(store):
    publish(store, new_task(0), new_task(1), new_task(2, "a", "b", "c", kind="rank"), ai_overlap=1)
    with opened(store) as database:
        done = judge_all(StoreQueue(database, PROJECT, "judge/fake"), Fake())  # type: ignore[arg-type]
    assert done == {"judged": 2, "given back": 1}
    rows = judged(store)
    assert {(one.kind, one.judge["model"]) for one in rows[:2]} == {("ai", "fake")}
    assert [one.value["p_a"] for one in rows[:2]] == [pytest.approx(0.8)] * 2  # (0.9 + 0.7) / 2
    assert [(one.valid, one.ai_valid) for one in tasks(store)] == [(0, 1), (0, 1), (0, 0)]
    assert judge(store, PROJECT, likes("left"), most=2) == 2


def test_an_ai_judge_works_over_http_with_a_token(store):
    publish(store, new_task(0), ai_overlap=1)
    with opened(store) as database, client_of(database, PROJECT, "robot", role="judge") as client:
        assert judge_all(HttpQueue(client, PROJECT), Fake()) == {"judged": 1}  # type: ignore[arg-type]
        with pytest.raises(InputError, match="HTTP 40"):
            judge_all(HttpQueue(client, "another"), Fake())  # type: ignore[arg-type]
    (row,) = judged(store)
    assert (row.kind, row.value["order_inconsistent"]) == ("ai", False)


def test_a_judge_is_read_from_an_experiment_or_from_a_file_of_its_own(tmp_path):
    path = tmp_path / "judge.yaml"
    path.write_text("{kind: judge, base_url: 'http://127.0.0.1:1/v1', model: m}")
    assert read_judge(path).model == "m"
    path.write_text("{kind: judge, model: m}")
    with pytest.raises(InputError, match="judge.yaml: base_url"):
        read_judge(path)
    path.write_text("loop: {batches: 0}\nevaluate: {num_prompts: 0}")
    with pytest.raises(
        InputError, match="annotate.annotator is reward_model; this command needs one of kind judge"
    ):
        read_judge(path)


# --- the server ------------------------------------------------------------------------------------------------------


def test_sqlite_takes_one_process_and_strangers_only_where_somebody_is_in_charge(store):
    with pytest.raises(InputError, match="--workers 2: SQLite takes one process"):
        label("serve", "--workers", 2, store=store)
    with pytest.raises(InputError, match=r"host = 0.0.0.0: no admin has a password yet"):
        label("serve", "--host", "0.0.0.0", store=store)
    with opened(store) as database:
        admin = person_with_password(database)
        assert admin
    with pytest.raises(InputError, match="over plain http anybody on the way reads passwords"):
        label("serve", "--host", "0.0.0.0", store=store)


def test_further_names_and_hosts_for_webhooks_are_told_to_the_app_and_to_its_workers(store, monkeypatch):
    said = Reached("https://label.example.org", ("label.lan:8765",), ("hooks.lan",), ("one=scripted",))
    monkeypatch.setenv(STORE_VARIABLE, str(store))
    monkeypatch.setenv(OPTIONS_VARIABLE, json.dumps(asdict(said)))
    worker = app_of_a_worker()
    worker.state.database.close()
    for options in (web_options(said), worker.state.options):
        assert options.public_url == "https://label.example.org"
        assert (options.trusted_hosts, options.reachable_hosts) == (("label.lan:8765",), ("hooks.lan",))
        assert list(options.answerers) == ["one"]


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--host-name", "http://label.lan"),
        ("--host-name", "label.lan/path"),
        ("--host-name", "*.lan"),
        ("--host-name", "label.lan:port"),
        ("--host-name", ""),
        ("--webhook-host", "a.lan,b.lan"),
        ("--webhook-host", "hooks.lan:8080"),
    ],
)
def test_what_is_no_name_of_a_host_is_refused(store, option, name):
    with pytest.raises(InputError, match=re.escape(f"{option} {name}: give")):
        label("serve", option, name, store=store)


def test_a_name_beside_this_machines_own_means_that_others_reach_the_app(store):
    with pytest.raises(InputError, match="no admin has a password yet"):
        label("serve", "--host-name", "label.lan", store=store)


def person_with_password(database) -> str:
    label("project", "create", PROJECT, store=Path(database.engine.url.database))
    admin = person(database, "boss", PROJECT, role="admin")
    hashed = hash_password("a long enough secret")
    database.write(lambda c: set_password(c, database.now(), admin.id, hashed, actor="system"))
    return admin.id


def test_a_served_store_lets_its_admin_in_is_found_by_runs_and_takes_no_second_server(tmp_path):
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "prefloop.cli",
        "label",
        "serve",
        "--demo",
        "--port",
        str(port),
        "-w",
        str(tmp_path),
    ]
    store = tmp_path / "demo.sqlite"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            patiently(lambda: serving.answers(url))
            assert server.stdout is not None
            lines = [server.stdout.readline() for _ in range(2)]
            assert lines[0] == f"labels in {store}\n"
            assert lines[1].startswith(f"open {url}/link#")
            assert url in label("status", store=store)
            with pytest.raises(InputError, match="another server has this store open"):
                label("serve", "--demo", "--port", free_port(), "-w", tmp_path)
        finally:
            server.terminate()
    assert "server: not running" in label("status", store=store)
    kinds = {one.kind for one in tasks(store)}
    assert kinds == {"pairwise", "rank", "form", "rules", "edit", "steps", "demonstration", "prompt"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def patiently(is_true, *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_an_invite_and_a_token_are_printed_once(store):
    label("project", "create", PROJECT, store=store)
    assert label("invite", "--role", "reviewer", store=store).startswith("http://127.0.0.1:8765/invite#")
    assert label("token", "robot", store=store).startswith("pfl_")
    with pytest.raises(PrefloopError, match="--role king: choose one of annotator, reviewer, lead, admin"):
        label("invite", "--role", "king", store=store)
