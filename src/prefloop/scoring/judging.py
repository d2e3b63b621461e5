"""How good a judge is: accuracy in both orders, agreement between them, and what the longest answer would reach.

Reads LLMBar (pairs, and verdicts in both orders), best-of-n groups with preferences, rankings and pairs of transcripts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefloop.formats import HH_ANSWER
from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, clustered_figure, counted, mean_figure
from prefloop.scoring.reading import Row, absent, has, need, number, rows_of, unknown_format

NAME = "judge"
FORMATS = {
    "pairs": ("input", "output_1", "output_2", "label"),
    "verdicts": ("label", "ab", "ba"),
    "best of n": ("prompt", "responses", "preference_vs_reference"),
    "rankings": ("messages", "ranked_responses"),
    "transcripts": ("chosen", "rejected"),
}
CLEAR_GAP, NO_GAP = 0.5, 0.001
"""Differences of the best and the worst preference of a group that are counted."""


def longer(first: str, second: str) -> float:
    """1 where the first is longer in characters, one half for equal lengths."""
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))


def score(path: str, *, draws: int, models: Sequence[str] = ()) -> list[Scored]:
    """The figures that a file has. Raises InputError."""
    rows = list(rows_of(path))
    first = rows[0][1]
    name = Path(path).name.split(".")[0]
    for kind, measure in (
        ("verdicts", _verdicts), ("pairs", _pairs), ("best of n", _best_of_n), ("rankings", _rankings),
        ("transcripts", _transcripts),
    ):  # fmt: skip
        if has(first, FORMATS[kind]):
            return [Scored(NAME, name, measure(rows, draws), len(rows))]
    raise unknown_format(path, first, FORMATS)


Rows = Sequence[tuple[str, Row]]
Figures = dict[str, Figure]


def _label(value: Any, place: str, name: str) -> int:
    if (side := _side(value)) is None:
        raise InputError(f"{place}: {name} is {value!r}, not 1 or 2")
    return side


def _side(value: Any) -> int | None:
    """1 or 2, also as text or as the 1.0 of tables that lack some; None for everything else."""
    return {"1": 1, "2": 2, "1.0": 1, "2.0": 2}.get(str(value).strip())


def _verdicts(rows: Rows, draws: int) -> Figures:
    """Accuracy is the mean over both orders; a verdict that cannot be read is wrong in its order, and agrees with none."""
    right, agree, unreadable = [], [], 0
    for place, row in rows:
        label = _label(need(row, "label", place), place, "label")
        both = [_side(row.get(order)) for order in ("ab", "ba")]
        right.append(sum(one == label for one in both) / 2)
        agree.append(float(both[0] == both[1] and both[0] is not None))
        unreadable += both.count(None)
    return {
        "num_pairs": counted(len(rows), len(rows)),
        "accuracy": mean_figure(right, draws=draws, times=100),
        "position_agreement": mean_figure(agree, draws=draws, times=100),
        "num_unreadable": counted(unreadable, 2 * len(rows)),
    }


def _pairs(rows: Rows, draws: int) -> Figures:
    values = []
    for place, row in rows:
        texts = [str(row["output_1"]), str(row["output_2"])]
        better = _label(need(row, "label", place), place, "label") - 1
        values.append(longer(texts[better], texts[1 - better]))
    return _longest(values, draws)


def _rankings(rows: Rows, draws: int) -> Figures:
    values, prompts = [], []
    for place, row in rows:
        ranked = row["ranked_responses"]
        if not isinstance(ranked, Sequence) or len(ranked) < 2:
            raise InputError(f"{place}: ranked_responses is not a list of at least two, best first")
        texts = [_text(one) for one in ranked]
        values += [longer(texts[a], texts[b]) for a in range(len(texts)) for b in range(a + 1, len(texts))]
        prompts += [place] * (len(values) - len(prompts))
    return {"num_prompts": counted(len(rows), len(rows)), **_longest(values, draws, prompts)}


def _text(value: Any) -> str:
    return str(value.get("content") or value.get("text") or "") if isinstance(value, dict) else str(value)


def _transcripts(rows: Rows, draws: int) -> Figures:
    values, unequal = [], 0
    for place, row in rows:
        sides = [str(need(row, name, place)).rpartition(HH_ANSWER) for name in ("chosen", "rejected")]
        if not all(mark for _, mark, _ in sides):
            raise InputError(f"{place}: chosen and rejected are no transcripts that end in an answer")
        unequal += sides[0][0] != sides[1][0]
        values.append(longer(sides[0][2].strip(), sides[1][2].strip()))
    return {**_longest(values, draws), "num_unequal_prompts": counted(unequal, len(rows))}


def _longest(values: Sequence[float], draws: int, prompts: Sequence[str] | None = None) -> Figures:
    """`prompts` of the pairs, where a prompt has several: they are drawn together."""
    units = range(len(values)) if prompts is None else prompts
    return {
        "num_pairs": counted(len(values), len(values)),
        "longest_answer_accuracy": clustered_figure(np.array(values), units, draws=draws, times=100),
    }


def _best_of_n(rows: Rows, draws: int) -> Figures:
    """What picks by chance, by an oracle and by length win against the reference, of the completions that were judged."""
    picks: dict[str, list[float]] = {
        name: [] for name in ("random_pick", "oracle_best", "oracle_worst", "longest_pick", "shortest_pick")
    }
    gaps = []
    for place, row in rows:
        texts, preferences = row["responses"], row["preference_vs_reference"]
        if not isinstance(texts, list) or not isinstance(preferences, list) or len(texts) != len(preferences):
            raise InputError(
                f"{place}: responses and preference_vs_reference are not two lists of one length"
            )
        judged = [
            (number({"preference_vs_reference": value}, "preference_vs_reference", place), len(str(text)))
            for text, value in zip(texts, preferences, strict=True)
            if not absent(value)
        ]
        if not judged:
            raise InputError(f"{place}: no completion was judged")
        values, lengths = np.array(judged).T
        picks["random_pick"].append(values.mean())
        picks["oracle_best"].append(values.max())
        picks["oracle_worst"].append(values.min())
        picks["longest_pick"].append(values[lengths.argmax()])  # of equal ones the first
        picks["shortest_pick"].append(values[lengths.argmin()])
        gaps.append(values.max() - values.min())
    spread = np.array(gaps)
    return {
        "num_prompts": counted(len(rows), len(rows)),
        **{name: mean_figure(values, draws=draws, times=100) for name, values in picks.items()},
        "num_gap_over_half": counted(int((spread > CLEAR_GAP).sum()), len(rows)),
        "num_gap_below_0.001": counted(int((spread < NO_GAP).sum()), len(rows)),
    }
