"""AlpacaEval 2: win rates of a model against a baseline, plain and at equal length.

One preference an instruction, 1 where the judge sees the baseline ahead and 2 where the model. Instructions are told apart
by their text or their number, so that a missing row shifts nothing. The length-controlled rate is a logistic regression
without intercept on length, difficulty and a constant (arXiv:2404.04475), here by Newton's method, with the regulariser rows
of a prepared folder.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.alpaca_annotations import (
    COLUMNS,
    is_swapped,
    parsed,
    preference_from,
    preference_of,
)
from prefloop.scoring.figures import (
    Figure,
    Scored,
    counted,
    interval,
    mean_figure,
    percentiles,
    resampled,
    text_of,
)
from prefloop.scoring.logistic import fit, sigmoid
from prefloop.scoring.paired import UNPAIRED, beside, lengths, note_unpaired, outcomes
from prefloop.scoring.reading import Row, has, need, number, rows_of, unknown_format, whole

NAME = "alpaca_eval_2"
JUDGE, BASELINE, PROMPTS = "weighted_alpaca_eval_gpt4_turbo", "gpt4_1106_preview", 805
"""What the bare name stands for."""
PROMPTS_DIGEST = "20f6c348"
"""Of the 805 instructions: as many others do not go by the bare name."""
GAMED_WEIGHT = 0.1
"""Of a regulariser row: 0.2 for its two variants together."""
FORMATS = {
    "annotations": COLUMNS,
    "compact": ("model", "index", "preference", "len_baseline", "len_model"),
    "log-probabilities": ("model", "index", "top_logprobs", "preference"),
    "weights": ("model", "np.tanh(std_delta_len)", "instruction_difficulty"),
}
CONSTANT = "not_gamed_baseline.astype(float)"
"""Column of the constant in a file of weights."""
Key = str | int


# --- what is judged --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """What the length-controlled rate needs beside verdicts, from a folder of the user's own."""

    difficulty: Mapping[Key, float]
    """Of each instruction, by its number and, where the prompts are there, by its text."""
    instructions: Mapping[int, str]
    """Texts by number; empty without the prompts."""
    gamed: np.ndarray
    """Regulariser rows: tanh of the standardised length difference, difficulty, label; [R, 3]."""

    @property
    def all_difficulties(self) -> np.ndarray:
        """One of each instruction, [N]."""
        return np.array([value for key, value in self.difficulty.items() if isinstance(key, int)])


def load_inputs(folder: Path) -> Inputs:
    """Reads `instruction_difficulty.csv`, `gamed_rows.csv` and, where it is, `prompts_and_baseline.jsonl(.gz)`."""
    difficulty: dict[Key, float] = {}
    for place, row in rows_of(str(folder / "instruction_difficulty.csv")):
        difficulty[whole(row, "index", place)] = number(row, "difficulty", place)
    names = ("prompts_and_baseline.jsonl", "prompts_and_baseline.jsonl.gz")
    prompts = next((folder / one for one in names if (folder / one).is_file()), None)
    instructions = {}
    for place, row in rows_of(str(prompts)) if prompts else ():
        instructions[whole(row, "index", place)] = str(need(row, "instruction", place))
    difficulty |= {instructions[index]: difficulty[index] for index in instructions if index in difficulty}
    gamed = [
        (
            math.tanh(number(row, "std_delta_len", place)),
            number(row, "instruction_difficulty", place),
            number(row, "preference", place),
        )
        for place, row in rows_of(str(folder / "gamed_rows.csv"))
    ]
    return Inputs(difficulty, instructions, np.array(gamed))


@dataclass(frozen=True)
class Verdicts:
    """One model against the baseline, a row an instruction."""

    model: str
    keys: tuple[Key, ...]
    preferences: np.ndarray
    """1 to 2, [n]."""
    length_gaps: np.ndarray
    """Characters of the baseline less those of the model, [n]."""
    lengths: np.ndarray
    """Characters of the model, [n]."""
    judge: str | None
    baseline: str | None
    dropped: Counter[str]
    rows_in: int

    @property
    def scores(self) -> np.ndarray:
        """Preferences from 0 to 1, [n]."""
        return self.preferences - 1

    def take(self, keys: Sequence[Key]) -> "Verdicts":
        """The rows of these instructions, in their order."""
        at = {key: place for place, key in enumerate(self.keys)}
        places = [at[key] for key in keys]
        return Verdicts(
            self.model, tuple(keys), self.preferences[places], self.length_gaps[places], self.lengths[places], self.judge,
            self.baseline, self.dropped, self.rows_in,
        )  # fmt: skip


def read_verdicts(path: str) -> list[Verdicts]:
    """The models of a file, in the order in which they come. Raises InputError."""
    models: dict[str, list[tuple[str, Row]]] = {}
    for place, row in rows_of(path):
        if has(row, FORMATS["annotations"]):
            models.setdefault(str(row.get("generator_2") or "model"), []).append((place, row))
        elif has(row, FORMATS["compact"]):
            models.setdefault(str(need(row, "model", place)), []).append((place, row))
        else:
            raise unknown_format(path, row, FORMATS)
    return [_verdicts(model, rows) for model, rows in models.items()]


def _verdicts(model: str, rows: Sequence[tuple[str, Row]]) -> Verdicts:
    found: dict[Key, tuple[float, float, float]] = {}
    dropped: Counter[str] = Counter()
    for place, row in rows:
        text = "instruction" in row
        key: Key = str(need(row, "instruction", place)) if text else whole(row, "index", place)
        if key in found:
            raise InputError(f"{place}: {model} has been judged on this instruction before; keep one row")
        value = preference_of(row, place)
        if value is None:
            dropped["no_preference"] += 1
            continue
        length = _length(row, 2, place)
        found[key] = value, _length(row, 1, place) - length, length
    values = np.array(list(found.values()), dtype=np.float64).reshape(-1, 3)
    return Verdicts(
        model,
        tuple(found),
        values[:, 0],
        values[:, 1],
        values[:, 2],
        _all_of("annotator", rows),
        _all_of("generator_1", rows),
        dropped,
        len(rows),
    )


def _all_of(column: str, rows: Sequence[tuple[str, Row]]) -> str | None:
    """Every value that the rows of a model have, so that one official row lends its name to no other; None without any."""
    found = {str(row.get(column) or "unknown") for _, row in rows}
    return None if found == {"unknown"} else ", ".join(sorted(found))


def _length(row: Row, side: int, place: str) -> float:
    """Characters of the baseline (1) or the model (2)."""
    if "output_1" in row:
        return len(str(row[f"output_{side}"] or ""))
    return number(row, ("len_baseline", "len_model")[side - 1], place)


# --- equal length ----------------------------------------------------------------------------------------------------


def standardised(gaps: np.ndarray) -> np.ndarray:
    """tanh of the length differences over their standard deviation, [n]."""
    deviation = gaps.std(ddof=1) if len(gaps) > 1 else 0.0
    return np.tanh(gaps / deviation) if deviation else np.zeros_like(gaps)


def lc_win_rate(
    scores: np.ndarray, gaps: np.ndarray, difficulty: np.ndarray | None, gamed: np.ndarray | None
) -> float:
    """Win rate in percent that the regression predicts at equal length, from scores and gaps [n].

    `difficulty` [n] and the regulariser rows `gamed` [R, 3] may be left out; the number is another one then.
    """
    columns = [standardised(gaps), np.ones_like(gaps)]
    if difficulty is not None:
        columns.insert(1, difficulty)
    features, labels, weights = np.stack(columns, 1), scores, np.ones(len(scores))
    if gamed is not None:
        lengths, hard, gamed_labels = gamed.T
        rows = [lengths, np.zeros_like(lengths)]
        if difficulty is not None:
            rows.insert(1, hard)
        features = np.concatenate([features, np.stack(rows, 1)])
        labels = np.concatenate([labels, gamed_labels])
        weights = np.concatenate([weights, np.full(len(gamed), GAMED_WEIGHT)])
    found = fit(features, labels, weights)
    at_equal_length = found[-1] + (found[1] * difficulty if difficulty is not None else 0.0)
    return float(100 * np.mean(sigmoid(at_equal_length * np.ones(len(scores)))))


def from_weights(weight_difficulty: float, constant: float, difficulties: np.ndarray) -> float:
    """The same rate from published weights."""
    return float(100 * np.mean(sigmoid(constant + weight_difficulty * difficulties)))


# --- scores ----------------------------------------------------------------------------------------------------------


def benchmark_name(verdicts: Verdicts) -> str:
    """The bare name for the official judge, baseline and prompts only."""
    number = len(verdicts.keys)
    texts = [key for key in verdicts.keys if isinstance(key, str)]
    digest = hashlib.sha256(json.dumps(sorted(texts)).encode()).hexdigest()[:8]
    others = number == PROMPTS and len(texts) == number and digest != PROMPTS_DIGEST
    said = {
        "judge": (verdicts.judge, JUDGE),
        "baseline": (verdicts.baseline, BASELINE),
        "prompts": (f"{number}/{digest}" if others else number, PROMPTS),
    }
    others = {name: found or "unknown" for name, (found, official) in said.items() if found != official}
    return f"{NAME}[{text_of(others)}]" if others else NAME


def score(path: str, *, inputs: Inputs | None = None, draws: int, models: Sequence[str] = ()) -> list[Scored]:
    """Every model of a file, or those named. Raises InputError."""
    first = next(rows_of(path))[1]
    if has(first, FORMATS["weights"]):
        return _score_weights(path, _needed(inputs, path), models)
    if has(first, FORMATS["log-probabilities"]):
        return [score_logprobs(path, _needed(inputs, path))]
    found = [one for one in read_verdicts(path) if not models or one.model in models]
    if missing := set(models) - {one.model for one in found}:
        raise InputError(f"{path}: no rows of {', '.join(sorted(missing))}")
    return [score_verdicts(one, inputs, draws=draws) for one in found]


def _needed(inputs: Inputs | None, path: str) -> Inputs:
    if inputs is None:
        raise InputError(f"{path}: needs difficulties and prompts; name their folder with --inputs")
    return inputs


def score_verdicts(verdicts: Verdicts, inputs: Inputs | None, *, draws: int) -> Scored:
    """Win rates of one model."""
    scores, gaps = verdicts.scores, verdicts.length_gaps
    n = len(scores)
    scored = Scored(benchmark_name(verdicts), verdicts.model, {}, verdicts.rows_in, Counter(verdicts.dropped))
    figures = scored.figures
    figures["num_rows"] = counted(n, n)
    if not n:
        figures["win_rate"] = Figure(None, 0)
        scored.notes.append("no row has a preference")
        return scored
    figures["win_rate"] = mean_figure(scores, draws=draws, times=100)
    deviation = scores.std(ddof=1) if n > 1 else math.nan
    figures["standard_error"] = Figure(100 * deviation / math.sqrt(n) if n > 1 else None, n)
    figures["discrete_win_rate"] = mean_figure(discrete(scores), draws=draws, times=100)
    difficulty, gamed, missing = _beside(verdicts, inputs)
    name = "lc_win_rate" if difficulty is not None else "lc_win_rate[difficulty=none, regulariser=none]"

    def again(drawn: np.ndarray) -> float:
        hard = None if difficulty is None else difficulty[drawn]
        return lc_win_rate(scores[drawn], gaps[drawn], hard, gamed)

    rates = resampled(n, again, draws=draws)
    figures[name] = Figure(lc_win_rate(scores, gaps, difficulty, gamed), n, *percentiles(rates))
    figures[f"{name}_bootstrap_se"] = Figure(float(rates.std(ddof=1)), n)
    if difficulty is not None:
        without = lc_win_rate(scores, gaps, difficulty, None)
        figures["lc_win_rate_without_regulariser"] = Figure(without, n)
    if inputs is not None and difficulty is None:
        unknown = [key for key in verdicts.keys if key not in inputs.difficulty]
        scored.notes.append(
            f"{len(unknown)} of {n} instructions have no difficulty in the folder of --inputs, so that the rate is fitted "
            f"on length alone: {_some(unknown)}"
        )
    if missing:
        scored.notes.append(
            f"no verdict on {len(missing)} of {n + len(missing)} instructions: {_some(missing)}"
        )
    return scored


def discrete(scores: np.ndarray) -> np.ndarray:
    """Scores [n] as wins, ties and losses against the baseline: 1, one half, 0."""
    return np.where(scores > 0.5, 1.0, np.where(scores == 0.5, 0.5, 0.0))


def _some(keys: Sequence[Key]) -> str:
    shown = [repr(one[:60]) if isinstance(one, str) else str(one) for one in keys[:3]]
    return ", ".join(shown) + (", …" if len(keys) > 3 else "")


def _beside(
    verdicts: Verdicts, inputs: Inputs | None
) -> tuple[np.ndarray | None, np.ndarray | None, list[Key]]:
    """Difficulties [n] and regulariser rows, or None where instructions are unknown; and instructions without a verdict."""
    if inputs is None:
        return None, None, []
    if any(key not in inputs.difficulty for key in verdicts.keys):
        return None, None, []
    hard = np.array([inputs.difficulty[key] for key in verdicts.keys])
    same_kind = type(verdicts.keys[0])
    judged = set(verdicts.keys)
    missing = [key for key in inputs.difficulty if type(key) is same_kind and key not in judged]
    return hard, inputs.gamed, missing


def _score_weights(path: str, inputs: Inputs, models: Sequence[str]) -> list[Scored]:
    found = []
    for place, row in rows_of(path):
        model = str(need(row, "model", place))
        if models and model not in models:
            continue
        rate = from_weights(
            number(row, "instruction_difficulty", place),
            number(row, CONSTANT, place),
            inputs.all_difficulties,
        )
        n = len(inputs.all_difficulties)
        name = f"{NAME}[{text_of({'judge': 'unknown', 'baseline': 'unknown'})}]"  # a file of weights says neither
        found.append(Scored(name, model, {"lc_win_rate_from_weights": Figure(rate, n)}, 1))
    if missing := set(models) - {one.subject for one in found}:
        raise InputError(f"{path}: no rows of {', '.join(sorted(missing))}")
    return found


# --- the judge's own words -------------------------------------------------------------------------------------------


def score_logprobs(path: str, inputs: Inputs) -> Scored:
    """Whether stored preferences follow from the judge's log-probabilities and the order rule."""
    reproduced, predicted, decided = 0, 0, 0
    total = 0
    dropped: Counter[str] = Counter()
    for place, row in rows_of(path):
        total += 1
        index = whole(row, "index", place)
        if index not in inputs.instructions:
            raise InputError(f"{place}: no instruction number {index} in the folder of --inputs")
        logprobs, stored = _logprobs(row, place), preference_of(row, place)
        swapped = is_swapped(inputs.instructions[index])
        found = preference_from(logprobs, swapped=swapped)
        if found is None or stored is None:
            dropped["no_preference"] += 1
            continue
        reproduced += abs(found - stored) < 1e-6
        if abs(stored - 1.5) > 1e-6:
            decided += 1
            predicted += abs(found - stored) < abs(3 - found - stored)
    n = total - sum(dropped.values())
    figures = {
        "share_reproduced": Figure(reproduced / n if n else None, n),
        "share_swap_predicted": Figure(predicted / decided if decided else None, decided),
    }
    return Scored(NAME, "judge_logprobs", figures, total, dropped)


def _logprobs(row: Row, place: str) -> Mapping[str, float]:
    value = parsed(row["top_logprobs"], place)
    if not isinstance(value, Mapping):
        raise InputError(
            f"{place}: top_logprobs is {type(value).__name__}, not tokens with log-probabilities"
        )
    return {
        str(token): _logprob(logprob, f"{place}: top_logprobs, {token!r}") for token, logprob in value.items()
    }


def _logprob(value: object, what: str) -> float:
    """At most 0; minus infinity is the logarithm of no chance at all."""
    try:
        found = float(str(value))
    except ValueError:
        found = math.nan
    if not found <= 0:
        raise InputError(f"{what} is {value!r}, not the logarithm of a probability")
    return found


# --- two models ------------------------------------------------------------------------------------------------------


def compare(ours: Verdicts, theirs: Verdicts, inputs: Inputs | None, *, draws: int) -> Scored:
    """The paired difference of two models on the instructions that both were judged on; LC is fitted again in each draw."""
    both = [key for key in ours.keys if key in set(theirs.keys)]
    if not both:
        raise InputError(
            f"{ours.model} and {theirs.model} have no instruction in common; both must have texts, or both numbers"
        )
    for what, one, other in (
        ("judged by", ours.judge, theirs.judge),
        ("judged against", ours.baseline, theirs.baseline),
    ):
        if one and other and one != other:
            raise InputError(
                f"{ours.model} was {what} {one} and {theirs.model} {what} {other}: the difference is not theirs alone; "
                "give files that were judged alike"
            )
    a, b = ours.take(both), theirs.take(both)
    if not (theirs.judge and theirs.baseline):
        a = replace(a, judge=a.judge and theirs.judge, baseline=a.baseline and theirs.baseline)
    n = len(both)
    gaps = a.scores - b.scores
    subject = f"{ours.model} minus {theirs.model}"
    dropped = ours.dropped + theirs.dropped
    dropped[UNPAIRED] += len(ours.keys) + len(theirs.keys) - 2 * n
    scored = Scored(benchmark_name(a), subject, {}, ours.rows_in + theirs.rows_in, +dropped)
    scored.figures["paired_win_rate"] = mean_figure(gaps, draws=draws, times=100)
    difficulty, gamed, _ = _beside(a, inputs)
    name = "paired_lc_win_rate" + ("" if difficulty is not None else "[difficulty=none, regulariser=none]")

    def difference(drawn: np.ndarray) -> float:
        hard = None if difficulty is None else difficulty[drawn]
        rates = [lc_win_rate(one.scores[drawn], one.length_gaps[drawn], hard, gamed) for one in (a, b)]
        return rates[0] - rates[1]

    low, high = interval(n, difference, draws=draws)
    scored.figures[name] = Figure(difference(np.arange(n)), n, low, high)
    # a judge sure of both differs in the seventh digit: who won against the baseline where the other did not is what counts
    won = outcomes(discrete(a.scores) - discrete(b.scores))
    scored.figures |= beside(gaps, both) | won | lengths(a.lengths, b.lengths, draws=draws)
    note_unpaired(scored, n, len(ours.keys), len(theirs.keys))
    return scored
