"""How often somebody may ask."""

import pytest
from fastapi.testclient import TestClient

from prefloop.web.app import WebOptions
from prefloop.web.limits import MOST_KEYS, Limits, TooMany, Windows
from web.visiting import csrf_in, open_place

SECOND = 1000


def test_the_window_slides():
    windows = Windows(Limits(claim=3))
    for at in (0, 10, 20):
        windows.take("claim", "ann", at * SECOND)
    for at, left in ((20, 40), (59, 1)):
        with pytest.raises(TooMany) as refused:
            windows.take("claim", "ann", at * SECOND)
        assert refused.value.retry_after_s == left
    windows.take("claim", "ann", 60 * SECOND)  # the first one is out of the window
    with pytest.raises(TooMany):
        windows.take("claim", "ann", 69 * SECOND)
    windows.take("claim", "ann", 70 * SECOND)


def test_limits_are_kept_apart_by_kind_and_by_person():
    windows = Windows(Limits(claim=1, submit=1))
    windows.take("claim", "ann", 0)
    windows.take("submit", "ann", 0)
    windows.take("claim", "bob", 0)
    with pytest.raises(TooMany):
        windows.take("claim", "ann", 0)


def test_exports_are_counted_by_the_hour():
    windows = Windows(Limits())
    for at in range(5):
        windows.take("export", "lead", at * 60 * SECOND)
    with pytest.raises(TooMany) as refused:
        windows.take("export", "lead", 59 * 60 * SECOND)
    assert refused.value.retry_after_s == 60
    windows.take("export", "lead", 60 * 60 * SECOND)


def test_a_flood_of_addresses_does_not_fill_the_memory():
    windows = Windows(Limits())
    for number in range(MOST_KEYS + 100):
        windows.take("login", str(number), 0)
    assert len(windows._times) == MOST_KEYS


def test_the_limits_are_those_that_were_promised():
    assert Limits() == Limits(login=5, claim=60, submit=60, chat=20, export=5)


def test_the_sixth_login_in_a_minute_waits_right_or_wrong(place):
    browser = place.browser()
    form = {"csrf": csrf_in(browser.get("/login").text), "called": "Ann", "password": "wrong"}
    assert [browser.post("/login", data=form).status_code for _ in range(6)] == [401] * 5 + [429]
    reply = browser.post("/login", data=form | {"called": "Bob"})  # another account, the same address
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "60")
    place.clock.forward(seconds=60)
    assert browser.post("/login", data=form).status_code == 401


def test_an_account_is_guarded_against_guesses_from_many_addresses(place):
    statuses = []
    for number in range(7):
        browser = TestClient(place.app, base_url="http://127.0.0.1:8765", client=(f"203.0.113.{number}", 5))
        form = {"csrf": csrf_in(browser.get("/login").text), "called": " ANN ", "password": "wrong"}
        statuses.append(browser.post("/login", data=form).status_code)
    assert statuses == [401] * 5 + [429] * 2


def test_claims_and_answers_are_limited_by_person_and_the_app_can_raise_the_limits(tmp_path):
    for limits, statuses in ((Limits(claim=2), [200, 200, 429]), (Limits(claim=10_000), [200] * 3)):
        folder = tmp_path / str(limits.claim)
        place = open_place(folder, WebOptions(limits=limits))
        place.project()
        ann, bob = (place.logged_in(place.person(name, project="p")) for name in ("Ann", "Bob"))
        body = {"project": "p"}
        assert [ann.post("/api/v1/tasks/claim", json=body).status_code for _ in range(3)] == statuses
        assert bob.post("/api/v1/tasks/claim", json=body).status_code == 200
        place.database.close()


def test_a_submission_too_many_says_when_to_come_again(tmp_path):
    place = open_place(tmp_path, WebOptions(limits=Limits(submit=1)))
    place.project()
    ann = place.logged_in(place.person("Ann", project="p"))
    for status in (200, 429):
        token = ann.post("/api/v1/tasks/claim", json={"project": "p"}).json()["lease"]["token"]
        reply = ann.post(f"/api/v1/leases/{token}/submit", json={"value": {"strength": 1}})
        assert reply.status_code == status
    assert reply.headers["retry-after"] == "60"
    assert reply.json() == {"error": "too many requests; try again in 60 seconds"}
    place.database.close()
