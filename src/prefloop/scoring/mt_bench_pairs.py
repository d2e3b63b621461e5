"""MT-bench's pairwise mode: two answers judged in both orders, and a win only where both orders agree.

Each row holds two games, the second with the answers exchanged. A verdict is the last of `[[A]]`, `[[B]]`, `[[C]]` (a tie),
or a pair of ratings `[[a, b]]`, of which those within 0.1 are a tie.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, clustered_figure, counted, text_of
from prefloop.scoring.reading import Row, has, id_of, need, rows_of, unknown_format

NAME = "mt_bench_pairwise"
JUDGE, BASELINE, QUESTIONS = "gpt-4", "gpt-3.5-turbo", 80
"""What the bare name stands for."""
FORMATS = {"pairs": ("question_id", "model_1", "model_2")}
Winner = Literal["model_1", "model_2", "tie"]
VERDICT = re.compile(r"\[\[([ABC])\]\]")
RATINGS = re.compile(r"\[\[(\d+\.?\d*),\s?(\d+\.?\d*)\]\]")
SINGLE_BRACKETS = re.compile(r"\[(\d+\.?\d*),\s?(\d+\.?\d*)\]")
TIE_WITHIN = 0.1
ROUNDING = 1e-9
"""Ratings of one decimal that differ by 0.1 do not in binary."""
GAMES: tuple[dict[str, Winner], ...] = (
    {"A": "model_1", "B": "model_2", "C": "tie"},
    {"A": "model_2", "B": "model_1", "C": "tie"},
)


def winner_of(text: str, *, game: int) -> Winner | None:
    """Who won the first or second game by what the judge wrote; None where that cannot be read."""
    names = GAMES[game]
    if found := VERDICT.findall(text):
        return names[found[-1]]
    if ratings := RATINGS.search(text) or SINGLE_BRACKETS.search(text):
        return names[preferred(float(ratings[1]), float(ratings[2]))]
    return None


def preferred(first: float, second: float) -> Literal["A", "B", "C"]:
    """The better of two ratings; C where they are within 0.1."""
    if abs(first - second) <= TIE_WITHIN + ROUNDING:
        return "C"
    return "A" if first > second else "B"


@dataclass
class Games:
    """What one model did against others."""

    opponents: set[str] = field(default_factory=set)
    judges: set[str] = field(default_factory=set)
    questions: list[str] = field(default_factory=list)
    results: list[float] = field(default_factory=list)
    """1 for a win, one half for a tie, 0 for a loss."""
    rows_in: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def score(path: str, *, draws: int, models: Sequence[str] = (), baseline: str | None = None) -> list[Scored]:
    """Every model of a file, or those named, against all others or the baseline alone; then the file. Raises InputError."""
    games: dict[str, Games] = {}
    equal: list[bool] = []
    agree: list[bool] = []
    questions: list[str] = []
    for place, row in rows_of(path):
        if not has(row, FORMATS["pairs"]):
            raise unknown_format(path, row, FORMATS)
        sides = str(need(row, "model_1", place)), str(need(row, "model_2", place))
        if baseline is not None and baseline not in sides:
            continue
        question = id_of(row, "question_id", place)
        winners: list[Winner | None] = [_winner(row, game, place, equal) for game in (0, 1)]
        if None not in winners:
            agree.append(winners[0] == winners[1])
            questions.append(question)
        for model, opponent, won in ((sides[0], sides[1], "model_1"), (sides[1], sides[0], "model_2")):
            if model == baseline:
                continue
            mine = games.setdefault(model, Games())
            mine.rows_in += 1
            mine.opponents.add(opponent)
            mine.judges.add(judge_of(row))
            if None in winners:
                mine.dropped["unreadable_verdict"] += 1
                continue
            mine.questions.append(question)
            result = _agreed(winners)
            mine.results.append(result if won == "model_1" else 1 - result)
    if not games:
        raise InputError(f"{path}: no games against {baseline}")
    if missing := set(models) - games.keys():
        raise InputError(f"{path}: no games of {', '.join(sorted(missing))}")
    found = [
        _scored(model, one, baseline, draws) for model, one in games.items() if not models or model in models
    ]
    judges = ", ".join(sorted(set().union(*(one.judges for one in games.values()))))
    name = NAME if judges == JUDGE else f"{NAME}[{text_of({'judge': judges})}]"
    of_file = Scored(name, Path(path).name, {}, len(agree))
    both = np.array(agree, dtype=float)
    of_file.figures["order_agreement"] = (
        clustered_figure(both, questions, draws=draws) if agree else Figure(None, 0)
    )
    if equal:
        of_file.figures["share_equal_to_stored"] = Figure(sum(equal) / len(equal), len(equal))
    return [*found, of_file]


def judge_of(row: Row) -> str:
    """Who judged: FastChat has the judge and its template; `unknown` where a row does not say."""
    judge = row.get("judge")
    return str(judge[0] if isinstance(judge, list) and judge else judge or "unknown")


def _winner(row: Row, game: int, place: str, equal: list[bool]) -> Winner | None:
    """By the text, else by what is stored; and whether both are the same, where both are there."""
    text, stored = row.get(f"g{game + 1}_judgment"), row.get(f"g{game + 1}_winner")
    if stored not in (None, "model_1", "model_2", "tie", "error"):
        raise InputError(f"{place}: g{game + 1}_winner is {stored!r}, not model_1, model_2, tie or error")
    if text is None or "m1_score" in row:  # ratings of single answers: each text is about one of them
        if stored is None:
            raise InputError(f"{place}: neither g{game + 1}_judgment nor g{game + 1}_winner")
        return None if stored == "error" else cast(Winner, stored)
    found = winner_of(str(text), game=game)
    if stored is not None:
        equal.append((found or "error") == stored)
    return found


def result_of(row: Row, place: str) -> float | None:
    """1 where model_1 won both games of a row, 0 where it lost both, one half otherwise; None where one is unreadable."""
    winners: list[Winner | None] = [_winner(row, game, place, []) for game in (0, 1)]
    return None if None in winners else _agreed(winners)


def _agreed(winners: Sequence[Winner | None]) -> float:
    """What model_1 won of two games."""
    return 0.5 if winners[0] != winners[1] or winners[0] == "tie" else float(winners[0] == "model_1")


def _scored(model: str, games: Games, baseline: str | None, draws: int) -> Scored:
    judges = ", ".join(sorted(games.judges))
    against = baseline or (
        f"all {len(games.opponents)}" if len(games.opponents) > 1 else next(iter(games.opponents))
    )
    said = {
        "judge": (judges, JUDGE),
        "baseline": (against, BASELINE),
        "questions": (len(set(games.questions)), QUESTIONS),
    }
    named = {name: one for name, (one, official) in said.items() if one != official}
    found = Scored(f"{NAME}[{text_of(named)}]" if named else NAME, model, {}, games.rows_in, games.dropped)
    figures, results = found.figures, np.array(games.results)
    figures["num_questions"] = counted(len(set(games.questions)), len(results))
    if not len(results):
        figures["adjusted_win_rate"] = Figure(None, 0)
        return found
    figures["adjusted_win_rate"] = clustered_figure(results, games.questions, draws=draws, times=100)
    for name, value in (("win_rate", 1.0), ("tie_rate", 0.5), ("loss_rate", 0.0)):
        share = (results == value).astype(float)
        figures[name] = clustered_figure(share, games.questions, draws=draws, times=100)
    return found
