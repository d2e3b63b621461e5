"""MT-bench: ratings from 1 to 10 of two turns, read out of what the judge wrote."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, clustered_figure, counted, text_of
from prefloop.scoring.mt_bench_pairs import TIE_WITHIN, judge_of
from prefloop.scoring.paired import UNPAIRED, beside, note_unpaired
from prefloop.scoring.reading import Row, absent, has, id_of, rows_of, unknown_format, whole

NAME = "mt_bench"
RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
SINGLE_BRACKETS = re.compile(r"\[(\d+\.?\d*)\]")
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST_QUESTION, EACH = 81, 10
"""Questions 81 to 160, ten of each category."""
JUDGE, QUESTIONS, TURNS, REFERENCE = "gpt-4", 80, 2, "gpt-4"
"""What the bare name stands for; the reference is the set of answers that the judge sees for maths, reasoning, coding."""
TEMPLATES = frozenset(f"single{kind}-v1{turns}" for kind in ("", "-math") for turns in ("", "-multi-turn"))
"""The benchmark's own; another template is part of the name."""
BROKEN = frozenset(map(str, (104, 105, 109, 111, 113, 114, 120, 122, 124, 125, 126, 128, 130)))
"""Questions whose answer in the official reference set is wrong (FastChat's pull request 3158)."""
FORMATS = {"judgements": ("question_id", "judgment")}
LOWEST, HIGHEST = 1, 10
MISSING = -1
"""What FastChat stores for a rating that it could not read."""


def rating_of(text: str) -> float | None:
    """The first rating in double brackets, else in single ones; None where there is neither."""
    found = RATING.search(text) or SINGLE_BRACKETS.search(text)
    return float(found[1]) if found else None


@dataclass(frozen=True)
class Rating:
    """One rating."""

    question: str
    turn: int
    category: str | None
    value: float


def category_of(question: str) -> str | None:
    """The category of one of the 80 questions, by its number."""
    if not question.isdecimal():
        return None
    place = (int(question) - FIRST_QUESTION) // EACH
    return CATEGORIES[place] if 0 <= place < len(CATEGORIES) else None


@dataclass
class Read:
    """What a file says about one model."""

    ratings: list[Rating] = field(default_factory=list)
    judges: set[str] = field(default_factory=set)
    templates: set[str] = field(default_factory=set)
    """Other than the benchmark's own."""
    asked: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How many rows each question and turn has, read or not."""
    rows_in: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    equal: int = 0
    """Rows whose stored score is the one that is read."""
    stored: int = 0


def read_ratings(path: str) -> dict[str, Read]:
    """Ratings by model. Raises InputError."""
    found: dict[str, Read] = {}
    for place, row in rows_of(path):
        if not has(row, FORMATS["judgements"]):
            raise unknown_format(path, row, FORMATS)
        model = str(row.get("model") or "model")
        mine = found.setdefault(model, Read())
        mine.rows_in += 1
        mine.judges.add(judge_of(row))
        mine.templates |= _template_of(row)
        question = id_of(row, "question_id", place)
        turn = 1 if absent(row.get("turn")) else whole(row, "turn", place)
        mine.asked[question, turn] += 1
        value = rating_of(str(row["judgment"] or ""))
        if "score" in row:
            mine.stored += 1
            mine.equal += _same(row, value)
        if value is None:
            mine.dropped["unreadable_rating"] += 1
            continue
        if not LOWEST <= value <= HIGHEST:
            mine.dropped["rating_out_of_range"] += 1
            continue
        mine.ratings.append(Rating(question, turn, category_of(question), value))
    return found


def _template_of(row: Row) -> set[str]:
    """The judge's template, where FastChat's pair of judge and template names one of another's making."""
    judge = row.get("judge")
    named = {str(one) for one in judge[1:2]} if isinstance(judge, list) else set()
    return named - TEMPLATES


def _same(row: Row, value: float | None) -> bool:
    stored = row["score"]
    try:
        read = MISSING if absent(stored) else float(stored)
    except (TypeError, ValueError, OverflowError):
        return False
    return read == (MISSING if value is None else value)


def score(path: str, *, draws: int, models: Sequence[str] = (), reference: str = REFERENCE) -> list[Scored]:
    """Every model of a file of judgements, or those named; then the file itself.

    `reference` names the set of reference answers that the judge was shown; that of the benchmark has known errors, and the
    mean without their questions stands beside the official one.
    """
    read = read_ratings(path)
    if missing := set(models) - read.keys():
        raise InputError(f"{path}: no ratings of {', '.join(sorted(missing))}")
    found = [
        _scored(model, one, reference, draws) for model, one in read.items() if not models or model in models
    ]
    stored = sum(one.stored for one in read.values())
    if stored and not models:
        equal = sum(one.equal for one in read.values())
        figures = {"share_equal_to_stored": Figure(equal / stored, stored)}
        judges = ", ".join(sorted(set().union(*(one.judges for one in read.values()))))
        name = NAME if judges == JUDGE else f"{NAME}[{text_of({'judge': judges})}]"
        found.append(Scored(name, Path(path).name, figures, stored))
    return found


def benchmark_name(read: Read, *, reference: str) -> str:
    """The bare name for the official judge, its templates, all questions in both turns and the official references only."""
    questions = len({one.question for one in read.ratings})
    turns = len(read.asked) if questions == QUESTIONS else QUESTIONS * TURNS
    said = {
        "judge": (", ".join(sorted(read.judges)), JUDGE),
        "template": (", ".join(sorted(read.templates)), ""),
        "questions": (questions, QUESTIONS),
        "turns": (f"{turns}/{QUESTIONS * TURNS}", f"{QUESTIONS * TURNS}/{QUESTIONS * TURNS}"),
        "reference": (reference, REFERENCE),
    }
    named = {name: found for name, (found, official) in said.items() if found != official}
    return f"{NAME}[{text_of(named)}]" if named else NAME


def _scored(model: str, read: Read, reference: str, draws: int) -> Scored:
    found = Scored(benchmark_name(read, reference=reference), model, {}, read.rows_in, read.dropped)
    figures, ratings = found.figures, read.ratings
    figures["num_rows"] = counted(read.rows_in, read.rows_in)
    figures["num_ratings"] = counted(len(ratings), len(ratings))
    figures["num_unparsable"] = counted(read.dropped["unreadable_rating"], read.rows_in)

    def mean(some: Sequence[Rating]) -> Figure:
        if not some:
            return Figure(None, 0)
        values = np.array([one.value for one in some])
        return clustered_figure(values, [one.question for one in some], draws=draws)

    figures["mean"] = mean(ratings)
    if reference == REFERENCE and any(one.question in BROKEN for one in ratings):
        sound = [one for one in ratings if one.question not in BROKEN]
        figures["mean_without_broken_references"] = mean(sound)
    turns = sorted({one.turn for one in ratings})
    if len(turns) > 1:
        figures |= {f"turn_{turn}": mean([one for one in ratings if one.turn == turn]) for turn in turns}
    for category in CATEGORIES:
        if some := [one for one in ratings if one.category == category]:
            figures[f"category_{category}"] = mean(some)
    if repeated := sum(count - 1 for count in read.asked.values()):
        found.notes.append(f"{repeated} rows repeat a question and turn of another row; all of them count")
    return found


def compare(ours: Read, theirs: Read, subject: str, *, draws: int) -> Scored:
    """The paired difference of two models, over the questions that both were rated on in the same turns."""
    if ours.judges != theirs.judges or ours.templates != theirs.templates:
        raise InputError(
            f"{subject}: judged by {', '.join(sorted(ours.judges | ours.templates))} and by "
            f"{', '.join(sorted(theirs.judges | theirs.templates))}; give ratings of one judge and template"
        )
    means = [_means(read.ratings) for read in (ours, theirs)]
    both = sorted(means[0].keys() & means[1].keys())
    if not both:
        raise InputError(f"{subject}: no question was rated for both")
    gaps = np.array([means[0][key] - means[1][key] for key in both])
    figure = clustered_figure(gaps, [question for question, _ in both], draws=draws)
    dropped = ours.dropped + theirs.dropped
    dropped[UNPAIRED] = (
        len(ours.ratings)
        + len(theirs.ratings)
        - sum(
            (one.question, one.turn) in means[0].keys() & means[1].keys()
            for read in (ours, theirs)
            for one in read.ratings
        )
    )
    common = replace(
        ours,
        ratings=[one for one in ours.ratings if (one.question, one.turn) in means[1]],
        asked=Counter(dict.fromkeys(ours.asked.keys() & theirs.asked.keys(), 1)),
    )
    name = benchmark_name(common, reference=REFERENCE)
    found = Scored(name, subject, {"paired_mean": figure}, ours.rows_in + theirs.rows_in, +dropped)
    found.figures |= beside(gaps, [question for question, _ in both], tie_within=TIE_WITHIN)
    note_unpaired(found, len(both), len(means[0]), len(means[1]))
    return found


def _means(ratings: Sequence[Rating]) -> dict[tuple[str, int], float]:
    """The mean of each question and turn."""
    values: dict[tuple[str, int], list[float]] = {}
    for one in ratings:
        values.setdefault((one.question, one.turn), []).append(one.value)
    return {key: float(np.mean(some)) for key, some in values.items()}
