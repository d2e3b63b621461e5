"""One step of reinforcement: sample, score, update. prefloop's stage against TRL's GRPO and RLOO trainers.

16 completions a step, 8 of each prompt, the reference's log-probabilities included. What is scored takes no time.
"""

from benchmarks.cases import Case, Dtype, Side
from benchmarks.common import MALLOC, Bench, Options, parse
from benchmarks.rows import Row, Runs, Target, compared, peak_growth_mb, steps_per_s, whole_s

WORKS = ("grpo", "rloo")
PROMPTS_A_STEP, K = 2, 8
PROMPT, COMPLETION = 256, 64
STEPS = 4
PEER = "TRL"
TIMES = 3.0
"""How many times as many steps a second as TRL."""


def main() -> None:
    """Measures every algorithm, model and dtype."""
    options = parse(__doc__, works=WORKS, models=("tiny", "small"))
    with Bench("online", options) as bench:
        for work in options.works:
            for model in options.models:
                for dtype in options.dtypes:
                    case = online_case(work, model, dtype, options)
                    peer = Side(PEER, "trl", microbatch=PROMPTS_A_STEP * K, environment=MALLOC)
                    bench.rows += rows_of(case, bench.compare(case, [peer]))
        bench.finish()


def online_case(work: str, model: str, dtype: Dtype, options: Options) -> Case:
    """Prompts of equal length, all asked once."""
    data = options.data(PROMPTS_A_STEP * STEPS, PROMPT, COMPLETION, num_completions=K)
    name = f"{work}, {PROMPTS_A_STEP} x {K} samples, {data.prompt_length}:{data.completion_length}, {model} {dtype}"
    return Case(name, "rl", model, dtype, data, PROMPTS_A_STEP, algorithm=work)


def rows_of(case: Case, runs: Runs) -> list[Row]:
    """Speed and memory."""
    return [
        compared(case.name, "steps/s", runs, PEER, steps_per_s(case), Target(TIMES)),
        compared(case.name, "whole, s", runs, PEER, whole_s),
        compared(case.name, "peak growth, MB", runs, PEER, peak_growth_mb),
    ]


if __name__ == "__main__":
    main()
