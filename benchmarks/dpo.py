"""DPO, prefloop's policy stage against TRL's DPOTrainer.

Works: `fixed` lengths (prompt 256, completions 96), `ragged` lengths against TRL's best flags and against its defaults,
and `long_prompt` (prompt to completion 8 : 1).
"""

from benchmarks.cases import Case, Data, Dtype, Side
from benchmarks.common import MALLOC, Bench, Options, parse, trl_defaults
from benchmarks.rows import (
    Row,
    Runs,
    Target,
    compared,
    pairs_per_s,
    peak_growth_mb,
    share_of_matmul,
    tokens_per_s,
    whole_s,
)

WORKS = ("fixed", "ragged", "long_prompt")
LENGTHS = {"fixed": (256, 96), "ragged": (256, 96), "long_prompt": (512, 64)}
MODELS = {"fixed": ("tiny", "small"), "ragged": ("tiny",), "long_prompt": ("tiny",)}
PAIRS = {"nano": 32, "tiny": 32, "small": 16}
PAIRS_PER_STEP = 8
TIMES = {
    "fixed": {"TRL": 3.0},
    "ragged": {"TRL, best flags": 3.0, "TRL, defaults": 4.0},
    "long_prompt": {"TRL": 3.0},
}
"""How many times as many pairs a second as each peer."""
SHARES = {"float32": 0.70, "bfloat16": 0.35}
"""Share of the matmul rate."""


def main() -> None:
    """Measures every work for every model and dtype."""
    options = parse(__doc__, works=WORKS, models=())
    with Bench("dpo", options) as bench:
        for work in options.works:
            for model in options.models or MODELS[work]:
                for dtype in options.dtypes:
                    case = case_of(work, model, dtype, options)
                    runs = bench.compare(case, peers_of(work, case, options))
                    bench.rows += rows_of(work, case, runs, bench.rates)
        bench.finish()


def case_of(work: str, model: str, dtype: Dtype, options: Options) -> Case:
    """The data of a work."""
    data = options.data(PAIRS[model], *LENGTHS[work], ragged=work == "ragged")
    return dpo_case(f"DPO, {work}", model, dtype, data)


def dpo_case(name: str, model: str, dtype: Dtype, data: Data) -> Case:
    """One pass over pairs, in optimiser steps of equal size."""
    label = f"{name} {data.prompt_length}:{data.completion_length}, {model} {dtype}"
    return Case(label, "dpo", model, dtype, data, min(PAIRS_PER_STEP, data.num_prompts))


def peers_of(work: str, case: Case, options: Options) -> list[Side]:
    """TRL's sides."""
    if work == "ragged":
        return [Side("TRL, best flags", "trl", environment=MALLOC), trl_defaults(case, options)]
    return [Side("TRL", "trl", environment=options.environment())]


def rows_of(work: str, case: Case, runs: Runs, rates: dict[str, float]) -> list[Row]:
    """Speed against every peer; tokens, share of the matmul rate, whole stage and memory against the first."""
    times = TIMES[work]
    first = next(iter(times))
    share = Target(SHARES[case.dtype], of="value")
    return [
        *(
            compared(case.name, "pairs/s", runs, peer, pairs_per_s(case), Target(value))
            for peer, value in times.items()
        ),
        compared(case.name, "tokens/s", runs, first, tokens_per_s(case)),
        compared(case.name, "share of matmul rate", runs, first, share_of_matmul(case, rates), share),
        compared(case.name, "whole stage, s", runs, first, whole_s),
        compared(case.name, "peak growth, MB", runs, first, peak_growth_mb),
    ]


if __name__ == "__main__":
    main()
