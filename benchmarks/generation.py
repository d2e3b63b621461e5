"""Sampling: prefloop's hf engine, transformers' `generate` and continuous batching, and vLLM where it is installed.

Works: `group` (8 completions a prompt) and `single` (one). No token ends a completion, so that both sides write as many.
"""

import importlib.util

from benchmarks.cases import Case, Dtype, Side
from benchmarks.common import Bench, Options, parse
from benchmarks.rows import (
    Row,
    Runs,
    Target,
    compared,
    peak_growth_mb,
    sampled_tokens_per_s,
    share_of_matmul,
)

COMPLETIONS = {"group": 8, "single": 1}
TIMES = {"group": 3.0, "single": 1.0}
"""How many times as many tokens a second as the peer."""
PROMPTS, PROMPT, NEW_TOKENS = 4, 256, 128
PEER, BATCHED, VLLM = "generate", "continuous batching", "vLLM"


def main() -> None:
    """Measures every work for every model and dtype."""
    options = parse(__doc__, works=tuple(COMPLETIONS), models=("tiny", "small"))
    with Bench("generation", options) as bench:
        for work in options.works:
            for model in options.models:
                for dtype in options.dtypes:
                    case = case_of(work, model, dtype, options)
                    bench.rows += rows_of(work, case, bench.compare(case, peers(options)), bench.rates)
        bench.finish()


def peers(options: Options) -> list[Side]:
    """transformers' two ways to sample, and vLLM."""
    malloc = options.environment()
    found = [
        Side(PEER, "transformers", microbatch=1, environment=malloc),
        Side(BATCHED, "continuous_batching", microbatch=1, environment=malloc),
    ]
    if importlib.util.find_spec("vllm") is not None:
        found.append(Side(VLLM, "vllm", microbatch=1))
    return found


def case_of(work: str, model: str, dtype: Dtype, options: Options) -> Case:
    """Prompts of equal length, so that the peer pads nothing."""
    data = options.data(PROMPTS, PROMPT, NEW_TOKENS, num_completions=COMPLETIONS[work])
    name = (
        f"{data.num_prompts} prompts of {data.prompt_length} x {data.num_completions} completions "
        f"of {data.completion_length}, {model} {dtype}"
    )
    return Case(name, "generate", model, dtype, data, data.num_prompts)


def rows_of(work: str, case: Case, runs: Runs, rates: dict[str, float]) -> list[Row]:
    """Speed and memory, and the share of the machine's matmul rate: a step reads all weights and keys for few rows."""
    others = [one for one in (BATCHED, VLLM) if one in runs]
    return [
        compared(case.name, "tokens/s", runs, PEER, sampled_tokens_per_s(case), Target(TIMES[work])),
        *(compared(case.name, "tokens/s", runs, one, sampled_tokens_per_s(case)) for one in others),
        compared(case.name, "share of matmul rate", runs, PEER, share_of_matmul(case, rates)),
        compared(case.name, "peak growth, MB", runs, PEER, peak_growth_mb),
        *(compared(case.name, "peak growth, MB", runs, one, peak_growth_mb) for one in others),
    ]


if __name__ == "__main__":
    main()
