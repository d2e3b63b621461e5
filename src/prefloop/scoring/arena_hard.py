"""Arena-Hard: battles against one baseline, from verdicts of a judge or from rows that were counted before.

All battles of a model are against the same baseline, so its Bradley-Terry win rate is the mean of its rows: nothing has to
be solved. A strong verdict (`>>`) counts three rows, a tie one half.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, clustered_figure, counted, mean_figure, text_of
from prefloop.scoring.reading import Row, has, need, rows_of, unknown_format

NAME = "arena_hard_v0.1"
QUESTIONS, BASELINE = 500, "gpt-4-0314"
"""What the bare name stands for, beside the judge, whom a file of battles does not name."""
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
    "judgements": ("question_id", "model", "games"),
}


def verdict_of(text: str, *, single_brackets: bool = False) -> str | None:
    """The last verdict of a judgement, such as `A>>B`; None where there is none that means something."""
    found = VERDICT.findall(text) or (SINGLE_BRACKETS.findall(text) if single_brackets else [])
    label = MIRRORED.get(found[-1], found[-1]) if found else ""
    return label if label in ROWS else None


def score(path: str, *, draws: int, models: Sequence[str] = ()) -> list[Scored]:
    """Every model of a file of battles or of judgements, or those named. Raises InputError."""
    battles: dict[str, list[tuple[str, float]]] = {}
    dropped: dict[str, Counter[str]] = {}
    baselines: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for model, baseline, question, won, reason in _battles(path):
        counts[model] += 1
        baselines.setdefault(model, set()).add(baseline)
        if reason is not None:
            dropped.setdefault(model, Counter())[reason] += 1
        else:
            battles.setdefault(model, []).extend((question, one) for one in won)
    if missing := set(models) - counts.keys():
        raise InputError(f"{path}: no battles of {', '.join(sorted(missing))}")
    return [
        _scored(
            model,
            battles.get(model, []),
            baselines[model],
            counts[model],
            dropped.get(model, Counter()),
            draws,
        )
        for model in counts
        if not models or model in models
    ]


Battle = tuple[str, str, str, Sequence[float], str | None]
"""Model, baseline, question, what the model won in each row that counts, and why nothing counts."""


def _battles(path: str) -> Iterator[Battle]:
    for place, row in rows_of(path):
        if has(row, FORMATS["battles"]):
            winner = str(need(row, "winner", place))
            if winner not in WON and not winner.startswith("tie"):
                raise InputError(f"{place}: winner is {winner!r}, not model_a, model_b or tie")
            won = WON.get(winner, 0.5)
            yield str(row["model_b"]), str(row["model_a"]), str(need(row, "question_id", place)), (won,), None
        elif has(row, FORMATS["judgements"]):
            yield _judged(row, place)
        else:
            raise unknown_format(path, row, FORMATS)


def _judged(row: Row, place: str) -> Battle:
    """A question with two games: the baseline is A in the first, the model in the second."""
    games = row["games"]
    if not isinstance(games, Sequence) or len(games) != 2:
        raise InputError(f"{place}: games is not a list of two; the judge sees each question in both orders")
    who = (
        str(need(row, "model", place)),
        str(row.get("baseline") or BASELINE),
        str(need(row, "question_id", place)),
    )
    won = won_in(games)
    return (*who, (), "unreadable_verdict") if won is None else (*who, won, None)


def won_in(games: Sequence[Any]) -> list[float] | None:
    """What the model won in each row that two games count; None where a verdict cannot be read."""
    won: list[float] = []
    for number, game in enumerate(games):
        text = game.get("judgment") if isinstance(game, dict) else game
        label = verdict_of(str(text or ""))
        if label is None:
            return None
        share, rows = ROWS[label]
        won += [share if number == 0 else 1 - share] * rows
    return won


def _scored(
    model: str,
    battles: Sequence[tuple[str, float]],
    baselines: set[str],
    rows_in: int,
    dropped: Counter[str],
    draws: int,
) -> Scored:
    if len(baselines) > 1:
        raise InputError(
            f"{model}: battles against {', '.join(sorted(baselines))}; score one baseline at a time"
        )
    questions = sorted({question for question, _ in battles})
    others = {"baseline": (next(iter(baselines)), BASELINE), "prompts": (len(questions), QUESTIONS)}
    named = {name: found for name, (found, official) in others.items() if found != official}
    found = Scored(f"{NAME}[{text_of(named)}]" if named else NAME, model, {}, rows_in, dropped)
    figures = found.figures
    figures["num_questions"] = counted(len(questions), len(questions))
    figures["num_rows"] = counted(len(battles), len(battles))
    if not battles:
        figures["score"] = Figure(None, 0)
        return found
    won = np.array([one for _, one in battles])
    of_questions = [question for question, _ in battles]
    figures["score"] = clustered_figure(won, of_questions, draws=draws, times=100)
    figures["score_rows"] = mean_figure(won, draws=draws, times=100)
    by_question: dict[str, list[float]] = {}
    for question, one in battles:
        by_question.setdefault(question, []).append(one)
    figures["question_mean"] = mean_figure(
        [float(np.mean(one)) for one in by_question.values()], draws=draws, times=100
    )
    found.notes.append(
        "the interval of score_rows takes battles for independent, as the authors' does; that of score draws questions"
    )
    return found
