"""Reviewing and overseeing in a real browser: by keys alone, with hostile text, on a phone."""

import shutil
import socket
import threading
import time

import pytest
import sqlalchemy as sa
import uvicorn
from tests.web.overseeing import PROJECT, Office, office, pair
from tests.web.payloads import PAYLOADS

from prefloop.labels.accounts import open_session
from prefloop.labels.schema import adjudication, flag, task
from prefloop.web.app import WebOptions, create_app
from web.judging import faults

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium"),
]
PAGES = (
    "rounds",
    "rounds/1",
    "rounds/1/freeze",
    "quality",
    "data",
    "tasks/t1",
    "export",
    "flags",
    "guidelines",
    "gold",
    "people",
)


@pytest.fixture
def served(tmp_path):
    """A project with disagreements on hostile texts, and its address."""
    with office(tmp_path) as desk, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for number, payload in enumerate(list(PAYLOADS.values())[:12], start=1):
            desk.publish(
                pair(number, asked=payload, texts=(payload, "short"), reward_p=0.2, tags=(payload[:60],))
            )
            for name in ("Xu", "Yi"):
                desk.says(name, f"t{number}", "a", 1, comment=payload)
        app = create_app(desk.database, WebOptions(public_url=url))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        yield desk, url
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture
def open_page(served):
    """A page of a lead; whatever goes wrong in it is noted in `page.wrong`."""
    from playwright.sync_api import sync_playwright

    desk, url = served
    person = desk.person("Lea", "lead")
    token = desk.database.write(lambda c: open_session(c, desk.database.now(), person.id))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def opened(path: str, width: int = 1440):
            context = browser.new_context(viewport={"width": width, "height": 900}, locale="en")
            context.add_cookies([{"name": "prefloop_session", "value": token, "url": url}])
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.wrong = []
            page.on("dialog", lambda dialog: (page.wrong.append(dialog.message), dialog.dismiss()))
            page.on("pageerror", lambda error: page.wrong.append(str(error)))
            page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
            page.goto(f"{url}/lead/{PROJECT}/{path}")
            return page

        yield opened
        browser.close()


def adjudications(desk: Office):
    return desk.rows(sa.select(adjudication).order_by(adjudication.c.id))


def test_two_tasks_are_reviewed_by_keys_alone_and_the_other_side_is_seen_after_the_vote(served, open_page):
    desk, _ = served
    page = open_page("review?against=reward")
    page.add_init_script("addEventListener('pointerdown', () => (window.touched = true), true)")
    for number, key in enumerate(("2", "7"), start=1):
        page.wait_for_selector('#review-form [data-action="submit"] kbd:not(:empty)')  # the script is there
        page.keyboard.press("r")  # nothing to see yet
        assert not page.locator("#revealed").count()
        page.keyboard.press(key)
        page.keyboard.press("Control+Enter")  # no reason yet: the field gets the focus
        page.keyboard.type("B bores me, 1 2 3")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector('[data-action="next"] kbd:not(:empty)')
        assert len(adjudications(desk)) == number
        page.keyboard.press("r")
        page.wait_for_selector("#revealed")
        page.wait_for_selector('[data-action="next"] kbd:not(:empty)')
        page.keyboard.press("n")
    page.wait_for_selector("#review-form")
    first, second = adjudications(desk)
    assert {first.value["strength"], second.value["strength"]} <= {2, 7}
    assert [one.reason for one in (first, second)] == ["B bores me, 1 2 3"] * 2
    assert first.revealed and second.revealed
    assert page.evaluate("window.touched") is None
    assert page.wrong == []


def test_no_page_runs_hostile_text_breaks_the_policy_or_scrolls_sideways_on_a_phone(open_page):
    page = open_page("rounds", width=375)
    for path in PAGES:
        page.goto(page.url.split("/lead/")[0] + f"/lead/{PROJECT}/{path}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert page.evaluate("window.broken") is None, path
    assert page.wrong == []


def test_tools_for_the_blind_find_no_serious_fault_on_pages_of_known_answers(served, open_page):
    """The list with an appeal, a gold task, one that was retired, and a task that can become one."""
    desk, _ = served
    desk.publish(
        pair(30, expected={"choice": "a"}, why="It says **more**."),
        pair(31, expected={"choice": "a"}, strategy="qualification", why="It says **more**."),
        pair(32, expected={"choice": "b"}),
        round_id=None,
    )
    desk.says("Xu", "t30", "b")
    desk.says("Xu", "t31", "b")
    desk.database.write(
        lambda c: c.execute(sa.update(task).where(task.c.id == "t32").values(state="retired"))
    )
    asks = {
        "task_id": "t31",
        "annotator_id": desk.people["Xu"].id,
        "reason": "appeal",
        "comment": "B is **better**",
    }
    desk.database.write(
        lambda c: c.execute(sa.insert(flag).values(asks | {"created_at": desk.database.now()}))
    )
    desk.database.write(
        lambda c: c.execute(sa.update(task).where(task.c.id == "t1").values(valid=task.c.overlap))
    )
    page = open_page("gold")
    begin = page.url.rpartition("/")[0]
    for scheme, width in (("light", 1440), ("dark", 375)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        for path, has in (
            ("gold", "B is **better**"),
            ("tasks/t30", "It says"),
            ("tasks/t32", ""),
            ("tasks/t1", "gold task"),
        ):
            page.goto(f"{begin}/{path}")
            assert has in page.text_content("main"), path
            assert faults(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert page.wrong == []


def test_filters_narrow_the_list_at_once_and_an_export_is_counted(open_page):
    from playwright.sync_api import expect

    page = open_page("data")
    page.keyboard.press("/")
    page.keyboard.type("alert")
    expect(page.locator("#found strong")).not_to_have_text("12", timeout=60_000)
    page.goto(page.url.split("/lead/")[0] + f"/lead/{PROJECT}/export")
    page.click("text=Count first")
    page.wait_for_selector("#counts .notice")
    assert "of 24 judgements" in (page.text_content("#counts") or "")
    assert page.wrong == []
