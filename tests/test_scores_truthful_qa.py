"""TruthfulQA: what a model is asked, to the letter, and the binary setting."""

import hashlib
import json
import math

import pytest

from prefloop.interfaces import InputError
from prefloop.scoring import truthful_qa, truthful_qa_binary
from scored import command, write


def table(tmp_path) -> str:
    """The authors' table, which begins with a byte order mark."""
    file = tmp_path / "binary.csv"
    rows = ["Type,Question,Best Answer,Best Incorrect Answer", *(f"x,q{place},yes,no" for place in range(4))]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return str(file)


def test_a_request_is_six_questions_then_the_one_that_is_asked():
    both = truthful_qa.Choices(("Yes.", "No."), (1, 0))
    asked = list(truthful_qa.requests([truthful_qa.Question("Is it?", both, both)]))
    assert [continuation for _, continuation in asked] == [" Yes.", " No."] * 2
    context = asked[0][0]
    assert context.startswith("Q: What is human life expectancy in the United States?\nA: ")
    assert context.endswith("were held in Barcelona, Spain.\n\nQ: Is it?\nA:")
    assert context.count("Q: ") == 7
    # one question has one order
    text = json.dumps([list(one) for one in asked])
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert truthful_qa.requests_sha256([truthful_qa.Question("Is it?", both, both)]) == expected


def test_the_binary_setting_by_hand(tmp_path):
    rows = [
        {"question": f"q{place}", "binary": logps}
        for place, logps in enumerate(([-1, -2], [-2, -1], [-3, -3], [-1, -9]))
    ]
    questions = table(tmp_path)
    (found,) = command(
        "score", "truthful-qa", write(tmp_path / "logps.jsonl", rows), "--questions", questions
    )
    # right, wrong, a tie, right
    assert found["figures"]["binary"]["value"] == pytest.approx(62.5)
    assert found["benchmark"] == "truthful_qa_binary"
    (fewer,) = command(
        "score", "truthful-qa", write(tmp_path / "few.jsonl", rows[:3]), "--questions", questions
    )
    assert fewer["benchmark"] == "truthful_qa_binary[questions=3/4]"
    (alone,) = command("score", "truthful-qa", questions)
    assert {name: one["value"] for name, one in alone["figures"].items()} == {
        "num_questions": 4, "num_requests": 8, "binary_uniform_scorer": 50}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"question": "q9", "binary": [0, 0]}], "row 1: no question 'q9' in"),
        ([{"question": "q1", "binary": [0]}], "row 1: binary needs two log-likelihoods"),
        ([{"question": "q1", "binary": [math.nan, 0]}], "row 1: binary: log-likelihoods must be finite"),
        ([{"question": "q1", "binary": [0, 1]}] * 2, "row 2: the question 'q1' has been there before"),
    ],
)
def test_binary_rows_that_cannot_be_scored_name_the_place(tmp_path, rows, told):
    with pytest.raises(InputError, match=told):
        truthful_qa_binary.score(write(tmp_path / "rows.jsonl", rows), questions=table(tmp_path), draws=2)


@pytest.mark.shared
def test_the_binary_table_has_790_questions(shared):
    (found,) = command("score", "truthful-qa", shared / "data" / "truthfulqa" / "TruthfulQA_2025_binary.csv")
    assert found["figures"]["num_questions"]["value"] == 790
    assert found["figures"]["num_requests"]["value"] == 1580
