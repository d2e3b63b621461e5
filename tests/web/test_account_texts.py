"""What people post about themselves comes back as text: no payload adds an element or an attribute to any answer."""

from html.parser import HTMLParser

import pytest
import sqlalchemy as sa

from prefloop.labels import accounts
from prefloop.labels.schema import annotator
from web.payloads import PAYLOADS
from web.test_account import PASSWORD, invite_of
from web.visiting import csrf_in

TEXTS = [text.encode("utf-8", "replace").decode() for text in PAYLOADS.values()]
HASHED = TEXTS[::9]
"""For forms that check a password, which takes a tenth of a second each time."""


class Page(HTMLParser):
    """The elements of a page with their attributes, in order, and what stands in its fields."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.fields: dict[str, str] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        if about.get("class") != "invisible-char":  # signs for what cannot be seen
            self.elements.append((tag, *sorted(about)))
        if tag == "input":
            self.fields[about.get("name", "")] = about.get("value") or ""


def answers(place, browser, path: str, token: str, field: str, texts: list[str], **form: str):
    """The answers to a form with each text in one field, beside that to a harmless one."""
    csrf = csrf_in(browser.get("/" + path.split("/")[1]).text)
    for text in ("harmless", *texts):
        place.clock.forward(minutes=2)
        yield text, browser.post(path, data={"csrf": csrf, "token": token, **form, field: text})


@pytest.mark.parametrize(
    ("path", "name", "longest", "status"),
    [
        ("/login", "called", 200, 401),
        ("/invite/accept", "name", 80, 422),
        ("/invite/accept", "email", 300, 422),
    ],
)
def test_a_form_that_is_shown_again_has_what_was_typed_in_its_field_and_nowhere_else(
    place, path, name, longest, status
):
    texts = HASHED if path == "/login" else TEXTS
    form = {"name": "Ada", "email": "", "password": "short"} if path != "/login" else {"password": "wrong"}
    (_, harmless), *others = answers(place, place.browser(), path, invite_of(place), name, texts, **form)
    assert harmless.status_code == status
    expected = Page(harmless.text)
    for text, answer in others:
        assert answer.status_code == status
        found = Page(answer.text)
        assert found.elements == expected.elements, text
        assert found.fields[name] == text[:longest], text
        assert {**found.fields, name: ""} == {**expected.fields, name: ""}, text
    assert len(others) == len(texts)


def test_languages_are_shown_as_they_were_typed(place):
    """Forty characters a word at most; a comma parts two."""
    browser = place.logged_in(place.person("Ann"))
    expected = Page(browser.get("/account").text)
    kept = 0
    for text in TEXTS:
        place.clock.forward(minutes=2)
        words = [text[start : start + 40].replace(",", ";").strip() for start in range(0, len(text), 40)][:50]
        words = list(dict.fromkeys(word for word in words if word))
        answer = browser.post("/account/profile", data={"languages": ",".join(words)})
        if answer.status_code == 422:  # what cannot be seen is refused
            assert not all(word.isprintable() for word in words), text
            continue
        assert answer.headers["location"] == "/account?done=profile"
        found = Page(browser.get("/account").text)
        assert found.elements == expected.elements, text
        assert found.fields["languages"] == ", ".join(words), text
        kept += 1
    assert kept > 60


@pytest.mark.parametrize(
    ("path", "name", "form"),
    [
        ("/account/delete", "name", {"password": "wrong"}),
        ("/account/delete", "password", {"name": "Ann"}),
        ("/account/password", "old", {"new": "a new and longer one"}),
        ("/account/password", "new", {"old": PASSWORD}),
    ],
)
def test_a_password_or_a_name_that_was_refused_is_nowhere_on_the_page(place, path, name, form):
    ann = place.person("Ann", password=PASSWORD)
    browser = place.logged_in(ann)
    texts = [text[:9] for text in TEXTS[::3]] if name == "new" else HASHED  # too short to be taken
    (_, harmless), *others = answers(place, browser, path, "", name, texts, **form)
    expected = Page(harmless.text)
    assert harmless.status_code == (422 if name == "new" else 403)
    for text, answer in others:
        assert answer.status_code == harmless.status_code, text
        found = Page(answer.text)
        assert (found.elements, found.fields) == (expected.elements, expected.fields), text
    row = place.database.read(lambda c: c.execute(sa.select(annotator)).one())
    assert accounts.verify_password(row.password_hash, PASSWORD).is_right and row.state == "active"
