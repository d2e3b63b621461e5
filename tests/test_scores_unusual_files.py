"""Files in unusual but legal shapes: gaps, repetitions, numbers as text, cells that say nothing. Expected values by hand."""

import csv
from pathlib import Path

import pytest

from prefloop.interfaces import InputError
from prefloop.scoring import gsm8k
from prefloop.scoring.games import Game, read_games
from prefloop.scoring.tournament import play
from scored import command, write


def table(path: Path, rows: list[dict]) -> str:
    """The rows as spreadsheets write them: a byte order mark, carriage returns, and text in every cell."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def values(found: dict) -> dict[str, float]:
    return {name: figure["value"] for name, figure in found["figures"].items()}


# --- verdicts on pairs -----------------------------------------------------------------------------------------------


def test_an_empty_cell_is_a_missing_verdict_in_a_table(tmp_path):
    rows = [
        {"prompt": 'a, "quoted"\r\nprompt', "model_a": "base", "model_b": "ours ☃", "p_a": 0.25},
        {"prompt": "2", "model_a": "base", "model_b": "ours ☃", "p_a": ""},
        {"prompt": "3", "model_a": "base", "model_b": "ours ☃", "p_a": 0},
    ]
    file = table(tmp_path / "verdicts.csv", rows)
    (found,) = command("score", "win-rate", file)
    assert values(found) == {"win_rate": 87.5, "wins": 2, "ties": 0, "losses": 0}
    assert found["rows"] == {"in": 3, "scored": 2, "dropped": {"no_verdict": 1}}
    assert read_games([file]).dropped == {"no_verdict": 1}


def test_lengths_belong_to_the_prompts_whose_rows_have_texts(tmp_path):
    # prompt 1 has no texts: its row must not take the place of the first that has
    rows = [
        {"prompt": "1", "model_a": "base", "model_b": "ours", "p_a": 0},
        {"prompt": "2", "model_a": "base", "model_b": "ours", "p_a": 0, "answer_a": "", "answer_b": "xx"},
        {"prompt": "2", "model_a": "base", "model_b": "ours", "p_a": 0, "answer_a": "", "answer_b": "xxxx"},
    ]
    (found,) = command("score", "win-rate", write(tmp_path / "verdicts.jsonl", rows))
    figure = found["figures"]["characters_more"]
    # two rows of one prompt: every sample of prompts is the same
    assert (figure["value"], figure["low"], figure["high"]) == (3, 3, 3)


@pytest.mark.parametrize("winner", [None, ""])
def test_a_game_without_a_winner_is_counted_and_left_out(tmp_path, winner):
    rows = [
        {"question_id": 1.0, "model_a": "x", "model_b": "y", "winner": one} for one in ("model_a", winner)
    ]
    found = read_games([write(tmp_path / "games.jsonl", rows)])
    assert found.games == [Game("1", "x", "y", 1.0)]
    assert found.dropped == {"no_verdict": 1}


def test_ranks_count_those_that_are_stronger():
    games = [
        Game(f"{place}", a, b, p) for place in range(4) for a, b, p in (("x", "y", 0.9), ("y", "z", 0.8))
    ]
    found = play(games, draws=5)
    assert [(one.model, one.best_rank, one.worst_rank) for one in found.standings] == [
        ("x", 1, 1),
        ("y", 2, 2),
        ("z", 3, 3),
    ]


def test_a_number_that_is_too_large_for_one_is_told(tmp_path):
    file = tmp_path / "games.jsonl"
    file.write_text(f'{{"model_a": "x", "model_b": "y", "p_a": 1{"0" * 400}}}\n')
    with pytest.raises(InputError, match="games.jsonl row 1: p_a is too large for a number"):
        read_games([str(file)])


# --- gsm8k -----------------------------------------------------------------------------------------------------------


def test_an_empty_solution_is_a_wrong_one(tmp_path):
    rows = [
        {"question": str(place), "answer": "7", "solution": one}
        for place, one in enumerate(("", None, "A: 7"))
    ]
    (found,) = gsm8k.score(write(tmp_path / "solutions.jsonl", rows), draws=2)
    assert found.figures["accuracy"].value == pytest.approx(100 / 3)


def test_samples_of_one_question_are_drawn_together(tmp_path):
    rows = [{"question": "1", "answer": "#### 7", "solution": one} for one in ("#### 7", "#### 8")]
    (found,) = gsm8k.score(write(tmp_path / "solutions.jsonl", rows), draws=20)
    accuracy = found.figures["accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high) == (50, 50, 50)
    assert found.figures["num_questions"].value == 1


def test_a_bare_truth_is_one_in_graded_solutions_too(tmp_path):
    rows = [{"question": "1", "ground_truth": 1000, "m": {"solution": "A: 1,000.", "is_correct": True}}]
    (found,) = gsm8k.score(write(tmp_path / "graded.jsonl", rows), draws=2)
    assert found.figures["accuracy"].value == 100
    assert found.figures["share_equal_to_stored"].value == 1


def test_a_truth_without_a_number_is_told(tmp_path):
    rows = [{"question": "1", "answer": "seven", "solution": "A: 7"}]
    with pytest.raises(
        InputError, match="row 1: answer ends in no number, so that no solution could be right: 'seven'"
    ):
        gsm8k.score(write(tmp_path / "solutions.jsonl", rows), draws=2)
