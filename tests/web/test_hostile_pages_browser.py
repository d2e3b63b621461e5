"""Every page with hostile text in every field: what the browser makes of it has no script, no stranger, no broken frame.

A store is filled with all payloads in all fields; each route is asked for in each project, its answer parsed by the
browser and looked through. Then real visits, by each role, with everything at once.
"""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from prefloop.labels.projects import KINDS
from prefloop.labels.publish import project_config
from prefloop.labels.schema import judgement, metadata
from prefloop.web.app import WebOptions, create_app
from prefloop.web.limits import Limits
from prefloop.web.security import open_session
from web import hostile_store, judging
from web.hostile_store import (
    FILLED,
    LONG,
    NESTED,
    OURS,
    SHORT,
    TEXTS,
    WHOLE,
    Words,
    is_filled,
    marker,
    project_id,
)
from web.serving import COOKIE, NO_BROWSER, Site, run_app
from web.test_security import TEMPLATES

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600), NO_BROWSER]
browser = judging.browser
T = TypeVar("T")

FAULTS = r"""(html) => {
  const page = new DOMParser().parseFromString(html, "text/html");
  const found = [];
  const FORBIDDEN = new Set(("iframe frame object embed applet base style math audio video source picture img image portal"
    + " marquee foreignobject frameset x").split(" "));
  const OURS = /^(\/(?!\/)|#|\?|$)/;
  for (const one of page.querySelectorAll("*")) {
    const name = one.localName, about = one.outerHTML.slice(0, 120);
    const get = (attribute) => one.getAttribute(attribute) ?? "";
    if (FORBIDDEN.has(name) || name.includes("-")) found.push("element: " + about);
    const isOurs = get("type") === "application/json" || get("src").startsWith("/static/");
    if (name === "script" && !isOurs) found.push("script: " + about);
    if (name === "link" && !get("href").startsWith("/static/")) found.push("link: " + about);
    if (name === "meta" && one.hasAttribute("http-equiv")) found.push("meta: " + about);
    for (const { name: attribute, value } of one.attributes) {
      if (/^on|^(style|srcdoc|ping|background)$/i.test(attribute)) found.push(`attribute ${attribute}: ${about}`);
      if (["src", "srcset", "action", "formaction", "poster", "data", "xlink:href", "hx-get", "hx-post"].includes(attribute)
          && !OURS.test(value)) found.push(`address ${attribute}: ${about}`);
      if (attribute === "href" && !OURS.test(value)) {
        const isText = one.closest(".hostile-text") && get("target") === "_blank" && get("rel").includes("noopener");
        if (!isText || !/^(https?:|mailto:)/i.test(value)) found.push("href: " + about);
      }
    }
  }
  const texts = page.createTreeWalker(page.documentElement, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { data, parentElement } = texts.currentNode;
    if (parentElement.closest("textarea, script")) continue;
    const flagless = data.replace(/\u{1f3f4}[\u{e0020}-\u{e007f}]+/gu, "");
    if (/[\u202a-\u202e\u2066-\u2069\u200b\u{e0020}-\u{e007f}\0-\x08]/u.test(flagless)) {
      found.push(`invisible in ${parentElement.outerHTML.slice(0, 60)}: ${escape(data).slice(0, 90)}`);
    }
    if (data.includes("1337") || data.includes("root:x:")) found.push("template: " + data.slice(0, 80));
  }
  if (/^<!doctype html>/i.test(html)) {
    const frame = [...page.body.children].map((one) => one.localName + (one.id && "#" + one.id));
    if (page.querySelectorAll("main").length !== 1 || !frame.includes("main#main") || !frame.includes("div#toasts")) {
      found.push("frame: " + frame.join(" "));
    }
  }
  return found;
}"""
ASK = (
    """async ([asked, csrf]) => {
  const faults = """
    + FAULTS
    + """;
  const answers = [];
  const ask = async ({ method, path, body, json }) => {
    const headers = { "x-csrf-token": csrf };
    if (json) headers["content-type"] = "application/json";
    const sent = json ? JSON.stringify(json) : body ? new URLSearchParams(body) : undefined;
    const before = performance.now();
    const answer = await fetch(path, { method, headers, body: sent, redirect: "manual" });
    const type = answer.headers.get("content-type") ?? "", text = await answer.text();
    const isPage = /^<!doctype/i.test(text);  // the rest stands in a page, which says whose text it is
    let pieces = type.startsWith("text/html") ? [isPage ? text : `<div class="hostile-text">${text}</div>`] : [];
    if (type.startsWith("application/json") && path.includes("/texts")) {
      pieces = Object.values(JSON.parse(text)).flat().map((one) => `<div class="hostile-text">${one}</div>`);
    }
    answers.push({
      ms: Math.round(performance.now() - before), path, method, status: answer.status, type, faults: pieces.flatMap(faults),
      token: /"token": ?"([^"]+)"/.exec(text)?.[1] ?? "", kind: /class="task of-([a-z]+)/.exec(text)?.[1] ?? "",
      markers: type.startsWith("text/html") || pieces.length ? [...new Set(text.match(/zq[a-z]+qz/g) ?? [])] : [],
    });
  };
  for (const one of asked) await ask(one);
  return answers;
}"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """The app over the hostile store."""
    path = tmp_path_factory.mktemp("hostile") / "labels.sqlite"
    database = hostile_store.hostile_store(path, range(WHOLE + 1))
    many = 10**6
    limits = Limits(claim=many, submit=many, login=many, chat=many, export=many)
    with run_app(lambda url: create_app(database, WebOptions(public_url=url, limits=limits))) as url:
        yield Site(url, database)
    database.close()


@pytest.fixture
def enter(site, browser) -> Iterator[Callable[..., Any]]:
    """Opens a page as somebody of this role; what goes wrong in it is noted in `page.wrong`."""
    contexts = []

    def opened(role: str, path: str = "/account", width: int = 1440) -> Any:
        def work(connection: sa.Connection) -> str:
            return open_session(connection, site.database.now(), role)

        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
        contexts.append(context)
        context.set_default_timeout(60_000)
        context.add_cookies(
            [
                {"name": COOKIE, "value": site.database.write(work), "url": site.url},
                {"name": "prefloop_language", "value": "en", "url": site.url},
            ]
        )
        page = context.new_page()
        page.wrong = []
        page.on("dialog", lambda dialog: (page.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: page.wrong.append(f"{page.url}: {error}"))
        page.on("console", lambda said: note_console(page, said))
        page.on("request", lambda request: note_request(page, request.url, site.url))
        page.goto(site.url + path)
        page.csrf = page.get_attribute("meta[name=csrf]", "content")
        return page

    yield opened
    for context in contexts:
        context.close()


def note_console(page: Any, said: Any) -> None:
    if said.type == "error" and "Failed to load resource" not in said.text:  # a page that a role may not see
        page.wrong.append(f"{page.url}: {said.text}")


def note_request(page: Any, url: str, own: str) -> None:
    if not url.startswith((own, "data:")):
        page.wrong.append(f"{page.url} asked for {url}")


# --- every field -----------------------------------------------------------------------------------------------------


def test_every_text_of_the_store_is_hostile_or_ours():
    """A new column has to be put into one of the lists, and filled."""
    found = {
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, sa.Text | sa.JSON)
    }
    named = [*SHORT, *LONG, *NESTED, *OURS]
    assert sorted(named) == sorted(found)


def test_every_hostile_field_is_filled_with_sixty_payloads_and_more(site):
    few = {}
    for name in (*SHORT, *LONG, *NESTED):
        table, column = name.split(".")
        wanted = sa.select(sa.cast(metadata.tables[table].c[column], sa.Text)).distinct()
        values = site.database.read(
            lambda connection, wanted=wanted: connection.execute(wanted).scalars().all()
        )
        joined = "\n".join(one for one in values if one and marker(name) in one)
        number = sum(text[:100] in joined or json.dumps(text[:100])[1:-1] in joined for text in TEXTS)
        if number < 60:
            few[name] = number
    assert few == {"lease.draft": 0}  # kept by the pages themselves, below


# --- every page ------------------------------------------------------------------------------------------------------


def half(number: int, things: Sequence[T]) -> list[T]:
    """Every other one, so that two projects have all: each kind of task still meets half of the payloads."""
    return [one for place, one in enumerate(things) if (place + number) % 2 == 0 or number == WHOLE]


def paths_of(template: str, number: int, own: list[int]) -> list[str]:
    """Where a template of a GET route leads in a project."""
    project = project_id(number)
    tasks = [f"{project}-{name}" for name in half(number, [*KINDS, "pairwise-2", "gold"])]
    rounds = ("1",) if "{action}" in template else ("1", "2", "3")
    values: dict[str, tuple[str, ...] | list[str]] = {
        "project_id": (project,),
        "task_id": tasks,
        "number": rounds,
        "action": ("freeze", "promote", "reject", "rollback"),
        "export_id": (f"{project}-x-export",),
        "part": ("file", "manifest"),
        "conversation_id": (f"{project}-live", f"{project}-probe"),
        "person_id": (f"{project}-one", f"{project}-judge"),
        "flag_id": ("1",),
        "appeal_id": ("1",),
        "webhook_id": ("gone",),
        "delivery_id": (f"{project}-x-delivery",),
        "token_id": (f"{project}-x-token",),
        "hashed": (f"{project}-x-invite",),
        "judgement_id": [str(one) for one in half(number, own)],
        "token": ("gone",),
    }
    names = re.findall(r"\{([a-z_]+)[^}]*\}", template)
    if "review/{task_id}" in template:
        values["task_id"] = [f"{project}-pairwise"]
    paths = []
    for chosen in itertools.product(*(values[name] for name in names)):
        path = template
        for name, value in zip(names, chosen, strict=True):
            path = re.sub(r"\{" + name + r"[^}]*\}", value, path, count=1)
        paths += [path + query for query in QUERIES.get(template, ("",))]
    return paths


HOSTILE = "%22%3E%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E%27%7B%7B7*191%7D%7D%E2%80%AE"
QUERIES: dict[str, tuple[str, ...]] = {
    "/login": ("", f"?next=/{HOSTILE}", f"?next={HOSTILE}"),
    "/link": (f"?token={HOSTILE}",),
    "/invite": (f"?token={HOSTILE}",),
    "/consent/{project_id}": ("", f"?next=/{HOSTILE}"),
    "/language": (f"?to={HOSTILE}&back=/{HOSTILE}",),
    "/lead/{project_id}/data": ("", f"?text={HOSTILE}&tag={HOSTILE}&kind={HOSTILE}", "?state=disputed"),
    "/lead/{project_id}/export": ("", f"?text={HOSTILE}&tag={HOSTILE}"),
    "/lead/{project_id}/review": ("?against=reward", "?against=human", "?against=ai"),
    "/lead/{project_id}/review/{task_id}": ("?against=reward", f"?against={HOSTILE}"),
    "/admin/audit": ("", f"?actor={HOSTILE}&action={HOSTILE}"),
    "/judge/leases/{token}/texts": ("?form=raw",),
    "/history/{judgement_id}/texts": ("?form=raw",),
}


HAVE_TITLES = ("guidelines", "rounds")
"""Ends of the pages that are asked for in projects with nothing but a title."""


def gets(number: int, own: list[int]) -> list[dict[str, Any]]:
    """All pages of a project, and with the first one the pages that are the same for all."""
    templates = sorted(path for method, path in TEMPLATES if method == "GET" and not path.startswith("/api/"))
    if number:
        templates = [one for one in templates if "{" in one]
    if not is_filled(number):
        templates = [
            one for one in templates if one.endswith("{project_id}") or one.rpartition("/")[2] in HAVE_TITLES
        ]
    paths = [path for template in templates for path in paths_of(template, number, own)]
    if number == 0:
        paths += [
            f"{begin}/{HOSTILE}" for begin in ("", "/lead", "/judge", "/history", "/chats", "/admin/people")
        ]
    return [{"method": "GET", "path": path} for path in paths if path != "/health"]


def assert_harmless(answers: list[dict[str, Any]]) -> None:
    found = {f"{one['method']} {one['path']} {fault}" for one in answers for fault in one["faults"]}
    assert sorted(found)[:20] == []
    broken = {f"{one['method']} {one['path']} {one['status']}" for one in answers if one["status"] >= 500}
    assert broken == set()


NEVER_SHOWN = {
    *("prompt.lang", "prompt.safety_tag", "prompt.answer", "task.skill", "task.lang", "completion.id"),
    *("policy.uri", "policy.parent_id", "policy.digest", "round.reward_in", "round.reward_out"),
    *("decision.reason", "turn.error", "annotator.groups", "judgement.judge", "adjudication.value"),
    *("conversation.policies", "conversation.ending", "export.filter", "delivery.body"),
    "lease.draft",
}
"""What no page has; a page that begins to show one of them finds it hostile here."""


def test_no_page_of_any_project_has_a_script_or_a_stranger_in_it(site, enter):
    page = enter("admin")
    shown: dict[str, set[str]] = defaultdict(set)
    answers = []
    for number in range(WHOLE + 1):
        own = [
            one.id
            for one in site.judgements()
            if one.annotator_id == "admin" and one.project_id == project_id(number)
        ]
        asked = gets(number, own)
        asked += [
            {"method": "POST", "path": f"/chats/{project_id(number)}-{kind}/piece"}
            for kind in ("live", "probe")
        ]
        answers += page.evaluate(ASK, [asked, page.csrf])
    assert_harmless(answers)
    assert page.wrong == []
    for one in answers:
        for name in one["markers"]:
            shown[name].add(one["path"])
    fields = {marker(name): name for name in (*SHORT, *LONG, *NESTED)}
    unseen = {name for letters, name in fields.items() if letters not in shown}
    assert unseen == NEVER_SHOWN
    pages_of_a_project = {
        one["path"] for one in answers if one["status"] == 200 and f"/{project_id(0)}" in one["path"]
    }
    assert len(pages_of_a_project) > 20


def test_a_newcomer_meets_nothing_harmful_on_the_way_to_a_task(site, enter):
    """Consent, guidelines, a task with a known answer and what it says, a real task with a draft."""
    page = enter("annotator")
    answers = []

    def ask(method: str, path: str, **body: Any) -> dict[str, Any]:
        (one,) = page.evaluate(ASK, [[{"method": method, "path": path, **body}], page.csrf])
        answers.append(one)
        return one

    seen = set()
    for number in (*range(0, FILLED, 3), WHOLE):  # 7 times 9 payloads, and all
        project = project_id(number)
        config = site.database.read(lambda connection, project=project: project_config(connection, project))
        ask("GET", f"/consent/{project}")
        ask("POST", f"/consent/{project}", body={"version": config.consent_version, "csrf": page.csrf})
        seen |= set(ask("POST", f"/judge/{project}/next")["markers"])
        ask("POST", f"/judge/{project}/guidelines", json={"version": 2})
        known = ask("POST", f"/judge/{project}/next")
        assert known["kind"] == "pairwise", known
        ask(
            "POST", f"/api/v1/leases/{known['token']}/submit", json={"value": {"strength": 8}, "active_ms": 1}
        )
        told = ask("POST", f"/judge/{project}/next")
        seen |= set(told["markers"])
        (last,) = site.database.read(
            lambda connection, project=project: connection.execute(
                sa.select(sa.func.max(judgement.c.id)).where(judgement.c.project_id == project)
            ).one()
        )
        ask("POST", f"/judge/{project}/feedback", json={"judgement": last})
        real = ask("POST", f"/judge/{project}/next")
        assert real["kind"] == "pairwise", real
        hostile = Words(number).long("lease.draft")[:9000]
        draft = {"value": {"strength": 2}, "comment": hostile}
        kept = ask("PUT", f"/api/v1/leases/{real['token']}/draft", json={"draft": draft})
        assert kept["status"] == 204, kept
        again = ask("POST", f"/judge/{project}/next")
        assert marker("lease.draft") in again["markers"]
        ask("POST", f"/judge/leases/{real['token']}/diff", json={"text": hostile})
        for form in ("raw", "diff", "markdown"):
            ask("GET", f"/judge/leases/{real['token']}/texts?form={form}")
    assert {marker("guideline.text"), marker("gold.why")} <= seen
    assert_harmless(answers)
    assert page.wrong == []


KEPT = (
    "/logout",
    "/account/delete",
    "/account/password",
    "/account/sessions",
    "/people/{person_id}/delete",
    "/people/{person_id}/disable",
)
"""Forms that would end the visit or take somebody away."""


def forms(app: Any) -> dict[str, list[str]]:
    """The fields of every form, by path."""
    found: dict[str, list[str]] = {}

    def walk(routes: Any) -> None:
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                walk(inner.routes)
            elif "POST" in getattr(route, "methods", ()) and not route.path.startswith("/api/"):
                names = [one.alias for one in route.dependant.body_params]
                if names and "body" not in names and not route.path.endswith(KEPT):
                    found[route.path] = names

    walk(app.routes)
    return found


FOR_STRANGERS = ("/login", "/link", "/invite", "/invite/accept")


def test_no_answer_to_a_form_has_what_was_typed_as_a_part_of_the_page(site, enter):
    fields = forms(create_app(site.database, WebOptions()))
    assert {"/login", "/admin/projects/new", "/lead/{project_id}/guidelines/preview"} <= set(fields)
    page, stranger = enter("admin"), enter("annotator")
    stranger.context.clear_cookies()
    stranger.goto(f"{site.url}/login")
    stranger.csrf = stranger.get_attribute("main input[name=csrf]", "value")
    answers = []
    for number in range(1, 8):  # 9 payloads each
        words = Words(number)
        for who, is_stranger in ((page, False), (stranger, True)):
            templates = [one for one in sorted(fields) if (one in FOR_STRANGERS) == is_stranger]
            asked = [
                {
                    "method": "POST",
                    "path": path.partition("?")[0],
                    "body": {name: words.long(f"form.{name}") for name in fields[template]}
                    | {"csrf": who.csrf},
                }
                for template in templates
                for path in paths_of(template, number, [])[:1]
            ]
            answers += who.evaluate(ASK, [asked, who.csrf])
    assert_harmless(answers)
    shown = {name for one in answers for name in one["markers"]}
    assert {marker(f"form.{name}") for name in ("source", "title", "text", "called")} <= shown
    assert page.wrong == []


# --- real visits -----------------------------------------------------------------------------------------------------

PROVOKE = """() => {
  for (const one of document.querySelectorAll('main *'))
    for (const event of ['mouseover', 'focus', 'pointerenter', 'toggle', 'animationstart', 'load', 'error'])
      one.dispatchEvent(new Event(event));
  return 'broken' in window || 'broken' in {};
}"""


@pytest.mark.parametrize("role", ["annotator", "reviewer", "lead", "admin"])
def test_who_visits_every_page_meets_no_dialog_no_stranger_and_no_breach(site, enter, role):
    own = [
        one.id
        for one in site.judgements()
        if one.annotator_id == role and one.project_id == project_id(WHOLE)
    ]
    paths = [one["path"] for one in gets(0, []) if project_id(0) not in one["path"]]
    paths += [one["path"] for one in gets(WHOLE, own)]
    paths = [path for path in dict.fromkeys(paths) if not path.startswith(("/language", "/judge/leases"))]
    page = enter(role)
    opened = 0
    for path in paths:
        if "/texts" in path or "/exports/" in path:
            continue
        answer = page.goto(site.url + path, wait_until="load")
        if answer is not None and answer.status == 200:
            opened += 1
            assert not page.evaluate(PROVOKE), path
    assert page.wrong == []
    assert opened >= 8
