"""Win rates from verdicts on pairs of answers to the same prompts, with their lengths beside them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from prefloop.interfaces import InputError
from prefloop.scoring.figures import Figure, Scored, clustered_figure, text_of
from prefloop.scoring.reading import Row, absent, has, need, number, rows_of, unknown_format

NAME = "win_rate"
FORMATS = {"verdicts": ("prompt", "model_a", "model_b", "p_a")}


def score(path: str, *, draws: int, models: Sequence[str] = ()) -> list[Scored]:
    """Each model against each baseline of a file, or the models named. Raises InputError."""
    found: dict[tuple[str, str, str], list[tuple[str, Row]]] = {}
    for place, row in rows_of(path):
        if not has(row, FORMATS["verdicts"]):
            raise unknown_format(path, row, FORMATS)
        names = (str(need(row, "model_b", place)), str(need(row, "model_a", place)))
        found.setdefault((*names, str(row.get("judge") or "unknown")), []).append((place, row))
    if missing := set(models) - {model for model, _, _ in found}:
        raise InputError(f"{path}: no verdicts on {', '.join(sorted(missing))}")
    return [
        _scored(model, baseline, judge, rows, draws)
        for (model, baseline, judge), rows in found.items()
        if not models or model in models
    ]


def _scored(model: str, baseline: str, judge: str, rows: Sequence[tuple[str, Row]], draws: int) -> Scored:
    won, prompts, longer, with_texts = [], [], [], []
    dropped: Counter[str] = Counter()
    for place, row in rows:
        if absent(row["p_a"]):
            dropped["no_verdict"] += 1
            continue
        p_a = number(row, "p_a", place)
        if not 0 <= p_a <= 1:
            raise InputError(f"{place}: p_a is {p_a:g}, not a probability")
        won.append(1 - p_a)
        prompts.append(str(need(row, "prompt", place)))
        if "answer_a" in row and "answer_b" in row:
            longer.append(len(str(row["answer_b"] or "")) - len(str(row["answer_a"] or "")))
            with_texts.append(prompts[-1])
    name = f"{NAME}[{text_of({'judge': judge, 'baseline': baseline})}]"
    found = Scored(name, model, {}, len(rows), dropped)
    if not won:
        found.figures["win_rate"] = Figure(None, 0)
        return found
    values = np.array(won)
    found.figures["win_rate"] = clustered_figure(values, prompts, draws=draws, times=100)
    for name, share in (("wins", values > 0.5), ("ties", values == 0.5), ("losses", values < 0.5)):
        found.figures[name] = Figure(int(share.sum()), len(values))
    if longer:
        gaps = np.array(longer, dtype=np.float64)
        found.figures["characters_more"] = clustered_figure(gaps, with_texts, draws=draws)
    return found
