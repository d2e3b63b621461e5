"""Hostile text in a real browser under the app's content security policy: it stays text, and the text can be read."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import jinja2
import pytest

from prefloop import web
from prefloop.web.render import diff_html, json_in_page, markdown_html, plain_html, safe_name
from web.payloads import PAYLOADS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium"),
]

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "img-src 'self' data:"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
TEMPLATE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ name }}</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/text.css"></head>
<body><main><form id="answer" action="/answer">
<p><bdi id="name" title="{{ name }}">{{ name }}</bdi> <select><option>{{ name }}</option></select></p>
<div id="markdown" class="hostile-text">{{ markdown }}</div>
<div id="plain" class="hostile-text">{{ plain }}</div>
<div id="a" class="hostile-text">{{ difference[0] }}</div><div id="b" class="hostile-text">{{ difference[1] }}</div>
<script type="application/json" id="data">{{ data }}</script>
<button id="submit">Submit</button></form></main></body></html>
""")
TAGS = {
    *(
        "a",
        "blockquote",
        "br",
        "code",
        "em",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "li",
        "mark",
        "ol",
        "p",
        "pre",
        "s",
        "span",
    ),
    *("details", "strong", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ELEMENTS = """() => ({
  tags: [...new Set([...document.querySelectorAll('.hostile-text *')].map(one => one.localName))],
  attributes: [...new Set([...document.querySelectorAll('.hostile-text *')].flatMap(one => one.getAttributeNames()))],
  links: [...document.querySelectorAll('.hostile-text a')].map(one => [one.protocol, one.rel, one.target]),
  frame: [...document.querySelector('#answer').children].map(one => one.localName + '#' + one.id),
  ends: document.querySelector('#answer').lastElementChild.textContent,
  broken: 'broken' in window || 'broken' in {},
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""
CODES = """selector => {
  const copy = document.querySelector(selector).querySelector('pre').cloneNode(true);
  for (const sign of copy.querySelectorAll('.invisible-char')) {
    const [code, times] = sign.textContent.slice(2).split(' ×');
    sign.replaceWith(String.fromCodePoint(parseInt(code, 16)).repeat(times ?? 1));
  }
  return [...Array(copy.textContent.length).keys()].map(place => copy.textContent.charCodeAt(place));
}"""
DATA = """() => { const text = JSON.parse(document.querySelector('#data').textContent).text;
  return [...Array(text.length).keys()].map(place => text.charCodeAt(place)); }"""
PROVOKE = """() => {
  for (const one of document.querySelectorAll('main *'))
    for (const event of ['mouseover', 'focus', 'pointerenter', 'toggle', 'animationstart', 'load', 'error'])
      one.dispatchEvent(new Event(event));
}"""


@dataclass
class Watch:
    """What a browser did that it should not have done."""

    origin: str
    dialogs: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def foreign(self) -> list[str]:
        own = {self.origin + path for path in ("/", "/text.css")}
        return [url for url in self.requests if url not in own and url != "data:,"]


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    """Serves whatever stands in `pages`."""
    css = (Path(web.__file__).parent / "static" / "text.css").read_bytes()
    css += b"select { max-width: 100% } bdi { overflow-wrap: anywhere }"
    pages = {"/text.css": ("text/css", css)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            kind, body = pages.get(self.path, ("text/plain", b""))
            self.send_response(200 if body else 404)
            for name, value in (HEADERS | {"Content-Type": f"{kind}; charset=utf-8"}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pages = pages  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def context():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context(viewport={"width": 375, "height": 667})
        browser.close()


@pytest.fixture
def show(put):
    """Puts a text into a page in every way there is, opens it, and lets every event happen to it."""

    def open_page(text: str):
        page, watch = put(text)
        page.evaluate(PROVOKE)
        return page, watch

    return open_page


@pytest.fixture
def put(server, context):
    """Puts a text into a page in every way there is and opens it."""
    page = context.new_page()
    watch = Watch(f"http://127.0.0.1:{server.server_port}")
    page.on("dialog", lambda dialog: (watch.dialogs.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda message: watch.complaints.append(message.text))
    page.on("pageerror", lambda error: watch.complaints.append(str(error)))
    page.on("request", lambda request: watch.requests.append(request.url))

    def open_page(text: str):
        html = TEMPLATE.render(
            name=safe_name(text),
            markdown=markdown_html(text),
            plain=plain_html(text),
            difference=diff_html(text, text[::2]),
            data=json_in_page({"text": text}),
        )
        server.pages["/"] = ("text/html", html.encode())
        page.goto(watch.origin + "/")
        return page, watch

    yield open_page
    page.close()


def code_units(text: str) -> list[int]:
    units = text.encode("utf-16-le", "surrogatepass")
    return [units[place] | units[place + 1] << 8 for place in range(0, len(units), 2)]


@pytest.mark.parametrize("text", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_payload_does_nothing_and_can_be_read(show, text):
    page, watch = show(text)
    found = page.evaluate(ELEMENTS)
    assert (watch.dialogs, watch.complaints, watch.foreign()) == ([], [], [])
    assert not found["broken"]
    assert set(found["tags"]) <= TAGS
    assert set(found["attributes"]) <= {"class", "dir", "href", "rel", "start", "target", "title"}
    for protocol, rel, target in found["links"]:
        assert protocol in ("http:", "https:", "mailto:", ":")  # ":" is no address at all and leads nowhere
        assert (rel, target) == ("noopener noreferrer nofollow", "_blank")
    assert found["frame"] == [
        "p#",
        "div#markdown",
        "div#plain",
        "div#a",
        "div#b",
        "script#data",
        "button#submit",
    ]
    assert found["ends"] == "Submit"
    assert found["wide"] <= 0
    assert page.evaluate(CODES, "#plain") == code_units(text.replace("\r\n", "\n"))
    assert page.evaluate(CODES, "#a") == code_units(text.replace("\r\n", "\n"))
    assert page.evaluate(DATA) == code_units(text)
    assert page.locator("#plain").bounding_box()["height"] > 10
    assert page.locator("#name").inner_text() == re.sub(" +", " ", safe_name(text))


def test_the_browser_reports_an_attack_that_gets_through(show, server):
    page, watch = show("x")
    kind, body = server.pages["/"]
    attack = b"<script>alert(1)</script><img src=https://evil.example/i.png onerror=alert(1)>"
    server.pages["/"] = (kind, body.replace(b"</main>", attack + b"</main>"))
    page.goto(watch.origin + "/")
    assert len(watch.complaints) >= 2  # the policy stops the script and the image, and says so


def test_each_line_and_block_takes_the_direction_of_its_letters(show):
    page, _ = show("hello\n\nשלום עולם\n\n- مرحبا\n- x")
    directions = page.evaluate(
        "() => [...document.querySelectorAll('#markdown p, #markdown li')].map(one => getComputedStyle(one).direction)"
    )
    assert directions == ["ltr", "rtl", "rtl", "ltr"]
    assert (
        page.evaluate("() => getComputedStyle(document.querySelector('#plain pre')).unicodeBidi")
        == "plaintext"
    )


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "| " + "wide cell | " * 40 + "\n|" + "-|" * 40,
        "```\n" + "x" * 5_000 + "\n```",
        "漢字かな" * 2_000,
    ],
    ids=["a line of 100 kB", "a wide table", "wide code", "Han"],
)
def test_wide_text_never_scrolls_the_page_sideways(show, text):
    page, watch = show(text)
    assert page.evaluate(ELEMENTS)["wide"] <= 0
    assert watch.complaints == []


def test_a_text_of_nothing_but_signs_can_be_opened(put):
    page, _ = put("a\u202e" * 20_000)  # a hundred thousand elements: no events for each of them
    assert page.locator("#submit").is_visible()


def test_the_rest_of_a_long_text_is_opened_by_keys_without_a_script(show):
    page, watch = show("".join(f"{number:05} a\n" for number in range(30_000)))  # 240,000 characters
    button, rest = page.locator("#plain summary"), page.locator("#plain details pre")
    name = button.evaluate("one => getComputedStyle(one, '::before').content + one.textContent")
    assert name == '"Show more "… 200,000 / 240,000'
    assert button.bounding_box()["height"] >= 44 and not rest.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert rest.is_visible() and rest.text_content().endswith("29999 a\n")
    assert page.evaluate(ELEMENTS)["wide"] <= 0
    assert watch.complaints == []
