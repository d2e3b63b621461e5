"""Grading mathematical answers."""

import gzip
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.annotate.math_answer import final_answer, grade, same_answer

SAME = [
    ("1/2", "0.5"),
    (r"\frac12", "1/2"),
    (r"\dfrac{3}{4}", "0.75"),
    ("1,234", "1234"),
    (r"1,\!234", "1234"),
    (r"\$5.00", "5"),
    (r"50\%", "0.5"),
    ("50%", "50"),
    ("0.5", "50%"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
    (r"\sqrt[3]{-8}", "-2"),
    ("(x+1)^2", "x^2 + 2x + 1"),
    (r"\frac{x+2}{7}", "x/7 + 2/7"),
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"\log_2 8", "3"),
    (r"e^{i\pi}", "-1"),
    ("(1+i)(1-i)", "2"),
    (r"1\frac{1}{2}", "3/2"),
    ("1 1/2", "1.5"),
    ("-2^2", "-4"),
    ("2**10", "1024"),
    ("2^{1000}", "4^{500}"),
    ("5!", "120"),
    (r"90^\circ", "90"),
    (r"5\text{ cm}", "5"),
    (r"\text{East}", "east"),
    ("x = 5", "5"),
    ("(1,2)", "(1, 2)"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    ("3, 1/2", "0.5, 3"),
    (r"\left[0, \frac{1}{2}\right)", "[0, 0.5)"),
    ("101_2", "101_2"),
]
DIFFERENT = [
    ("0.333", "1/3"),
    ("x + 1", "x + 2"),
    ("2^{1000} + 1", "2^{1000}"),
    ("(2,1)", "(1,2)"),
    ("[0,1)", "[0,1]"),
    ("(1,2,3)", "(1,2)"),
    ("Paris", "pairs"),
    ("101_2", "5"),
    ("1e5", "100000"),
    (r"\frac{1}{0}", "1"),
    ("", "1"),
    ("1", ""),
]
HOSTILE = [
    "9^9^9^9^9^9",
    "9**9**9**9",
    "2^{2^{2^{2^{2^{2^{2}}}}}}",
    "((((10^{10000})^{10000})^{10000})^{10000})!",
    r"\sqrt[((10^{10000})^{10000})^{10000}]{2}",
    r"\sin((10^{10000})^{10000})",
    "5" + "!" * 290,
    "(" * 299,
    "{" * 299,
    "-" * 298 + "1",
    "|" * 299,
    r"\frac" * 59,
    r"\sqrt" * 58 + "2",
    r"\boxed{" * 40,
    "1," * 149,
    "x^" * 149 + "x",
    "9" * 100_000,
    "\\boxed{" + "(" * 100_000 + "}",
    "A: " * 100_000,
    "__import__('os').system('touch /tmp/owned')",
    "().__class__.__bases__[0].__subclasses__()",
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_answers_are_equal_in_both_directions(one, other):
    assert same_answer(one, other)
    assert same_answer(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_answers_are_different_in_both_directions(one, other):
    assert not same_answer(one, other)
    assert not same_answer(other, one)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_answers_are_wrong_at_once(text):
    start = time.process_time()
    assert grade(text, "7") < 0
    assert time.process_time() - start < 1.0


@given(st.text(alphabet="0129x^{}()[]|!+-*/\\_,.% fracsqtloginep", max_size=80))
@settings(deadline=None)  # a second of computing is the limit, however busy the machine
def test_no_text_raises_or_takes_long(text):
    start = time.process_time()
    grade(text, "x + 1")
    assert time.process_time() - start < 1.0


def test_the_last_box_counts_and_its_braces_may_nest():
    assert final_answer(r"\boxed{1}, no: \boxed{\frac{a}{b}}.").text == r"\frac{a}{b}"
    assert grade(r"\boxed{1} then \boxed{2}", "1") == -0.5
    assert grade(r"cut off \boxed{\frac{1}{2", "1/2") == -1


@pytest.mark.parametrize(
    "solution", ["#### 18", "A: $18", "The answer is 18.", "18", "A: 18 dollars", "$18$"]
)
def test_an_answer_without_a_box_counts_when_it_is_marked_or_alone(solution):
    assert grade(f"{solution}", "18") == 1
    assert grade(f"{solution}", "19") == -1


def test_a_number_in_the_middle_of_the_text_is_no_answer():
    assert grade("She has 18 eggs and sells 3 of them", "18") == -1


def test_a_reference_may_be_a_whole_solution():
    assert grade(r"\boxed{18}", "16 - 3 = 13\n#### 18") == 1


@pytest.mark.shared
def test_grades_reproduce_every_stored_flag_of_gsm8k(shared):
    solutions = 0
    with gzip.open(shared / "data" / "gsm8k" / "graded_solutions.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            for graded in (value for value in row.values() if isinstance(value, dict)):
                solutions += 1
                assert (grade(graded["solution"], row["ground_truth"]) == 1) == graded["is_correct"]
    assert solutions == 2640
