"""Scores from a user's function."""

import numpy as np
import pytest

from prefloop.annotate.function import FunctionScorer
from prefloop.config import FunctionAnnotator
from prefloop.interfaces import InputError
from prefloop.records import Group, Message, Prompt, file_completion
from prefloop.targets import function_digest, load_function

PROMPT = Prompt.of((Message(role="user", content="Count"),), answer="42")
GROUP = Group(
    prompt=PROMPT, completions=(file_completion(PROMPT, "one two"), file_completion(PROMPT, "x", 1))
)


@pytest.fixture
def write(tmp_path):
    def write(source: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(source)
        return f"{path}:score"

    return write


def score(target: str) -> list[float]:
    return [
        row.value for row in FunctionScorer(FunctionAnnotator(kind="function", target=target)).score([GROUP])
    ]


def test_the_function_gets_prompt_completion_and_answer(write):
    target = write(
        "def score(prompt, completion, answer):\n    return len(completion) + len(prompt) / 10 + int(answer)\n"
    )
    assert score(target) == [7 + 0.5 + 42, 1 + 0.5 + 42]


def test_rows_carry_the_name_of_the_function_and_cost_one_label(write):
    target = write("def score(prompt, completion, answer):\n    return 1\n")
    rows = list(FunctionScorer(FunctionAnnotator(kind="function", target=target)).score([GROUP]))
    assert {(row.annotator, row.labels) for row in rows} == {("function/score", 1)}


def test_a_numpy_number_is_a_number(write):
    target = write("import numpy as np\ndef score(prompt, completion, answer):\n    return np.float32(0.5)\n")
    assert score(target) == [0.5, 0.5]
    assert isinstance(score(target)[0], float) and not isinstance(score(target)[0], np.floating)


def test_a_file_may_define_dataclasses(write):
    target = write(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Bonus:\n    size: float = 2.0\n"
        "def score(prompt, completion, answer):\n    return Bonus().size\n"
    )
    assert score(target) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("'high'", "returned 'high', a str"),
        ("None", "returned None"),
        ("float('nan')", "returned nan"),
        ("float('inf')", "finite"),
    ],
)
def test_what_is_no_finite_number_names_the_prompt(write, returned, message):
    target = write(f"def score(prompt, completion, answer):\n    return {returned}\n")
    with pytest.raises(InputError, match=message) as caught:
        score(target)
    assert PROMPT.id in str(caught.value)


def test_an_exception_in_the_function_names_prompt_and_line_and_keeps_its_cause(write):
    target = write("def score(prompt, completion, answer):\n    return {}[completion]\n")
    with pytest.raises(InputError, match=rf"prompt {PROMPT.id}.*KeyError.*mine.py line 2") as caught:
        score(target)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def other(a, b, c):\n    return 1\n", "no function 'score'.*there is other"),
        ("score = 3\n", "no function 'score'"),
        ("def score(:\n", "SyntaxError"),
        ("import no_such_module_anywhere\n", "ModuleNotFoundError"),
    ],
)
def test_a_file_without_a_usable_function_says_what_is_wrong(write, source, message):
    with pytest.raises(InputError, match=message):
        load_function(write(source))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("score", "path/to/file.py:name"),
        ("x.py:", "path/to/file.py:name"),
        ("no/such.py:score", "no file no/such.py"),
    ],
)
def test_a_target_must_name_a_file_and_a_function(target, message):
    for use in (load_function, function_digest):
        with pytest.raises(InputError, match=message):
            use(target)


def test_the_digest_follows_content_and_name_and_not_the_place(write, tmp_path):
    target = write("def score(p, c, a):\n    return 1\n")
    before = function_digest(target)
    (tmp_path / "copy.py").write_text("def score(p, c, a):\n    return 1\n")
    assert function_digest(f"{tmp_path}/copy.py:score") == before
    assert function_digest(target.replace(":score", ":other")) != before
    write("def score(p, c, a):\n    return 2\n")
    assert function_digest(target) != before
