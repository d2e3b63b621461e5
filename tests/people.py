"""People for tests: they claim tasks of a label store and answer them, through the queue that everybody uses."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from prefloop.labels import queue
from prefloop.labels.database import Database, open_database
from prefloop.labels.errors import NotFound
from prefloop.labels.people import Person, add_person, find_person, join_project
from prefloop.labels.reading import shown_task
from prefloop.labels.schema import task

Answer = Mapping[str, Any]
Judge = Callable[[Mapping[str, Any]], Answer]
"""From a task as it is shown to a value in screen positions; `{"skip": reason}` skips."""


@contextlib.contextmanager
def opened(place: Path | str, **options: Any) -> Iterator[Database]:
    database = open_database(str(place), **options)
    try:
        yield database
    finally:
        database.close()


def person(database: Database, name: str, project: str, **about: Any) -> Person:
    """Somebody of this name, a member of the project."""

    def work(connection: sa.Connection) -> Person:
        try:
            found = find_person(connection, name=name)
        except NotFound:
            found = add_person(connection, database.now(), name, **about)
        join_project(connection, project, found.id)
        return found

    return database.write(work)


def judge(place: Path | str, project: str, answer: Judge, *, name: str = "ann", most: int = 10**9) -> int:
    """Answers what is offered, at most so much; returns how many tasks that were."""
    with opened(place) as database:
        somebody = person(database, name, project)
        for number in range(most):
            held = database.write(lambda c: queue.claim(c, database.now(), project, somebody))
            if held is None:
                return number
            value = answer(database.read(lambda c, held=held: shown_task(c, held)))
            database.write(lambda c, held=held, value=value: say(c, database.now(), held, somebody, value))
    return most


def say(connection: sa.Connection, now: int, held: queue.Lease, somebody: Person, value: Answer) -> None:
    if "skip" in value:
        queue.skip(connection, now, held.token, somebody, value["skip"])
    else:
        queue.submit(connection, now, held.token, somebody, queue.Submission(value=dict(value)))


def likes(text: str, strength: int = 1) -> Judge:
    """Prefers the completion that begins so, however the two are shown."""

    def answer(shown: Mapping[str, Any]) -> Answer:
        return {"strength": strength if shown["texts"][0].startswith(text) else 9 - strength}

    return answer


def always(**value: Any) -> Judge:
    return lambda shown: value


def tasks(place: Path | str) -> list[sa.Row[Any]]:
    with opened(place) as database:
        return list(database.read(lambda c: c.execute(sa.select(task).order_by(task.c.ordinal)).all()))
