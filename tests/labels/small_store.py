"""A label store with a clock that tests set, a few words to work with it, and what must hold at every moment."""

import contextlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.labels import people, publish, queue
from prefloop.labels.database import Database, open_database
from prefloop.labels.people import Person
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import NewTask
from prefloop.labels.schema import judgement, lease, ledger, member, round_, task
from prefloop.records import Message, Prompt, file_completion

PROJECT = "project"
START_S = 1_700_000_000.0
QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where files are kept in memory, if they can be: a commit waits for the disk, and most tests are not about disks."""


@dataclass
class SmallStore:
    """One project of an open store."""

    database: Database
    clock: list[float]
    round_id: str | None = None

    @classmethod
    @contextlib.contextmanager
    def at(cls, place: str) -> Iterator["SmallStore"]:
        """Opens the store of a path or URL."""
        clock = [START_S]
        database = open_database(place, clock=lambda: clock[0])
        try:
            yield cls(database, clock)
        finally:
            database.close()

    def wait(self, *, minutes: float = 0, hours: float = 0) -> None:
        """Lets time go by."""
        self.clock[0] += 60 * minutes + 3600 * hours

    @property
    def now(self) -> int:
        return self.database.now()

    # --- what leads do ---

    def project(self, *, budget_cents: int | None = None, **config: Any) -> None:
        """Makes the project, without gold and repeats where nothing is said, and opens its first round."""
        usual: dict[str, Any] = {"gold_share": 0, "repeat_share": 0}
        made = ProjectConfig.model_validate(usual | config)

        def work(connection: sa.Connection) -> str:
            publish.add_project(connection, self.now, PROJECT, made)
            return publish.open_round(connection, self.now, PROJECT, 0, budget_cents=budget_cents)

        self.round_id = self.database.write(work)

    def configure(self, **config: Any) -> None:
        changed = ProjectConfig.model_validate({"gold_share": 0, "repeat_share": 0} | config)
        self.database.write(lambda connection: publish.configure_project(connection, PROJECT, changed))

    def next_round(self, number: int = 1) -> None:
        self.round_id = self.database.write(
            lambda connection: publish.open_round(connection, self.now, PROJECT, number)
        )

    def publish(self, number: int = 1, *, texts: Sequence[str] = ("a", "b"), **about: Any) -> list[str]:
        """So many tasks about one prompt; returns their ids."""
        prompt = Prompt.of((Message(role="user", content="Which?"),))
        completions = tuple(file_completion(prompt, text, place) for place, text in enumerate(texts))
        tasks = [NewTask(prompt, completions, **about) for _ in range(number)]
        return self.database.write(
            lambda connection: publish.publish_tasks(
                connection, self.now, PROJECT, tasks, round_id=self.round_id
            )
        )

    def freeze(self) -> None:
        """What closing a round does to the store: its tasks, then its state and watermark."""

        def work(connection: sa.Connection) -> None:
            connection.execute(sa.update(task).where(task.c.round_id == self.round_id).values(state="closed"))
            last = sa.select(sa.func.max(judgement.c.id)).scalar_subquery()
            connection.execute(
                sa.update(round_).where(round_.c.id == self.round_id).values(state="frozen", watermark=last)
            )

        self.database.write(work)

    def person(self, *, is_member: bool = True, **about: Any) -> Person:
        def work(connection: sa.Connection) -> Person:
            made = people.add_person(connection, self.now, f"person {secrets.token_hex(4)}", **about)
            if is_member:
                people.join_project(connection, PROJECT, made.id)
            return made

        return self.database.write(work)

    # --- what annotators do ---

    def claim(self, person: Person, project_id: str = PROJECT) -> queue.Lease | None:
        return self.database.write(lambda connection: queue.claim(connection, self.now, project_id, person))

    def held(self, person: Person) -> queue.Lease:
        """Claims where there must be a task."""
        lease = self.claim(person)
        assert lease is not None
        return lease

    def submit(
        self, person: Person, token: str, value: Mapping[str, Any] | None = None, **about: Any
    ) -> queue.Stored:
        said = queue.Submission(value={"strength": 2} if value is None else dict(value), **about)
        return self.database.write(lambda connection: queue.submit(connection, self.now, token, person, said))

    def judge(self, person: Person, value: Mapping[str, Any] | None = None) -> queue.Stored:
        """Claims and answers."""
        return self.submit(person, self.held(person).token, value)

    def skip(self, person: Person, token: str, reason: str = "unclear") -> queue.Stored:
        return self.database.write(lambda connection: queue.skip(connection, self.now, token, person, reason))

    def heartbeat(self, person: Person, token: str) -> int:
        return self.database.write(lambda connection: queue.heartbeat(connection, self.now, token, person))

    def draft(self, person: Person, token: str, draft: Mapping[str, Any]) -> None:
        self.database.write(lambda connection: queue.save_draft(connection, token, person, draft))

    def revise(
        self, person: Person, judgement_id: int, value: Mapping[str, Any], key: str = "", **about: Any
    ) -> queue.Stored:
        said, uuid = queue.Submission(value=dict(value), **about), key or f"{judgement_id}-{self.now}"
        return self.database.write(
            lambda connection: queue.revise(connection, self.now, judgement_id, person, said, uuid)
        )

    def withdraw(self, person: Person, judgement_id: int) -> queue.Stored:
        return self.database.write(
            lambda connection: queue.withdraw(connection, self.now, judgement_id, person)
        )

    # --- what is there ---

    def rows(self, table: sa.Table, *where: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
        """Rows in the order of their keys."""
        wanted = sa.select(table).where(*where).order_by(*table.primary_key.columns)
        return self.database.read(lambda connection: connection.execute(wanted).all())

    def task(self, task_id: str) -> sa.Row[Any]:
        (row,) = self.rows(task, task.c.id == task_id)
        return row

    def judgement(self, judgement_id: int) -> sa.Row[Any]:
        (row,) = self.rows(judgement, judgement.c.id == judgement_id)
        return row

    def round(self, round_id: str | None = None) -> sa.Row[Any]:
        (row,) = self.rows(round_, round_.c.id == (round_id or self.round_id))
        return row

    def served(self, person: Person) -> int:
        (row,) = self.rows(member, member.c.annotator_id == person.id)
        return row.served

    def change(self, statement: sa.Update) -> None:
        self.database.write(lambda connection: connection.execute(statement) and None)


def check(store: SmallStore) -> None:
    """What must hold after every commit, recounted from the rows."""
    judgements, leases, tasks = store.rows(judgement), store.rows(lease), store.rows(task)
    superseded = {row.supersedes for row in judgements}
    current = [row for row in judgements if row.id not in superseded]
    valid = Counter((row.task_id, row.kind) for row in current if row.state == "valid")
    leased = Counter((row.task_id, row.kind) for row in leases if row.state == "open")
    skips = Counter(row.task_id for row in current if row.state == "skipped")
    for row in tasks:
        counted = (row.valid, row.leased, row.ai_valid, row.ai_leased, row.skips)
        human, ai = (row.id, "human"), (row.id, "ai")
        assert counted == (valid[human], leased[human], valid[ai], leased[ai], skips[row.id])
        if not row.is_gold:
            assert row.valid + row.leased <= row.overlap
            assert row.ai_valid + row.ai_leased <= row.ai_overlap
    # nobody twice
    first = [(row.task_id, row.annotator_id) for row in judgements if row.revision == 0]
    held = [(row.task_id, row.annotator_id) for row in leases]
    assert len(set(first)) == len(first)
    assert len(set(held)) == len(held)
    assert not set(first) & set(held)
    at_once = Counter((row.project_id, row.annotator_id) for row in leases if row.state == "open")
    assert all(count == 1 for count in at_once.values())
    # one chain of revisions for each
    assert len({(row.task_id, row.annotator_id) for row in current}) == len(current)
    _check_money(store, judgements, leases, tasks)


def _check_money(store: SmallStore, judgements: Any, leases: Any, tasks: Any) -> None:
    round_of = {row.id: row.round_id for row in tasks}
    lines = store.rows(ledger)
    for row in store.rows(round_):
        held = sum(one.cents for one in leases if one.state == "open" and round_of[one.task_id] == row.id)
        paid = sum(one.cents for one in lines if one.round_id == row.id)
        assert (row.reserved_cents, row.spent_cents) == (held, paid)
    assert Counter({row.id: row.cents for row in judgements if row.cents}) == Counter(
        {row.judgement_id: row.cents for row in lines}
    )
