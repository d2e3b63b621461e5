"""How far people agree, question by question: judgements become what `prefloop.agreement` takes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop import agreement
from prefloop.agreement import Measure, Ranking, Rating
from prefloop.labels.qualification import LEVELS

Facts = Sequence[sa.Row[Any]]
"""Judgements as `oversight.facts` gives them."""


@dataclass(frozen=True)
class Question:
    """How far people agree on one question of one kind of task. Figures that make no sense for it are None."""

    kind: str
    name: str
    raw: Measure | None
    alpha: Measure | None
    kappa: Measure | None
    ac1: Measure | None
    tau: Measure | None = None

    @property
    def basis(self) -> Measure:
        """The figure that says what all rest on."""
        found = self.raw or self.alpha or self.tau
        assert found is not None, "a question has one of them"
        return found


@dataclass(frozen=True)
class Answers:
    """What people said, by kind of task and question."""

    nominal: Mapping[tuple[str, str], list[Rating]]
    ordinal: Mapping[tuple[str, str], list[Rating]]
    rankings: Mapping[tuple[str, str], list[Ranking]]


def asked_of(people: Facts) -> Answers:
    """Every question that two people could disagree on, in order of appearance."""
    nominal: dict[tuple[str, str], list[Rating]] = defaultdict(list)
    ordinal: dict[tuple[str, str], list[Rating]] = defaultdict(list)
    rankings: dict[tuple[str, str], list[Ranking]] = defaultdict(list)
    for one in people:
        _ask(one, nominal, ordinal, rankings)
    return Answers(nominal, ordinal, rankings)


def questions_of(people: Facts, choices: tuple[str, ...]) -> list[Question]:
    """How far people agree on each question."""
    said = asked_of(people)
    found = [
        _nominal(key, ratings, choices if key[1] == "choice" else None)
        for key, ratings in said.nominal.items()
    ]
    found += [_ordinal(key, ratings) for key, ratings in said.ordinal.items()]
    found += [
        Question(*key, None, None, None, None, agreement.kendall_tau_b(given))
        for key, given in said.rankings.items()
    ]
    return sorted(found, key=lambda one: one.kind)


def _ask(one: sa.Row[Any], nominal: Any, ordinal: Any, rankings: Any) -> None:
    def rating(value: str | float, unit: str = "") -> Rating:
        return Rating(f"{one.task_id}{unit}", one.annotator_id, value, one.prompt_id)

    if one.choice is not None:
        nominal[one.kind, "choice"].append(rating(one.choice))
    if one.strength is not None:
        ordinal[one.kind, "strength"].append(rating(one.strength))
    if not (value := one.value):  # of a choice between two: no more is known
        return
    for name, rated in value.get("ratings", {}).items():
        ordinal[one.kind, name].append(rating(rated))
    for name, flagged in value.get("flags", {}).items():
        nominal[one.kind, name].append(rating("yes" if flagged else "no"))
    for name, level in value.get("levels", {}).items():
        ordinal[one.kind, "levels"].append(rating(LEVELS.index(level) + 1, f"/{name}"))
    for place, label in enumerate(value.get("labels", ())):
        nominal[one.kind, "labels"].append(rating(label, f"/{place}"))
    if ranks := _ranks(value):
        rankings[one.kind, "order"].append(Ranking(one.task_id, one.annotator_id, ranks, one.prompt_id))


def _ranks(value: Mapping[str, Any]) -> tuple[float, ...]:
    """Ranks by completion; what cannot be ranked comes last, together."""
    groups = [*value.get("groups", ()), value.get("unrankable", ())]
    rank_of = {place: rank for rank, group in enumerate(groups, start=1) for place in group}
    return tuple(float(rank_of[place]) for place in sorted(rank_of)) if "groups" in value else ()


def _nominal(key: tuple[str, str], ratings: list[Rating], values: tuple[str, ...] | None) -> Question:
    return Question(
        *key,
        agreement.raw_agreement(ratings),
        agreement.krippendorff_alpha(ratings, level="nominal"),
        agreement.fleiss_kappa(ratings),
        agreement.gwet_ac1(ratings, values=values),
    )


def _ordinal(key: tuple[str, str], ratings: list[Rating]) -> Question:
    return Question(*key, None, agreement.krippendorff_alpha(ratings, level="ordinal"), None, None)
