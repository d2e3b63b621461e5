"""The labelling app on a free port over a store of its own, and people who are logged in."""

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import uvicorn

from prefloop.labels.database import Database, open_database
from prefloop.labels.people import Person, add_person, join_project
from prefloop.labels.projects import parse_config
from prefloop.labels.publish import NewTask, add_project, publish_tasks
from prefloop.labels.schema import judgement
from prefloop.records import Completion, Message, Prompt, content_id
from prefloop.web.app import WebOptions, create_app
from prefloop.web.security import open_session

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
COOKIE = "prefloop_session"
AT_ONCE = "{least_s: 0, per_character_ms: 0, most_s: 0}"
POLICIES = ("policy-zebra", "policy-giraffe")
"""Names that must never reach a browser."""


@dataclass
class Site:
    """A running app."""

    url: str
    database: Database

    def person(self, name: str, *projects: str, role: Any = "annotator") -> tuple[Person, str]:
        """Somebody who is a member, and the token of their session."""

        def work(connection: sa.Connection) -> tuple[Person, str]:
            now = self.database.now()
            person = add_person(connection, now, name, role=role)
            for project in projects:
                join_project(connection, project, person.id)
            return person, open_session(connection, now, person.id)

        return self.database.write(work)

    def project(self, project_id: str, config: str, tasks: Sequence[NewTask], **about: Any) -> list[str]:
        """A project with tasks; the ids of the tasks. Answers are taken at once, unless the config says otherwise."""
        text = config if "dwell" in config else f"{config}\ndwell: {AT_ONCE}"
        if "gold_share" not in config:
            text += "\ngold_share: 0\nrepeat_share: 0"

        def work(connection: sa.Connection) -> list[str]:
            now = self.database.now()
            round_id = about.pop("round_id", None)
            add_project(connection, now, project_id, parse_config(text), **about)
            return publish_tasks(connection, now, project_id, tasks, round_id=round_id)

        return self.database.write(work)

    def judgements(self) -> list[sa.Row[Any]]:
        """All of them, in order."""
        return self.database.read(
            lambda connection: list(connection.execute(sa.select(judgement).order_by("id")))
        )


def new_task(number: int, *texts: str, asked: str = "", **about: Any) -> NewTask:
    """A task whose prompt and texts carry its number; each text is of another policy."""
    prompt = Prompt.of((Message(role="user", content=asked or f"Question {number}?"),))
    completions = tuple(
        Completion(
            id=content_id(prompt.id, text, place),
            prompt_id=prompt.id,
            text=text,
            finish_reason="stop",
            policy=POLICIES[place % 2],
        )
        for place, text in enumerate(texts)
    )
    return NewTask(prompt=prompt, completions=completions, **about)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Site]:
    """The app over a store in this folder, until the block ends."""
    database = open_database(str(folder / "labels.sqlite"))
    try:
        with run_app(lambda url: create_app(database, WebOptions(public_url=url))) as url:
            yield Site(url, database)
    finally:
        database.close()


@contextlib.contextmanager
def run_app(app_at: Callable[[str], Any]) -> Iterator[str]:
    """An app in a thread, at the address that it is given and that comes out."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app_at(url), log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(timeout=10)
