"""Reward models on rankings of K completions: prefloop's reward stage against TRL's RewardTrainer.

Both get all pairs of every ranking; TRL computes two rows a pair, prefloop every prompt and every completion once.
"""

from benchmarks.cases import Case, Dtype, Side
from benchmarks.common import Bench, Options, parse
from benchmarks.rows import (
    Row,
    Runs,
    Target,
    compared,
    groups_per_s,
    peak_growth_mb,
    share_of_matmul,
    tokens_per_s,
    whole_s,
)

WORKS = {"k4": 4, "k8": 8}
TIMES = {4: 6.0, 8: 15.0}
"""How many times as many groups a second, by K."""
PROMPT, COMPLETION = 256, 96
GROUPS = {4: 8, 8: 4}
GROUPS_PER_STEP = 2


def main() -> None:
    """Measures every K for every model and dtype."""
    options = parse(__doc__, works=tuple(WORKS))
    with Bench("reward", options) as bench:
        for work in options.works:
            for model in options.models:
                for dtype in options.dtypes:
                    case = ranking_case(WORKS[work], model, dtype, options)
                    runs = bench.compare(case, [Side("TRL", "trl", environment=options.environment())])
                    bench.rows += rows_of(case, runs, bench.rates)
        bench.finish()


def ranking_case(num_completions: int, model: str, dtype: Dtype, options: Options) -> Case:
    """Rankings of ragged completions, fully ordered."""
    data = options.data(
        GROUPS[num_completions], PROMPT, COMPLETION, num_completions=num_completions, ragged=True
    )
    name = (
        f"reward model, K = {num_completions}, {data.prompt_length}:{data.completion_length}, {model} {dtype}"
    )
    return Case(name, "reward", model, dtype, data, min(GROUPS_PER_STEP, data.num_prompts))


def rows_of(case: Case, runs: Runs, rates: dict[str, float]) -> list[Row]:
    """Speed; tokens, share of the matmul rate, whole stage and memory."""
    target = Target(TIMES[case.data.num_completions])
    return [
        compared(case.name, "groups/s", runs, "TRL", groups_per_s(case), target),
        compared(case.name, "tokens/s", runs, "TRL", tokens_per_s(case)),
        compared(case.name, "share of matmul rate", runs, "TRL", share_of_matmul(case, rates)),
        compared(case.name, "whole stage, s", runs, "TRL", whole_s),
        compared(case.name, "peak growth, MB", runs, "TRL", peak_growth_mb),
    ]


if __name__ == "__main__":
    main()
