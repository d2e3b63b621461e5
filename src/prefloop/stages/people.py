"""The loop's side of the label store: which questions people get, what they decided, and what becomes of their rounds."""

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefloop import selection
from prefloop.config import Experiment, HumanAnnotator
from prefloop.records import Group, Score
from prefloop.stages.asking import Proposal, all_pairs, proposals
from prefloop.store import Artefact, Workspace, read_json

if TYPE_CHECKING:
    from prefloop.annotate.human import Asked, Question

ROUND_FILE = "round.json"
"""In an artefact of judgements by people: which round of which project they are."""
RoundState = Literal["training", "evaluating", "promoted", "rejected"]
"""What the loop does with a round that is frozen."""
STORE_VARIABLE = "PREFLOOP_LABELS"
STORE_FILE = "labels.sqlite"


def default_store(workspace: Path) -> str:
    """The label store where none is named."""
    return os.environ.get(STORE_VARIABLE) or str(workspace / STORE_FILE)


def store_of(annotator: HumanAnnotator, workspace: Path) -> str:
    """The label store of an experiment."""
    return default_store(workspace) if annotator.store == "auto" else annotator.store


def project_of(x: Experiment, annotator: HumanAnnotator) -> str:
    """The project of an experiment; names of experiments may have capitals."""
    return annotator.project or re.sub(r"[^a-z0-9._-]", "-", x.name.lower())[:64]


def labels_per_prompt(x: Experiment, annotator: HumanAnnotator) -> int:
    """Labels of people that one prompt costs at most; a ranking is one, however many it ranks."""
    number = x.generate.num_completions
    questions = {"scores": number, "one_pair": 1, "ranking": 1}
    return questions.get(x.annotate.asks, number * (number - 1) // 2) * annotator.overlap


def asked_by(x: Experiment, workspace: Path, groups: Artefact, reward: Artefact | None) -> "Asked":
    """Who asks, for the round to keep."""
    from prefloop.annotate.human import Asked

    annotator = x.annotate.annotator
    assert annotator.kind == "human", "the caller knows"
    validation = (reward.stats.get("validation") if reward else None) or {}
    return Asked(
        store_of(annotator, workspace),
        project_of(x, annotator),
        policy=groups.manifest["inputs"].get("policy", ""),
        reward=reward.key if reward else "",
        reward_accuracy=validation.get("accuracy"),
    )


def questions(
    x: Experiment, groups: Sequence[Group], scores: Mapping[str, Score] | None
) -> "dict[str, list[Question]]":
    """What people are asked about each group of a label batch, by prompt."""
    found = proposals(x, groups, scores) if x.annotate.asks == "one_pair" else {}
    return {
        one.prompt.id: _of_proposal(found[one.prompt.id], scores)
        if one.prompt.id in found
        else _of_group(x, one)
        for one in groups
    }


def _of_group(x: Experiment, group: Group) -> "list[Question]":
    """What is asked about a group as a whole; nothing where it was to be one pair and there is none."""
    from prefloop.annotate.human import Question

    match x.annotate.asks:
        case "scores":
            return [Question(group.prompt, (one,), "all", probability=1.0) for one in group.completions]
        case "ranking":
            different = selection.different_ids(group)
            texts = tuple(one for one in group.completions if one.id in different)
            return [Question(group.prompt, texts, "all", probability=1.0)] if len(texts) > 1 else []
        case "all_pairs":
            return [
                Question(group.prompt, (one.a, one.b), "all", probability=1.0) for one in all_pairs(group)
            ]
        case _:
            return []


def _of_proposal(found: Proposal, scores: Mapping[str, Score] | None) -> "list[Question]":
    from prefloop.annotate.human import Question

    prompt, a, b = found.task.prompt, found.task.a, found.task.b
    reward_p = (
        None if scores is None else 1 / (1 + math.exp(min(scores[b.id].value - scores[a.id].value, 700.0)))
    )
    return [Question(prompt, (a, b), found.strategy, found.margin, found.probability, reward_p)]


# --- what people decided, and what becomes of rounds ---------------------------------------------------------------------


def decisions(x: Experiment, workspace: Workspace) -> Mapping[str, Literal["promote", "reject"]]:
    """What people decided about trained policies, by their key; nothing where there is no label store yet."""
    annotator = x.annotate.annotator
    if annotator.kind != "human":
        return {}
    place = store_of(annotator, workspace.root)
    if "://" not in place and not Path(place).expanduser().is_file():
        return {}
    from prefloop.labels import rounds
    from prefloop.labels.database import open_database

    with contextlib.closing(open_database(place)) as database:
        return database.read(lambda connection: rounds.decisions(connection, project_of(x, annotator)))


def round_of(judgements: Artefact) -> tuple[str, str] | None:
    """Project and id of the round that an artefact's judgements came from; None where people were not asked."""
    path = judgements.path / ROUND_FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    return found["project"], found["round"]
