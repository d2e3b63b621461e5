import pytest
import torch

from prefloop.batches import PLAIN_TEMPLATE, Codec, Row, collate, cut, microbatches, resolve_template
from prefloop.interfaces import InputError
from prefloop.modeling import load_codec, load_tokenizer
from prefloop.records import Completion, Message

CHAT = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="Tell a tale of Ada the fox who wanted a map."),
]


@pytest.fixture
def codec(tiny_model) -> Codec:
    return load_codec(tiny_model)


def test_a_prompt_has_exactly_one_bos(codec):
    ids = codec.prompt_ids(CHAT)
    assert ids[0] == codec.tokenizer.bos_token_id
    assert ids.count(codec.tokenizer.bos_token_id) == 1


def test_an_answer_ends_with_the_terminator_exactly_once(codec):
    ids = codec.answer_ids(CHAT, "Ada the fox lived by the lake.")
    assert ids[-1] == codec.tokenizer.eos_token_id
    assert ids.count(codec.tokenizer.eos_token_id) == 1
    assert codec.decode(ids) == "Ada the fox lived by the lake."


def test_prompt_and_answer_join_to_the_rendered_conversation(codec):
    answer = Message(role="assistant", content="She went home alone.")
    rendered = codec.tokenizer.apply_chat_template(
        [{"role": one.role, "content": one.content} for one in (*CHAT, answer)], tokenize=False
    )
    whole = codec.tokenizer(rendered, add_special_tokens=False).input_ids
    assert codec.prompt_ids(CHAT) + codec.answer_ids(CHAT, answer.content) == whole


def test_sampled_tokens_are_never_tokenised_again(codec):
    odd = (7, 8, 9)
    completion = Completion(id="c", prompt_id="p", text="anything", token_ids=odd)
    assert codec.completion_ids(CHAT, completion) == [7, 8, 9]


def tokenizer_with(tiny_model, **changes):
    tokenizer = load_tokenizer(str(tiny_model))
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_a_missing_template_is_refused(tiny_model):
    with pytest.raises(
        InputError, match="has no chat template; set model.template to `plain`, a .jinja file"
    ):
        Codec(tokenizer_with(tiny_model, chat_template=None))


def test_a_template_with_a_second_bos_is_refused(tiny_model):
    template = load_tokenizer(str(tiny_model)).chat_template
    with pytest.raises(InputError, match=r"the chat template adds a second BOS \(<\|bos\|>\)"):
        Codec(tokenizer_with(tiny_model, chat_template="{{ bos_token }}" + template))


def test_a_terminator_other_than_the_templates_is_refused(tiny_model):
    template = load_tokenizer(str(tiny_model)).chat_template.replace("{{ eos_token }}", "<|user|>")
    with pytest.raises(
        InputError, match=r"ends an answer with <\|user\|> but the terminator is <\|end\|>; set model"
    ):
        Codec(tokenizer_with(tiny_model, chat_template=template))


def test_a_template_that_cannot_render_names_the_roles(tiny_model):
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    codec = Codec(tokenizer_with(tiny_model, chat_template=template))
    with pytest.raises(InputError, match="cannot render a conversation of system, user: no system"):
        codec.prompt_ids(CHAT)


def test_templates_come_from_the_tokenizer_a_file_a_string_or_are_plain(tiny_model, tmp_path):
    tokenizer = load_tokenizer(str(tiny_model))
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0]['content'] }}")
    assert resolve_template("auto", tokenizer) == tokenizer.chat_template
    assert resolve_template("plain", tokenizer) == PLAIN_TEMPLATE
    assert resolve_template(str(file), tokenizer) == "{{ messages[0]['content'] }}"
    assert resolve_template("{{ messages }}", tokenizer) == "{{ messages }}"
    with pytest.raises(
        InputError, match=r"model.template = 'missing.jinja': not `auto`, `plain`, a template"
    ):
        resolve_template("missing.jinja", tokenizer)


@pytest.mark.parametrize(
    ("truncation", "max_length", "max_prompt_length", "expected"),
    [
        ("keep_end", 20, 4, ((0, 1, 2, 3, 4, 5), (10, 11, 12, 13), False)),  # fits: nothing is cut
        ("keep_end", 8, 4, ((2, 3, 4, 5), (10, 11, 12, 13), True)),
        ("keep_start", 8, 4, ((0, 1, 2, 3), (10, 11, 12, 13), True)),
        ("keep_end", 6, 4, ((2, 3, 4, 5), (10, 11), True)),  # then the completion's end
    ],
)
def test_too_long_rows_lose_prompt_first_then_the_end_of_the_completion(
    truncation, max_length, max_prompt_length, expected
):
    row = Row(tuple(range(6)), (10, 11, 12, 13))
    short, was_cut = cut(
        row, max_length=max_length, max_prompt_length=max_prompt_length, truncation=truncation
    )
    assert (short.prompt_ids, short.completion_ids, was_cut) == expected


def test_only_completion_tokens_count():
    batch = collate(
        [Row((1, 2), (3, 4)), Row((5,), (6, 7, 8), ignored=(1,))], pad_id=0, device=torch.device("cpu")
    )
    assert batch.input_ids.shape == (2, 8)
    assert batch.completion_mask[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert batch.completion_mask[1].tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
    assert batch.last.tolist() == [3, 3]
    assert batch.first_target == 1


def test_microbatches_stay_within_their_tokens_and_lose_nothing():
    lengths = [5, 3, 9, 2, 7, 30, 4]
    groups = list(microbatches(lengths, lambda one: one, max_tokens=20))
    assert sorted(one for group in groups for one in group) == sorted(lengths)
    assert all(max(group) * len(group) <= 20 or len(group) == 1 for group in groups)
