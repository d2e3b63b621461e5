"""What a new version of the guidelines changed: agreement and gold answers under each version that people had read.

A judgement belongs to the version that its author had acknowledged. Versions follow each other in time, and so do tasks and
policies: a difference says when, not why.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from prefloop import agreement
from prefloop.agreement import Measure
from prefloop.web.annotators import Known, Share, gold_verdicts, share
from prefloop.web.questions import Answers, Facts, asked_of

MOST_VERSIONS = 6
"""The newest ones that are compared."""
Change = Literal["higher", "lower"]


@dataclass(frozen=True)
class Agreed:
    """Agreement on one question under one version."""

    kind: str
    name: str
    raw: Measure | None
    """Of choices alone."""
    figure: Measure
    """Alpha; of rankings, tau-b."""
    change: Change | None
    """From the version before, where the intervals of `raw`, or else of `figure`, do not touch."""

    @property
    def told(self) -> Measure:
        """What `change` is about."""
        return self.figure if self.raw is None else self.raw


@dataclass(frozen=True)
class Version:
    """What was judged under one version of the guidelines."""

    number: int
    """0: nobody had read any."""
    published_at: int | None
    judgements: int
    gold: Share | None
    gold_change: Change | None
    agreed: tuple[Agreed, ...]

    def on(self, kind: str, name: str) -> Agreed | None:
        """Agreement on a question; None where it was not asked."""
        return next((one for one in self.agreed if (one.kind, one.name) == (kind, name)), None)


def questions_in(versions: Sequence[Version]) -> list[tuple[str, str]]:
    """Kind and name of all questions of some versions."""
    return sorted({(one.kind, one.name) for version in versions for one in version.agreed})


def versions_of(facts: Facts, usual: Facts, known: Known, published: Mapping[int, int]) -> list[Version]:
    """The versions under which people judged, oldest first; none where there is only one.

    `usual` are the facts without gold and repeats, `published` says when each version was.
    """
    people: dict[int, list[sa.Row[Any]]] = defaultdict(list)
    for one in usual:
        if one.by == "human":
            people[one.guideline_version].append(one)
    gold: dict[int, list[bool]] = defaultdict(list)
    for one, is_right in gold_verdicts(facts, known):
        if one.by == "human":
            gold[one.guideline_version].append(is_right)
    numbers = sorted(people.keys() | gold.keys())[-MOST_VERSIONS:]
    if len(numbers) < 2:
        return []
    found: list[Version] = []
    for number in numbers:
        before = found[-1] if found else None
        right = gold.get(number, [])
        of_gold = share(sum(right), len(right)) if right else None
        found.append(
            Version(
                number,
                published.get(number),
                len(people.get(number, ())) + len(right),
                of_gold,
                _change(before.gold if before else None, of_gold),
                _agreed(asked_of(people.get(number, ())), before),
            )
        )
    return found


def _agreed(answers: Answers, before: Version | None) -> tuple[Agreed, ...]:
    earlier = {(one.kind, one.name): one.told for one in before.agreed} if before else {}
    found = []
    for (kind, name), ratings in answers.nominal.items():
        raw = agreement.raw_agreement(ratings)
        alpha = agreement.krippendorff_alpha(ratings, level="nominal")
        found.append(Agreed(kind, name, raw, alpha, _change(earlier.get((kind, name)), raw)))
    for (kind, name), ratings in answers.ordinal.items():
        alpha = agreement.krippendorff_alpha(ratings, level="ordinal")
        found.append(Agreed(kind, name, None, alpha, _change(earlier.get((kind, name)), alpha)))
    for (kind, name), rankings in answers.rankings.items():
        tau = agreement.kendall_tau_b(rankings)
        found.append(Agreed(kind, name, None, tau, _change(earlier.get((kind, name)), tau)))
    return tuple(sorted(found, key=lambda one: one.kind))


def _change(before: Measure | Share | None, now: Measure | Share | None) -> Change | None:
    """None too where an interval is missing. Intervals of 95 % that do not touch are surer than 95 %."""
    if before is None or now is None:
        return None
    if before.low is None or before.high is None or now.low is None or now.high is None:
        return None
    return "higher" if now.low > before.high else "lower" if now.high < before.low else None
