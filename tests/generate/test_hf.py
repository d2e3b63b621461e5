import pytest
import torch

from prefloop import tales
from prefloop.config import GenerateSection
from prefloop.generate.hf import Author, HfGenerator, draw
from prefloop.modeling import load_codec, load_policy
from prefloop.records import Message, Prompt


def generator(tiny_model, runtime, *, rows=64, seed=0, model=None, **options) -> HfGenerator:
    options = {"num_completions": 4, "max_new_tokens": 12, **options}
    return HfGenerator(
        model or load_policy(tiny_model, runtime),
        load_codec(tiny_model),
        GenerateSection(**options),
        seed=seed,
        author=Author("policy-test", 3),
        rows=rows,
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
    tokens, logps = draw(probabilities.log().expand(1000, 3), uniforms, torch.ones(1000))
    assert tokens.bincount().tolist() == [100, 600, 300]
    torch.testing.assert_close(logps, probabilities.log()[tokens])


def test_temperature_sharpens_the_draw_but_not_the_log_probability():
    logits = torch.tensor([0.2, 0.8]).log().expand(1000, 2)
    uniforms = (torch.arange(1000) + 0.5) / 1000
    tokens, logps = draw(logits, uniforms, torch.full((1000,), 0.5))
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
    tokens, _ = draw(torch.tensor([[0.1, 3.0, 0.2]]), torch.tensor([0.999]), torch.zeros(1))
    assert tokens.tolist() == [1]
