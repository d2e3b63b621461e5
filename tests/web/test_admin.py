"""Projects, people, tokens, webhooks and the audit, as an admin works with them."""

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from prefloop.labels import publish, tokens, webhooks
from prefloop.labels.schema import annotator, delivery, member, project
from prefloop.web.app import WebOptions
from web.visiting import HERE, csrf_in, open_place


@pytest.fixture
def root(place):
    return place.logged_in(place.person("Root", "admin"))


def rows(place, table):
    return place.database.read(lambda c: c.execute(sa.select(table)).all())


def test_a_project_is_made_from_yaml_and_what_is_wrong_is_said_beside_what_was_written(place, root):
    form = {
        "id": "helpful",
        "title": "Helpful",
        "source": "kind: pairwise\noverlap: two\ngold: 0.1\n",
        "guidelines": "Be kind.",
    }
    refused = root.post("/admin/projects/new", data=form)
    assert refused.status_code == 422
    errors = re.findall(r"<li><code>(.*?)</code>", refused.text)
    assert [one.split(": ")[:2] for one in errors] == [["line 2", "overlap"], ["line 3", "gold"]]
    assert "overlap: two" in refused.text  # nothing that was typed is lost
    assert rows(place, project) == []
    form["source"] = "# two, as the guidelines are new\noverlap: 2\n"
    made = root.post("/admin/projects/new", data=form)
    assert made.headers["location"] == "/admin/projects/helpful"
    page = root.get("/admin/projects/helpful").text
    assert "# two, as the guidelines are new" in page
    assert 'href="/lead/helpful/guidelines"' in page
    assert "Be kind." in root.get("/lead/helpful/guidelines").text
    config = place.database.read(lambda c: publish.project_config(c, "helpful"))
    assert config.overlap == 2


def test_a_project_is_changed_or_stays_as_it_was(place, root):
    place.project("p")
    assert root.post("/admin/projects/p", data={"source": "overlap: 0"}).status_code == 422
    assert root.post("/admin/projects/p", data={"source": "overlap: 5", "title": "New"}).status_code == 303
    assert place.database.read(lambda c: publish.project_config(c, "p")).overlap == 5
    assert rows(place, project)[0].title == "New"
    root.post("/lead/p/guidelines", data={"text": "one\r\ntwo"})
    root.post("/admin/projects/p/state", data={"state": "closed"})
    assert (rows(place, project)[0].guideline_version, rows(place, project)[0].state) == (1, "closed")
    assert root.post("/admin/projects/p/state", data={"state": "burnt"}).status_code == 422


@pytest.mark.parametrize("id", ["", "Big", "../etc", "a/b", "a b", "x" * 65])
def test_a_project_id_can_stand_in_an_address(place, root, id):
    assert root.post("/admin/projects/new", data={"id": id, "source": ""}).status_code == 422


def test_members_come_and_go(place, root):
    place.project("p")
    ann = place.person("Ann")
    assert root.post("/admin/projects/p/members", data={"person_id": ann.id}).status_code == 303
    assert [(row.project_id, row.annotator_id) for row in rows(place, member)] == [("p", ann.id)]
    assert root.post(f"/admin/projects/p/members/{ann.id}/remove").status_code == 303
    assert rows(place, member) == []
    assert root.post("/admin/projects/p/members", data={"person_id": "nobody"}).status_code == 404
    assert root.post("/admin/projects/nothing/members", data={"person_id": ann.id}).status_code == 404


def test_an_invite_is_shown_once_and_makes_an_account(place, root):
    place.project("p")
    made = root.post("/admin/invites", data={"role": "lead", "projects": "p", "email": "", "hours": "5"})
    token = re.search(r"http://127\.0\.0\.1:8765/invite#([\w-]{43})", made.text)[1]
    assert token not in root.get("/admin/people").text
    browser = place.browser()
    form = {
        "csrf": csrf_in(browser.get("/invite").text),
        "token": token,
        "name": "Lea",
        "password": "three good words",
    }
    assert browser.post("/invite/accept", data=form).status_code == 303
    lea = next(row for row in rows(place, annotator) if row.name == "Lea")
    assert (lea.role, rows(place, member)[0].annotator_id) == ("lead", lea.id)
    refused = root.post("/admin/invites", data={"role": "judge"})
    assert (refused.status_code, 'role="alert"' in refused.text) == (422, True)


def test_an_invite_is_taken_back(place, root):
    made = root.post("/admin/invites", data={"role": "lead"})
    hashed = re.search(r"/admin/invites/(\w+)/withdraw", made.text)[1]
    assert root.post(f"/admin/invites/{hashed}/withdraw").status_code == 303
    assert root.post(f"/admin/invites/{hashed}/withdraw").status_code == 404


def test_a_token_is_shown_once_works_and_is_revoked(place, root):
    place.project("p")
    root.post("/admin/programs", data={"name": "judge-32b", "projects": "p"})
    judge = next(row for row in rows(place, annotator) if row.role == "judge")
    path = f"/admin/people/{judge.id}"
    made = root.post(f"{path}/tokens", data={"name": "nightly", "scopes": ["judge:write"], "days": "7"})
    [token] = re.findall(r"pfl_[\w-]{43}", made.text)
    for page in (path, "/admin/tokens", "/admin/audit"):
        assert token not in root.get(page).text
    assert "nightly" in root.get("/admin/tokens").text
    program = {"authorization": f"Bearer {token}"}
    body = {"project": "p"}
    assert place.browser().post("/api/v1/tasks/claim", json=body, headers=program).status_code == 204
    [listed] = place.database.read(tokens.list_tokens)
    assert listed.used_at == place.database.now()
    assert root.post(f"/admin/tokens/{listed.id}/revoke").status_code == 303
    assert place.browser().post("/api/v1/tasks/claim", json=body, headers=program).status_code == 401
    assert root.post(f"{path}/link").status_code == 422  # programs have no other way in


def test_a_person_is_changed_disabled_and_enabled(place, root):
    ann = place.person("Ann")
    browser = place.logged_in(ann)
    path = f"/admin/people/{ann.id}"
    form = {"role": "reviewer", "skills": "law, maths", "languages": "en", "cap": "0"}
    assert root.post(path, data=form).status_code == 303
    row = next(one for one in rows(place, annotator) if one.id == ann.id)
    assert (row.role, row.skills, row.languages) == ("reviewer", ["law", "maths"], ["en"])
    assert root.post(path, data=form | {"cap": "5"}).status_code == 403  # only Ann can
    root.post(f"{path}/disable")
    assert browser.get("/account").status_code == 303
    root.post(f"{path}/enable")
    assert browser.get("/account").status_code == 303  # the session is gone for good
    link = root.post(f"{path}/link")
    assert re.search(r"/link#[\w-]{43}", link.text)


def test_a_deletion_needs_the_name_and_takes_the_page_with_it(place, root):
    ann = place.person("Zebedee")
    path = f"/admin/people/{ann.id}"
    assert root.post(f"{path}/delete", data={"name": "Bob"}).status_code == 422
    assert root.post(f"{path}/delete", data={"name": "Zebedee"}).status_code == 303
    assert root.get(path).status_code == 404
    assert "Zebedee" not in root.get("/admin/people").text
    assert "Zebedee" not in root.get("/admin/audit").text


def test_what_admins_do_stands_in_the_audit_with_ids_only(place, root):
    place.project("p")
    ann = place.person("Ann Secret")
    root.post("/admin/projects/p/members", data={"person_id": ann.id})
    root.post(f"/admin/people/{ann.id}", data={"role": "lead", "skills": "", "languages": "", "cap": "0"})
    root.post("/admin/invites", data={"role": "lead", "email": "someone@secret.example"})
    page = root.get("/admin/audit").text
    for part in ("member.add", "person.role", "invite.make", ann.id):
        assert part in page
    assert "secret" not in page.lower()


def test_a_webhook_is_added_tested_and_its_dead_events_are_sent_anew(place, root):
    place.project("p")
    form = {"url": "https://hooks.example.org/x", "events": ["round.frozen", "round.promoted"]}
    made = root.post("/admin/projects/p/webhooks", data=form)
    [secret] = re.findall(r"whsec_[\w+/=]+", made.text)
    assert secret not in root.get("/admin/projects/p").text + root.get("/admin/webhooks").text
    [hook] = place.database.read(webhooks.list_webhooks)
    root.post(f"/admin/webhooks/{hook.id}/test")
    place.database.write(
        lambda c: c.execute(sa.update(delivery).values(state="dead", attempts=7, error="no"))
    )
    [dead] = rows(place, delivery)
    assert "Send again" in root.get("/admin/webhooks").text
    assert root.post(f"/admin/deliveries/{dead.id}/again").status_code == 303
    assert rows(place, delivery)[0].state == "waiting"
    root.post(f"/admin/webhooks/{hook.id}/state", data={"state": "disabled"})
    assert place.database.read(webhooks.list_webhooks)[0].state == "disabled"
    for wrong in ({"url": "file:///etc/passwd"}, {"events": []}):
        assert root.post("/admin/projects/p/webhooks", data=form | wrong).status_code == 422


def test_the_running_app_sends_what_is_due(tmp_path):
    got = []

    class Hook(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = open_place(tmp_path, WebOptions(reachable_hosts=("127.0.0.1",)))
    place.project("p")

    def event(connection):
        url = f"http://127.0.0.1:{server.server_port}/"
        webhooks.add_webhook(connection, place.database.now(), "p", url, ["round.frozen"], actor="x")
        webhooks.announce(connection, place.database.now(), "p", "round.frozen", {})

    place.database.write(event)
    with TestClient(place.app, base_url=HERE):
        until = time.monotonic() + 60
        while not got and time.monotonic() < until:
            time.sleep(0.05)
    assert len(got) == 1
    server.shutdown()
    place.database.close()
