"""Exported files, as other tools and prefloop itself read them."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from prefloop.config import SourceSection
from prefloop.data import read_groups, read_pairs, read_recorded_scores
from prefloop.export import export, export_groups, export_pairs
from prefloop.interfaces import InputError
from prefloop.records import Comparison, Group, Message, PreferencePair, Prompt, Score, file_completion
from prefloop.store import write_rows

SYSTEM = Message(role="system", content="Be brief.")
HELLO = Message(role="user", content="Hello — naïve\nline\u2028")
HI = Message(role="assistant", content="Hi!")
AGAIN = Message(role="user", content=" Again\n")
SUFFIX = {"trl": ".jsonl", "hh": ".jsonl", "ultrafeedback": ".json", "parquet": ".parquet"}


def pair(messages: tuple[Message, ...], chosen: str, rejected: str, margin: float = 1.0) -> PreferencePair:
    prompt = Prompt.of(messages)
    first, second = (file_completion(prompt, text, index) for index, text in enumerate((chosen, rejected)))
    first = first.model_copy(update={"policy": "policy-7"})
    return PreferencePair.of(prompt, first, second, margin=margin, annotator="rule:tales")


PAIRS = [
    pair((HELLO,), "Good morning.\n", " No: never", 0.75),
    pair((HELLO, HI, AGAIN), "Again, hi.", "Assistant: no", 2.0),
]


def test_trl_rows_are_conversations(tmp_path: Path):
    out = tmp_path / "pairs.jsonl"
    assert export_pairs([pair((SYSTEM, HELLO), "b", "c")], "trl", out) == 1
    assert json.loads(out.read_text(encoding="utf-8")) == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello — naïve\nline\u2028"},
        ],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    }


def test_hh_rows_are_transcripts(tmp_path: Path):
    out = tmp_path / "pairs.jsonl"
    export_pairs([pair((Message(role="user", content="a"), HI, AGAIN), "b", "c")], "hh", out)
    before = "\n\nHuman: a\n\nAssistant: Hi!\n\nHuman:  Again\n\n\nAssistant: "
    assert json.loads(out.read_text()) == {"chosen": before + "b", "rejected": before + "c"}


def test_ultrafeedback_rows_hold_the_prompt_and_the_difference_of_the_scores(tmp_path: Path):
    out = tmp_path / "pairs.jsonl"
    one = pair((Message(role="user", content="a"),), "b", "c", 0.5)
    export_pairs([one], "ultrafeedback", out)
    chosen = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert json.loads(out.read_text()) == {
        "prompt": "a",
        "prompt_id": one.prompt.id,
        "chosen": chosen,
        "rejected": [chosen[0], {"role": "assistant", "content": "c"}],
        "messages": chosen,
        "score_chosen": 0.5,
        "score_rejected": 0.0,
    }


@pytest.mark.parametrize("format", ["trl", "hh", "ultrafeedback", "parquet"])
def test_exported_pairs_are_read_back_the_same(tmp_path: Path, format: str):
    out = tmp_path / f"pairs{SUFFIX[format]}"
    assert export_pairs(PAIRS, format, out) == 2
    loaded = read_pairs(SourceSection(path=str(out)))
    assert loaded.dropped == {}
    for before, after in zip(PAIRS, loaded.rows, strict=True):
        assert (after.id, after.prompt.messages) == (before.id, before.prompt.messages)
        assert (after.chosen.text, after.rejected.text) == (before.chosen.text, before.rejected.text)
    if format in ("ultrafeedback", "parquet"):
        assert [one.margin for one in loaded.rows] == [0.75, 2.0]


@pytest.mark.parametrize("format", ["trl", "hh", "ultrafeedback", "parquet"])
def test_datasets_opens_every_export_of_pairs(tmp_path: Path, format: str):
    import datasets

    out = tmp_path / f"pairs{SUFFIX[format]}"
    export_pairs(PAIRS, format, out)
    table = datasets.load_dataset(
        "parquet" if format == "parquet" else "json",
        data_files=str(out),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(table) == 2
    if format in ("trl", "parquet"):
        assert table[0]["chosen"] == [{"role": "assistant", "content": "Good morning.\n"}]
    if format == "parquet":
        assert (table[1]["margin"], table[1]["annotator"], table[1]["policy"]) == (
            2.0,
            "rule:tales",
            "policy-7",
        )


def groups() -> list[Group]:
    prompt = Prompt.of((HELLO, HI, AGAIN))
    texts = ("x", "y", "x")
    return [
        Group(
            prompt=prompt, completions=tuple(file_completion(prompt, text, i) for i, text in enumerate(texts))
        )
    ]


def test_exported_groups_are_read_back_with_their_scores(tmp_path: Path):
    import datasets

    out = tmp_path / "groups.jsonl"
    (group,) = groups()
    first, second, _ = group.completions
    assert export_groups([group], {first.id: 0.5, second.id: -1.0}, out) == 1
    assert json.loads(out.read_text(encoding="utf-8"))["rewards"] == [0.5, -1.0, None]
    (again,) = read_groups(SourceSection(path=str(out))).rows
    assert (again.prompt.messages, again.completions) == (group.prompt.messages, group.completions)
    scores = read_recorded_scores(str(out), "rewards")
    assert scores == {(group.prompt.id, 0): 0.5, (group.prompt.id, 1): -1.0, (group.prompt.id, 2): None}
    table = datasets.load_dataset(
        "json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table[0]["responses"] == ["x", "y", "x"]


def judged(group: Group, *annotators: str) -> list[Score | Comparison]:
    first, second, _ = group.completions
    comparison = Comparison(prompt_id=group.prompt.id, a=first.id, b=second.id, p_a=1.0, annotator="judge")
    scores = [
        Score(prompt_id=group.prompt.id, completion_id=first.id, value=3.0, annotator=annotator)
        for annotator in annotators
    ]
    return [comparison, *scores]


def test_artefacts_are_exported_from_their_folders(tmp_path: Path):
    (group,) = groups()
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    write_rows(tmp_path / "groups.jsonl", [group])
    write_rows(tmp_path / "judgements.jsonl", judged(group, "proxy"))
    assert export(tmp_path, "trl", tmp_path / "out" / "pairs.jsonl") == 2
    assert export(tmp_path, "online_rlhf", tmp_path / "a.jsonl") == 1
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))["rewards"] == [None, None, None]
    assert export(tmp_path, "online_rlhf", tmp_path / "b.jsonl", judgements=tmp_path) == 1
    assert json.loads((tmp_path / "b.jsonl").read_text(encoding="utf-8"))["rewards"] == [3.0, None, None]


def test_scores_of_two_annotators_are_not_mixed(tmp_path: Path):
    (group,) = groups()
    write_rows(tmp_path / "groups.jsonl", [group])
    write_rows(tmp_path / "judgements.jsonl", judged(group, "proxy", "gold"))
    with pytest.raises(InputError, match=r"scores of 2 annotators \(gold, proxy\); export those of one"):
        export(tmp_path, "online_rlhf", tmp_path / "out.jsonl", judgements=tmp_path)


def test_a_folder_without_the_rows_is_an_error(tmp_path: Path):
    with pytest.raises(InputError, match=r"pairs\.jsonl: missing; name an artefact folder that holds pairs"):
        export(tmp_path, "trl", tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("pairs", "format", "name", "message"),
    [
        (PAIRS, "csv", "out.csv", "no export format 'csv'; choose trl, hh, ultrafeedback, parquet, or "),
        (PAIRS, "trl", "out.parquet", "this format is written to .jsonl or .json files"),
        (PAIRS, "parquet", "out.jsonl", "this format is written to .parquet files"),
        ([], "trl", "out.jsonl", "nothing to export"),
        ([], "parquet", "out.parquet", "nothing to export"),
        ([PAIRS[0], pair((SYSTEM, HELLO), "b", "c")], "hh", "out.jsonl", "hh has no system turns; use trl"),
        ([pair((HELLO,), "b\n\nHuman: c", "d")], "hh", "out.jsonl", "a turn mark of format hh; use trl"),
    ],
)
def test_an_export_that_cannot_be_made_leaves_nothing_behind(
    tmp_path: Path, pairs: list[PreferencePair], format: str, name: str, message: str
):
    with pytest.raises(InputError, match=re.escape(message)):
        export_pairs(pairs, format, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_file_whole(tmp_path: Path):
    out = tmp_path / "pairs.jsonl"
    export_pairs(PAIRS, "trl", out)
    before = out.read_bytes()
    with pytest.raises(InputError):
        export_pairs([PAIRS[0], pair((SYSTEM, HELLO), "b", "c")], "hh", out)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "taken.jsonl").mkdir()
    (tmp_path / "file").touch()
    for out in (tmp_path / "taken.jsonl", tmp_path / "file" / "pairs.jsonl"):
        with pytest.raises(InputError, match=f"{re.escape(str(out))}: cannot write: "):
            export_pairs(PAIRS, "trl", out)


@pytest.mark.shared
def test_real_transcripts_survive_reading_and_writing(tmp_path: Path):
    shared = Path(os.environ.get("PREFLOOP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = shared / "data" / "hh_rlhf" / "harmless_pairs.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set PREFLOOP_SHARED to the folder that has data/")
    pairs = read_pairs(SourceSection(path=str(path), bad_rows="drop")).rows
    export_pairs(pairs, "hh", tmp_path / "out.jsonl")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        original = {(row["chosen"], row["rejected"]) for row in map(json.loads, file)}
    with (tmp_path / "out.jsonl").open(encoding="utf-8") as file:
        written = {(row["chosen"], row["rejected"]) for row in map(json.loads, file)}
    same = len(written & original)  # no texts in the assertion: a failure must not print rows
    assert same == len(pairs) == 1803
