"""Files in unusual but legal shapes: gaps, repetitions, numbers as text, cells that say nothing. Expected values by hand."""

import csv
from pathlib import Path

import pytest

from prefloop.interfaces import InputError
from prefloop.scoring import alpaca_eval, gsm8k, pass_fail
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


# --- alpaca eval -----------------------------------------------------------------------------------------------------


def annotation(instruction: str, preference: object, **more: object) -> dict:
    return {"instruction": instruction, "output_1": "base", "generator_1": "gpt4_1106_preview", "output_2": "ours",
            "generator_2": "mine", "preference": preference,
            "annotator": "weighted_alpaca_eval_gpt4_turbo"} | more  # fmt: skip


def test_one_official_row_lends_its_name_to_no_other(tmp_path):
    rows = [annotation("1", 1.5), annotation("2", 1.5, annotator="mine", generator_1="other")]
    (found,) = command("score", "alpaca-eval", write(tmp_path / "a.jsonl", rows), "--draws", 2)
    judges, baselines = "mine, weighted_alpaca_eval_gpt4_turbo", "gpt4_1106_preview, other"
    assert found["benchmark"] == f"alpaca_eval_2[judge={judges}, baseline={baselines}, prompts=2]"


def test_as_many_other_prompts_do_not_have_the_bare_name(tmp_path):
    rows = [annotation(f"question {place}", 1.5) for place in range(805)]
    (found,) = command("score", "alpaca-eval", write(tmp_path / "a.jsonl", rows), "--draws", 2)
    assert found["benchmark"].startswith("alpaca_eval_2[prompts=805/")


@pytest.mark.shared
def test_the_published_prompts_have_the_bare_name(shared):
    file = shared / "data" / "alpaca_eval" / "annotations_json" / "vicuna-7b-v1.5.json.gz"
    (found,) = command("score", "alpaca-eval", file, "--draws", 2)
    assert found["benchmark"] == "alpaca_eval_2"


def alpaca_inputs(folder: Path) -> Path:
    folder.mkdir()
    (folder / "instruction_difficulty.csv").write_text("index,difficulty\n0,0.5\n1.0,-0.5\n")
    (folder / "gamed_rows.csv").write_text("std_delta_len,instruction_difficulty,preference\n1,0,0.5\n")
    write(
        folder / "prompts_and_baseline.jsonl",
        [{"index": place, "instruction": f"q{place}"} for place in range(2)],
    )
    return folder


def test_instructions_without_a_difficulty_are_named(tmp_path):
    rows = [annotation("q0", 1.2), annotation("q1 ", 1.8)]
    file, inputs = write(tmp_path / "a.jsonl", rows), alpaca_inputs(tmp_path / "inputs")
    (found,) = command("score", "alpaca-eval", file, "--inputs", inputs, "--draws", 2)
    assert "lc_win_rate" not in found["figures"]
    assert found["notes"] == [
        "1 of 2 instructions have no difficulty in the folder of --inputs, so that the rate is fitted on length alone: 'q1 '"
    ]


def test_weights_say_neither_judge_nor_baseline_and_a_model_without_a_row_is_told(tmp_path):
    inputs = alpaca_eval.load_inputs(alpaca_inputs(tmp_path / "inputs"))
    rows = [{"model": "m", "np.tanh(std_delta_len)": 0, "instruction_difficulty": 1e4,
             "not_gamed_baseline.astype(float)": 0}]  # fmt: skip
    file = table(tmp_path / "weights.csv", rows)
    (found,) = alpaca_eval.score(file, inputs=inputs, draws=2)
    # sure to win the one, sure to lose the other
    assert found.figures["lc_win_rate_from_weights"].value == pytest.approx(50)
    assert found.benchmark == "alpaca_eval_2[judge=unknown, baseline=unknown]"
    with pytest.raises(InputError, match="no rows of other"):
        alpaca_eval.score(file, inputs=inputs, draws=2, models=["other"])


@pytest.mark.parametrize("logprob", ["high", None, 800.0, "1" + "0" * 400])
def test_log_probabilities_that_are_none_name_the_place(tmp_path, logprob):
    inputs = alpaca_eval.load_inputs(alpaca_inputs(tmp_path / "inputs"))
    rows = [{"model": "m", "index": 0, "top_logprobs": {"m": logprob}, "preference": 1}]
    with pytest.raises(
        InputError, match="row 1: top_logprobs, 'm' is .*, not the logarithm of a probability"
    ):
        alpaca_eval.score(write(tmp_path / "logprobs.jsonl", rows), inputs=inputs, draws=2)


def test_rows_that_a_comparison_leaves_out_are_counted_by_reason(tmp_path):
    rows = [annotation(one, 1.5) for one in "abc"] + [
        annotation("c", 1.5, generator_2="other"),
        annotation("d", None, generator_2="other"),
    ]
    file = write(tmp_path / "a.jsonl", rows)
    (found,) = command("compare", "mine", "other", file, "--benchmark", "alpaca-eval", "--draws", 2)
    assert found["rows"] == {"in": 5, "scored": 2, "dropped": {"no_preference": 1, "only_one_has_it": 2}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"annotator": "j"}, "mine was judged by weighted_alpaca_eval_gpt4_turbo and other judged by j"),
        ({"generator_1": "b"}, "mine was judged against gpt4_1106_preview and other judged against b"),
    ],
)
def test_models_are_not_compared_across_judges_or_baselines(tmp_path, change, told):
    rows = [annotation("a", 1.5), annotation("a", 1.5, generator_2="other", **change)]
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match=told):
        command("compare", "mine", "other", file, "--benchmark", "alpaca-eval", "--draws", 2)


# --- arena-hard ------------------------------------------------------------------------------------------------------


def test_a_judge_that_the_file_names_is_not_renamed(tmp_path):
    row = {"question_id": 1, "model": "m", "judge": "j", "games": ["[[A>B]]", "[[A>B]]"]}
    file = write(tmp_path / "j.jsonl", [row])
    with pytest.raises(
        InputError, match="--judge gpt-4-1106-preview: the file says that j judged m; leave --judge out"
    ):
        command("score", "arena-hard", file, "--judge", "gpt-4-1106-preview")


def test_a_battle_without_a_winner_is_counted_and_left_out(tmp_path):
    rows = [
        {"question_id": one, "model_a": "base", "model_b": "m", "winner": won}
        for one, won in ((1, "model_b"), (2, ""))
    ]
    (found,) = command("score", "arena-hard", table(tmp_path / "battles.csv", rows))
    assert values(found)["score"] == 100
    assert found["rows"] == {"in": 2, "scored": 1, "dropped": {"no_winner": 1}}


def styled(model: str, question: int, text: str) -> dict:
    return {"uid": question, "model": model, "messages": [{"role": "assistant", "content": text}]}


def test_a_model_without_answers_has_no_style_score(tmp_path):
    games = ["[[A>B]]", "[[A>B]]"]
    rows = [{"question_id": one, "model": model, "games": games} for one in (1, 2) for model in ("m", "lost")]
    answers = [styled(model, one, "x" * one) for one in (1, 2) for model in ("gpt-4-0314", "m")] + [
        styled("lost", 9, "x")
    ]
    file, texts = write(tmp_path / "j.jsonl", rows), write(tmp_path / "answers.jsonl", answers)
    with pytest.raises(InputError, match="lost: no battle has the answers of both sides"):
        command("score", "arena-hard", file, "--answers", texts, "--draws", 2)


def test_two_answers_of_one_model_to_a_question_are_told(tmp_path):
    answers = write(
        tmp_path / "answers.jsonl", [styled("m", 1, "x"), styled("m", 1, "x"), styled("m", 1, "xyz")]
    )
    row = {"question_id": 1, "model": "m", "games": ["[[A>B]]", "[[A>B]]"]}
    with pytest.raises(
        InputError, match="answers.jsonl row 3: another answer of m to this question was there before"
    ):
        command("score", "arena-hard", write(tmp_path / "j.jsonl", [row]), "--answers", answers)


def test_models_are_not_compared_across_arena_baselines(tmp_path):
    rows = [
        {"question_id": 1, "model_a": base, "model_b": model, "winner": "tie"}
        for base, model in (("x", "m"), ("y", "n"))
    ]
    file = write(tmp_path / "battles.jsonl", rows)
    with pytest.raises(InputError, match="m was judged against x and n against y"):
        command("compare", "m", "n", file, "--benchmark", "arena-hard")


# --- mt-bench --------------------------------------------------------------------------------------------------------


def rating(question: object, value: object, **more: object) -> dict:
    return {
        "question_id": question,
        "model": "m",
        "judge": ["gpt-4", "single-v1"],
        "judgment": f"[[{value}]]",
    } | more


def test_numbers_as_text_are_questions_turns_and_stored_scores(tmp_path):
    # 81 is of writing, 104 of reasoning with a wrong reference
    rows = [
        rating("81", 7.5, turn="1.0", score="7.5"),
        rating(104.0, 4, turn="2", score="4"),
        rating("82", "none", turn="1", score="-1"),
    ]
    file = write(tmp_path / "r.jsonl", rows)
    found, of_file = command("score", "mt-bench", file)
    expected = {"mean": 5.75, "mean_without_broken_references": 7.5, "turn_1": 7.5, "turn_2": 4,
                "category_writing": 7.5, "category_reasoning": 4}  # fmt: skip
    assert values(found).items() >= expected.items()
    assert values(of_file)["share_equal_to_stored"] == 1
    with pytest.raises(InputError, match="row 1: turn is 'one', not a number"):
        command("score", "mt-bench", write(tmp_path / "r.jsonl", [rating(81, 7, turn="one")]))


@pytest.mark.parametrize(
    ("turns", "template", "name"),
    [
        ((1, 2), "single-v1", "mt_bench"),
        ((1,), "single-v1", "mt_bench[turns=80/160]"),
        ((1, 2), "mine", "mt_bench[template=mine]"),
    ],
)
def test_half_of_the_turns_or_another_template_are_not_the_benchmark(tmp_path, turns, template, name):
    rows = [
        rating(81 + place, 5, turn=turn, judge=["gpt-4", template]) for place in range(80) for turn in turns
    ]
    (found,) = command("score", "mt-bench", write(tmp_path / "r.jsonl", rows), "--draws", 2)
    assert found["benchmark"] == name


def test_repeated_ratings_are_told(tmp_path):
    (found,) = command(
        "score", "mt-bench", write(tmp_path / "r.jsonl", [rating(81, 5), rating(81, 6), rating(81, "?")])
    )
    assert values(found)["mean"] == 5.5
    assert found["notes"] == ["2 rows repeat a question and turn of another row; all of them count"]


def test_a_comparison_of_ratings_says_who_judged_and_what_it_left_out(tmp_path):
    rows = [rating(81, 5, judge="j"), rating(82, 5, judge="j"), rating(82, "?", judge="j", turn=2)]
    rows += [rating(82, 7, judge="j", model="other")]
    file = write(tmp_path / "r.jsonl", rows)
    (found,) = command("compare", "m", "other", file, "--benchmark", "mt-bench")
    assert found["benchmark"] == "mt_bench[judge=j, questions=1]"
    assert values(found)["paired_mean"] == -2
    assert found["rows"] == {"in": 4, "scored": 2, "dropped": {"unreadable_rating": 1, "only_one_has_it": 1}}
    file = write(tmp_path / "r.jsonl", [*rows, rating(81, 7, model="third")])
    with pytest.raises(
        InputError, match="m minus third: judged by j and by gpt-4; give ratings of one judge"
    ):
        command("compare", "m", "third", file, "--benchmark", "mt-bench")


def test_a_second_file_does_not_replace_what_the_first_says_of_a_model(tmp_path):
    files = [write(tmp_path / f"{place}.jsonl", [rating(81 + place, 5)]) for place in range(2)]
    with pytest.raises(InputError, match=r"1.jsonl: 'm' is in a file before it as well"):
        command("compare", "m", "m", *files, "--benchmark", "mt-bench")


# --- agreement and judges --------------------------------------------------------------------------------------------


def test_a_rating_that_nobody_gave_is_counted_and_left_out(tmp_path):
    given = [(1, "a", "1"), (1, "b", "1"), (2, "a", "2"), (2, "b", ""), (3, "a", "2"), (3, "b", "1")]
    rows = [{"unit": unit, "annotator": who, "value": value} for unit, who, value in given]
    (found,) = command("score", "agreement", table(tmp_path / "ratings.csv", rows), "--draws", 10)
    assert values(found)["raw"] == 0.5
    assert found["rows"] == {"in": 6, "scored": 5, "dropped": {"no_value": 1}}
    with pytest.raises(InputError, match="row 1: value is 'inf'; give a number or the name of a choice"):
        command("score", "agreement", table(tmp_path / "ratings.csv", [rows[0] | {"value": "inf"}]))


def test_counts_do_not_say_who_gave_what_and_know_what_nobody_chose(tmp_path):
    row = {"counts": [[2, 0, 0], [0, 2, 0], [1, 1, 0], [2, 0, 0]]}
    (found,) = command("score", "agreement", write(tmp_path / "counts.jsonl", [row]), "--draws", 10)
    assert "cohen_kappa" not in found["figures"]
    # agreement 3/4; of three choices by chance (5/8 * 3/8 + 3/8 * 5/8 + 0) / 2 = 15/64
    assert values(found)["gwet_ac1"] == pytest.approx((3 / 4 - 15 / 64) / (1 - 15 / 64), abs=1e-6)


def test_verdicts_may_be_numbers_and_unreadable_ones_are_counted(tmp_path):
    rows = [
        {"label": 1.0, "ab": 1.0, "ba": 1},
        {"label": "2", "ab": "2", "ba": None},
        {"label": 1, "ab": "?", "ba": "?"},
    ]
    (found,) = command("score", "judge", write(tmp_path / "verdicts.jsonl", rows))
    expected = {"num_pairs": 3, "accuracy": 50, "position_agreement": 100 / 3, "num_unreadable": 3}
    assert values(found) == pytest.approx(expected)


def test_pairs_of_one_ranking_are_drawn_together(tmp_path):
    # of three pairs the longer answer wins two: a mean of 2/3 in every sample of one prompt
    rows = [{"messages": [], "ranked_responses": ["xx", "xxx", "x"]}]
    (found,) = command("score", "judge", write(tmp_path / "ranked.jsonl", rows))
    figure = found["figures"]["longest_answer_accuracy"]
    assert [figure[name] for name in ("value", "low", "high")] == pytest.approx([200 / 3] * 3)


@pytest.mark.parametrize("preferences", [[0.5], "0.5", [0.5, "high"]])
def test_groups_that_do_not_fit_together_name_the_place(tmp_path, preferences):
    rows = [{"prompt": "p", "responses": ["a", "b"], "preference_vs_reference": preferences}]
    with pytest.raises(InputError, match="row 1: "):
        command("score", "judge", write(tmp_path / "groups.jsonl", rows))


# --- truthful qa -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logps", "told"),
    [
        ([["low", -1.0]], "row 1: mc1: log-likelihoods must be finite numbers"),
        (["-1"], "row 1: mc1 needs 2 log-likelihoods"),
        ([[-1.0, None]], "row 1: mc1: log-likelihoods must be finite numbers"),
        ([[-1.0, -2.0]] * 2, "row 2: the question 'q' has been there before"),
    ],
)
def test_log_likelihoods_that_cannot_be_name_the_place(tmp_path, logps, told):
    targets = {"right": 1, "wrong": 0}
    questions = write(
        tmp_path / "q.jsonl", [{"question": "q", "mc1_targets": targets, "mc2_targets": targets}]
    )
    file = write(tmp_path / "l.jsonl", [{"question": "q", "mc1": one, "mc2": [-1.0, -2.0]} for one in logps])
    with pytest.raises(InputError, match=told):
        command("score", "truthful-qa", file, "--questions", questions)


# --- reward bench ----------------------------------------------------------------------------------------------------


def test_the_mean_is_of_four_sections_and_prior_sets_count_half_beside_it(tmp_path):
    accuracies = {
        "alpacaeval-easy": 0.9,
        "llmbar-natural": 0.5,
        "donotanswer": 0.7,
        "math-prm": 0.8,
        "hep-go": 0.2,
    }
    rows = [{"subset": name, "section": "", "rows": 447 if name == "math-prm" else "", "accuracy": one}
            for name, one in accuracies.items()]  # fmt: skip
    rows += [{"subset": "shp", "section": "Prior Sets", "rows": 10, "accuracy": 0.6}]
    (found,) = command("score", "reward-bench", table(tmp_path / "subsets.csv", rows))
    # math-prm counts 984 for its 447 rows
    reasoning = 100 * (984 * 0.8 + 164 * 0.2) / (984 + 164)
    assert values(found)["Reasoning"] == pytest.approx(reasoning)
    assert values(found)["mean"] == pytest.approx((90 + 50 + 70 + reasoning) / 4)
    assert values(found)["mean_with_prior_sets"] == pytest.approx((90 + 50 + 70 + reasoning + 0.5 * 60) / 4.5)
    assert found["notes"] == []


def test_pairs_of_a_subset_that_is_not_the_benchmarks_go_where_the_file_says(tmp_path):
    rows = [
        {"subset": "mine", "section": "Taste", "score_chosen": 1, "score_rejected": one} for one in (0, 2)
    ]
    (found,) = command("score", "reward-bench", write(tmp_path / "pairs.jsonl", rows))
    assert values(found)["Taste"] == 50
    assert found["notes"][-1] == "the mean is not the benchmark's: it has Taste as well"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [{"subset": "hep-go", "accuracy": 91.2, "rows": 164}],
            "accuracy is 91.2; an accuracy is a share from 0 to 1",
        ),
        ([{"subset": "hep-go", "accuracy": 0.5}] * 2, "row 2: hep-go has been there before"),
        ([{"hep-go": 0.5}, {"hep-go": 0.6}], "row 2: hep-go has been there before"),
        ([{"subset": "hep-go", "accuracy": 0.5, "weight": -1}], "weight is -1; a subset cannot weigh less"),
        (
            [{"subset": "Ties", "id": "ref:1", "num_correct": 1, "scores": [1, 0]}] * 2,
            "row 2: ref:1 has been there before",
        ),
    ],
)
def test_tables_that_would_be_scored_wrongly_are_refused(tmp_path, rows, told):
    with pytest.raises(InputError, match=told):
        command("score", "reward-bench", write(tmp_path / "rows.jsonl", rows))


# --- results and outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [None, "text", [1], ["text"]])
def test_samples_that_are_no_lists_of_turns_name_the_place(tmp_path, answers):
    file = write(tmp_path / "answers.jsonl", [{"key": "k", "answers": answers}])
    with pytest.raises(InputError, match="row 1: answers is not a list of samples"):
        command("score", "outputs", file)


def test_a_table_without_subsets_is_told(tmp_path):
    file = write(tmp_path / "results.jsonl", [{"subset": [], "score_chosen": [], "score_rejected": []}])
    with pytest.raises(InputError, match="no subset in any row"):
        command("score", "reward-bench", file)


def test_a_stored_rating_that_is_no_number_differs_from_every_other(tmp_path):
    *_, of_file = command("score", "mt-bench", write(tmp_path / "r.jsonl", [rating(81, 5, score=10**400)]))
    assert values(of_file)["share_equal_to_stored"] == 0


@pytest.mark.parametrize("flag", ["True", "true", 1.0, "1.0", True])
def test_a_flag_is_one_however_a_table_writes_it(tmp_path, flag):
    found = pass_fail.read_results(write(tmp_path / "m.jsonl", [{"task_id": 1, "passed": flag}]))
    assert found["m"].values == {"1": [1.0]}
