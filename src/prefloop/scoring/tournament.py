"""A scale over any set of policies: one Bradley-Terry fit over all their games, in points of Elo.

The chance of a against b is sigmoid((strength a - strength b) / 173.7): 400 points are odds of ten to one. Intervals draw
prompts, since games on one prompt are not independent. With style, differences in length and Markdown are further terms of
the same fit, and a strength is what is left at equal style.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, percentiles
from prefloop.scoring.games import Game
from prefloop.scoring.logistic import fit, sigmoid
from prefloop.scoring.style import Control, columns_of, differences, style_of

POINTS = 400 / math.log(10)
"""Of Elo in one unit of log-odds."""
MEAN = 1000.0
"""Of all strengths, where nobody is anchored."""
RIDGE = 1e-3
"""On strengths in log-odds: a prior of standard deviation 32, which matters only to those who never lost or never won."""


@dataclass(frozen=True)
class Standing:
    """One policy."""

    model: str
    rank: int
    best_rank: int
    worst_rank: int
    """The interval of the rank."""
    strength: Figure
    """In points."""
    won: float
    """Share of its games, ties one half."""
    games: int
    anchored: bool


@dataclass(frozen=True)
class Pairing:
    """All games of two policies."""

    a: str
    b: str
    games: int
    won: float
    """By a; ties count one half."""
    expected: float
    """By the fit."""


@dataclass(frozen=True)
class Tournament:
    """The scale and what it rests on."""

    standings: tuple[Standing, ...]
    """The strongest first."""
    pairings: tuple[Pairing, ...]
    style: Mapping[str, Figure]
    """Log-odds of a difference as large as differences are (root mean square); empty without style."""
    prompts: int
    unbounded: tuple[str, ...]
    """Policies that games place only on one side of some others: the ridge bounds how far."""


@dataclass(frozen=True)
class _Design:
    """Games as rows of a regression. Cells are rows that are alike in all but prompt and outcome."""

    models: list[str]
    free: list[str]
    """Those whose strength is estimated: all but the anchored."""
    table: np.ndarray  # [C, F free models and d features]
    offset: np.ndarray  # [C] what anchored strengths contribute
    cell_of: np.ndarray  # [n] games
    prompt_of: np.ndarray  # [n]
    won: np.ndarray  # [n], by a
    num_prompts: int


def play(
    games: Sequence[Game],
    *,
    anchors: Mapping[str, float] | None = None,
    controls: Sequence[Control] = (),
    draws: int,
    seed: int = 0,
) -> Tournament:
    """The scale of all policies that played. Raises InputError where games do not join them all."""
    fixed = dict(anchors or {})
    models = sorted({name for one in games for name in (one.a, one.b)})
    if missing := fixed.keys() - set(models):
        raise InputError(f"anchor {', '.join(sorted(missing))}: no games; there are {', '.join(models)}")
    results = _results(models, games)
    _check_joined(models, results)
    zero = float(np.mean(list(fixed.values()))) if fixed else MEAN
    design = _design(models, games, fixed, zero, controls)
    best = _fit(design, np.ones(design.num_prompts), None)
    drawn = _bootstrap(design, best, draws, seed)
    scale = _strengths(design, best[None], fixed, zero)[0]
    return Tournament(
        standings=_standings(models, results, scale, _strengths(design, drawn, fixed, zero), fixed),
        pairings=_pairings(design, games, best),
        style={
            name: Figure(float(best[place]), len(games), *percentiles(drawn[:, place]))
            for place, name in enumerate(columns_of(controls), len(design.free))
        },
        prompts=design.num_prompts,
        unbounded=_unbounded(models, results),
    )


# --- who played whom -------------------------------------------------------------------------------------------------


def _results(models: Sequence[str], games: Sequence[Game]) -> np.ndarray:
    """What the row won against the column, ties one half: [M, M]."""
    at = {name: place for place, name in enumerate(models)}
    won = np.zeros((len(models), len(models)))
    for one in games:
        won[at[one.a], at[one.b]] += one.p_a
        won[at[one.b], at[one.a]] += 1 - one.p_a
    return won


def _check_joined(models: Sequence[str], results: np.ndarray) -> None:
    from scipy.sparse import csgraph

    number, part_of = csgraph.connected_components(results + results.T > 0, directed=False)
    if number > 1:
        parts = [", ".join(np.array(models)[part_of == part]) for part in range(number)]
        raise InputError(
            f"no chain of games joins these groups, so that no scale holds them all: {'; '.join(parts)}. "
            "Add games between them, or score each alone"
        )


def _unbounded(models: Sequence[str], results: np.ndarray) -> tuple[str, ...]:
    """All but the largest group in which everybody has won against everybody by some chain of games."""
    from scipy.sparse import csgraph

    number, part_of = csgraph.connected_components(results > 0, connection="strong")
    largest = np.bincount(part_of, minlength=number).argmax()
    return tuple(
        model for model, part in zip(models, part_of, strict=True) if part != largest or number == len(models)
    )


# --- the fit ---------------------------------------------------------------------------------------------------------


def _design(
    models: list[str],
    games: Sequence[Game],
    fixed: Mapping[str, float],
    zero: float,
    controls: Sequence[Control],
) -> _Design:
    at = {name: place for place, name in enumerate(models)}
    sides = np.array([(at[one.a], at[one.b]) for one in games])  # [n, 2]
    signs = np.eye(len(models))[sides[:, 0]] - np.eye(len(models))[sides[:, 1]]  # [n, M]
    rows = np.concatenate([signs, _style(games, controls)], 1) if controls else signs
    cells, first, cell_of = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    prompts = {name: place for place, name in enumerate(dict.fromkeys(one.prompt for one in games))}
    known = np.array([(fixed[name] - zero) / POINTS if name in fixed else 0.0 for name in models])
    free = [name for name in models if name not in fixed]
    columns = [at[name] for name in free] + list(range(len(models), rows.shape[1]))
    return _Design(
        models=models,
        free=free,
        table=cells[:, columns],
        offset=signs[first] @ known,
        cell_of=cell_of.reshape(-1),
        prompt_of=np.array([prompts[one.prompt] for one in games]),
        won=np.array([one.p_a for one in games]),
        num_prompts=len(prompts),
    )


def _style(games: Sequence[Game], controls: Sequence[Control]) -> np.ndarray:
    """Differences of style, [n, d], in units of their size; not centred, so that a and b can change places."""
    texts = [one.texts for one in games if one.texts is not None]
    if len(texts) < len(games):
        raise InputError(
            f"{len(games) - len(texts)} of {len(games)} games have no texts (answer_a, answer_b), which style needs"
        )
    found = differences([style_of(a) for a, _ in texts], [style_of(b) for _, b in texts], controls)
    size = np.sqrt((found**2).mean(0))
    return found / np.where(size > 0, size, 1.0)


def _fit(design: _Design, times: np.ndarray, start: np.ndarray | None) -> np.ndarray:
    """Strengths of the free models and weights of style, where prompts count so many times: [F + d]."""
    number = len(design.table)
    each = times[design.prompt_of]  # [n]
    played = np.bincount(design.cell_of, each, minlength=number)  # [C]
    won = np.bincount(design.cell_of, each * design.won, minlength=number)
    kept = played > 0
    return fit(
        design.table[kept],
        won[kept] / played[kept],
        played[kept],
        ridge=RIDGE,
        start=start,
        offset=design.offset[kept],
    )


def _bootstrap(design: _Design, best: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """The fit of so many samples of prompts, [draws, F + d]."""
    rng = np.random.default_rng(seed)
    number = design.num_prompts
    shares = np.full(number, 1 / number)
    return np.array([_fit(design, rng.multinomial(number, shares), best) for _ in range(draws)])


def _strengths(design: _Design, fits: np.ndarray, fixed: Mapping[str, float], zero: float) -> np.ndarray:
    """Points of all models, [r, M]."""
    place = {name: at for at, name in enumerate(design.free)}
    return np.stack(
        [
            np.full(len(fits), fixed[name]) if name in fixed else zero + POINTS * fits[:, place[name]]
            for name in design.models
        ],
        1,
    )


# --- what came out ---------------------------------------------------------------------------------------------------


def _standings(
    models: Sequence[str],
    results: np.ndarray,
    scale: np.ndarray,
    drawn: np.ndarray,
    fixed: Mapping[str, float],
) -> tuple[Standing, ...]:
    # a model at a time: all pairs of a thousand models in every draw do not fit into memory
    ranks = np.stack([1 + (drawn > mine[:, None]).sum(1) for mine in drawn.T], 1)  # [r, M]
    played = (results + results.T).sum(1)
    order: list[int] = np.argsort(-scale, kind="stable").tolist()
    found = []
    for rank, place in enumerate(order, 1):
        best, worst = percentiles(ranks[:, place])
        found.append(
            Standing(
                model=models[place],
                rank=rank,
                best_rank=math.floor(best),
                worst_rank=math.ceil(worst),
                strength=Figure(float(scale[place]), round(played[place]), *percentiles(drawn[:, place])),
                won=float(results[place].sum() / played[place]),
                games=round(played[place]),
                anchored=models[place] in fixed,
            )
        )
    return tuple(found)


def _pairings(design: _Design, games: Sequence[Game], best: np.ndarray) -> tuple[Pairing, ...]:
    chances = sigmoid(design.table @ best + design.offset)[design.cell_of]  # [n], of a
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one, chance in zip(games, chances.tolist(), strict=True):
        if one.a < one.b:
            found.setdefault((one.a, one.b), []).append((one.p_a, chance))
        else:
            found.setdefault((one.b, one.a), []).append((1 - one.p_a, 1 - chance))
    return tuple(
        Pairing(a, b, len(some), sum(won for won, _ in some), sum(chance for _, chance in some))
        for (a, b), some in sorted(found.items())
    )
