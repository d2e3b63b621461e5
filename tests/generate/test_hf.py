import math

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefloop import tales
from prefloop.attention import SHARED
from prefloop.config import GenerateSection
from prefloop.decoding import GroupCache
from prefloop.forward import share_prompts
from prefloop.generate.decoders import SharedDecoder, is_faster_alone, lay_out_weights
from prefloop.generate.draw import draw, penalise, uniform_numbers
from prefloop.generate.groups import Author, PolicyGenerator
from prefloop.generate.hf import hf_generator
from prefloop.interfaces import InputError
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Message, Prompt


def generator(tiny_model, runtime, *, rows=64, seed=0, model=None, **options) -> PolicyGenerator:
    options = {"num_completions": 4, "max_new_tokens": 12, **options}
    return hf_generator(
        model or load_policy(tiny_model, runtime),
        load_codec(tiny_model),
        GenerateSection(**options),
        seed=seed,
        author=Author("policy-test", 3),
        runtime=runtime.model_copy(update={"generation_rows": rows}),
    )


PROMPTS = tales.prompts()[:7]


def tokens(groups) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group.completions] for group in groups]


def test_every_prompt_gets_k_completions_in_order(tiny_model, runtime):
    groups = list(generator(tiny_model, runtime).generate(PROMPTS))
    assert [group.prompt.id for group in groups] == [prompt.id for prompt in PROMPTS]
    assert all(len(group.completions) == 4 for group in groups)
    assert all(
        one.policy == "policy-test" and one.policy_version == 3
        for group in groups
        for one in group.completions
    )


def test_the_same_seed_gives_the_same_samples_and_another_does_not(tiny_model, runtime):
    once, again, other = (
        tokens(generator(tiny_model, runtime, seed=seed).generate(PROMPTS)) for seed in (0, 0, 1)
    )
    assert once == again
    assert once != other


@pytest.mark.parametrize("rows", [4, 8, 28])
def test_samples_do_not_depend_on_who_shares_the_batch(tiny_model, runtime, rows):
    together = tokens(generator(tiny_model, runtime, rows=64).generate(PROMPTS))
    assert tokens(generator(tiny_model, runtime, rows=rows).generate(PROMPTS)) == together


def test_the_union_of_shards_is_every_prompt_once(tiny_model, runtime):
    whole = tokens(generator(tiny_model, runtime).generate(PROMPTS))
    shards = [tokens(generator(tiny_model, runtime).generate(PROMPTS[shard::3])) for shard in range(3)]
    assert sorted(one for shard in shards for one in shard) == sorted(whole)


def test_log_probabilities_are_those_of_the_policy_by_a_plain_forward_pass(tiny_model, runtime):
    model, codec = load_policy(tiny_model, runtime), load_codec(tiny_model)
    for group in generator(tiny_model, runtime, model=model, temperature=0.7, top_k=20).generate(PROMPTS[:3]):
        prompt = codec.prompt_ids(group.prompt.messages)
        for one in group.completions:
            with torch.no_grad():
                logps = model(torch.tensor([[*prompt, *one.token_ids]])).logits[0].log_softmax(-1)
            expected = [
                float(logps[len(prompt) - 1 + position, token])
                for position, token in enumerate(one.token_ids)
            ]
            assert one.token_logps == pytest.approx(expected, abs=2e-5)


def test_greedy_samples_equal_transformers_generate(tiny_model, runtime):
    model, codec = load_policy(tiny_model, runtime), load_codec(tiny_model)
    groups = generator(tiny_model, runtime, model=model, num_completions=1, temperature=0).generate(PROMPTS)
    for group in groups:
        prompt = torch.tensor([codec.prompt_ids(group.prompt.messages)])
        expected = model.generate(prompt, do_sample=False, max_new_tokens=12)[0, prompt.shape[1] :].tolist()
        assert list(group.completions[0].token_ids) == expected


def always(model, token: int):
    """A model that prefers one token, whatever it reads."""
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.lm_head.weight.shape[0]))
        model.lm_head.bias[token] = 50.0
    return model


def test_a_stopped_completion_keeps_its_terminator_and_a_cut_one_gets_none(tiny_model, runtime):
    codec = load_codec(tiny_model)
    stops = always(load_policy(tiny_model, runtime), codec.terminator_id)
    (group,) = generator(tiny_model, runtime, model=stops).generate(PROMPTS[:1])
    assert {(one.token_ids, one.finish_reason, one.text) for one in group.completions} == {
        ((codec.terminator_id,), "stop", "")
    }
    goes_on = always(load_policy(tiny_model, runtime), 300)
    (group,) = generator(tiny_model, runtime, model=goes_on).generate(PROMPTS[:1])
    assert {(len(one.token_ids), one.finish_reason) for one in group.completions} == {(12, "length")}
    assert all(codec.terminator_id not in one.token_ids for one in group.completions)


def test_rows_carry_their_temperature(tiny_model, runtime):
    shares = [{"count": 3, "temperature": 1.0}, {"count": 1, "temperature": 0.0}]
    (group,) = generator(tiny_model, runtime, temperatures=shares).generate(PROMPTS[:1])
    assert [one.sampling.temperature for one in group.completions] == [1.0, 1.0, 1.0, 0.0]
    (greedy,) = generator(tiny_model, runtime, num_completions=1, temperature=0).generate(PROMPTS[:1])
    assert group.completions[3].token_ids == greedy.completions[0].token_ids


def test_counts_of_temperatures_must_add_up():
    with pytest.raises(ValueError, match="temperatures count 3 completions but num_completions is 4"):
        GenerateSection(num_completions=4, temperatures=[{"count": 3, "temperature": 1.0}])


def test_prompts_that_do_not_fit_give_no_completions_and_others_go_on(tiny_model, runtime):
    long = Prompt.of((Message(role="user", content="Tell a tale of Ada the fox. " * 200),))
    groups = list(generator(tiny_model, runtime).generate([PROMPTS[0], long, PROMPTS[1]]))
    assert [len(group.completions) for group in groups] == [4, 0, 4]


def test_draw_follows_the_distribution():
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    uniforms = (torch.arange(1000) + 0.5) / 1000
    tokens, logps, _ = draw(probabilities.log().expand(1000, 3), uniforms, torch.ones(1000))
    assert tokens.bincount().tolist() == [100, 600, 300]
    torch.testing.assert_close(logps, probabilities.log()[tokens])


def test_temperature_sharpens_the_draw_but_not_the_log_probability():
    logits = torch.tensor([0.2, 0.8]).log().expand(1000, 2)
    uniforms = (torch.arange(1000) + 0.5) / 1000
    tokens, logps, _ = draw(logits, uniforms, torch.full((1000,), 0.5))
    # squared and normalised: 0.04 / 0.68
    assert tokens.bincount().tolist() == [59, 941]
    torch.testing.assert_close(logps, logits[0][tokens])


def test_top_k_and_top_p_keep_the_most_likely_tokens():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, 4)
    uniforms = (torch.arange(1000) + 0.5) / 1000
    assert draw(logits, uniforms, torch.ones(1000), top_k=2)[0].bincount().tolist() == [625, 375]
    assert draw(logits, uniforms, torch.ones(1000), top_p=0.8)[0].bincount().tolist() == [625, 375]
    assert draw(logits, uniforms, torch.ones(1000), top_p=0.81)[0].unique().tolist() == [0, 1, 2]


def test_temperature_zero_takes_the_most_likely_token():
    tokens, _, _ = draw(torch.tensor([[0.1, 3.0, 0.2]]), torch.tensor([0.999]), torch.zeros(1))
    assert tokens.tolist() == [1]


# --- shaped distributions --------------------------------------------------------------------------------------------


def by_transformers(logits, seen_ids, *, temperature, top_k, top_p, min_p, repetition_penalty):
    """Log-probabilities [B, V] by transformers' own processors, in the order in which `generate` applies them."""
    scores = RepetitionPenaltyLogitsProcessor(repetition_penalty)(seen_ids, logits.clone())
    scores = TemperatureLogitsWarper(temperature)(seen_ids, scores)
    scores = TopKLogitsWarper(top_k)(seen_ids, scores)
    scores = TopPLogitsWarper(top_p)(seen_ids, scores)
    scores = MinPLogitsWarper(min_p)(seen_ids, scores)
    return scores.log_softmax(-1)


@pytest.mark.parametrize(
    "shape",
    [
        {"temperature": 0.7, "top_k": 12, "top_p": 1.0, "min_p": 1e-9, "repetition_penalty": 1.0},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.6, "min_p": 1e-9, "repetition_penalty": 1.0},
        {"temperature": 1.0, "top_k": 40, "top_p": 1.0, "min_p": 0.2, "repetition_penalty": 1.5},
        {"temperature": 0.9, "top_k": 25, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2},
    ],
)
def test_sampled_log_probabilities_are_those_of_transformers_processors(shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(600, 50, generator=generator) * 2
    seen_ids = torch.randint(0, 50, (600, 8), generator=generator)
    seen = torch.zeros(600, 50, dtype=torch.bool).scatter_(1, seen_ids, True)
    expected = by_transformers(logits, seen_ids, **shape)
    found = draw(
        logits,
        torch.rand(600, generator=generator),
        torch.full((600,), shape["temperature"]),
        top_k=shape["top_k"],
        top_p=shape["top_p"],
        min_p=shape["min_p"],
        penalised=penalise(logits, seen, shape["repetition_penalty"]),
    )
    at = found.tokens.unsqueeze(1)
    torch.testing.assert_close(found.sampled_logps, expected.gather(1, at).squeeze(1), rtol=0, atol=2e-5)
    torch.testing.assert_close(found.logps, logits.log_softmax(-1).gather(1, at).squeeze(1))


def test_min_p_drops_what_is_unlikely_beside_the_most_likely():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, 4)
    uniforms = (torch.arange(1000) + 0.5) / 1000
    found = draw(logits, uniforms, torch.ones(1000), min_p=0.4)
    assert found.tokens.bincount().tolist() == [625, 375]
    # 0.5 / 0.8 and 0.3 / 0.8
    expected = torch.tensor([0.625, 0.375]).log()[found.tokens]
    torch.testing.assert_close(found.sampled_logps, expected)


def test_greedy_tokens_are_certain_under_what_they_were_drawn_from():
    found = draw(torch.tensor([[0.1, 3.0, 0.2]]), torch.tensor([0.999]), torch.zeros(1))
    assert found.sampled_logps.tolist() == [0.0]


def reference_loop(model, codec, prompt: list[int], uniforms, *, max_new_tokens: int, **shape):
    """One token after another, every time the whole sequence through the stock model."""
    ids: list[int] = []
    penalty = shape.pop("repetition_penalty", 1.0)
    while len(ids) < max_new_tokens and ids[-1:] != [codec.terminator_id]:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, [*prompt, *ids]] = True
        found = draw(
            logits,
            uniforms[len(ids) : len(ids) + 1],
            torch.tensor([shape["temperature"]]),
            **{name: value for name, value in shape.items() if name != "temperature"},
            penalised=penalise(logits, seen, penalty),
        )
        ids.append(int(found.tokens))
    return ids


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
    ],
)
def test_samples_are_those_of_a_plain_loop_over_the_stock_model(tiny_model, runtime, share, shape):
    """Few rows at once, so that prompts enter while others run."""
    codec, stock = load_codec(tiny_model), load_policy(tiny_model, runtime)
    runtime = runtime.model_copy(update={"share_prompts": share})
    groups = generator(tiny_model, runtime, rows=12, num_completions=3, max_new_tokens=20, **shape).generate(
        PROMPTS
    )
    for group in groups:
        prompt = codec.prompt_ids(group.prompt.messages)
        uniforms = uniform_numbers(0, group.prompt.id, 3, 20)
        for number, one in enumerate(group.completions):
            expected = reference_loop(stock, codec, prompt, uniforms[number], max_new_tokens=20, **shape)
            assert list(one.token_ids) == expected


def test_completions_say_how_likely_they_were_where_that_is_not_the_policy_itself(tiny_model, runtime):
    (plain,) = generator(tiny_model, runtime).generate(PROMPTS[:1])
    assert all(one.sampled_logps is None for one in plain.completions)
    (shaped,) = generator(tiny_model, runtime, top_k=2, temperature=0.5).generate(PROMPTS[:1])
    for one in shaped.completions:
        assert len(one.sampled_logps) == len(one.token_ids)
        assert min(one.sampled_logps) >= math.log(1e-9)
        # two tokens are left, so each has what the other lacks, and more than it had among all
        assert all(sampled > raw for sampled, raw in zip(one.sampled_logps, one.token_logps, strict=True))


def test_a_string_or_a_token_ends_a_completion_and_stays_in_it(tiny_model, runtime):
    codec = load_codec(tiny_model)
    free = [one for group in generator(tiny_model, runtime).generate(PROMPTS) for one in group.completions]
    long = next(one for one in free if len(one.token_ids) > 6)
    string = codec.decode(long.token_ids[2:5])
    cut = [
        one
        for group in generator(tiny_model, runtime, stop=[string]).generate(PROMPTS)
        for one in group.completions
    ]
    for one, other in zip(cut, free, strict=True):
        assert one.token_ids == other.token_ids[: len(one.token_ids)]
        if string in other.text:
            assert one.text.endswith(one.text[one.text.index(string) :])
            assert string in one.text
            assert string not in codec.decode(one.token_ids[:-1])
            assert one.finish_reason == "stop"
    name = codec.tokenizer.convert_ids_to_tokens(long.token_ids[3])
    for one, other in zip(
        (
            one
            for group in generator(tiny_model, runtime, stop_tokens=[name]).generate(PROMPTS)
            for one in group.completions
        ),
        free,
        strict=True,
    ):
        places = [place for place, token in enumerate(other.token_ids) if token == long.token_ids[3]]
        assert one.token_ids == (other.token_ids[: places[0] + 1] if places else other.token_ids)


def test_an_unknown_stop_token_is_refused_before_anything_is_sampled(tiny_model, runtime):
    with pytest.raises(InputError, match=r"generate\.stop_tokens: .* has no token '<end>'"):
        generator(tiny_model, runtime, stop_tokens=["<end>"])


def test_prompts_enter_while_others_run_and_groups_come_in_order(tiny_model, runtime, monkeypatch):
    entered = []
    enter = SharedDecoder.enter
    monkeypatch.setattr(
        SharedDecoder,
        "enter",
        lambda self, slots, prompts: entered.append(slots) or enter(self, slots, prompts),
    )
    groups = list(
        generator(tiny_model, runtime, rows=16, num_completions=2, max_new_tokens=40).generate(
            tales.prompts()[:30]
        )
    )
    assert [one.prompt.id for one in groups] == [one.id for one in tales.prompts()[:30]]
    assert sum(map(len, entered)) == 30
    assert len(entered[0]) == 8
    assert any(len(slots) < 8 for slots in entered[1:]), "only whole batches entered"


def test_a_bfloat16_policy_samples_with_shared_prompts(tiny_model, runtime):
    model = load_policy(tiny_model, runtime).bfloat16()
    sampler = generator(tiny_model, runtime, model=model)
    groups = list(sampler.generate(PROMPTS))
    assert model.config._attn_implementation == SHARED
    exact = load_policy(tiny_model, runtime)
    for group in groups:
        prompt = sampler.codec.prompt_ids(group.prompt.messages)
        for one in group.completions:
            with torch.no_grad():
                logps = exact(torch.tensor([[*prompt, *one.token_ids]])).logits[0].log_softmax(-1)
            expected = [
                float(logps[len(prompt) - 1 + place, token]) for place, token in enumerate(one.token_ids)
            ]
            assert one.token_logps == pytest.approx(expected, abs=0.15)


# --- how much at once ---


def shapes_of(monkeypatch) -> list[tuple[int, int]]:
    """Slots and copies of every batch from now on."""
    made = []
    begin = SharedDecoder.__init__
    monkeypatch.setattr(
        SharedDecoder,
        "__init__",
        lambda self, model, slots, copies: made.append((slots, copies)) or begin(self, model, slots, copies),
    )
    return made


@pytest.mark.parametrize(
    ("tokens", "slots", "copies"),
    [
        # room is made for 32 tokens of the prompts and for 32 of the 12 that a completion may have
        ("auto", 7, 4),
        (1120, 7, 4),  # 7 * (32 + 4 * 32)
        (1119, 6, 4),
        (160, 1, 4),
        (159, 1, 2),
        (96, 1, 2),
        (95, 1, 1),
        (64, 1, 1),
    ],
)
def test_a_budget_of_tokens_bounds_the_batch_and_changes_no_sample(
    tiny_model, runtime, monkeypatch, tokens, slots, copies
):
    expected = tokens_of(generator(tiny_model, runtime))
    made = shapes_of(monkeypatch)
    bounded = runtime.model_copy(update={"generation_tokens": tokens})
    assert tokens_of(generator(tiny_model, bounded)) == expected
    assert made == [(slots, copies)]


def tokens_of(generator) -> list[list[tuple[int, ...]]]:
    return tokens(generator.generate(PROMPTS))


def test_fewer_rows_than_completions_sample_a_prompt_in_parts(tiny_model, runtime, monkeypatch):
    expected = tokens_of(generator(tiny_model, runtime))
    made = shapes_of(monkeypatch)
    assert tokens_of(generator(tiny_model, runtime, rows=3)) == expected
    assert made == [(1, 2)]


def test_a_completion_that_alone_is_over_the_budget_is_refused(tiny_model, runtime):
    bounded = runtime.model_copy(update={"generation_tokens": 63})
    message = (
        r"runtime.generation_tokens: a prompt and a completion may take 64 tokens, but 63 are held at once"
    )
    with pytest.raises(InputError, match=message):
        tokens_of(generator(tiny_model, bounded))


def test_what_is_kept_of_keys_and_values_stays_within_the_budget(tiny_model, runtime, monkeypatch):
    held = []
    widen = GroupCache._widen

    def watched(self, prompt, own):
        widen(self, prompt, own)
        held.append(self._prompt_width * len(self.prompt_lengths) + self._own_width * len(self.own_lengths))

    monkeypatch.setattr(GroupCache, "_widen", watched)
    bounded = runtime.model_copy(update={"generation_tokens": 700})
    tokens_of(generator(tiny_model, bounded, max_new_tokens=60))
    assert 500 < max(held) <= 700


def test_prompts_are_read_in_passes_of_bounded_length(tiny_model, runtime, monkeypatch):
    expected = tokens_of(generator(tiny_model, runtime))
    read = []
    enter = SharedDecoder.enter
    monkeypatch.setattr(
        SharedDecoder,
        "enter",
        lambda self, slots, prompts: read.append(sum(map(len, prompts))) or enter(self, slots, prompts),
    )
    assert tokens_of(generator(tiny_model, runtime.model_copy(update={"microbatch_tokens": 60}))) == expected
    codec = load_codec(tiny_model)
    assert sum(read) == sum(len(codec.prompt_ids(one.messages)) for one in PROMPTS)
    assert len(read) > 1
    assert max(read) <= 60


@pytest.mark.parametrize("tied", [True, False])
def test_weights_laid_out_anew_are_the_same_weights(tiny_model, runtime, tied):
    model = load_policy(tiny_model, runtime)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    before = {name: one.clone() for name, one in model.state_dict().items()}
    lay_out_weights(model)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert not model.model.layers[0].mlp.up_proj.weight.is_contiguous()
    assert model.get_input_embeddings().weight.is_contiguous()
    assert model.lm_head.weight.is_contiguous() == tied


def test_steps_of_a_small_model_take_one_thread_where_threads_sleep(tiny_model, runtime, monkeypatch):
    model = load_policy(tiny_model, runtime)
    assert share_prompts(model, load_codec(tiny_model).pad_id, runtime)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    rows = torch.arange(2)
    try:
        for policy, expected in (("PASSIVE", 1), ("ACTIVE", 2)):
            monkeypatch.setenv("OMP_WAIT_POLICY", policy)
            decoder = SharedDecoder(model, 1, 2)
            decoder.enter([0], [[1, 2, 3]])
            decoder.step(rows, torch.tensor([4, 5]))
            assert seen[-2:] == [2, expected] and torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        assert not is_faster_alone(model, rows=1_000_000)
    finally:
        torch.set_num_threads(before)
