"""Somebody who judges in a real browser: fixtures and the steps that tests share.

A test file takes the fixtures by name: `site, browser, open_page = judging.site, judging.browser, judging.open_page`.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from prefloop.labels.publish import NewTask
from web.serving import CHROMIUM, COOKIE, Site, new_task, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 375, "height": 667}
ZOOMED = {"width": 720, "height": 450}
"""1440 x 900 at 200 %."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("labels")) as running:
        yield running


@pytest.fixture
def open_page(browser, site) -> Iterator[Any]:
    """Opens a page of somebody's; an error in a script fails the test."""
    errors: list[str] = []
    contexts = []

    def opened(token: str, path: str, *, viewport: dict[str, int] = DESKTOP, **about: Any) -> Any:
        context = browser.new_context(viewport=viewport, reduced_motion="reduce", **about)
        context.set_default_timeout(30_000)
        context.add_cookies([{"name": COOKIE, "value": token, "url": site.url}])
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(site.url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


names = itertools.count()


def member(site: Site, config: str, tasks: list[NewTask], **about: Any) -> tuple[str, str, list[str]]:
    """A project of its own with one annotator: its id, the session, the ids of the tasks."""
    project = f"project-{next(names)}"
    ids = site.project(project, config, tasks, **about)
    _, token = site.person(f"Ada {project}", project)
    return project, token, ids


def pairs(count: int) -> list[NewTask]:
    return [new_task(number, f"zero {number}", f"one {number}") for number in range(count)]


def of_tasks(site: Site, ids: list[str]) -> list[sa.Row[Any]]:
    return [one for one in site.judgements() if one.task_id in set(ids)]


def token_of(page: Any) -> str:
    """The lease of the task that is shown."""
    page.wait_for_selector("#task-data", state="attached")
    return json.loads(page.text_content("#task-data"))["token"]


def wait_for_next(page: Any, token: str) -> None:
    """Until another task, or none, is shown."""
    page.wait_for_function(
        "before => { const data = document.querySelector('#task-data');"
        " return document.querySelector('#nothing-left') || (data && JSON.parse(data.textContent).token !== before); }",
        arg=token,
    )


def wait_until_ready(page: Any) -> None:
    page.wait_for_selector("#submit[aria-disabled=false]")


def send(page: Any) -> None:
    token = token_of(page)
    wait_until_ready(page)
    page.keyboard.press("Control+Enter")
    wait_for_next(page, token)


def faults(page: Any) -> list[str]:
    """What axe finds serious or critical in a page, for those who see it through a tool."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
