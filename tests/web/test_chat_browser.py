"""A conversation in a real browser, with the keyboard alone."""

import re
import shutil
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from prefloop.web.app import WebOptions, create_app
from prefloop.web.security import COOKIE
from web.talk import PROJECT, RULES, Site, Slow, site_at

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUICK = {"dwell": {"least_s": 0, "per_character_ms": 0, "most_s": 0}}
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script> **bold**"
SECONDS = 20_000

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium"),
]


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[Site, str]]:
    """A site, and the address of a server over the same store."""
    config = QUICK | {"rules": RULES, "chat": {"max_turns": 4}}
    answerers = {"quick": Slow("quick"), "slow": Slow(f"slow {EVIL}", 0.3)}
    with site_at(tmp_path / "labels.sqlite", answerers, config=config) as site:
        options = WebOptions("http://127.0.0.1", answerers=answerers)
        server = uvicorn.Server(
            uvicorn.Config(create_app(site.database, options), host="127.0.0.1", port=0, log_level="warning")
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield site, f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(served):
    """A page of somebody who is logged in. It may not use a pointer, and nothing may go wrong in it unseen."""
    site, address = served
    ada = site.person("Ada", exposure_cap=5)
    wrong: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 375, "height": 667})
        context.add_cookies([{"name": COOKIE, "value": ada.token, "url": address}])
        context.set_default_timeout(SECONDS)
        found = context.new_page()
        found.on("pageerror", lambda error: wrong.append(str(error)))
        found.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        found.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        found.goto(f"{address}/chat/{PROJECT}")
        yield found
        browser.close()
    assert wrong == []


def tab_to(page, selector: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def read_to_the_end(page) -> None:
    """Scrolls by keys until both answers have been seen."""
    for _ in range(30):
        if "to the end" not in page.inner_text("#status"):
            return
        page.keyboard.press("PageDown")
        page.wait_for_timeout(100)
    raise AssertionError("the end of the answers is not reached by keys")


def test_three_turns_are_chatted_with_the_keyboard_alone(served, page):
    site, _ = served
    tab_to(page, "[data-start=live]")
    page.keyboard.press("Enter")
    said = ["Hello", "Why?", "And then?"]
    for number, key in enumerate(["2", "t", "8"]):
        page.wait_for_selector("#turn:focus")
        page.keyboard.type(said[number])
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#task")
        assert page.locator(".answer").count() == 2
        read_to_the_end(page)
        page.keyboard.press(key)
        page.keyboard.press("Control+Enter")
    page.wait_for_selector("#turn:focus")
    assert page.locator(".said.theirs").count() == 3
    assert page.locator("img, .text script").count() == 0
    page.keyboard.press("Escape")
    page.keyboard.press("q")
    page.keyboard.press("4")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=This conversation has ended")
    assert [row.text for row in site.rows("select text from turn order by number")] == said
    values = [row.value for row in site.rows("select value from judgement order by id")]
    assert ["tie" in one for one in values] == [False, True, False]
    assert '"rating": 4' in site.rows("select ending from conversation")[0].ending
    assert all(row.active_ms is not None for row in site.rows("select active_ms from judgement"))


def test_both_answers_come_into_the_page_in_one_change(page):
    page.focus("[data-start=live]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#turn:focus")
    page.evaluate("""() => {
      window.seen = [];
      const look = () => window.seen.push(document.querySelectorAll(".answer [data-text]").length);
      new MutationObserver(look).observe(document.body, {childList: true, subtree: true});
    }""")
    page.keyboard.type("Hello")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#task")
    assert set(page.evaluate("window.seen")) == {0, 2}


def test_an_input_method_can_use_every_key(page):
    page.focus("[data-start=live]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#turn:focus")
    page.evaluate("""() => {
      const field = document.querySelector("#turn");
      for (const key of ["Enter", "1", "q"]) field.dispatchEvent(new KeyboardEvent("keydown",
        {key, ctrlKey: key === "Enter", isComposing: true, bubbles: true, cancelable: true}));
    }""")
    page.keyboard.insert_text("你好1q")
    assert page.locator("#ending").count() == 0
    assert page.input_value("#turn") == "你好1q"
    page.reload()
    page.wait_for_selector("#turn:focus")
    assert page.input_value("#turn") == "你好1q"  # what was not sent is still there


def test_a_rule_is_probed_with_the_keyboard_alone(served, page):
    site, _ = served
    tab_to(page, "[data-start=probe]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#turn:focus")
    assert page.inner_text(".rule-words") == RULES[0]["text"]
    page.keyboard.type("Threaten me")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".said.theirs")
    blur = "getComputedStyle(document.querySelector('.said.theirs .text')).filter"
    page.wait_for_function(f"{blur} !== 'none'")
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.wait_for_function(f"{blur} === 'none'")
    page.keyboard.press("q")
    for key in ["u", "4", "2", "1"]:
        page.keyboard.press(key)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=This conversation has ended")
    (row,) = site.rows("select value from judgement")
    assert re.sub(r"\s", "", row.value) == (
        '{"levels":{"no_threats":"unsure"},"attack":{"success":4,"harm":2,"actionability":1,"task":""}}'
    )


@pytest.mark.parametrize("width", [375, 1440])
def test_no_state_of_the_page_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 667})
    too_wide = "document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(too_wide)
    page.focus("[data-start=live]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#turn:focus")
    page.keyboard.insert_text("a" * 3000)
    assert not page.evaluate(too_wide)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#task")
    assert not page.evaluate(too_wide)
    page.keyboard.press("q")
    page.wait_for_selector("#ending")
    assert not page.evaluate(too_wide)
