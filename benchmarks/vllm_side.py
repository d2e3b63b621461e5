"""vLLM's side of sampling, in the process that is measured; for a Python that has vLLM."""

import os

from transformers import AutoTokenizer

from benchmarks.cases import Case, Done, Side
from benchmarks.data import text_groups
from benchmarks.machine import now
from benchmarks.settings import SEED, Folders
from benchmarks.shapes import SHAPES

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no engine process of its own, whose time would not be counted
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def run(case: Case, side: Side, folders: Folders, threads: int) -> Done:
    """The work of a case; starting the engine is not part of it."""
    os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    tokenizer = AutoTokenizer.from_pretrained(folders.policy)
    groups = text_groups(case.data, SHAPES[case.model].vocabulary)
    prompts = [[{"role": "user", "content": one.prompt}] for one in groups]
    engine = LLM(
        str(folders.policy),
        dtype=case.dtype,
        max_model_len=case.longest + 1,
        max_num_seqs=case.num_pairs,
        enforce_eager=True,
        generation_config="vllm",
        disable_log_stats=True,
    )
    params = SamplingParams(
        n=case.data.num_completions,
        seed=SEED,
        max_tokens=case.data.completion_length,
        ignore_eos=True,
        logprobs=0,
    )
    started = now()
    ids = tokenizer.apply_chat_template(prompts, tokenize=True, add_generation_prompt=True)["input_ids"]
    found = engine.generate([TokensPrompt(prompt_token_ids=one) for one in ids], params, use_tqdm=False)
    took = now().since(started)
    completions = [one for group in found for one in group.outputs]
    return Done.of_samples(
        took, num_completions=len(completions), num_tokens=sum(len(one.token_ids) for one in completions)
    )
