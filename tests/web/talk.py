"""A labelling app with policies to talk with, for tests: a store with a clock that tests set, people, and their clients."""

import asyncio
import atexit
import contextlib
import functools
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi.testclient import TestClient

from prefloop.labels import people, publish
from prefloop.labels.accounts import open_session
from prefloop.labels.database import Database, open_database
from prefloop.labels.people import Person
from prefloop.labels.projects import ProjectConfig
from prefloop.records import Message
from prefloop.servers import NoAnswerError
from prefloop.web.answering import Answer, Answerer, Wish
from prefloop.web.app import WebOptions, create_app
from prefloop.web.limits import Limits
from prefloop.web.security import COOKIE

BASE = "http://127.0.0.1:8765"
PROJECT = "talk"
RULES = [{"id": "no_threats", "text": "Do not threaten anybody."}]


@dataclass
class Slow:
    """Says its name and how often it was asked, after some seconds; fails as often as it is told, and waits for `gate`."""

    name: str
    latency_s: float = 0.0
    fail_first: int = 0
    told: list[tuple[tuple[Message, ...], Wish]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    uri: str = "test:"

    async def answer(self, messages: Sequence[Message], wish: Wish) -> Answer:
        self.told.append((tuple(messages), wish))
        number = len(self.told)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(self.latency_s)
        if number <= self.fail_first:
            raise NoAnswerError(f"{self.name} is tired")
        return Answer(f"{self.name} says {number}", "stop", (1, 2, 3), (-0.1, -0.2, -0.3))

    async def close(self) -> None:
        return None


@dataclass
class Site:
    """The app over one store."""

    database: Database
    client: TestClient
    clock: list[float]

    def person(self, name: str, **about: Any) -> "Talker":
        def work(connection: sa.Connection) -> tuple[Person, str]:
            made = people.add_person(connection, self.database.now(), name, **about)
            people.join_project(connection, PROJECT, made.id)
            return made, open_session(connection, self.database.now(), made.id)

        person, token = self.database.write(work)
        csrf = self.database.read(
            lambda connection: connection.execute(
                sa.text("select csrf from session where annotator_id = :id"), {"id": person.id}
            ).scalar_one()
        )
        return Talker(self, person, token, csrf)

    def next_day(self) -> None:
        """25 hours later; sessions stay as young as they were."""
        self.clock[0] += 25 * 3600
        self.run("update session set expires_at = expires_at + 90000000, seen_at = seen_at + 90000000")

    def rows(self, statement: str, **values: Any) -> list[Any]:
        return list(
            self.database.read(lambda connection: connection.execute(sa.text(statement), values).all())
        )

    def run(self, statement: str, **values: Any) -> None:
        self.database.write(lambda connection: connection.execute(sa.text(statement), values))


@dataclass
class Talker:
    """One person with their session."""

    site: Site
    person: Person
    token: str
    csrf: str

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        headers = {"X-CSRF-Token": self.csrf, "Cookie": f"{COOKIE}={self.token}"}
        return self.site.client.request(method, path, json=body, headers=headers)

    def api(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, status: int = 200) -> Any:
        reply = self.ask(method, f"/api/v1/{path}", body)
        assert reply.status_code == status, reply.text
        return reply.json()

    def start(self, kind: str = "live") -> str:
        return self.api("POST", "chats", {"project": PROJECT, "kind": kind})["id"]

    def say(self, chat: str, text: str, *, key: str = "") -> int:
        body = {"key": key or f"key of {text}"[:64], "text": text}
        return self.api("POST", f"chats/{chat}/turns", body, status=202)["number"]

    def state(self, chat: str) -> dict[str, Any]:
        return self.api("GET", f"chats/{chat}")

    def wait(self, chat: str, *states: str, seconds: float = 5) -> dict[str, Any]:
        """The conversation once its last turn is in one of these states; `shown` unless others are given."""
        wanted = states or ("shown",)
        deadline = time.monotonic() + seconds
        while (found := self.state(chat))["state"] not in wanted:
            assert time.monotonic() < deadline, f"still {found['state']}"
            time.sleep(0.01)
        return found

    def choose(self, chat: str, **value: Any) -> list[str]:
        """Answers the choice; returns the texts as they were shown."""
        claimed = self.api("POST", f"chats/{chat}/claim")
        token = claimed["lease"]["token"]
        self.api("POST", f"leases/{token}/submit", {"value": value or {"strength": 1}})
        return claimed["task"]["texts"]

    def talk(self, chat: str, text: str, **value: Any) -> list[str]:
        """A whole turn."""
        self.say(chat, text)
        self.wait(chat)
        return self.choose(chat, **value)


@functools.cache
def empty_store() -> Path:
    """A store without anything in it, made once: that takes longer than most tests."""
    path = Path(tempfile.mkdtemp(prefix="prefloop-tests-")) / "empty.sqlite"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    open_database(str(path)).close()
    return path


@contextlib.contextmanager
def site_at(
    path: Path, answerers: Mapping[str, Answerer], *, config: Mapping[str, Any] | None = None
) -> Iterator[Site]:
    """The app over the store of a path, made with its project where there is none."""
    if not path.exists():
        shutil.copy(empty_store(), path)
    clock = [1_700_000_000.0]
    database = open_database(str(path), clock=lambda: clock[0])
    usual: dict[str, Any] = {"gold_share": 0, "repeat_share": 0, "chat": {}}
    made = ProjectConfig.model_validate(usual | dict(config or {}))

    def prepare(connection: sa.Connection) -> None:
        if connection.execute(sa.text("select id from project")).first() is None:
            publish.add_project(connection, database.now(), PROJECT, made)

    database.write(prepare)
    app = create_app(
        database, WebOptions(BASE, Limits(claim=10_000, submit=10_000, chat=1000), answerers=answerers)
    )
    try:
        with TestClient(app, base_url=BASE) as client:
            yield Site(database, client, clock)
    finally:
        database.close()
