"""`annotations.json` both ways, the judge's tokens, and the order in which AlpacaEval shows answers."""

import gzip
import json
import math
import random

import pytest

from prefloop.interfaces import InputError
from prefloop.scoring.alpaca_annotations import (
    Annotation,
    is_swapped,
    logprobs_in,
    preference_from,
    preference_of,
    read_annotations,
    write_annotations,
)
from scored import command, write

FIGURES = ("num_rows", "win_rate", "standard_error", "discrete_win_rate", "lc_win_rate")


def annotation(number: int, preference: float | None) -> Annotation:
    return Annotation(
        f"question {number}", "a longer answer", "base", "an answer", "mine", "a judge", preference, "koala",
        0.01, 1.5, {"text": "M"},
    )  # fmt: skip


def test_what_is_written_is_read_back(tmp_path):
    rows = [annotation(1, 1.0), annotation(2, 1.7), annotation(3, None)]
    assert write_annotations(rows, tmp_path / "annotations.json") == 3
    assert read_annotations(str(tmp_path / "annotations.json")) == rows
    assert [one.name for one in tmp_path.iterdir()] == ["annotations.json"]


def test_a_preference_outside_its_scale_is_not_written(tmp_path):
    with pytest.raises(InputError, match="annotation 2: preference is 0.5; it goes from 1 to 2"):
        write_annotations([annotation(1, 1.0), annotation(2, 0.5)], tmp_path / "annotations.json")
    assert not list(tmp_path.iterdir())


def test_preferences_are_read_as_the_files_have_them():
    texts = {"1.25": 1.25, 2: 2.0, "0": 1.5, 1.5: 1.5, None: None, "nan": None, "": None}
    for raw, expected in texts.items():
        assert preference_of({"preference": raw}, "row") == expected
    with pytest.raises(InputError, match="row 3: preference is 2.5; it goes from 1"):
        preference_of({"preference": "2.5"}, "row 3")


def test_the_judges_tokens_become_a_preference():
    # P(m) = 0.2, P(M) = 0.6: the first shown wins one in four; m is the model's place where the order is swapped
    logprobs = {"m": math.log(0.2), "M": math.log(0.6), "The": -9.0}
    assert preference_from(logprobs, swapped=False) == pytest.approx(1.75)
    assert preference_from(logprobs, swapped=True) == pytest.approx(1.25)
    assert preference_from({"The": -0.1}, swapped=False) is None


def test_the_judges_tokens_are_found_where_chat_completions_have_them(tmp_path):
    top = [{"token": "M", "logprob": -0.1}, {"token": "m", "logprob": -2.5}]
    raw = {"logprobs": {"content": [{"token": "M", "top_logprobs": top}]}}
    assert logprobs_in(raw) == {"M": -0.1, "m": -2.5}
    for without in (None, "M", {"text": "M"}, {"logprobs": None}, {"logprobs": {"content": []}}):
        assert logprobs_in(without) is None
    # published tables have the text of a dict in place of one
    row = vars(annotation(1, 1.5)) | {"raw_completion": str(raw)}
    (found,) = read_annotations(write(tmp_path / "rows.jsonl", [row]))
    assert found.raw_completion == raw
    with pytest.raises(InputError, match="row 1: .*is cut off or no dict"):
        read_annotations(write(tmp_path / "rows.jsonl", [row | {"raw_completion": str(raw)[:20]}]))


@pytest.mark.shared
@pytest.mark.parametrize("model", ["phi-2", "vicuna-7b-v1.5"])
def test_published_annotations_score_the_same_after_a_round_trip(shared, tmp_path, model):
    folder = shared / "data" / "alpaca_eval"
    file = folder / "annotations_json" / f"{model}.json.gz"
    given = read_annotations(str(file))
    write_annotations(given, tmp_path / "annotations.json")
    originals = json.loads(gzip.decompress(file.read_bytes()))
    for old, new in zip(originals, json.loads((tmp_path / "annotations.json").read_text()), strict=True):
        assert new == old
    (before,), (after,) = (
        command("score", "alpaca-eval", one, "--inputs", folder, "--draws", 2)
        for one in (file, tmp_path / "annotations.json")
    )
    assert before == after


@pytest.mark.shared
def test_stored_tokens_and_the_order_rule_give_the_published_preferences(shared):
    file = shared / "data" / "alpaca_eval" / "annotations_json" / "vicuna-7b-v1.5.json.gz"
    decided = 0
    for one in read_annotations(str(file)):
        logprobs = logprobs_in(one.raw_completion)
        if logprobs is None or one.preference is None:
            continue
        found = preference_from(logprobs, swapped=is_swapped(one.instruction))
        assert found == pytest.approx(one.preference, abs=1e-6)
        decided += 1
    assert decided > 750


def test_the_order_rule_is_that_of_a_fixed_seed():
    swapped = [is_swapped(f"question {number}") for number in range(1000)]
    assert 440 < sum(swapped) < 560
    assert is_swapped("x") == random.Random("is_switched_outputsx0").choices([False, True])[0]
