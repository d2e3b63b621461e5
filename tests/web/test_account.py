"""Coming in: login, links, invites, consent, and one's own account."""

import re

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from prefloop.labels import accounts, people
from prefloop.labels.audit import entries
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.schema import annotator, invite, judgement, login_link
from prefloop.web import security
from web.visiting import csrf_in, log_in

PASSWORD = "correct horse battery staple"


def link_of(place, person):
    now = place.database.now()
    return place.database.write(lambda c: accounts.make_link(c, now, person.id, actor=person.id))


def invite_of(place, **about):
    now = place.database.now()
    return place.database.write(lambda c: accounts.make_invite(c, now, actor="root", **about))


def row_of(place, person):
    return place.database.read(
        lambda c: c.execute(sa.select(annotator).where(annotator.c.id == person.id)).one()
    )


def test_the_answer_to_a_failed_login_does_not_tell_why(place):
    place.person("Ann", password=PASSWORD)
    disabled = place.person("Dan", password=PASSWORD)
    place.person("Nopass")
    place.database.write(lambda c: people.disable_person(c, place.database.now(), disabled.id, actor="x"))
    pages = set()
    for name, password in (("Ann", "wrong"), ("Bob", PASSWORD), ("Dan", PASSWORD), ("Nopass", ""), ("", "")):
        place.clock.forward(minutes=2)
        reply = log_in(place.browser(), name, password)
        assert reply.status_code == 401
        pages.add(re.sub(r' autofocus|value="[^"]*"', "", reply.text))
    assert len(pages) == 1


def test_the_audit_has_logins_that_worked_and_nothing_that_was_typed(place):
    ann = place.person("Ann", password=PASSWORD)
    log_in(place.browser(), "Ann", "a wrong password")
    log_in(place.browser(), "Ann", PASSWORD)
    noted = [(one.actor, one.action, one.object) for one in place.database.read(entries)]
    assert noted == [("Ann", "session.open", ann.id), ("Ann", "password.set", ann.id)]


def test_a_password_of_older_parameters_is_hashed_anew_at_login(place):
    ann = place.person("Ann")
    old = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    place.database.write(lambda c: c.execute(sa.update(annotator).values(password_hash=old)))
    assert log_in(place.browser(), "Ann", PASSWORD).status_code == 303
    assert "m=65536,t=3,p=4" in row_of(place, ann).password_hash
    assert log_in(place.browser(), "Ann", PASSWORD).status_code == 303


def test_who_previews_a_link_does_not_use_it_up(place):
    token = link_of(place, place.person("Ann"))
    for _ in range(3):
        preview = place.browser().get("/link")
        assert preview.status_code == 200
        assert token not in preview.text
    browser = place.browser()
    form = {"csrf": csrf_in(browser.get("/link").text), "token": token}
    assert browser.post("/link", data=form).headers["location"] == "/account"
    assert browser.get("/account").status_code == 200
    again = browser.post("/link", data=form)
    assert (again.status_code, "used already" in again.text) == (404, True)


def test_who_came_by_a_link_sets_a_password_without_the_old_one_for_a_while(place):
    ann = place.person("Ann", password=PASSWORD)
    browser = place.browser()
    form = {"csrf": csrf_in(browser.get("/link").text), "token": link_of(place, ann)}
    browser.post("/link", data=form)
    csrf = csrf_in(browser.get("/account").text)
    place.clock.forward(minutes=16)
    late = browser.post("/account/password", data={"csrf": csrf, "new": "three other words"})
    assert late.status_code == 403
    form = {"csrf": csrf_in(browser.get("/link").text), "token": link_of(place, ann)}
    browser.post("/link", data=form)
    csrf = csrf_in(browser.get("/account").text)
    assert (
        browser.post("/account/password", data={"csrf": csrf, "new": "three other words"}).status_code == 303
    )
    place.clock.forward(minutes=2)
    assert log_in(place.browser(), "Ann", "three other words").status_code == 303
    assert log_in(place.browser(), "Ann", PASSWORD).status_code == 401


def test_a_password_needs_the_old_one_and_some_length(place):
    ann = place.person("Ann", password=PASSWORD)
    browser = place.logged_in(ann)
    before = row_of(place, ann).password_hash
    for old, new, status in (
        ("wrong", "four other new words", 403),
        (PASSWORD, "short", 422),
        (PASSWORD, "Ann", 422),
    ):
        assert browser.post("/account/password", data={"old": old, "new": new}).status_code == status
    assert row_of(place, ann).password_hash == before


def test_an_invite_is_looked_at_and_then_accepted_once(place):
    place.project("p")
    token = invite_of(place, role="reviewer", project_ids=["p"])
    browser = place.browser()
    csrf = csrf_in(browser.get("/invite").text)
    for _ in range(2):
        page = browser.post("/invite", data={"csrf": csrf, "token": token})
        assert "invited as: reviewer" in page.text
    form = {"csrf": csrf, "token": token, "name": "Ada", "email": "", "password": PASSWORD}
    for wrong in ({"name": ""}, {"name": "a@b"}, {"password": "short"}, {"email": "nobody"}):
        place.clock.forward(minutes=1)
        refused = browser.post("/invite/accept", data=form | wrong)
        assert (refused.status_code, 'role="alert"' in refused.text) == (422, True)
    accepted = browser.post("/invite/accept", data=form)
    assert (accepted.status_code, security.COOKIE in accepted.cookies) == (303, True)
    assert "Ada" in browser.get("/account").text
    other = place.browser()
    again = {**form, "csrf": csrf_in(other.get("/invite").text), "name": "Bob"}
    assert other.post("/invite/accept", data=again).status_code == 404
    assert [
        row.used_by is not None for row in place.database.read(lambda c: c.execute(sa.select(invite)).all())
    ] == [True]


def test_a_taken_name_is_refused_and_leaves_the_invite_good(place):
    place.person("Ada")
    browser = place.browser()
    csrf = csrf_in(browser.get("/invite").text)
    form = {"csrf": csrf, "token": invite_of(place), "name": "Ada", "password": PASSWORD}
    assert browser.post("/invite/accept", data=form).status_code == 409
    assert browser.post("/invite/accept", data=form | {"name": "Ada 2"}).status_code == 303


def test_consent_is_asked_for_before_the_first_task_and_only_the_words_that_were_read_count(place):
    config = ProjectConfig(
        gold_share=0, consent="<b>Be told</b>", warning="violence", support_url="https://h.org/"
    )
    place.project("p", config)
    browser = place.logged_in(place.person("Ann", project="p"))
    asked = browser.post("/api/v1/tasks/claim", json={"project": "p"})
    assert (asked.status_code, asked.json()["next"]) == (403, "/consent/p")
    sent = browser.get("/judge/p")
    assert (sent.status_code, sent.headers["location"]) == (303, "/consent/p?next=/judge/p")
    page = browser.get(sent.headers["location"]).text
    assert "&lt;b&gt;Be told&lt;/b&gt;" in page
    assert "violence" in page
    assert 'href="https://h.org/"' in page
    assert browser.post("/consent/p", data={"version": "other"}).status_code == 200  # shown again
    assert browser.post("/api/v1/tasks/claim", json={"project": "p"}).status_code == 403
    version = re.search(r'name="version" value="(\w+)"', page)[1]
    agreed = browser.post("/consent/p", data={"version": version, "next": "/judge/p"})
    assert agreed.headers["location"] == "/judge/p"
    assert browser.post("/api/v1/tasks/claim", json={"project": "p"}).status_code == 200


def test_one_chooses_languages_and_how_much_that_disturbs_to_see(place):
    ann = place.person("Ann")
    browser = place.logged_in(ann)
    assert browser.post("/account/profile", data={"languages": " en, zh ,en,"}).status_code == 303
    assert browser.post("/account/exposure", data={"cap": "12"}).status_code == 303
    assert (row_of(place, ann).languages, row_of(place, ann).exposure_cap) == (["en", "zh"], 12)
    assert browser.post("/account/exposure", data={"cap": "-1"}).status_code == 422
    browser.post("/account/exposure", data={"cap": "0"})
    assert row_of(place, ann).exposure_cap is None


def test_one_ends_all_other_sessions(place):
    ann = place.person("Ann")
    here, there = place.logged_in(ann), place.logged_in(ann)
    link = link_of(place, ann)
    assert here.post("/account/sessions").status_code == 303
    assert (here.get("/account").status_code, there.get("/account").status_code) == (200, 303)
    assert place.database.read(lambda c: c.execute(sa.select(login_link)).all()) == []
    with pytest.raises(Exception, match="used already, or is too old"):
        place.database.write(lambda c: accounts.redeem_link(c, place.database.now(), link))


def test_one_deletes_oneself_with_name_and_password_and_the_answers_stay(place):
    place.project()
    ann = place.person("Ann", password=PASSWORD, project="p")
    browser = place.logged_in(ann)
    token = browser.post("/api/v1/tasks/claim", json={"project": "p"}).json()["lease"]["token"]
    browser.post(f"/api/v1/leases/{token}/submit", json={"value": {"strength": 2}})
    for name, password in (("Ann", "wrong"), ("Bob", PASSWORD), ("", "")):
        assert browser.post("/account/delete", data={"name": name, "password": password}).status_code == 403
    assert browser.post("/account/delete", data={"name": "Ann", "password": PASSWORD}).status_code == 303
    assert browser.get("/account").status_code == 303
    assert row_of(place, ann).name == f"deleted-{ann.id}"
    judged = place.database.read(lambda c: c.execute(sa.select(judgement.c.annotator_id)).scalars().all())
    assert judged == [ann.id]


def test_the_only_admin_cannot_delete_the_account(place):
    root = place.person("Root", "admin", password=PASSWORD)
    reply = place.logged_in(root).post("/account/delete", data={"name": "Root", "password": PASSWORD})
    assert (reply.status_code, "only admin" in reply.text) == (422, True)


def test_pages_speak_chinese_too(place):
    browser = place.browser()
    assert "登录" in browser.get("/login", headers={"accept-language": "zh-CN"}).text
