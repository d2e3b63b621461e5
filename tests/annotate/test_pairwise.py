"""A pairwise model, tiny and random."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from prefloop.annotate.pairwise import load_pairwise
from prefloop.config import PairwiseAnnotator, RuntimeSection
from prefloop.interfaces import InputError, PairTask
from prefloop.records import Comparison, Message, Prompt, Refusal, file_completion
from prefloop.reward.questions import conversation_text

RUNTIME = RuntimeSection(device="cpu")
WORDS = ("[pad]", "[eos]", "[unk]", "<u>", "<s>", "A", "B", "user", "one", "two", "three", "four", "five")
TEMPLATE = (
    "{% for m in messages %}<u> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<s> {% endif %}"
)


def save_model(folder, *, words=WORDS, kind=LlamaForCausalLM):
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[unk]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[pad]", eos_token="[eos]", unk_token="[unk]"
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=0,
        num_labels=1,
    )
    kind(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("pairwise"))


def load(model: str, **options):
    return load_pairwise(PairwiseAnnotator(kind="pairwise", model=model, **options), RUNTIME)


def task(question: str, a: str, b: str) -> PairTask:
    prompt = Prompt.of((Message(role="user", content=question),))
    return PairTask(prompt, file_completion(prompt, a), file_completion(prompt, b, 1))


TASKS = [
    task("one", "two", "three"),
    task("five four", "one one one two three four", "five"),
    task("three", "four", "two two"),
]


def test_p_a_is_the_mean_over_both_orders_of_the_softmax_over_the_two_letters(model):
    rows = list(load(model).compare(TASKS))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    reference = LlamaForCausalLM.from_pretrained(model).eval()
    letters = tokenizer.convert_tokens_to_ids(["A", "B"])

    def p_first(one: PairTask, first: str, second: str) -> float:
        text = f"<u> [CONTEXT] <turn> user {one.prompt.text} [RESPONSE A] {first} [RESPONSE B] {second} <s>"
        logits = reference(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
        return logits[letters].softmax(0)[0].item()

    for row, one in zip(rows, TASKS, strict=True):
        ab, ba = p_first(one, one.a.text, one.b.text), p_first(one, one.b.text, one.a.text)
        assert abs(ab - ba) > 1e-4  # the random model does prefer a side
        torch.testing.assert_close(row.p_a, (ab + (1 - ba)) / 2, atol=1e-6, rtol=0)


def test_swapping_the_two_gives_exactly_the_complement(model):
    comparer = load(model)
    swapped = [PairTask(one.prompt, one.b, one.a) for one in TASKS]
    for row, other in zip(comparer.compare(TASKS), comparer.compare(swapped), strict=True):
        assert row.p_a == 1 - other.p_a
        assert other.p_a == 1 - row.p_a


def test_rows_do_not_depend_on_the_batch(model):
    comparer = load(model)
    together = [row.p_a for row in comparer.compare(TASKS)]
    alone = [row.p_a for one in TASKS for row in comparer.compare([one])]
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_rows_name_the_model_both_orders_and_two_labels(model):
    row = next(load(model).compare(TASKS))
    assert (row.annotator, row.presented, row.labels) == (f"pairwise/{model}", "both", 2)


def test_texts_that_do_not_fit_are_refused_at_no_cost_and_the_others_judged(model):
    long = task("one", "two " * 70, "three")
    rows = list(load(model).compare([TASKS[0], long, TASKS[1]]))
    assert [type(row) for row in rows] == [Comparison, Refusal, Comparison]
    assert (rows[1].reason, rows[1].labels) == ("too_long", 0)
    assert rows[2].p_a == pytest.approx(next(load(model).compare([TASKS[1]])).p_a, abs=1e-6)


def test_the_template_is_filled_once_and_needs_its_places(model):
    comparer = load(model, template="{a} {b} {context}")
    rows = list(comparer.compare([task("one", "{b}", "{context}")]))
    assert len(rows) == 1
    with pytest.raises(InputError, match=r"lacks \{context\}"):
        load(model, template="{a} {b}")


def test_the_context_is_the_conversation_in_rlhflows_turn_marks():
    messages = (
        Message(role="user", content="hi"),
        Message(role="assistant", content="yes?"),
        Message(role="user", content="bye"),
    )
    # what the chat template of RLHFlow's pair-preference pipeline renders
    assert (
        conversation_text(messages) == "\n\n<turn> user\n hi\n<turn> assistant\n yes?\n<turn> user\n bye\n\n"
    )


def test_a_tokenizer_without_single_distinct_letters_is_refused(tmp_path):
    no_letters = [word for word in WORDS if word not in "AB"]
    with pytest.raises(InputError, match="one token each, and different"):
        load(save_model(tmp_path, words=no_letters))


def test_a_sequence_classifier_is_refused(tmp_path):
    with pytest.raises(InputError, match="LlamaForSequenceClassification"):
        load(save_model(tmp_path, kind=LlamaForSequenceClassification))


def test_the_built_in_model_can_be_asked(tiny_model):
    rows = list(load(str(tiny_model)).compare([task("Tell a tale.", "Once.", "Twice, far away.")]))
    assert 0 < rows[0].p_a < 1
