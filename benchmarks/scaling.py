"""Cost of a token that counts as K, the prompt and the data grow; prefloop, and TRL where it ends in reasonable time.

Works: `completions` (reward model on all pairs of K ranked completions), `prompt` (DPO behind longer prompts), `data`
(DPO on more pairs). Draws `scaling.png` beside the results.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Dtype, Side
from benchmarks.common import Bench, Options, console, parse
from benchmarks.rows import PREFLOOP, Row, Runs, Spread, compared, microseconds_per_token

WORKS = {"completions": (2, 4, 8, 16), "prompt": (64, 128, 256, 512, 1024), "data": (8, 16, 32, 64)}
AXES = {"completions": "completions per prompt", "prompt": "prompt tokens", "data": "pairs"}
PEER_UP_TO = {"completions": 8, "prompt": 1024, "data": 32}
"""The peer's time grows with the square of K: 240 rows a prompt at K = 16."""
PROMPT, COMPLETION = 128, 64
GROUPS = 4
PAIRS = 16
PAIRS_PER_STEP = 8
PEER_MICROBATCH = 1
"""Its fastest on a CPU: nothing is padded."""


def main() -> None:
    """Measures every point, then draws."""
    options = parse(__doc__, works=tuple(WORKS), dtypes=("bfloat16",))
    options = replace(options, peer_microbatch=options.peer_microbatch or PEER_MICROBATCH)
    points: list[dict[str, Any]] = []
    with Bench("scaling", options) as bench:
        for work, size, case in cases(options, WORKS, _case):
            peers = (
                [Side("TRL", "trl", environment=options.environment())] if size <= PEER_UP_TO[work] else []
            )
            runs = bench.compare(case, peers)
            bench.rows.append(_row(case, runs))
            points.append(
                {"work": work, "size": size, "model": case.model, "dtype": case.dtype, **_costs(case, runs)}
            )
        bench.finish(points=points)
    target = options.results / "scaling.png"
    draw(points, target, WORKS, AXES, peer="TRL", measure="µs a token that counts")


def cases(
    options: Options,
    sizes: Mapping[str, Sequence[int]],
    make: Callable[[str, int, str, Dtype, Options], Case],
) -> Iterator[tuple[str, int, Case]]:
    """Every point of every curve."""
    for work in options.works:
        for model in options.models:
            for dtype in options.dtypes:
                for size in sizes[work]:
                    yield work, size, make(work, size, model, dtype, options)


def _case(work: str, size: int, model: str, dtype: Dtype, options: Options) -> Case:
    name = f"{size} {AXES[work]}, {model} {dtype}"
    match work:
        case "completions":
            data = options.data(GROUPS, PROMPT, COMPLETION, num_completions=size)
            return Case(name, "reward", model, dtype, data, data.num_prompts)
        case "prompt":
            data = options.data(PAIRS, size, COMPLETION)
        case _:
            data = options.data(size, PROMPT, COMPLETION)
    return Case(name, "dpo", model, dtype, data, min(PAIRS_PER_STEP, data.num_prompts))


def _row(case: Case, runs: Runs) -> Row:
    figure, measure = microseconds_per_token(case), "µs/token"
    if "TRL" in runs:
        return compared(case.name, measure, runs, "TRL", figure)
    return Row(case.name, measure, Spread.of([figure(one) for one in runs[PREFLOOP]]))


def _costs(case: Case, runs: Runs) -> dict[str, list[float]]:
    figure = microseconds_per_token(case)
    return {label: [figure(one) for one in repeats] for label, repeats in runs.items()}


def draw(
    points: list[dict[str, Any]],
    target: Path,
    sizes: Mapping[str, Sequence[int]],
    titles: Mapping[str, str],
    *,
    peer: str,
    measure: str,
) -> None:
    """One panel a work, one curve a side and model, with bars from the lowest to the highest repeat."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        console.print("no plot: matplotlib is not installed")
        return
    works = list(dict.fromkeys(one["work"] for one in points))
    figure = Figure(figsize=(4.5 * len(works), 3.6), layout="constrained")
    for index, work in enumerate(works):
        axes = figure.add_subplot(1, len(works), index + 1)
        for model, dtype, side in dict.fromkeys(
            (one["model"], one["dtype"], side) for one in points for side in (PREFLOOP, peer)
        ):
            curve = [
                (one["size"], Spread.of(one[side]))
                for one in points
                if (one["work"], one["model"], one["dtype"]) == (work, model, dtype) and side in one
            ]
            _draw_curve(axes, curve, f"{side}, {model} {dtype}")
        axes.set(xscale="log", xlabel=titles[work], ylim=(0, None))
        axes.set_xticks(sizes[work], [str(size) for size in sizes[work]], minor=False)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        if not index:
            axes.set_ylabel(measure)
            axes.legend(frameon=False, fontsize="small")
    figure.savefig(target, dpi=150)
    console.print(f"wrote {target}")


def _draw_curve(axes: Any, curve: list[tuple[int, Spread]], label: str) -> None:
    sizes, spreads = [size for size, _ in curve], [spread for _, spread in curve]
    bars = [
        [one.median - one.lowest for one in spreads],
        [one.highest - one.median for one in spreads],
    ]
    axes.errorbar(sizes, [one.median for one in spreads], yerr=bars, marker="o", capsize=3, label=label)


if __name__ == "__main__":
    main()
