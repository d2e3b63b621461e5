"""Pairs that the reward model picks against pairs drawn by chance, for the same number of labels.

`python -m benchmarks.label_active --workspace DIR` runs the loop on the built-in tales with simulated people, both ways for
each seed, and prints the hidden quality of the last policy: mean and interval of the difference over seeds. A fifth of the
picked pairs is drawn by chance as well. No claim is made where the interval holds 0.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS
from benchmarks.label.report import write
from benchmarks.rows import Row, Spread
from prefloop import config, pipeline
from prefloop.config import MAIN_ARM, preset
from prefloop.pipeline import Watcher
from prefloop.statistics import StudentInterval, student_interval
from prefloop.store import Artefact, Workspace

NAME = "label_active"
RANDOM_SHARE = 0.2
CONFIDENCE = 0.95
CHANCE_ARM = "chance"


@dataclass(frozen=True)
class Scores:
    """Mean hidden quality after the loop with picked and with random pairs, and what it took."""

    picked: float
    chance: float
    random_share: float
    """Of the picked pairs."""
    labels: int


def final_scores(seed: int, workspace: Workspace, overrides: list[str]) -> Scores:
    """Both ways for one seed."""
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
    return Scores(_score(last[MAIN_ARM]), _score(last[CHANCE_ARM]), share, labels[MAIN_ARM])


def _score(evaluation: Artefact) -> float:
    return evaluation.stats["score"]["mean"]


def _random_share(judgements: Artefact) -> float:
    strategies = judgements.stats["strategies"]
    return strategies.get("random", 0) / sum(strategies.values())


def rows_of(scores: Sequence[Scores]) -> list[Row]:
    """The results file: both ways seed by seed, and their difference with its interval."""
    picked, chance = Spread.of([one.picked for one in scores]), Spread.of([one.chance for one in scores])
    difference = _difference(scores)
    work = f"{len(scores)} seeds, {scores[0].labels} labels each way"
    return [
        Row(work, "hidden quality of the last policy", picked, "pairs by chance", chance),
        Row(
            work,
            f"mean difference ({CONFIDENCE:.0%} interval)",
            Spread(difference.mean, difference.low, difference.high),
        ),
        Row(work, "random pairs among the picked, share", Spread.of([one.random_share for one in scores])),
    ]


def _difference(scores: Sequence[Scores]) -> StudentInterval:
    found = student_interval([one.picked - one.chance for one in scores], confidence=CONFIDENCE)
    assert found is not None, "there are seeds"
    return found


def verdict(difference: StudentInterval) -> str:
    """What may be said."""
    if difference.low <= 0 <= difference.high:
        return "no difference can be claimed"
    return "picked pairs are better" if difference.mean > 0 else "picked pairs are worse"


def main() -> None:
    """Runs all seeds, prints a table, and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--beside", default="", help="what else ran on the machine, for the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("overrides", nargs="*", help="as for `prefloop run`, for instance loop.batches=2")
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds: an interval needs at least 2")
    print("| seed | picked | by chance | difference | random pairs among the picked |\n|---|---|---|---|---|")
    scores = []
    for seed in range(given.seeds):
        one = final_scores(seed, Workspace(given.workspace), given.overrides)
        scores.append(one)
        print(
            f"| {seed} | {one.picked:.3f} | {one.chance:.3f} | {one.picked - one.chance:+.3f} | {one.random_share:.2f} |",
            flush=True,
        )
    found = _difference(scores)
    print(f"\ndifference {found.mean:+.3f} ± {found.half:.3f} over {len(scores)} seeds: {verdict(found)}")
    write(NAME, rows_of(scores), repeats=given.seeds, beside=given.beside, folder=given.results)


if __name__ == "__main__":
    main()
