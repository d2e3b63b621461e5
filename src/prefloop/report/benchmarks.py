"""Benchmarks of a run's policies: each one's figure, and its paired difference from the start on the same questions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from prefloop.report.types import Estimate, StageRow
from prefloop.report.values import as_number
from prefloop.statistics import mean_interval
from prefloop.store import Workspace, read_json, read_rows
from prefloop.suites.reward_bench import key_of

RESAMPLES = 2000
PERCENT = frozenset({"accuracy", "win_rate", "question_mean", "mc2", "binary", "pass_at_1"})
"""Figures whose units are shares of one."""
MOST_CATEGORIES = 16
"""More of them make no picture."""
SHOWN = 6
"""Verdicts of each benchmark."""


@dataclass(frozen=True)
class BenchmarkScore:
    """One policy on one benchmark."""

    arm: str
    iteration: int | None
    value: Estimate | None
    n: int
    dropped: Mapping[str, int]
    gain: Estimate | None
    """Over the start, paired by question; None for the start, and where the benchmark compares with it anyway."""
    panel: Mapping[str, float | None] | None
    """What the answers look like; None where there are none."""
    notes: tuple[str, ...]
    categories: Mapping[str, float]
    """Mean of each category's questions."""


@dataclass(frozen=True)
class Verdict:
    """One question with what was answered, and what the judge made of it."""

    value: float
    """What it counts, as in the benchmark's units."""
    prompt: str
    answers: tuple[tuple[str, str], ...]
    """Who, and what."""
    words: str
    """Of the judge, or what became of a program."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the experiment."""

    suite: str
    """As the experiment calls it."""
    name: str
    """With judge, baseline, template and prompts."""
    figure: str
    scores: tuple[BenchmarkScore, ...]
    categories: Mapping[str, int]
    """With the number of their questions; empty where there are not several."""
    verdicts: tuple[Verdict, ...] = ()
    """On the last policy: where it did best and worst, in turn."""

    @property
    def is_percentage(self) -> bool:
        """Whether its figure lies between 0 and 100."""
        return self.figure in PERCENT


def benchmarks_of(
    workspace: Workspace, stages: Sequence[StageRow], confidence: float
) -> tuple[Benchmark, ...]:
    """Every benchmark that at least one policy was measured on, in the order of the experiment."""
    found: dict[str, list[StageRow]] = {}
    for one in stages:
        if one.kind == "suite" and one.status == "done":
            found.setdefault(one.stats["suite"], []).append(one)
    return tuple(_benchmark(workspace, name, rows, confidence) for name, rows in found.items())


def _benchmark(workspace: Workspace, suite: str, rows: Sequence[StageRow], confidence: float) -> Benchmark:
    units = {one.key: read_json(workspace.artefacts / f"suite-{one.key}" / "units.json") for one in rows}
    figure = rows[0].stats["figure"]
    times = 100 if figure in PERCENT else 1
    start = next((units[one.key] for one in rows if one.iteration is None), None)
    category_of = _categories(workspace, rows[-1])
    counts = Counter(category_of[key] for key in units[rows[-1].key] if key in category_of)
    if not 1 < len(counts) <= MOST_CATEGORIES:
        category_of, counts = {}, Counter[str]()
    return Benchmark(
        suite,
        rows[0].stats["scores"][0]["benchmark"],
        figure,
        tuple(_score(one, units[one.key], start, times, confidence, category_of) for one in rows),
        dict(sorted(counts.items())),
        tuple(_verdicts(workspace, rows[-1], units[rows[-1].key])),
    )


def _categories(workspace: Workspace, row: StageRow) -> Mapping[str, str]:
    path = workspace.artefacts / f"suite-{row.key}" / "categories.json"
    return read_json(path) if path.is_file() else {}


def _verdicts(workspace: Workspace, row: StageRow, units: Mapping[str, float]) -> Iterator[Verdict]:
    """The questions at both ends; those that count the same come in the order of the file."""
    found: dict[str, Verdict] = {}
    for one in read_rows(workspace.artefacts / f"suite-{row.key}" / "verdicts.jsonl"):
        key, prompt, answers, words = _told(one)
        if key in units:
            found.setdefault(key, Verdict(units[key], prompt, answers, words))
    ordered = sorted(found.values(), key=lambda one: one.value)
    shown = min(SHOWN, len(ordered))
    best, worst = ordered[::-1][: (shown + 1) // 2], ordered[: shown // 2]
    for place in range(max(len(best), len(worst))):
        yield from (*best[place : place + 1], *worst[place : place + 1])


def _told(row: Mapping[str, Any]) -> tuple[str, str, tuple[tuple[str, str], ...], str]:
    """Key, prompt, answers and the judge's words of a row in any benchmark's format."""
    if "instruction" in row:
        sides = tuple((row[f"generator_{side}"], row[f"output_{side}"]) for side in (1, 2))
        return row["instruction"], row["instruction"], sides, row["raw_completion"]
    if "answer_a" in row:
        sides = tuple((row[f"model_{side}"], row[f"answer_{side}"]) for side in ("a", "b"))
        return row["prompt"], row["prompt"], sides, row["reason"]
    if "chosen" in row:
        return _scored_answers(row)
    if "judgment" in row:
        return str(row["question_id"]), row["user_prompt"], (), row["judgment"]
    if "games" in row:
        words = "\n\n".join(one["judgment"] for one in row["games"])
        return row["question_id"], row["question_id"], (), words
    if "task_id" in row:
        return row["task_id"], row["task_id"], (("program", row["completion"]),), row["reason"]
    if "solution" in row:
        return row["question"], row["question"], ((row["model"], row["solution"]),), row["answer"]
    return row["question"], row["question"], (), ""


def _scored_answers(row: Mapping[str, Any]) -> tuple[str, str, tuple[tuple[str, str], ...], str]:
    """Of RewardBench: right and wrong answers with their scores."""
    if isinstance(row["chosen"], str):
        right, wrong = [row["chosen"]], [row["rejected"]]
        scores = [row["score_chosen"], row["score_rejected"]]
    else:
        right, wrong, scores = row["chosen"], row["rejected"], row["scores"]
    kinds = ["right"] * len(right) + ["wrong"] * len(wrong)
    told = [f"{kind}, {value:.3g}" for kind, value in zip(kinds, scores, strict=True)]
    return (
        key_of(row["subset"], row["id"]),
        row["prompt"],
        tuple(zip(told, [*right, *wrong], strict=True)),
        row["subset"],
    )


def _score(
    row: StageRow,
    units: Mapping[str, float],
    start: Mapping[str, float] | None,
    times: int,
    confidence: float,
    category_of: Mapping[str, str],
) -> BenchmarkScore:
    scored = row.stats["scores"][0]
    told = scored["figures"][row.stats["figure"]]
    value = as_number(told["value"])
    gain = None
    if start is not None and row.iteration is not None:
        both = [key for key in units if key in start]
        interval = mean_interval(
            [times * (units[key] - start[key]) for key in both], confidence=confidence, resamples=RESAMPLES
        )
        gain = None if interval is None else Estimate(interval["mean"], interval["low"], interval["high"])
    return BenchmarkScore(
        row.arm,
        row.iteration,
        None if value is None else Estimate(value, told.get("low"), told.get("high")),
        told["n"],
        scored["rows"]["dropped"],
        gain,
        row.stats["panel"],
        tuple(scored["notes"]),
        {name: times * fmean(values) for name, values in _grouped(units, category_of).items()},
    )


def _grouped(units: Mapping[str, float], category_of: Mapping[str, str]) -> Mapping[str, list[float]]:
    found: dict[str, list[float]] = {}
    for key, value in units.items():
        if key in category_of:
            found.setdefault(category_of[key], []).append(value)
    return found
