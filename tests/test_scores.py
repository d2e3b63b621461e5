"""Benchmarks scored from files: every published number through the commands, and the traps of each format by hand."""

import csv
import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize
from typer.testing import CliRunner

from prefloop.cli import app
from prefloop.interfaces import InputError
from prefloop.scoring import (
    alpaca_eval,
    gsm8k,
    judging,
    reward_bench,
    truthful_qa,
)
from scored import command, command_of, printed, write

# --- every number ----------------------------------------------------------------------------------------------------

EVALUATED = ("alpaca_eval", "arena_hard", "mt_bench", "gsm8k", "rewardbench", "llmbar", "bon11_tulu_alpacaeval", "hh_rlhf",
             "oasst_en100", "truthfulqa", "agreement", "humaneval")  # fmt: skip


Numbers = dict[str, float | str | None]


def named(prefix: str, found: list[dict], *, subject: bool = True) -> Numbers:
    """Figures by the names of expected.json, half widths among them."""
    numbers: Numbers = {}
    for one in found:
        start = f"{prefix}/{one['subject']}/" if subject else f"{prefix}/"
        numbers |= {start + name: fact for name, fact in one["facts"].items()}
        for name, figure in one["figures"].items():
            numbers[start + name] = figure["value"]
            if "half_width" in figure:
                numbers[f"{start}half_width of {name}"] = figure["half_width"]
    return numbers


def alpaca_numbers(data: Path) -> Numbers:
    folder = data / "alpaca_eval"
    inputs = ("--inputs", folder)

    def score(file, *more):
        return command("score", "alpaca-eval", folder / file, *inputs, *more)

    numbers = named("alpaca_eval", score("annotations_compact.csv.gz", "--draws", 2))
    several = [word for name in ("claude-2", "gemma-7b-it", "alpaca-7b") for word in ("--model", name)]
    drawn = named("alpaca_eval", score("annotations_compact.csv.gz", "--draws", 200, *several))
    numbers |= {name: one for name, one in drawn.items() if name.endswith("bootstrap_se")}
    numbers |= named("alpaca_eval", score("lc_weights.csv"))
    logprobs = score("judge_logprobs.jsonl.gz")
    numbers |= named("alpaca_eval", logprobs)
    numbers["alpaca_eval/judge_logprobs/num_rows"] = logprobs[0]["rows"]["in"]
    for model in ("phi-2", "vicuna-7b-v1.5"):
        file = score(f"annotations_json/{model}.json.gz", "--draws", 2)
        numbers |= named("alpaca_eval/annotations_json", file)
    for pair in (
        ("vicuna-13b-v1.5", "vicuna-13b"),
        ("FuseChat-Gemma-2-9B-Instruct", "FuseChat-Llama-3.1-8B-Instruct"),
    ):
        given = (folder / "annotations_compact.csv.gz", "--benchmark", "alpaca-eval", *inputs, "--draws", 200)
        for name, value in named("alpaca_eval", command("compare", *pair, *given)).items():
            numbers[name.replace("half_width of ", "half_width_").replace("/paired_", "/")] = value
    return {name.replace("lc_win_rate_bootstrap_se", "lc_bootstrap_se"): one for name, one in numbers.items()}


def mt_bench_numbers(data: Path) -> Numbers:
    file = data / "mt_bench" / "judgements_gpt4_single.jsonl.gz"
    numbers = named("mt_bench", command("score", "mt-bench", file))
    models = ("mamba_0_5_dpo_ep1", "mamba_0_5_dpo_ep3", "mamba_0_875_dpo_ep1")
    for ours, theirs in ((1, 0), (2, 0), (2, 1)):
        pair = command("compare", models[ours], models[theirs], file, "--benchmark", "mt-bench")
        figure = pair[0]["figures"]["paired_mean"]
        start = f"mt_bench/{models[ours]} minus {models[theirs]}"
        numbers |= {f"{start}/mean": figure["value"], f"{start}/half_width_paired": figure["half_width"]}
    numbers["mt_bench/share_equal_to_stored"] = numbers[f"mt_bench/{file.name}/share_equal_to_stored"]
    return {name.replace("half_width of mean", "half_width_questions"): one for name, one in numbers.items()}


def arena_numbers(data: Path) -> Numbers:
    folder = data / "arena_hard"
    numbers = named("arena_hard", command("score", "arena-hard", folder / "battles_v0.1.jsonl.gz"))
    early = "early_single_judgements_gpt-3.5-turbo-1106"
    numbers |= named(
        f"arena_hard/{early}", command("score", "mt-bench", folder / f"{early}.jsonl.gz"), subject=False
    )
    renamed = {"half_width of score_rows": "half_width_rows", "half_width of score": "half_width_questions"}
    for old, new in renamed.items():
        numbers = {name.replace(old, new): one for name, one in numbers.items()}
    return numbers


def judge_numbers(data: Path) -> Numbers:
    numbers = {}
    for name in ("Adversarial_Neighbor", "Natural"):
        prefix = f"llmbar/{name}"
        numbers |= named(prefix, command("score", "judge", data / "llmbar" / f"{name}.json"), subject=False)
        verdicts = command("score", "judge", data / "llmbar" / f"{name}_gpt4_vanilla_verdicts.json")
        numbers |= {
            f"{prefix}/gpt4_vanilla_{key}": one["value"] for key, one in verdicts[0]["figures"].items()
        }
    for file in ("bon11_tulu_alpacaeval/groups", "hh_rlhf/harmless_pairs", "oasst_en100/ranked"):
        found = command("score", "judge", data / f"{file}.jsonl.gz")
        numbers |= named(file.partition("/")[0], found, subject=False)
    return numbers


def other_numbers(data: Path, tmp_path) -> Numbers:
    solutions = command("score", "gsm8k", data / "gsm8k" / "graded_solutions.jsonl.gz")
    numbers = named("gsm8k", solutions)
    numbers |= named("agreement", command("score", "agreement", data / "agreement" / "fixtures.json"))
    numbers["gsm8k/num_questions"] = solutions[0]["figures"]["num_questions"]["value"]
    numbers |= named(
        "rewardbench", command("score", "reward-bench", data / "rewardbench" / "section_example.csv")
    )
    for version in ("v0", "2021-10"):
        file = data / "truthfulqa" / f"mc_task_{version}.json"
        numbers |= named(f"truthfulqa/{version}", command("score", "truthful-qa", file), subject=False)
        questions, draw = truthful_qa.read_questions(str(file)), random.Random(42)
        random.Random(42).shuffle(questions)
        rows, constant = [], []
        for one in questions:
            logps = {name: [-draw.random() for _ in getattr(one, name).texts] for name in ("mc1", "mc2")}
            rows.append({"question": one.text, **logps})
            constant.append(
                {"question": one.text, **{name: [-1.0] * len(some) for name, some in logps.items()}}
            )
        (golden,) = command(
            "score", "truthful-qa", write(tmp_path / "logps.jsonl", rows), "--questions", file
        )
        figures = golden["figures"]
        numbers[f"truthfulqa/{version}/mc1_golden"] = figures["mc1"]["value"] / 100
        numbers[f"truthfulqa/{version}/mc2_label_mask"] = figures["mc2"]["value"] / 100
        old = figures["mc2_first_zero_split"]["value"] / 100
        numbers[f"truthfulqa/{version}/mc2_golden_first_zero_split"] = old
        (same,) = command(
            "score", "truthful-qa", write(tmp_path / "same.jsonl", constant), "--questions", file
        )
        numbers[f"truthfulqa/constant_scorer/mc1_{version}"] = same["figures"]["mc1"]["value"]
    return numbers


def human_eval_numbers(data: Path, tmp_path) -> dict[str, float]:
    folder = data / "humaneval"
    official = folder / "HumanEval.jsonl.gz"
    with gzip.open(official, "rt") as file:
        stub = [{"task_id": json.loads(line)["task_id"], "completion": "    pass"} for line in file]

    def score(file, problems=official):
        return command("score", "human-eval", file, "--problems", problems, "--draws", 2)

    numbers = named("humaneval/canonical", score(official), subject=False)
    numbers |= named("humaneval/stub_pass", score(write(tmp_path / "stub.jsonl", stub)), subject=False)
    published = score(folder / "generations_wizardcoder_15b.jsonl.gz")
    assert published[0]["figures"]["share_equal_to_stored"] == {"value": 1, "n": 164}
    numbers |= named("humaneval/wizardcoder_15b", published, subject=False)
    numbers["humaneval/wizardcoder_15b/num_rows"] = published[0]["rows"]["in"]
    examples = score(folder / "example_samples.jsonl", folder / "example_problem.jsonl")
    numbers["humaneval/example_samples/pass_at_1"] = examples[0]["figures"]["pass_at_1"]["value"] / 100
    return numbers


@pytest.mark.shared
@pytest.mark.slow
def test_every_number_that_was_published_or_derived_comes_out(shared, tmp_path):
    data = shared / "data"
    numbers = (
        alpaca_numbers(data)
        | mt_bench_numbers(data)
        | arena_numbers(data)
        | judge_numbers(data)
        | other_numbers(data, tmp_path)
        | human_eval_numbers(data, tmp_path)
    )
    items = [
        one
        for one in json.loads((data / "expected.json").read_text())["items"]
        if one["id"].startswith(tuple(f"{name}/" for name in EVALUATED))
    ]
    assert len(items) == 415 + 141 + 19 + 6
    wrong = []
    for item in items:
        name = item["id"].replace("lc_win_rate_aligned", "lc_win_rate")
        found = numbers[name]
        matches = found == item["expected"] or (
            isinstance(found, float | int) and abs(found - item["expected"]) <= item["tolerance"]
        )
        if matches == bool(item.get("known_mismatch")):
            wrong.append((item["id"], found, item["expected"]))
    assert wrong == []


# --- alpaca eval -----------------------------------------------------------------------------------------------------


def annotation(
    number: int, preference, *, ours: str = "an answer", baseline: str = "a longer answer"
) -> dict:
    return {
        "instruction": f"question {number}", "output_1": baseline, "generator_1": "base", "output_2": ours,
        "generator_2": "mine", "preference": preference, "annotator": "a judge",
    }  # fmt: skip


def test_win_rates_by_hand_and_rows_without_a_preference_are_counted(tmp_path):
    rows = [annotation(number, one) for number, one in enumerate(("1.25", "1.75", 2, 0, None))]
    (found,) = command("score", "alpaca-eval", write(tmp_path / "annotations.jsonl", rows))
    figures = found["figures"]
    # 0.25, 0.75, 1 and 0.5
    assert figures["win_rate"]["value"] == pytest.approx(62.5)
    # a win at 0.75 and 1, half a win for the tie
    assert figures["discrete_win_rate"]["value"] == pytest.approx(62.5)
    deviation = math.sqrt((0.375**2 + 0.125**2 + 0.375**2 + 0.125**2) / 3)
    assert figures["standard_error"]["value"] == pytest.approx(100 * deviation / 2)
    assert found["rows"] == {"in": 5, "scored": 4, "dropped": {"no_preference": 1}}
    assert found["benchmark"] == "alpaca_eval_2[judge=a judge, baseline=base, prompts=4]"
    assert any(name.startswith("lc_win_rate[difficulty=none") for name in figures)


def inputs_folder(folder: Path, difficulties: list[float]) -> Path:
    folder.mkdir()
    with (folder / "instruction_difficulty.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerows([("index", "difficulty"), *enumerate(difficulties)])
    (folder / "gamed_rows.csv").write_text(
        "index,model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
        "0,concise,0.2,1.5,0.1,False\n0,verbose,0.7,-1.0,-0.2,False\n"
    )
    prompts = [{"index": place, "instruction": f"question {place}"} for place in range(len(difficulties))]
    write(folder / "prompts_and_baseline.jsonl", prompts)
    return folder


def test_a_missing_row_is_named_and_shifts_no_difficulty(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.normal(size=40).tolist()
    inputs = inputs_folder(tmp_path / "inputs", hard)
    rows = [
        annotation(number, 1 + 1 / (1 + math.exp(-(one + rng.normal()))), ours="a" * rng.integers(1, 90))
        for number, one in enumerate(hard)
    ]
    missing = write(tmp_path / "missing.jsonl", [row for place, row in enumerate(rows) if place != 3])
    (found,) = command("score", "alpaca-eval", missing, "--inputs", inputs, "--draws", 2)
    assert found["notes"] == ["no verdict on 1 of 40 instructions: 'question 3'"]
    keep = [place for place in range(40) if place != 3]
    gaps = np.array([len(rows[place]["output_1"]) - len(rows[place]["output_2"]) for place in keep])
    labels = np.array([rows[place]["preference"] - 1 for place in keep])
    features = np.stack([np.tanh(gaps / gaps.std(ddof=1)), np.array(hard)[keep], np.ones(39)], 1)
    gamed = np.array([[np.tanh(1.5), 0.1, 0], [np.tanh(-1.0), -0.2, 0]])

    def loss(weights):
        def cross_entropy(rows, wanted):
            scores = rows @ weights
            return np.logaddexp(0, scores) - wanted * scores

        beside = cross_entropy(gamed, np.array([0.2, 0.7]))
        return cross_entropy(features, labels).sum() + 0.1 * beside.sum() + 5e-7 * weights @ weights

    best = optimize.minimize(loss, np.zeros(3), tol=1e-12).x
    expected = 100 * np.mean(1 / (1 + np.exp(-(best[2] + best[1] * np.array(hard)[keep]))))
    assert found["figures"]["lc_win_rate"]["value"] == pytest.approx(expected, abs=1e-3)


def test_a_model_against_itself_differs_by_nothing(tmp_path):
    rows = [annotation(number, 1 + (number % 5) / 4) for number in range(20)]
    twin = [row | {"generator_2": "twin"} for row in rows]
    file = write(tmp_path / "both.jsonl", rows + twin)
    (found,) = command("compare", "mine", "twin", file, "--benchmark", "alpaca-eval", "--draws", 20)
    for name, figure in found["figures"].items():
        if name.startswith("paired_"):
            assert (figure["value"], figure["low"], figure["high"]) == (0, 0, 0)
    assert [found["figures"][name]["value"] for name in ("wins", "ties", "losses", "p_sign_flip")] == [
        0,
        20,
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"question": "x"}], "columns question are of no format that is known here"),
        ([annotation(1, 1), annotation(1, 2)], "row 2: mine has been judged on this instruction before"),
        ([annotation(1, "high")], "row 1: preference is 'high', not a number"),
        ([annotation(1, math.inf)], "preference is inf, not a finite number"),
    ],
)
def test_files_that_cannot_be_scored_name_the_place(tmp_path, rows, told):
    with pytest.raises(InputError, match=told):
        alpaca_eval.score(write(tmp_path / "rows.jsonl", rows), draws=2)


# --- truthful qa, reward bench, gsm8k, judges ------------------------------------------------------------------------


def test_ties_do_not_go_to_the_answer_that_comes_first():
    assert truthful_qa.mc1([-1.0, -1.0, -2.0], [1, 0, 0]) == 0.5
    assert truthful_qa.mc1([-1.0, -0.5, -2.0], [1, 0, 0]) == 0
    # a true answer behind a wrong one counts: 1/4 and 1/2 of 1
    logps = [math.log(0.25), math.log(0.25), math.log(0.5)]
    assert truthful_qa.mc2(logps, [1, 0, 1]) == pytest.approx(0.75)
    for broken in (math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match="must be finite numbers"):
            truthful_qa.mc1([broken, -1.0], [1, 0])


def test_sections_weigh_subsets_and_ties_count_half(tmp_path):
    rows = [
        {"subset": "math-prm", "score_chosen": 1.0, "score_rejected": 0.0},
        {"subset": "hep-go", "score_chosen": 1.0, "score_rejected": 1.0},
        {"subset": "hep-go", "score_chosen": 0.0, "score_rejected": 1.0},
        {"subset": "donotanswer", "score_chosen": 2.0, "score_rejected": 1.0},
    ]
    (found,) = command("score", "reward-bench", write(tmp_path / "pairs.jsonl", rows))
    reasoning = 100 * (1.0 * 984 + 0.25 * 2) / 986
    assert found["figures"]["Reasoning"]["value"] == pytest.approx(reasoning)
    assert found["figures"]["mean"]["value"] == pytest.approx((reasoning + 100) / 2)


def ties(right: list[float], wrong: list[float], reference: tuple[float, float]) -> float:
    answers = reward_bench.Answers(tuple(right), tuple(wrong))
    return reward_bench.ties_score(
        {"0": answers}, {"0": reward_bench.Answers((reference[0],), (reference[1],))}
    )


def test_the_ties_of_the_second_version_by_hand():
    # gap 2 - 0 = 2, spread 1, reference gap 3: all four hold, margin tanh(2 / 1 - 1)
    assert ties([3.0, 2.0], [0.0, -1.0], (3.0, 0.0)) == pytest.approx(1 + 0.01 * math.tanh(1))
    # gap 0.5 is above 0 but below the spread of 1; the reference is wrong
    assert ties([3.0, 2.0], [1.5], (0.0, 1.0)) == pytest.approx(0.3 + 0.01 * math.tanh(-1 / 1 - 1))
    # without a spread the margin is at its limit, and 0 / 0 counts nothing
    assert ties([1.0, 1.0], [0.0], (1.0, 0.0)) == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01)
    assert ties([1.0, 1.0], [1.0], (1.0, 1.0)) == 0


VERSION_2 = [
    {"id": "1", "subset": "Math", "num_correct": 1, "scores": [3.0, 1.0, 2.0, 0.0]},
    {"id": "2", "subset": "Math", "num_correct": 1, "scores": [1.0, 1.0, 0.0, 0.0]},  # shares the first place
    {"id": "3", "subset": "Focus", "num_correct": 1, "scores": [[0.5], [0.5], [0.5], [0.5]]},  # says nothing
    {"id": "ref:0", "subset": "Ties", "num_correct": 1, "scores": [3.0, 0.0]},
    {"id": "tied:0", "subset": "Ties", "num_correct": 2, "scores": [3.0, 2.0, 0.0, -1.0]},
    {"id": "tied:1", "subset": "Ties", "num_correct": 2, "scores": [3.0, 2.0, 2.5]},
]


@pytest.mark.parametrize("columns", [False, True])
def test_the_second_version_asks_for_the_best_of_four(tmp_path, columns):
    path = write(tmp_path / "scores.jsonl", VERSION_2)
    if columns:  # as the benchmark's own tool writes it
        path = tmp_path / "scores.json"
        path.write_text(
            json.dumps({name: [one[name] for one in VERSION_2] for name in VERSION_2[0]} | {"model": "m"})
        )
    (found,) = command("score", "reward-bench", path)
    figures = {name: one["value"] for name, one in found["figures"].items()}
    # half of the accuracy of tied, since tied:1 is wrong; the gaps are those of the prompt with a reference
    ties = 100 * (0.3 + 0.3 / 2 + 0.2 + 0.2 + 0.01 * math.tanh(1))
    assert (figures["Math"], figures["Focus"]) == (75, 25)
    assert figures["Ties"] == pytest.approx(ties)
    assert figures["mean"] == pytest.approx((75 + 25 + ties) / 3)
    assert figures["accuracy"] == pytest.approx(100 * (1 + 0.5 + 0.25 + 1 + 1 + 0) / 6)
    assert found["benchmark"] == "reward_bench_2" and found["rows"]["in"] == 6
    assert found["subject"] == ("m" if columns else "scores")
    assert any("1 prompts lack their partner" in one for one in found["notes"])
    assert any("nothing of Factuality, Precise IF, Safety" in one for one in found["notes"])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": "1", "subset": "Math", "num_correct": 4, "scores": [1, 2, 3, 4]}, "4 right answers of 4"),
        ({"id": "1", "subset": "Math", "num_correct": 1, "scores": 1.0}, "scores is float, not a list"),
        ({"id": "1", "subset": "Math", "num_correct": 1, "scores": [1, "nan"]}, "not a finite number"),
        (
            {"id": "7", "subset": "Ties", "num_correct": 1, "scores": [1, 2]},
            "it says ref:NUMBER or tied:NUMBER",
        ),
        ({"subset": "hep-go", "score_chosen": 1, "score_rejected": 0}, "score them apart"),
        (VERSION_2[1] | {"model": "other"}, "scores of mine, other; make a file of each"),
    ],
)
def test_what_cannot_be_scored_of_several_answers_is_told(tmp_path, row, told):
    with pytest.raises(InputError, match=told):
        reward_bench.score(write(tmp_path / "scores.jsonl", [VERSION_2[0] | {"model": "mine"}, row]))


@pytest.mark.shared
def test_the_results_that_the_benchmarks_tool_writes_are_weighed_by_its_own_counts(shared, tmp_path):
    table = shared / "data/rewardbench/section_example.csv"
    with table.open() as file:
        accuracies = {one["subset"]: float(one["accuracy"]) for one in csv.DictReader(file)}
    path = tmp_path / "model.json"
    path.write_text(
        json.dumps(accuracies | {"model": "m", "model_type": "Seq. Classifier", "chat_template": "t"})
    )
    (ours,), (theirs,) = command("score", "reward-bench", path), command("score", "reward-bench", table)
    for section in (*reward_bench.SECTIONS, "mean"):
        assert ours["figures"][section]["value"] == pytest.approx(theirs["figures"][section]["value"])


def test_the_final_number_of_a_solution():
    numbers = {"#### 1,200": 1200, "so\nA: $-3.50": -3.5, "#### 7\n#### 8.": 8, "eight": None, "A: .5": 0.5}
    for text, expected in numbers.items():
        assert gsm8k.final_number(text) == expected


def test_a_judge_who_always_takes_the_first_agrees_with_nobody(tmp_path):
    rows = [{"label": label, "ab": "1", "ba": "2"} for label in (1, 2, 1, 1)] + [
        {"label": 1, "ab": "1", "ba": None}
    ]
    (found,) = judging.score(write(tmp_path / "verdicts.jsonl", rows), draws=2)
    assert found.figures["accuracy"].value == pytest.approx(50)
    assert found.figures["position_agreement"].value == 0


# --- the commands ----------------------------------------------------------------------------------------------------


def test_tables_say_what_the_numbers_are(tmp_path):
    rows = [
        {"question_id": number, "model": "m", "judgment": f"[[{number % 9 + 1}]]"} for number in range(81, 91)
    ]
    file = tmp_path / "ratings.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    done = CliRunner().invoke(app, ["score", "mt-bench", str(file)])
    assert done.exit_code == 0, done.output
    for words in ("mt_bench[judge=unknown, questions=10]: m", "category_writing", "rows: 10 in, 10 scored"):
        assert words in done.output


@pytest.mark.parametrize("name", sorted(command_of("score").commands))
def test_help_of_every_command_has_an_example(name):
    assert f"Example: prefloop score {name}" in printed("score", name, "--help")


def test_a_model_that_is_not_there_is_told(tmp_path):
    file = write(tmp_path / "rows.jsonl", [annotation(1, 1)])
    with pytest.raises(InputError, match="no rows of 'other'; there are mine"):
        CliRunner().invoke(
            app, ["compare", "other", "mine", file, "--benchmark", "alpaca-eval"], catch_exceptions=False
        )
