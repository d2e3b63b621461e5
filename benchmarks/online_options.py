"""What options of PPO cost and gain beside the same step without them: memory and steps a second.

Policy, critic, reference and reward model are four models of one shape. `frozen` lets them share three quarters of the
layers, `adapters` trains low-rank ones and needs no reference, `ahead` samples the next batch while one is learned from.
"""

from dataclasses import replace

from benchmarks.cases import Case
from benchmarks.common import Bench, parse
from benchmarks.rows import PREFLOOP, Runs, compared, peak_growth_mb, steps_per_s
from benchmarks.shapes import SHAPES

WORKS = ("frozen", "adapters", "both", "ahead")
PROMPTS_A_STEP, K = 2, 8
PROMPT, COMPLETION = 256, 64
STEPS = 4
RANK = 8
PLAIN = "without"


def main() -> None:
    """Measures every option, model and dtype."""
    options = parse(__doc__, works=WORKS, models=("small",), dtypes=("float32",))
    with Bench("online_options", options) as bench:
        for model in options.models:
            for dtype in options.dtypes:
                data = options.data(PROMPTS_A_STEP * STEPS, PROMPT, COMPLETION, num_completions=K)
                name = f"ppo, {PROMPTS_A_STEP} x {K} samples, {data.prompt_length}:{data.completion_length}, {model} {dtype}"
                case = Case(
                    name,
                    "rl",
                    model,
                    dtype,
                    data,
                    PROMPTS_A_STEP,
                    algorithm="ppo",
                    scored_by_model=True,
                )
                usual = bench.compare(case, [])[PREFLOOP]
                for work in options.works:
                    found = bench.compare(with_option(case, work), [])[PREFLOOP]
                    runs: Runs = {PREFLOOP: found, PLAIN: usual}
                    work_name = f"{name}, {work}"
                    bench.rows += [
                        compared(work_name, "peak growth, MB", runs, PLAIN, peak_growth_mb),
                        compared(work_name, "steps/s", runs, PLAIN, steps_per_s(case)),
                    ]
        bench.finish()


def with_option(case: Case, work: str) -> Case:
    """The case with an option."""
    frozen = {"frozen_layers": SHAPES[case.model].layers * 3 // 4}
    match work:
        case "frozen":
            return replace(case, name=f"{case.name}, {work}", rl=frozen)
        case "adapters":
            return replace(case, name=f"{case.name}, {work}", lora_rank=RANK)
        case "both":
            return replace(case, name=f"{case.name}, {work}", lora_rank=RANK, rl=frozen)
        case _:
            return replace(case, name=f"{case.name}, {work}", rl={"ahead": 1})


if __name__ == "__main__":
    main()
