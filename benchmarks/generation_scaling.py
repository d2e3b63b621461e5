"""Tokens a second as completions, prompt tokens and prompts grow; prefloop's hf engine, and transformers' `generate`.

Works: `completions` (K a prompt), `prompt` (its tokens), `batch` (prompts side by side). Draws `generation_scaling.png`
beside the results.
"""

from dataclasses import replace
from typing import Any

from benchmarks.cases import Case, Dtype
from benchmarks.common import Bench, Options, parse
from benchmarks.generation import PEER, case_of, peers
from benchmarks.rows import Row, Runs, compared, peak_growth_mb, sampled_tokens_per_s
from benchmarks.scaling import cases, draw

WORKS = {"completions": (1, 2, 4, 8, 16), "prompt": (64, 256, 1024), "batch": (1, 4, 16)}
AXES = {
    "completions": "completions per prompt",
    "prompt": "prompt tokens",
    "batch": "prompts of 8 completions",
}


def main() -> None:
    """Measures every point, then draws."""
    options = parse(__doc__, works=tuple(WORKS), dtypes=("bfloat16",))
    points: list[dict[str, Any]] = []
    with Bench("generation_scaling", options) as bench:
        for work, size, case in cases(options, WORKS, _case):
            runs = bench.compare(case, peers(options)[:1])
            bench.rows += rows_of(case, runs)
            speed = sampled_tokens_per_s(case)
            points.append(
                {"work": work, "size": size, "model": case.model, "dtype": case.dtype}
                | {label: [speed(one) for one in repeats] for label, repeats in runs.items()}
            )
        bench.finish(points=points)
    draw(points, options.results / "generation_scaling.png", WORKS, AXES, peer=PEER, measure="tokens/s")


def _case(work: str, size: int, model: str, dtype: Dtype, options: Options) -> Case:
    """The group of `benchmarks.generation` with one number changed."""
    base = case_of("group", model, dtype, options)
    field = {"completions": "num_completions", "prompt": "prompt_length", "batch": "num_prompts"}[work]
    data = replace(base.data, **{field: max(1, size // options.shrink) if work == "prompt" else size})
    return replace(
        base, name=f"{size} {AXES[work]}, {model} {dtype}", data=data, prompts_per_step=data.num_prompts
    )


def rows_of(case: Case, runs: Runs) -> list[Row]:
    """Speed and memory."""
    return [
        compared(case.name, "tokens/s", runs, PEER, sampled_tokens_per_s(case)),
        compared(case.name, "peak growth, MB", runs, PEER, peak_growth_mb),
    ]


if __name__ == "__main__":
    main()
