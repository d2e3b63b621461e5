"""How often each person is right, without knowing what is right.

Four models of who says what. One coin: a person names the better completion of a pair with one probability. Confusion
matrices (Dawid and Skene 1979): the same for more values than two. And two that believe a reward model: how often a
person follows it, and how sharply. Ties say nothing about which side is better: the models of pairs leave them out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from prefloop.agreement.types import Rating, Value, indexed
from prefloop.interfaces import InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PRIOR_MEAN = 0.8
PRIOR_WEIGHT = 2.0
"""A Beta prior for probabilities of being right, worth this many labels."""
ENOUGH_LABELS = 150
"""Labels on units that others judged too, before a reliability may be acted on."""
MAX_STEPS = 1000
TOLERANCE = 1e-6
"""Largest change of a probability in the last step."""
NEVER = -1e6
"""Stands for the logarithm of 0, so that 0 times it is 0."""
STEEPEST = 100.0
"""A slope beyond it is infinite: one straight line tells all labels apart."""


@dataclass(frozen=True)
class Reliability:
    """A figure of one person; what it means is said by the function that made it."""

    annotator: str
    value: float | None
    low: float | None
    high: float | None
    labels: int
    """What it rests on: decided labels, and where no reward model is asked, only those on units with another label."""
    reason: str | None
    """Why it must not be acted on; None where it may."""


@dataclass(frozen=True)
class OneCoin:
    """What one-coin EM found."""

    annotators: tuple[Reliability, ...]
    """Probabilities of naming the better completion, in order of appearance."""
    p_first: dict[str, float]
    """For each unit, the probability that the first completion is the better one."""
    ties: int
    """Labels left out."""
    steps: int
    """At most MAX_STEPS; as many means that it has not converged."""


def one_coin(
    ratings: Sequence[Rating],
    *,
    prior_mean: float = PRIOR_MEAN,
    prior_weight: float = PRIOR_WEIGHT,
    confidence: float = 0.95,
) -> OneCoin:
    """Reliabilities and truths of pairs by EM: each label is right with its person's probability, sides are even before.

    Values are 1 for the first completion, 0 for the second, 0.5 for a tie. Intervals come from the observed information
    of the log-odds (Louis 1982), so they know that the truth is not known.
    """
    from scipy import sparse

    decided = [one for one in ratings if _side(one) != 0]
    if not decided:
        return OneCoin((), {}, len(ratings), 0)
    units, unit_of = indexed([one.unit for one in decided])
    names, name_of = indexed([one.annotator for one in decided])
    signs = sparse.csr_matrix(
        ([_side(one) for one in decided], (unit_of, name_of)), shape=(len(units), len(names))
    )  # [N, K]
    shared = signs[np.diff(signs.indptr) > 1]  # a single label cannot be checked by any other
    labels = np.asarray(abs(shared).sum(0)).reshape(-1)  # [K]
    eta, steps = _flipped_coins(shared, labels, prior_mean, prior_weight)
    certainty = np.tanh(shared @ _log_odds(eta) / 2)
    unsure = sparse.diags((1 - certainty**2) / 4)
    information = np.diag((labels + prior_weight) * eta * (1 - eta)) - (shared.T @ unsure @ shared).toarray()
    low, high = _logit_interval(eta, np.diag(np.linalg.pinv(information)), confidence)
    p_first = _sigmoid(signs @ _log_odds(eta))  # [N]
    return OneCoin(
        annotators=_reliabilities(names, eta, low, high, labels),
        p_first=dict(zip(units, p_first.round(6).tolist(), strict=True)),
        ties=len(ratings) - len(decided),
        steps=steps,
    )


def _flipped_coins(
    signs: "csr_matrix", labels: np.ndarray, prior_mean: float, prior_weight: float
) -> tuple[np.ndarray, int]:
    """EM on labels [N, K] that are 1, -1 or absent; probabilities of being right [K] and steps taken."""
    eta = np.full(len(labels), prior_mean)
    for step in range(1, MAX_STEPS + 1):
        certainty = np.tanh(signs @ _log_odds(eta) / 2)  # [N], 2 P(first is better) - 1
        right = (labels + signs.T @ certainty) / 2  # [K]
        before, eta = eta, (right + prior_mean * prior_weight) / (labels + prior_weight)
        if np.abs(eta - before).max() < TOLERANCE:
            return eta, step
    return eta, MAX_STEPS


@dataclass(frozen=True)
class DawidSkene:
    """What EM with confusion matrices found; V values, in the order of `values`."""

    values: tuple[Value, ...]
    prevalence: np.ndarray
    """Share [V] of units whose true value is this."""
    confusion: dict[str, np.ndarray]
    """For each person [V, V]: rows are true values, columns what was said; a row sums to 1."""
    posteriors: dict[str, np.ndarray]
    """For each unit, probabilities [V] of its true value."""
    steps: int


def dawid_skene(ratings: Sequence[Rating], *, pseudo_count: float = 1.0) -> DawidSkene:
    """Confusion matrices and truths by EM (Dawid and Skene 1979), from the shares of votes as a start.

    `pseudo_count` labels are spread evenly over each row of a matrix; with 0 this is the paper's maximum likelihood. A
    matrix has V (V - 1) unknowns, so it wants far more labels than one coin.
    """
    from scipy import sparse

    if not ratings:
        raise InputError("no ratings to learn confusion matrices from; give at least one")
    values = tuple(sorted({one.value for one in ratings}, key=lambda value: (isinstance(value, str), value)))
    place, num_values = {value: number for number, value in enumerate(values)}, len(values)
    units, unit_of = indexed([one.unit for one in ratings])
    names, name_of = indexed([one.annotator for one in ratings])
    said = np.array([place[one.value] for one in ratings])
    counts = sparse.csr_matrix(
        (np.ones(len(ratings)), (unit_of, name_of * num_values + said)),
        shape=(len(units), len(names) * num_values),
    )  # [N, K * V]
    votes = np.zeros((len(units), num_values))
    np.add.at(votes, (unit_of, said), 1)
    truth, steps = _truths(counts, votes / votes.sum(1, keepdims=True), pseudo_count)
    prevalence, confusion = _matrices(counts, truth, pseudo_count)
    return DawidSkene(
        values=values,
        prevalence=prevalence,
        confusion=dict(zip(names, confusion, strict=True)),
        posteriors=dict(zip(units, truth, strict=True)),
        steps=steps,
    )


def _truths(counts: "csr_matrix", truth: np.ndarray, pseudo_count: float) -> tuple[np.ndarray, int]:
    """EM from a first guess [N, V]; posteriors and steps taken."""
    for step in range(1, MAX_STEPS + 1):
        prevalence, confusion = _matrices(counts, truth, pseudo_count)
        with np.errstate(divide="ignore"):
            log_said = np.maximum(np.log(confusion), NEVER)  # [K, V true, V said]
            log_prevalence = np.maximum(np.log(prevalence), NEVER)
        odds = counts @ log_said.transpose(0, 2, 1).reshape(-1, truth.shape[1]) + log_prevalence
        odds = np.exp(odds - odds.max(1, keepdims=True))
        before, truth = truth, odds / odds.sum(1, keepdims=True)
        if np.abs(truth - before).max() < TOLERANCE:
            return truth, step
    return truth, MAX_STEPS


def _matrices(counts: "csr_matrix", truth: np.ndarray, pseudo_count: float) -> tuple[np.ndarray, np.ndarray]:
    """The M-step, Eqs. 2.3 and 2.4 of the paper."""
    num_values = truth.shape[1]
    together = (
        (counts.T @ truth).reshape(-1, num_values, num_values).transpose(0, 2, 1)
    )  # [K, V true, V said]
    together = together + pseudo_count / num_values
    rows = together.sum(2, keepdims=True)
    # a value that is never true of what somebody saw: nothing is known of that row
    return truth.mean(0), np.divide(
        together, rows, out=np.full_like(together, 1 / num_values), where=rows > 0
    )


# --- models that believe a reward model ------------------------------------------------------------------------------


def informed_reliabilities(
    annotators: Sequence[str],
    values: Sequence[float],
    log_odds: Sequence[float],
    *,
    prior_mean: float = PRIOR_MEAN,
    prior_weight: float = PRIOR_WEIGHT,
    confidence: float = 0.95,
) -> tuple[Reliability, ...]:
    """eta of P(first) = eta sigmoid(d) + (1 - eta) sigmoid(-d), where d is the reward model's score difference.

    `log_odds` are d, score of the first completion minus that of the second; one entry a label. No overlap is needed,
    but whoever rightly disagrees with the reward model looks unreliable.
    """
    names, name_of, signs, odds = _decided(annotators, values, log_odds)
    followed = _sigmoid(signs * odds)  # [M], what the reward model gives to what was said
    labels = np.bincount(name_of, minlength=len(names))
    eta = np.full(len(names), prior_mean)
    for _ in range(MAX_STEPS):
        mixed = eta[name_of] * followed / _mixture(eta[name_of], followed)
        right = np.bincount(name_of, weights=mixed, minlength=len(names))
        before, eta = eta, (right + prior_mean * prior_weight) / (labels + prior_weight)
        if len(names) == 0 or np.abs(eta - before).max() < TOLERANCE:
            break
    slopes = (2 * followed - 1) / _mixture(eta[name_of], followed)
    information = np.bincount(name_of, weights=slopes**2, minlength=len(names))
    information += prior_weight * (prior_mean / eta**2 + (1 - prior_mean) / (1 - eta) ** 2)
    low, high = _logit_interval(eta, 1 / (information * (eta * (1 - eta)) ** 2), confidence)
    return _reliabilities(names, eta, low, high, labels)


def sharpness(
    annotators: Sequence[str], values: Sequence[float], log_odds: Sequence[float], *, confidence: float = 0.95
) -> tuple[Reliability, ...]:
    """beta of P(first) = sigmoid(beta d): how sharply each person follows the reward model's score difference d.

    1 where the reward model is calibrated to the person, 0 for one who does not look, below 0 for one who answers the
    wrong way round.
    """
    names, name_of, signs, odds = _decided(annotators, values, log_odds)
    return tuple(
        _slope(name, (signs * odds)[name_of == number, None], 0, confidence)
        for number, name in enumerate(names)
    )


def side_intercepts(
    annotators: Sequence[str],
    values: Sequence[float],
    log_odds: Sequence[float],
    first_shown_left: Sequence[bool],
    *,
    confidence: float = 0.95,
) -> tuple[Reliability, ...]:
    """c of P(first) = sigmoid(beta d + c side), side 1 where the first completion was shown left, else -1.

    A side bias beside what the completions deserve; above 0 favours the left. Finer than a count of sides.
    """
    names, name_of, signs, odds = _decided(annotators, values, log_odds)
    decided = np.asarray(values) != 0.5
    sides = np.where(np.asarray(first_shown_left)[decided], 1.0, -1.0)
    columns = np.stack([signs * odds, signs * sides], 1)  # [M, 2]
    return tuple(_slope(name, columns[name_of == number], 1, confidence) for number, name in enumerate(names))


def _slope(name: str, columns: np.ndarray, wanted: int, confidence: float) -> Reliability:
    """Logistic regression of labels turned to their own side: P(said) = sigmoid(columns @ slopes), by Newton."""
    n, slopes = len(columns), np.zeros(columns.shape[1])
    undefined = Reliability(name, None, None, None, n, "one rule explains all labels, or nothing varies")
    information = np.zeros((len(slopes), len(slopes)))
    for _ in range(MAX_STEPS):
        missed = _sigmoid(-columns @ slopes)  # [M]
        information = columns.T @ (columns * (missed * (1 - missed))[:, None])
        if np.linalg.matrix_rank(information) < len(slopes) or np.abs(slopes).max() > STEEPEST:
            return undefined
        step = np.linalg.solve(information, columns.T @ missed)
        slopes = slopes + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < TOLERANCE:
            break
    half = _z(confidence) * float(np.sqrt(np.linalg.inv(information)[wanted, wanted]))
    value = float(slopes[wanted])
    return Reliability(name, round(value, 6), round(value - half, 6), round(value + half, 6), n, _caution(n))


# --- helpers ---------------------------------------------------------------------------------------------------------


def _side(rating: Rating) -> float:
    if rating.value not in (0, 0.5, 1):
        raise InputError(
            f"unit {rating.unit}: value {rating.value!r} of {rating.annotator}; a pair has 1, 0 or 0.5"
        )
    return 2 * float(rating.value) - 1


def _decided(
    annotators: Sequence[str], values: Sequence[float], log_odds: Sequence[float]
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names, and for every label that is no tie the place of its name, its side as 1 or -1, and its log-odds."""
    said = np.asarray(values, dtype=np.float64)
    kept = said != 0.5
    names, name_of = indexed([name for name, keep in zip(annotators, kept, strict=True) if keep])
    return names, name_of, 2 * said[kept] - 1, np.asarray(log_odds, dtype=np.float64)[kept]


def _reliabilities(
    names: Sequence[str], values: np.ndarray, low: np.ndarray, high: np.ndarray, labels: np.ndarray
) -> tuple[Reliability, ...]:
    return tuple(
        Reliability(
            annotator=name,
            value=round(float(values[number]), 6),
            low=round(float(low[number]), 6),
            high=round(float(high[number]), 6),
            labels=int(labels[number]),
            reason=_caution(int(labels[number])),
        )
        for number, name in enumerate(names)
    )


def _caution(labels: int) -> str | None:
    if labels >= ENOUGH_LABELS:
        return None
    return f"{labels} labels to go by, {ENOUGH_LABELS} wanted; look at gold and raw agreement instead"


def _mixture(eta: np.ndarray, followed: np.ndarray) -> np.ndarray:
    return eta * followed + (1 - eta) * (1 - followed)


def _logit_interval(
    values: np.ndarray, variances: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of probabilities whose log-odds have these variances."""
    half = _z(confidence) * np.sqrt(np.maximum(variances, 0))
    return _sigmoid(_log_odds(values) - half), _sigmoid(_log_odds(values) + half)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _log_odds(values: np.ndarray) -> np.ndarray:
    return np.log(values) - np.log1p(-values)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(values / 2)) / 2
