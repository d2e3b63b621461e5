"""Which completions of a group an annotator is asked about."""

import itertools
from typing import NamedTuple

import numpy as np

from prefloop import selection
from prefloop.config import Experiment
from prefloop.interfaces import PairTask
from prefloop.records import Group
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


def proposed_pair(x: Experiment, group: Group, scores: dict[str, float] | None) -> Proposal | None:
    """The two worth asking about: by the reward model's scores, but in a share of prompts by chance; None where there are no
    two."""
    seed, share = stage_seed(x, "propose"), x.annotate.random_share
    by_scores = selection.propose(group, scores, x.annotate.propose, seed) if scores else None
    by_chance = selection.propose(group, None, "random", seed)
    if by_chance is None or (scores and by_scores is None and not share):
        return None
    is_chance = by_scores is None or _draw(x, group) < share
    choice = by_chance if is_chance else by_scores
    assert choice is not None, "one of the two there is"
    task = PairTask(group.prompt, group.completions[choice.chosen], group.completions[choice.rejected])
    number = len(selection.different_ids(group))
    even = 1 / (number * (number - 1) / 2)
    if by_scores is None:
        return Proposal(task, "random", None, even)
    is_best = {choice.chosen, choice.rejected} == {by_scores.chosen, by_scores.rejected}
    probability = share * even + (1 - share) * is_best
    return Proposal(
        task,
        "random" if is_chance else x.annotate.propose,
        None if is_chance else by_scores.margin,
        probability,
    )


def _draw(x: Experiment, group: Group) -> float:
    """A number from 0 to 1 that belongs to the prompt."""
    seed = [stage_seed(x, "random_share"), int(group.prompt.id, 16)]
    return float(np.random.default_rng(seed).random())


def why_not_asked(group: Group) -> str:
    """Why there was nothing to ask about a group."""
    if len(group.completions) < 2:
        return "short"
    return "identical" if len({one.text for one in group.completions}) < 2 else "tie"
