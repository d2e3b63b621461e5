"""Arena-Hard by hand: verdicts, both versions, what the names stand for, and style against an independent fit."""

import numpy as np
import pytest
from scipy import optimize

from prefloop.interfaces import InputError
from prefloop.scoring import arena_hard, arena_style
from prefloop.scoring.style import Style, differences, standardised, style_of
from scored import command, printed, write


def judged(question: str, first: str | None, second: str | None, **more) -> dict:
    """A row of v2.0, as its authors write it."""
    games = [
        None if text is None else {"score": None, "judgment": {"answer": text}} for text in (first, second)
    ]
    return {"uid": question, "category": "hard_prompt", "judge": "gemini-2.5", "model": "m",
            "baseline": "o3-mini-2025-01-31", "games": games} | more  # fmt: skip


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_the_last_verdict_counts():
    assert arena_hard.verdict_of("[[A>B]] no, rather [[B>>A]].") == "B>>A"
    assert arena_hard.verdict_of("[[A<<B]]") == "B>>A"
    assert arena_hard.verdict_of("so [A=B]") is None
    assert arena_hard.verdict_of("so [A=B]", single_brackets=True) == "A=B"
    assert arena_hard.verdict_of("[B>A] or [[A>B]]", single_brackets=True) == "A>B"
    assert arena_hard.verdict_of("[[A>C]]") is None


def test_strong_verdicts_count_three_rows_and_unreadable_games_none(tmp_path):
    rows = [
        # the model is B in the first game and A in the second: it wins three rows, then one
        {"question_id": "q1", "model": "m", "games": [{"judgment": "[[B>>A]]"}, {"judgment": "[[A>B]]"}]},
        {"question_id": "q2", "model": "m", "games": [{"judgment": "[[A=B]]"}, {"judgment": "[[B>A]]"}]},
        # the authors' code for v0.1 counts the game that can be read
        {"question_id": "q3", "model": "m", "games": [{"judgment": "?"}, {"judgment": "[[B>A]]"}]},
        {"question_id": "q4", "model": "m", "games": [None, {"judgment": None}]},
    ]
    (found,) = command("score", "arena-hard", write(tmp_path / "judgements.jsonl", rows))
    assert found["figures"]["num_rows"]["value"] == 7
    assert found["figures"]["score"]["value"] == pytest.approx(100 * 4.5 / 7)
    assert found["figures"]["question_mean"]["value"] == pytest.approx(100 * (1 + 0.25 + 0) / 3)
    assert found["rows"]["dropped"] == {"unreadable_verdict": 1}
    assert "of 1 questions one game could not be read" in found["notes"][-1]


# --- version 2.0 -----------------------------------------------------------------------------------------------------


def test_the_second_version_by_hand(tmp_path):
    rows = [
        judged("1", "[B>>A]", "so [[a>b]]"),  # 3 rows and 1, all won
        judged("2", "[[A=B]]", "[[B>A]]"),  # a half and a loss
        judged("3", "[[A=B]]", None),
        judged("4", "", "[[A>B]]"),
        judged("5", "[[A>>B]]", "[[B>>A]]", category="creative_writing", baseline="gemini-2.0-flash-001"),
    ]
    hard, creative = command("score", "arena-hard", write(tmp_path / "m.jsonl", rows))
    assert hard["figures"]["score"]["value"] == pytest.approx(100 * 4.5 / 6)
    assert hard["figures"]["question_mean"]["value"] == pytest.approx(100 * (1 + 0.25) / 2)
    assert hard["rows"] == {"in": 4, "scored": 2, "dropped": {"unreadable_verdict": 2}}
    assert creative["figures"]["score"]["value"] == 0
    # the official judge and baseline, but not all questions
    assert hard["benchmark"] == "arena_hard_v2.0_hard_prompt[questions=2]"
    assert creative["benchmark"] == "arena_hard_v2.0_creative_writing[questions=1]"


def test_the_authors_interval_is_narrower_and_says_so(tmp_path):
    rows = [judged(str(number), "[[B>>A]]" if number % 3 else "[[A>>B]]", "[[A>B]]") for number in range(60)]
    file = write(tmp_path / "m.jsonl", rows)
    (found,) = command("score", "arena-hard", file)
    figures = found["figures"]
    assert figures["score_rows_90_percent"]["level"] == 0.9
    widths = [figures[name]["half_width"] for name in ("score_rows_90_percent", "score_rows", "score")]
    assert widths == sorted(widths)
    assert "(90%)" in printed("score", "arena-hard", file)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"judge": "gpt-4.1"}, "judge=gpt-4.1, "),
        ({"judge": None}, "judge=unknown, "),
        ({"baseline": "mine"}, "baseline=mine, "),
        ({}, ""),
    ],
)
def test_another_judge_or_baseline_is_in_the_name(tmp_path, change, named):
    (found,) = command(
        "score", "arena-hard", write(tmp_path / "m.jsonl", [judged("1", "[[A=B]]", "[[A=B]]", **change)])
    )
    assert found["benchmark"] == f"arena_hard_v2.0_hard_prompt[{named}questions=1]"


def test_a_judge_that_the_file_does_not_name_can_be_told(tmp_path):
    rows = [
        {"question_id": number, "model_a": "gpt-4-0314", "model_b": "m", "winner": "tie"}
        for number in range(500)
    ]
    file = write(tmp_path / "battles.jsonl", rows)
    names = [
        command("score", "arena-hard", file, *words, "--draws", 2)[0]["benchmark"]
        for words in ((), ("--judge", "gpt-4-1106-preview"), ("--judge", "mine"))
    ]
    assert names == ["arena_hard_v0.1[judge=unknown]", "arena_hard_v0.1", "arena_hard_v0.1[judge=mine]"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([judged("1", "[[A>B]]", "[[A>B]]")] * 2, "row 2: m has been judged on this question before"),
        ([judged("1", "", "", games=["[[A>B]]"])], "row 1: games is not a list of two"),
        (
            [{"question_id": 1, "model_a": "a", "model_b": "b", "winner": "b"}],
            "row 1: winner is 'b', not model_a",
        ),
        ([{"uid": 1}], "columns uid are of no format"),
    ],
)
def test_files_that_cannot_be_scored_name_the_place(tmp_path, rows, told):
    with pytest.raises(InputError, match=told):
        arena_hard.score(write(tmp_path / "rows.jsonl", rows), draws=2)


# --- style -----------------------------------------------------------------------------------------------------------


def test_markdown_is_counted_outside_of_code():
    text = "# A\n\n- one\n2. two\n**bold** and __bold__\n```\n# no\n- no\n**no**\n```\n####### no"
    assert style_of(text) == Style(len(text), headers=1, lists=2, bold=2)
    assert style_of("plain", length=2) == Style(2, 0, 0, 0)


def test_differences_of_style_by_hand():
    # lengths 30 and 10: 20 / 40; headers 3 / 30 against 2 / 10: -0.1 / 1.3; no lists; bold 0 against 1 / 10: -0.1 / 1.1
    found = differences([Style(30, 3, 0, 0)], [Style(10, 2, 0, 1)], ["length", "markdown"])
    np.testing.assert_allclose(found, [[0.5, -0.1 / 1.3, 0, -0.1 / 1.1]])
    assert differences([Style(30, 3, 0, 0)], [Style(10, 2, 0, 1)], ["markdown"]).shape == (1, 3)
    # an empty answer has no density, and two empty ones the same length
    np.testing.assert_allclose(
        differences([Style(0, 0, 0, 0)], [Style(0, 0, 0, 0)], ["length", "markdown"]), 0
    )
    np.testing.assert_allclose(standardised(np.array([[1.0, 5], [2, 5], [3, 5]])), [[-1, 0], [0, 0], [1, 0]])


def pool(tmp_path, *, number: int = 120) -> tuple[str, str, list[dict], list[dict]]:
    """Two models of which the long-winded one wins by its length alone, with the authors' metadata."""
    rng = np.random.default_rng(0)
    rows, answers = [], []
    for question in range(number):
        lengths = {"base": 100, "short": int(rng.integers(50, 150)), "long": int(rng.integers(100, 400))}
        for model, tokens in lengths.items():
            counts = {"header_count": {"h1": int(rng.integers(3)), "h2": 1}, "list_count": {"ordered": 2},
                      "bold_count": {"**": int(rng.integers(4))}}  # fmt: skip
            metadata = {"token_len": tokens, **counts}
            answers.append({"uid": str(question), "model": model, "metadata": metadata})
            if model != "base":
                drift = 3 * (tokens - 100) / (tokens + 100) + rng.normal()
                label = "[[B>>A]]" if drift > 1 else "[[B>A]]" if drift > 0 else "[[A>B]]"
                other = label.translate(str.maketrans("AB", "BA"))
                rows.append(judged(str(question), label, other, model=model, baseline="base"))
    files = write(tmp_path / "judgements.jsonl", rows), write(tmp_path / "answers.jsonl", answers)
    return *files, rows, answers


def test_style_control_is_one_logistic_regression_over_all_rows(tmp_path):
    judgements, styles, rows, answers = pool(tmp_path)
    found = command("score", "arena-hard", judgements, "--answers", styles, "--draws", 20)
    by_name = {one["subject"]: one for one in found if "style_control" in one["benchmark"]}
    metadata = {(one["uid"], one["model"]): one["metadata"] for one in answers}

    def numbers(question, model):
        one = metadata[question, model]
        return [
            one["token_len"],
            *(sum(one[name].values()) for name in ("header_count", "list_count", "bold_count")),
        ]

    features, models, won = [], [], []
    for row in rows:
        (m, *ours), (b, *theirs) = numbers(row["uid"], row["model"]), numbers(row["uid"], "base")
        line = [(m - b) / (m + b)] + [
            (o / m - t / b) / (o / m + t / b + 1) for o, t in zip(ours, theirs, strict=True)
        ]
        text = row["games"][0]["judgment"]["answer"]
        times = 2 * (3 if text == "[[B>>A]]" else 1)
        features += [line] * times
        models += [row["model"]] * times
        won += [float(text.startswith("[[B"))] * times
    table = np.array(features)
    spread = table.std(0, ddof=1)
    spread[spread == 0] = 1
    design = np.column_stack(
        [[one == name for one in models] for name in ("short", "long")] + [(table - table.mean(0)) / spread]
    ).astype(float)

    def loss(weights):
        scores = design @ weights
        return (np.logaddexp(0, scores) - np.array(won) * scores).sum() + 5e-7 * weights @ weights

    best = optimize.minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-7}).x
    for name, weight in zip(("short", "long"), best, strict=False):
        assert by_name[name]["figures"]["score"]["value"] == pytest.approx(
            100 / (1 + np.exp(-weight)), abs=1e-3
        )
    weights = by_name["hard_prompt"]["figures"]
    assert weights["weight_length"]["value"] == pytest.approx(best[2], abs=1e-4)
    # what the length won is no longer the model's
    plain = {
        one["subject"]: one["figures"]["score"]["value"] for one in found if "style" not in one["benchmark"]
    }
    assert plain["long"] - plain["short"] > 20
    gap = by_name["long"]["figures"]["score"]["value"] - by_name["short"]["figures"]["score"]["value"]
    assert gap < (plain["long"] - plain["short"]) / 2


def test_the_pool_is_part_of_the_name(tmp_path):
    judgements, styles, _, _ = pool(tmp_path, number=30)
    words = ("score", "arena-hard", judgements, "--answers", styles, "--draws", 2)
    both = command(*words)[2]["benchmark"]
    alone = command(*words, "--model", "short")[1]["benchmark"]
    assert both.startswith("arena_hard_v2.0_hard_prompt_style_control[")
    assert "features=length+markdown, pool=2/" in both
    assert "pool=1/" in alone
    length = command(*words, "--control", "length")
    assert "features=length, " in length[2]["benchmark"]
    assert list(length[-1]["figures"]) == ["weight_length"]


def test_answers_that_are_missing_are_named_or_counted(tmp_path):
    judgements, styles, _, answers = pool(tmp_path, number=30)
    battles = arena_hard.read_battles(judgements)
    without = write(tmp_path / "less.jsonl", [one for one in answers if one["model"] != "base"])
    with pytest.raises(InputError, match="no answers of base; name their file with --answers"):
        arena_style.score(battles, arena_style.read_answers([without]), ["length"], draws=2)
    fewer = write(tmp_path / "fewer.jsonl", [one for one in answers if one["uid"] != "3"])
    found = arena_style.score(battles, arena_style.read_answers([fewer]), ["length"], draws=2)
    assert found[0].dropped == {"no_answer": 1}
    mixed = write(tmp_path / "text.jsonl", [{"uid": "1", "model": "m", "messages": [{"content": "hello"}]}])
    with pytest.raises(InputError, match="some answers have metadata with their tokens and some have not"):
        arena_style.read_answers([styles, mixed])
    with pytest.raises(InputError, match="short: battles in two files"):
        arena_style.score([*battles, *battles], arena_style.read_answers([styles]), ["length"], draws=2)


@pytest.mark.shared
def test_published_answers_are_read_and_controlled_for(shared):
    folder = shared / "data" / "arena_hard"
    files = [folder / f"answers_v0.1_{name}.jsonl.gz" for name in ("gpt-3.5-turbo-0125", "gpt-4-0314")]
    answers = arena_style.read_answers([str(file) for file in files])
    assert {name: len(some) for name, some in answers.items()} == {
        "gpt-3.5-turbo-0125": 500,
        "gpt-4-0314": 500,
    }
    battles = arena_hard.read_battles(str(folder / "battles_v0.1.jsonl.gz"), ["gpt-3.5-turbo-0125"])
    scored, weights = arena_style.score(battles, answers, ["length", "markdown"], draws=20)
    assert not scored.dropped
    assert weights.figures["weight_length"].value > 0
