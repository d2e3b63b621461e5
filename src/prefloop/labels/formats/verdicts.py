"""What judgements say about pairs of completions, whatever was asked: comparisons, rankings, edits."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from prefloop.labels.formats.options import WEAKEST, ExportOptions
from prefloop.labels.formats.shapes import NOT_FOR_THIS_FORMAT, Made, Refused, Rows
from prefloop.labels.rows import JudgementRow, RowCompletion

COMPARED = ("pairwise", "chat", "steps")
"""Kinds of tasks with a choice of one among two or more."""
TIE, BOTH_BAD = "tie", "both_bad"
MIDDLE = 4.5
"""Between 1, the first strongly better, and 8, the second."""


class JudgedPair(NamedTuple):
    """Two completions that one judgement ordered."""

    chosen: RowCompletion
    rejected: RowCompletion
    p_chosen: float
    margin: float
    distance: float | None
    """Of the strength from the middle of its scale, where one was given."""
    scores: tuple[float, float]
    """Of chosen and rejected: steps of the strength, or places from the end of a ranking."""


def pairs_of(row: JudgementRow, options: ExportOptions) -> list[JudgedPair] | str:
    """The pairs that a judgement orders, or why there are none. Each weighs 1 / their number: the judgement counts once."""
    match row.task_kind:
        case "rank":
            found = _ranked(row, options)
        case "edit":
            found = _edited(row, options)
        case "pairwise" | "chat" | "steps":
            found = _chosen(row, options)
        case _:
            return NOT_FOR_THIS_FORMAT
    if isinstance(found, str):
        return found
    told = [one for one in found if one.chosen.text.strip() and one.rejected.text.strip()]
    if not told:
        return "empty"
    different = [one for one in told if one.chosen.text != one.rejected.text]
    return different or "identical"


def from_pairs(
    rows: Rows,
    options: ExportOptions,
    record: Callable[[JudgementRow, JudgedPair, float], dict[str, Any] | str],
) -> Iterator[Made | Refused]:
    """What `record` makes of each pair and its weight, or the reason that it gives for not making one."""
    for row in rows:
        found = pairs_of(row, options)
        if isinstance(found, str):
            yield Refused(row, found)
            continue
        for pair in found:
            made = record(row, pair, 1 / len(found))
            yield Refused(row, made) if isinstance(made, str) else Made(made, (row,))


def choice_of(row: JudgementRow) -> str:
    """A letter, tie or both_bad; empty where the judgement chooses nothing."""
    value = row.value
    if choice := value.get("choice"):
        return choice
    if (p_a := value.get("p_a")) is not None:
        return TIE if p_a == 0.5 else "ab"[p_a < 0.5]
    if (strength := value.get("strength")) is not None:
        return "ab"[strength > MIDDLE]
    return ""


def distance_of(row: JudgementRow) -> float | None:
    """How far the strength is from the middle of its scale: 3.5, 2.5, 1.5 or 0.5."""
    strength = row.value.get("strength")
    return None if strength is None else abs(strength - MIDDLE)


def p_first(row: JudgementRow, options: ExportOptions) -> float | None:
    """How sure a comparison of two is that the first is better; None where it does not say."""
    if (p_a := row.value.get("p_a")) is not None:
        return float(p_a)
    choice = choice_of(row)
    if choice == TIE:
        return 0.5
    if choice not in ("a", "b"):
        return None
    sure = options.weakest_p if distance_of(row) == WEAKEST else 1.0
    return sure if choice == "a" else 1 - sure


def groups_of(row: JudgementRow) -> list[list[int]]:
    """Numbers of the completions of a ranking, best first, those of a group tied."""
    return [list(group) for group in row.value.get("groups", ())]


def _chosen(row: JudgementRow, options: ExportOptions) -> list[JudgedPair] | str:
    choice = choice_of(row)
    if choice in (TIE, BOTH_BAD):
        return choice
    place = ord(choice) - ord("a") if len(choice) == 1 else -1
    if not 0 <= place < len(row.completions) or len(row.completions) < 2:
        return NOT_FOR_THIS_FORMAT
    distance = distance_of(row)
    if distance == WEAKEST and options.weakest == "drop":
        return "weakest_strength"
    sure = options.weakest_p if distance == WEAKEST else 1.0
    if (p_a := row.value.get("p_a")) is not None:
        sure = max(p_a, 1 - p_a)
    steps = (1.0, 0.0) if distance is None else (MIDDLE + distance, MIDDLE - distance)
    scores: list[float] | None = row.value.get("scores")
    margin = row.value.get("margin", options.margin(distance))
    return [
        JudgedPair(
            chosen=row.completions[place],
            rejected=other,
            p_chosen=sure,
            margin=margin,
            distance=distance,
            scores=steps if scores is None else (scores[place], scores[number]),
        )
        for number, other in enumerate(row.completions)
        if number != place
    ]


def _ranked(row: JudgementRow, options: ExportOptions) -> list[JudgedPair] | str:
    groups = groups_of(row)
    ordered = [
        (better, worse, place, other)
        for (place, above), (other, below) in itertools.combinations(enumerate(groups), 2)
        for better in above
        for worse in below
    ]
    if not ordered:
        return TIE if groups else BOTH_BAD
    margin = options.margin_without_strength
    return [
        JudgedPair(
            row.completions[better],
            row.completions[worse],
            1.0,
            margin,
            None,
            (float(len(groups) - place), float(len(groups) - other)),
        )
        for better, worse, place, other in ordered
    ]


def _edited(row: JudgementRow, options: ExportOptions) -> list[JudgedPair] | str:
    text = row.value.get("text", "")
    if not row.completions:
        return NOT_FOR_THIS_FORMAT
    original = row.completions[0]
    edited = RowCompletion(id=f"{original.id}:{row.judgement_id}", text=text, policy=f"edit:{row.annotator}")
    margin = options.margin_without_strength
    return [JudgedPair(edited, original, 1.0, margin, None, (1.0, 0.0))]


def group_id(row: JudgementRow) -> str:
    """Names a judgement among those of its task."""
    return f"{row.task_id}:{row.judgement_id}"
