"""Peak memory of a DPO step on four pairs (prompt to completion 3 : 1), all four in one microbatch on both sides."""

from dataclasses import replace

from benchmarks.cases import Case, Side
from benchmarks.common import Bench, parse, trl_defaults
from benchmarks.rows import Target, compared, peak_growth_mb

PROMPT, COMPLETION = 288, 96
PAIRS = 4
STEPS = 2
"""The optimiser's moments exist from the end of the first step on."""
AT_MOST = 0.45
"""Times the peer's growth."""


def main() -> None:
    """Measures every model and dtype."""
    options = parse(__doc__, works=("step",), models=("tiny", "small"))
    with Bench("memory", replace(options, peer_microbatch=options.peer_microbatch or PAIRS)) as bench:
        for model in options.models:
            for dtype in options.dtypes:
                data = options.data(PAIRS * STEPS, PROMPT, COMPLETION)
                case = Case(
                    f"DPO step of {PAIRS} pairs {data.prompt_length}:{data.completion_length}, {model} {dtype}",
                    "dpo",
                    model,
                    dtype,
                    data,
                    min(PAIRS, data.num_prompts),
                )
                peers = [
                    Side("TRL", "trl", environment=options.environment()),
                    trl_defaults(case, options),
                ]
                runs = bench.compare(case, peers)
                target = Target(AT_MOST, better="lower")
                bench.rows += [
                    compared(case.name, "peak growth, MB", runs, peers[0].label, peak_growth_mb, target),
                    compared(case.name, "peak growth, MB", runs, peers[1].label, peak_growth_mb),
                ]
        bench.finish()


if __name__ == "__main__":
    main()
