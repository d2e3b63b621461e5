"""Log-probabilities and scores, against teacher forcing one row at a time."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prefloop import forward
from prefloop.batches import TokenGroup, collate
from prefloop.config import RuntimeSection
from prefloop.forward import LogpsModule, ScoresModule, all_scores, all_sequence_logps, all_token_logps
from prefloop.modeling import load_policy, load_reward_model, new_reward_model, save_model

CPU = torch.device("cpu")
GROUPS = [
    TokenGroup((1, 40, 50, 60), ((70, 80, 2), (71, 2), (72, 73, 74, 75, 76, 2))),
    TokenGroup((1, 41), ((71, 81, 91, 101, 111, 2),)),
    TokenGroup((1, 5, 6, 7, 8, 9, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14), ((10,), (11, 12))),
]


def rows_of(groups):
    return [(group.prompt_ids, ids) for group in groups for ids in group.completions]


def flat(nested):
    return [one for inner in nested for one in inner]


def by_hand(model, prompt, completion) -> torch.Tensor:
    """Teacher forcing one row without padding, the way a textbook does it."""
    logps = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    return torch.stack([logps[len(prompt) + k - 1, token] for k, token in enumerate(completion)])


@pytest.mark.parametrize("share", [True, False])
@torch.no_grad()
def test_log_probabilities_equal_teacher_forcing_one_row_at_a_time(tiny_model, share):
    runtime = RuntimeSection(device="cpu", share_prompts=share)
    expected = [by_hand(load_policy(tiny_model, runtime), *row) for row in rows_of(GROUPS)]
    module = LogpsModule(load_policy(tiny_model, runtime), pad_id=0, runtime=runtime)
    assert module.shares is share
    found = [one for group in all_token_logps(module, GROUPS, runtime) for one in group]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-6)
    sums = [one for group in all_sequence_logps(module, GROUPS, runtime) for one in group]
    assert sums == pytest.approx([float(one.sum()) for one in expected], abs=1e-5)


def gradients(model, weigh) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weigh(model).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("at_once", [1 << 24, 1024 * 3])
def test_gradients_equal_those_of_teacher_forcing(tiny_model, share, at_once, monkeypatch):
    """Every token weighted differently; with and without chunks of three tokens at the output embedding."""
    monkeypatch.setattr(forward, "LOGITS_AT_ONCE", at_once)
    runtime = RuntimeSection(device="cpu", share_prompts=share)
    number = sum(len(ids) for _, ids in rows_of(GROUPS))
    weights = torch.linspace(-1, 2, number)
    expected = gradients(
        load_policy(tiny_model, runtime),
        lambda model: (torch.cat([by_hand(model, *row) for row in rows_of(GROUPS)]) * weights).sum(),
    )
    module = LogpsModule(load_policy(tiny_model, runtime), pad_id=0, runtime=runtime)
    batch = collate(GROUPS, share=share, pad_id=0, device=CPU)
    found = gradients(module.model, lambda _: (module(batch) * weights).sum())
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=2e-6 * max(scale, 1.0))


@torch.no_grad()
def test_collisions_are_the_log_of_the_summed_squared_probabilities(tiny_model, runtime):
    model = load_policy(tiny_model, runtime)
    (prompt, completion), *_ = rows_of(GROUPS)
    probabilities = model(torch.tensor([[*prompt, *completion]])).logits[0].softmax(-1)
    expected = (probabilities**2).sum(-1).log()[len(prompt) - 1 : -1]
    module = LogpsModule(model, pad_id=0, runtime=runtime)
    batch = collate([TokenGroup(prompt, (completion,))], share=module.shares, pad_id=0, device=CPU)
    torch.testing.assert_close(module(batch, beside="collisions")[1], expected, rtol=0, atol=1e-5)


def test_a_new_reward_model_scores_everything_zero_and_reads_the_last_token(tiny_model, runtime, tmp_path):
    model, codec = new_reward_model(tiny_model, runtime)
    scores = all_scores(ScoresModule(model, pad_id=codec.pad_id, runtime=runtime), GROUPS, runtime)
    assert scores == [[0.0, 0.0, 0.0], [0.0], [0.0, 0.0]]
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_parameter("score.weight"))
    save_model(model, codec.tokenizer, tmp_path / "reward", dtype="float32")
    stock = load_reward_model(tmp_path / "reward", runtime)[0]
    with torch.no_grad():  # transformers reads the last token that is not padding
        expected = [
            [float(stock(torch.tensor([[*group.prompt_ids, *ids]])).logits) for ids in group.completions]
            for group in GROUPS
        ]
    module = ScoresModule(
        load_reward_model(tmp_path / "reward", runtime)[0], pad_id=codec.pad_id, runtime=runtime
    )
    for groups in ([one] for one in GROUPS):
        assert all_scores(module, groups, runtime)[0] == pytest.approx(
            expected[GROUPS.index(groups[0])], abs=1e-5
        )
    for found, one in zip(
        all_scores(module, [*GROUPS, *GROUPS], runtime), [*expected, *expected], strict=True
    ):
        assert found == pytest.approx(one, abs=1e-5)


# --- families of models ----------------------------------------------------------------------------------------------

SHAPE = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
SHARING = {
    "llama": SHAPE,
    "qwen3": {**SHAPE, "head_dim": 16},
    "gemma3_text": {**SHAPE, "head_dim": 16, **WINDOWS},
    "mistral": {**SHAPE, "sliding_window": 8},
    "gpt2": {"vocab_size": 128, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "phi": SHAPE,
    "mixtral": {**SHAPE, "num_local_experts": 4},
    "qwen3_moe": {
        **SHAPE,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 16,
    },
    "granite": {**SHAPE, "logits_scaling": 4.0},
}
FALLING_BACK = {
    "mamba": ({"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2}, "layers of linear_attention"),
    "bloom": ({"vocab_size": 128, "hidden_size": 64, "n_layer": 2, "n_head": 4}, "cannot run on it"),
    "falcon": (
        {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "cannot run on it",
    ),
    "gemma2": ({**SHAPE, "head_dim": 16}, "no softcap"),
    "gpt_oss": ({**SHAPE, "head_dim": 16, "num_local_experts": 4}, "no s_aux"),
}


def random_model(kind, options):
    torch.manual_seed(0)
    own = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**own, **options})).eval()


def random_groups() -> list[TokenGroup]:
    """Prompts longer than the windows, ragged completions, one to four of them."""
    generator = torch.Generator().manual_seed(0)

    def ids(number):
        return tuple(torch.randint(3, 128, (number,), generator=generator).tolist())

    shapes = [(20, (5, 9, 3)), (3, (12,)), (33, (4, 40)), (7, (3, 3, 3, 3))]
    return [TokenGroup(ids(prompt), tuple(map(ids, lengths))) for prompt, lengths in shapes]


@pytest.mark.parametrize("kind", SHARING)
def test_a_family_shares_prompts_and_gives_what_plain_rows_give(kind, runtime):
    model = random_model(kind, SHARING[kind])
    weights = torch.linspace(0.5, 1.5, sum(one.num_completion_tokens for one in random_groups()))

    def plain(model):
        rows = [by_hand(model, *row) for row in rows_of(random_groups())]
        return (torch.cat(rows) * weights).sum()

    with torch.no_grad():
        expected = [by_hand(model, *row) for row in rows_of(random_groups())]
    slopes = gradients(model, plain)
    module = LogpsModule(model, pad_id=0, runtime=runtime)
    assert module.shares
    for one, other in zip(flat(all_token_logps(module, random_groups(), runtime)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-6)
    batch = collate(random_groups(), share=True, pad_id=0, device=CPU)
    found = gradients(model, lambda _: (module(batch) * weights).sum())
    for name, gradient in slopes.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=1e-5 * max(1.0, float(gradient.abs().max()))
        )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_the_dense_mask_through_stock_attention_gives_the_same(kind, runtime):
    """The same flat row on transformers' own SDPA, with the whole pattern as a mask of four dimensions."""
    model = random_model(kind, SHARING[kind])
    batch = collate(random_groups(), share=True, pad_id=0, device=CPU)
    weights = torch.linspace(0.5, 1.5, len(batch.targets))

    def masked(model):
        mask = batch.layout.allowed()[None, None]
        logits = model(batch.input_ids, position_ids=batch.position_ids, attention_mask=mask).logits[0]
        logps = logits[batch.predictors].log_softmax(-1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        return (logps * weights).sum()

    expected = gradients(model, masked)
    module = LogpsModule(model, pad_id=0, runtime=runtime)
    found = gradients(model, lambda _: (module(batch) * weights).sum())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=1e-5 * max(1.0, float(gradient.abs().max()))
        )


@pytest.mark.parametrize("kind", FALLING_BACK)
@torch.no_grad()
def test_a_family_that_cannot_share_says_why_and_gives_what_plain_rows_give(kind, runtime, caplog):
    options, reason = FALLING_BACK[kind]
    model = random_model(kind, options)
    expected = [by_hand(model, *row) for row in rows_of(random_groups())]
    with caplog.at_level("INFO", logger="prefloop.forward"):
        module = LogpsModule(model, pad_id=0, runtime=runtime)
    assert not module.shares
    assert reason in caplog.text
    for one, other in zip(flat(all_token_logps(module, random_groups(), runtime)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-6)


@torch.no_grad()
def test_bfloat16_attention_of_short_segments_is_near_float32(tiny_model, runtime):
    module = LogpsModule(load_policy(tiny_model, runtime), pad_id=0, runtime=runtime)
    exact = flat(all_token_logps(module, GROUPS, runtime))
    with torch.autocast("cpu", torch.bfloat16):
        rough = flat(all_token_logps(module, GROUPS, runtime))
    for one, other in zip(rough, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.1)  # logits near 7 have steps of 1/32


def test_sharing_survives_gradient_checkpointing(tiny_model, runtime):
    def slopes(checkpointing):
        model = load_policy(tiny_model, runtime).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        module = LogpsModule(model, pad_id=0, runtime=runtime)
        batch = collate(GROUPS, share=True, pad_id=0, device=CPU)
        return gradients(model, lambda _: module(batch).sum())

    plain, saving = slopes(False), slopes(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_model_that_shared_prompts_still_generates_with_padding(tiny_model, runtime):
    stock = load_policy(tiny_model, runtime)
    ids, mask = torch.tensor([[0, 0, 1, 40], [1, 41, 50, 60]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = stock.generate(ids, attention_mask=mask, **options)
    LogpsModule(stock, pad_id=0, runtime=runtime)
    assert torch.equal(stock.generate(ids, attention_mask=mask, **options), expected)
