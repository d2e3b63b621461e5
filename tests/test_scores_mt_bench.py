"""MT-bench: ratings, wrong references, names, and pairs judged in both orders, by hand."""

import pytest

from prefloop.interfaces import InputError
from prefloop.scoring import mt_bench, mt_bench_pairs
from scored import command, write

# --- ratings ---------------------------------------------------------------------------------------------------------


def test_ratings_that_cannot_be_are_counted_and_left_out(tmp_path):
    rows = [{"question_id": 81, "model": "m", "judgment": f"[[{value}]]"} for value in (4, 0, 11, 6, "good")]
    (found,) = mt_bench.score(write(tmp_path / "ratings.jsonl", rows), draws=2)
    assert found.figures["mean"].value == 5
    assert found.dropped == {"rating_out_of_range": 2, "unreadable_rating": 1}


def test_a_rating_is_the_first_in_double_brackets():
    assert mt_bench.rating_of("I give [3] or [[7.5]], not [[9]]") == 7.5
    assert mt_bench.rating_of("a [4] then") == 4
    assert mt_bench.rating_of("Rating: [[1") is None


def test_questions_with_a_wrong_reference_are_left_out_beside_the_official_mean(tmp_path):
    rows = [
        {"question_id": question, "model": "m", "judge": ["gpt-4", "single-v1"], "judgment": f"[[{rating}]]"}
        for question, rating in ((103, 8), (104, 2), (130, 3), (131, 6))
    ]
    file = write(tmp_path / "ratings.jsonl", rows)
    (found,) = command("score", "mt-bench", file)
    assert found["figures"]["mean"]["value"] == 4.75
    assert found["figures"]["mean_without_broken_references"]["value"] == 7
    assert found["benchmark"] == "mt_bench[questions=4]"
    (other,) = command("score", "mt-bench", file, "--reference", "corrected")
    assert other["benchmark"] == "mt_bench[questions=4, reference=corrected]"
    assert "mean_without_broken_references" not in other["figures"]


@pytest.mark.shared
def test_the_official_judge_and_all_questions_have_the_bare_name(shared, tmp_path):
    file = shared / "data" / "mt_bench" / "judgements_gpt4_single.jsonl.gz"
    for found in command("score", "mt-bench", file, "--draws", 2):
        assert found["benchmark"] == "mt_bench"
        if "mean" in found["figures"]:
            assert found["figures"]["mean_without_broken_references"]["n"] == 160 - 2 * 13
    rows = [{"question_id": 81 + place, "judge": "other", "judgment": "[[5]]"} for place in range(80)]
    (other,) = command("score", "mt-bench", write(tmp_path / "other.jsonl", rows))
    assert other["benchmark"] == "mt_bench[judge=other, turns=80/160]"


# --- pairs -----------------------------------------------------------------------------------------------------------


def games(question: int, first: str, second: str, *, models: tuple[str, str] = ("a", "b"), **more) -> dict:
    return {"question_id": question, "model_1": models[0], "model_2": models[1], "judge": ["gpt-4", "pair-v2"],
            "g1_judgment": first, "g2_judgment": second} | more  # fmt: skip


def test_a_verdict_is_read_for_the_order_that_was_shown():
    assert mt_bench_pairs.winner_of("so [[A]]", game=0) == "model_1"
    assert mt_bench_pairs.winner_of("so [[A]]", game=1) == "model_2"
    assert mt_bench_pairs.winner_of("[[A]]? No: [[C]]", game=1) == "tie"
    assert mt_bench_pairs.winner_of("A is better", game=0) is None


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("[[8, 7]]", "model_1"), ("[[7.5,8]]", "model_2"), ("[9, 8]", "model_1"), ("[1, 2] [[8, 7]]", "model_1"),
        # one decimal apart is a tie, in binary as well: 1.1 - 1.0 is above 0.1 there
        ("[[1.1, 1.0]]", "tie"), ("[[8, 8.1]]", "tie"), ("[[8, 8.2]]", "model_2"),
    ],
)  # fmt: skip
def test_pairs_of_ratings_tie_within_a_tenth(text, winner):
    assert mt_bench_pairs.winner_of(text, game=0) == winner


def test_only_a_win_in_both_orders_is_one(tmp_path):
    rows = [
        games(81, "[[A]]", "[[B]]"),  # a twice
        games(82, "[[A]]", "[[A]]"),  # whoever comes first
        games(83, "[[C]]", "[[C]]"),
        games(84, "[[B]]", "[[A]]"),  # b twice
        games(85, "[[A]]", "[[B]]"),
        games(86, "?", "[[B]]"),
    ]
    a, b, of_file = command("score", "mt-bench-pairs", write(tmp_path / "pairs.jsonl", rows))
    values = {name: one["value"] for name, one in a["figures"].items()}
    # two wins, two ties, a loss
    assert values == pytest.approx(
        {"num_questions": 5, "win_rate": 40, "tie_rate": 40, "loss_rate": 20, "adjusted_win_rate": 60}
    )
    assert b["figures"]["adjusted_win_rate"]["value"] == pytest.approx(40)
    assert a["rows"]["dropped"] == {"unreadable_verdict": 1}
    assert a["benchmark"] == "mt_bench_pairwise[baseline=b, questions=5]"
    assert of_file["figures"]["order_agreement"]["value"] == pytest.approx(4 / 5)


def test_games_against_the_baseline_alone(tmp_path):
    rows = [
        games(81, "[[A]]", "[[B]]", models=("a", "gpt-3.5-turbo")),
        games(81, "[[A]]", "[[B]]", models=("gpt-3.5-turbo", "b")),
        games(81, "[[B]]", "[[A]]", models=("a", "b")),
    ]
    file = write(tmp_path / "pairs.jsonl", rows)
    found = command("score", "mt-bench-pairs", file, "--baseline", "gpt-3.5-turbo")
    rates = {one["subject"]: one["figures"]["adjusted_win_rate"]["value"] for one in found[:-1]}
    assert rates == {"a": 100, "b": 0}
    assert found[0]["benchmark"] == "mt_bench_pairwise[questions=1]"
    everyone = command("score", "mt-bench-pairs", file)
    assert {one["subject"]: one["benchmark"] for one in everyone[:-1]} == dict.fromkeys(
        ("a", "gpt-3.5-turbo", "b"), "mt_bench_pairwise[baseline=all 2, questions=1]"
    )
    assert everyone[0]["figures"]["adjusted_win_rate"]["value"] == 50


def test_stored_winners_are_compared_with_the_text_and_taken_without_one(tmp_path):
    rows = [
        games(81, "[[A]]", "[[B]]", g1_winner="model_1", g2_winner="model_1"),
        games(82, "?", "[[A]]", g1_winner="error", g2_winner="model_1"),
    ]
    *_, of_file = command("score", "mt-bench-pairs", write(tmp_path / "pairs.jsonl", rows))
    assert of_file["figures"]["share_equal_to_stored"]["value"] == 3 / 4
    # pairs of single ratings: the texts are about one answer each
    row = {"question_id": 81, "model_1": "a", "model_2": "b", "g1_winner": "tie", "g2_winner": "tie",
           "g1_judgment": "[[7]]", "g2_judgment": "[[7]]", "m1_score": 7, "m2_score": 7}  # fmt: skip
    a, *_ = command("score", "mt-bench-pairs", write(tmp_path / "single.jsonl", [row]))
    assert a["figures"]["tie_rate"]["value"] == 100


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question_id": 81}, "columns question_id are of no format"),
        ({"question_id": 81, "model_1": "a", "model_2": "b"}, "row 1: neither g1_judgment nor g1_winner"),
        (games(81, "[[A]]", "[[B]]", g2_winner="a"), "row 1: g2_winner is 'a', not model_1"),
    ],
)
def test_games_that_cannot_be_scored_name_the_place(tmp_path, row, told):
    with pytest.raises(InputError, match=told):
        mt_bench_pairs.score(write(tmp_path / "rows.jsonl", [row]), draws=2)
    with pytest.raises(InputError, match="no games against x"):
        file = write(tmp_path / "rows.jsonl", [games(81, "[[A]]", "[[B]]")])
        mt_bench_pairs.score(file, draws=2, baseline="x")
