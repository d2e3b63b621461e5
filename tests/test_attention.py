"""Prompt-sharing attention against the dense mask of the whole pattern."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from prefloop.attention import lay_out, rounded, shared_attention, shared_flex_attention

CPU = torch.device("cpu")
PROMPTS, COMPLETIONS = [5, 3, 0, 40], [[4, 2], [6], [3, 2], [1, 1, 70]]


def layout():
    return lay_out(PROMPTS, COMPLETIONS, CPU)


def test_the_pattern_of_two_completions_by_hand():
    one = lay_out([2], [[1, 2]], CPU)
    expected = torch.tensor(
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    ).bool()
    assert torch.equal(one.allowed()[:5, :5], expected)
    assert one.positions[:5].tolist() == [0, 1, 2, 2, 3]
    assert one.branches[:6].tolist() == [0, 0, 1, 2, 2, -1]
    near = one.allowed(window=2)[:5, :5]
    assert near[4].tolist() == [False, False, False, True, True]
    assert near[3].tolist() == [False, True, False, True, False]


def random_states(heads, key_heads):
    generator = torch.Generator().manual_seed(0)
    number = len(layout().groups)
    return [
        torch.randn(1, one, number, 8, generator=generator, requires_grad=True)
        for one in (heads, key_heads, key_heads)
    ]


@pytest.mark.parametrize("window", [None, 3, 16])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_shared_attention_is_dense_masked_attention(window, key_heads):
    pattern, real = layout(), layout().branches >= 0
    states, plain = random_states(4, key_heads), random_states(4, key_heads)
    found, _ = shared_attention(nn.Module(), *states, None, sliding_window=window, layout=pattern)
    dense = functional.scaled_dot_product_attention(
        *plain, attn_mask=pattern.allowed(window), enable_gqa=True
    )
    expected = dense.transpose(1, 2)
    torch.testing.assert_close(found[:, real], expected[:, real], rtol=0, atol=2e-6)
    weights = torch.linspace(-1, 1, found[:, real].numel()).view_as(found[:, real])
    for output in (found, expected):
        (output[:, real] * weights).sum().backward()
    for one, other in zip(states, plain, strict=True):
        torch.testing.assert_close(one.grad[:, :, real], other.grad[:, :, real], rtol=0, atol=5e-6)
        assert (one.grad[:, :, ~real] == 0).all()  # padding learns nothing


@pytest.mark.parametrize("window", [None, 3])
@torch.no_grad()
def test_flex_attention_is_dense_masked_attention(window):
    pattern, real = layout(), layout().branches >= 0
    states = [one.detach() for one in random_states(4, 2)]
    found, _ = shared_flex_attention(nn.Module(), *states, None, sliding_window=window, layout=pattern)
    expected = functional.scaled_dot_product_attention(
        *states, attn_mask=pattern.allowed(window), enable_gqa=True
    )
    torch.testing.assert_close(found[:, real], expected.transpose(1, 2)[:, real], rtol=0, atol=2e-6)


def test_similar_lengths_share_a_call():
    lengths = [[number, number] for number in (33, 34, 47, 48)]
    calls = lay_out([100, 101, 111, 112], lengths, CPU).calls
    assert [(tuple(one.queries.shape), one.causal) for one in calls] == [
        ((4, 112), True),
        ((8, 48), False),
    ]


def test_few_sizes_and_little_padding():
    sizes = {rounded(number, 64, 16) for number in range(1, 10_000)}
    assert len(sizes) < 90
    assert all(
        number <= rounded(number, 64, 16) <= max(64, number * 17 / 16 + 1) + 64 for number in range(1, 10_000)
    )


def test_scores_that_are_changed_otherwise_are_refused():
    with pytest.raises(NotImplementedError, match="softcap"):
        shared_attention(nn.Module(), *random_states(2, 2), None, layout=layout(), softcap=30.0)
