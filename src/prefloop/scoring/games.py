"""Games between policies: pairwise verdicts on answers to the same prompts, from any file that has them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prefloop.interfaces import InputError
from prefloop.scoring.alpaca_annotations import preference_of
from prefloop.scoring.mt_bench_pairs import result_of
from prefloop.scoring.reading import Row, absent, has, id_of, need, number, rows_of, unknown_format

FORMATS = {
    "verdicts": ("model_a", "model_b", "p_a"),
    "battles": ("model_a", "model_b", "winner"),
    "annotations": ("generator_1", "generator_2", "preference"),
    "pairs in both orders": ("model_1", "model_2"),
}
PROMPT_COLUMNS = ("prompt_id", "question_id", "uid", "prompt", "instruction", "index")
WINNERS = {"model_a": 1.0, "model_b": 0.0}
TEXTS = (("answer_a", "answer_b"), ("output_1", "output_2"))


class Game(NamedTuple):
    """One verdict."""

    prompt: str
    a: str
    b: str
    p_a: float
    """1 where a won, one half for a tie, and all that a judge with probabilities says between."""
    texts: tuple[str, str] | None = None
    """Both answers, where the file has them."""


@dataclass
class Read:
    """All games of some files."""

    games: list[Game] = field(default_factory=list)
    rows_in: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    without_prompt: int = 0
    """Games whose row names no prompt: each is taken for one of its own."""


def read_games(paths: Sequence[str]) -> Read:
    """The games of all files together. Raises InputError."""
    found = Read()
    for path in paths:
        for place, row in rows_of(path):
            found.rows_in += 1
            a, b, p_a = _verdict(row, path, place)
            if a == b:
                found.dropped["against_itself"] += 1
                continue
            if p_a is None:
                found.dropped["no_verdict"] += 1
                continue
            named = next(
                (id_of(row, name, place) for name in PROMPT_COLUMNS if not absent(row.get(name))), None
            )
            found.without_prompt += named is None
            found.games.append(Game(named or place, a, b, p_a, _texts(row)))
    if not found.games:
        raise InputError(f"{', '.join(paths)}: no row has a verdict")
    return found


def _verdict(row: Row, path: str, place: str) -> tuple[str, str, float | None]:
    if has(row, FORMATS["verdicts"]):
        p_a = None if absent(row["p_a"]) else number(row, "p_a", place)
        if p_a is not None and not 0 <= p_a <= 1:
            raise InputError(f"{place}: p_a is {p_a:g}, not a probability")
        return *_names(row, "model_a", "model_b", place), p_a
    if has(row, FORMATS["battles"]):
        winner = None if absent(row["winner"]) else str(row["winner"])
        if winner is not None and winner not in WINNERS and not winner.startswith("tie"):
            raise InputError(f"{place}: winner is {winner!r}, not model_a, model_b or tie")
        return *_names(row, "model_a", "model_b", place), None if winner is None else WINNERS.get(winner, 0.5)
    if has(row, FORMATS["annotations"]):
        preference = preference_of(row, place)
        p_1 = None if preference is None else 2 - preference
        return *_names(row, "generator_1", "generator_2", place), p_1
    if has(row, FORMATS["pairs in both orders"]):
        return *_names(row, "model_1", "model_2", place), result_of(row, place)
    raise unknown_format(path, row, FORMATS)


def _names(row: Row, first: str, second: str, place: str) -> tuple[str, str]:
    return str(need(row, first, place)), str(need(row, second, place))


def _texts(row: Row) -> tuple[str, str] | None:
    for first, second in TEXTS:
        if isinstance(row.get(first), str) and isinstance(row.get(second), str):
            return row[first], row[second]
    return None
