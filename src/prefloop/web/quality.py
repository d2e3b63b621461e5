"""How good the labels of a project are: what the quality dashboard shows, computed from facts.

What is computed of people together is in `questions`, of each in `annotators`, of guidelines in `drift`.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.agreement import LengthBias, SideBias
from prefloop.labels import oversight
from prefloop.labels.browsing import Filter
from prefloop.labels.guidelines import guidelines_of
from prefloop.labels.publish import project_config
from prefloop.labels.streaming import newest_judgement
from prefloop.web.annotators import PersonQuality, lengths_of, people_of, sides_of
from prefloop.web.drift import Version, versions_of
from prefloop.web.questions import Facts, Question, questions_of

DAYS_SHOWN = 30
DAY_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True)
class Quality:
    """What the dashboard shows."""

    watermark: int
    """The newest judgement when it was computed."""
    computed_at: int
    judgements: int
    is_partial: bool
    """Whether there are more than the newest ones that were looked at."""
    questions: tuple[Question, ...]
    people: tuple[PersonQuality, ...]
    side: SideBias | None
    length: LengthBias | None
    days: tuple[tuple[str, int], ...]
    """Judgements a day, the last ones."""
    versions: tuple[Version, ...]
    """Of the guidelines, where people judged under several."""


def quality_of(connection: sa.Connection, now: int, wanted: Filter) -> Quality:
    """The figures on a filter, from the store as it is."""
    found = oversight.facts(connection, wanted)
    granted = oversight.granted_answers(connection, wanted.project_id)
    # an answer that was right after all, on a task that is known otherwise, says nothing
    facts = [one for one in found if not one.is_gold or (one.task_id, one.annotator_id) not in granted]
    known = oversight.known_answers(connection, wanted.project_id)
    published = {one.version: one.created_at for one in guidelines_of(connection, wanted.project_id)}
    names = oversight.names_of(connection, wanted.project_id)
    usual = [one for one in facts if not one.is_gold and one.repeat_of is None]
    people = [one for one in usual if one.by == "human"]
    judges = [one for one in usual if one.by == "ai"]
    sides, lengths = sides_of(judges) | sides_of(people), lengths_of(judges) | lengths_of(people)
    return Quality(
        watermark=newest_judgement(connection, wanted.project_id),
        computed_at=now,
        judgements=len(facts),
        is_partial=len(found) >= oversight.MOST_FACTS,
        questions=tuple(questions_of(people, _choices(connection, wanted.project_id))),
        people=tuple(people_of(facts, usual, known, names, sides, lengths, wanted.annotator_id)),
        side=sides.get(None) if people else None,
        length=lengths.get(None) if people else None,
        days=_days(facts, now),
        versions=tuple(versions_of(facts, usual, known, published)),
    )


def _choices(connection: sa.Connection, project_id: str) -> tuple[str, ...]:
    """What people can choose from."""
    config = project_config(connection, project_id)
    return ("a", "b", *(("tie",) if config.ties else ()), *(("both_bad",) if config.both_bad else ()))


def _days(facts: Facts, now: int) -> tuple[tuple[str, int], ...]:
    counts = Counter(one.created_at // DAY_MS for one in facts)
    if not counts:
        return ()
    today = now // DAY_MS
    first = max(min(counts), today - DAYS_SHOWN + 1)
    return tuple(
        (time.strftime("%m-%d", time.gmtime(day * DAY_MS / 1000)), counts.get(day, 0))
        for day in range(first, today + 1)
    )


def kept_figures(quality: Quality) -> dict[str, dict[str, Any]]:
    """What is kept of each person from day to day, and shown to themselves."""
    found = {}
    for one in quality.people:
        figures: dict[str, Any] = {"judgements": one.judgements, "flags": [flag.rule for flag in one.flags]}
        figures |= {"computed_at": quality.computed_at, "watermark": quality.watermark}
        if one.consensus is not None:
            figures["agreement"] = one.consensus.value
            figures["agreement_interval"] = [one.consensus.low, one.consensus.high]
            figures["agreement_n"] = one.consensus.of
        for name, share in (("gold", one.gold), ("repeats", one.repeats)):
            if share is not None:
                figures |= {name: share.value, f"{name}_n": share.of}
        if one.speed is not None:
            figures |= {"median_ms": one.speed.median_ms, "too_fast": one.speed.too_fast}
        found[one.id] = figures
    return found
