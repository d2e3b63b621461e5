import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from prefloop.interfaces import InputError, PrefloopError, no_progress
from prefloop.records import Score
from prefloop.store import (
    Artefact,
    Build,
    RowFile,
    Stage,
    Workspace,
    digest_path,
    garbage,
    read_records,
    remove,
    write_rows,
)


def workspace_in(folder: Path) -> Workspace:
    workspace = Workspace(folder / "workspace")
    workspace.create()
    return workspace


def writes(text: str):
    def body(build: Build) -> None:
        (build.path / "text.txt").write_text(text)
        build.count(3, 2, {"tie": 1})
        build.stats = {"length": len(text)}

    return body


def stage(text: str = "hello", *, config=None, inputs=None, body=None, format=1) -> Stage:
    return Stage("demo", format, config or {"text": text}, inputs or {}, body or writes(text))


def test_an_artefact_is_built_once_and_then_found(tmp_path):
    workspace = workspace_in(tmp_path)
    artefact = workspace.build(stage())

    def explode(build: Build) -> None:
        raise AssertionError("must not run again")

    assert workspace.build(stage(body=explode)) == artefact
    assert (artefact.path / "text.txt").read_text() == "hello"
    assert artefact.stats == {"length": 5}
    assert artefact.manifest["rows"] == {"in": 3, "out": 2, "dropped": {"tie": 1}}


def test_the_key_depends_on_config_format_inputs_and_outside_files():
    one = Artefact("x", "1", Path("x-1"))
    two = Artefact("x", "2", Path("x-2"))
    keys = {
        stage().key,
        stage(config={"text": "other"}).key,
        stage(format=2).key,
        stage(inputs={"a": one}).key,
        stage(inputs={"a": two}).key,
        stage(inputs={"a": [one, two]}).key,
        stage(inputs={"a": [two, one]}).key,
        Stage("demo", 1, {"text": "hello"}, {}, writes(""), external={"file": "abc"}).key,
    }
    assert len(keys) == 8
    assert stage(body=writes("another body")).key == stage().key


def test_rows_that_do_not_add_up_are_an_error(tmp_path):
    def careless(build: Build) -> None:
        build.count(3, 1, {"tie": 1})

    with pytest.raises(PrefloopError, match="3 rows in, but 1 out and {'tie': 1} dropped"):
        workspace_in(tmp_path).build(stage(body=careless))


def test_a_failed_stage_publishes_nothing_and_keeps_its_work(tmp_path):
    workspace = workspace_in(tmp_path)

    def half(build: Build) -> None:
        (build.path / "part.txt").write_text("half")
        raise InputError("no more")

    with pytest.raises(InputError):
        workspace.build(stage(body=half))
    assert workspace.published() == []

    def rest(build: Build) -> None:
        assert (build.path / "part.txt").read_text() == "half"

    assert workspace.build(stage(body=rest)).exists


def test_logs_do_not_count_for_the_digest(tmp_path):
    def noisy(noise: str):
        def body(build: Build) -> None:
            (build.path / "text.txt").write_text("same")
            build.log("timing.txt").write_text(noise)

        return body

    digests = [
        Workspace(tmp_path / noise).build(stage(body=noisy(noise))).manifest["digest"]
        for noise in ("a", "b")
        for _ in [Workspace(tmp_path / noise).create()]
    ]
    assert digests[0] == digests[1]


def score(number: int) -> Score:
    return Score(prompt_id="p", completion_id=str(number), value=number, annotator="a")


def test_a_row_file_cut_in_the_middle_goes_back_to_its_last_whole_chunk(tmp_path):
    path = tmp_path / "rows.jsonl"
    file = RowFile(path)
    file.append([score(1), score(2)], items=5)
    whole = path.read_bytes()
    with path.open("ab") as torn:  # what a kill leaves: rows without their marker, the last one half written
        torn.write(score(3).model_dump_json().encode() + b'\n{"type": "sco')
    again = RowFile(path)
    assert again.items == 5
    assert path.read_bytes() == whole
    again.append([score(3)], items=1)
    assert [one.value for one in read_records(path, Score)] == [1, 2, 3]


def build_slowly(root: str, marker: str) -> None:
    def body(build: Build) -> None:
        with Path(marker).open("a") as file:
            file.write("built\n")
        time.sleep(0.5)
        (build.path / "text.txt").write_text("hello")

    Workspace(Path(root)).build(stage(body=body))


def test_two_processes_build_an_artefact_once(tmp_path):
    workspace = workspace_in(tmp_path)
    marker = tmp_path / "marker"
    both = [
        multiprocessing.get_context("spawn").Process(
            target=build_slowly, args=(str(workspace.root), str(marker))
        )
        for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert marker.read_text() == "built\n"


def test_a_killed_builder_leaves_its_lock_free(tmp_path):
    workspace = workspace_in(tmp_path)
    marker = tmp_path / "marker"
    process = multiprocessing.get_context("spawn").Process(
        target=build_slowly, args=(str(workspace.root), str(marker))
    )
    process.start()
    while not marker.exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not workspace.artefact(stage()).exists
    assert workspace.build(stage()).exists


def test_waiting_for_another_run_is_announced_once(tmp_path):
    workspace = workspace_in(tmp_path)
    marker = tmp_path / "marker"
    process = multiprocessing.get_context("spawn").Process(
        target=build_slowly, args=(str(workspace.root), str(marker))
    )
    process.start()
    while not marker.exists():
        time.sleep(0.01)
    waited = []
    workspace.build(stage(), no_progress, lambda: waited.append(1))
    process.join()
    assert waited == [1]


def test_artefacts_are_found_by_the_beginning_of_name_or_key(tmp_path):
    workspace = workspace_in(tmp_path)
    artefact = workspace.build(stage())
    workspace.build(stage("other"))
    assert workspace.find(artefact.key[:6]) == artefact
    assert workspace.find(artefact.name) == artefact
    with pytest.raises(InputError, match="fits 2 artefacts"):
        workspace.find("demo")
    with pytest.raises(InputError, match="no artefact 'zzz'"):
        workspace.find("zzz")


def test_garbage_is_what_no_run_needs(tmp_path):
    workspace = workspace_in(tmp_path)
    kept, unneeded = workspace.build(stage("kept")), workspace.build(stage("unneeded"))
    found = garbage(workspace, {kept.name})
    assert [path for path, _ in found] == [unneeded.path]
    for name in (f"{kept.name}-float32", f"{unneeded.name}-float32"):
        (workspace.cache / "logps" / name).mkdir(parents=True)
    found = garbage(workspace, {kept.name})
    assert [path.name for path, _ in found] == [unneeded.name, f"{unneeded.name}-float32"]
    remove(unneeded.path)
    assert workspace.published() == [kept]


def test_a_folder_has_the_digest_of_its_content_not_of_its_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content")
    assert digest_path(tmp_path / "a") == digest_path(tmp_path / "b")
    (tmp_path / "b" / "file").write_text("other")
    assert digest_path(tmp_path / "a") != digest_path(tmp_path / "b")
    with pytest.raises(InputError, match="no such file or folder"):
        digest_path(tmp_path / "missing")


def test_a_file_of_rows_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [score(1)])

    def breaks():
        yield score(2)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_rows(path, breaks())
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1]
