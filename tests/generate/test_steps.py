import re

import pytest

from prefloop import tales
from prefloop.generate.steps import cutter
from prefloop.modeling import load_codec
from prefloop.records import Completion

LONG = 'Mina smiled! Was it 3.50? She said "No." Then\nshe went (home). 她走了。他来了。The end...'


@pytest.fixture(scope="module")
def codec(tiny_model):
    return load_codec(tiny_model)


def completion(codec, text: str, *, terminator: bool = True) -> Completion:
    ids = (*codec.plain_ids(text), *([codec.terminator_id] if terminator else []))
    return Completion(id="c", prompt_id="p", text=codec.decode(ids), token_ids=ids)


def steps_of(codec, one: Completion, step) -> list[str]:
    """All steps, one after the other; they must be all tokens and all text."""
    cut, at, found = cutter(codec, step), 0, []
    while at < len(one.token_ids):
        end, text = cut(one, at)
        assert end > at
        assert codec.decode(one.token_ids[:end]) == "".join(found) + text
        found.append(text)
        at = end
    assert "".join(found) == one.text
    return found


def test_a_sentence_ends_at_its_mark_where_space_or_another_script_follows(codec):
    assert [one.strip() for one in steps_of(codec, completion(codec, LONG), "sentence")] == [
        "Mina smiled!",
        "Was it 3.50?",
        'She said "No."',
        "Then",
        "she went (home).",
        "她走了。",
        "他来了。",
        "The end...",
    ]


def test_a_line_ends_with_its_newlines_and_is_never_blank(codec):
    assert steps_of(codec, completion(codec, "\n\na. b\n\n\nc\nd"), "line") == ["\n\na. b\n\n\n", "c\n", "d"]


@pytest.mark.parametrize("number", [1, 3, 7])
def test_a_number_of_tokens_is_that_number_except_at_the_end(codec, number):
    one = completion(codec, "Mina the fox lived by the river and she wanted a kite.", terminator=False)
    cut, at, sizes = cutter(codec, number), 0, []
    while at < len(one.token_ids):
        end, _ = cut(one, at)
        sizes.append(end - at)
        at = end
    assert set(sizes[:-1]) <= {number}
    assert sizes[-1] <= number


def test_no_character_is_cut_in_two(codec):
    """The tokenizer knows no Chinese, so that each character is three tokens."""
    one = completion(codec, "她走了", terminator=False)
    assert len(one.token_ids) == 9
    assert steps_of(codec, one, 2) == ["她", "走", "了"]


def test_what_only_the_terminator_follows_is_the_last_step(codec):
    one = completion(codec, "She smiled. He left.")
    end, text = cutter(codec, "sentence")(one, len(codec.plain_ids("She smiled.")))
    assert (end, text) == (len(one.token_ids), " He left.")
    assert one.token_ids[end - 1] == codec.terminator_id


@pytest.mark.parametrize("text", ["", "   ", "\n\n\n", "...", "。", "no end at all"])
def test_odd_completions_are_one_step(codec, text):
    one = completion(codec, text)
    for step in ("sentence", "line"):
        assert steps_of(codec, one, step) == [text]


def test_the_sentences_of_tales_are_their_steps(codec):
    for text in [one.text for one in tales.texts(20)]:
        expected = re.findall(r"[^.]+\.", text)
        assert steps_of(codec, completion(codec, text), "sentence") == expected


def test_long_text_without_an_end_takes_no_long_time(codec):
    one = completion(codec, "a " * 1000 + "!" * 300)
    assert len(steps_of(codec, one, "sentence")) == 1
