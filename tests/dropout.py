"""Tiny random policies of kinds that have dropout, each in its own way."""

from pathlib import Path
from typing import Literal

from transformers import AutoConfig, AutoModelForCausalLM

from prefloop.modeling import load_codec, save_model

RATE = 0.3
SHAPES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "resid_pdrop": RATE, "attn_pdrop": RATE},
    "opt": {
        "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 32,
        "dropout": RATE, "attention_dropout": RATE,
    },
}  # fmt: skip


def save_with_dropout(kind: Literal["gpt2", "opt"], tokenizer_of: Path, folder: Path) -> Path:
    """A policy folder with the tokenizer of another."""
    tokenizer = load_codec(tokenizer_of).tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **SHAPES[kind], **ends)
    save_model(AutoModelForCausalLM.from_config(config), tokenizer, folder, dtype="float32")
    return folder
