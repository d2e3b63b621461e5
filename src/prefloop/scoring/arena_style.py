"""Arena-Hard with style controlled: one fit over the battles of all models, with length and Markdown beside the models.

A model's score is its chance against the baseline where its answer differs in style from the baseline's as answers of the
pool do on average (features are centred, as the authors do). So it depends on the models that were fitted together: the
pool is part of the name.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.arena_hard import Battles, benchmark_name
from prefloop.scoring.figures import Figure, Scored, counted, percentiles
from prefloop.scoring.logistic import fit, sigmoid
from prefloop.scoring.reading import Row, absent, id_of, need, rows_of
from prefloop.scoring.style import Control, Style, columns_of, differences, standardised, style_of

Answers = Mapping[str, Mapping[str, Style]]
"""Styles by model and question."""
COUNTS = ("header_count", "list_count", "bold_count")


def read_answers(paths: Sequence[str]) -> Answers:
    """Answers as the authors store them; their own counts where a file has `metadata`, else ours. Raises InputError.

    Lengths are tokens where every answer has them, characters where none has.
    """
    found: dict[str, dict[str, Style]] = {}
    counted_by: set[str] = set()
    for path in paths:
        for place, row in rows_of(path):
            question = id_of(row, "question_id" if absent(row.get("uid")) else "uid", place)
            model = str(row.get("model") or need(row, "model_id", place))
            metadata = row.get("metadata")
            style = _stored(metadata, place) if metadata else style_of(_text(row, place))
            counted_by.add("tokens" if metadata else "characters")
            mine = found.setdefault(model, {})
            if mine.setdefault(question, style) != style:
                raise InputError(
                    f"{place}: another answer of {model} to this question was there before; keep one"
                )
    if len(counted_by) > 1:
        raise InputError(
            f"{', '.join(paths)}: some answers have metadata with their tokens and some have not; "
            "count all of them, or none"
        )
    return found


def _stored(metadata: Row, place: str) -> Style:
    counts = []
    for name in ("token_len", *COUNTS):
        value = metadata.get(name)
        if not isinstance(value, int | float | Mapping):
            raise InputError(f"{place}: metadata has no {name}")
        counts.append(sum(value.values()) if isinstance(value, Mapping) else value)
    return Style(*counts)


def _text(row: Row, place: str) -> str:
    """The last answer of a row, as v0.1 and v2.0 have it."""
    try:
        if "messages" in row:
            said = row["messages"][-1]["content"]
        else:
            said = row["choices"][0]["turns"][-1]
        return str(said if isinstance(said, str) else said.get("answer", said.get("content")))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise InputError(f"{place}: no answer in messages or choices") from None


@dataclass(frozen=True)
class _Pool:
    """Battles of several models against one baseline, equal ones of a question once with their number."""

    models: list[str]
    questions: list[str]
    design: np.ndarray  # [n, M models and d features]
    won: np.ndarray  # [n]
    times: np.ndarray  # [n]
    question_of: np.ndarray  # [n]


def score(
    battles: Sequence[Battles],
    answers: Answers,
    controls: Sequence[Control],
    *,
    draws: int,
    judge: str | None = None,
    seed: int = 0,
) -> list[Scored]:
    """Every model with style controlled, a pool for each category; then what the style features weigh. Raises InputError."""
    pools: dict[str | None, list[Battles]] = {}
    for one in battles:
        if one.model in [other.model for other in pools.get(one.category, [])]:
            raise InputError(f"{one.model}: battles in two files; give each model once")
        pools.setdefault(one.category, []).append(one)
    return [
        found
        for some in pools.values()
        for found in _scored_pool(some, answers, controls, draws, judge, seed)
    ]


def _scored_pool(
    battles: Sequence[Battles],
    answers: Answers,
    controls: Sequence[Control],
    draws: int,
    judge: str | None,
    seed: int,
) -> list[Scored]:
    if len(baselines := sorted({one.baseline for one in battles})) > 1:
        raise InputError(f"battles against {', '.join(baselines)}; a pool has one baseline")
    dropped = [Counter(one.dropped) for one in battles]
    pool = _pool(battles, answers, controls, dropped)
    best = fit(pool.design, pool.won, pool.times)
    drawn = _bootstrap(pool, best, draws, seed)
    number = len(pool.models)
    names = ", ".join(sorted(pool.models))
    shape = f"features={'+'.join(controls)}, pool={number}/{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    scored = []
    for place, one in enumerate(battles):
        mine = pool.design[:, place] == 1
        questions = len(np.unique(pool.question_of[mine]))
        bare = benchmark_name(one, questions=questions, judge=judge, more="_style_control")
        bare = f"{bare[:-1]}, {shape}]" if bare.endswith("]") else f"{bare}[{shape}]"
        low, high = percentiles(100 * sigmoid(drawn[:, place]))
        figures = {
            "num_questions": counted(questions, questions),
            "num_rows": counted(float(pool.times[mine].sum()), questions),
            "score": Figure(100 * float(sigmoid(best[place])), questions, low, high),
        }
        found = Scored(bare, one.model, figures, one.rows_in, dropped[place])
        found.notes.append(f"fitted together with: {names}")
        scored.append(found)
    weights = {
        f"weight_{name}": Figure(
            float(best[number + at]), len(pool.questions), *percentiles(drawn[:, number + at])
        )
        for at, name in enumerate(columns_of(controls))
    }
    category = battles[0].category
    told = Scored("style_control", category or "all questions", weights, len(pool.questions))
    told.notes.append("log-odds for one standard deviation more of a feature than the other answer has")
    return [*scored, told]


def _pool(
    battles: Sequence[Battles], answers: Answers, controls: Sequence[Control], dropped: Sequence[Counter[str]]
) -> _Pool:
    baseline = battles[0].baseline
    for model in (baseline, *(one.model for one in battles)):
        if model not in answers:
            raise InputError(f"no answers of {model}; name their file with --answers")
    rows: Counter[tuple[int, str, float]] = Counter()
    for place, one in enumerate(battles):
        unknown: Counter[str] = Counter()
        for question, won in zip(one.questions, one.won, strict=True):
            if question in answers[one.model] and question in answers[baseline]:
                rows[place, question, won] += 1
            else:
                unknown[question] += 1
        if len(unknown) == len(set(one.questions)):
            raise InputError(
                f"{one.model}: no battle has the answers of both sides; are these the answers to the same questions?"
            )
        if unknown:  # a row of the file is a battle, or a question with both games
            battle_rows = one.rows_in - one.dropped.total() == len(one.won)
            dropped[place]["no_answer"] += unknown.total() if battle_rows else len(unknown)
    keys = list(rows)
    times = np.array(list(rows.values()), dtype=float)
    ours = [answers[battles[place].model][question] for place, question, _ in keys]
    theirs = [answers[baseline][question] for _, question, _ in keys]
    features = differences(ours, theirs, controls)
    # every counted row is one battle, so the features are standardised over rows, not over kinds of rows
    repeated = np.repeat(np.arange(len(keys)), times.astype(int))
    first = np.unique(repeated, return_index=True)[1]
    features = standardised(features[repeated])[first]
    questions = list(dict.fromkeys(question for _, question, _ in keys))
    at = {question: place for place, question in enumerate(questions)}
    one_hot = np.eye(len(battles))[[place for place, _, _ in keys]]
    return _Pool(
        models=[one.model for one in battles],
        questions=questions,
        design=np.concatenate([one_hot, features], 1),
        won=np.array([won for _, _, won in keys]),
        times=times,
        question_of=np.array([at[question] for _, question, _ in keys]),
    )


def _bootstrap(pool: _Pool, best: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Coefficients [draws, M + d] of samples of questions."""
    rng = np.random.default_rng(seed)
    number = len(pool.questions)
    found = []
    for _ in range(draws):
        times = rng.multinomial(number, np.full(number, 1 / number))[pool.question_of] * pool.times
        kept = times > 0
        found.append(fit(pool.design[kept], pool.won[kept], times[kept], start=best))
    return np.array(found)
