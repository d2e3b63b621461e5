"""Kinds of tasks in a real browser: cards that are dragged, forms, edits, steps, marked words, guidelines."""

from typing import Any

import pytest

from web import judging
from web.judging import PHONE, member, of_tasks, pairs, send, token_of, wait_for_next, wait_until_ready
from web.serving import NO_BROWSER, new_task

pytestmark = [pytest.mark.browser, NO_BROWSER]
site, browser, open_page = judging.site, judging.browser, judging.open_page


def centre(page: Any, selector: str) -> tuple[float, float]:
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_cards_are_dragged_before_onto_and_away(site, open_page):
    tasks = [new_task(0, *(f"text {letter}" for letter in "vwxyz"))]
    project, token, ids = member(site, "kind: rank", tasks)
    page = open_page(token, f"/judge/{project}")
    token_of(page)
    shown = ["vwxyz".index(text.strip()[-1]) for text in page.locator(".answer .text").all_text_contents()]

    def drag(card: str, x: float, y: float) -> None:
        page.mouse.move(*centre(page, f"[data-card='{card}']"))
        page.mouse.down()
        page.mouse.move(x, y - 3, steps=5)
        page.mouse.move(x, y)
        page.mouse.up()

    box = page.locator("[data-place='0']").bounding_box()
    drag("4", box["x"] + 80, box["y"] + 3)  # E before A
    drag("1", *centre(page, "[data-card='0']"))  # B onto A
    drag("2", *centre(page, "#unrankable"))
    send(page)
    assert of_tasks(site, ids)[0].value == {
        "groups": [[shown[4]], sorted([shown[0], shown[1]]), [shown[3]]],
        "unrankable": [shown[2]],
    }


def test_cards_are_dragged_by_a_finger(site, open_page):
    project, token, ids = member(site, "kind: rank", [new_task(0, "text v", "text w", "text x")])
    page = open_page(token, f"/judge/{project}", viewport=PHONE, has_touch=True, is_mobile=True)
    token_of(page)
    shown = ["vwx".index(text.strip()[-1]) for text in page.locator(".answer .text").all_text_contents()]
    page.locator("[data-card='2']").scroll_into_view_if_needed()
    page.evaluate("scrollBy(0, 200)")
    x, y = centre(page, "[data-card='2'] .grip")
    top = page.locator("[data-place='0']").bounding_box()["y"] + 2
    finger = page.context.new_cdp_session(page)
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for part in (0.3, 0.6, 1.0):
        point = {"x": x, "y": y + (top - y) * part}
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    wait_until_ready(page)
    before = token_of(page)
    page.click("#submit")  # the press itself; a tap right after a drag is taken for a second touch
    wait_for_next(page, before)
    assert of_tasks(site, ids)[0].value["groups"] == [[shown[2]], [shown[0]], [shown[1]]]


def test_the_form_takes_digits_and_the_letters_of_its_flags(site, open_page):
    project, token, ids = member(site, "kind: form", [new_task(0, "an answer")])
    page = open_page(token, f"/judge/{project}")
    token_of(page)
    page.keyboard.press("l")
    assert "Overall quality" in page.text_content("#status")
    for key in "6do":
        page.keyboard.press(key)
    page.keyboard.press("o")
    send(page)
    assert of_tasks(site, ids)[0].value == {
        "ratings": {"overall": 6},
        "flags": {"hallucination": True, "denigrates": True},
    }


def test_an_edit_shows_its_words_and_is_stored(site, open_page):
    project, token, ids = member(site, "kind: edit", [new_task(0, "The cat sat on the mat.")])
    page = open_page(token, f"/judge/{project}")
    token_of(page)
    page.keyboard.press("d")
    page.keyboard.press("e")
    page.keyboard.press("Control+End")
    page.keyboard.type(" It <b>purred</b>.")
    page.wait_for_selector("#changes mark:has-text('purred')")
    assert page.locator("#changes b").count() == 0
    page.keyboard.press("Escape")
    send(page)
    assert of_tasks(site, ids)[0].value == {"text": "The cat sat on the mat. It <b>purred</b>."}


def test_steps_are_compared_and_labelled_by_keys(site, open_page):
    texts = ("Add first.\n2 + 2 = 4", "Add first.\n2 + 2 = 5")
    project, token, ids = member(site, "kind: steps", [new_task(0, *texts)])
    page = open_page(token, f"/judge/{project}")
    token_of(page)
    assert page.text_content(".shared .text").strip() == "Add first."
    right = 0 if "= 4" in page.text_content("[data-text='0']") else 1
    page.keyboard.press("[")
    page.keyboard.press("c" if right == 0 else "x")
    page.keyboard.press("]")
    page.keyboard.press("x" if right == 0 else "c")
    page.keyboard.press("1" if right == 0 else "8")
    send(page)
    assert of_tasks(site, ids)[0].value == {"choice": "a", "strength": 1, "labels": ["correct", "incorrect"]}


def test_marked_words_are_places_in_the_text_itself(site, open_page):
    text = "😀 zero\u200b\u200bwidth\r\n\r\n**bold** words"
    project, token, ids = member(site, "kind: pairwise", [new_task(0, text, "other")])
    page = open_page(token, f"/judge/{project}")
    token_of(page)
    side = 0 if "zero" in page.text_content("[data-text='0']") else 1
    page.keyboard.press("h")
    page.wait_for_selector(f"[data-text='{side}'] pre")
    page.evaluate(
        """side => { const pre = document.querySelector(`[data-text='${side}'] pre`);
        const last = pre.lastChild; const range = document.createRange();
        const at = last.data.indexOf('**bold**');
        range.setStart(last, at); range.setEnd(last, at + 8);
        getSelection().removeAllRanges(); getSelection().addRange(range); }""",
        side,
    )
    page.keyboard.press("h")
    assert page.text_content("#spans q") == "**bold**"
    page.keyboard.press("1")
    send(page)
    (span,) = of_tasks(site, ids)[0].value["spans"]
    assert text[span["start"] : span["end"]] == "**bold**"
    assert span["completion"] == 0


def test_guidelines_are_acknowledged_by_a_key(site, open_page):
    project, token, _ = member(site, "kind: pairwise", pairs(1), guidelines="# Be fair\n\nAnd kind.")
    page = open_page(token, f"/judge/{project}")
    page.wait_for_selector("#unread")
    page.keyboard.press("Control+Enter")
    assert token_of(page)
