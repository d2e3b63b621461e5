"""Who is remembered for a moment is forgotten as soon as they may not come in any more."""

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from prefloop.labels import people, publish, tokens
from prefloop.labels.accounts import open_session, touch_session
from prefloop.labels.database import Database, open_database
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import NewTask
from prefloop.labels.schema import api_token
from prefloop.records import Message, Prompt, file_completion
from prefloop.web.app import WebOptions, create_app
from prefloop.web.visitors import BELIEVED_S, Visitors

CLAIM = "/api/v1/tasks/claim"


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.sqlite"
    open_database(str(path)).close()
    return path


@pytest.fixture
def opened(empty, tmp_path):
    path = tmp_path / "labels.sqlite"
    shutil.copy(empty, path)
    database = open_database(str(path))
    yield database
    database.close()


@pytest.fixture
def client(opened):
    with TestClient(create_app(opened, WebOptions()), base_url="http://127.0.0.1:8765") as made:
        yield made


def member(database: Database, name: str) -> people.Person:
    def work(connection: sa.Connection) -> people.Person:
        now = database.now()
        if connection.execute(sa.select(publish.project.c.id)).first() is None:
            publish.add_project(connection, now, "p", ProjectConfig(overlap=9))
            prompt = Prompt.of((Message(role="user", content="Which?"),))
            texts = tuple(file_completion(prompt, text, place) for place, text in enumerate("ab"))
            publish.publish_tasks(connection, now, "p", [NewTask(prompt, texts)])
        person = people.add_person(connection, now, name)
        people.join_project(connection, "p", person.id)
        return person

    return database.write(work)


def bearer(database: Database, person: people.Person) -> tuple[str, dict[str, str]]:
    def work(connection: sa.Connection) -> tuple[str, str]:
        return tokens.make_token(
            connection, database.now(), person.id, actor=person.id, name="tests", scopes=["judge:write"]
        )

    id, token = database.write(work)
    return id, {"Authorization": f"Bearer {token}"}


def test_a_revoked_token_is_refused_at_once(client, opened):
    person = member(opened, "a")
    id, headers = bearer(opened, person)
    assert client.post(CLAIM, headers=headers, json={"project": "p"}).status_code == 200
    opened.write(lambda connection: tokens.revoke_token(connection, opened.now(), id, actor=person.id))
    assert client.post(CLAIM, headers=headers, json={"project": "p"}).status_code == 401


def test_who_is_disabled_is_out_at_once(client, opened):
    person = member(opened, "a")
    _, headers = bearer(opened, person)
    assert client.post(CLAIM, headers=headers, json={"project": "p"}).status_code == 200
    opened.write(lambda connection: people.disable_person(connection, opened.now(), person.id, actor="admin"))
    assert client.post(CLAIM, headers=headers, json={"project": "p"}).status_code == 401


def test_what_another_process_revokes_ends_within_seconds(opened):
    moment = [0.0]
    visitors: Visitors[str] = Visitors(opened, clock=lambda: moment[0])
    visitors.put("token/a", "somebody")
    moment[0] = BELIEVED_S - 0.01
    assert visitors.get("token/a") == "somebody"
    moment[0] = BELIEVED_S
    assert visitors.get("token/a") is None


def test_other_writes_forget_nobody(opened):
    person = member(opened, "a")
    visitors: Visitors[str] = Visitors(opened)
    visitors.put("token/a", "somebody")
    opened.write(lambda connection: publish.open_round(connection, opened.now(), "p", 7))
    opened.read(lambda connection: people.find_person(connection, id=person.id))
    opened.write(lambda connection: tokens.touch_token(connection, opened.now(), "id"))
    opened.write(lambda connection: touch_session(connection, opened.now(), "token"))
    assert visitors.get("token/a") == "somebody"
    opened.write(lambda connection: connection.execute(sa.delete(api_token)) and None)
    assert visitors.get("token/a") is None


def test_a_session_is_no_api_token_though_it_was_seen_a_moment_ago(client, opened):
    person = member(opened, "a")
    session = opened.write(lambda connection: open_session(connection, opened.now(), person.id))
    cookie = {"Cookie": f"prefloop_session={session}"}
    assert client.get("/api/v1/judgements/mine", headers=cookie).status_code == 200
    stolen = {"Authorization": f"Bearer {session}"}
    assert client.post(CLAIM, headers=stolen, json={"project": "p"}).status_code == 401
    assert (
        client.post(CLAIM, headers=cookie, json={"project": "p"}).status_code == 403
    )  # without its CSRF token


def test_a_remembered_token_still_opens_no_pages(client, opened):
    _, headers = bearer(opened, member(opened, "a"))
    assert client.post(CLAIM, headers=headers, json={"project": "p"}).status_code == 200
    assert client.get("/", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CLAIM, '{"project": 3}', "project"),
        (CLAIM, '{"project": "p", "more": 1}', "more"),
        (CLAIM, "no json", "JSON"),
        ("/api/v1/leases/x/submit", '{"value": {}, "active_ms": -1}', "active_ms"),
    ],
)
def test_a_body_that_does_not_fit_is_told_where(client, opened, path, body, said):
    _, headers = bearer(opened, member(opened, "a"))
    answer = client.post(path, headers=headers, content=body)
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_claim_and_submit_over_http_are_one_judgement_however_often_they_are_sent(client, opened):
    _, headers = bearer(opened, member(opened, "a"))
    given = client.post(CLAIM, headers=headers, json={"project": "p"}).json()
    assert sorted(given["task"]["texts"]) == ["a", "b"]
    path = f"/api/v1/leases/{given['lease']['token']}/submit"
    first = client.post(path, headers=headers, json={"value": {"strength": 2}})
    again = client.post(path, headers=headers, json={"value": {"strength": 2}})
    other = client.post(path, headers=headers, json={"value": {"strength": 7}})
    assert (first.status_code, again.json(), other.status_code) == (200, first.json(), 409)
    assert client.post(CLAIM, headers=headers, json={"project": "p"}).status_code == 204
