"""transformers' side of sampling: `generate`, which repeats every prompt for its completions."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.cases import Case, Done, Side
from benchmarks.data import text_groups
from benchmarks.machine import now
from benchmarks.settings import SEED, Folders
from benchmarks.shapes import SHAPES


def run(case: Case, side: Side, folders: Folders, threads: int) -> Done:
    """The work of a case."""
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folders.policy)
    model = AutoModelForCausalLM.from_pretrained(
        folders.policy, dtype=getattr(torch, case.dtype), attn_implementation="sdpa"
    ).to(case.device)
    model.generation_config.eos_token_id = None
    groups = text_groups(case.data, SHAPES[case.model].vocabulary)
    started = now()
    prompts = tokenizer.apply_chat_template(
        [[{"role": "user", "content": one.prompt}] for one in groups],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    ).to(case.device)
    torch.manual_seed(SEED)
    sampled = model.generate(
        **prompts,
        do_sample=True,
        top_k=0,
        max_new_tokens=case.data.completion_length,
        num_return_sequences=case.data.num_completions,
        pad_token_id=tokenizer.pad_token_id,
    )
    took = now().since(started)
    new_tokens = sampled.shape[1] - prompts["input_ids"].shape[1]
    return Done.of_samples(took, num_completions=len(sampled), num_tokens=len(sampled) * new_tokens)
