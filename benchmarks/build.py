"""Random-init Llamas with a word tokenizer, saved as ordinary transformers folders."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from benchmarks.data import ASSISTANT, END, PAD, TEMPLATE, UNKNOWN, USER, vocabulary
from benchmarks.settings import SEED
from benchmarks.shapes import SHAPES, Shape

ARCHITECTURES = {"policy": LlamaForCausalLM, "reward_model": LlamaForSequenceClassification}
"""The reward model's head is random too, so that its scores differ."""


def build(name: str, kind: str, folder: Path) -> None:
    """A model of a shape; the same weights for the same name and kind."""
    shape, device = SHAPES[name], "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = word_tokenizer(shape.vocabulary)
    torch.manual_seed(SEED)
    with torch.device(device):
        model = ARCHITECTURES[kind](_config(shape, tokenizer))
    if device == "cuda":
        nn.Module.to(model, torch.bfloat16)  # half the disk; both sides load float32
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Splits at whitespace; each word is a token."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(size), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
    )
    fast.chat_template = TEMPLATE
    return fast


def _config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        num_labels=1,  # type: ignore[call-arg]
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
