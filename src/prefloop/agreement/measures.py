"""How far people agree: raw, beyond chance, and in their rankings.

All figures but Kendall's need only how often each value was given to a unit. Units with the same counts are one
pattern, and a resample is a number of units for each pattern, so a bootstrap over a million ratings costs what it costs
over the few dozen patterns that they form.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from prefloop.agreement.types import Measure, Ranking, Rating, Resampling, Value, indexed
from prefloop.interfaces import InputError

G = TypeVar("G", Rating, Ranking)
Level = Literal["nominal", "ordinal", "interval", "ratio"]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From patterns [P, V] and units a pattern [R, P] to figures [R]; nan is undefined."""

DEFINED_SHARE = 0.9
"""Of the resamples; below it an interval would say more about the resamples than about the people."""
CHUNK = 2_000_000
"""Numbers in memory at once."""
NOBODY_TWICE = "no unit was judged by two people"
UNANIMOUS = "all judgements have one value, so chance alone would agree as well"
DEFAULT = Resampling()


def raw_agreement(ratings: Sequence[Rating], *, how: Resampling = DEFAULT) -> Measure:
    """Share of two people on one unit who say the same, averaged over units."""
    return _measure(_table(ratings), _raw, how)


def krippendorff_alpha(ratings: Sequence[Rating], *, level: Level, how: Resampling = DEFAULT) -> Measure:
    """Krippendorff's alpha (2011): 1 - observed / expected disagreement. People may leave units out.

    Nominal for choices, ordinal for strengths and Likert scales. Values but nominal ones are numbers, those of a ratio
    scale not negative.
    """
    table = _table(ratings)
    if level == "nominal":
        scale = np.arange(len(table.values), dtype=np.float64)  # [V]
    else:
        scale = _numbers(table.values, level)  # [V]

    def statistic(patterns: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return _alpha(patterns, weights, scale, level)

    return _measure(table, statistic, how)


def fleiss_kappa(ratings: Sequence[Rating], *, how: Resampling = DEFAULT) -> Measure:
    """Fleiss' kappa (1971). Undefined unless every unit was judged by the same number of people."""
    table = _table(ratings)
    sizes = np.unique(table.patterns.sum(1)).astype(int)
    if len(sizes) > 1:
        reason = f"units have {sizes[0]} to {sizes[-1]} judgements and Fleiss wants equally many; take alpha"
        return Measure(None, None, None, table.units, table.ratings, reason)
    return _measure(table, _fleiss, how)


def gwet_ac1(
    ratings: Sequence[Rating], *, values: Sequence[Value] | None = None, how: Resampling = DEFAULT
) -> Measure:
    """Gwet's AC1 (2008), which does not fall when nearly all judgements have one value, as kappa does.

    `values` are those that people could choose from, where some of them were never chosen. Units that one person judged
    tell how common values are, as in Gwet's book.
    """
    table = _table(ratings, at_least=1)
    num_values = len(set(table.values) | set(values or ()))

    def statistic(patterns: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return _ac1(patterns, weights, num_values)

    return _measure(table, statistic, how)


def cohen_kappa(ratings: Sequence[Rating], *, first: str, second: str, how: Resampling = DEFAULT) -> Measure:
    """Cohen's kappa (1960) of two people, on the units that both judged."""
    from prefloop.statistics import kappa_of_tables

    of_two: dict[str, dict[str, Rating]] = defaultdict(dict)
    for one in _once(ratings):
        if one.annotator in (first, second):
            of_two[one.unit][one.annotator] = one
    both = [of[first] for of in of_two.values() if len(of) == 2]
    theirs = [of[second].value for of in of_two.values() if len(of) == 2]
    values, places = indexed([*(one.value for one in both), *theirs])
    num_values, n = len(values), len(both)
    cells, cell_of = np.unique(places[:n] * num_values + places[n:], return_inverse=True)
    one_hot = np.eye(num_values**2)[cells]  # [P, V * V]
    table = _Table(tuple(values), one_hot, cell_of, [one.cluster for one in both], n, 2 * n)

    def statistic(patterns: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return kappa_of_tables((weights @ patterns).reshape(-1, num_values, num_values))

    return _measure(table, statistic, how)


def kendall_tau_b(rankings: Sequence[Ranking], *, how: Resampling = DEFAULT) -> Measure:
    """Kendall's tau-b of every two people's rankings of a unit, averaged within units, then over units.

    Two rankings of which one is a single tie have no tau: they count in neither.
    """
    from prefloop.statistics import clustered_interval

    by_unit: dict[str, list[Ranking]] = defaultdict(list)
    for one in _once(rankings):
        by_unit[one.unit].append(one)
    means, clusters, num_rankings = [], [], 0
    for unit, given in by_unit.items():
        if len({len(one.ranks) for one in given}) > 1:
            raise InputError(f"unit {unit}: rankings of different lengths; rank the same completions")
        taus = [
            _tau_b(one, other)
            for one, other in itertools.combinations(given, 2)
            if len(set(one.ranks)) > 1 and len(set(other.ranks)) > 1
        ]
        if taus:
            means.append(sum(taus) / len(taus))
            clusters.append(given[0].cluster)
            num_rankings += len(given)
    found = clustered_interval(
        means, clusters, confidence=how.confidence, resamples=how.resamples, seed=how.seed
    )
    if found is None:
        return Measure(None, None, None, 0, 0, "no unit has two rankings that tell completions apart")
    alone = len(set(clusters)) < 2
    return Measure(
        found["mean"],
        None if alone else found["low"],
        None if alone else found["high"],
        len(means),
        num_rankings,
    )


def _tau_b(one: Ranking, other: Ranking) -> float:
    from scipy import stats

    return float(np.asarray(stats.kendalltau(one.ranks, other.ranks))[0])


# --- counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    values: tuple[Value, ...]
    patterns: np.ndarray  # [P, V], how often each value was given
    pattern_of: np.ndarray  # [N] units
    clusters: list[str]  # [N]
    units: int
    ratings: int


def _once(given: Sequence[G]) -> Sequence[G]:
    """The same rows. Raises InputError where one person judged a unit twice."""
    if twice := [key for key, n in Counter((one.unit, one.annotator) for one in given).items() if n > 1]:
        unit, annotator = twice[0]
        raise InputError(f"unit {unit}: {annotator} judged it twice; give the last revision only")
    return given


def _table(ratings: Sequence[Rating], *, at_least: int = 2) -> _Table:
    """Counts of the units that so many people judged."""
    votes = Counter(one.unit for one in _once(ratings))
    kept = [one for one in ratings if votes[one.unit] >= at_least]
    values = tuple(sorted({one.value for one in kept}, key=lambda value: (isinstance(value, str), value)))
    place = {value: number for number, value in enumerate(values)}
    units, unit_of = indexed([one.unit for one in kept])
    counts = np.zeros((len(units), len(values)), dtype=np.int64)  # [N, V]
    value_of = np.array([place[one.value] for one in kept], dtype=np.int64)
    np.add.at(counts, (unit_of, value_of), 1)
    cluster_of = {one.unit: one.cluster for one in kept}
    patterns, pattern_of = np.unique(counts, axis=0, return_inverse=True)
    shared = [n for n in votes.values() if n > 1]
    return _Table(
        values,
        patterns,
        pattern_of.reshape(-1),
        [cluster_of[unit] for unit in units],
        len(shared),
        sum(shared),
    )


def _numbers(values: Sequence[Value], level: Level) -> np.ndarray:
    """The values as numbers. Raises InputError where they are not."""
    if named := [value for value in values if isinstance(value, str)]:
        raise InputError(
            f"value {named[0]!r}: level {level} needs numbers; use nominal, or number the values"
        )
    numbers = np.array(values, dtype=np.float64)
    if level == "ratio" and (numbers < 0).any():
        raise InputError(f"value {numbers.min()}: a ratio scale begins at 0; use interval")
    return numbers


# --- the bootstrap ---------------------------------------------------------------------------------------------------


def _measure(table: _Table, statistic: Statistic, how: Resampling) -> Measure:
    if not table.units:
        return Measure(None, None, None, 0, 0, NOBODY_TWICE)
    observed = np.bincount(table.pattern_of, minlength=len(table.patterns))[None]  # [1, P]
    value = float(statistic(table.patterns, observed)[0])
    if np.isnan(value):
        return Measure(None, None, None, table.units, table.ratings, UNANIMOUS)
    drawn = np.concatenate([statistic(table.patterns, weights) for weights in _resamples(table, how)])
    defined = drawn[~np.isnan(drawn)]
    low = high = None
    if len(set(table.clusters)) > 1 and len(defined) >= DEFINED_SHARE * len(drawn):
        tail = (1 - how.confidence) / 2
        low, high = (round(float(end), 6) for end in np.quantile(defined, [tail, 1 - tail]))
    return Measure(round(value, 6), low, high, table.units, table.ratings)


def _resamples(table: _Table, how: Resampling) -> Iterator[np.ndarray]:
    """Chunks [r, P] of how many units of each pattern a resample of prompts holds."""
    of_cluster: dict[str, list[int]] = defaultdict(list)
    for cluster, pattern in zip(table.clusters, table.pattern_of.tolist(), strict=True):
        of_cluster[cluster].append(pattern)
    kinds = Counter(
        tuple(sorted(patterns)) for patterns in of_cluster.values()
    )  # prompts alike in all their units
    content = np.zeros((len(kinds), len(table.patterns)))  # [Q, P]
    for number, patterns in enumerate(kinds):
        np.add.at(content[number], list(patterns), 1)
    shares = np.array(list(kinds.values())) / len(of_cluster)  # [Q]
    rng = np.random.default_rng(how.seed)
    size = max(1, CHUNK // (table.patterns.size + len(kinds)))
    for start in range(0, how.resamples, size):
        rows = min(size, how.resamples - start)
        yield rng.multinomial(len(of_cluster), shares, size=rows) @ content


# --- the figures -----------------------------------------------------------------------------------------------------


def _raw(patterns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    shared = patterns.sum(1) > 1  # [P]
    sizes, patterns, weights = patterns.sum(1)[shared], patterns[shared], weights[:, shared]
    alike = (patterns * (patterns - 1)).sum(1) / (sizes * (sizes - 1))  # [P]
    with np.errstate(invalid="ignore"):
        return weights @ alike / weights.sum(1)


def _fleiss(patterns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    given = weights @ patterns  # [R, V]
    shares = given / given.sum(1, keepdims=True)
    return _beyond_chance(_raw(patterns, weights), (shares**2).sum(1))


def _ac1(patterns: np.ndarray, weights: np.ndarray, num_values: int) -> np.ndarray:
    """Chance agreement of Gwet 2008, Eq. 6: people guess only where they are unsure."""
    sizes = patterns.sum(1, keepdims=True)  # [P, 1]
    shares = weights @ (patterns / sizes) / weights.sum(1, keepdims=True)  # [R, V]
    chance = (shares * (1 - shares)).sum(1) / max(1, num_values - 1)
    return np.where(shares.max(1) == 1, np.nan, _beyond_chance(_raw(patterns, weights), chance))


def _beyond_chance(observed: np.ndarray, chance: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance == 1, np.nan, (observed - chance) / (1 - chance))


def _alpha(patterns: np.ndarray, weights: np.ndarray, scale: np.ndarray, level: Level) -> np.ndarray:
    others = patterns.sum(1) - 1  # [P]
    scaled = (weights / others)[:, :, None] * patterns  # [R, P, V]
    coincidences = scaled.transpose(0, 2, 1) @ patterns  # [R, V, V]
    # nobody agrees with themselves: a rating is not paired with itself
    diagonal = np.arange(len(scale))
    coincidences[:, diagonal, diagonal] -= scaled.sum(1)
    given = weights @ patterns  # [R, V]
    total = given.sum(1)[:, None, None]
    expected = given[:, :, None] * given[:, None, :]  # [R, V, V]
    expected[:, diagonal, diagonal] -= given
    distances = _distances(scale, given, level)
    apart = (expected / (total - 1) * distances).sum((1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(apart == 0, np.nan, 1 - (coincidences * distances).sum((1, 2)) / apart)


def _distances(scale: np.ndarray, given: np.ndarray, level: Level) -> np.ndarray:
    """Squared differences [1 or R, V, V] of Krippendorff 2011, section E."""
    if level == "nominal":
        return (scale[:, None] != scale[None, :])[None].astype(np.float64)
    if level == "ordinal":
        # ratings between two values, with half of those at both ends, are the difference of their middle ranks
        ranks = given.cumsum(1) - given / 2  # [R, V]
        return (ranks[:, :, None] - ranks[:, None, :]) ** 2
    differences = scale[:, None] - scale[None, :]  # [V, V]
    if level == "interval":
        return differences[None] ** 2
    sums = scale[:, None] + scale[None, :]
    return (np.divide(differences, sums, out=np.zeros_like(sums), where=sums != 0) ** 2)[None]
