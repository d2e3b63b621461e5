"""`prefloop compare`: paired differences, the sign-flip test against counting, and every benchmark that can be paired."""

import itertools

import numpy as np
import pytest
from scipy import stats

from prefloop.interfaces import InputError
from prefloop.scoring.comparing import compare_files
from prefloop.scoring.paired import sign_flip_p
from scored import command, write


def values(scored: dict) -> dict[str, float]:
    return {name: one["value"] for name, one in scored["figures"].items()}


# --- the test --------------------------------------------------------------------------------------------------------


def test_the_p_value_of_few_prompts_is_counted_over_all_flips():
    gaps = [3.0, 1.0, 2.0, -1.0]
    # 16 flips: sums of 5 or more, either way: +3+1+2-1, +3+1+2+1, +3-1+2+1 and their mirror images
    as_large = sum(
        abs(sum(sign * gap for sign, gap in zip(signs, gaps, strict=True))) >= 5
        for signs in itertools.product((1, -1), repeat=4)
    )
    assert as_large == 6
    assert sign_flip_p(np.array(gaps), range(4)) == 6 / 16
    # all of one sign: only that and its mirror image
    assert sign_flip_p(np.ones(10), range(10)) == 2 / 2**10
    assert sign_flip_p(np.zeros(5), range(5)) == 1


def test_the_p_value_of_many_prompts_is_that_of_an_independent_test():
    gaps = np.random.default_rng(0).normal(0.15, 1, size=200)
    found = sign_flip_p(gaps, range(200))
    other = stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", n_resamples=9_999, rng=np.random.default_rng(1)
    ).pvalue
    assert found == pytest.approx(other, abs=0.01)
    assert sign_flip_p(gaps, range(200)) == found


def test_values_of_one_prompt_change_sign_together():
    # as four independent values 2 of 16 flips are as large, as two prompts 2 of 4
    assert sign_flip_p(np.ones(4), "abcd") == 2 / 16
    assert sign_flip_p(np.ones(4), "aabb") == 2 / 4


# --- benchmarks ------------------------------------------------------------------------------------------------------


def test_solutions_are_paired_by_question(tmp_path):
    right = {"new": (1, 1, 1, 0), "old": (0, 1, 1, 1), "other": (1,)}
    rows = [
        {
            "model": model,
            "question": f"q{place}",
            "answer": "7",
            "solution": f"{'x' * size}#### {7 if one else 8}",
        }
        for (model, flags), size in zip(right.items(), (10, 4, 0), strict=True)
        for place, one in enumerate(flags)
    ]
    file = write(tmp_path / "solutions.jsonl", rows)
    (found,) = command("compare", "new", "old", file, "--benchmark", "gsm8k")
    assert values(found) == pytest.approx(
        {"paired_accuracy": 0, "wins": 1, "ties": 2, "losses": 1, "p_sign_flip": 1, "mean_characters_ours": 16,
         "mean_characters_theirs": 10, "paired_characters": 6}
    )  # fmt: skip
    assert (found["benchmark"], found["subject"]) == ("gsm8k", "new minus old")
    (fewer,) = command("compare", "other", "new", file, "--benchmark", "gsm8k")
    assert "on 1 prompts that both have; 0 and 3 were left out" in fewer["notes"]


def test_results_of_tests_are_paired_by_task_and_samples_averaged(tmp_path):
    def rows(passed):
        return [{"task_id": task, "passed": one} for task, some in enumerate(passed) for one in some]

    ours = write(tmp_path / "new.jsonl", rows([(True, True), (True, False), (False,)]))
    theirs = write(tmp_path / "old.jsonl", rows([(True, False), (True, False), (False,)]))
    (found,) = command("compare", "new", "old", ours, theirs, "--benchmark", "human-eval")
    # one task of three is better by one half
    assert values(found) == pytest.approx(
        {"paired_pass_rate": 100 / 6, "wins": 1, "ties": 2, "losses": 0, "p_sign_flip": 1}
    )
    broken = write(tmp_path / "broken.jsonl", [{"task_id": 1, "passed": "maybe"}])
    with pytest.raises(InputError, match="broken.jsonl row 1: passed is 'maybe', not true or false"):
        command("compare", "a", "b", broken, "--benchmark", "human-eval")
    with pytest.raises(InputError, match="no rows of 'older'; there are new, old"):
        command("compare", "new", "older", ours, theirs, "--benchmark", "human-eval")


def test_battles_are_paired_by_question(tmp_path):
    def judged(model, question, first, second, category="hard_prompt"):
        return {"uid": question, "category": category, "model": model, "judge": "j", "baseline": "base",
                "games": [{"judgment": first}, {"judgment": second}]}  # fmt: skip

    rows = [
        judged("new", "1", "[[B>>A]]", "[[A>B]]"),  # 4 of 4 rows
        judged("new", "2", "[[A=B]]", "[[B>A]]"),  # 0.5 of 2
        judged("old", "1", "[[B>A]]", "[[B>A]]"),  # 1 of 2
        judged("old", "2", "[[A=B]]", "[[B>A]]"),  # 0.5 of 2
        # another question of the same number
        judged("old", "2", "[[B>A]]", "[[A>B]]", "creative_writing"),
    ]
    (found,) = command(
        "compare", "new", "old", write(tmp_path / "j.jsonl", rows), "--benchmark", "arena-hard"
    )
    figures = values(found)
    assert figures["paired_score"] == pytest.approx(100 * (4.5 / 6 - 1.5 / 4))
    assert figures["paired_question_mean"] == pytest.approx(100 * ((1 - 0.5) + 0) / 2)
    assert (figures["wins"], figures["ties"], figures["losses"]) == (1, 1, 0)
    assert found["benchmark"] == "arena_hard_v2.0[judge=j, baseline=base]"


def test_battles_of_two_judges_are_not_compared(tmp_path):
    rows = [
        {"uid": "1", "category": "hard_prompt", "model": model, "judge": judge, "baseline": "base",
         "games": [{"judgment": "[[A>B]]"}] * 2}
        for model, judge in (("new", "strict"), ("old", "mild"))
    ]  # fmt: skip
    with pytest.raises(
        InputError, match="new was judged by strict and old by mild; give battles of one judge"
    ):
        compare_files("arena-hard", "new", "old", [str(write(tmp_path / "j.jsonl", rows))], draws=2)


def test_ratings_within_a_tenth_are_ties(tmp_path):
    ratings = {"new": (7, 8, 5, 6), "old": (7, 6, 6, 6)}
    rows = [
        {"question_id": 81 + place // 2, "turn": 1 + place % 2, "model": model, "judgment": f"[[{one}]]"}
        for model, some in ratings.items()
        for place, one in enumerate(some)
    ]
    (found,) = command("compare", "new", "old", write(tmp_path / "r.jsonl", rows), "--benchmark", "mt-bench")
    # by question: 2 and -1; of four flips two sum to 3 and two to 1
    assert values(found) == pytest.approx(
        {"paired_mean": 0.25, "wins": 1, "ties": 2, "losses": 1, "p_sign_flip": 1}
    )


def test_a_win_over_the_baseline_that_the_other_missed_is_a_win(tmp_path):
    preferences = {"new": (1.9999999, 1.7, 1.2, 1.1), "old": (2.0, 1.3, 1.1, 1.6)}
    rows = [
        {"instruction": f"q{place}", "output_1": "base", "output_2": "x" * len(model), "generator_1": "base",
         "generator_2": model, "annotator": "j", "preference": one}
        for model, some in preferences.items()
        for place, one in enumerate(some)
    ]  # fmt: skip
    (found,) = command(
        "compare", "new", "old", write(tmp_path / "a.jsonl", rows), "--benchmark", "alpaca-eval"
    )
    figures = values(found)
    assert figures["paired_win_rate"] == pytest.approx(100 * (-0.0000001 + 0.4 + 0.1 - 0.5) / 4)
    assert (figures["wins"], figures["ties"], figures["losses"]) == (1, 2, 1)
    assert (figures["mean_characters_ours"], figures["mean_characters_theirs"]) == (3, 3)


@pytest.mark.shared
def test_two_verifiers_of_mathematics_are_told_apart(shared):
    file = shared / "data" / "gsm8k" / "graded_solutions.jsonl.gz"
    (found,) = command("compare", "175b_verification", "175b_finetuning", file, "--benchmark", "gsm8k")
    # 373 and 211 of 660 are right
    assert found["figures"]["paired_accuracy"]["value"] == pytest.approx(100 * (373 - 211) / 660)
    assert found["figures"]["wins"]["value"] - found["figures"]["losses"]["value"] == 373 - 211
    assert found["figures"]["p_sign_flip"]["value"] < 0.001
