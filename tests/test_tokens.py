"""From text to the engine to training: the same token ids, whatever the chat template."""

import itertools

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from prefloop import config, tales
from prefloop.batches import Codec, collate
from prefloop.config import GenerateSection
from prefloop.generate.decoders import SharedDecoder
from prefloop.generate.groups import Author
from prefloop.generate.hf import hf_generator
from prefloop.interfaces import InputError
from prefloop.modeling import load_policy, load_tokenizer
from prefloop.pipeline import Watcher
from prefloop.records import Group, Message, PreferencePair, Prompt
from prefloop.store import Workspace
from prefloop.tokens import Check, Sample, look, prompt_parts
from prefloop.train.groups import grouped
from small import small

TEMPLATES = {
    "own BOS, turns in headers": (
        "{{ bos_token }}{% for m in messages %}<|user|>{{ m['role'] }}\n\n{{ m['content'] | trim }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|user|>assistant\n\n{% endif %}"
    ),
    "no BOS, a line a turn": (
        "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
    ),
    "system folded into the user's turn": (
        "{{ bos_token }}{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}[ {{ system if loop.index <= 2 else '' }} {{ m['content'] }} ]"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "plain": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
}
CONVERSATION = (
    Message(role="system", content="You tell short tales."),
    Message(role="user", content="Who was Ada?"),
    Message(role="assistant", content="A fox by the river."),
    Message(role="user", content=" Tell her tale. "),
)
PROMPTS = [Prompt.of(CONVERSATION), *tales.prompts()[:2]]


@pytest.fixture(params=itertools.product(TEMPLATES, ("adds BOS", "adds nothing")), ids=", tokenizer ".join)
def codec(request, tiny_model) -> Codec:
    template, adding = request.param
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = TEMPLATES[template]
    if adding == "adds BOS":
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        before = TemplateProcessing(single=f"{bos[0]} $A", pair=None, special_tokens=[bos])
        tokenizer.backend_tokenizer.post_processor = before
    return Codec(tokenizer)


def num_bos(codec) -> int:
    """What a plain reading of the tokenizer and its template says."""
    writes = "bos_token" in codec.tokenizer.chat_template
    adds = codec.tokenizer("x").input_ids[0] == codec.tokenizer.bos_token_id
    return int(writes or adds)


def sampled(codec, tiny_model, runtime) -> list[Group]:
    """By a random policy that ends about one completion in two."""
    model = load_policy(tiny_model, runtime)
    head = torch.nn.Linear(*reversed(model.lm_head.weight.shape))
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()[codec.terminator_id] = 4.0
    model.lm_head = head
    options = GenerateSection(num_completions=6, max_new_tokens=8)
    generator = hf_generator(model, codec, options, seed=0, author=Author("test", 0), runtime=runtime)
    return list(generator.generate(PROMPTS))


def test_training_reads_the_ids_that_the_engine_read_and_wrote(codec, tiny_model, runtime, monkeypatch):
    fed = []
    enter = SharedDecoder.enter
    monkeypatch.setattr(
        SharedDecoder,
        "enter",
        lambda self, slots, prompts: fed.extend(map(list, prompts)) or enter(self, slots, prompts),
    )
    groups = sampled(codec, tiny_model, runtime)
    assert len(fed) == len(PROMPTS)
    stored = [Group.model_validate_json(one.model_dump_json()) for one in groups]
    for prompt_ids, group in zip(fed, stored, strict=True):
        chosen, rejected = group.completions[:2]
        pair = PreferencePair.of(group.prompt, chosen, rejected, margin=1.0, annotator="test")
        (trained,) = grouped([pair], codec, "prompt", per_prompt=False)
        batch = collate([trained.tokens], share=True, pad_id=codec.pad_id, device=torch.device("cpu"))
        expected = [*prompt_ids, *chosen.token_ids, *rejected.token_ids]
        assert batch.input_ids[0, : len(expected)].tolist() == expected
        assert not batch.real[0, len(expected) :].any()


def test_one_bos_and_a_terminator_only_where_the_policy_wrote_it(codec, tiny_model, runtime):
    bos = codec.tokenizer.bos_token_id
    reasons = set()
    for group in sampled(codec, tiny_model, runtime):
        prompt = codec.prompt_ids(group.prompt.messages)
        assert prompt.count(bos) == num_bos(codec)
        assert bos not in prompt[1:]
        for one in group.completions:
            ends = [place for place, token in enumerate(one.token_ids) if token == codec.terminator_id]
            assert ends == ([len(one.token_ids) - 1] if one.finish_reason == "stop" else [])
            assert codec.tokenizer.eos_token not in one.text
            reasons.add(one.finish_reason)
    assert reasons == {"stop", "length"}


def test_every_turn_keeps_its_role(codec):
    parts = prompt_parts(codec, CONVERSATION)
    assert [token for token, _ in parts] == codec.prompt_ids(CONVERSATION)

    def said(role: str) -> str:
        return codec.tokenizer.decode([token for token, part in parts if part == role])

    for role, text in (
        ("system", "You tell short tales."),
        ("user", "Who was Ada?"),
        ("user", "Tell her tale."),
        ("assistant", "A fox by the river."),
    ):
        assert text in said(role)
    assert "Ada" not in said("system") + said("assistant") + said("template")
    assert not {part for token, part in parts if token in codec.tokenizer.all_special_ids} - {"template"}


# --- doctor ----------------------------------------------------------------------------------------------------------


def seen(x, tmp_path) -> tuple[dict[str, Sample], dict[str, Check]]:
    found = list(look(x, Workspace(tmp_path / "workspace"), Watcher()))
    samples = {one.title: one for one in found if isinstance(one, Sample)}
    return samples, {one.name: one for one in found if isinstance(one, Check)}


def test_the_view_shows_what_is_trained_and_that_all_agrees(tmp_path):
    x = small()
    samples, checks = seen(x, tmp_path)
    assert list(samples) == ["a demonstration of sft.data", "sampled from the model as it is before training"]
    demonstration = tales.demonstrations(1)[0]
    pieces = samples["a demonstration of sft.data"].pieces
    trained = "".join(one.text for one in pieces if one.trained)
    assert trained == demonstration.messages[-1].content + "<|end|>"
    assert "".join(one.text for one in pieces if one.part == "user") == demonstration.messages[0].content
    assert {name: one.state for name, one in checks.items()} == dict.fromkeys(
        ("BOS", "terminator", "earlier turns", "engine, trainer"), "ok"
    )


def model_with(template: str, tiny_model, tmp_path) -> str:
    """A copy of the model with another template."""
    folder = tmp_path / "model"
    load_policy(tiny_model, config.RuntimeSection(device="cpu")).save_pretrained(folder)
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_template_that_rewrites_earlier_turns_is_noted(tiny_model, tmp_path):
    template = (
        "{% for m in messages %}<|user|>{{ 'earlier: ' if not loop.last }}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|tale|>{% endif %}"
    )
    x = small(f"model.path={model_with(template, tiny_model, tmp_path)}", "sft.text=null")
    _, checks = seen(x, tmp_path)
    assert checks["earlier turns"].state == "note"


def test_a_terminator_in_the_middle_of_an_answer_is_a_problem(tiny_model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Who?", "completion": "Ada<|end|> and a fox."}\n')
    path = model_with(load_tokenizer(str(tiny_model)).chat_template, tiny_model, tmp_path)
    _, checks = seen(small(f"model.path={path}", f"sft.data={rows}", "sft.text=null"), tmp_path)
    assert checks["terminator"].state == "problem"
    assert "'Ada<|end|> and a fox.'" in checks["terminator"].detail


def test_an_experiment_with_nothing_to_look_at_says_so(tiny_model, tmp_path):
    x = config.parse(f"model: {tiny_model}\nevaluate: {{num_prompts: 0}}\nloop: {{batches: 0}}", where="test")
    with pytest.raises(InputError, match="neither prompts nor demonstrations nor pairs"):
        seen(x, tmp_path)
