import pytest
import torch

from prefloop.batches import (
    PLAIN_TEMPLATE,
    Codec,
    TokenGroup,
    collate,
    cut,
    microbatches,
    resolve_template,
    tokens_at_once,
)
from prefloop.config import RuntimeSection
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
    ("truncation", "max_length", "expected"),
    [
        ("keep_end", 20, ((0, 1, 2, 3, 4, 5), ((10, 11, 12, 13), (20,)), 0)),  # fits: nothing is cut
        ("keep_end", 8, ((2, 3, 4, 5), ((10, 11, 12, 13), (20,)), 2)),  # one prompt for both
        ("keep_start", 8, ((0, 1, 2, 3), ((10, 11, 12, 13), (20,)), 2)),
        ("keep_end", 6, ((2, 3, 4, 5), ((10, 11), (20,)), 2)),  # then the end of what is still too long
    ],
)
def test_too_long_groups_lose_prompt_first_then_the_end_of_completions(truncation, max_length, expected):
    group = TokenGroup(tuple(range(6)), ((10, 11, 12, 13), (20,)))
    short, changed = cut(group, max_length=max_length, max_prompt_length=4, truncation=truncation)
    assert (short.prompt_ids, short.completions, changed) == expected


GROUPS = [TokenGroup((1, 2), ((3, 4), (5,))), TokenGroup((6,), ((7, 8, 9),))]


@pytest.mark.parametrize("share", [True, False])
def test_every_completion_token_is_predicted_once_from_the_token_before(share):
    batch = collate(GROUPS, share=share, pad_id=0, device=torch.device("cpu"))
    flat = batch.input_ids.flatten()
    assert batch.targets.tolist() == [3, 4, 5, 7, 8, 9]
    assert flat[batch.predictors].tolist() == [2, 3, 2, 6, 7, 8]
    assert flat[batch.ends].tolist() == [4, 5, 9]
    assert batch.completion_of.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.lengths.tolist() == [2, 1, 3]
    assert batch.summed(torch.ones(6)).tolist() == [2, 1, 3]
    assert int(batch.real.sum()) == (9 if share else 4 + 3 + 4)


def test_a_flat_row_holds_each_prompt_once_and_positions_continue_it():
    batch = collate(GROUPS, share=True, pad_id=0, device=torch.device("cpu"))
    assert batch.input_ids[0, :9].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert batch.position_ids[0, :9].tolist() == [0, 1, 2, 3, 2, 0, 1, 2, 3]


def test_without_a_prompt_the_first_token_is_not_predicted():
    batch = collate([TokenGroup((), ((3, 4),))], share=True, pad_id=0, device=torch.device("cpu"))
    assert (batch.targets.tolist(), batch.ends.tolist()) == ([4], [1])


def test_token_counts_of_a_group():
    group = TokenGroup((1, 2, 3), ((4, 5), (6,)))
    assert (group.num_tokens, group.num_completion_tokens, group.num_padded_tokens, group.longest) == (
        6,
        3,
        10,
        5,
    )


def test_microbatches_stay_within_their_tokens_and_lose_nothing():
    lengths = [5, 3, 9, 2, 7, 30, 4]
    parts = microbatches(lengths, lambda one: one, max_tokens=20)
    assert sorted(one for part in parts for one in part) == sorted(lengths)
    assert all(sum(part) <= 20 or len(part) == 1 for part in parts)


def test_microbatches_are_of_similar_size():
    parts = microbatches([10] * 9, lambda one: one, max_tokens=80)
    assert sorted(map(sum, parts)) == [40, 50]


def test_fewer_tokens_at_once_on_a_cpu_unless_the_experiment_says():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [tokens_at_once(RuntimeSection(), one) for one in (cpu, cuda)] == [2048, 8192]
    assert tokens_at_once(RuntimeSection(microbatch_tokens=77), cuda) == 77
