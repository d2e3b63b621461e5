"""Who may do what: every route of the app is tried by strangers, other sites, programs and people of a lower role."""

import re
import tempfile

import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from prefloop.labels import accounts, people, queue, tokens
from prefloop.labels.database import open_database
from prefloop.labels.schema import api_token
from prefloop.web import security
from prefloop.web.app import WebOptions, create_app
from prefloop.web.guard import SAFE_METHODS
from web.visiting import HERE, csrf_in, log_in, open_place

PASSWORD = "correct horse battery staple"
PUBLIC = {
    ("GET", "/login"),
    ("POST", "/login"),
    ("GET", "/link"),
    ("POST", "/link"),
    ("GET", "/invite"),
    ("POST", "/invite"),
    ("POST", "/invite/accept"),
    ("GET", "/language"),
    ("GET", "/health"),
}
"""What can be asked for without being logged in."""
FOR_LEADS, FOR_ADMINS = ("/lead", "/admin"), ("/admin",)
"""Beginnings of what annotators, and leads, are refused."""
PROMISED = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def templates_of(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path of everything that the app answers, parameters in braces."""
    found: list[tuple[str, str]] = []

    def walk(routes) -> None:
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                walk(inner.routes)
            elif hasattr(route, "methods"):
                found.extend((method, route.path) for method in route.methods)

    walk(app.routes)
    return set(found)


with tempfile.TemporaryDirectory() as folder:  # nothing is asked of this store
    TEMPLATES = templates_of(create_app(open_database(f"{folder}/labels.sqlite"), WebOptions()))
ROUTES = sorted({(method, re.sub(r"\{[^}]+\}", "1", path)) for method, path in TEMPLATES})
"""With something in the place of every parameter."""
UNSAFE = [(method, path) for method, path in ROUTES if method not in SAFE_METHODS]


def under(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


# --- every route -----------------------------------------------------------------------------------------------------


def test_the_routes_are_found():
    assert {("GET", "/login"), ("POST", "/api/v1/tasks/claim"), ("GET", "/admin/audit")} <= set(ROUTES)
    assert len(ROUTES) > 40


def test_every_unsafe_route_refuses_a_session_without_its_csrf_token(place):
    browser = place.logged_in(place.person("Root", "admin"))
    del browser.headers["x-csrf-token"]
    before = place.everything()
    for method, path in UNSAFE:
        for headers in ({}, {"x-csrf-token": "wrong"}):
            reply = browser.request(method, path, headers=headers)
            assert reply.status_code == 403, (method, path, reply.text)
    assert place.everything() == before


def test_every_unsafe_route_refuses_another_site_even_with_the_token(place):
    browser = place.logged_in(place.person("Root", "admin"))
    before = place.everything()
    for method, path in UNSAFE:
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "null", "sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "cross-site"},
            {"origin": "http://127.0.0.1:9999"},
        ):
            reply = browser.request(method, path, headers=headers)
            assert reply.status_code == 403, (method, path, headers)
    assert place.everything() == before


def test_every_route_refuses_who_is_not_logged_in_but_the_public_ones(place):
    before = place.everything()
    for method, path in ROUTES:
        if (method, path) in PUBLIC:
            continue
        reply = place.browser().request(method, path)
        is_sent_to_login = reply.status_code == 303 and reply.headers["location"].startswith("/login")
        assert is_sent_to_login or reply.status_code == 401, (method, path, reply.status_code)
        if path.startswith("/api/"):
            assert reply.status_code == 401
    assert place.everything() == before


@pytest.mark.parametrize(
    ("role", "refused"),
    [("annotator", FOR_LEADS), ("judge", FOR_LEADS), ("reviewer", FOR_ADMINS), ("lead", FOR_ADMINS)],
)
def test_routes_of_higher_roles_refuse_lower_ones(place, role, refused):
    browser = place.logged_in(place.person("Ann", role))
    before = place.everything()
    for method, path in ROUTES:
        if under(path, refused):
            reply = browser.request(method, path)
            assert reply.status_code in (403, 404), (method, path, reply.status_code)
    assert place.everything() == before


def test_every_route_refuses_a_token_without_scopes(place):
    root = place.person("Root", "admin")
    _, token = make_token(place, root, ["admin"])
    place.database.write(lambda connection: connection.execute(sa.update(api_token).values(scopes=[])))
    program = place.browser()
    program.headers["authorization"] = f"Bearer {token}"
    program.get("/api/v1/none")
    for method, path in ROUTES:
        if (method, path) not in PUBLIC:
            reply = program.request(method, path)
            assert reply.status_code == 403, (method, path, reply.status_code, reply.text)


def test_no_get_changes_anything(place):
    place.project("1")
    browser = place.logged_in(place.person("Root", "admin", project="1"))
    before = place.everything()
    for method, path in ROUTES:
        if method == "GET":
            browser.get(path)
    assert place.everything() == before


def test_every_form_of_a_stranger_needs_the_token_of_its_page(place):
    place.person("Ann", password=PASSWORD)
    browser = place.browser()
    form = {"called": "Ann", "password": PASSWORD}
    assert browser.post("/login", data=form).status_code == 403
    assert browser.post("/login", data=form | {"csrf": "wrong"}).status_code == 403
    elsewhere = csrf_in(place.browser().get("/login").text)  # good in the attacker's own browser only
    browser.get("/login")
    assert browser.post("/login", data=form | {"csrf": elsewhere}).status_code == 403
    assert log_in(browser, "Ann", PASSWORD).status_code == 303


def test_our_own_pages_are_let_through(place):
    place.project()
    browser = place.logged_in(place.person("Ann", project="p"))
    for headers in (
        {},
        {"origin": HERE},
        {"origin": HERE, "sec-fetch-site": "same-origin"},
        {"origin": "null", "sec-fetch-site": "same-origin"},  # a form of a page that hides its address
    ):
        assert browser.post("/api/v1/tasks/claim", json={"project": "p"}, headers=headers).status_code == 200


def test_an_origin_over_plain_http_is_another_site_for_an_app_under_https(tmp_path):
    place = open_place(tmp_path, WebOptions(public_url="https://label.example.org"))
    browser = place.browser("https://label.example.org")
    token = csrf_in(browser.get("/login").text)
    for origin, status in (("http://label.example.org", 403), ("https://label.example.org", 401)):
        reply = browser.post("/login", data={"csrf": token}, headers={"origin": origin})
        assert reply.status_code == status
    place.database.close()


# --- other people's things -------------------------------------------------------------------------------------------


def test_nobody_touches_a_task_or_an_answer_of_another(place):
    place.project()
    ann, bob = (place.logged_in(place.person(name, project="p")) for name in ("Ann", "Bob"))
    mine = ann.post("/api/v1/tasks/claim", json={"project": "p"}).json()["lease"]["token"]
    answer = {"value": {"strength": 2}}
    before = place.everything()
    for method, path, body in (
        ("POST", f"/api/v1/leases/{mine}/heartbeat", None),
        ("PUT", f"/api/v1/leases/{mine}/draft", {"draft": {"a": 1}}),
        ("POST", f"/api/v1/leases/{mine}/submit", answer),
        ("POST", f"/api/v1/leases/{mine}/skip", {"reason": "unclear"}),
        ("POST", f"/api/v1/leases/{mine}/flag", {"reason": "bug"}),
    ):
        reply = bob.request(method, path, json=body)
        assert reply.status_code == 404, (method, path, reply.text)
    assert place.everything() == before
    stored = ann.post(f"/api/v1/leases/{mine}/submit", json=answer).json()["judgement_id"]
    before = place.everything()
    revision = answer | {"client_uuid": "0123456789abcdef"}
    refused = bob.post(f"/api/v1/judgements/{stored}/revise", json=revision)
    assert (refused.status_code, place.everything()) == (404, before)
    again = bob.post(f"/api/v1/leases/{mine}/submit", json=answer)  # the same words, under the same token
    assert (again.status_code, place.everything()) == (404, before)
    assert ann.post(f"/api/v1/judgements/{stored}/revise", json=revision).status_code == 200


def test_no_page_shows_a_task_or_an_answer_of_another(place):
    place.project()
    ann, bob = (place.logged_in(place.person(name, project="p")) for name in ("Ann", "Bob"))
    claimed = [ann.post("/api/v1/tasks/claim", json={"project": "p"}).json()]
    answered = claimed[0]["lease"]["token"]
    stored = ann.post(f"/api/v1/leases/{answered}/submit", json={"value": {"strength": 2}}).json()[
        "judgement_id"
    ]
    held = ann.post("/api/v1/tasks/claim", json={"project": "p"}).json()["lease"]["token"]
    anns = {"{token}": held, "{judgement_id}": str(stored)}
    tried = 0
    for method, template in TEMPLATES:
        if method == "GET" and any(name in template for name in anns):
            path = template
            for name, value in anns.items():
                path = path.replace(name, value)
            assert bob.get(path, params={"form": "raw"}).status_code == 404, path
            assert ann.get(path, params={"form": "raw"}).status_code == 200, path
            tried += 1
    assert tried >= 2
    for path in ("/history", "/api/v1/judgements/mine"):
        assert "question" not in bob.get(path).text


def test_an_answer_of_another_looks_like_one_that_is_not_there(place):
    place.project()
    ann, bob = (place.logged_in(place.person(name, project="p")) for name in ("Ann", "Bob"))
    token = ann.post("/api/v1/tasks/claim", json={"project": "p"}).json()["lease"]["token"]
    stored = ann.post(f"/api/v1/leases/{token}/submit", json={"value": {"strength": 2}}).json()[
        "judgement_id"
    ]
    body = {"value": {"strength": 2}, "client_uuid": "0123456789abcdef"}
    theirs = bob.post(f"/api/v1/judgements/{stored}/revise", json=body)
    nobodys = bob.post("/api/v1/judgements/999999/revise", json=body)
    assert (theirs.status_code, theirs.text) == (nobodys.status_code, nobodys.text)


def test_projects_of_others_are_refused(place):
    place.project("p")
    browser = place.logged_in(place.person("Ann"))
    assert browser.post("/api/v1/tasks/claim", json={"project": "p"}).status_code in (403, 404)
    assert browser.get("/consent/p").status_code == 404


def test_a_claim_says_nothing_of_gold_policies_or_scores(place):
    place.project()
    reply = place.logged_in(place.person("Ann", project="p")).post(
        "/api/v1/tasks/claim", json={"project": "p"}
    )
    ids = place.database.read(
        lambda connection: (
            [id for row in connection.execute(sa.text("SELECT id FROM task")) for id in row]
            + [id for row in connection.execute(sa.text("SELECT id FROM completion")) for id in row]
        )
    )
    assert len(ids) == 9  # 3 tasks, 6 completions
    assert not [id for id in ids if id in reply.text]
    for word in ("gold", "policy", "reward", "score", "probability", "strategy", "expected"):
        assert word not in reply.text


# --- tokens of programs ----------------------------------------------------------------------------------------------


def make_token(place, person, scopes):
    now = place.database.now()
    return place.database.write(
        lambda connection: tokens.make_token(
            connection, now, person.id, actor=person.id, name="test", scopes=scopes, days=30
        )
    )


def test_a_token_does_what_its_scopes_say_and_needs_no_csrf_token(place):
    place.project()
    judge = place.person("Judge", "judge", project="p")
    for scopes, status in (
        (["tasks:read"], 403),
        (["export:read"], 403),
        (["judge:write"], 204),  # no judgements of judges are wanted here: nothing is left
        (["admin"], 204),
    ):
        _, token = make_token(place, judge, scopes)
        reply = place.browser().post(
            "/api/v1/tasks/claim", json={"project": "p"}, headers={"authorization": f"Bearer {token}"}
        )
        assert reply.status_code == status, scopes


def test_a_token_ends_by_revocation_by_time_and_with_its_person(place):
    judge = place.person("Judge", "judge")

    def status(token):
        body = {"project": "p"}
        headers = {"authorization": f"Bearer {token}"}
        return place.browser().post("/api/v1/tasks/claim", json=body, headers=headers).status_code

    id, token = make_token(place, judge, ["judge:write"])
    assert status(token) == 404  # let in; there is no such project
    place.database.write(lambda c: tokens.revoke_token(c, place.database.now(), id, actor="x"))
    assert status(token) == 401
    _, token = make_token(place, judge, ["judge:write"])
    place.clock.forward(hours=24 * 30)
    assert status(token) == 401
    _, token = make_token(place, judge, ["judge:write"])

    place.database.write(lambda c: people.disable_person(c, place.database.now(), judge.id, actor="x"))
    assert status(token) == 401
    assert status("pfl_nothing") == status("") == 401


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_that_somebody_planted_is_not_the_one_that_a_login_opens(place):
    place.person("Ann", password=PASSWORD)
    browser = place.browser()
    browser.cookies.set(security.COOKIE, "planted", domain="127.0.0.1", path="/")
    log_in(browser, "Ann", PASSWORD)
    thief = place.browser()
    thief.cookies.set(security.COOKIE, "planted")
    assert thief.get("/account").status_code == 303


def test_every_login_rotates_the_session_and_ends_the_one_before(place):
    place.person("Ann", password=PASSWORD)
    browser = place.browser()
    csrf = csrf_in(browser.get("/login").text)
    form = {"csrf": csrf, "called": "Ann", "password": PASSWORD}
    first = browser.post("/login", data=form).cookies[security.COOKIE]
    second = browser.post("/login", data=form).cookies[security.COOKIE]
    assert first != second
    for token, status in ((first, 303), (second, 200)):
        other = place.browser()
        other.cookies.set(security.COOKIE, token)
        assert other.get("/account").status_code == status


@pytest.mark.parametrize(("minutes", "status"), [(119, 200), (121, 303)])
def test_a_session_ends_after_two_hours_without_use(place, minutes, status):
    browser = place.logged_in(place.person("Ann"))
    place.clock.forward(minutes=minutes)
    assert browser.get("/account").status_code == status


def test_a_session_ends_after_twelve_hours_however_much_it_is_used(place):
    browser = place.logged_in(place.person("Ann"))
    for _ in range(23):  # 11.5 hours
        place.clock.forward(minutes=30)
        assert browser.get("/account").status_code == 200
    place.clock.forward(minutes=30)
    assert browser.get("/account").status_code == 303


def test_a_new_password_ends_all_other_sessions_and_rotates_this_one(place):
    ann = place.person("Ann", password=PASSWORD)
    here, there = place.logged_in(ann), place.logged_in(ann)
    before = here.cookies[security.COOKIE]
    reply = here.post("/account/password", data={"old": PASSWORD, "new": "another four words"})
    assert reply.status_code == 303
    assert there.get("/account").status_code == 303
    old = place.browser()
    old.cookies.set(security.COOKIE, before)
    assert old.get("/account").status_code == 303
    fresh = place.browser()
    fresh.cookies.set(security.COOKIE, reply.cookies[security.COOKIE])
    assert fresh.get("/account").status_code == 200


def test_logout_ends_the_session_on_the_server(place):
    browser = place.logged_in(place.person("Ann"))
    token = browser.cookies[security.COOKIE]
    assert browser.post("/logout").status_code == 303
    thief = place.browser()
    thief.cookies.set(security.COOKIE, token)
    assert thief.get("/account").status_code == 303


def test_the_cookie_is_hidden_from_scripts_and_from_plain_http(tmp_path):
    place = open_place(tmp_path, WebOptions(public_url="https://label.example.org"))
    place.person("Ann", password=PASSWORD)
    reply = log_in(place.browser("https://label.example.org"), "Ann", PASSWORD)
    cookie = next(one for one in reply.headers.get_list("set-cookie") if "session" in one)
    assert cookie.startswith("__Host-")
    assert {"HttpOnly", "Secure", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
    assert reply.headers["strict-transport-security"] == "max-age=31536000"
    place.database.close()


# --- what every answer carries ---------------------------------------------------------------------------------------


def test_all_answers_carry_the_headers_even_errors_and_files(place):
    @place.app.get("/boom")
    def boom() -> None:
        raise RuntimeError("hunter2 in /srv/secret")

    browser = place.logged_in(place.person("Ann"))
    browser._transport.raise_server_exceptions = False  # type: ignore[attr-defined]
    replies = {
        200: [browser.get("/account"), browser.get("/static/app.css")],
        303: [place.browser().get("/")],
        304: [],
        400: [browser.get("/account", headers={"host": "evil.example"})],
        401: [place.browser().post("/api/v1/tasks/claim")],
        403: [browser.get("/admin"), browser.post("/logout", headers={"origin": "https://evil.example"})],
        404: [browser.get("/nowhere"), browser.get("/static/nothing"), browser.get("/static/../app.py")],
        405: [browser.delete("/account")],
        413: [browser.post("/login", content=b"x" * 2_000_001)],
        422: [browser.post("/api/v1/tasks/claim", json={"wrong": 1})],
        500: [browser.get("/boom")],
    }
    etag = replies[200][1].headers["etag"]
    replies[304].append(browser.get("/static/app.css", headers={"if-none-match": etag}))
    for status, all_of_it in replies.items():
        for reply in all_of_it:
            assert reply.status_code == status, (status, reply.request.url)
            for name, value in PROMISED.items():
                assert reply.headers[name] == value, (status, name)
            policy = reply.headers["content-security-policy"]
            for part in (
                "default-src 'self'",
                "script-src 'self'",
                "object-src 'none'",
                "base-uri 'none'",
                "frame-ancestors 'none'",
                "img-src 'self' data:",
            ):
                assert part in policy
            assert "unsafe" not in policy
    assert "hunter2" not in replies[500][0].text
    assert "Traceback" not in replies[500][0].text


def test_errors_do_not_repeat_what_was_sent_unescaped(place):
    evil = "<script>alert(1)</script>"
    browser = place.logged_in(place.person("Root", "admin"))
    for reply in (
        browser.get(f"/{evil}"),
        browser.get("/admin/audit", params={"action": evil}),
        browser.get("/admin/audit", params={"before": evil}),
        browser.get(f"/admin/projects/{evil}"),
        browser.post("/admin/projects/new", data={"id": evil, "title": evil, "source": f"{evil}: 1"}),
        browser.post("/admin/programs", data={"name": evil * 9}),
        place.browser().post("/login", data={"called": evil}),
        log_in(place.browser(), evil, evil),
    ):
        assert evil not in reply.text or "json" in reply.headers["content-type"]


def test_another_name_in_the_host_header_is_refused(place):
    for host, status in (
        ("127.0.0.1:8765", 200),
        ("localhost:1", 200),
        ("[::1]:8765", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("evil.example:8765", 400),
        ("[", 400),
    ):
        assert place.browser().get("/login", headers={"host": host}).status_code == status, host


def test_a_trusted_host_is_served(tmp_path):
    place = open_place(tmp_path, WebOptions(trusted_hosts=("label.lan:8765", "Any.lan", "[fd00::5]")))
    for host, status in (
        ("label.lan:8765", 200),
        ("label.lan:9999", 400),
        ("any.lan", 200),
        ("any.lan:9999", 200),
        ("[fd00::5]:8765", 200),
        ("any.lan.evil.example", 400),
    ):
        assert place.browser().get("/login", headers={"host": host}).status_code == status, host
    place.database.close()


def test_a_body_is_stopped_at_the_limit_whether_its_length_was_announced_or_not(place):
    browser = place.logged_in(place.person("Ann"))
    assert browser.post("/account/profile", data={"languages": "x" * 2_000_000}).status_code == 413

    def pieces():
        for _ in range(30):
            yield b"languages=" + b"x" * 100_000

    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert browser.post("/account/profile", content=pieces(), headers=headers).status_code == 413
    claim = browser.post(
        "/api/v1/tasks/claim", content=pieces(), headers={"content-type": "application/json"}
    )
    assert claim.status_code == 413


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("/account", "/account"),
        ("/admin/audit?action=x", "/admin/audit?action=x"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/a\\..\\\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/\t/evil.example", "/"),
        ("/a\r\nSet-Cookie: x=y", "/"),
        ("", "/"),
    ],
)
def test_only_paths_of_ours_are_gone_on_to(asked, given):
    assert security.local_path(asked) == given


def test_a_login_goes_on_to_where_somebody_wanted_to_go_but_to_no_other_site(place):
    place.person("Ann", password=PASSWORD)
    browser = place.browser()
    asked = browser.get("/account")
    assert asked.headers["location"] == "/login?next=/account"
    form = {"csrf": csrf_in(browser.get("/login").text), "called": "Ann", "password": PASSWORD}
    assert browser.post("/login", data=form | {"next": "//evil.example"}).headers["location"] == "/"
    assert browser.post("/login", data=form | {"next": "/account"}).headers["location"] == "/account"
    for path in ("/login?next=", "/language?to=zh&back="):
        assert browser.get(path + "%2F%09%2Fevil.example").headers["location"] == "/"


def test_the_role_of_now_counts_not_that_of_the_login(place):
    place.person("Root", "admin")
    other = place.person("Other", "admin")
    browser = place.logged_in(other)
    assert browser.get("/admin/audit").status_code == 200

    place.database.write(
        lambda c: people.change_role(c, place.database.now(), other.id, "annotator", actor="x")
    )
    assert browser.get("/admin/audit").status_code == 403


def test_nothing_that_lets_in_stands_in_the_database_or_the_log(place, caplog, tmp_path):
    caplog.set_level("DEBUG")
    root = place.person("Root", "admin", password=PASSWORD)
    now = place.database.now()
    secrets = [PASSWORD, "a wrong password here"]
    browser = place.browser()
    log_in(browser, "Root", secrets[1])
    secrets.append(log_in(browser, "Root", PASSWORD).cookies[security.COOKIE])
    secrets.append(place.database.write(lambda c: accounts.make_link(c, now, root.id, actor=root.id)))
    secrets.append(place.database.write(lambda c: accounts.make_invite(c, now, actor=root.id)))
    secrets.append(make_token(place, root, ["admin"])[1])
    place.database.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for one in secrets:
        assert one.encode() not in stored
        assert one not in caplog.text


def test_an_error_of_the_database_does_not_show_what_was_to_be_stored(place):
    with pytest.raises(sa.exc.IntegrityError) as failed:
        place.database.write(
            lambda c: c.execute(
                sa.text("INSERT INTO member (project_id, annotator_id) VALUES (:a, NULL)"), {"a": "hunter2"}
            )
        )
    assert "hunter2" not in str(failed.value)


def test_who_was_disabled_is_out_at_once_and_their_task_goes_back(place):
    place.project(tasks=1)
    ann, bob = place.person("Ann", project="p"), place.person("Bob", project="p")
    browser = place.logged_in(ann)
    browser.post("/api/v1/tasks/claim", json={"project": "p"})

    assert place.database.write(lambda c: queue.claim(c, place.database.now(), "p", bob)) is None
    place.database.write(lambda c: people.disable_person(c, place.database.now(), ann.id, actor="x"))
    assert browser.get("/account").status_code == 303
    assert place.database.write(lambda c: queue.claim(c, place.database.now(), "p", bob)) is not None
