"""What the numbers of a card mean, in sentences for the page and the terminal."""

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Literal

from prefloop.card.pairs import CardPairs
from prefloop.evaluate.card_types import RewardCard
from prefloop.report.numbers import fixed, number, percent
from prefloop.statistics import Interval, Verdict

UNEQUAL_PROMPTS = "unequal_prompts"
MOST_FOOLED = 0.1
"""Share of prompts on which a text that says nothing may win before the reader is warned."""


@dataclass(frozen=True)
class Finding:
    """Something the reader should know before believing the numbers."""

    level: Literal["warning", "note"]
    title: str
    text: str


def verdict_of(card: RewardCard) -> str:
    """One sentence: how often it is right, and whether that is more than length."""
    if card.ties == card.num_pairs:
        return f"Says nothing about these {card.num_pairs:,} pairs: all are ties."
    stronger = card.length.shorter if card.length.stronger == "shorter" else card.length.longer
    than = {"better": "better than", "not told apart": "not told apart from", "worse": "worse than"}
    return (
        f"Orders {percent(card.accuracy['mean'])} of {card.num_pairs:,} pairs as labelled ({range_text(card.accuracy)}): "
        f"{than[card.length.verdict.direction]} always preferring the {card.length.stronger} answer, "
        f"{percent(stronger['mean'])}."
    )


def previous_verdict(card: RewardCard) -> str | None:
    """One sentence on the model beside the previous one; None without one."""
    if card.previous is None:
        return None
    verdict = card.previous.verdict
    said = f"than {card.previous.model} on this set: {gain_text(verdict)}"
    if verdict.direction == "better":
        return f"Better {said}."
    if verdict.difference["mean"] >= 0:
        return f"Not worse {said}, but not better beyond chance."
    if verdict.not_worse:
        return f"Not worse {said}, less than the tolerance of {points(verdict.tolerance)}."
    if verdict.direction == "worse":
        return f"Worse {said}."
    if verdict.tolerance:
        return f"Worse {said}; a loss beyond the tolerance of {points(verdict.tolerance)} cannot be excluded."
    return f"Worse {said}, though not beyond chance."


def gain_text(verdict: Verdict) -> str:
    """A difference of accuracies with its interval."""
    low, high = (points(verdict.difference[end], unit="") for end in ("low", "high"))
    return f"{points(verdict.difference['mean'], sign=True)} (95% interval {low} to {high})"


def points(share: float, *, unit: str = " points", sign: bool = False) -> str:
    """A difference of shares in percentage points."""
    return fixed(100 * share, 1, sign=sign or not unit) + unit


def range_text(interval: Interval) -> str:
    """The ends of an interval of a share."""
    return f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}"


def findings_of(card: RewardCard, source: CardPairs, trained: Set[str]) -> list[Finding]:
    """What a careful reader would ask about, warnings first."""
    found = (
        *_data_findings(card, source, trained),
        *_length_findings(card),
        *_calibration_findings(card),
        *_position_findings(card),
        *_probe_findings(card),
        *_row_findings(source),
    )
    return sorted(found, key=lambda one: one.level != "warning")


def _data_findings(card: RewardCard, source: CardPairs, trained: Set[str]) -> Iterator[Finding]:
    known = {pair.prompt.id for pair in source.pairs} & trained
    if known:
        yield Finding(
            "warning",
            "The model has seen some of this",
            f"{len(known):,} of {card.num_prompts:,} prompts are among those it was trained on; accuracy on them says "
            "little about new ones.",
        )
    if card.ties:
        yield Finding(
            "warning" if card.ties == card.num_pairs else "note",
            f"{card.ties:,} ties",
            "Both sides get the same value; each counts one half. A head that was never trained ties everything.",
        )


def _length_findings(card: RewardCard) -> Iterator[Finding]:
    if card.length.verdict.direction != "better" and card.ties < card.num_pairs:
        yield Finding(
            "warning",
            "No better than length",
            f"Against always preferring the {card.length.stronger} answer the difference is "
            f"{gain_text(card.length.verdict)}.",
        )


def _calibration_findings(card: RewardCard) -> Iterator[Finding]:
    stated, right = card.calibration.stated, card.accuracy
    if right["low"] <= stated <= right["high"] or card.ties == card.num_pairs:
        return
    word = "Too sure of itself" if stated > right["high"] else "Less sure than it could be"
    temperature = card.calibration.temperature
    remedy = (
        "No temperature repairs that."
        if temperature is None
        else f"Divide its log-odds by {number(temperature)} before reading them as probabilities."
    )
    yield Finding(
        "note",
        word,
        f"It gives the side it prefers {percent(stated)} on average and is right in {percent(right['mean'])}. {remedy}",
    )


def _position_findings(card: RewardCard) -> Iterator[Finding]:
    if card.position is None:
        return
    bias = card.position.first_bias
    if bias["low"] > 0 or bias["high"] < 0:
        place = "first" if bias["mean"] > 0 else "second"
        yield Finding(
            "note",
            f"Leans to what is shown {place}",
            f"The answer shown first gets {percent(0.5 + bias['mean'])} on average instead of 50%; "
            f"the two orders agree on {percent(card.position.agree['mean'])} of the pairs. Ask in both orders.",
        )


def _probe_findings(card: RewardCard) -> Iterator[Finding]:
    fooled = [one for one in card.probes if one.preferred["mean"] > MOST_FOOLED]
    if fooled:
        worst = max(fooled, key=lambda one: one.preferred["mean"])
        names = ", ".join(one.name for one in fooled)
        yield Finding(
            "warning",
            "Prefers texts that are written for a judge",
            f"Of {len(card.probes)} such texts these win more than {percent(MOST_FOOLED)} against chosen answers: {names}; "
            f"{worst.name} wins {percent(worst.preferred['mean'])}. A policy that is optimised against it will find them.",
        )


def _row_findings(source: CardPairs) -> Iterator[Finding]:
    if source.dropped:
        lost = sum(source.dropped.values())
        leak = (
            " In rows of unequal prompts the prompt itself gives the label away."
            if UNEQUAL_PROMPTS in source.dropped
            else ""
        )
        yield Finding(
            "note", f"{lost:,} of {source.rows_in:,} rows left out", f"{counts_text(source.dropped)}.{leak}"
        )


def counts_text(reasons: Mapping[str, int]) -> str:
    """Reasons with their numbers."""
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in reasons.items()) or "none"


FILTERS: dict[str, Callable[..., str]] = {
    "number": number,
    "percent": percent,
    "points": points,
    "range": range_text,
    "gain": gain_text,
    "counts": counts_text,
}
