"""Simulated people who answer over HTTP, of a server on this machine: they see what a browser gets, nothing else."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from people import person
from prefloop.labels.audit import SYSTEM
from prefloop.labels.database import Database
from prefloop.labels.tokens import make_token
from prefloop.web.app import WebOptions, create_app
from prefloop.web.limits import Limits
from web.serving import run_app


@contextlib.contextmanager
def client_of(
    database: Database, project: str, name: str, *, role: str = "annotator"
) -> Iterator[httpx.Client]:
    """Somebody with an API token, at the app over this store."""
    somebody = person(database, name, project, role=role)
    _, token = database.write(
        lambda c: make_token(
            c, database.now(), somebody.id, actor=SYSTEM, name="test", scopes=["judge:write", "tasks:read"]
        )
    )
    limits = Limits(claim=10**6, submit=10**6)
    with (
        run_app(lambda url: create_app(database, WebOptions(public_url=url, limits=limits))) as url,
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=60) as client,
    ):
        yield client


def answer_all(
    client: httpx.Client,
    project: str,
    value_of: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    most: int = 10**9,
) -> int:
    """Claims and answers until nothing is left, or so much is answered; returns how much that was."""
    for number in range(most):
        reply = client.post("/api/v1/tasks/claim", json={"project": project})
        if reply.status_code == 204:
            return number
        assert reply.status_code == 200, reply.text
        held = reply.json()
        sent = client.post(
            f"/api/v1/leases/{held['lease']['token']}/submit", json={"value": dict(value_of(held["task"]))}
        )
        assert sent.status_code == 200, sent.text
    return most


def likes_short(seed: int, *, flip: float) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Likes the shorter text, but errs in a share of cases; of equals, takes a random one."""
    rng = random.Random(seed)

    def value(shown: Mapping[str, Any]) -> Mapping[str, Any]:
        first, second = (len(text) for text in shown["texts"])
        prefers_first = first < second if first != second else rng.random() < 0.5
        if rng.random() < flip:
            prefers_first = not prefers_first
        return {"strength": 2 if prefers_first else 7}

    return value
