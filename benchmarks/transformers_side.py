"""transformers' sides of sampling: `generate`, which repeats every prompt for its completions, and continuous batching."""

import math
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig

from benchmarks.cases import Case, Done, Side
from benchmarks.data import text_groups
from benchmarks.machine import now
from benchmarks.settings import SEED, Folders
from benchmarks.shapes import SHAPES

PAGE_SIZE = 32
"""Tokens; the fastest of a few tried."""


def run(case: Case, side: Side, folders: Folders, threads: int) -> Done:
    """The work of a case by `generate`."""
    torch.set_num_threads(threads)
    model, tokenizer, prompts = _loaded(case, folders)
    started = now()
    padded = tokenizer.apply_chat_template(
        prompts, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(case.device)
    torch.manual_seed(SEED)
    sampled = model.generate(**padded, **_sampling(case), pad_token_id=tokenizer.pad_token_id)
    took = now().since(started)
    new_tokens = sampled.shape[1] - padded["input_ids"].shape[1]
    return Done.of_samples(took, num_completions=len(sampled), num_tokens=len(sampled) * new_tokens)


def run_batched(case: Case, side: Side, folders: Folders, threads: int) -> Done:
    """The work of a case by continuous batching, with small pages and as many as are needed: left to itself it fills most of
    the machine's memory first."""
    torch.set_num_threads(threads)
    model, tokenizer, prompts = _loaded(case, folders)
    started = now()
    ids = tokenizer.apply_chat_template(prompts, tokenize=True, add_generation_prompt=True)["input_ids"]
    model.generation_config.update(**_sampling(case), pad_token_id=tokenizer.pad_token_id, eos_token_id=-1)
    torch.manual_seed(SEED)
    pages = case.num_pairs * math.ceil((case.longest + PAGE_SIZE) / PAGE_SIZE)
    batching = ContinuousBatchingConfig(page_size=PAGE_SIZE, num_blocks=pages)
    sampled = model.generate_batch(ids, continuous_batching_config=batching)
    took = now().since(started)
    tokens = sum(len(one.generated_tokens) for one in sampled.values())
    return Done.of_samples(took, num_completions=len(sampled), num_tokens=tokens)


def _loaded(case: Case, folders: Folders) -> tuple[Any, Any, list[list[dict[str, str]]]]:
    """Model, tokenizer and conversations."""
    tokenizer = AutoTokenizer.from_pretrained(folders.policy)
    model = AutoModelForCausalLM.from_pretrained(
        folders.policy, dtype=getattr(torch, case.dtype), attn_implementation="sdpa"
    ).to(case.device)
    model.generation_config.eos_token_id = None
    groups = text_groups(case.data, SHAPES[case.model].vocabulary)
    return model, tokenizer, [[{"role": "user", "content": one.prompt}] for one in groups]


def _sampling(case: Case) -> dict[str, Any]:
    """Plain samples of the model, as many tokens as the case says."""
    return {
        "do_sample": True,
        "top_k": 0,
        "max_new_tokens": case.data.completion_length,
        "num_return_sequences": case.data.num_completions,
    }
