"""Which weights are trained, and what comes back: frozen layers, low-rank adapters, a base in 4 bits."""

import json
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from prefloop import tales
from prefloop.batches import TokenGroup, collate
from prefloop.config import RewardSection, RuntimeSection, SftSection
from prefloop.forward import LogpsModule, ScoresModule, all_scores, all_sequence_logps
from prefloop.interfaces import InputError, no_progress
from prefloop.modeling import load_policy, new_reward_model
from prefloop.train.adapters import merged, quantise, trainable
from prefloop.train.sft import SftJob, train_sft

GROUPS = [TokenGroup((5, 6, 7, 8), ((10, 11, 12), (13, 14)))]


def made(tiny_model, *, seed: int = 0, checkpointing: bool = False, **options) -> LogpsModule:
    runtime = RuntimeSection(device="cpu", gradient_checkpointing=checkpointing)
    model = load_policy(tiny_model, runtime)
    module = LogpsModule(model, pad_id=0, runtime=runtime)
    module.model = trainable(
        model, SftSection(**options), task="CAUSAL_LM", dtype="float32", seed=seed, runtime=runtime
    )
    return module.train()


def sft(tiny_model, out, **options) -> dict[str, torch.Tensor]:
    out.mkdir(exist_ok=True)
    job = SftJob(
        start=tiny_model,
        demonstrations=tuple(tales.demonstrations(8)),
        texts=(),
        options=SftSection(
            **{"learning_rate": 1e-2, "batch_size": 4, "epochs": 2, "max_length": 64, **options}
        ),
        dtype="float32",
        seed=0,
        runtime=RuntimeSection(device="cpu"),
        out=out,
    )
    train_sft(job, no_progress)
    return AutoModelForCausalLM.from_pretrained(out / "model").state_dict()


def shaken(module: torch.nn.Module) -> None:
    """Moves every weight that is trained."""
    torch.manual_seed(0)
    for weight in module.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)


# --- frozen layers ---------------------------------------------------------------------------------------------------


def test_frozen_layers_the_embeddings_and_the_tied_head_stay_as_they_are(tiny_model, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    after = sft(tiny_model, tmp_path, frozen_layers=2)
    same = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    frozen = ("model.embed_tokens", "lm_head", "model.layers.0.", "model.layers.1.")
    assert same == {name for name in before if name.startswith(frozen)}


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_freezing_more_layers_than_there_are_is_an_error(tiny_model, lora):
    with pytest.raises(InputError, match="frozen_layers = 5: the model has 4 layers"):
        made(tiny_model, frozen_layers=5, lora=lora)


def test_freezing_every_adapter_is_an_error(tiny_model):
    with pytest.raises(InputError, match="frozen_layers = 4: nothing is left to train; freeze fewer layers"):
        made(tiny_model, frozen_layers=4, lora={"rank": 4})


def test_adapters_in_frozen_layers_stay_without_effect(tiny_model, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    after = sft(tiny_model, tmp_path, frozen_layers=3, lora={"rank": 4})
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {name for name in before if name.startswith("model.layers.3.") and "proj" in name}


# --- gradient checkpointing ------------------------------------------------------------------------------------------


def gradients(module: LogpsModule) -> dict[str, torch.Tensor]:
    module(collate(GROUPS, share=module.shares, pad_id=0, device=torch.device("cpu"))).sum().backward()
    return {name: one.grad for name, one in module.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4}}, {"frozen_layers": 2}], ids=str)
def test_checkpointing_changes_no_gradient_and_warns_of_nothing(tiny_model, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        checkpointed = made(tiny_model, checkpointing=True, **options)
    one, other = gradients(made(tiny_model, **options)), gradients(checkpointed)
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=0, atol=0)


def test_checkpointing_needs_no_backward_pass_through_frozen_layers(tiny_model):
    module = made(tiny_model, checkpointing=True, frozen_layers=2)
    asked = []
    for layer in module.model.model.layers:
        layer.register_forward_hook(lambda layer, inputs, output: asked.append(output.requires_grad))
    gradients(module)
    assert asked[:4] == [False, False, True, True]


# --- adapters --------------------------------------------------------------------------------------------------------


def test_the_seed_decides_how_adapters_begin(tiny_model):
    def first(seed: int) -> torch.Tensor:
        torch.manual_seed(len(seen))  # whatever was drawn before
        module = made(tiny_model, seed=seed, lora={"rank": 4})
        seen.append(next(one for name, one in module.named_parameters() if "lora_A" in name))
        return seen[-1]

    seen: list[torch.Tensor] = []
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("dora", [False, True])
def test_merging_keeps_what_adapters_compute(tiny_model, runtime, dora):
    module = made(tiny_model, lora={"rank": 4, "dora": dora}).eval()
    lengths = [name for name, _ in module.named_parameters() if "magnitude" in name]
    assert bool(lengths) == dora
    shaken(module)
    before = all_sequence_logps(module, GROUPS, runtime)
    module.model = merged(module.model)
    after = all_sequence_logps(module, GROUPS, runtime)
    torch.testing.assert_close(torch.tensor(after), torch.tensor(before), rtol=0, atol=1e-4)


def test_dora_learns_lengths_that_lora_does_not(tiny_model, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"

    def rank(folder: str, dora: bool) -> int:
        after = sft(tiny_model, tmp_path / folder, lora={"rank": 4, "dora": dora})
        return int(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4))

    assert rank("lora", False) == 4
    assert rank("dora", True) > 4


# --- four bits -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bits():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def test_the_base_is_held_in_four_bits_and_saved_as_it_was(tiny_model, tmp_path, bits):
    module = made(tiny_model, lora={"rank": 4, "quantize": "4bit"})
    small = [one for one in module.modules() if type(one) is bits.nn.Linear4bit]
    assert len(small) == 4 * 7
    assert {one.weight.dtype for one in small} == {torch.uint8}
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    after = sft(tiny_model, tmp_path, lora={"rank": 4, "quantize": "4bit"})
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert after[name].dtype == torch.float32
        change = after[name] - weight
        # rounding to 4 bits would be a change of full rank
        assert not change.any() or torch.linalg.matrix_rank(change, rtol=1e-4) <= 4
    assert (after["model.layers.0.mlp.up_proj.weight"] != before["model.layers.0.mlp.up_proj.weight"]).any()
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_a_reward_model_in_four_bits_keeps_its_head(tiny_model, runtime, bits):
    model, codec = new_reward_model(str(tiny_model), runtime)
    module = ScoresModule(model, pad_id=codec.pad_id, runtime=runtime)
    options = RewardSection(lora={"rank": 4, "quantize": "4bit"})
    module.model = trainable(model, options, task="SEQ_CLS", dtype="float32", seed=0, runtime=runtime)
    shaken(module)
    head = module.model.base_model.model.score.modules_to_save["default"].weight.detach().clone()
    module.eval()
    module.model = merged(module.model)
    assert torch.equal(module.model.score.weight, head)
    assert len(all_scores(module, GROUPS, runtime)[0]) == 2


def test_a_model_without_linear_layers_cannot_be_held_in_four_bits(bits):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="lora.quantize: GPT2LMHeadModel has no linear layers"):
        quantise(model, dtype=torch.float32, device=torch.device("cpu"))
