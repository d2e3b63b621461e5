"""Browsers and programs that visit a labelling app of a test: one app over a store with a clock that the test turns."""

import dataclasses
import functools
import hashlib
import re
import tempfile
from pathlib import Path

import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from prefloop.labels import accounts, people, publish
from prefloop.labels.database import Database, open_database
from prefloop.labels.people import Person
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.schema import metadata
from prefloop.records import Message, Prompt, file_completion
from prefloop.web import security
from prefloop.web.app import WebOptions, create_app

HERE = "http://127.0.0.1:8765"


@dataclasses.dataclass
class Clock:
    """Seconds since 1970, as the test says."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0) -> None:
        self.now += seconds + 60 * minutes + 3600 * hours


@dataclasses.dataclass
class Place:
    """An app, its store and its clock."""

    app: FastAPI
    database: Database
    clock: Clock

    def browser(self, url: str = HERE) -> TestClient:
        """A browser without cookies."""
        return TestClient(self.app, base_url=url, follow_redirects=False)

    def person(
        self, name: str, role: people.Role = "annotator", *, password: str = "", project: str = ""
    ) -> Person:
        hashed = accounts.hash_password(password) if password else None

        def work(connection: sa.Connection) -> Person:
            person = people.add_person(connection, self.database.now(), name, role=role)
            if hashed:
                accounts.set_password(connection, self.database.now(), person.id, hashed, actor=person.id)
            if project:
                people.join_project(connection, project, person.id)
            return person

        return self.database.write(work)

    def logged_in(self, person: Person) -> TestClient:
        """A browser of somebody, which sends the CSRF token with every request."""
        now = self.database.now()
        token = self.database.write(lambda connection: security.open_session(connection, now, person.id))
        browser = self.browser()
        browser.cookies.set(security.COOKIE, token)
        row = self.database.read(lambda connection: accounts.find_session(connection, now, token))
        assert row is not None
        browser.headers["x-csrf-token"] = row.csrf
        return browser

    def project(self, id: str = "p", config: ProjectConfig | None = None, *, tasks: int = 3) -> None:
        """A project with pairwise tasks."""

        def work(connection: sa.Connection) -> None:
            publish.add_project(connection, self.database.now(), id, config or ProjectConfig(gold_share=0))
            new = []
            for number in range(tasks):
                prompt = Prompt.of((Message(role="user", content=f"question {number}"),))
                texts = tuple(file_completion(prompt, f"answer {one}", one) for one in range(2))
                new.append(publish.NewTask(prompt, texts))
            publish.publish_tasks(connection, self.database.now(), id, new)

        self.database.write(work)

    def everything(self) -> str:
        """Changes when anything in the store does."""

        def read(connection: sa.Connection) -> str:
            digest = hashlib.sha256()
            for table in metadata.sorted_tables:
                rows = sorted(repr(tuple(row)) for row in connection.execute(sa.select(table)))
                digest.update("\n".join([table.name, *rows]).encode())
            return digest.hexdigest()

        return self.database.read(read)


@functools.cache
def empty_store() -> bytes:
    """An SQLite store as it is made, which takes longer than to copy it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.sqlite"
        open_database(str(path)).close()
        return path.read_bytes()


def open_place(folder: Path, options: WebOptions | None = None) -> Place:
    """A new app over a new store."""
    clock = Clock()
    path = folder / "labels.sqlite"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(empty_store())
    database = open_database(str(path), clock=clock)
    return Place(create_app(database, options or WebOptions()), database, clock)


def csrf_in(html: str) -> str:
    """The hidden field of the first form of a page."""
    found = re.search(r'name="csrf" value="([^"]+)"', html)
    assert found, "the page has no form"
    return found[1]


def log_in(browser: TestClient, name: str, password: str):
    """Fills in the form of the login page."""
    csrf = csrf_in(browser.get("/login").text)
    return browser.post("/login", data={"csrf": csrf, "called": name, "password": password})
