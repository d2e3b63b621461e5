"""Which completions of a group an annotator is asked about."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from prefloop import selection
from prefloop.config import Experiment
from prefloop.interfaces import PairTask
from prefloop.records import Group, Score
from prefloop.stages.shared import stage_seed


class Proposal(NamedTuple):
    """Two completions to compare, and how they were come by."""

    task: PairTask
    strategy: str
    margin: float | None
    """By the reward model's scores, where it chose."""
    probability: float
    """Of these two having been chosen among all of their group."""


def all_pairs(group: Group) -> list[PairTask]:
    """Every two completions with different texts."""
    pairs = itertools.combinations(group.completions, 2)
    return [PairTask(group.prompt, a, b) for a, b in pairs if a.text != b.text]


def proposals(
    x: Experiment, groups: Sequence[Group], scores: Mapping[str, Score] | None
) -> dict[str, Proposal]:
    """The two worth asking about in each group of a label batch, by prompt: by the reward model's scores, but in a share of
    prompts by chance. Groups without two different texts, or without two different scores where all goes by these, have
    none."""
    seed = stage_seed(x, "propose")
    drawn = {one.prompt.id: selection.propose(one, None, "random", seed) for one in groups}
    askable = [one for one in groups if drawn[one.prompt.id] is not None]
    by_chance = _by_chance(x, askable)
    share = len(by_chance) / len(askable) if askable else 0.0
    found: dict[str, Proposal] = {}
    for group in askable:
        id = group.prompt.id
        by_scores = _by_scores(x, group, scores, seed) if scores else None
        if scores and by_scores is None and not share:
            continue
        is_chance = by_scores is None or id in by_chance
        choice = drawn[id] if is_chance else by_scores
        assert choice is not None, "one of the two there is"
        number = len(selection.different_ids(group))
        even = 1 / (number * (number - 1) / 2)
        task = PairTask(group.prompt, group.completions[choice.chosen], group.completions[choice.rejected])
        if by_scores is None:
            found[id] = Proposal(task, "random", None, even)
            continue
        is_best = {choice.chosen, choice.rejected} == {by_scores.chosen, by_scores.rejected}
        found[id] = Proposal(
            task,
            "random" if is_chance else x.annotate.propose,
            None if is_chance else by_scores.margin,
            share * even + (1 - share) * is_best,
        )
    return found


def _by_scores(
    x: Experiment, group: Group, scores: Mapping[str, Score], seed: int
) -> selection.Choice | None:
    rule = x.annotate.propose
    mine = [scores[one.id] for one in group.completions]
    if rule == "thompson" or rule == "uncertainty":
        return selection.propose_by_heads(group, {one.completion_id: _heads(one) for one in mine}, rule, seed)
    return selection.propose(group, {one.completion_id: one.value for one in mine}, rule, seed)


def _heads(score: Score) -> list[float]:
    """The score of each head of an ensemble."""
    return [value for name, value in (score.parts or {}).items() if name.startswith("head_")]


def _by_chance(x: Experiment, groups: Sequence[Group]) -> frozenset[str]:
    """Prompts whose two are drawn by chance: the share of them, rounded up, whatever their order."""
    number = math.ceil(round(x.annotate.random_share * len(groups), 6))  # 0.1 x 30 is a little more than 3
    return frozenset(sorted((one.prompt.id for one in groups), key=lambda id: (_draw(x, id), id))[:number])


def _draw(x: Experiment, prompt_id: str) -> float:
    """A number from 0 to 1 that belongs to the prompt."""
    return float(np.random.default_rng([stage_seed(x, "random_share"), int(prompt_id, 16)]).random())


def why_not_asked(group: Group) -> str:
    """Why there was nothing to ask about a group."""
    if len(group.completions) < 2:
        return "short"
    return "identical" if len({one.text for one in group.completions}) < 2 else "tie"
