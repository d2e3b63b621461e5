"""How well a model orders preference pairs: what `prefloop reward-card` measures.

Receives pairs, and as numbers what models said about them; knows nothing about models, tokens or files. The label is
the order of a pair, chosen over rejected. Intervals of shares resample prompts, because pairs of one prompt are not
independent; those of bins and buckets, which may be small, are Wilson's.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from prefloop.evaluate.card_types import (
    Baseline,
    Breakdown,
    Bucket,
    Histogram,
    LengthCheck,
    Mistake,
    Opinion,
    PositionCheck,
    PreviousCheck,
    RewardCard,
    Shift,
)
from prefloop.interfaces import InputError
from prefloop.records import PreferencePair
from prefloop.statistics import (
    Interval,
    Verdict,
    calibration,
    clustered_interval,
    cohen_kappa,
    not_worse,
    rank_correlation,
    wilson_interval,
    wins,
)

QUARTERS = 4
MOST_VALUES = 5
"""A quantity with at most this many values has a bucket for each; others are cut into quarters."""
MOST_GROUPS = 12
"""Sources or annotators beyond this many share a bucket."""
HISTOGRAM_BINS = 24
HISTOGRAM_ENDS = (0.005, 0.995)
"""Quantiles; what lies beyond is in the outermost bins."""
SAME = 1e-9
"""Relative spread below which all values count as one."""


@dataclass(frozen=True)
class Resampling:
    """How intervals over pairs are made."""

    prompt_ids: Sequence[str]
    confidence: float
    resamples: int

    def interval(self, values: Sequence[float]) -> Interval:
        """Mean with an interval over prompts, of one value a pair."""
        found = clustered_interval(
            values, self.prompt_ids, confidence=self.confidence, resamples=self.resamples
        )
        if found is None:
            raise InputError("no pairs to judge")
        return found

    def verdict(self, new: Sequence[float], old: Sequence[float], *, tolerance: float = 0.0) -> Verdict:
        """New against old on all pairs."""
        return not_worse(
            new,
            old,
            tolerance=tolerance,
            confidence=self.confidence,
            resamples=self.resamples,
            clusters=self.prompt_ids,
        )


def reward_card(
    pairs: Sequence[PreferencePair],
    opinion: Opinion,
    previous: Opinion | None = None,
    *,
    tolerance: float,
    confidence: float,
    resamples: int,
    num_mistakes: int,
) -> RewardCard:
    """Measures a model on pairs, and beside a previous one. Raises InputError for no pairs and values not finite."""
    if not pairs:
        raise InputError("no pairs to judge")
    check_finite(pairs, opinion)
    over = Resampling([one.prompt.id for one in pairs], confidence, resamples)
    odds = opinion.log_odds()
    right = correct(odds)
    return RewardCard(
        model=opinion.model,
        kind=opinion.kind,
        confidence=confidence,
        num_pairs=len(pairs),
        num_prompts=len(set(over.prompt_ids)),
        ties=odds.count(0.0),
        accuracy=over.interval(right),
        length=_length_check(pairs, opinion, odds, over),
        calibration=calibration(odds, confidence=confidence),
        breakdowns=tuple(
            Breakdown(name, _buckets(parts, odds, confidence))
            for name, parts in _partitions(pairs, opinion)
            if len(parts) > 1
        ),
        histogram=_histogram(opinion),
        position=_position_check(opinion, over) if opinion.kind == "pairwise" else None,
        previous=_previous_check(pairs, opinion, previous, over, tolerance) if previous else None,
        mistakes=_mistakes(pairs, opinion, odds, num_mistakes),
    )


def correct(log_odds: Sequence[float]) -> list[float]:
    """1 where chosen is preferred, 0.5 for a tie, 0 where rejected is."""
    return wins(log_odds, [0.0] * len(log_odds))


def check_finite(pairs: Sequence[PreferencePair], opinion: Opinion) -> None:
    """Raises InputError that names the first pair on which a value is not a finite number."""
    for number, (pair, values) in enumerate(zip(pairs, opinion.values, strict=True), 1):
        if not all(map(math.isfinite, values)):
            raise InputError(
                f"pair {number} of {len(pairs)} (id {pair.id}): {opinion.model} says {values[0]} and {values[1]}, "
                "which are not both finite numbers; its weights may be damaged"
            )


# --- length ----------------------------------------------------------------------------------------------------------


def _length_check(
    pairs: Sequence[PreferencePair], opinion: Opinion, odds: Sequence[float], over: Resampling
) -> LengthCheck:
    differences = [_length_difference(one) for one in pairs]
    longer = correct(differences)
    shorter = [1 - one for one in longer]
    stronger: Baseline = "shorter" if sum(shorter) > sum(longer) else "longer"
    agrees = [
        float((one > 0) == (difference > 0))
        for one, difference in zip(odds, differences, strict=True)
        if one and difference
    ]
    return LengthCheck(
        longer=over.interval(longer),
        shorter=over.interval(shorter),
        stronger=stronger,
        verdict=over.verdict(correct(odds), longer if stronger == "longer" else shorter),
        prefers_longer=wilson_interval(sum(agrees), len(agrees), confidence=over.confidence)
        if agrees
        else None,
        correlation=_score_length_correlation(pairs, opinion) if opinion.kind == "scalar" else None,
        # both ways round, so that it does not matter which side is called chosen
        correlation_within=rank_correlation(
            [*odds, *(-one for one in odds)], [*differences, *(-one for one in differences)]
        ),
    )


def _length_difference(pair: PreferencePair) -> int:
    return len(pair.chosen.text) - len(pair.rejected.text)


def _score_length_correlation(pairs: Sequence[PreferencePair], opinion: Opinion) -> float | None:
    """Over the different completions; one that is in several pairs counts once."""
    found = {
        completion.id: (score, len(completion.text))
        for pair, scores in zip(pairs, opinion.values, strict=True)
        for completion, score in zip((pair.chosen, pair.rejected), scores, strict=True)
    }
    return rank_correlation([one[0] for one in found.values()], [one[1] for one in found.values()])


# --- buckets ---------------------------------------------------------------------------------------------------------

Parts = list[tuple[str, np.ndarray]]
"""Names of buckets, in order, and which pairs are in each, bool [N]."""


def _partitions(pairs: Sequence[PreferencePair], opinion: Opinion) -> Iterator[tuple[str, Parts]]:
    yield "length of chosen against rejected", _by_length([_length_difference(one) for one in pairs])
    yield "label margin", _by_value([one.margin for one in pairs])
    if opinion.kind == "scalar":
        yield "mean score of the two", _by_value([sum(one) / 2 for one in opinion.values])
    yield "source", _by_name([one.prompt.source for one in pairs])
    yield "annotator", _by_name([one.annotator for one in pairs])


def _by_length(differences: Sequence[int]) -> Parts:
    """Five buckets that mirror each other; their limits are the thirds of the absolute differences."""
    values = np.asarray(differences)
    small, large = (round(float(one)) for one in np.quantile(np.abs(values), (1 / 3, 2 / 3)))
    parts = [
        (f"much shorter, over {large}", values < -large),
        (f"shorter, {small + 1} to {large}", (values >= -large) & (values < -small)),
        (f"as long, within {small}", np.abs(values) <= small),
        (f"longer, {small + 1} to {large}", (values > small) & (values <= large)),
        (f"much longer, over {large}", values > large),
    ]
    return [(name, which) for name, which in parts if which.any()]


def _by_value(numbers: Sequence[float]) -> Parts:
    """A bucket for each value where there are few, else quarters."""
    values = np.asarray(numbers, dtype=np.float64)
    distinct = np.unique(values)
    if len(distinct) <= MOST_VALUES:
        return [(f"{value:.4g}", values == value) for value in distinct.tolist()]
    edges = np.unique(np.quantile(values, np.linspace(0, 1, QUARTERS + 1)))
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return [
        (f"{edges[place]:.3g} to {edges[place + 1]:.3g}", places == place)
        for place in np.unique(places).tolist()
    ]


def _by_name(names: Sequence[str]) -> Parts:
    """A bucket for each name, the most frequent first; the rarest of many share one."""
    numbers = Counter(names)
    # one name alone would not be "others"
    frequent = [
        name for name, _ in numbers.most_common(MOST_GROUPS if len(numbers) > MOST_GROUPS + 1 else None)
    ]
    values = np.asarray(names, dtype=object)
    parts = [(name or "(none)", values == name) for name in frequent]
    rest = ~np.isin(values, frequent)
    return [*parts, ("others", rest)] if rest.any() else parts


def _buckets(parts: Parts, odds: Sequence[float], confidence: float) -> tuple[Bucket, ...]:
    log_odds = np.asarray(odds)
    right = np.asarray(correct(odds))
    stated = special.expit(np.abs(log_odds))
    return tuple(
        Bucket(
            name=name,
            right=wilson_interval(float(right[which].sum()), int(which.sum()), confidence=confidence),
            stated=round(float(stated[which].mean()), 6),
            ties=int((log_odds[which] == 0).sum()),
        )
        for name, which in parts
    )


# --- the rest --------------------------------------------------------------------------------------------------------


def _histogram(opinion: Opinion) -> Histogram:
    """Scores of chosen and rejected; of a pairwise model, P(first shown) with either shown first."""
    first, second = np.asarray(opinion.values, dtype=np.float64).T  # [N] each
    if opinion.kind == "scalar":
        name, names = "score", ("chosen", "rejected")
    else:
        name, names = "P(shown first)", ("chosen first", "rejected first")
    low, high = np.quantile([*first, *second], HISTOGRAM_ENDS)
    if high - low < SAME * max(abs(low), abs(high), SAME):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    sides = dict(zip(names, (first, second), strict=True))
    counts = {side: np.histogram(np.clip(values, low, high), edges)[0] for side, values in sides.items()}
    return Histogram(
        name=name,
        edges=tuple(edges.tolist()),
        shares={side: tuple((count / len(first)).round(6).tolist()) for side, count in counts.items()},
        means={side: round(float(values.mean()), 6) for side, values in sides.items()},
    )


def _position_check(opinion: Opinion, over: Resampling) -> PositionCheck:
    chosen_first, rejected_first = np.asarray(opinion.values, dtype=np.float64).T  # [N] each
    verdicts = np.sign(chosen_first - 0.5), np.sign(0.5 - rejected_first)  # for chosen: 1, 0, -1
    return PositionCheck(
        agree=over.interval((verdicts[0] == verdicts[1]).astype(float).tolist()),
        inconsistency=round(float(np.abs(chosen_first + rejected_first - 1).mean()), 6),
        first_bias=over.interval(((chosen_first + rejected_first) / 2 - 0.5).tolist()),
        first_share=round(float(((verdicts[0] + 1) / 2 + (1 - verdicts[1]) / 2).mean() / 2), 6),
        right_chosen_first=over.interval(((verdicts[0] + 1) / 2).tolist()),
        right_chosen_second=over.interval(((verdicts[1] + 1) / 2).tolist()),
    )


def _previous_check(
    pairs: Sequence[PreferencePair], opinion: Opinion, previous: Opinion, over: Resampling, tolerance: float
) -> PreviousCheck:
    check_finite(pairs, previous)
    odds = previous.log_odds()
    ours, theirs = correct(opinion.log_odds()), correct(odds)
    changes = [new - old for new, old in zip(ours, theirs, strict=True)]
    return PreviousCheck(
        model=previous.model,
        kind=previous.kind,
        accuracy=over.interval(theirs),
        ties=odds.count(0.0),
        agree=over.interval([float(change == 0) for change in changes]),
        kappa=cohen_kappa(ours, theirs),
        verdict=over.verdict(ours, theirs, tolerance=tolerance),
        shift=_shift(opinion, previous) if opinion.kind == previous.kind == "scalar" else None,
        gained=tuple(pair.id for pair, change in zip(pairs, changes, strict=True) if change > 0),
        lost=tuple(pair.id for pair, change in zip(pairs, changes, strict=True) if change < 0),
    )


def _shift(opinion: Opinion, previous: Opinion) -> Shift:
    new, old = (np.asarray(one.values, dtype=np.float64).ravel() for one in (opinion, previous))
    return Shift(
        mean=round(float(new.mean() - old.mean()), 6),
        sd_new=round(float(new.std()), 6),
        sd_old=round(float(old.std()), 6),
        rank_correlation=rank_correlation(new.tolist(), old.tolist()),
    )


def _mistakes(
    pairs: Sequence[PreferencePair], opinion: Opinion, odds: Sequence[float], number: int
) -> tuple[Mistake, ...]:
    """The pairs on which the model is wrong and most sure, one a prompt."""
    wrong = sorted((place for place, one in enumerate(odds) if one < 0), key=lambda place: odds[place])
    worst: dict[str, int] = {}
    for place in wrong:
        worst.setdefault(pairs[place].prompt.id, place)
    return tuple(
        Mistake(
            pair_id=pairs[place].id,
            prompt=pairs[place].prompt.text,
            chosen=pairs[place].chosen.text,
            rejected=pairs[place].rejected.text,
            stated=round(float(special.expit(-odds[place])), 6),
            values=opinion.values[place],
        )
        for place in list(worst.values())[:number]
    )
