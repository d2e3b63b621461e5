"""The model work of one online iteration after sampling: score K completions, choose best and worst, train with DPO.

prefloop's scorer, selection and policy stage, on the sampler's token ids, against what one writes around TRL: decode,
tokenise for the reward model, score padded batches, choose, DPOTrainer.
"""

from benchmarks.cases import Case, Dtype, Measured, Side
from benchmarks.common import MALLOC, Bench, Options, parse
from benchmarks.rows import PREFLOOP, Row, Runs, compared, groups_per_s, peak_growth_mb, whole_s

K = 8
PROMPT, COMPLETION = 128, 96
GROUPS = {"nano": 16, "tiny": 32, "small": 16}
GROUPS_PER_STEP = 8
EPOCHS = 2


def main() -> None:
    """Measures every model and dtype."""
    options = parse(__doc__, works=("iteration",))
    with Bench("iteration", options) as bench:
        for model in options.models:
            for dtype in options.dtypes:
                case = iteration_case(model, dtype, options)
                peers = [
                    Side("TRL and transformers", "trl", environment=options.environment()),
                    Side("the same, best malloc", "trl", environment=MALLOC),
                ]
                runs = bench.compare(case, peers)
                bench.rows += rows_of(case, runs, peers)
        bench.finish()


def iteration_case(model: str, dtype: Dtype, options: Options) -> Case:
    """Prompts with K sampled completions of ragged lengths."""
    data = options.data(GROUPS[model], PROMPT, COMPLETION, num_completions=K, ragged=True)
    name = f"iteration, K = {K}, {data.prompt_length}:{data.completion_length}, {model} {dtype}"
    return Case(name, "iteration", model, dtype, data, min(GROUPS_PER_STEP, data.num_prompts), EPOCHS)


def rows_of(case: Case, runs: Runs, peers: list[Side]) -> list[Row]:
    """The whole and its parts against every peer; how many prompts got the same pair."""
    rows = []
    for peer in (one.label for one in peers):
        same = sum(
            tuple(a) == tuple(b) for a, b in zip(runs[PREFLOOP][0].picks, runs[peer][0].picks, strict=True)
        )
        work = f"{case.name} (same pair for {same} of {case.data.num_prompts})"
        rows += [
            compared(work, "groups/s", runs, peer, groups_per_s(case)),
            compared(work, "scoring, groups/s", runs, peer, lambda run: _groups_per_s_of(case, run, "score")),
            compared(
                work, "DPO, pairs/s", runs, peer, lambda run: _groups_per_s_of(case, run, "train") * EPOCHS
            ),
            compared(work, "whole, s", runs, peer, whole_s),
            compared(work, "peak growth, MB", runs, peer, peak_growth_mb),
        ]
    return rows


def _groups_per_s_of(case: Case, run: Measured, part: str) -> float:
    return case.data.num_prompts / run.parts[part]


if __name__ == "__main__":
    main()
