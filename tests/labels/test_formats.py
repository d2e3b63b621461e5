"""Exports: what each format holds, what stays behind and why, and files that are whole, repeatable and safe to open."""

import json
import re
import tracemalloc
from pathlib import Path

import pytest

from labels.making import exported, form, one_of_each, pair, prompt, ranking, row
from prefloop.config import SourceSection
from prefloop.data import read_pairs
from prefloop.interfaces import InputError
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.reading import read_raw
from prefloop.labels.formats.screening import reserved
from prefloop.labels.formats.table import FORMATS
from prefloop.labels.formats.writing import count_export, write_export
from prefloop.labels.projects import INSTRUCTGPT_FORM
from prefloop.labels.rows import RowCompletion, in_order
from prefloop.records import Message, PreferencePair, judgement_adapter
from prefloop.verdicts import read_rule_verdicts

HELLO = [{"role": "user", "content": "Hello"}]
ONE = [{"role": "assistant", "content": "one"}]
TWO = [{"role": "assistant", "content": "two"}]

# --- pairs -----------------------------------------------------------------------------------------------------------


def test_an_explicit_preference_has_prompt_and_answers_as_turns(tmp_path: Path):
    records, _ = exported([pair(1, judgement_id=7)], "trl-preference", tmp_path)
    assert records == [
        {
            "prompt": HELLO,
            "chosen": ONE,
            "rejected": TWO,
            "margin": 1.0,
            "group_id": "t000007:7",
            "group_weight": 1.0,
        }
    ]


def test_an_implicit_preference_has_whole_conversations(tmp_path: Path):
    records, _ = exported([pair(8)], "trl-preference-implicit", tmp_path)
    assert "prompt" not in records[0]
    assert (records[0]["chosen"], records[0]["rejected"]) == (HELLO + TWO, HELLO + ONE)


@pytest.mark.parametrize(
    ("strength", "chosen", "margin"),
    [(1, ONE, 1), (2, ONE, 2 / 3), (3, ONE, 1 / 3), (4, ONE, 0), (5, TWO, 0), (6, TWO, 1 / 3), (7, TWO, 2 / 3), (8, TWO, 1)],
)  # fmt: skip
def test_a_strength_is_a_side_and_a_margin(tmp_path: Path, strength: int, chosen, margin: float):
    (record,), _ = exported([pair(strength)], "trl-preference", tmp_path)
    assert (record["chosen"], record["margin"]) == (chosen, margin)


def test_margins_are_what_the_options_say_or_are_left_out(tmp_path: Path):
    (large,), _ = exported([pair(2)], "trl-preference", tmp_path, margins=(3, 2, 1, 0))
    assert large["margin"] == 2
    (bare,), _ = exported([pair(2)], "trl-preference", tmp_path, margins=None)
    assert "margin" not in bare


def test_the_weakest_strength_can_stay_behind(tmp_path: Path):
    rows = [pair(4, prompt="a"), pair(5, prompt="b"), pair(6, prompt="c")]
    records, manifest = exported(rows, "trl-preference", tmp_path, weakest="drop")
    assert (len(records), manifest.drops) == (1, {"weakest_strength": 2})


def test_a_ranking_gives_all_pairs_that_are_not_tied_and_counts_once(tmp_path: Path):
    rows = [ranking([[2], [0, 1], [3]], "A", "B", "C", "D")]
    records, manifest = exported(rows, "trl-preference", tmp_path)
    sides = {(one["chosen"][0]["content"], one["rejected"][0]["content"]) for one in records}
    assert sides == {("C", "A"), ("C", "B"), ("C", "D"), ("A", "D"), ("B", "D")}
    assert {one["group_weight"] for one in records} == {0.2}
    assert len({one["group_id"] for one in records}) == 1
    assert (manifest.rows_in, manifest.rows_out, manifest.records) == (1, 1, 5)


def test_a_choice_among_three_beats_the_two_others(tmp_path: Path):
    rows = [row("chat", {"choice": "b", "strength": None}, "x", "y", "z")]
    records, _ = exported(rows, "trl-preference", tmp_path)
    assert [(one["chosen"][0]["content"], one["rejected"][0]["content"]) for one in records] == [
        ("y", "x"),
        ("y", "z"),
    ]
    assert [one["group_weight"] for one in records] == [0.5, 0.5]


def test_an_edit_is_better_than_what_it_was_made_from(tmp_path: Path):
    (record,), _ = exported([row("edit", {"text": "two"}, "one")], "trl-preference", tmp_path)
    assert (record["chosen"], record["rejected"]) == (TWO, ONE)


def test_llama2_classes_come_from_the_strength(tmp_path: Path):
    rows = [pair(strength, prompt=f"p{strength}") for strength in (1, 7, 3, 5)]
    rows.append(ranking([[0], [1]], "x", "y", prompt="p9"))
    records, manifest = exported(rows, "llama2-margin", tmp_path)
    told = {one["prompt"][0]["content"]: (one["strength"], one["margin"]) for one in records}
    assert told == {
        "p1": ("significantly_better", 1.0),
        "p7": ("better", 2 / 3),
        "p3": ("slightly_better", 1 / 3),
        "p5": ("negligibly_better_or_unsure", 0.0),
    }
    assert manifest.drops == {"not_for_this_format": 1}


def test_binarized_scores_are_steps_of_the_strength_or_places(tmp_path: Path):
    rows = [
        pair(7, prompt="strip"),
        ranking([[1], [0]], "x", "y", prompt="rank"),
        pair(None, choice="a", prompt="bare"),
    ]
    records, _ = exported(rows, "ultrafeedback-binarized", tmp_path)
    scores = {one["prompt"]: (one["score_chosen"], one["score_rejected"]) for one in records}
    assert scores == {"strip": (7.0, 2.0), "rank": (2.0, 1.0), "bare": (1.0, 0.0)}
    strip = next(one for one in records if one["prompt"] == "strip")
    assert strip["chosen"] == strip["messages"] == [{"role": "user", "content": "strip"}, *TWO]


# --- soft preferences ------------------------------------------------------------------------------------------------


def votes(*said: dict) -> list:
    """Votes of x0, x1, ... on one task."""
    return [
        pair(one.get("strength"), choice=one.get("choice"), task_id="t", annotator=f"x{place}")
        for place, one in enumerate(said)
    ]


def test_soft_preferences_are_the_share_of_the_votes(tmp_path: Path):
    rows = votes({"choice": "b"}, {"choice": "b"}, {"choice": "a"}, {"choice": "both_bad"})
    (record,), manifest = exported(rows, "soft-pref", tmp_path)
    assert (record["chosen"], record["num_votes"]) == (TWO, 3)
    assert record["p_chosen"] == pytest.approx(2 / 3)
    assert (manifest.rows_out, manifest.drops) == (3, {"both_bad": 1})


def test_ties_count_half_and_the_weakest_strength_a_little_more(tmp_path: Path):
    (record,), _ = exported(votes({"choice": "tie"}, {"strength": 4}), "soft-pref", tmp_path)
    assert record["p_chosen"] == pytest.approx((0.5 + 0.55) / 2)


def test_votes_weigh_as_the_options_say(tmp_path: Path):
    rows = votes({"choice": "a"}, {"choice": "b"})
    (record,), _ = exported(rows, "soft-pref", tmp_path, annotator_weights={"x0": 3.0})
    assert (record["chosen"], record["p_chosen"]) == (ONE, 0.75)
    assert record["annotator_weights"] == [
        {"annotator": "x0", "weight": 3.0},
        {"annotator": "x1", "weight": 1.0},
    ]


def test_votes_that_balance_are_a_tie(tmp_path: Path):
    rows = [*votes({"choice": "a"}, {"choice": "b"}), pair(1, prompt="z")]
    records, manifest = exported(rows, "soft-pref", tmp_path)
    assert (len(records), manifest.drops) == (1, {"tie": 2})


def test_soft_rankings_compare_all_pairs(tmp_path: Path):
    rows = [
        ranking([[0], [1], [2]], "A", "B", "C", task_id="t"),
        ranking([[1], [0, 2]], "A", "B", "C", task_id="t"),
    ]
    records, _ = exported(rows, "soft-pref", tmp_path)
    told = {(one["chosen"][0]["content"], one["rejected"][0]["content"]): one["p_chosen"] for one in records}
    # A over B: 1 and 0, a tie; A over C: 1 and 1/2; B over C: 1 and 1
    assert told == {("A", "C"): 0.75, ("B", "C"): 1.0}
    assert {one["group_weight"] for one in records} == {0.5}


# --- one completion --------------------------------------------------------------------------------------------------


def test_unpaired_labels_come_from_ratings_flags_and_both_bad(tmp_path: Path):
    rows = [
        form("good", {"overall": 5}, prompt="1"),
        form("poor", {"overall": 3}, prompt="2"),
        form("middling", {"overall": 4}, prompt="3"),
        form("flagged", {"overall": 7}, {"hallucination": True}, prompt="4"),
        pair(None, choice="both_bad", prompt="5"),
        pair(1, prompt="6"),
    ]
    records, manifest = exported(rows, "trl-unpaired", tmp_path)
    labels = [(one["completion"][0]["content"], one["label"]) for one in records]
    assert labels == [("good", True), ("poor", False), ("flagged", False), ("one", False), ("two", False)]
    assert manifest.drops == {"neutral": 1, "not_for_this_format": 1}


def test_flags_that_only_describe_make_no_completion_bad(tmp_path: Path):
    flags = {"satisfies_constraint": True, "opinion": True, "hallucination": False}
    (record,), _ = exported([form("x", {"overall": 6}, flags)], "trl-unpaired", tmp_path)
    assert record["label"] is True
    (record,), _ = exported(
        [form("x", {"overall": 6}, flags)], "trl-unpaired", tmp_path, bad_flags=("opinion",)
    )
    assert record["label"] is False


def test_every_bad_flag_is_one_of_the_default_form():
    assert set(ExportOptions().bad_flags) <= {field.name for field in INSTRUCTGPT_FORM}


def test_siblings_give_their_shared_steps_to_the_prompt(tmp_path: Path):
    value = {"choice": "a", "strength": 1, "labels": ["correct", "incorrect"]}
    records, _ = exported([row("steps", value, "First.\nSo 2.", "First.\nSo 3.")], "trl-stepwise", tmp_path)
    assert records == [
        {"prompt": "Hello\n\nFirst.\n", "completions": ["So 2."], "labels": [True]},
        {"prompt": "Hello\n\nFirst.\n", "completions": ["So 3."], "labels": [False]},
    ]


def test_steps_after_an_unsure_one_are_left_out(tmp_path: Path):
    judged = row("steps", {"labels": [["correct", "incorrect", "unsure", "correct"]]})
    steps = ("a", "b", "c", "d")
    judged = type(judged)(**{**fields(judged), "completions": (RowCompletion("c", "abcd", steps=steps),)})
    records, _ = exported([judged], "trl-stepwise", tmp_path)
    assert records == [{"prompt": "Hello", "completions": ["a", "b"], "labels": [True, False]}]


def fields(judged) -> dict:
    return {name: getattr(judged, name) for name in judged.__slots__}


def test_conversations_to_imitate_are_written_edited_or_chosen(tmp_path: Path):
    rows = [
        row("demonstration", {"text": "Hi."}, prompt="1"),
        row("edit", {"text": "Hey."}, "Ho.", prompt="2"),
        pair(8, prompt="3"),
        ranking([[1], [0], [2]], "x", "y", "z", prompt="4"),
        ranking([[0, 1], [2]], "x", "y", "z", prompt="5"),
    ]
    records, manifest = exported(rows, "sft", tmp_path)
    assert [one["messages"][-1]["content"] for one in records] == ["Hi.", "Hey.", "two", "y"]
    assert all([turn["role"] for turn in one["messages"]] == ["user", "assistant"] for one in records)
    assert manifest.drops == {"tie": 1}
    records, manifest = exported(rows, "sft", tmp_path, sft_sources=("demonstration",))
    assert (len(records), manifest.drops) == (1, {"not_for_this_format": 4})


def test_a_demonstration_may_repeat_the_prompt(tmp_path: Path):
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    (record,), _ = exported([row("demonstration", {"messages": messages})], "sft", tmp_path)
    assert record["messages"] == messages


def test_prompts_are_those_that_people_wrote_and_each_judged_one_once(tmp_path: Path):
    rows = [
        pair(1, prompt="What?", task_id="t1"),
        pair(2, prompt="What?", task_id="t2"),
        row("prompt", {"text": "Why?", "style": "few_shot", "examples": [["How?", "So."]]}),
    ]
    records, manifest = exported(rows, "trl-prompt", tmp_path)
    told = [[turn["content"] for turn in one["prompt"]] for one in records]
    assert sorted(told) == [["How?", "So.", "Why?"], ["What?"]]
    assert manifest.rows_out == 3


# --- transcripts -----------------------------------------------------------------------------------------------------


def test_hh_transcripts_share_all_but_the_last_answer(tmp_path: Path):
    (record,), _ = exported([pair(8, prompt=prompt("a", "b\n", "c"))], "hh-rlhf", tmp_path)
    before = "\n\nHuman: a\n\nAssistant: b\n\n\nHuman: c\n\nAssistant: "
    assert record == {"chosen": before + "two", "rejected": before + "one"}


@pytest.mark.parametrize("text", ["x\n\nHuman: y", "x\n\nAssistant: y", "\n\nHuman:y"])
@pytest.mark.parametrize("place", ["prompt", "chosen", "rejected"])
def test_text_with_a_role_marker_is_no_transcript(tmp_path: Path, text: str, place: str):
    texts = {"prompt": "q", "chosen": "one", "rejected": "two"} | {place: text}
    bad = pair(1, prompt=texts["prompt"], texts=(texts["chosen"], texts["rejected"]))
    records, manifest = exported([bad, pair(1, prompt="fine")], "hh-rlhf", tmp_path)
    assert (len(records), manifest.drops) == (1, {"role_marker": 1})


def test_a_system_turn_is_no_transcript(tmp_path: Path):
    asked = prompt("q")
    asked = type(asked)("s", (Message(role="system", content="Be kind."), *asked.messages))
    _, manifest = exported([pair(1, prompt=asked), pair(1, prompt="fine")], "hh-rlhf", tmp_path)
    assert manifest.drops == {"not_for_this_format": 1}


def test_an_attack_has_transcript_rating_task_and_tags(tmp_path: Path):
    value = {
        "levels": {"no medical advice": "probably_break"},
        "attack": {"success": 4, "harm": 2, "actionability": 1},
    }
    (record,), _ = exported(
        [row("rules", value, "Take two.", prompt=prompt("What helps?", tags=("medical",)))],
        "hh-redteam",
        tmp_path,
    )
    assert record == {
        "transcript": "\n\nHuman: What helps?\n\nAssistant: Take two.",
        "rating": 4,
        "task": "",
        "tags": ["medical"],
        "attack": {"harm": 2, "actionability": 1},
        "rules": {"no medical advice": "probably_break"},
    }


def test_a_probe_is_a_row_that_a_rule_model_reads(tmp_path: Path):
    levels = {"medical": "probably_break", "rude": "unsure"}
    words = {"medical": "Do not give medical advice.", "rude": "Do not insult."}
    judged = row(
        "rules", {"levels": levels}, "Take two.", prompt="What helps?", payload={"rule_texts": words}
    )
    unnamed = row("rules", {"levels": {"other": "definitely_follow"}}, "Rest.")
    records, manifest = exported([judged, unnamed, pair(1)], "rule-verdicts", tmp_path)
    said = [{"role": "user", "content": "What helps?"}, {"role": "assistant", "content": "Take two."}]
    assert records == [
        {"messages": said, "rule": "Do not give medical advice.", "verdict": "probably_break"},
        {"messages": said, "rule": "Do not insult.", "verdict": "unsure"},
    ]
    assert manifest.drops == {"rule_without_words": 1, "not_for_this_format": 1}
    loaded = read_rule_verdicts(SourceSection(path=str(tmp_path / "out.jsonl")))
    assert [(one.rule, one.violated) for one in loaded.rows] == [("Do not give medical advice.", True)]
    assert loaded.dropped == {"unsure": 1}


# --- ratings ---------------------------------------------------------------------------------------------------------


def test_ultrafeedback_has_the_mean_of_each_rating_by_completion(tmp_path: Path):
    rows = [
        form("one", {"overall": 6, "honesty": 4}, task_id="t1", annotator="x"),
        form("one", {"overall": 3, "honesty": 5}, task_id="t1", annotator="y", comment="meh"),
        form("two", {"overall": 2}, task_id="t2"),
    ]
    (record,), manifest = exported(rows, "ultrafeedback", tmp_path)
    assert record["instruction"] == "Hello"
    assert record["models"] == ["policy-o", "policy-t"]
    first, second = record["completions"]
    assert (first["response"], first["overall_score"], first["critique"]) == ("one", 4.5, "meh")
    assert first["annotations"] == {"honesty": {"Rating": "4.5", "Rationale": ""}}
    assert (second["response"], second["overall_score"]) == ("two", 2)
    assert (manifest.rows_out, manifest.records) == (3, 1)


def test_ratings_off_the_scale_stay_behind(tmp_path: Path):
    rows = [form("one", {"overall": 10}, task_id="1"), form("two", {"overall": 7}, task_id="2")]
    (record,), manifest = exported(rows, "ultrafeedback", tmp_path)
    assert [one["response"] for one in record["completions"]] == ["two"]
    assert manifest.drops == {"out_of_range": 1}


# --- other tools -----------------------------------------------------------------------------------------------------


def test_an_argilla_record_has_everybodys_responses_and_settings_that_fit(tmp_path: Path):
    rows = [
        pair(2, task_id="t", annotator="x", comment="ok"),
        pair(None, choice="tie", task_id="t", annotator="y"),
    ]
    (record,), _ = exported(rows, "argilla", tmp_path, guidelines="Be fair.")
    assert record["fields"] == {"prompt": HELLO, "a": "one", "b": "two"}
    assert [one["value"] for one in record["responses"]["preference"]] == ["a", "tie"]
    assert [one["value"] for one in record["responses"]["strength"]] == [2]
    assert len({one["user_id"] for one in record["responses"]["preference"]}) == 2
    settings = json.loads((tmp_path / "out.settings.json").read_text())
    assert {one["name"] for one in settings["fields"]} == set(record["fields"])
    assert set(record["responses"]) <= {one["name"] for one in settings["questions"]}
    assert settings["guidelines"] == "Be fair."


def test_argilla_keeps_no_ties_in_rankings(tmp_path: Path):
    rows = [
        ranking([[1], [0], [2]], "x", "y", "z", prompt="1"),
        ranking([[1], [0, 2]], "x", "y", "z", prompt="2"),
    ]
    (record,), manifest = exported(rows, "argilla", tmp_path)
    assert record["responses"]["ranking"][0]["value"] == ["b", "a", "c"]
    assert manifest.drops == {"tie": 1}


def test_a_label_studio_task_has_regions_of_the_documented_types(tmp_path: Path):
    rows = [pair(8, task_id="t", active_ms=1500), pair(None, choice="both_bad", task_id="t", annotator="y")]
    (task,), _ = exported(rows, "labelstudio", tmp_path)
    assert (task["data"]["prompt"], task["data"]["a"], task["data"]["b"]) == ("Hello", "one", "two")
    first, second = task["annotations"]
    assert first["lead_time"] == 1.5
    assert first["result"] == [
        {"from_name": "preference", "to_name": "a,b", "type": "pairwise", "value": {"selected": "right"}},
        {"from_name": "strength", "to_name": "prompt", "type": "rating", "value": {"rating": 8}},
    ]
    assert second["result"][0]["value"] == {"choices": ["both_bad"]}
    config = (tmp_path / "out.config.xml").read_text()
    assert '<Pairwise name="preference" toName="a,b"/>' in config


def test_label_studio_names_are_escaped(tmp_path: Path):
    exported([form("one", {'"><x/>': 3})], "labelstudio", tmp_path, guidelines="a < b")
    config = (tmp_path / "out.config.xml").read_text()
    assert "<x/>" not in config
    assert "a &lt; b" in config


@pytest.mark.parametrize("format", ["argilla", "labelstudio"])
def test_settings_are_for_one_kind_of_task(tmp_path: Path, format: str):
    with pytest.raises(InputError, match="one kind of task, not form and pairwise"):
        exported([pair(1, prompt="1"), form("x", {"overall": 1}, prompt="2")], format, tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- prefloop's own --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all.jsonl", "all.json", "all.parquet"])
def test_raw_judgements_are_read_back_equal(tmp_path: Path, name: str):
    rows = one_of_each()
    manifest = write_export(rows, "judgements-raw", tmp_path / name)
    assert list(read_raw(tmp_path / name)) == rows
    assert (manifest.rows_out, manifest.drops) == (len(rows), {})


def test_pairs_are_records_of_the_loop(tmp_path: Path):
    records, _ = exported([pair(4), ranking([[0], [1], [2]], "x", "y", "z", prompt="z")], "pairs", tmp_path)
    read = [PreferencePair.model_validate(one) for one in records]
    assert [one.p_chosen for one in read] == [0.55, 1, 1, 1]
    assert [one.weight for one in read] == [
        1,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    ]
    assert (read[0].chosen.policy, read[0].annotator) == ("policy-o", "human/ann")


def test_judgements_are_records_of_the_loop(tmp_path: Path):
    rows = [
        pair(6, prompt="1", presented_order=(1, 0)),
        pair(None, choice="tie", prompt="2"),
        pair(None, choice="both_bad", prompt="3"),
        form("one", {"overall": 6, "kind": 2}, prompt="4"),
        ranking([[1], [0, 2]], "x", "y", "z", prompt="5"),
    ]
    records, manifest = exported(rows, "judgements", tmp_path)
    read = [judgement_adapter.validate_python(one) for one in records]
    assert [one.type for one in read] == ["comparison", "comparison", "refusal", "score", *["comparison"] * 3]
    assert (records[0]["p_a"], records[0]["strength"], records[0]["presented"]) == (0.0, 6, "ba")
    assert records[1]["p_a"] == 0.5
    assert (records[3]["value"], records[3]["parts"]) == (6, {"overall": 6, "kind": 2})
    assert [(one["a"], one["b"], one["p_a"]) for one in records[4:]] == [
        ("c-y", "c-x", 1.0),
        ("c-y", "c-z", 1.0),
        ("c-x", "c-z", 0.5),
    ]
    assert sum(one.labels for one in read) == manifest.rows_in


@pytest.mark.parametrize(
    "format",
    ["trl-preference", "trl-preference-implicit", "hh-rlhf", "ultrafeedback-binarized", "llama2-margin"],
)
def test_training_reads_exported_pairs(tmp_path: Path, format: str):
    exported([pair(7, prompt=prompt("a", "b", "c"))], format, tmp_path)
    (read,) = read_pairs(SourceSection(path=str(tmp_path / "out.jsonl"))).rows
    assert [one.content for one in read.prompt.messages] == ["a", "b", "c"]
    assert (read.chosen.text, read.rejected.text) == ("two", "one")
    assert read.margin == {"hh-rlhf": 1.0, "ultrafeedback-binarized": 7.0 - 2.0}.get(format, 2 / 3)


# --- what stays behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("argilla", "labelstudio")])
def test_rows_in_are_rows_out_and_drops(tmp_path: Path, format: str):
    rows = one_of_each()
    _, manifest = exported(rows, format, tmp_path, weakest="drop")
    assert manifest.rows_in == len(rows)
    assert manifest.rows_in == manifest.rows_out + sum(manifest.drops.values())
    assert sum(manifest.sources.values()) == sum(manifest.annotator_kinds.values()) == manifest.rows_out


def test_drops_are_counted_by_reason(tmp_path: Path):
    _, manifest = exported(one_of_each(), "hh-rlhf", tmp_path, weakest="drop")
    assert manifest.drops == {
        "both_bad": 1,
        "empty": 1,
        "flagged": 1,
        "gold": 1,
        "identical": 1,
        "late": 1,
        # three forms, rules, a demonstration and a written prompt
        "not_for_this_format": 6,
        "repeat": 1,
        "reserved": 1,
        "role_marker": 1,
        "superseded": 1,
        "surplus": 1,
        "tie": 2,
        "weakest_strength": 1,
    }


TRAINING = [name for name, one in FORMATS.items() if one.keeps == "training"]


@pytest.mark.parametrize("format", TRAINING)
def test_gold_and_held_out_prompts_never_enter_training_data(tmp_path: Path, format: str):
    rows = one_of_each()
    held = [type(one)(**{**fields(one), "is_gold": True}) for one in rows]
    with pytest.raises(InputError, match="nothing to export"):
        exported(held, format, tmp_path)
    with pytest.raises(InputError, match="nothing to export"):
        exported(rows, format, tmp_path, reserved_share=0.999999999)
    assert not (tmp_path / "out.jsonl").exists()


def test_held_out_prompts_are_a_share_and_stay_held_out_as_it_grows():
    ids = [f"{number:016x}" for number in range(20_000)]
    small = {id for id in ids if reserved(id, 0.1)}
    # five standard deviations of a binomial with p = 0.1
    assert abs(len(small) - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert small < {id for id in ids if reserved(id, 0.2)}
    assert not any(reserved(id, 0.0) for id in ids)


def test_comparisons_that_agree_too_little_stay_behind(tmp_path: Path):
    rows = votes({"choice": "a"}, {"choice": "a"}, {"choice": "b"})
    rows += [
        pair(1, prompt="single"),
        *(pair(1, prompt="agreed", task_id="u", annotator=who) for who in "xy"),
    ]
    _, manifest = exported(rows, "trl-preference", tmp_path, min_agreement=0.7)
    assert (manifest.rows_out, manifest.drops) == (3, {"low_agreement": 3})
    _, manifest = exported(rows, "trl-preference", tmp_path, min_agreement=0.66)
    assert manifest.drops == {}


def test_near_duplicates_of_other_tasks_stay_behind_but_votes_do_not(tmp_path: Path):
    rows = [
        pair(1, prompt=prompt("Hello  there", id="p1"), task_id="t1", annotator="x"),
        pair(1, prompt=prompt("Hello  there", id="p1"), task_id="t1", annotator="y"),
        pair(1, prompt=prompt("hello THERE", id="p2"), task_id="t2"),
        pair(8, prompt=prompt("hello there", id="p3"), task_id="t3"),
    ]
    _, manifest = exported(rows, "trl-preference", tmp_path)
    assert (manifest.rows_out, manifest.drops) == (3, {"near_duplicate": 1})
    _, manifest = exported(rows, "trl-preference", tmp_path, near_duplicates="keep")
    assert manifest.drops == {}


def test_pairs_that_are_lost_from_a_ranking_are_counted(tmp_path: Path):
    rows = [ranking([[0], [1], [2]], "x", "y", "\n\nHuman: z")]
    records, manifest = exported(rows, "hh-rlhf", tmp_path)
    assert len(records) == 1
    assert (manifest.drops, manifest.records_dropped) == ({}, {"role_marker": 2})


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out.parquet", "out.csv"])
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, name: str):
    rows = in_order(one_of_each())
    digests = set()
    for folder in ("first", "second"):
        digests.add(write_export(rows, "trl-preference", tmp_path / folder / name).sha256)
    assert len(digests) == 1
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_manifest_says_what_the_file_holds(tmp_path: Path):
    rows = [
        pair(1, prompt=prompt("a", source="wild")),
        pair(1, prompt=prompt("b", source="wild"), annotator_kind="ai"),
    ]
    _, manifest = exported(rows, "trl-preference", tmp_path, filter={"project": "p"}, watermark=17)
    told = json.loads((tmp_path / "out.manifest.json").read_text())
    assert told == json.loads(manifest.model_dump_json())
    assert (told["watermark"], told["filter"], told["sources"]) == (17, {"project": "p"}, {"wild": 2})
    assert told["annotator_kinds"] == {"ai": 1, "human": 1}


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path):
    out = tmp_path / "out.jsonl"
    write_export([pair(1)], "trl-preference", out)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def broken():
        yield pair(1, prompt="a")
        raise RuntimeError("the store is gone")

    with pytest.raises(RuntimeError):
        write_export(broken(), "trl-preference", out)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_rows_out_of_order_are_refused(tmp_path: Path):
    rows = [pair(1, prompt="b"), pair(1, prompt="a")]
    with pytest.raises(InputError, match="out of order; sort them by prompt, task, judgement"):
        write_export(rows, "trl-preference", tmp_path / "out.jsonl")


def test_nothing_to_export_says_what_stayed_behind(tmp_path: Path):
    with pytest.raises(InputError, match="1 rows in, tie 1"):
        write_export([pair(None, choice="tie")], "trl-preference", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_and_an_unknown_ending_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no export format 'trl'; choose trl-preference"):
        write_export([pair(1)], "trl", tmp_path / "out.jsonl")
    with pytest.raises(InputError, match=r"exports are .jsonl, .json, .parquet or .csv files"):
        write_export([pair(1)], "sft", tmp_path / "out.txt")
    with pytest.raises(InputError, match=r"rows of ultrafeedback are nested"):
        write_export([pair(1)], "ultrafeedback", tmp_path / "out.csv")


def test_a_dry_run_counts_what_an_export_would_hold(tmp_path: Path):
    rows = in_order(one_of_each())
    counts = count_export(rows, "soft-pref")
    manifest = write_export(rows, "soft-pref", tmp_path / "out.jsonl")
    assert (counts.rows_in, counts.rows_out, counts.records) == (
        manifest.rows_in,
        manifest.rows_out,
        manifest.records,
    )
    assert dict(counts.drops) == manifest.drops


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_a_csv_file_is_a_formula(tmp_path: Path, start: str):
    import csv

    value = {"attack": {"success": -1, "task": f"{start}cmd()"}, "levels": {}}
    out = tmp_path / "out.csv"
    write_export([row("rules", value, "x")], "hh-redteam", out)
    with out.open(newline="") as file:
        (record,) = csv.DictReader(file)
    assert record["task"] == f"'{start}cmd()"
    assert record["rating"] == "-1"


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out.parquet", "out.csv"])
def test_half_a_surrogate_pair_is_named(tmp_path: Path, name: str):
    with pytest.raises(InputError, match=rf"{name}: judgement 77, or one shortly before, cannot be written"):
        write_export([pair(1, texts=("\ud800", "x"), judgement_id=77)], "trl-preference", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_json_does_not_have_are_named_and_words_that_sound_like_them_are_not(tmp_path: Path):
    exported([pair(1, texts=("NaN", "Infinity"))], "trl-preference", tmp_path)
    bad = row("form", {"ratings": {"overall": float("nan")}, "flags": {}}, "x", judgement_id=78)
    with pytest.raises(InputError, match="judgement 78"):
        exported([bad], "judgements-raw", tmp_path)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    def rows(number: int):
        for place in range(number):
            yield pair(
                1,
                prompt=prompt("x" * 1000, id=f"{place:09}"),
                task_id=f"{place:09}",
                texts=(f"{place}", "y" * 1000),
            )

    peaks = []
    for number in (500, 5000):
        tracemalloc.start()
        write_export(rows(number), "trl-preference", tmp_path / "out.jsonl")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # ten times the rows hold 9 MB more text; what stays is a hash of each
    assert peaks[1] - peaks[0] < 4500 * 200


# --- personal data ---------------------------------------------------------------------------------------------------

REDACTION = """
def mask(text):
    return text.replace("Ann", "[name]")

def number(text):
    return 3

def fails(text):
    raise KeyError("x")
"""


@pytest.fixture
def redaction(tmp_path: Path) -> str:
    file = tmp_path / "personal.py"
    file.write_text(REDACTION)
    return str(file)


def test_personal_data_leaves_every_text(tmp_path: Path, redaction: str):
    rows = [
        row(
            "edit",
            {"text": "Ann!"},
            "Ann?",
            prompt=prompt("Is Ann in?", id="a", answer="Ann"),
            comment="Ann is a friend",
            payload={"example": "Ann"},
        ),
        row("form", {"ratings": {}, "flags": {}, "texts": {"why": "Ann"}}, "x", prompt="b"),
        row("prompt", {"text": "Ann", "examples": [["Ann", "Ann"]], "style": "few_shot"}, prompt="c"),
    ]
    exported(rows, "judgements-raw", tmp_path, redact=f"{redaction}:mask")
    text = (tmp_path / "out.jsonl").read_text()
    told = [json.loads(line) for line in text.splitlines()]
    assert text.count("[name]") == 10
    assert "Ann" not in json.dumps(
        [[one["prompt"], one["value"], one["comment"], one["payload"]] for one in told]
    )


def test_token_ids_of_changed_text_do_not_leave(tmp_path: Path, redaction: str):
    judged = pair(1, texts=("Ann", "Bob"))
    with_tokens = tuple(RowCompletion(one.id, one.text, token_ids=(1, 2)) for one in judged.completions)
    judged = type(judged)(**{**fields(judged), "completions": with_tokens})
    (record,), _ = exported([judged], "judgements-raw", tmp_path, redact=f"{redaction}:mask")
    assert [one["token_ids"] for one in record["completions"]] == [None, [1, 2]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "the redaction returned int; return text"),
        ("fails", "the redaction failed: KeyError"),
        ("missing", "no function 'missing'"),
    ],
)
def test_a_redaction_that_does_not_work_stops_the_export(
    tmp_path: Path, redaction: str, name: str, message: str
):
    with pytest.raises(InputError, match=message):
        exported([pair(1)], "sft", tmp_path, redact=f"{redaction}:{name}")
    assert not (tmp_path / "out.jsonl").exists()


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"bad_to = 5.0 must be below good_from = 5.0"):
        ExportOptions(bad_to=5)


# --- documentation ---------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "export-labels.md"
SAMPLES = dict(
    re.findall(
        r"^#### (\S+)\n\n```json\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
)


@pytest.mark.parametrize("format", SAMPLES)
def test_documented_rows_have_the_fields_that_are_written(tmp_path: Path, format: str):
    rows = one_of_each()
    if format in ("argilla", "labelstudio"):
        rows = [one for one in rows if one.task_kind == "pairwise"]
    records, _ = exported(rows, format, tmp_path)
    assert list(json.loads(SAMPLES[format])) == list(records[0])


def test_every_format_is_documented():
    assert set(SAMPLES) == set(FORMATS) - {"pairs", "judgements"}
    table = PAGE.read_text(encoding="utf-8").split("## Formats")[1].split("###")[0]
    assert all(f"`{name}`" in table for name in FORMATS)
