"""The pairs that a model is judged on: from a file of any format with pairs, rankings or scores, or from an artefact.

A ranking of K completions, or K scores, are all their pairs, not best against worst alone. Every row and every pair
that does not come out is counted.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from pathlib import Path

from prefloop.config import SourceSection
from prefloop.containers import HUB
from prefloop.data import BUILTIN
from prefloop.interfaces import InputError
from prefloop.records import PreferencePair
from prefloop.stages.models import split_pairs
from prefloop.stages.shared import read_pairs
from prefloop.store import Workspace, read_records
from prefloop.verdicts import read_rankings

PAIRS_FILE = "pairs.jsonl"


@dataclass(frozen=True)
class CardPairs:
    """Pairs, and where the rows they come from went: `rows_in` = `rows_out` + dropped, always."""

    name: str
    pairs: tuple[PreferencePair, ...]
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    """Rows without any pair, by reason."""
    pairs_dropped: Mapping[str, int]
    """Pairs of the other rows that tell nothing, by reason."""


def read_card_pairs(workspace: Workspace, source: SourceSection) -> CardPairs:
    """The pairs that a source means, where its path may be the name of an artefact with pairs.

    Raises InputError and Unavailable.
    """
    if not source.path.startswith((HUB, BUILTIN)) and not Path(source.path).exists():
        found = _of_artefact(workspace, source.path, source.limit)
        if found is not None:
            return found
    loaded = read_rankings(source)
    telling = [one for one in loaded.rows if one.pairs]
    pairs = tuple(pair for one in telling for pair in one.pairs)
    silent = sum(comb(len(one.group.completions), 2) for one in telling) - len(pairs)
    all_bad = Counter(all_bad=len(loaded.rows) - len(telling))
    return CardPairs(
        name=source.path,
        pairs=pairs,
        rows_in=loaded.rows_in,
        rows_out=len(telling),
        dropped=dict(sorted((Counter(loaded.dropped) + all_bad).items())),
        pairs_dropped={"not_told_apart": silent} if silent else {},
    )


def _of_artefact(workspace: Workspace, name: str, limit: int | None) -> CardPairs | None:
    """The pairs of an artefact; None where there is none of this name."""
    try:
        artefact = workspace.find(name)
    except InputError:
        return None
    if not (artefact.path / PAIRS_FILE).is_file():
        raise InputError(
            f"{artefact.name}: holds no pairs; name an artefact of kind select or import, or a file"
        )
    pairs = read_records(artefact.path / PAIRS_FILE, PreferencePair)[:limit]
    return CardPairs(artefact.name, tuple(pairs), len(pairs), len(pairs), {}, {})


def trained_prompts(workspace: Workspace, model: str) -> frozenset[str]:
    """Ids of the prompts that a reward model of the workspace was trained on; none for other models."""
    try:
        artefact = workspace.find(model)
        made_from = [workspace.find(key) for key in artefact.manifest["inputs"].get("pairs", ())]
    except InputError:  # a folder, or pairs that have been deleted since
        return frozenset()
    share = artefact.manifest["config"].get("validation_share", 0.0)
    training, _ = split_pairs(read_pairs(made_from), share)
    return frozenset(one.prompt.id for one in training)
