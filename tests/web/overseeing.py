"""Small projects for the tests of leads' pages: judgements are put where a test wants them, not drawn from a queue."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi.testclient import TestClient

from prefloop.labels.accounts import open_session
from prefloop.labels.database import Database, open_database
from prefloop.labels.people import Person, add_person, join_project
from prefloop.labels.projects import parse_config
from prefloop.labels.publish import NewTask, add_project, publish_tasks
from prefloop.labels.rounds import begin_round
from prefloop.labels.schema import judgement
from prefloop.records import Completion, Message, Prompt, content_id
from prefloop.web.app import WebOptions, create_app

URL = "http://127.0.0.1:8765"
PROJECT = "pairs"
START_MS = 1_780_000_000_000
CONFIG = "kind: pairwise\noverlap: 2\nties: false\nboth_bad: false\ngold_share: 0\nrepeat_share: 0"


def pair(
    number: int, *, texts: tuple[str, ...] = ("a longer answer", "short"), asked: str = "", **about: Any
) -> NewTask:
    """A task called `t{number}` over two answers; the first is the longer one."""
    prompt = Prompt.of((Message(role="user", content=asked or f"Question {number}?"),))
    completions = tuple(
        Completion(
            id=content_id(prompt.id, text, place),
            prompt_id=prompt.id,
            text=text,
            finish_reason="stop",
            policy=f"policy-zebra-{place}",
            policy_version=place,
        )
        for place, text in enumerate(texts)
    )
    return NewTask(id=f"t{number}", prompt=prompt, completions=completions, **about)


@dataclass
class Office:
    """A store with a project, and the app over it."""

    database: Database
    app: Any
    round_id: str = "round-1"
    people: dict[str, Person] = field(default_factory=dict)
    count: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def publish(self, *tasks: NewTask, round_id: str | None = "round-1") -> None:
        """Puts tasks into the project."""
        now = self.database.now()
        self.database.write(lambda c: publish_tasks(c, now, PROJECT, tasks, round_id=round_id))

    def person(self, name: str, role: Any = "annotator", *, member: bool = True) -> Person:
        """Somebody by name, made the first time."""
        if name not in self.people:

            def work(connection: sa.Connection) -> Person:
                made = add_person(connection, self.database.now(), name, role=role)
                if member:
                    join_project(connection, PROJECT, made.id)
                return made

            self.people[name] = self.database.write(work)
        return self.people[name]

    def says(self, name: str, task_id: str, choice: str, strength: int | None = None, **about: Any) -> int:
        """A judgement; `choice` is about completions. Returns its number."""
        person = self.person(name, about.pop("role", "annotator"))
        number = next(self.count)
        value = {"choice": choice, "strength": strength} | about.pop("value", {})
        row = {
            "task_id": task_id,
            "project_id": PROJECT,
            "round_id": self.round_id,
            "annotator_id": person.id,
            "kind": person.kind,
            "value": value,
            "presented": [0, 1],
            "client_uuid": f"uuid-{number}",
            "active_ms": 5000,
            "created_at": START_MS + number * 1000,
        }
        statement = sa.insert(judgement).values(row | about).returning(judgement.c.id)
        return self.database.write(lambda c: c.execute(statement).scalar_one())

    def visit(self, name: str, role: Any = "lead", *, member: bool = True) -> "Visit":
        """Somebody with a browser."""
        person = self.person(name, role, member=member)
        token = self.database.write(lambda c: open_session(c, self.database.now(), person.id))
        client = TestClient(self.app, base_url=URL, follow_redirects=False)
        client.cookies.set("prefloop_session", token)
        client.cookies.set("prefloop_language", "en")
        return Visit(client)

    def rows(self, statement: sa.Select[Any]) -> list[sa.Row[Any]]:
        """What the store has."""
        return self.database.read(lambda c: list(c.execute(statement)))


@dataclass
class Visit:
    """A browser of somebody who is logged in."""

    client: TestClient

    def get(self, path: str, **about: Any) -> Any:
        """A page."""
        return self.client.get(path, **about)

    def post(self, path: str, **fields: str) -> Any:
        """A form that our own page sent."""
        page = self.client.get("/account").text
        csrf = re.search(r'<meta name="csrf" content="([^"]*)">', page)
        assert csrf is not None
        return self.client.post(path, data=fields | {"csrf": csrf[1]})


@contextmanager
def office(place: Path | str, config: str = CONFIG, **options: Any) -> Iterator[Office]:
    """A store, in a folder or at a URL, with an open round of a project, and nothing in it yet."""
    where = str(place / "labels.sqlite") if isinstance(place, Path) else place
    database = open_database(where, clock=lambda: START_MS / 1000)

    def work(connection: sa.Connection) -> None:
        now = database.now()
        add_project(connection, now, PROJECT, parse_config(config), title="Pairs of answers")
        begin_round(connection, now, PROJECT, "round-1", policy_in="policy-zebra-1")

    database.write(work)
    try:
        yield Office(database, create_app(database, WebOptions(public_url=URL, **options)))
    finally:
        database.close()
