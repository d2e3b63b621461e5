"""`prefloop compare`: which benchmark's files are paired by what."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring import alpaca_eval, arena_hard, gsm8k, mt_bench, pass_fail
from prefloop.scoring.figures import DETECTABLE, Figure, Scored, interval
from prefloop.scoring.paired import compare, compare_solved

Benchmark = Literal["alpaca-eval", "arena-hard", "mt-bench", "gsm8k", "human-eval"]
NORMAL = 1.96
"""Standard errors of a 95 % interval's half width."""
K = TypeVar("K", str, tuple[str, str | None])
T = TypeVar("T")


def compare_files(
    benchmark: Benchmark,
    ours: str,
    theirs: str,
    files: Sequence[str],
    *,
    inputs: alpaca_eval.Inputs | None = None,
    draws: int,
) -> Scored:
    """The paired difference of two models in the files of a benchmark. Raises InputError."""
    subject = f"{ours} minus {theirs}"
    match benchmark:
        case "alpaca-eval":
            verdicts = _once(
                (one.model, one, file) for file in files for one in alpaca_eval.read_verdicts(file)
            )
            found = alpaca_eval.compare(_named(verdicts, ours), _named(verdicts, theirs), inputs, draws=draws)
        case "mt-bench":
            ratings = _once((*read, file) for file in files for read in mt_bench.read_ratings(file).items())
            found = mt_bench.compare(_named(ratings, ours), _named(ratings, theirs), subject, draws=draws)
        case "arena-hard":
            found = _compare_arena_hard(ours, theirs, files, draws)
        case "gsm8k":
            solved = _once((*read, file) for file in files for read in gsm8k.read_solutions(file).items())
            pair = _named(solved, ours), _named(solved, theirs)
            found = compare_solved("accuracy", gsm8k.NAME, subject, *pair, draws=draws)
        case "human-eval":
            solved = _once((*read, file) for file in files for read in pass_fail.read_results(file).items())
            pair = _named(solved, ours), _named(solved, theirs)
            found = compare_solved("pass_rate", pass_fail.NAME, subject, *pair, draws=draws)
    for name, one in found.figures.items():
        if name.startswith("paired_") and one.half_width is not None:
            smallest = DETECTABLE * one.half_width / NORMAL
            found.notes.append(
                f"{name}: the smallest difference that {one.n} such pairs can show is {smallest:.3g}"
            )
    return found


def _once(read: Iterable[tuple[K, T, str]]) -> dict[K, T]:
    """What files say by model; a second file must not replace what the first says. Raises InputError."""
    found: dict[K, T] = {}
    for key, one, file in read:
        if key in found:
            name = key if isinstance(key, str) else next(iter(key))
            raise InputError(f"{file}: {name!r} is in a file before it as well; put its rows into one file")
        found[key] = one
    return found


def _named(found: Mapping[str, T], name: str) -> T:
    if name not in found:
        raise InputError(f"no rows of {name!r}; there are {', '.join(sorted(found))}")
    return found[name]


def _compare_arena_hard(ours: str, theirs: str, files: Sequence[str], draws: int) -> Scored:
    """Means of questions, of which each counts once; then the benchmark's score, where strong verdicts count three rows."""
    battles = _once(
        ((one.model, one.category), one, file) for file in files for one in arena_hard.read_battles(file)
    )
    names = {model for model, _ in battles}
    for name in (ours, theirs):
        _named(dict.fromkeys(names), name)
    categories = [category for model, category in battles if model == ours and (theirs, category) in battles]
    if not categories:
        raise InputError(f"{ours} and {theirs} were judged in no category in common")
    a, b = ([battles[name, one] for one in categories] for name in (ours, theirs))
    for one, other in zip(a, b, strict=True):
        if one.baseline != other.baseline:
            raise InputError(
                f"{ours} was judged against {one.baseline} and {theirs} against {other.baseline}: the difference is not "
                "theirs alone; give battles against the same baseline"
            )
        if one.judges != other.judges:
            raise InputError(
                f"{ours} was judged by {', '.join(sorted(one.judges))} and {theirs} by {', '.join(sorted(other.judges))}; "
                "give battles of one judge"
            )
    against = sorted({one.baseline for one in (*a, *b)})
    judges = sorted(set().union(*(one.judges for one in (*a, *b))))
    bare = arena_hard.NAME if categories == [None] else arena_hard.NAME_V2
    name = f"{bare}[judge={', '.join(judges)}, baseline={', '.join(against)}]"
    sides = [
        {
            f"{one.category or ''}/{question}": rows
            for one in some
            for question, rows in one.rows_by_question.items()
        }
        for some in (a, b)
    ]
    by_question = [{key: float(np.mean(rows)) for key, rows in one.items()} for one in sides]
    found = compare("question_mean", name, f"{ours} minus {theirs}", *by_question, draws=draws, times=100)
    both = [key for key in sides[0] if key in sides[1]]
    sums = np.array([[(sum(one[key]), len(one[key])) for key in both] for one in sides])  # [2, n, 2]

    def difference(drawn: np.ndarray) -> float:
        won, rows = sums[:, drawn].sum(1).T
        return float(100 * (won[0] / rows[0] - won[1] / rows[1]))

    low, high = interval(len(both), difference, draws=draws)
    score = Figure(difference(np.arange(len(both))), len(both), low, high)
    found.figures = {"paired_score": score, **found.figures}
    return found
