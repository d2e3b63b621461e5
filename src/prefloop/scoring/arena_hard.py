"""Arena-Hard: battles against one baseline, from verdicts of a judge or from rows that were counted before.

All battles of a model are against the same baseline, so its Bradley-Terry win rate is the mean of its rows: nothing has to
be solved. A strong verdict (`>>`) counts three rows, a tie one half. Version 0.1 has one baseline; version 2.0 has two
categories with a baseline each, and accepts verdicts in single brackets.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.figures import (
    UPSTREAM_LEVEL,
    Figure,
    Scored,
    clustered_figure,
    counted,
    mean_figure,
    text_of,
)
from prefloop.scoring.reading import Row, absent, has, id_of, need, rows_of, unknown_format


class Official(NamedTuple):
    """What a bare name stands for."""

    judge: str
    baseline: str
    questions: int


NAME, NAME_V2 = "arena_hard_v0.1", "arena_hard_v2.0"
OFFICIAL = Official("gpt-4-1106-preview", "gpt-4-0314", 500)
OFFICIAL_V2 = {
    "hard_prompt": Official("gemini-2.5", "o3-mini-2025-01-31", 500),
    "creative_writing": Official("gemini-2.5", "gemini-2.0-flash-001", 250),
}
VERDICT = re.compile(r"\[\[([AB<>=]+)\]\]")
SINGLE_BRACKETS = re.compile(r"\[([AB<>=]+)\]")
"""What v2.0 accepts as well."""
STRONG = 3
"""Rows that a strong verdict counts."""
ROWS = {"A>>B": (0.0, STRONG), "A>B": (0.0, 1), "A=B": (0.5, 1), "B>A": (1.0, 1), "B>>A": (1.0, STRONG)}
"""What B won, and in how many rows."""
MIRRORED = {"A<<B": "B>>A", "A<B": "B>A", "B<<A": "A>>B", "B<A": "A>B", "B=A": "A=B"}
WON = {"model_a": 0.0, "model_b": 1.0}
FORMATS = {
    "battles": ("question_id", "model_a", "model_b", "winner"),
    "judgements of v0.1": ("question_id", "model", "games"),
    "judgements of v2.0": ("uid", "category", "model", "games"),
}


def verdict_of(text: str, *, single_brackets: bool = False) -> str | None:
    """The last verdict of a judgement, such as `A>>B`; None where there is none that means something."""
    found = VERDICT.findall(text) or (SINGLE_BRACKETS.findall(text) if single_brackets else [])
    label = MIRRORED.get(found[-1], found[-1]) if found else ""
    return label if label in ROWS else None


# --- battles ---------------------------------------------------------------------------------------------------------


@dataclass
class Battles:
    """One model against the baseline of one version and category: rows that count, and those that do not."""

    model: str
    category: str | None
    """None for v0.1."""
    baselines: set[str] = field(default_factory=set)
    judges: set[str] = field(default_factory=set)
    questions: list[str] = field(default_factory=list)
    """Of each row that counts."""
    won: list[float] = field(default_factory=list)
    """By the model, 0, 1 or one half."""
    rows_in: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    half_read: int = 0
    """Questions of which one game counts, the other being unreadable."""

    @property
    def baseline(self) -> str:
        """The one baseline. Raises InputError where there are more."""
        if len(self.baselines) > 1:
            found = ", ".join(sorted(self.baselines))
            raise InputError(f"{self.model}: battles against {found}; score one baseline at a time")
        return next(iter(self.baselines))

    @property
    def rows_by_question(self) -> dict[str, list[float]]:
        """What the model won in each row of a question."""
        rows: dict[str, list[float]] = {}
        for question, one in zip(self.questions, self.won, strict=True):
            rows.setdefault(question, []).append(one)
        return rows

    @property
    def by_question(self) -> dict[str, float]:
        """The mean of each question's rows."""
        return {question: float(np.mean(some)) for question, some in self.rows_by_question.items()}


def read_battles(path: str, models: Sequence[str] = ()) -> list[Battles]:
    """Every model and category of a file of battles or judgements, or the models named. Raises InputError."""
    found: dict[tuple[str, str | None], Battles] = {}
    judged: set[tuple[str, str | None, str]] = set()
    for place, row in rows_of(path):
        one = _battle(row, path, place)
        mine = found.setdefault((one.model, one.category), Battles(one.model, one.category))
        mine.rows_in += 1
        mine.baselines.add(one.baseline)
        mine.judges.add(one.judge or "unknown")
        if "games" in row:
            key = (one.model, one.category, one.question)
            if key in judged:
                raise InputError(
                    f"{place}: {one.model} has been judged on this question before; keep one row"
                )
            judged.add(key)
        if one.reason is not None:
            mine.dropped[one.reason] += 1
        mine.half_read += one.half_read
        mine.questions += [one.question] * len(one.won)
        mine.won += one.won
    if missing := set(models) - {model for model, _ in found}:
        raise InputError(f"{path}: no battles of {', '.join(sorted(missing))}")
    return [one for one in found.values() if not models or one.model in models]


class _Battle(NamedTuple):
    model: str
    baseline: str
    category: str | None
    judge: str | None
    question: str
    won: Sequence[float]
    reason: str | None = None
    half_read: bool = False


def _battle(row: Row, path: str, place: str) -> _Battle:
    judge = str(row["judge"]) if row.get("judge") else None
    if has(row, FORMATS["battles"]):
        question = id_of(row, "question_id", place)
        sides = str(need(row, "model_b", place)), str(need(row, "model_a", place))
        if absent(row["winner"]):
            return _Battle(*sides, None, judge, question, (), "no_winner")
        winner = str(row["winner"])
        if winner not in WON and not winner.startswith("tie"):
            raise InputError(f"{place}: winner is {winner!r}, not model_a, model_b or tie")
        return _Battle(*sides, None, judge, question, (WON.get(winner, 0.5),))
    model = str(need(row, "model", place)) if "games" in row else ""
    if has(row, FORMATS["judgements of v2.0"]):
        category, question = str(need(row, "category", place)), id_of(row, "uid", place)
        official = OFFICIAL_V2.get(category)
        baseline = str(row.get("baseline") or (official.baseline if official else "unknown"))
    elif has(row, FORMATS["judgements of v0.1"]):
        category, question = None, id_of(row, "question_id", place)
        baseline = str(row.get("baseline") or OFFICIAL.baseline)
    else:
        raise unknown_format(path, row, FORMATS)
    games = row["games"]
    if not isinstance(games, Sequence) or isinstance(games, str) or len(games) != 2:
        raise InputError(f"{place}: games is not a list of two; the judge sees each question in both orders")
    each = _games(games, single_brackets=category is not None)
    won = won_in(games) if category is None else [one for game in each for one in game if all(each)]
    reason = None if won else "unreadable_verdict"
    return _Battle(model, baseline, category, judge, question, won, reason, bool(won) and not all(each))


def won_in(games: Sequence[Any]) -> list[float]:
    """What the model won in each row that two games of v0.1 count.

    A game that cannot be read counts none, and the other one still counts, as for the authors; v2.0 drops both.
    """
    return [one for game in _games(games, single_brackets=False) for one in game]


def _games(games: Sequence[Any], *, single_brackets: bool) -> list[list[float]]:
    """Of each game what the model won in its rows; none where the verdict cannot be read.

    The baseline is A in the first game, the model in the second.
    """
    found = []
    for number, game in enumerate(games):
        share, rows = ROWS.get(verdict_of(_text(game), single_brackets=single_brackets) or "", (0.0, 0))
        found.append([share if number == 0 else 1 - share] * rows)
    return found


def _text(game: Any) -> str:
    """What the judge wrote: a text, or in v2.0 an answer beside its usage; where only the verdict was kept, that."""
    said = game.get("judgment") if isinstance(game, dict) else game
    if isinstance(said, dict):
        said = said.get("answer")
    if said is None and isinstance(game, dict) and game.get("score"):
        said = f"[[{game['score']}]]"
    return str(said or "").upper()


# --- scores ----------------------------------------------------------------------------------------------------------


def benchmark_name(battles: Battles, *, questions: int, judge: str | None = None, more: str = "") -> str:
    """The bare name for the official judge, baseline and number of questions only."""
    official = OFFICIAL if battles.category is None else OFFICIAL_V2.get(battles.category)
    bare = (NAME if battles.category is None else f"{NAME_V2}_{battles.category}") + more
    if judge and (others := battles.judges - {"unknown", judge}):
        raise InputError(
            f"--judge {judge}: the file says that {', '.join(sorted(others))} judged {battles.model}; leave --judge out"
        )
    said = {
        "judge": judge or ", ".join(sorted(battles.judges)),
        "baseline": battles.baseline,
        "questions": questions,
    }
    named = {name: one for name, one in said.items() if official is None or one != getattr(official, name)}
    return f"{bare}[{text_of(named)}]" if named else bare


def score(path: str, *, draws: int, models: Sequence[str] = (), judge: str | None = None) -> list[Scored]:
    """Every model and category of a file, or the models named; `judge` names one that the file does not."""
    return [_scored(one, draws, judge) for one in read_battles(path, models)]


def _scored(battles: Battles, draws: int, judge: str | None) -> Scored:
    by_question = battles.by_question
    number = len(by_question)
    name = benchmark_name(battles, questions=number, judge=judge)
    found = Scored(name, battles.model, {}, battles.rows_in, battles.dropped)
    figures = found.figures
    figures["num_questions"] = counted(number, number)
    figures["num_rows"] = counted(len(battles.won), len(battles.won))
    if not battles.won:
        figures["score"] = Figure(None, 0)
        return found
    won = np.array(battles.won)
    figures["score"] = clustered_figure(won, battles.questions, draws=draws, times=100)
    figures["score_rows"] = mean_figure(won, draws=draws, times=100)
    if battles.category is not None:
        rows_90 = mean_figure(won, draws=draws, times=100, level=UPSTREAM_LEVEL)
        figures["score_rows_90_percent"] = rows_90
    figures["question_mean"] = mean_figure(list(by_question.values()), draws=draws, times=100)
    found.notes.append(
        "the interval of score_rows takes battles for independent, as the authors' does; that of score draws questions"
    )
    if battles.half_read:
        found.notes.append(
            f"of {battles.half_read} questions one game could not be read; the other counts, as the authors do in v0.1"
        )
    if battles.category is not None:
        found.notes.append("the authors print the 90 % interval of score_rows_90_percent")
    return found
