"""Imports: what other tools and data sets say, read into tasks and judgements; and round trips that lose nothing unsaid."""

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labels.making import exported, form, one_of_each, pair, prompt, ranking, row
from prefloop.containers import raw_rows
from prefloop.interfaces import InputError
from prefloop.labels.formats.incoming import ImportedTask
from prefloop.labels.formats.reading import ImportOptions, TaskReader
from prefloop.labels.formats.table import FORMATS
from prefloop.labels.formats.writing import count_export, write_export
from prefloop.labels.rows import ROWS, JudgementRow, in_order
from prefloop.records import Completion, Group, Message, PreferencePair, Prompt, Sampling, file_completion
from prefloop.store import write_rows

GOLDEN = Path(__file__).parent / "golden"


def read(path: Path, **options: Any) -> list[ImportedTask]:
    return list(TaskReader(ImportOptions(path=str(path), **options)))


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def numbered(tasks: Iterable[ImportedTask]) -> list[JudgementRow]:
    """The judgements of imported tasks, as the store numbers them."""
    numbers = itertools.count(1)
    return in_order(replace(one, judgement_id=next(numbers)) for task in tasks for one in task.judgements)


def said(rows: Iterable[JudgementRow]) -> list[tuple]:
    """What a round trip has to keep."""
    return sorted(
        (
            [(one.role, one.content) for one in row.prompt.messages],
            row.task_kind,
            [one.text for one in row.completions],
            [one.policy for one in row.completions],
            json.dumps(meant(row), sort_keys=True),
            row.annotator,
            row.comment,
        )
        for row in rows
    )


def meant(row: JudgementRow) -> dict[str, Any]:
    """The value without what says nothing: flags that are not raised and lists of nobody."""
    value = {key: one for key, one in row.value.items() if one not in (None, [], {})}
    if "flags" in value:
        value["flags"] = {name: one for name, one in value["flags"].items() if one}
    return {key: one for key, one in value.items() if one != {}}


# --- data sets -------------------------------------------------------------------------------------------------------

BEFORE = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c \n\nAssistant: "


def test_hh_pairs_come_back_as_the_same_strings(tmp_path: Path):
    short = "\n\nHuman: q\n\nAssistant: "
    pairs = [
        {"chosen": BEFORE + "x", "rejected": BEFORE + "y\n"},
        {"chosen": short + "x", "rejected": short + "y"},
    ]
    tasks = read(lines(tmp_path / "hh.jsonl", *pairs))
    assert [task.judgements[0].value["choice"] for task in tasks] == ["a", "a"]
    records, manifest = exported(numbered(tasks), "hh-rlhf", tmp_path)
    assert sorted(records, key=str) == sorted(pairs, key=str)
    assert manifest.drops == {}


def test_hh_pairs_of_two_prompts_are_counted(tmp_path: Path):
    bad = {"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: r\n\nAssistant: y"}
    reader = TaskReader(ImportOptions(path=str(lines(tmp_path / "hh.jsonl", bad))))
    assert list(reader) == []
    assert (reader.rows_in, reader.dropped) == (1, {"unequal_prompts": 1})


def test_trl_preferences_come_back_with_their_margins(tmp_path: Path):
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"q{place}"}],
            "chosen": [{"role": "assistant", "content": "x"}],
            "rejected": [{"role": "assistant", "content": "y"}],
            "margin": margin,
        }
        for place, margin in enumerate((0.25, 3.0))
    ]
    records, _ = exported(numbered(read(lines(tmp_path / "trl.jsonl", *pairs))), "trl-preference", tmp_path)
    told = [{key: one[key] for key in pairs[0]} for one in records]
    assert sorted(told, key=str) == pairs


def test_ultrafeedback_comes_back_with_models_ratings_and_scores(tmp_path: Path):
    source = {
        "source": "evol",
        "instruction": "Count to three.",
        "models": ["m-1", "m-2"],
        "completions": [
            {
                "model": "m-1",
                "response": "1 2 3",
                "annotations": {
                    "honesty": {"Rating": "5", "Rationale": "true"},
                    "helpfulness": {"Rating": "N/A", "Rationale": ""},
                },
                "overall_score": 8.5,
                "critique": "fine",
            },
            {"model": "m-2", "response": "3 2 1", "annotations": {}, "overall_score": 2.0, "critique": ""},
        ],
    }
    rows = numbered(read(lines(tmp_path / "uf.jsonl", source)))
    assert [one.value["ratings"] for one in rows if one.completions[0].policy == "m-1"] == [
        {"honesty": 5.0, "overall": 8.5}
    ]
    (record,), manifest = exported(rows, "ultrafeedback", tmp_path, rating_range=(1, 10))
    kept = {one["model"]: one for one in record["completions"]}
    assert (record["instruction"], record["source"], set(record["models"])) == (
        "Count to three.",
        "evol",
        {"m-1", "m-2"},
    )
    assert (kept["m-1"]["overall_score"], kept["m-1"]["critique"], kept["m-2"]["overall_score"]) == (
        8.5,
        "fine",
        2.0,
    )
    assert kept["m-1"]["annotations"]["honesty"]["Rating"] == "5"
    assert manifest.drops == {}
    # a score of 8.5 is off our own scale of 1 to 7: it stays behind and is counted
    _, manifest = exported(rows, "ultrafeedback", tmp_path)
    assert manifest.drops == {"out_of_range": 1}


def test_binarized_ultrafeedback_comes_back_with_its_scores(tmp_path: Path):
    before = [{"role": "user", "content": "q"}]
    chosen = [*before, {"role": "assistant", "content": "x"}]
    source = {
        "prompt": "q",
        "prompt_id": "any",
        "chosen": chosen,
        "rejected": [*before, {"role": "assistant", "content": "y"}],
        "messages": chosen,
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    }
    (record,), _ = exported(
        numbered(read(lines(tmp_path / "b.jsonl", source))), "ultrafeedback-binarized", tmp_path
    )
    assert {**record, "prompt_id": "any"} == source


def test_rankings_ties_and_unranked_completions_become_groups(tmp_path: Path):
    texts = ["x", "y", "z"]
    ask = {"prompt": "q", "responses": texts}
    rows = [
        {"messages": [{"role": "user", "content": "q"}], "ranked_responses": texts},
        {**ask, "ranks": [2, 1, 2]},
        {**ask, "ranks": [None, 1, 2]},
        {**ask, "choice": 2},
        {**ask, "choice": "all_bad"},
        ask,
    ]
    values = []
    for place, one in enumerate(rows):
        (task,) = read(lines(tmp_path / f"{place}.jsonl", one))
        values += [judged.value for judged in task.judgements]
    assert values == [
        {"groups": [[0], [1], [2]], "unrankable": []},
        {"groups": [[1], [0, 2]], "unrankable": []},
        {"groups": [[1], [2]], "unrankable": [0]},
        {"groups": [[2], [0, 1]], "unrankable": []},
        {"groups": [], "unrankable": [0, 1, 2]},
    ]


def test_groups_of_two_become_comparisons(tmp_path: Path):
    ask = {"prompt": "q", "responses": ["x", "y"]}
    rows = ({**ask, "choice": "all_bad"}, {**ask, "ranks": [1, 1]}, {**ask, "ranks": [2, 1]})
    told = [
        read(lines(tmp_path / f"{place}.jsonl", one))[0].judgements[0].value for place, one in enumerate(rows)
    ]
    assert [one["choice"] for one in told] == ["both_bad", "tie", "b"]


def test_scores_become_forms(tmp_path: Path):
    file = lines(tmp_path / "g.jsonl", {"prompt": "q", "responses": ["x", "y"], "rewards": [1.5, None]})
    (task,) = read(file)
    assert len(task.completions) == 2
    (judged,) = task.judgements
    assert (judged.completions[0].text, judged.value["ratings"]) == ("x", {"overall": 1.5})


def test_the_loops_groups_keep_policy_tokens_and_ids(tmp_path: Path):
    asked = Prompt.of((Message(role="user", content="q"),))
    sampling = Sampling(temperature=0.7, seed=3)
    sampled = [
        Completion(
            id=f"c{text}", prompt_id=asked.id, text=text, token_ids=(1, 2), sampling=sampling, policy="p-7"
        )
        for text in "xy"
    ]
    write_rows(tmp_path / "groups.jsonl", [Group(prompt=asked, completions=tuple(sampled))])
    (task,) = read(tmp_path / "groups.jsonl")
    assert (task.prompt, task.loop_completions) == (asked, tuple(sampled))


def test_the_loops_pairs_come_back_equal(tmp_path: Path):
    asked = Prompt.of((Message(role="user", content="q"),), answer="4", source="s")
    sides = [file_completion(asked, text, place) for place, text in enumerate("xy")]
    one = PreferencePair.of(asked, *sides, margin=0.25, p_chosen=0.8, annotator="rm")
    write_rows(tmp_path / "pairs.jsonl", [one])
    (record,), _ = exported(numbered(read(tmp_path / "pairs.jsonl")), "pairs", tmp_path)
    assert PreferencePair.model_validate(record) == one.model_copy(update={"annotator": "human/rm"})


# --- tools -----------------------------------------------------------------------------------------------------------


def test_argilla_records_have_rankings_choices_forms_and_edits():
    order, better, quality, corrected, unjudged = read(GOLDEN / "argilla.json")
    assert [one.content for one in order.prompt.messages] == [
        "Name a river in Italy.",
        "The Po.",
        "Another one?",
    ]
    assert (order.prompt.source, len(order.completions)) == ("geography", 3)
    first, second = order.judgements
    assert first.value == {"groups": [[0], [2], [1]], "unrankable": []}
    assert first.comment == "the Rhône is no Italian river"
    assert second.value["groups"] == [[0, 2], [1]]
    assert [one.annotator[:4] for one in (first, second)] == ["2a4c", "7d0b"]
    # the other response is a draft
    assert [one.value["choice"] for one in better.judgements] == ["a"]
    assert quality.judgements[0].value == {"ratings": {"quality": 1}, "flags": {"wrong": True}}
    assert (corrected.judgements[0].task_kind, corrected.judgements[0].value) == ("edit", {"text": "Five."})
    assert unjudged.judgements == ()


def test_label_studio_comparisons_are_read_with_their_configuration():
    options = {"labelstudio_config": str(GOLDEN / "labelstudio.xml")}
    judged, unjudged = read(GOLDEN / "labelstudio.json", **options)
    assert (judged.prompt.text, [one.text for one in judged.completions]) == (
        "Name a planet.",
        ["Pluto.", "Mars."],
    )
    told = [(one.value["choice"], one.annotator, one.comment) for one in judged.judgements]
    assert told == [("b", "3", "no planet any more"), ("tie", "four@example.org", "")]
    assert (len(unjudged.completions), unjudged.judgements) == (2, ())


def test_label_studio_rankings_are_lists_or_buckets():
    (task,) = read(GOLDEN / "labelstudio_ranker.json")
    assert [one.text for one in task.completions] == ["Red.", "Seven.", "Green."]
    assert [one.value for one in task.judgements] == [
        {"groups": [[2], [0], [1]], "unrankable": []},
        {"groups": [[0, 2]], "unrankable": [1]},
    ]


def tool_rows() -> list[JudgementRow]:
    about: dict[str, Any] = {"annotator": "ann-1", "comment": "because"}
    return [
        pair(2, prompt=prompt("a", "b", "c", source="s"), **about),
        pair(None, choice="tie", task_id="v", annotator="x"),
        pair(None, choice="both_bad", task_id="v", annotator="y"),
        ranking([[2], [0], [1]], "x", "y", "z", prompt="r", **about),
        form("x", {"overall": 6, "kind": 2}, {"harmful": True, "funny": False}, prompt="f", **about),
        row("edit", {"text": "better"}, "good", prompt="e", **about),
        row("demonstration", {"text": "Like so."}, prompt="d", **about),
    ]


@pytest.mark.parametrize("format", ["argilla", "labelstudio"])
@pytest.mark.parametrize("kind", ["pairwise", "rank", "form", "edit", "demonstration"])
def test_what_other_tools_get_comes_back_the_same(tmp_path: Path, format: str, kind: str):
    rows = [one for one in tool_rows() if one.task_kind == kind]
    out = tmp_path / "out.json"
    manifest = write_export(in_order(rows), format, out)
    assert manifest.drops == {}
    assert said(numbered(read(out))) == said(rows)


def test_label_studio_keeps_ties_in_rankings(tmp_path: Path):
    rows = [row("rank", {"groups": [[1], [0, 2]], "unrankable": [3]}, *"wxyz")]
    write_export(rows, "labelstudio", tmp_path / "out.json")
    assert said(numbered(read(tmp_path / "out.json"))) == said(rows)


def test_raw_judgements_come_in_as_tasks(tmp_path: Path):
    rows = one_of_each()
    write_export(rows, "judgements-raw", tmp_path / "raw.parquet")
    tasks = read(tmp_path / "raw.parquet", format="judgements-raw")
    assert [one for task in tasks for one in task.judgements] == rows


# --- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "x"}, r"bad.jsonl row 1: no field 'rejected'"),
        ({"fields": {"text": "x"}}, r"bad.jsonl row 1: no field prompt; the record has text"),
        ({"fields": {"prompt": "q", "a": "x"}, "responses": []}, r"row 1: responses is no object"),
        ({"data": {"prompt": "q"}, "annotations": [3]}, r"row 1: annotation 0 is no object"),
        ({"data": {"x": "q"}}, r"row 1: no data field prompt; the task has x"),
        ({"prompt": " ", "responses": ["x"]}, r"row 1: the last user turn is empty"),
        ({"prompt": "q", "responses": ["x", " "]}, r"row 1: completion 1 is empty"),
        ({"judgement_id": 1}, r"row 1: task_id: Field required"),
        ({"instruction": "q", "completions": ["x"]}, r"row 1: completions must be objects"),
    ],
)
def test_a_bad_row_is_named_or_counted(tmp_path: Path, row: dict, message: str):
    file = lines(tmp_path / "bad.jsonl", row)
    format = "preference" if "chosen" in row else "auto"
    with pytest.raises(InputError, match=message):
        read(file, format=format)
    reader = TaskReader(ImportOptions(path=str(file), bad_rows="drop", format=format))
    assert list(reader) == []
    assert (reader.rows_in, reader.dropped.total()) == (1, 1)


def test_broken_json_is_named(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "q", "responses": ["x", "y"]}\n{"prompt": \n')
    with pytest.raises(InputError, match=r"x.jsonl row 2: broken JSON"):
        read(tmp_path / "x.jsonl")


def test_unknown_columns_are_named(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"x.jsonl row 1: no known format with the fields a, b cannot be imported"
    ):
        read(lines(tmp_path / "x.jsonl", {"a": 1, "b": 2}))


def test_columns_can_be_renamed(tmp_path: Path):
    file = lines(tmp_path / "x.jsonl", {"q": "why", "good": "x", "bad": "y"})
    (task,) = read(file, fields={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert (task.prompt.text, task.judgements[0].value["choice"]) == ("why", "a")


BOMB = """<?xml version="1.0"?>
<!DOCTYPE View [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<View><Text name="&b;" value="$x"/></View>
"""
OUTSIDE = '<!DOCTYPE View SYSTEM "file:///etc/passwd"><View/>'


@pytest.mark.parametrize("text", [BOMB, OUTSIDE])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_configuration_with_a_document_type_is_refused(tmp_path: Path, text: str, encoding: str):
    config = tmp_path / "config.xml"
    config.write_bytes(text.replace('version="1.0"', f'version="1.0" encoding="{encoding}"').encode(encoding))
    with pytest.raises(InputError, match=r"config.xml: has a document type"):
        read(GOLDEN / "labelstudio.json", labelstudio_config=str(config))


def test_a_broken_or_huge_configuration_is_refused(tmp_path: Path):
    config = tmp_path / "config.xml"
    config.write_text("<View>\n<Text>")
    with pytest.raises(InputError, match=r"config.xml line 2: broken XML"):
        read(GOLDEN / "labelstudio.json", labelstudio_config=str(config))
    config.write_bytes(b" " * (1 << 20) + b"<View/>")
    with pytest.raises(InputError, match="larger than"):
        read(GOLDEN / "labelstudio.json", labelstudio_config=str(config))
    with pytest.raises(InputError, match="no such file; name the labelling configuration"):
        read(GOLDEN / "labelstudio.json", labelstudio_config=str(tmp_path / "none.xml"))


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tgz", "x.jsonl.zst"])
def test_archives_are_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="archives are not read; unpack it"):
        read(tmp_path / name)


def test_folders_and_missing_files_are_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match="no such file; imports read one file"):
            read(path)
    with pytest.raises(InputError, match="no such file"):
        list(TaskReader(ImportOptions(path="hub:owner/name")))


def test_a_file_that_grows_when_it_is_unpacked_is_refused(tmp_path: Path):
    bomb = tmp_path / "x.jsonl.gz"
    with gzip.open(bomb, "wb") as file:
        file.write(b" " * 5_000_000)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(InputError, match="more than 1000000 bytes unpacked"):
        read(bomb, max_bytes=1_000_000)
    bomb.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="not a gzip file"):
        read(bomb)


def test_a_table_that_grows_when_it_is_unpacked_is_refused(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "x.parquet"
    # a dictionary would hold the repeated text once
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["x" * 1000] * 5000}), file, compression="zstd", use_dictionary=False
    )
    assert file.stat().st_size < 100_000
    with pytest.raises(InputError, match="more than 1000000 bytes unpacked"):
        read(file, max_bytes=1_000_000)


def test_long_texts_and_many_completions_are_refused(tmp_path: Path):
    file = lines(
        tmp_path / "x.jsonl",
        {"prompt": "q", "responses": ["x" * 11]},
        {"prompt": "q", "responses": ["x"] * 4},
    )
    reader = TaskReader(ImportOptions(path=str(file), max_text=10, max_completions=3, bad_rows="drop"))
    assert list(reader) == []
    assert reader.dropped == {"too_long": 1, "too_many_completions": 1}


def test_deep_json_is_counted_not_a_crash(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text("[" * 100_000 + "]" * 100_000 + "\n")
    reader = TaskReader(ImportOptions(path=str(tmp_path / "x.jsonl"), bad_rows="drop"))
    assert list(reader) == []
    assert reader.dropped == {"broken_json": 1}


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    3.5,
    "",
    "odd",
    [],
    [None],
    [3],
    [["odd"]],
    {},
    {"odd": 3},
    {"value": {}},
)


def broken(value: Any) -> Iterator[Any]:
    """The value with one of its parts replaced or taken out."""
    yield from ODD
    if isinstance(value, dict):
        for key, one in value.items():
            yield {name: other for name, other in value.items() if name != key}
            yield from ({**value, key: odd} for odd in broken(one))
    elif isinstance(value, list):
        for place, one in enumerate(value):
            yield from ([*value[:place], odd, *value[place + 1 :]] for odd in broken(one))


def samples() -> dict[str, Any]:
    """A row of each format, with all that it may hold."""
    rows = one_of_each()
    raw = {f"raw {one.task_kind} {place}": json.loads(ROWS.dump_json(one)) for place, one in enumerate(rows)}
    argilla = {f"argilla {one['id']}": one for one in json.loads((GOLDEN / "argilla.json").read_text())}
    files = ("labelstudio.json", "labelstudio_ranker.json")
    return raw | argilla | {name: json.loads((GOLDEN / name).read_text())[0] for name in files}


@pytest.mark.parametrize("name", sorted(samples()))
def test_whatever_is_in_a_row_it_is_read_or_counted_and_what_is_read_can_leave(tmp_path: Path, name: str):
    rows = [one for one in broken(samples()[name]) if isinstance(one, dict)]
    format = {"raw": "judgements-raw", "argilla": "argilla"}.get(name.split()[0], "labelstudio")
    file = lines(tmp_path / "odd.jsonl", *rows)
    config = str(GOLDEN / "labelstudio.xml") if name == "labelstudio.json" else ""
    options = ImportOptions(path=str(file), format=format, bad_rows="drop", labelstudio_config=config)  # pyright: ignore
    reader = TaskReader(options)
    tasks = list(reader)
    assert reader.rows_in == len(rows) == len(tasks) + reader.dropped.total()
    for target in FORMATS.values():
        if target.companion is None:
            count_export(numbered(tasks), target.name)


# --- the development data --------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_ranked_replies_of_open_assistant_give_all_their_pairs(shared: Path, tmp_path: Path):
    file = shared / "data" / "oasst_en100" / "ranked.jsonl.gz"
    numbers = [len(raw.value["ranked_responses"]) for raw in raw_rows(str(file), "train")]
    tasks = read(file)
    assert [len(task.completions) for task in tasks] == numbers
    records, manifest = exported(numbered(tasks), "trl-preference", tmp_path, near_duplicates="keep")
    lost = sum(manifest.records_dropped.values())
    assert manifest.rows_in == manifest.rows_out + sum(manifest.drops.values()) == len(tasks)
    assert manifest.drops == {}
    assert len(records) + lost == sum(number * (number - 1) // 2 for number in numbers)
    assert sum(one["group_weight"] for one in records) == pytest.approx(len(tasks))


@pytest.mark.shared
def test_hh_pairs_of_the_development_data_come_back_or_are_counted(shared: Path, tmp_path: Path):
    file = shared / "data" / "hh_rlhf" / "harmless_pairs.jsonl.gz"
    before = [(raw.value["chosen"], raw.value["rejected"]) for raw in raw_rows(str(file), "train")]
    reader = TaskReader(ImportOptions(path=str(file), bad_rows="drop"))
    tasks = list(reader)
    records, manifest = exported(numbered(tasks), "hh-rlhf", tmp_path, near_duplicates="keep")
    assert reader.rows_in == len(tasks) + reader.dropped.total() == len(before)
    assert reader.dropped["unequal_prompts"] == 2
    assert manifest.rows_in == manifest.rows_out + sum(manifest.drops.values())
    # compared as sets of digests, so that a failure prints no text
    after = {hash((one["chosen"], one["rejected"])) for one in records}
    known = {hash(one) for one in before}
    assert len(after - known) == 0
    assert len(records) == manifest.rows_out
