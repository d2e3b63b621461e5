"""Reading sources: counting, dropping, renaming, and the real data sets beside the checkout."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prefloop import tales
from prefloop.config import SourceSection
from prefloop.data import (
    Loaded,
    read_demonstrations,
    read_groups,
    read_pairs,
    read_prompts,
    read_recorded_scores,
    read_texts,
    source_digest,
)
from prefloop.interfaces import InputError
from prefloop.records import content_id, file_completion

SHARED = Path(os.environ.get("PREFLOOP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
Read = Callable[[SourceSection], Loaded]


def source(tmp_path: Path, *rows: object, **options: object) -> SourceSection:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SourceSection.model_validate({"path": str(path), **options})


def test_an_assistant_final_prompt_is_rejected_with_its_row_number(tmp_path: Path):
    rows = [{"prompt": f"Question {number}"} for number in range(16)]
    bad = {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    message = "rows.jsonl row 17: the last turn is the assistant's; a prompt must end with a user turn"
    with pytest.raises(InputError) as caught:
        read_prompts(source(tmp_path, *rows, bad))
    assert str(caught.value) == message


def test_dropped_rows_are_counted_by_reason(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\nnot JSON\n{"prompt": ""}\n{"prompt": "b"}\n[]\n{"prompt": " "}\n')
    loaded = read_prompts(SourceSection(path=str(path), bad_rows="drop"))
    assert [prompt.text for prompt in loaded.rows] == ["a", "b"]
    assert loaded.rows_in == 6
    assert loaded.dropped == {"broken_json": 1, "empty_prompt": 2, "wrong_type": 1}


def test_a_broken_row_stops_the_reading_with_its_line_number(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": }\n')
    with pytest.raises(
        InputError, match=r"^rows\.jsonl row 3: broken JSON \(Expecting value, column 12\); fix"
    ):
        read_prompts(SourceSection(path=str(path)))


def test_the_first_of_equal_prompts_is_kept_whatever_bad_rows_says(tmp_path: Path):
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b"}, {"prompt": "a", "answer": "2"}]
    loaded = read_prompts(source(tmp_path, *rows))
    assert [(prompt.text, prompt.answer) for prompt in loaded.rows] == [("a", "1"), ("b", None)]
    assert (loaded.rows_in, loaded.dropped) == (3, {"duplicate": 1})


def test_pairs_are_duplicates_by_their_completions_and_groups_by_their_prompt(tmp_path: Path):
    pairs = [{"prompt": "a", "chosen": "b", "rejected": text} for text in ("c", "d", "c")]
    assert read_pairs(source(tmp_path, *pairs)).dropped == {"duplicate": 1}
    groups = [{"prompt": "a", "responses": texts} for texts in (["b"], ["c"])]
    loaded = read_groups(source(tmp_path, *groups))
    assert loaded.dropped == {"duplicate": 1}
    assert loaded.rows[0].completions[0].text == "b"


def test_demonstrations_of_one_prompt_with_different_answers_are_kept(tmp_path: Path):
    rows = [{"prompt": "a", "completion": text} for text in ("b", "c", "b")]
    loaded = read_demonstrations(source(tmp_path, *rows))
    assert (len(loaded.rows), loaded.dropped) == (2, {"duplicate": 1})


def test_completions_of_a_pair_have_index_0_and_1(tmp_path: Path):
    (pair,) = read_pairs(source(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"})).rows
    assert pair.chosen == file_completion(pair.prompt, "b", 0)
    assert pair.rejected == file_completion(pair.prompt, "c", 1)
    assert pair.id == content_id(pair.chosen.id, pair.rejected.id)
    assert (pair.annotator, pair.prompt.source) == ("file:rows.jsonl", "rows.jsonl")


def test_renamed_columns_are_known_before_the_format_is(tmp_path: Path):
    row = {"query": "a", "good": "b", "bad": "c", "prompt": "an other prompt"}
    fields = {"prompt": "query", "chosen": "good", "rejected": "bad"}
    loaded = read_pairs(source(tmp_path, row, fields=fields))
    assert loaded.format == "preference"
    assert (loaded.rows[0].prompt.text, loaded.rows[0].rejected.text) == ("a", "c")


def test_two_columns_can_trade_names(tmp_path: Path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (pair,) = read_pairs(source(tmp_path, row, fields={"chosen": "rejected", "rejected": "chosen"})).rows
    assert (pair.chosen.text, pair.rejected.text) == ("c", "b")


def test_renaming_a_column_that_is_not_there_names_those_that_are(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"rows\.jsonl: no column 'query' to read as prompt; it has text, id"
    ):
        read_prompts(source(tmp_path, {"text": "a", "id": 1}, fields={"prompt": "query"}))


@pytest.mark.parametrize(
    ("limit", "rows_in", "dropped"), [(1, 1, {}), (2, 2, {"duplicate": 1}), (99, 3, {"duplicate": 1})]
)
def test_limit_takes_the_first_rows_and_may_exceed_the_file(
    tmp_path: Path, limit: int, rows_in: int, dropped: dict[str, int]
):
    loaded = read_prompts(source(tmp_path, {"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}, limit=limit))
    assert (loaded.rows_in, loaded.dropped) == (rows_in, dropped)


def test_limit_reads_no_further_than_it_says(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\nnot JSON\n')
    assert read_prompts(SourceSection(path=str(path), limit=1)).rows_in == 1


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (
            read_prompts,
            {"Question": "a", "Source": "b"},
            r"row 1: no known format has the fields Question, Source; rename columns with fields:, "
            r"for instance \{prompt: your column\}",
        ),
        (
            read_prompts,
            {"text": "a"},
            r"format text has no prompts; .* use fields: \{prompt: your column\}",
        ),
        (
            read_texts,
            {"prompt": "a"},
            r"format prompt has no texts; they are read from text; .* use fields: \{text: your column\}",
        ),
        (
            read_pairs,
            {"prompt": "a", "completion": "b"},
            r"format prompt_completion has no pairs; they are read from preference, hh, llmbar, ultrafeedback, ",
        ),
        (
            read_pairs,
            {"prompt": "a", "completion": "b", "label": True},
            r"format unpaired labels single completions and has no pairs; write chosen and rejected of one ",
        ),
        (read_groups, {"prompt": "a", "chosen": "b", "rejected": "c"}, r"format preference has no groups; "),
        (read_demonstrations, {"prompt": "a"}, r"format prompt has no demonstrations; "),
    ],
)
def test_a_file_without_what_is_wanted_says_where_it_is_read_from(
    tmp_path: Path, read: Read, row: object, message: str
):
    with pytest.raises(InputError, match=rf"^rows\.jsonl:? {message}"):
        read(source(tmp_path, row, bad_rows="drop"))


def test_a_format_that_cannot_hold_what_is_wanted_is_an_error_before_reading(tmp_path: Path):
    with pytest.raises(InputError, match=r"^rows\.jsonl: format alpaca has no pairs; they are read from "):
        read_pairs(source(tmp_path, {"chosen": "a"}, format="alpaca"))


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff\n"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, text: str):
    path = tmp_path / "x.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"^x\.jsonl: no rows$"):
        read_prompts(SourceSection(path=str(path)))


def test_manifests_of_exports_in_a_folder_are_no_rows(tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "pairs.manifest.json").write_text('{"records": 1}')
    assert [prompt.text for prompt in read_prompts(SourceSection(path=str(tmp_path))).rows] == ["Why?"]


def test_a_folder_is_one_source_with_rows_named_by_file(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "b.csv").write_text("prompt,note\nb,\n,empty\n")
    with pytest.raises(InputError, match=r"^b\.csv row 2: the last user turn is empty"):
        read_prompts(SourceSection(path=str(tmp_path)))
    loaded = read_prompts(SourceSection(path=str(tmp_path), bad_rows="drop"))
    assert [prompt.text for prompt in loaded.rows] == ["a", "b"]
    assert {prompt.source for prompt in loaded.rows} == {tmp_path.name}


def test_numbers_in_a_table_are_read_from_their_text(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,score_chosen,score_rejected\na,b,c,4.5,3\n")
    (pair,) = read_pairs(SourceSection(path=str(path))).rows
    assert pair.margin == 1.5


# --- recorded scores ----------------------------------------------------------------------------------------


def test_recorded_scores_go_by_prompt_and_place(tmp_path: Path):
    rows = [
        {"prompt": "a", "responses": ["x", "y"], "likes": [1, None]},
        {"prompt": "b", "responses": ["x"], "likes": [-0.5]},
        {"prompt": "a", "responses": ["z"], "likes": [7]},
    ]
    where = source(tmp_path, *rows)
    a, b = (group.prompt.id for group in read_groups(where).rows)
    assert read_recorded_scores(where.path, "likes") == {(a, 0): 1.0, (a, 1): None, (b, 0): -0.5}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1, float("nan")], "the score of completion 1 is nan, not a finite number"),
        ([float("-inf"), 1], "the score of completion 0 is -inf, not a finite number"),
        (["0.5", 1], "the score of completion 0 is '0.5'; use a number or null"),
        ([True, 1], "the score of completion 0 is True; use a number or null"),
        ([1], "1 scores for 2 completions"),
        ("high", "rewards is text, not a list"),
        (None, "a row needs prompt, responses and rewards, a list of numbers"),
    ],
)
def test_a_score_that_is_no_number_is_an_error_with_its_row(tmp_path: Path, scores: object, message: str):
    good = {"prompt": "a", "responses": ["x"], "rewards": [1]}
    where = source(tmp_path, good, {"prompt": "b", "responses": ["x", "y"], "rewards": scores})
    with pytest.raises(InputError) as caught:
        read_recorded_scores(where.path, "rewards")
    assert str(caught.value).startswith(f"rows.jsonl row 2: {message}")


def test_a_missing_score_column_is_named(tmp_path: Path):
    where = source(tmp_path, {"prompt": "a", "responses": ["x"]})
    with pytest.raises(InputError, match="no column 'rewards' to read as rewards; it has prompt, responses"):
        read_recorded_scores(where.path, "rewards")


# --- built in and digests -----------------------------------------------------------------------------------


def test_builtin_tales_are_read_without_a_file():
    for read, made in (
        (read_prompts, tales.prompts(20)),
        (read_demonstrations, tales.demonstrations(20)),
        (read_texts, tales.texts(20)),
    ):
        kind = read.__name__.removeprefix("read_")
        loaded = read(SourceSection(path=f"builtin:tales/{kind}", limit=10))
        assert loaded.rows == made[:10]
        assert (loaded.rows_in, loaded.dropped, loaded.format) == (10, {}, "builtin")


def test_an_unknown_builtin_lists_the_known_ones():
    known = "builtin:tales/prompts, builtin:tales/demonstrations, builtin:tales/texts"
    for read in (read_prompts, read_demonstrations, read_texts, read_pairs, read_groups):
        with pytest.raises(InputError, match=f"^builtin:tale: .*built in are {known}"):
            read(SourceSection(path="builtin:tale"))


def test_the_digest_depends_on_content_and_not_on_how_it_is_read(tmp_path: Path):
    plain = source(tmp_path, {"prompt": "a"})
    digest = source_digest(plain)
    changed = {
        "format": "prompt",
        "limit": 1,
        "bad_rows": "drop",
        "fields": {"prompt": "prompt"},
        "split": "x",
    }
    assert source_digest(plain.model_copy(update=changed)) == digest
    assert source_digest(source(tmp_path, {"prompt": "b"})) != digest
    assert source_digest(SourceSection(path="builtin:tales/texts")) == f"builtin:tales/texts@{tales.VERSION}"


# --- real data ----------------------------------------------------------------------------------------------


def shared(name: str, **options: object) -> SourceSection:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is absent; set PREFLOOP_SHARED to the folder that has data/")
    return SourceSection.model_validate({"path": str(path), **options})


@pytest.mark.shared
@pytest.mark.parametrize(
    ("read", "name", "options", "rows_in", "dropped", "format"),
    [
        (read_prompts, "wildchat_if/train.parquet", {}, 7544, {}, "prompt"),
        (read_prompts, "gsm8k/train.jsonl.gz", {}, 7473, {}, "prompt_completion"),
        (read_demonstrations, "gsm8k/test_half.jsonl.gz", {}, 660, {}, "prompt_completion"),
        (read_prompts, "self_instruct/user_oriented_instructions.jsonl", {}, 252, {}, "alpaca"),
        (read_demonstrations, "self_instruct/seed_tasks.jsonl", {}, 175, {}, "alpaca"),
        (
            read_demonstrations,
            "self_instruct/predictions_text-davinci-003.jsonl.gz",
            {"fields": {"output": "response"}},
            252,
            {},
            "alpaca",
        ),
        (read_prompts, "alpaca_eval/prompts_and_baseline.jsonl.gz", {}, 805, {}, "alpaca"),
        (read_prompts, "arena_hard/question_v0.1.jsonl.gz", {}, 500, {}, "prompt"),
        (read_prompts, "arena_hard/question_v2.0.jsonl.gz", {}, 750, {}, "prompt"),
        (read_prompts, "humaneval/HumanEval.jsonl.gz", {}, 164, {}, "prompt"),
        (read_prompts, "truthfulqa/TruthfulQA_v0.csv", {"fields": {"prompt": "Question"}}, 817, {}, "prompt"),
        (read_prompts, "llmbar/Natural.json", {"fields": {"prompt": "input"}}, 100, {}, "prompt"),
        (read_groups, "oasst_en100/ranked.jsonl.gz", {}, 150, {}, "groups"),
        (read_groups, "bon11_tulu_alpacaeval/groups.jsonl.gz", {}, 605, {}, "groups"),
    ],
)
def test_real_data_is_read_and_counted(
    read: Read, name: str, options: dict[str, object], rows_in: int, dropped: dict[str, int], format: str
):
    loaded = read(shared(name, **options))
    assert (loaded.rows_in, loaded.dropped, loaded.format) == (rows_in, dropped, format)
    assert loaded.rows_in == len(loaded.rows) + sum(loaded.dropped.values())


@pytest.mark.shared
def test_hh_rlhf_has_1812_pairs_and_two_unequal_prompts():
    # counted by hand: 4 chosen answers without text, 3 prompts with two assistant turns in a row
    loaded = read_pairs(shared("hh_rlhf/harmless_pairs.jsonl.gz", bad_rows="drop"))
    assert loaded.format == "hh"
    assert loaded.dropped == {"empty_completion": 4, "not_a_transcript": 3, "unequal_prompts": 2}
    assert loaded.rows_in == 1812 == len(loaded.rows) + 9


@pytest.mark.shared
def test_bon11_has_605_groups_of_16_and_11_recorded_scores_each():
    groups = read_groups(shared("bon11_tulu_alpacaeval/groups.jsonl.gz")).rows
    assert [len(group.completions) for group in groups] == [16] * 605
    path = SHARED / "data" / "bon11_tulu_alpacaeval/groups.jsonl.gz"
    scores = read_recorded_scores(str(path), "preference_vs_reference")
    assert len(scores) == 605 * 16
    judged = [place for (_, place), score in scores.items() if score is not None]
    assert sorted(judged) == [place for place in range(11) for _ in range(605)]
    assert {prompt for prompt, _ in scores} == {group.prompt.id for group in groups}


@pytest.mark.shared
def test_oasst_rankings_hold_507_human_pairs():
    groups = read_groups(shared("oasst_en100/ranked.jsonl.gz")).rows
    sizes = [len(group.completions) for group in groups]
    assert len(groups) == 150
    assert sum(size * (size - 1) // 2 for size in sizes) == 507
    assert (min(sizes), max(sizes)) == (2, 9)


@pytest.mark.shared
def test_gsm8k_answers_are_the_final_numbers():
    prompts = read_prompts(shared("gsm8k/test_half.jsonl.gz")).rows
    assert all(prompt.answer and prompt.answer.replace(",", "").lstrip("-").isdigit() for prompt in prompts)
