"""Every row format, read through the readers that use it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefloop.config import SourceSection
from prefloop.data import (
    PROMPT_FORMATS,
    Loaded,
    read_demonstrations,
    read_groups,
    read_pairs,
    read_prompts,
    read_texts,
)
from prefloop.formats import SIGNATURES
from prefloop.interfaces import InputError
from prefloop.records import Message, PreferencePair, Prompt

SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi!"}
AGAIN = {"role": "user", "content": "Again"}
GO_AWAY = {"role": "assistant", "content": "Go away."}
THREAD = [HELLO, HI, AGAIN]
Read = Callable[[SourceSection], Loaded]


def source(tmp_path: Path, *rows: object, **options: object) -> SourceSection:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SourceSection.model_validate({"path": str(path), **options})


def turns(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages]


def pair_of(pair: PreferencePair) -> tuple[list[dict[str, str]], str, str, float]:
    return turns(pair.prompt.messages), pair.chosen.text, pair.rejected.text, pair.margin


@pytest.mark.parametrize(
    ("row", "format", "expected"),
    [
        ({"prompt": "Hello"}, "prompt", [HELLO]),
        ({"prompt": [SYSTEM, HELLO]}, "prompt", [SYSTEM, HELLO]),
        ({"prompt": [HELLO], "ability": "chat", "extra_info": {"index": 3}}, "prompt", [HELLO]),
        ({"context_messages": THREAD}, "online_rlhf", THREAD),
        ({"messages": THREAD}, "messages", THREAD),
        ({"prompt": "Hello", "messages": [HELLO, HI]}, "prompt", [HELLO]),
        ({"prompt": "Hello", "completion": "Hi!"}, "prompt_completion", [HELLO]),
        ({"prompt": "Hello", "completion": "Hi!", "label": False}, "unpaired", [HELLO]),
        ({"prompt": "Hello", "chosen": "Hi!", "rejected": "Go away."}, "preference", [HELLO]),
        ({"instruction": "Hello", "input": "", "output": "Hi!"}, "alpaca", [HELLO]),
        ({"instruction": "Hello", "completions": []}, "ultrafeedback", [HELLO]),
        ({"prompt": "Hello", "responses": ["Hi!"]}, "groups", [HELLO]),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Hello"},
                ]
            },
            "sharegpt",
            [SYSTEM, HELLO],
        ),
        (
            {
                "chosen": "\n\nHuman: Hello\n\nAssistant: Hi!",
                "rejected": "\n\nHuman: Hello\n\nAssistant: No.",
            },
            "hh",
            [HELLO],
        ),
    ],
)
def test_a_prompt_is_read_from_every_format(tmp_path: Path, row: object, format: str, expected: object):
    loaded = read_prompts(source(tmp_path, row))
    assert [turns(prompt.messages) for prompt in loaded.rows] == [expected]
    assert loaded.format == format
    assert read_prompts(source(tmp_path, row, format=format)).rows == loaded.rows


@pytest.mark.parametrize(
    ("row", "format", "expected"),
    [
        ({"messages": [SYSTEM, HELLO, HI]}, "messages", [SYSTEM, HELLO, HI]),
        ({"prompt": "Hello", "completion": "Hi!"}, "prompt_completion", [HELLO, HI]),
        ({"prompt": THREAD, "completion": [GO_AWAY]}, "prompt_completion", [*THREAD, GO_AWAY]),
        ({"prompt": [HELLO], "completion": [HI, AGAIN, GO_AWAY]}, "prompt_completion", [*THREAD, GO_AWAY]),
        ({"prompt": "Hello", "completion": "Hi!", "label": True}, "unpaired", [HELLO, HI]),
        ({"prompt": "Hello", "chosen": "Hi!", "rejected": "Go away."}, "preference", [HELLO, HI]),
        ({"question": "Hello", "answer": "Hi!"}, "prompt_completion", [HELLO, HI]),
        ({"instruction": "Hello", "output": "Hi!"}, "alpaca", [HELLO, HI]),
        ({"instruction": "Hello", "instances": [{"input": "", "output": "Hi!"}]}, "alpaca", [HELLO, HI]),
        (
            {"instruction": "Add", "input": "1 + 1", "output": "2", "text": "Below is an instruction"},
            "alpaca",
            [{"role": "user", "content": "Add\n\n1 + 1"}, {"role": "assistant", "content": "2"}],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]},
            "sharegpt",
            [HELLO, HI],
        ),
    ],
)
def test_a_demonstration_is_read_from_every_format(
    tmp_path: Path, row: object, format: str, expected: object
):
    loaded = read_demonstrations(source(tmp_path, row))
    assert [turns(one.messages) for one in loaded.rows] == [expected]
    assert loaded.format == format


@pytest.mark.parametrize(
    ("row", "format", "prompt", "margin"),
    [
        ({"prompt": "Hello", "chosen": "Hi!", "rejected": "Go away."}, "preference", [HELLO], 1.0),
        ({"prompt": THREAD, "chosen": [HI], "rejected": [GO_AWAY]}, "preference", THREAD, 1.0),
        ({"chosen": [*THREAD, HI], "rejected": [*THREAD, GO_AWAY]}, "preference", THREAD, 1.0),
        (
            {"prompt": "Hello", "chosen": "Hi!", "rejected": "Go away.", "margin": 0.25},
            "preference",
            [HELLO],
            0.25,
        ),
        (
            {
                "prompt": "Hello",
                "prompt_id": "f00",
                "chosen": [HELLO, HI],
                "rejected": [HELLO, GO_AWAY],
                "messages": [HELLO, HI],
                "score_chosen": 8.5,
                "score_rejected": 7.0,
            },
            "ultrafeedback",
            [HELLO],
            1.5,
        ),
        (
            {
                "chosen": "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: Again\n\nAssistant: Hi!",
                "rejected": "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: Again\n\nAssistant: Go away.",
            },
            "hh",
            THREAD,
            1.0,
        ),
        (
            {"prompt": [HELLO], "responses": ["Hm.", "Go away.", "Hi!"], "rewards": [0.5, -1, 2]},
            "online_rlhf",
            [HELLO],
            3.0,
        ),
        ({"messages": THREAD, "ranked_responses": ["Hi!", "Hm.", "Go away."]}, "groups", THREAD, 1.0),
        (
            {
                "instruction": "Hello",
                "completions": [
                    {"response": "Go away.", "overall_score": 2.0},
                    {
                        "response": "Hi!",
                        "annotations": {
                            "helpfulness": {"Rating": "5", "Rationale": "…"},
                            "honesty": {"Rating": "4"},
                            "truthfulness": {"Rating": "N/A"},
                        },
                    },
                ],
            },
            "ultrafeedback",
            [HELLO],
            2.5,
        ),
    ],
)
def test_a_pair_is_read_from_every_format(
    tmp_path: Path, row: object, format: str, prompt: object, margin: float
):
    loaded = read_pairs(source(tmp_path, row))
    assert [pair_of(pair) for pair in loaded.rows] == [(prompt, "Hi!", "Go away.", margin)]
    assert loaded.format == format
    assert loaded.rows[0].annotator == "file:rows.jsonl"


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"prompt": "Hello", "responses": ["b", "a", "b"], "reference": "c"}, "groups"),
        ({"prompt": [HELLO], "responses": ["b", "a", "b"], "rewards": [1, None, 0.5]}, "online_rlhf"),
        ({"context_messages": [HELLO], "responses": ["b", "a", "b"]}, "online_rlhf"),
        ({"messages": [HELLO], "ranked_responses": ["b", "a", "b"]}, "groups"),
        ({"instruction": "Hello", "completions": [{"response": text} for text in "bab"]}, "ultrafeedback"),
    ],
)
def test_a_group_keeps_the_order_of_its_completions(tmp_path: Path, row: object, format: str):
    loaded = read_groups(source(tmp_path, row))
    assert loaded.format == format
    (group,) = loaded.rows
    assert turns(group.prompt.messages) == [HELLO]
    assert [one.text for one in group.completions] == ["b", "a", "b"]
    assert len({one.id for one in group.completions}) == 3


def test_records_that_prefloop_wrote_are_read_back(tmp_path: Path):
    row = {"prompt": "Hello", "chosen": "Hi!", "rejected": "Go away.", "margin": 0.5}
    (pair,) = read_pairs(source(tmp_path, row)).rows
    (group,) = read_groups(source(tmp_path, {"prompt": "Hello", "responses": ["a", "b"]})).rows
    assert [pair_of(one) for one in read_pairs(source(tmp_path, pair.model_dump())).rows] == [pair_of(pair)]
    assert read_groups(source(tmp_path, group.model_dump())).rows == [group]
    assert read_prompts(source(tmp_path, pair.prompt.model_dump())).rows == [pair.prompt]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "6 x 12?", "answer": "6 x 12 = <<6*12=72>>72\n#### 72"}, "72"),
        ({"prompt": "6 x 12?", "answer": 72}, "72"),
        ({"prompt": "Who?", "answer": "Mina"}, "Mina"),
        ({"prompt": "Who?"}, None),
    ],
)
def test_the_reference_answer_is_what_follows_the_mark(tmp_path: Path, row: object, answer: str | None):
    (prompt,) = read_prompts(source(tmp_path, row)).rows
    assert prompt.answer == answer


def test_a_gsm8k_solution_is_imitated_whole(tmp_path: Path):
    row = {"question": "6 x 12?", "answer": "It is 72.\n#### 72"}
    (demonstration,) = read_demonstrations(source(tmp_path, row)).rows
    assert demonstration.messages[-1].content == "It is 72.\n#### 72"


def test_text_is_kept_as_it_is(tmp_path: Path):
    loaded = read_texts(source(tmp_path, {"text": " Once.\n"}, {"text": "Twice.", "prompt": "not read"}))
    assert [text.text for text in loaded.rows] == [" Once.\n", "Twice."]


def test_spaces_in_a_transcript_are_kept(tmp_path: Path):
    row = {"chosen": "\n\nHuman:  a \n\nAssistant: b\n", "rejected": "\n\nHuman:  a \n\nAssistant:c: d"}
    (pair,) = read_pairs(source(tmp_path, row)).rows
    assert pair_of(pair) == ([{"role": "user", "content": " a "}], "b\n", "c: d", 1.0)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [HELLO, HI], "rejected": [AGAIN, GO_AWAY]},
        {"chosen": [HELLO, HI], "rejected": [HELLO, HI, AGAIN, GO_AWAY]},
        {"prompt": "Something else", "chosen": [HELLO, HI], "rejected": [HELLO, GO_AWAY]},
        {"prompt": [SYSTEM, HELLO], "chosen": [HELLO, HI], "rejected": [HELLO, GO_AWAY]},
        {"chosen": "\n\nHuman: a\n\nAssistant: c", "rejected": "\n\nHuman: b\n\nAssistant: d"},
    ],
)
def test_pairs_with_two_prompts_are_counted_and_never_an_error(tmp_path: Path, row: object):
    loaded = read_pairs(source(tmp_path, row))
    assert (loaded.rows, loaded.rows_in, loaded.dropped) == ([], 1, {"unequal_prompts": 1})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hello", "chosen": "same", "rejected": "same"}, "identical"),
        ({"prompt": "Hello", "responses": ["a", "b"], "rewards": [1, 1]}, "tie"),
        ({"prompt": "Hello", "responses": ["a", "b"], "rewards": [1, None]}, "short"),
        ({"prompt": "Hello", "responses": ["a", "b"], "rewards": [None, None]}, "short"),
        ({"messages": [HELLO], "ranked_responses": ["a"]}, "short"),
    ],
)
def test_rows_without_a_preference_are_counted_and_never_an_error(tmp_path: Path, row: object, reason: str):
    loaded = read_pairs(source(tmp_path, row))
    assert (loaded.rows, loaded.dropped) == ([], {reason: 1})


@pytest.mark.parametrize(
    ("label", "dropped"), [(True, {}), (0, {"label_false": 1}), ("False", {"label_false": 1})]
)
def test_only_completions_labelled_good_are_demonstrations(tmp_path: Path, label: object, dropped: object):
    loaded = read_demonstrations(source(tmp_path, {"prompt": "a", "completion": "b", "label": label}))
    assert loaded.dropped == dropped


TRANSCRIPT = "chosen is not a transcript in which Human and Assistant take turns and Assistant comes last"


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", "\n\nHuman: a\n\nAssistant: b\n\nAssistant: d"),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "\n\nHuman: a\n\nAssistant: b\n\nHuman: d"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "\n\nHuman: a\n\nAssistant: d"),
        ("Note.\n\nHuman: a\n\nAssistant: b", "Note.\n\nHuman: a\n\nAssistant: c"),
        ("\n\nAssistant: a\n\nHuman: b\n\nAssistant: c", "\n\nAssistant: a\n\nHuman: b\n\nAssistant: d"),
    ],
)
def test_a_transcript_must_take_turns(tmp_path: Path, chosen: str, rejected: str):
    row = {"chosen": chosen, "rejected": rejected}
    with pytest.raises(InputError, match=rf"^rows\.jsonl row 1: {TRANSCRIPT}; fix the row, or skip"):
        read_pairs(source(tmp_path, row, format="hh"))
    assert read_pairs(source(tmp_path, row, format="hh", bad_rows="drop")).dropped == {"not_a_transcript": 1}


LONE = "\ud800"
BAD_PROMPTS = [
    ({"prompt": ""}, "empty_prompt", "the last user turn is empty; a prompt needs text"),
    ({"prompt": [{"role": "user", "content": " \n"}]}, "empty_prompt", "the last user turn is empty"),
    ({"prompt": []}, "empty_prompt", "no user turn; a prompt needs one"),
    ({"prompt": [SYSTEM]}, "empty_prompt", "no user turn; a prompt needs one"),
    (
        {"prompt": [HELLO, HI]},
        "assistant_final",
        "the last turn is the assistant's; a prompt must end with a user turn",
    ),
    ({"prompt": [HELLO, AGAIN]}, "not_alternating", "turn 2 is the user's, not the assistant's"),
    ({"prompt": [SYSTEM, HI, HELLO]}, "not_alternating", "turn 2 is the assistant's, not the user's"),
    ({"prompt": [HELLO, {"role": "assistant", "content": ""}, AGAIN]}, "empty_turn", "turn 2 is empty"),
    (
        {"prompt": [{"role": "tool", "content": "x"}]},
        "unknown_role",
        "prompt, turn 1: role 'tool'; use system, user, assistant",
    ),
    (
        {"prompt": [{"content": "x"}]},
        "unknown_role",
        "prompt, turn 1: role None; use system, user, assistant",
    ),
    ({"prompt": ["x"]}, "wrong_type", "prompt, turn 1, is text, not an object with role and content"),
    (
        {"prompt": [{"role": "user", "content": None}]},
        "wrong_type",
        "prompt, turn 1: content is null, not text",
    ),
    ({"prompt": 17}, "wrong_type", "prompt is a number, not text or a list of turns"),
    ({"prompt": LONE}, "broken_text", "prompt holds half a surrogate pair"),
    (
        {"query": "x", "promt": "x"},
        "missing_field",
        "no field 'prompt'; the row has query, promt; rename columns with fields: {prompt: your column}",
    ),
    (17, "wrong_type", "a row is an object with named fields, not a number"),
]
BAD_DEMONSTRATIONS = [
    ({"prompt": "a", "completion": " "}, "empty_completion", "the answer is empty"),
    ({"prompt": "", "completion": "b"}, "empty_prompt", "the last user turn is empty"),
    ({"prompt": "a", "completion": [HELLO]}, "no_answer", "completion does not end with an assistant turn"),
    ({"prompt": "a"}, "missing_field", "no field 'completion'; the row has prompt; rename columns"),
    ({"prompt": "a", "completion": "b", "label": "maybe"}, "wrong_type", "label is text, not true or false"),
]
BAD_PAIRS = [
    ({"prompt": "a", "chosen": "", "rejected": "c"}, "empty_completion", "chosen is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": "\n"}, "empty_completion", "rejected is empty"),
    ({"prompt": "a", "chosen": "b"}, "missing_field", "no field 'rejected'; the row has prompt, chosen"),
    ({"chosen": "b", "rejected": "c"}, "missing_field", "no field 'prompt'; the row has chosen, rejected"),
    (
        {"prompt": "a", "chosen": "b", "rejected": 3},
        "wrong_type",
        "rejected is a number, not text or a list of turns",
    ),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": "high", "score_rejected": 1},
        "bad_score",
        "score_chosen is 'high', not a finite number",
    ),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")},
        "bad_score",
        "margin is nan, not a finite number",
    ),
]
BAD_GROUPS = [
    ({"prompt": "a", "responses": []}, "no_completions", "no completions; a group needs at least one"),
    ({"prompt": "a", "responses": ["b", ""]}, "empty_completion", "completion 1 is empty"),
    ({"prompt": "a", "responses": ["b", None]}, "wrong_type", "completion 1 is null, not text"),
    ({"prompt": "a", "responses": "b"}, "wrong_type", "responses is text, not a list"),
    (
        {"prompt": "a", "responses": ["b", "c"], "rewards": [1]},
        "unequal_lengths",
        "1 scores for 2 completions; give one each, null for not judged",
    ),
    (
        {"prompt": "a", "responses": ["b", "c"], "rewards": [1, float("inf")]},
        "bad_score",
        "the score of completion 1 is inf, not a finite number",
    ),
    (
        {"prompt": "a", "responses": ["b"], "rewards": ["1"]},
        "bad_score",
        "the score of completion 0 is '1'; use a number or null",
    ),
]


@pytest.mark.parametrize(
    ("read", "format", "row", "reason", "message"),
    [(read_prompts, "prompt", *case) for case in BAD_PROMPTS]
    + [(read_demonstrations, "unpaired", *case) for case in BAD_DEMONSTRATIONS]
    + [(read_pairs, "preference", *case) for case in BAD_PAIRS]
    + [(read_groups, "groups", *case) for case in BAD_GROUPS],
)
def test_a_bad_row_is_an_error_with_its_number_or_dropped_by_reason(
    tmp_path: Path, read: Read, format: str, row: object, reason: str, message: str
):
    good = {"prompt": "A good row", "completion": "x", "chosen": "x", "rejected": "y", "responses": ["x"]}
    with pytest.raises(InputError) as caught:
        read(source(tmp_path, good, row, format=format))
    assert str(caught.value).startswith(f"rows.jsonl row 2: {message}")
    assert "\n" not in str(caught.value)
    loaded = read(source(tmp_path, good, row, format=format, bad_rows="drop"))
    assert (loaded.rows_in, len(loaded.rows), loaded.dropped) == (2, 1, {reason: 1})


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (read_pairs, {"prompt": "a", "responses": ["b", "c"]}, "the completions have no scores; add rewards"),
        (read_demonstrations, {"messages": [HELLO]}, "no answer; end with the assistant's turn, or name the"),
        (read_prompts, {"instruction": "a", "instances": [{}, {}]}, "2 instances; write one row for each"),
    ],
)
def test_a_row_without_what_is_wanted_says_what_to_add(tmp_path: Path, read: Read, row: object, message: str):
    with pytest.raises(InputError, match=rf"^rows\.jsonl row 1: {message}"):
        read(source(tmp_path, row))


def test_the_same_turns_are_the_same_prompt_in_every_format(tmp_path: Path):
    rows = [{"prompt": "Hello"}, {"messages": [HELLO]}, {"instruction": "Hello"}]
    prompts = [read_prompts(source(tmp_path, row)).rows[0] for row in rows]
    assert {prompt.id for prompt in prompts} == {Prompt.of((Message(role="user", content="Hello"),)).id}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "response", "Rating"]), inner)
        | st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": inner}))
    ),
    max_leaves=6,
)
FIELDS = sorted({field for _, fields in SIGNATURES for field in fields} | {"margin", "input", "output"})


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6), format=st.sampled_from(PROMPT_FORMATS)
)
def test_any_row_comes_out_or_is_counted(tmp_path: Path, row: dict[str, object], format: str):
    for read in (read_prompts, read_demonstrations, read_pairs, read_groups):
        try:
            loaded = read(source(tmp_path, row, format=format, bad_rows="drop"))
        except InputError as error:
            assert str(error).startswith(f"rows.jsonl: format {format} ")
        else:
            assert loaded.rows_in == 1 == len(loaded.rows) + sum(loaded.dropped.values())
