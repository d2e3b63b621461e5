"""What training is said to cost and how fast it is said to be."""

import json
import math
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

from prefloop import tales
from prefloop.attention import NO_BRANCH, lay_out
from prefloop.batches import TokenGroup, collate
from prefloop.config import RuntimeSection, SftSection
from prefloop.forward import LogpsModule, ScoresModule
from prefloop.lean import _has_onednn
from prefloop.modeling import TINY_SHAPE, load_policy, new_reward_model
from prefloop.train.adapters import trainable
from prefloop.train.sft import SftJob, train_sft
from prefloop.train.throughput import (
    Throughput,
    Work,
    attended,
    matmul_rate,
    peak_memory_gb,
    summary,
    training_cost,
)

CPU = torch.device("cpu")
LAYERS, HIDDEN = TINY_SHAPE["num_hidden_layers"], TINY_SHAPE["hidden_size"]
ONE = TokenGroup(tuple(range(5, 37)), (tuple(range(10, 42)),))
"""64 tokens: a length to which nothing is added."""


def test_attended_pairs_by_hand():
    # prompt 1 + 2 + 3; its completions 4 + 5, and 4
    assert attended(TokenGroup((1, 2, 3), ((4, 5), (6,)))) == 6 + 9 + 4
    # no token sees more than two
    assert attended(TokenGroup((1, 2, 3), ((4, 5), (6,))), window=2) == 5 + 4 + 2


@pytest.mark.parametrize("window", [None, 3])
def test_attended_pairs_are_those_of_the_mask(window):
    group = TokenGroup(tuple(range(7)), (tuple(range(5)), (1,), tuple(range(11))))
    layout = lay_out([7], [[5, 1, 11]], CPU)
    real = layout.branches != NO_BRANCH
    assert attended(group, window) == int(layout.allowed(window)[real].sum())


def counted(tiny_model, *, attention: str = "sdpa", checkpointing: bool = False, **options):
    """What torch counts for a forward and backward pass, and what we say."""
    runtime = RuntimeSection(
        device="cpu", attention=attention, share_prompts=False, gradient_checkpointing=checkpointing
    )
    model = load_policy(tiny_model, runtime)
    module = LogpsModule(model, pad_id=0, runtime=runtime).train()
    module.model = trainable(
        model, SftSection(**options), task="CAUSAL_LM", dtype="float32", seed=0, runtime=runtime
    )
    with FlopCounterMode(display=False, custom_mapping=ONEDNN) as counter:
        module(collate([ONE], share=False, pad_id=0, device=CPU)).sum().backward()
    return counter.get_total_flops(), training_cost(module).of(ONE).flops


ONEDNN = {
    torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, out_shape, **__: (
        2 * math.prod(out_shape) * weight[1]
    )
}
"""What torch's counter does not know: the product by which lean layers multiply."""


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_every_matrix_product_is_counted(tiny_model, frozen):
    torchs, ours = counted(tiny_model, attention="eager", frozen_layers=frozen)
    # written out, attention computes all 64 x 64 pairs and not only those before each token; 4 operations forward
    # a pair and channel, 8 more backward in layers that are trained
    unneeded = 64 * 64 - 64 * 65 // 2
    assert torchs == ours + unneeded * HIDDEN * (12 * (LAYERS - frozen) + 4 * frozen)


def test_checkpointed_layers_count_their_second_pass(tiny_model):
    torchs, ours = counted(tiny_model, attention="eager", checkpointing=True)
    unneeded = 64 * 64 - 64 * 65 // 2
    # torch stops repeating a layer before its last product, whose result nobody needs, if the product is its own
    last = 0 if _has_onednn() else 2 * 64 * HIDDEN * TINY_SHAPE["intermediate_size"] * LAYERS
    assert torchs == ours + unneeded * HIDDEN * 16 * LAYERS - last


def test_adapters_spare_the_gradient_of_the_base(tiny_model):
    torchs, ours = counted(tiny_model, attention="eager", lora={"rank": 4})
    # the inputs of the first layer's q, k and v need no gradient, which the formula overlooks
    assert ours == pytest.approx(torchs, rel=0.03)


def test_shared_prompts_count_once_and_padding_never(tiny_model):
    runtime = RuntimeSection(device="cpu", share_prompts=False)
    module = LogpsModule(load_policy(tiny_model, runtime), pad_id=0, runtime=runtime)
    group = TokenGroup((1, 2, 3), ((4,), (5, 6, 7)))
    # 4 matrices of attention, 3 of the feed-forward layer, and the tied output embedding at 4 of 7 tokens
    matrices = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * TINY_SHAPE["intermediate_size"])
    pairs = 6 + 4 + (4 + 5 + 6)
    vocabulary = len(module.model.get_output_embeddings().weight)
    expected = 6 * matrices * 7 + 6 * vocabulary * HIDDEN * 4 + 12 * LAYERS * HIDDEN * pairs
    assert training_cost(module).of(group) == Work(7, expected)


def test_a_reward_model_has_no_output_embedding(tiny_model, runtime):
    model, codec = new_reward_model(str(tiny_model), runtime)
    module = ScoresModule(model, pad_id=codec.pad_id, runtime=runtime)
    assert training_cost(module).per_completion_token == 0


def test_of_experts_only_those_that_a_token_goes_through_count():
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    runtime = RuntimeSection(device="cpu", share_prompts=False)
    module = LogpsModule(MixtralForCausalLM(config), pad_id=0, runtime=runtime)
    attention, router, expert = 16 * (16 + 8 + 8 + 16), 16 * 8, 3 * 16 * 32
    assert training_cost(module).per_token == 6 * 2 * (attention + router + 2 * expert)


def test_the_machine_is_measured_once_and_quickly():
    matmul_rate(CPU, "float32")
    started = time.process_time()
    assert matmul_rate(CPU, "float32") == matmul_rate(CPU, "float32") > 1e8
    assert time.process_time() - started < 0.01


def test_metrics_by_hand():
    metrics = Throughput(CPU, rate=1000.0).metrics([Work(10, 200.0), Work(20, 300.0)], seconds=2.0)
    assert metrics == {
        "train/tokens": 30,
        "train/tokens_per_s": 15.0,
        "train/matmul_share": 0.25,
        "train/peak_memory_gb": pytest.approx(peak_memory_gb(CPU)),
    }


def test_the_summary_weighs_steps_by_their_seconds():
    def row(tokens, rate, share, peak):
        names = ("tokens", "tokens_per_s", "matmul_share", "peak_memory_gb")
        return dict(zip((f"train/{one}" for one in names), (tokens, rate, share, peak), strict=True))

    # 1 s and 3 s
    assert summary([row(100, 100.0, 0.2, 1.0), row(60, 20.0, 0.6, 2.0)]) == {
        "tokens_per_s": 40.0,
        "matmul_share": pytest.approx(0.5),
        "peak_memory_gb": 2.0,
    }


def test_a_block_of_memory_raises_the_peak():
    before = peak_memory_gb(CPU)
    block = torch.ones(round(before * 1e9) // 4 + 25_000_000)  # all that was ever held, and 0.1 GB more
    assert peak_memory_gb(CPU) > before
    del block


def test_training_logs_its_speed_and_keeps_it_out_of_its_figures(tiny_model, tmp_path):
    def trained(name: str) -> dict[str, object]:
        (tmp_path / name).mkdir()
        job = SftJob(
            start=tiny_model,
            demonstrations=tuple(tales.demonstrations(8)),
            texts=(),
            options=SftSection(learning_rate=1e-3, batch_size=4, max_length=64),
            dtype="float32",
            seed=0,
            runtime=RuntimeSection(device="cpu"),
            out=tmp_path / name,
        )
        return train_sft(job, lambda done, total, note="": notes.append(note))

    notes: list[str] = []
    assert trained("one") == trained("other")
    rows = [json.loads(one) for one in (tmp_path / "one/logs/metrics.jsonl").read_text().splitlines()]
    figures = json.loads((tmp_path / "one/logs/throughput.json").read_text())
    assert all(row["train/tokens_per_s"] > 0 and 0 < row["train/matmul_share"] < 1 for row in rows)
    assert figures.keys() == {"tokens_per_s", "matmul_share", "peak_memory_gb"}
    assert min(row["train/matmul_share"] for row in rows) <= figures["matmul_share"]
    assert "tokens/s" in notes[0]
    assert "of matmul rate" in notes[0]


def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it():
    ballast = b"x" * 2_000_000_000
    ask = "import torch; from prefloop.train.throughput import peak_memory_gb; print(peak_memory_gb(torch.device('cpu')))"
    found = float(
        subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    )
    assert 0.1 < found < len(ballast) / 1e9 / 2
