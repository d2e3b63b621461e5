import pytest
import torch

from prefloop import tales
from prefloop.config import GenerateSection
from prefloop.forward import LogpsModule
from prefloop.generate.groups import Author
from prefloop.generate.hf import hf_generator
from prefloop.interfaces import PrefloopError
from prefloop.modeling import in_dtype, load_codec, load_policy
from prefloop.trust import compare_with_trainer


def sampled(tiny_model, runtime, *, dtype="float32", **options):
    generator = hf_generator(
        in_dtype(load_policy(tiny_model, runtime), dtype),
        load_codec(tiny_model),
        GenerateSection(num_completions=3, max_new_tokens=16, **options),
        seed=0,
        author=Author("policy-test", 0),
        runtime=runtime,
    )
    return list(generator.generate(tales.prompts()[:4]))


def compared(tiny_model, runtime, groups, *, change=None, dtype="float32", engine_dtype=None):
    model = load_policy(tiny_model, runtime)
    if change is not None:
        with torch.no_grad():
            change(model)
    module = LogpsModule(model, pad_id=0, runtime=runtime)
    codec = load_codec(tiny_model)
    return compare_with_trainer(groups, module, codec, runtime, dtype=dtype, engine_dtype=engine_dtype)


@pytest.mark.parametrize("share", [True, False])
def test_samples_of_the_same_weights_are_within_rounding(tiny_model, runtime, share):
    runtime = runtime.model_copy(update={"share_prompts": share})
    gap = compared(tiny_model, runtime, sampled(tiny_model, runtime, temperature=0.7, top_k=9))
    assert 0 < gap < 1e-5  # what is written down has six digits


def test_another_output_embedding_is_told_with_the_first_differing_token(tiny_model, runtime):
    """What an engine keeps that reloads tied weights but not its copy of the output embedding."""
    groups = sampled(tiny_model, runtime)
    first = groups[0].completions[0]
    with pytest.raises(PrefloopError) as caught:
        compared(tiny_model, runtime, groups, change=lambda model: model.lm_head.weight.mul_(1.5))
    assert f"prompt {groups[0].prompt.id}, completion {first.id}, token 0" in str(caught.value)
    assert f"the engine says its log-probability is {first.token_logps[0]:.6f}, training" in str(caught.value)


def test_a_token_in_the_middle_is_found(tiny_model, runtime):
    groups = sampled(tiny_model, runtime)
    one = groups[1].completions[2]
    wrong = tuple(logp - 0.01 * (place == 5) for place, logp in enumerate(one.token_logps))
    assert len(wrong) > 5
    changed = (*groups[1].completions[:2], one.model_copy(update={"token_logps": wrong}))
    groups[1] = groups[1].model_copy(update={"completions": changed})
    with pytest.raises(PrefloopError, match=f"completion {one.id}, token 5 "):
        compared(tiny_model, runtime, groups)


def test_in_bfloat16_the_difference_is_told_and_stops_nothing(tiny_model, runtime):
    groups = sampled(tiny_model, runtime, dtype="bfloat16")
    assert 1e-4 < compared(tiny_model, runtime, groups, dtype="bfloat16") < 0.3


def test_text_that_no_engine_wrote_is_not_compared(tiny_model, runtime):
    group = sampled(tiny_model, runtime)[0]
    bare = [one.model_copy(update={"token_ids": None, "token_logps": None}) for one in group.completions]
    assert compared(tiny_model, runtime, [group.model_copy(update={"completions": tuple(bare)})]) is None


def shifted(groups, shift):
    """The groups of an engine whose log-probabilities are all off by so much."""
    return [
        group.model_copy(
            update={
                "completions": tuple(
                    one.model_copy(update={"token_logps": tuple(logp - shift for logp in one.token_logps)})
                    for one in group.completions
                )
            }
        )
        for group in groups
    ]


def test_an_engine_in_bfloat16_may_round_but_not_run_other_weights(tiny_model, runtime):
    groups = sampled(tiny_model, runtime)
    found = compared(tiny_model, runtime, shifted(groups, 0.1), engine_dtype="bfloat16")
    assert found == pytest.approx(0.1, abs=1e-4)
    with pytest.raises(PrefloopError, match="differ by 0.300 on average"):
        compared(tiny_model, runtime, shifted(groups, 0.3), engine_dtype="bfloat16")


def test_a_log_probability_that_is_no_number_is_found(tiny_model, runtime):
    with pytest.raises(PrefloopError, match="token 0 "):
        compared(tiny_model, runtime, shifted(sampled(tiny_model, runtime), float("nan")))
