"""Lean modules against the stock ones they replace."""

import pytest
import torch
from tests.test_forward import FALLING_BACK, SHARING, random_groups, random_model, rows_of
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from prefloop.forward import LogpsModule
from prefloop.lean import LeanLinear, LeanNorm, _has_onednn, make_lean
from prefloop.modeling import load_policy


def holding(module: nn.Module) -> nn.ModuleDict:
    model = nn.ModuleDict({"one": module})
    make_lean(model)  # type: ignore[arg-type]
    return model


def slopes(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    module.zero_grad()
    output = module(x)
    (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum().backward()
    return [output.detach(), x.grad, *(one.grad for one in module.parameters() if one.requires_grad)]


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
@pytest.mark.parametrize("shape", [(24,), (1, 5, 24), (2, 3, 5, 24)])
def test_a_norm_and_its_gradients_are_those_of_the_stock_norm(kind, shape):
    torch.manual_seed(0)
    stock, lean = kind(24, eps=1e-3), kind(24, eps=1e-3)
    lean = holding(lean)["one"]
    assert isinstance(lean, LeanNorm)
    assert isinstance(lean, kind)
    with torch.no_grad():
        for module in (stock, lean):
            module.weight.copy_(torch.linspace(-1, 1, 24))
    for found, expected in zip(slopes(lean, x := torch.randn(shape) * 3), slopes(stock, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_other_norms_stay_as_they_are():
    gated = Qwen3NextRMSNormGated(24)
    layer, group = nn.LayerNorm(24), nn.GroupNorm(2, 24)
    for module in (gated, layer, group):
        kind = type(module)
        assert type(holding(module)["one"]) is kind


@pytest.mark.skipif(not _has_onednn(), reason="torch has no oneDNN for float32 here")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_linear_layer_and_its_gradients_are_those_of_the_stock_layer(bias, frozen):
    torch.manual_seed(0)
    stock, lean = nn.Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
    lean.load_state_dict(stock.state_dict())
    for module in (stock, lean):
        module.weight.requires_grad_(not frozen)
    lean = holding(lean)["one"]
    assert isinstance(lean, LeanLinear)
    for x in (torch.randn(24), torch.randn(7, 24), torch.randn(2, 3, 24), torch.randn(0, 24)):
        for found, expected in zip(slopes(lean, x), slopes(stock, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wide = torch.randn(3, 24, dtype=torch.float64)
    torch.testing.assert_close(lean.double()(wide), stock.double()(wide))


def test_what_flows_between_products_is_bfloat16_and_weights_stay_float32(tiny_model, runtime):
    model = load_policy(tiny_model, runtime)
    module = LogpsModule(model, pad_id=0, runtime=runtime)
    seen: dict[str, set[torch.dtype]] = {}

    def note(name):
        return lambda _module, _inputs, output: seen.setdefault(name, set()).add(
            (output[0] if isinstance(output, tuple) else output).dtype
        )

    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(note(f"layer {number}"))
        layer.self_attn.q_proj.register_forward_hook(note("product"))
        layer.input_layernorm.register_forward_hook(note("norm"))
    with torch.autocast("cpu", torch.bfloat16):
        logps = module(collated(module))
    logps.sum().backward()
    assert seen and all(dtypes == {torch.bfloat16} for dtypes in seen.values()), seen
    assert logps.dtype == torch.float32
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert {one.grad.dtype for one in model.parameters()} == {torch.float32}


def collated(module):
    from prefloop.batches import collate

    return collate(random_groups(), share=module.shares, pad_id=0, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", [*SHARING, *FALLING_BACK])
def test_a_family_in_bfloat16_is_near_float32_and_trains_every_weight(kind, runtime):
    model = random_model(kind, SHARING[kind] if kind in SHARING else FALLING_BACK[kind][0])
    with torch.no_grad():
        exact = torch.cat(
            [
                model(torch.tensor([[*prompt, *ids]]))
                .logits[0]
                .log_softmax(-1)[range(len(prompt) - 1, len(prompt) + len(ids) - 1), list(ids)]
                for prompt, ids in rows_of(random_groups())
            ]
        )
    reached = set(gradients_of(model, runtime, autocast=False))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        module = LogpsModule(model, pad_id=0, runtime=runtime)
        rough = module(collated(module))
    assert float((rough - exact).abs().mean()) < 0.02
    assert set(gradients_of(model, runtime, autocast=True)) == reached


def gradients_of(model, runtime, *, autocast: bool) -> list[str]:
    """The weights that a backward pass reaches."""
    model.zero_grad()
    module = LogpsModule(model, pad_id=0, runtime=runtime)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logps = module(collated(module))
    logps.sum().backward()
    return [
        name for name, one in model.named_parameters() if one.grad is not None and one.grad.isfinite().all()
    ]


def test_a_lean_model_is_saved_and_made_lean_again_like_any_other(tmp_path):
    model = random_model("qwen3", SHARING["qwen3"])
    before = {name: one.clone() for name, one in model.state_dict().items()}
    for _ in range(2):
        make_lean(model)
    assert len(model.model.embed_tokens._forward_hooks) == 1
    assert list(model.state_dict()) == list(before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not any(isinstance(one, LeanNorm | LeanLinear) for one in again.modules())
    for name, one in again.state_dict().items():
        torch.testing.assert_close(one, before[name], rtol=0, atol=0)
    assert AutoConfig.from_pretrained(tmp_path).architectures == ["Qwen3ForCausalLM"]
