"""Which disagreements reviewers get next: the queue of each kind, kept for a while, and who has been handed what.

Most of a queue is what disagrees most, a fixed share is drawn at random; which is which is never shown, but noted with
the verdict.
"""

import threading
from collections.abc import Hashable
from dataclasses import dataclass, field

import sqlalchemy as sa

from prefloop.agreement import QueueEntry, disagreement_queue
from prefloop.labels.adjudicating import Against, candidates, judged_by
from prefloop.labels.people import Person
from prefloop.labels.schema import adjudication
from prefloop.labels.streaming import newest_judgement
from prefloop.web.kept import Kept

QUEUE = 100
"""Disagreements that are put in order at a time."""
HANDED_MS = 10 * 60 * 1000
"""How long one reviewer has a task before another one may get it."""


@dataclass
class Disagreements:
    """The queues of all projects."""

    _kept: Kept[tuple[QueueEntry, ...]] = field(default_factory=Kept[tuple[QueueEntry, ...]])
    _handed: dict[str, tuple[str, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def queue(
        self,
        connection: sa.Connection,
        project_id: str,
        against: Against,
        round_number: int | None,
        *,
        anew: bool,
    ) -> tuple[QueueEntry, ...]:
        """Tasks to look at again, most telling first."""
        watermark = newest_judgement(connection, project_id)
        return self._kept.get(
            self._key(project_id, against, round_number),
            watermark,
            lambda: _ordered(connection, project_id, against, round_number, watermark),
            anew=anew,
        )

    def waiting(
        self,
        connection: sa.Connection,
        project_id: str,
        against: Against,
        round_number: int | None,
        reviewer: Person,
        *,
        anew: bool = False,
    ) -> list[QueueEntry]:
        """What of a queue this reviewer can take: not done meanwhile, and not judged by themselves."""
        found = self.queue(connection, project_id, against, round_number, anew=anew)
        ids = [one.unit for one in found]
        done = set(
            connection.execute(
                sa.select(adjudication.c.task_id).where(adjudication.c.task_id.in_(ids))
            ).scalars()
        )
        out = done | judged_by(connection, reviewer, ids)
        left = [one for one in found if one.unit not in out]
        return (
            left
            if left or anew or not found
            else self.waiting(connection, project_id, against, round_number, reviewer, anew=True)
        )

    def hand_out(self, waiting: list[QueueEntry], reviewer: Person, now: int) -> QueueEntry | None:
        """The first that no other reviewer is at; if all are taken, the first."""
        with self._lock:
            self._handed = {id: of for id, of in self._handed.items() if of[1] > now - HANDED_MS}
            free = [one for one in waiting if self._handed.get(one.unit, (reviewer.id, 0))[0] == reviewer.id]
            chosen = (free or waiting or [None])[0]
            if chosen is not None:
                self._handed[chosen.unit] = (reviewer.id, now)
            return chosen

    @staticmethod
    def _key(project_id: str, against: Against, round_number: int | None) -> Hashable:
        return project_id, against, round_number


def _ordered(
    connection: sa.Connection, project_id: str, against: Against, round_number: int | None, seed: int
) -> tuple[QueueEntry, ...]:
    found = candidates(connection, project_id, against, round_number=round_number)
    return disagreement_queue(
        [one.task_id for one in found],
        [one.people for one in found],
        [one.other for one in found],
        [one.confidence for one in found],
        num_entries=QUEUE,
        seed=seed,
    )
