"""Decoding with shared prompts, against a plain forward pass over the whole sequence."""

import pytest
import torch
from tests.test_forward import SHARING, random_model

from prefloop.decoding import GroupCache
from prefloop.forward import share_prompts
from prefloop.generate.decoders import PaddedDecoder, SharedDecoder

PROMPTS = [list(range(3, 23)), [5, 6, 7], list(range(40, 73))]
LATER = [[9] * 40, [90, 91]]


def plain(model, ids: list[int]) -> torch.Tensor:
    """Logits of what follows, by a stock model that reads everything anew."""
    return model(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("kind", SHARING)
@torch.no_grad()
def test_a_family_decodes_with_shared_prompts_as_by_plain_forward_passes(kind, runtime):
    """Rows end at different times, prompts of another length enter slots that others left, free slots are given up."""
    stock, model = (random_model(kind, SHARING[kind]) for _ in range(2))
    assert share_prompts(model, 0, runtime)
    decoder = SharedDecoder(model, num_slots=3, num_copies=2)
    texts = {row: list(PROMPTS[row // 2]) for row in range(6)}
    generator = torch.Generator().manual_seed(0)

    def close(found, row):
        torch.testing.assert_close(found, plain(stock, texts[row]), rtol=0, atol=2e-5)

    def step(rows):
        tokens = torch.randint(3, 128, (len(rows),), generator=generator)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            texts[row].append(token)
        for row, logits in zip(rows, decoder.step(torch.tensor(rows), tokens), strict=True):
            close(logits, row)

    for slot, logits in enumerate(decoder.enter([0, 1, 2], PROMPTS)):
        close(logits, 2 * slot)
    for _ in range(3):
        step([0, 1, 2, 3, 4, 5])
    step([0, 3, 4, 5])
    step([4])
    texts |= {row: list(LATER[row // 2]) for row in range(4)}
    for slot, logits in enumerate(decoder.enter([0, 1], LATER)):
        close(logits, 2 * slot)
    for _ in range(40):  # room for tokens grows on the way
        step([0, 1, 2, 4])
    decoder.keep([0, 2])
    texts = {0: texts[0], 1: texts[1], 2: texts[4]}
    step([0, 1, 2])
    step([2])


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("kind", SHARING)
@torch.no_grad()
def test_a_single_prompt_decodes_as_well(kind, copies, runtime):
    """Tensors of one group have other strides, which grouped queries notice."""
    stock, model = (random_model(kind, SHARING[kind]) for _ in range(2))
    assert share_prompts(model, 0, runtime)
    decoder = SharedDecoder(model, num_slots=1, num_copies=copies)
    texts = [list(PROMPTS[0]) for _ in range(copies)]
    decoder.enter([0], PROMPTS[:1])
    for step in range(3):
        tokens = torch.arange(copies) + 7 * step + 3
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
        for text, logits in zip(texts, decoder.step(torch.arange(copies), tokens), strict=True):
            torch.testing.assert_close(logits, plain(stock, text), rtol=0, atol=2e-5)


# of names of arguments that the next transformers will not know
@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", SHARING)
@torch.no_grad()
def test_rows_go_on_from_others_of_their_prompt(kind, share, runtime):
    stock, model = (random_model(kind, SHARING[kind]) for _ in range(2))
    if share:
        assert share_prompts(model, 0, runtime)
        decoder = SharedDecoder(model, num_slots=2, num_copies=3)
    else:
        decoder = PaddedDecoder(model, num_copies=3, pad_id=0)
    texts = [list(PROMPTS[row // 3]) for row in range(6)]
    decoder.enter([0, 1], PROMPTS[:2])
    for step, sources in enumerate([[0, 1, 2, 3, 4, 5], [2, 2, 0, 3, 5, 4], [1, 0, 1, 5, 5, 5]]):
        tokens = torch.arange(6) + 7 * step + 3
        decoder.rearrange(torch.arange(6), torch.tensor(sources))
        texts = [[*texts[source], token] for source, token in zip(sources, tokens.tolist(), strict=True)]
        for text, logits in zip(texts, decoder.step(torch.arange(6), tokens), strict=True):
            torch.testing.assert_close(logits, plain(stock, text), rtol=0, atol=2e-5)


def test_a_single_completion_is_kept_with_its_prompt():
    cache = GroupCache(2, 1, torch.device("cpu"))
    cache.enter([0, 1], [[1] * 60, [2] * 50])
    cache.store_prompts(torch.nn.Identity(), torch.ones(1, 4, 128, 16), torch.ones(1, 4, 128, 16))
    (layer,) = cache._layers.values()
    assert layer.prompt_keys.shape == (2, 4, 0, 16)
    assert layer.own_keys.shape == (2, 4, 64, 16)
    assert cache.advance(torch.arange(2)).tolist() == [60, 50]


def test_keys_of_a_prompt_are_kept_once_for_all_its_completions():
    cache = GroupCache(2, 8, torch.device("cpu"))
    cache.enter([0, 1], [[1] * 60, [2] * 50])
    cache.store_prompts(torch.nn.Identity(), torch.ones(1, 4, 128, 16), torch.ones(1, 4, 128, 16))
    (layer,) = cache._layers.values()
    assert layer.prompt_keys.shape == (2, 4, 64, 16)
    assert layer.own_keys.shape == (16, 4, 0, 16)
    assert cache.advance(torch.arange(16)).tolist() == [60] * 8 + [50] * 8
    assert layer.own_keys.shape == (16, 4, 32, 16)
