"""The tables of docs/concepts/label-quality.md, from simulated people.

How well reliabilities are recovered, which spammers are flagged, and how long intervals take. Prints Markdown.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np

from prefloop.agreement import Answer, Rating, flags, krippendorff_alpha, one_coin, vote_shares

SIZES = [(300, 12, 2), (300, 12, 3), (1000, 12, 3), (1000, 20, 2), (1000, 20, 3), (2000, 20, 5)]
"""Pairs, people, judgements a pair."""
HONEST = tuple(f"honest {number}" for number in range(8))
BOTS = ("random", "left", "fastest", "copy")
COPIED = HONEST[0]
NUM_FIRST, NUM_GOLD = 60, 20
BOT_MS, MEDIAN_MS, SPREAD, LEAST_MS = 500.0, 20_000.0, 0.5, 6_000.0
"""Active milliseconds: of a bot; of people, whose logarithms spread like this; and what reading takes."""


def coin_people(
    seed: int, *, pairs: int, people: int, overlap: int
) -> tuple[list[Rating], np.ndarray, np.ndarray]:
    """Ratings, reliabilities [K], and which side [N] is better; reliabilities are uniform on .55 to .97."""
    rng = np.random.default_rng(seed)
    eta, truth = rng.uniform(0.55, 0.97, people), rng.integers(0, 2, pairs)
    ratings = [
        Rating(f"{pair}", f"{who}", int(truth[pair] if rng.random() < eta[who] else 1 - truth[pair]))
        for pair in range(pairs)
        for who in rng.permutation(people)[:overlap]
    ]
    return ratings, eta, truth


def accuracy(p_first: dict[str, float], truth: np.ndarray) -> float:
    """Share of pairs whose better side is named; undecided ones count one half."""
    said = np.array([p_first[f"{pair}"] for pair in range(len(truth))])
    return float(np.mean(np.where(said == 0.5, 0.5, (said > 0.5) == truth)))


def first_sixty(seed: int, *, ordinary: float) -> list[Answer]:
    """Eight honest people and four bots on 60 pairs, of which 20 are gold.

    Honest people are right on 90 % of gold and on a share `ordinary` of the rest; the copier answers last.
    """
    rng = np.random.default_rng(seed)
    truth, gold = rng.integers(0, 2, NUM_FIRST), rng.permutation(NUM_FIRST) < NUM_GOLD
    answers: list[Answer] = []
    for who in HONEST + BOTS:
        first_left = rng.permutation(NUM_FIRST) < NUM_FIRST // 2
        right = rng.random(NUM_FIRST) < np.where(gold, 0.9, ordinary)
        values = np.where(right, truth, 1 - truth) if who in HONEST else rng.integers(0, 2, NUM_FIRST)
        if who == "left":
            values = first_left.astype(int)
        if who == "copy":
            values = np.array([one.value for one in answers if one.annotator == COPIED])
        active = rng.lognormal(np.log(MEDIAN_MS), SPREAD, NUM_FIRST)
        start = 10**8 if who == "copy" else int(rng.integers(0, 10**6))
        answers += [
            Answer(
                unit=f"{unit}",
                annotator=who,
                value=int(values[unit]),
                side="left" if values[unit] == first_left[unit] else "right",
                at_ms=start + int(MEDIAN_MS) * unit,
                active_ms=BOT_MS if who == "fastest" else float(active[unit]),
                least_ms=LEAST_MS,
                gold=bool(values[unit] == truth[unit]) if gold[unit] else None,
            )
            for unit in range(NUM_FIRST)
        ]
    return answers


def recovery(seeds: int) -> Iterator[str]:
    """One row a size: correlation, error, accuracy and coverage of one-coin EM."""
    yield (
        "| pairs × people × judgements a pair | correlation, mean / least | mean error | right sides, EM "
        "| right sides, majority | true values in the interval |"
    )
    yield "|---|---|---|---|---|---|"
    for pairs, people, overlap in SIZES:
        rows = []
        for seed in range(seeds):
            ratings, eta, truth = coin_people(seed, pairs=pairs, people=people, overlap=overlap)
            found = one_coin(ratings)
            majority = {one.unit: one.p_first for one in vote_shares(ratings)}
            of = {one.annotator: one for one in found.annotators}
            mine = [of[f"{who}"] for who in range(people)]
            values = np.array([one.value for one in mine])
            inside = np.mean([one.low <= true <= one.high for one, true in zip(mine, eta, strict=True)])
            rows.append(
                (
                    np.corrcoef(values, eta)[0, 1],
                    np.abs(values - eta).mean(),
                    accuracy(found.p_first, truth),
                    accuracy(majority, truth),
                    inside,
                )
            )
        mean, least = np.mean(rows, 0), np.min(rows, 0)
        yield (
            f"| {pairs} × {people} × {overlap} | {mean[0]:.2f} / {least[0]:.2f} | {mean[1]:.3f} | "
            f"{mean[2]:.3f} | {mean[3]:.3f} | {mean[4]:.1%} |"
        )


def screening(seeds: int) -> Iterator[str]:
    """One row a kind of person: how often each rule flags them."""
    yield "| honest people right on ordinary pairs | who | flagged | gold | one side | too fast | copies | random |"
    yield "|---|---|---|---|---|---|---|---|"
    for ordinary in (0.8, 0.9):
        found = [flags(first_sixty(seed, ordinary=ordinary)) for seed in range(seeds)]
        rules = Counter((one.annotator.split()[0], one.rule) for given in found for one in given)
        people = Counter(name.split()[0] for given in found for name in {one.annotator for one in given})
        for who in ("honest", *BOTS):
            n = seeds * (len(HONEST) if who == "honest" else 1)
            shares = [
                people[who],
                *(rules[who, rule] for rule in ("gold", "one_side", "too_fast", "copies", "random")),
            ]
            yield f"| {ordinary:.0%} | {who} | " + " | ".join(f"{one / n:.1%}" for one in shares) + " |"


def durations() -> Iterator[str]:
    """Seconds of one figure with its interval."""
    yield "| ratings | alpha with 1000 resamples, s | one coin, s |"
    yield "|---|---|---|"
    for pairs in (1_000, 10_000, 100_000):
        ratings, _, _ = coin_people(0, pairs=pairs, people=20, overlap=3)
        start = time.perf_counter()
        krippendorff_alpha(ratings, level="ordinal")
        middle = time.perf_counter()
        one_coin(ratings)
        yield f"| {3 * pairs} | {middle - start:.2f} | {time.perf_counter() - middle:.2f} |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--screening-seeds", type=int, default=1000)
    options = parser.parse_args()
    for table in (recovery(options.seeds), screening(options.screening_seeds), durations()):
        print(*table, "", sep="\n")


if __name__ == "__main__":
    main()
