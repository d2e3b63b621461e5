"""On a CUDA GPU: DPO and reward models of 0.5, 1.5 and 8 billion weights, random-init Llama shapes, against TRL.

bfloat16 autocast on float32 weights on both sides; the largest trains adapters. Not part of `python -m benchmarks`.
"""

import sys

from benchmarks.cases import Case, Side
from benchmarks.common import Bench, Options, console, parse
from benchmarks.rows import (
    Row,
    Runs,
    compared,
    groups_per_s,
    peak_growth_mb,
    share_of,
    share_of_matmul,
    tokens_per_s,
)

PROMPT, COMPLETION = 768, 256
PAIRS, PAIRS_PER_STEP = 64, 16
GROUPS, GROUPS_PER_STEP = 16, 4
K = 4
ADAPTER_RANK = {"8b": 16}
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165}
"""Dense bfloat16 rates from the makers' data sheets, by a part of the GPU's name; the first that fits counts."""


def main() -> None:
    """Measures DPO and reward models of every shape."""
    options = parse(__doc__, works=("dpo", "reward"), models=("0.5b", "1.5b", "8b"), dtypes=("bfloat16",))
    name = gpu_name()
    if name is None:
        console.print("no CUDA GPU here: nothing measured; the other benchmarks run on a CPU")
        sys.exit(1)
    peak = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)
    with Bench("gpu", options, device="cuda") as bench:
        for work in options.works:
            for model in options.models:
                case = gpu_case(work, model, options)
                runs = bench.compare(case, [Side("TRL", "trl", group_by_length=True)])
                bench.rows += rows_of(case, runs, bench.rates, peak)
        bench.finish(gpu=name, peak_tflops=peak)


def gpu_name() -> str | None:
    """The GPU, or None."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def gpu_case(work: str, model: str, options: Options) -> Case:
    """Ragged lengths: pairs for DPO, rankings for a reward model."""
    if work == "dpo":
        data = options.data(PAIRS, PROMPT, COMPLETION, ragged=True)
        return _case("DPO", "dpo", model, data, PAIRS_PER_STEP)
    data = options.data(GROUPS, PROMPT, COMPLETION, ragged=True, num_completions=K)
    return _case(f"reward model, K = {K}", "reward", model, data, GROUPS_PER_STEP)


def _case(name, task, model, data, prompts_per_step) -> Case:
    rank = ADAPTER_RANK.get(model, 0)
    label = f"{name}, {data.prompt_length}:{data.completion_length}, {model}{f' LoRA {rank}' if rank else ''}"
    return Case(
        label,
        task,
        model,
        "bfloat16",
        data,
        min(prompts_per_step, data.num_prompts),
        device="cuda",
        lora_rank=rank,
    )


def rows_of(case: Case, runs: Runs, rates: dict[str, float], peak_tflops: float | None) -> list[Row]:
    """Speed, shares of the measured and the nominal rate, memory."""
    rows = [
        compared(case.name, "tokens/s", runs, "TRL", tokens_per_s(case)),
        compared(case.name, "groups/s", runs, "TRL", groups_per_s(case)),
        compared(case.name, "share of matmul rate", runs, "TRL", share_of_matmul(case, rates)),
        compared(case.name, "peak growth, MB", runs, "TRL", peak_growth_mb),
    ]
    if peak_tflops:
        rows.append(compared(case.name, "MFU", runs, "TRL", share_of(case, peak_tflops * 1000)))
    return rows


if __name__ == "__main__":
    main()
