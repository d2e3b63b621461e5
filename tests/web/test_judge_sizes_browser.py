"""The pages of judging on small and large screens, with texts of every kind, and for those who do not see them."""

import pytest

from prefloop.labels import publish
from web import judging
from web.judging import (
    DESKTOP,
    PHONE,
    ZOOMED,
    faults,
    member,
    pairs,
    send,
    token_of,
    wait_for_next,
    wait_until_ready,
)
from web.serving import AT_ONCE, NO_BROWSER, new_task

pytestmark = [pytest.mark.browser, NO_BROWSER]
site, browser, open_page = judging.site, judging.browser, judging.open_page


TEXTS = {
    "code": ("```python\n" + "x = [" + "1, " * 200 + "]\n```\n", "`inline` and plain"),
    "table": ("|" + " wide |" * 30 + "\n|" + "---|" * 30 + "\n|" + " cell |" * 30, "no table"),
    "chinese": ("光合作用是植物利用阳光制造食物的过程。" * 40, "植物吃阳光。"),
    "hebrew": ("פוטוסינתזה היא התהליך שבו צמחים יוצרים מזון מאור. " * 20, "צמחים אוכלים אור."),
    "line": ("x" * 100_000, "short"),
}


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP, ZOOMED], ids=["phone", "desktop", "zoomed"])
def test_no_text_makes_the_page_scroll_sideways_or_hides_the_button(site, open_page, viewport):
    tasks = [new_task(number, *texts) for number, texts in enumerate(TEXTS.values())]
    project, token, _ = member(site, "kind: pairwise\naxes: [helpful, harmless]", tasks)
    page = open_page(token, f"/judge/{project}", viewport=viewport)
    for name in TEXTS:
        token_of(page)
        for key in ("", "p", "w", "p", "w", "d"):
            if key:
                page.keyboard.press(key)
                page.wait_for_timeout(120)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, key)
        page.keyboard.press("d")
        page.wait_for_timeout(120)
        while page.locator("[data-unfold]").count():
            page.locator("[data-unfold]").first.click()
        page.keyboard.press("1")
        page.keyboard.press("End")
        wait_until_ready(page)
        page.locator("#submit").scroll_into_view_if_needed()
        is_on_top = """() => { const box = document.querySelector('#submit').getBoundingClientRect();
            const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
            return Boolean(top.closest('#submit')); }"""
        assert page.evaluate(is_on_top), name
        before = token_of(page)
        page.click("#submit")
        wait_for_next(page, before)


CODE, TABLE = "# Title\n\n- one\n\n```\ncode\n```", "| a |\n|---|\n| b |"
KINDS = {
    "pairwise": (f"kind: pairwise\naxes: [helpful, harmless]\ndwell: {AT_ONCE}", (CODE, TABLE)),
    "rank": ("kind: rank", ("one", "two", "three")),
    "form": ("kind: form", ("one",)),
    "edit": ("kind: edit", ("one",)),
    "demonstration": ("kind: demonstration", ()),
    "steps": ("kind: steps", ("Both.\nleft", "Both.\nright")),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_tools_for_the_blind_find_no_serious_fault_in_a_task(site, open_page, kind):
    config, texts = KINDS[kind]
    project, token, _ = member(site, config, [new_task(0, *texts)])
    for scheme in ("dark", "light"):
        page = open_page(token, f"/judge/{project}", color_scheme=scheme)
        token_of(page)
        assert faults(page) == []
    page.keyboard.press("n")
    page.keyboard.press("Escape")
    if kind == "pairwise":
        page.keyboard.press("d")
        page.keyboard.press("2")
        page.wait_for_selector("[data-text] mark")
        assert faults(page) == []
        for key, dialog in (("?", "keys"), ("s", "skip"), ("f", "flag")):
            page.keyboard.press(key)
            page.wait_for_selector(f"#{dialog}-dialog[open]")
            assert faults(page) == []
            page.keyboard.press("Escape")


def test_tools_for_the_blind_find_no_serious_fault_around_the_tasks(site, open_page):
    project, token, _ = member(site, "kind: pairwise", pairs(1), guidelines="# Be fair\n\nAnd kind.")
    site.database.write(
        lambda connection: publish.publish_guidelines(
            connection, site.database.now(), project, "# Be fair\n\nKinder."
        )
    )
    for scheme in ("light", "dark"):
        page = open_page(token, "/", color_scheme=scheme, locale="zh-CN" if scheme == "dark" else "en-US")
        found = faults(page)
        for path in (f"/judge/{project}", f"/judge/{project}/guidelines", "/history", "/nowhere"):
            page.goto(site.url + path)
            page.wait_for_timeout(200)
            found += faults(page)
        assert found == []
    page.goto(f"{site.url}/judge/{project}")
    page.wait_for_selector("#unread")
    page.keyboard.press("Control+Enter")
    token_of(page)
    page.keyboard.press("1")
    send(page)
    page.wait_for_selector("#nothing-left")
    assert faults(page) == []
    page.goto(f"{site.url}/history")
    assert faults(page) == []
