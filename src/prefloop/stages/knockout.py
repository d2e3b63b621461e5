"""Knockouts among the completions of several prompts, round by round."""

from collections.abc import Sequence

from prefloop.interfaces import Comparer, PairTask
from prefloop.records import Comparison, Group, Refusal
from prefloop.selection import Rounds, different_ids, knockout


def play(annotator: Comparer, groups: Sequence[Group]) -> list[Comparison | Refusal]:
    """What the annotator said about every match; the matches of a round are put to it together."""
    completions = {one.id: one for group in groups for one in group.completions}
    running: list[tuple[Group, Rounds, list[tuple[str, str]]]] = []
    for group in groups:
        ids = different_ids(group)
        if len(ids) > 1:
            rounds = knockout(ids)
            running.append((group, rounds, next(rounds)))
    rows: list[Comparison | Refusal] = []
    while running:
        tasks = [
            PairTask(group.prompt, completions[a], completions[b])
            for group, _, matches in running
            for a, b in matches
        ]
        said = list(annotator.compare(tasks))
        rows += said
        verdicts = _means(said)
        running = [
            (group, rounds, following)
            for group, rounds, _ in running
            if (following := _next(rounds, verdicts)) is not None
        ]
    return rows


def _means(rows: Sequence[Comparison | Refusal]) -> dict[tuple[str, str], float]:
    """Mean P(a is better) over the votes on each match."""
    votes: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if isinstance(row, Comparison):
            votes.setdefault((row.a, row.b), []).append(row.p_a)
    return {match: sum(values) / len(values) for match, values in votes.items()}


def _next(rounds: Rounds, verdicts: dict[tuple[str, str], float]) -> list[tuple[str, str]] | None:
    try:
        return rounds.send(verdicts)
    except StopIteration:
        return None
