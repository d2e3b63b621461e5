"""Pairs that the reward model picks against pairs drawn by chance, for the same number of labels.

`python -m benchmarks.label_active --workspace DIR` runs the loop on the built-in tales with simulated people, both ways for
each seed, and prints the hidden quality of the last policy: mean and interval of the difference over seeds. A fifth of the
picked pairs is drawn by chance as well. No claim is made where the interval holds 0.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from scipy import stats

from prefloop import config, pipeline
from prefloop.cli import preset
from prefloop.config import MAIN_ARM
from prefloop.pipeline import Watcher
from prefloop.store import Artefact, Workspace

RANDOM_SHARE = 0.2
CONFIDENCE = 0.95
CHANCE_ARM = "chance"


def final_scores(seed: int, workspace: Workspace, overrides: list[str]) -> tuple[float, float, float]:
    """Mean hidden quality after the loop with picked and with random pairs, and the random share of the picked."""
    arms = f"arms={{{CHANCE_ARM}: {{annotate.propose: random}}}}"
    mine = [f"seed={seed}", f"name=active-{seed}", arms, f"annotate.random_share={RANDOM_SHARE}"]
    x = config.parse(preset("quickstart"), [*mine, "loop.gate.metric=none", *overrides], where="quickstart")
    entries = pipeline.run(x, workspace, Watcher())
    last = {one.arm: one.artefact for one in entries if one.role == "evaluate"}
    labels = {
        arm: sum(one.artefact.stats["labels"] for one in entries if one.role == "annotate" and one.arm == arm)
        for arm in last
    }
    assert len(set(labels.values())) == 1, f"both have the same number of labels: {labels}"
    picked = [
        one.artefact
        for one in entries
        if one.role == "annotate" and one.arm == MAIN_ARM and one.iteration is not None
    ]
    share = float(np.mean([_random_share(one) for one in picked]))
    return _score(last[MAIN_ARM]), _score(last[CHANCE_ARM]), share


def _score(evaluation: Artefact) -> float:
    return evaluation.stats["score"]["mean"]


def _random_share(judgements: Artefact) -> float:
    strategies = judgements.stats["strategies"]
    return strategies.get("random", 0) / sum(strategies.values())


def main() -> None:
    """Runs all seeds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="as for `prefloop run`, for instance loop.batches=2")
    given = parser.parse_args()
    print("| seed | picked | by chance | difference | random pairs among the picked |\n|---|---|---|---|---|")
    differences = []
    for seed in range(given.seeds):
        picked, chance, share = final_scores(seed, Workspace(given.workspace), given.overrides)
        differences.append(picked - chance)
        print(f"| {seed} | {picked:.3f} | {chance:.3f} | {picked - chance:+.3f} | {share:.2f} |", flush=True)
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    half = (
        float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * spread / math.sqrt(len(differences))
    )
    verdict = (
        "no difference can be claimed"
        if abs(mean) <= half
        else "picked pairs are better"
        if mean > 0
        else "worse"
    )
    print(f"\ndifference {mean:+.3f} ± {half:.3f} over {len(differences)} seeds: {verdict}")


if __name__ == "__main__":
    main()
