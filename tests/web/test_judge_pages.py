"""The pages of judging, over HTTP: blind and balanced orders, what reaches a client, one's own answers, guidelines."""

import html
import json
import re
from collections import Counter
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from prefloop.labels import publish, queue
from prefloop.labels.database import Database, open_database
from prefloop.labels.people import Person, add_person, join_project
from prefloop.labels.projects import parse_config
from prefloop.labels.publish import NewTask
from prefloop.labels.schema import judgement, round_, task
from prefloop.web.app import WebOptions, create_app
from prefloop.web.limits import Limits
from prefloop.web.pages.home import about_waiting
from prefloop.web.pages.judge import split_steps
from prefloop.web.security import open_session
from web.serving import AT_ONCE, COOKIE, POLICIES, new_task

URL = "http://testserver"
BLIND = (
    f"kind: pairwise\noverlap: 2\ngold_share: 0.5\nrepeat_share: 0.5\nrepeat_after_hours: 0\ndwell: {AT_ONCE}"
)


@pytest.fixture
def database(tmp_path) -> Iterator[Database]:
    opened = open_database(str(tmp_path / "labels.sqlite"))
    yield opened
    opened.close()


@pytest.fixture
def app(database):
    return create_app(database, WebOptions(public_url=URL, limits=Limits(claim=10_000, submit=10_000)))


def add(database: Database, config: str, tasks: list[NewTask], **about) -> list[str]:
    def work(connection: sa.Connection) -> list[str]:
        publish.add_project(connection, database.now(), "p", parse_config(config), **about)
        return publish.publish_tasks(connection, database.now(), "p", tasks)

    return database.write(work)


def log_in(app, database: Database, name: str) -> tuple[TestClient, Person]:
    """A client with a session and its CSRF token."""

    def work(connection: sa.Connection) -> tuple[Person, str]:
        person = add_person(connection, database.now(), name)
        join_project(connection, "p", person.id)
        return person, open_session(connection, database.now(), person.id)

    person, token = database.write(work)
    client = TestClient(app, base_url=URL, cookies={COOKIE: token})
    found = re.search(r'name="csrf" content="([^"]+)"', client.get("/").text)
    assert found
    client.headers["X-CSRF-Token"] = found[1]
    return client, person


def next_task(client: TestClient) -> tuple[dict, list[str], str]:
    """The data of the next task, its texts as they stand on the page, and the page."""
    piece = client.post("/judge/p/next")
    assert piece.status_code == 200, piece.text
    found = re.search(r'<script type="application/json" id="task-data">(.*?)</script>', piece.text, re.DOTALL)
    if found is None:
        return {}, [], piece.text
    texts = re.findall(r'data-text="\d"[^>]*>\s*<p[^>]*>(.*?)</p>', piece.text, re.DOTALL)
    return json.loads(found[1]), [html.unescape(one) for one in texts], piece.text


def answer(client: TestClient, token: str, value: dict, **more):
    return client.post(f"/api/v1/leases/{token}/submit", json={"value": value, "active_ms": 5, **more})


# --- blind and balanced ----------------------------------------------------------------------------------------------


def test_four_hundred_places_are_exactly_counterbalanced(database):
    ids = add(
        database,
        f"overlap: 2\ngold_share: 0\nrepeat_share: 0\ndwell: {AT_ONCE}",
        [new_task(n, "0", "1") for n in range(200)],
    )

    def judge_all(connection: sa.Connection) -> dict[str, list[tuple[int, ...]]]:
        orders: dict[str, list[tuple[int, ...]]] = {}
        for name in ("Ada", "Bob"):
            person = add_person(connection, database.now(), name)
            join_project(connection, "p", person.id)
            while (held := queue.claim(connection, database.now(), "p", person)) is not None:
                orders.setdefault(held.task_id, []).append(held.presented)
                said = queue.Submission(value={"strength": 1})
                queue.submit(connection, database.now(), held.token, person, said)
        return orders

    orders = database.write(judge_all)
    assert sorted(orders) == sorted(ids)
    assert {tuple(sorted(both)) for both in orders.values()} == {((0, 1), (1, 0))}
    first = sum(both[0] == (0, 1) for both in orders.values())
    assert 70 <= first <= 130  # who comes first sees a coin for each task; 4 standard deviations


def test_what_is_stored_is_about_the_texts_as_they_stood_on_the_page(app, database):
    add(
        database,
        f"overlap: 2\ngold_share: 0\nrepeat_share: 0\ndwell: {AT_ONCE}",
        [new_task(n, f"zero {n}", f"one {n}") for n in range(16)],
    )
    lefts: Counter[str] = Counter()
    for name in ("Ada", "Bob"):
        client, _ = log_in(app, database, name)
        for number in range(16):
            data, texts, _ = next_task(client)
            strength = number % 8 + 1
            assert answer(client, data["token"], {"strength": strength}).json()["state"] == "valid"
            left = texts[0].split()[0]
            lefts[left] += 1
            stored = last_judgement(database)
            assert stored.presented[0] == {"zero": 0, "one": 1}[left]
            # by the page alone: 1 is the text on the left, whichever that is
            assert stored.value["strength"] == (strength if left == "zero" else 9 - strength)
            assert stored.value["choice"] == ("a" if (strength <= 4) == (left == "zero") else "b")
    assert lefts == {"zero": 16, "one": 16}


def last_judgement(database: Database) -> sa.Row:
    newest = sa.select(judgement).order_by(judgement.c.id.desc()).limit(1)
    return database.read(lambda connection: connection.execute(newest).one())


def test_nothing_that_reaches_a_client_tells_policies_scores_gold_or_repeats(app, database):
    tasks = [
        new_task(
            number, f"zero {number}", f"one {number}", reward_p=0.123456, reward_confidence=0.654321, score=0.777,
            payload={"judge_hint": "policy-zebra", "prefix": ""},
            expected={"choice": "a", "strength": 2} if number % 3 == 0 else None, why="a telling reason",
        )
        for number in range(24)
    ]  # fmt: skip
    ids = add(database, BLIND, tasks)
    client, _ = log_in(app, database, "Ada")
    kinds: Counter[str] = Counter()
    seen = [client.get("/"), client.get("/judge/p"), client.get("/history")]
    while True:
        piece = client.post("/judge/p/next")
        found = re.search(r'"token":"([0-9a-f]+)"', piece.text)
        if found is None:
            break
        token = found[1]
        claimed = client.post("/api/v1/tasks/claim", json={"project": "p"})
        assert claimed.json()["lease"]["token"] == token
        seen += [
            piece,
            claimed,
            *(client.get(f"/judge/leases/{token}/texts?form={form}") for form in ("raw", "diff")),
        ]
        done = answer(client, token, {"strength": 3})
        judged = last_judgement(database)
        seen += [done, client.get(f"/history/{judged.id}/task")]
        kinds[strategy_of(database, judged.task_id)] += 1
        assert sorted(done.json()) == ["judgement_id", "revision", "state"]
    assert kinds["gold"] and kinds["repeat"]  # the run had what it must not show
    seen += [client.get("/api/v1/judgements/mine"), client.get("/history")]
    texts = [one.text + repr(dict(one.headers)) for one in seen]
    secrets = (*POLICIES, "0.123456", "0.654321", "0.777", "telling", "gold", "repeat", "completion_id", *ids)
    assert [word for text in texts for word in secrets if word in text] == []
    assert {
        re.sub(r"[0-9a-f]{32}", "…", str(sorted(one.headers))) for one in seen if "/next" in str(one.url)
    } == {str(sorted(piece.headers))}


def strategy_of(database: Database, task_id: str) -> str:
    return database.read(
        lambda connection: connection.execute(
            sa.select(task.c.strategy).where(task.c.id == task_id)
        ).scalar_one()
    )


def test_waiting_tasks_are_told_in_tens_so_that_no_count_tells_a_gold_task(app, database):
    add(database, "kind: pairwise", [new_task(number, "a", "b") for number in range(23)])
    client, _ = log_in(app, database, "Ada")
    assert "About 30 tasks are waiting." in client.get("/").text


@pytest.mark.parametrize(("waiting", "told"), [(0, 0), (1, 10), (10, 10), (11, 20), (1000, 1000)])
def test_rounding_goes_up(waiting, told):
    class Project:
        pass

    project = Project()
    project.waiting = waiting  # type: ignore[attr-defined]
    assert about_waiting(project) == told  # type: ignore[arg-type]


# --- one's own answers -----------------------------------------------------------------------------------------------


def test_history_has_the_last_fifty_of_ones_own_and_nobody_elses(app, database):
    add(
        database,
        f"kind: pairwise\noverlap: 2\ngold_share: 0\ndwell: {AT_ONCE}",
        [new_task(n, "a", "b") for n in range(52)],
    )
    ada, person = log_in(app, database, "Ada")
    bob, _ = log_in(app, database, "Bob")

    def judge_all(connection: sa.Connection) -> None:
        while (held := queue.claim(connection, database.now(), "p", person)) is not None:
            queue.submit(
                connection, database.now(), held.token, person, queue.Submission(value={"strength": 1})
            )

    database.write(judge_all)
    answer(bob, next_task(bob)[0]["token"], {"strength": 1})
    mine = ada.get("/api/v1/judgements/mine").json()
    assert len(mine) == 50
    assert len(bob.get("/api/v1/judgements/mine").json()) == 1
    other = mine[0]["id"]
    for path in (f"/history/{other}", f"/history/{other}/task", f"/history/{other}/texts?form=raw"):
        assert bob.get(path).status_code == 404
    assert bob.post(f"/history/{other}/diff", json={"text": "x"}).status_code == 404


def test_an_answer_comes_back_as_it_was_said_in_the_positions_of_the_screen(app, database):
    add(database, f"kind: pairwise\noverlap: 2\ngold_share: 0\ndwell: {AT_ONCE}", [new_task(0, "a", "b")])
    for name in ("Ada", "Bob"):  # one of them sees it the other way round
        client, _ = log_in(app, database, name)
        value = {"strength": 7, "spans": [{"position": 1, "start": 0, "end": 1, "note": ""}]}
        stored = answer(client, next_task(client)[0]["token"], value, comment="why").json()
        piece = client.get(f"/history/{stored['judgement_id']}/task").text
        draft = json.loads(re.search(r'id="task-data">(.*?)</script>', piece)[1])["draft"]  # type: ignore[index]
        assert draft == {"value": value, "comment": "why"}


def test_a_frozen_answer_is_shown_with_the_reason_and_stays(app, database):
    def set_up(connection: sa.Connection) -> str:
        publish.add_project(connection, database.now(), "p", parse_config(f"dwell: {AT_ONCE}"))
        round_id = publish.open_round(connection, database.now(), "p", 1)
        publish.publish_tasks(connection, database.now(), "p", [new_task(0, "a", "b")], round_id=round_id)
        return round_id

    round_id = database.write(set_up)
    client, _ = log_in(app, database, "Ada")
    stored = answer(client, next_task(client)[0]["token"], {"strength": 2}).json()
    freeze = sa.update(round_).where(round_.c.id == round_id).values(state="frozen")
    database.write(lambda connection: connection.execute(freeze).rowcount)
    assert "Frozen" in client.get("/history").text
    piece = client.get(f"/history/{stored['judgement_id']}/task").text
    assert "This answer is frozen" in piece and 'id="submit"' not in piece
    revised = client.post(
        f"/api/v1/judgements/{stored['judgement_id']}/revise",
        json={"client_uuid": "u" * 16, "value": {"strength": 8}},
    )
    assert revised.status_code == 423
    assert "frozen" in revised.json()["error"]


# --- guidelines ------------------------------------------------------------------------------------------------------


def test_changed_guidelines_come_before_the_next_task_and_not_before_the_held_one(app, database):
    tasks = [new_task(number, "a", "b") for number in range(3)]
    add(database, f"gold_share: 0\ndwell: {AT_ONCE}", tasks, guidelines="Be fair.")
    client, _ = log_in(app, database, "Ada")
    assert "Be fair." in next_task(client)[2]
    claimed = client.post("/api/v1/tasks/claim", json={"project": "p"})
    assert claimed.status_code == 403 and "version 1" in claimed.json()["error"]
    assert client.post("/judge/p/guidelines", json={"version": 1}).status_code == 204
    data, _, _ = next_task(client)
    database.write(
        lambda connection: publish.publish_guidelines(connection, database.now(), "p", "Be fair and kind.")
    )
    assert next_task(client)[0]["token"] == data["token"]
    answer(client, data["token"], {"strength": 1})
    data, _, piece = next_task(client)
    assert not data and "<mark>" in piece and "and kind" in piece
    assert client.post("/judge/p/guidelines", json={"version": 1}).status_code == 409
    client.post("/judge/p/guidelines", json={"version": 2})
    assert next_task(client)[0]["token"]


# --- the rest --------------------------------------------------------------------------------------------------------


def test_a_project_of_others_does_not_exist(app, database):
    add(database, "", [new_task(0, "a", "b")], guidelines="secret rules")
    client, _ = log_in(app, database, "Ada")
    database.write(lambda connection: publish.add_project(connection, database.now(), "q", parse_config("")))
    for path in ("/judge/q", "/judge/q/guidelines", "/judge/none"):
        assert client.get(path).status_code == 404
    assert client.post("/judge/q/next").status_code == 404


def test_steps_part_at_the_last_line_that_both_have():
    whole = ["One.\nTwo is 4.", "One.\nTwo is 5."]
    assert split_steps(whole, "") == ("One.\n", ["Two is 4.", "Two is 5."])
    assert split_steps(["a b c", "a b d"], "") == ("a b ", ["c", "d"])
    assert split_steps(["x", "y"], "") == ("", ["x", "y"])
    assert split_steps(["Start. x", "y"], "Start. ") == ("Start. ", ["x", "y"])


def test_the_language_is_kept_and_leads_back_to_our_own_pages_only(app, database):
    add(database, "", [])
    client, _ = log_in(app, database, "Ada")
    chosen = client.get("/language?to=zh&back=/history", follow_redirects=False)
    assert chosen.headers["location"] == "/history"
    assert "您的任务" in client.get("/").text
    for elsewhere in ("https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)"):
        sent = client.get("/language", params={"to": "en", "back": elsewhere}, follow_redirects=False)
        assert sent.headers["location"] == "/"


def test_chosen_keys_are_kept_and_come_back_with_the_page(app, database):
    add(database, "", [])
    client, _ = log_in(app, database, "Ada")
    assert (
        client.put("/api/v1/me/preferences", json={"keys": {"tie": "0"}, "single_keys": False}).status_code
        == 204
    )
    page = client.get("/judge/p").text
    about = json.loads(re.search(r'id="about">(.*?)</script>', page)[1])  # type: ignore[index]
    assert (about["keys"], about["single_keys"]) == ({"tie": "0"}, False)
