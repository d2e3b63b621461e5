"""Coming in and administration in a real browser: links keep their secret, forms arrive, pages fit and can be used."""

import re
import shutil
import socket
import threading
import time

import pytest
import uvicorn

from prefloop.labels import accounts, people
from prefloop.labels.projects import ProjectConfig
from prefloop.web.app import WebOptions
from prefloop.web.limits import Limits
from prefloop.web.serve import uvicorn_options
from web.visiting import open_place

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium"),
]
PASSWORD = "correct horse battery staple"
PHONE, DESK = {"width": 375, "height": 667}, {"width": 1440, "height": 900}


class Requests:
    """Notes what reaches the server."""

    def __init__(self, app):
        self.app, self.lines = app, []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            self.lines.append(f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}")
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A running server with an admin, an annotator and a project."""
    place = open_place(tmp_path_factory.mktemp("served"), WebOptions(limits=Limits(login=1000)))
    config = ProjectConfig(
        gold_share=0, consent="Your answers train a model.\n\nYou can stop.", warning="Violence."
    )
    place.project("p", config)
    place.person("Root", "admin", password=PASSWORD, project="p")
    place.person("Ann with a name that is rather long for a table", project="p")
    requests = Requests(place.app)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(requests, port=port, log_level="error", **uvicorn_options()))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield place, f"http://127.0.0.1:{port}", requests
    server.should_exit = True
    thread.join()
    place.database.close()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport=DESK)
    opened = context.new_page()
    opened.errors = []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on("console", lambda said: opened.errors.append(said.text) if said.type == "error" else None)
    yield opened
    assert opened.errors == []
    context.close()


def log_in(page, base):
    page.goto(f"{base}/login")
    page.fill("#called", "Root")
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{base}/")


def test_a_login_arrives_although_pages_hide_where_they_come_from(served, page):
    _, base, _ = served
    log_in(page, base)
    [cookie] = [one for one in page.context.cookies() if one["name"] == "prefloop_session"]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert "prefloop_session" not in page.evaluate("document.cookie")


def test_the_token_of_a_link_never_stands_in_an_address_that_is_sent(served, page):
    place, base, requests = served
    ann = place.database.read(
        lambda c: people.find_person(c, name="Ann with a name that is rather long for a table")
    )
    now = place.database.now()
    token = place.database.write(lambda c: accounts.make_link(c, now, ann.id, actor=ann.id))
    page.goto(f"{base}/link#{token}")
    page.reload()  # the token is gone from the address: who reloads must open the link again
    assert page.locator("button.primary").is_disabled()
    page.goto(f"{base}/link#{token}")
    page.wait_for_function("location.hash === ''")
    page.click("button.primary")
    page.wait_for_url(f"{base}/account")
    page.go_back()
    assert page.locator("form button.primary").count() <= 1
    assert not [line for line in requests.lines if token in line]


def test_an_invite_becomes_an_account_that_agrees_before_the_first_task(served, page):
    place, base, requests = served
    now = place.database.now()
    token = place.database.write(lambda c: accounts.make_invite(c, now, actor="x", project_ids=["p"]))
    page.goto(f"{base}/invite#{token}")
    page.click("button.primary")
    page.fill("#name", "Ada")
    page.fill("#password", PASSWORD)
    page.click("button.primary")
    page.wait_for_url(f"{base}/")
    page.goto(f"{base}/judge/p")
    assert page.url == f"{base}/consent/p?next=/judge/p"
    page.keyboard.press("Tab")
    page.locator("input[type=checkbox]").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{base}/judge/p")
    assert not [line for line in requests.lines if token in line]


def test_another_site_cannot_use_the_session(served, chromium, page):
    place, base, _ = served
    log_in(page, base)
    before = place.everything()
    evil = f"""<form id=f method=post action="{base}/admin/invites"><input name=role value=admin></form>
        <script>f.submit()</script>"""
    page.route("http://evil.example/", lambda route: route.fulfill(body=evil, content_type="text/html"))
    with page.expect_response(f"{base}/admin/invites") as answer:
        page.goto("http://evil.example/")
    assert answer.value.status == 403
    assert place.everything() == before
    page.errors.clear()  # the browser notes the 403


def test_a_secret_that_is_shown_once_can_be_copied(served, page):
    _, base, _ = served
    log_in(page, base)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=base)
    page.goto(f"{base}/admin/people")
    page.click("section[aria-labelledby=h-invite] button.primary")
    page.click("[data-copy]")
    page.wait_for_function("document.querySelector('[data-copy]').textContent === 'Copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"http://127\.0\.0\.1:8765/invite#[\w-]{43}", copied)


def test_the_line_of_an_error_in_a_projects_yaml_is_marked(served, page):
    _, base, _ = served
    log_in(page, base)
    page.goto(f"{base}/admin/projects/new")
    page.fill("#id", "wrong")
    page.fill("#source", "kind: pairwise\noverlap: 2\ngold_share: 7\n")
    page.click("button.primary")
    page.wait_for_selector("#errors")
    assert page.locator(".gutter > .bad").all_inner_texts() == ["3"]
    page.errors.clear()  # the browser notes the 422


PAGES = (
    "/account",
    "/consent/p",
    "/admin/projects",
    "/admin/projects/new",
    "/admin/projects/p",
    "/admin/people",
    "/admin/tokens",
    "/admin/webhooks",
    "/admin/audit",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_have_no_serious_fault_of_access(served, chromium, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    place, base, _ = served
    root = place.database.read(lambda c: people.find_person(c, name="Root"))
    context = chromium.new_context(viewport=PHONE, color_scheme=scheme)
    page = context.new_page()
    for path in ("/login", "/link", "/invite"):
        page.goto(base + path)
        check(page, axe, path)
    log_in(page, base)
    for path in (*PAGES, f"/admin/people/{root.id}"):
        page.goto(base + path)
        check(page, axe, path)
    context.close()


def check(page, axe, path):
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, (path, wide)
    found = [
        (one["id"], [node["html"][:100] for node in one["nodes"]])
        for one in axe.run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert found == [], path
    small = page.evaluate(
        """[...document.querySelectorAll('button, select, summary, .button, input:not([type=hidden])')]
        .filter(one => one.checkVisibility() && one.type !== 'checkbox' && one.type !== 'radio')
        .filter(one => one.getBoundingClientRect().height < 43.5).map(one => one.outerHTML.slice(0, 80))"""
    )
    assert small == [], path
