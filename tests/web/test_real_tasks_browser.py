"""Real prompts and answers as tasks: imported by commands, judged in a browser as a person would, exported, trained on.

Fifty tasks of three data sets. Some of their texts are offensive, so nothing here puts a text into a message: texts are
known by their digests.
"""

import gzip
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from prefloop.cli import app
from prefloop.labels.schema import completion, flag, judgement, task
from web import judging
from web.judging import DESKTOP, PHONE, ZOOMED, token_of, wait_for_next, wait_until_ready
from web.serving import COOKIE, NO_BROWSER, Site, serving

pytestmark = [
    pytest.mark.shared,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    NO_BROWSER,
]
browser = judging.browser

SETTINGS = "gold_share: 0\nrepeat_share: 0\ndwell: {least_s: 0.2, per_character_ms: 0.1, most_s: 0.6}\n"
OASST, HH, BON = "oasst", "hh-harmless", "best-of-n"
NUM_JUDGED = {OASST: 22, HH: 14, BON: 14}
WINDOWS = {OASST: DESKTOP, HH: PHONE, BON: ZOOMED}
BON_ROWS = (0, 22, 98, 100, 157, 186, 213, 219, 242, 288, 297, 392, 454, 500)
"""With code, Chinese and Japanese, tables, and an answer of 31,000 characters."""


def cli(*words: object) -> str:
    """What a command prints. Raises what it ends with."""
    done = CliRunner().invoke(app, [str(one) for one in words], env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def digest(text: str) -> str:
    """The name of a text, by its letters and digits: what Markdown or a browser does to spaces changes nothing."""
    return hashlib.sha256(re.sub(r"\W+", "", text).encode()).hexdigest()[:12]


PLAIN_TEXTS = """async (address) => {
    const { texts } = await (await fetch(address)).json();
    return texts.map((html) => {
        const page = new DOMParser().parseFromString(html, "text/html");
        for (const sign of page.querySelectorAll(".invisible-char")) sign.remove();
        return page.body.textContent;
    });
}"""
KINDS_OF_TEXT: dict[str, Callable[[str], bool]] = {
    "long": lambda text: len(text) > 4000,
    "very long": lambda text: len(text) > 30_000,
    "code": lambda text: "```" in text,
    "table": lambda text: "|--" in text or "| --" in text,
    "Han or kana": lambda text: re.search("[\u3040-\u9fff]", text) is not None,
}


# --- somebody who judges ---------------------------------------------------------------------------------------------


@dataclass
class Said:
    """What somebody said about a task; completions go by the names of their texts."""

    state: str
    value: dict[str, Any]
    comment: str = ""
    is_last_word: bool = field(default=True, compare=False)


@dataclass
class Judge:
    """A person at a page of a project, who writes down what they did."""

    site: Site
    page: Any
    has_touch: bool
    said: list[Said] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Of the texts, in the order of the screen."""
    seen: Counter[str] = field(default_factory=Counter)

    def begin(self) -> str:
        """Looks at the task that is shown, and returns its kind."""
        token = token_of(self.page)
        texts = self.page.evaluate(PLAIN_TEXTS, f"/judge/leases/{token}/texts?form=raw")
        self.names = [digest(one) for one in texts]
        self.seen.update(name for name, is_in in KINDS_OF_TEXT.items() if any(map(is_in, texts)))
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            "wider than the screen"
        )
        return json.loads(self.page.text_content("#task-data"))["kind"]

    def key(self, *names: str) -> None:
        for name in names:
            self.page.keyboard.press(name)

    def press(self, selector: str) -> None:
        """With the mouse, or with a finger."""
        one = self.page.locator(selector).first
        one.scroll_into_view_if_needed()
        one.tap() if self.has_touch else one.click()

    def read_by_keys(self) -> None:
        while self.page.locator("[data-unfold]:visible").count():
            self.key("Control+Enter")  # not read yet: the focus goes to "show all"
            self.page.wait_for_function("() => document.activeElement.matches('[data-unfold]')")
            self.key("Enter")
        self.key("End")
        self.page.wait_for_function(
            "() => !document.querySelector('#status').textContent.startsWith('Read ')"
        )

    def read_by_hand(self) -> None:
        while self.page.locator(".answer [data-unfold]:visible").count():
            self.press(".answer [data-unfold]:visible")
        self.page.mouse.move(200, 200)
        for _ in range(400):
            if not self.page.text_content("#status").startswith("Read "):
                return
            self.page.mouse.wheel(0, 900)
            self.page.wait_for_timeout(20)
        raise AssertionError("the wheel does not reach the end of the texts")

    def send_by_keys(self) -> None:
        token = token_of(self.page)
        wait_until_ready(self.page)
        self.key("Control+Enter")
        wait_for_next(self.page, token)

    def send_by_hand(self) -> None:
        token = token_of(self.page)
        wait_until_ready(self.page)
        self.press("#submit")
        wait_for_next(self.page, token)

    def note(self, state: str, value: dict[str, Any], comment: str = "") -> None:
        self.said.append(Said(state, value, comment))

    def prefers(self, strength: int, comment: str = "") -> None:
        """That a strength of the strip was chosen: 1 is strongly the left."""
        left, right = self.names
        better, worse = (left, right) if strength <= 4 else (right, left)
        steps = min(strength, 9 - strength)
        self.note("valid", {"better": better, "worse": worse, "steps": steps}, comment)

    def orders(self, groups: Sequence[Sequence[int]], unrankable: Sequence[int] = ()) -> None:
        """That the cards were left in these groups of places on the screen."""
        names = self.names
        self.note(
            "valid",
            {
                "groups": [sorted(names[place] for place in group) for group in groups],
                "unrankable": sorted(names[place] for place in unrankable),
            },
        )


# --- their ways ------------------------------------------------------------------------------------------------------


def compares_by_keys(one: Judge, number: int) -> None:
    strength = 1 + number % 8
    one.read_by_keys()
    one.key(str(strength))
    one.send_by_keys()
    one.prefers(strength)


def compares_by_hand(one: Judge, number: int) -> None:
    strength = 8 - number % 8
    one.read_by_hand()
    one.press(f".step:has(input[name=strength][value='{strength}'])")
    one.send_by_hand()
    one.prefers(strength)


def compares_differences_and_tells_why(one: Judge, number: int) -> None:
    one.key("d")
    one.page.wait_for_selector("[data-action=diff][aria-pressed=true]")
    one.key("d", "n")
    one.page.keyboard.insert_text(COMMENT)
    one.key("Escape")
    one.read_by_keys()
    one.key("6")
    one.send_by_keys()
    one.prefers(6, COMMENT)


def compares_plain_text(one: Judge, number: int) -> None:
    one.key("p")
    one.page.wait_for_selector("[data-action=raw][aria-pressed=true]")
    one.read_by_hand()
    one.press(".step:has(input[name=strength][value='3'])")
    one.send_by_keys()
    one.prefers(3)
    one.key("p")


def calls_it_a_tie(one: Judge, number: int) -> None:
    one.read_by_keys()
    one.key("t")
    one.send_by_keys()
    one.note("valid", {"verdict": "tie"})


def calls_both_bad(one: Judge, number: int) -> None:
    one.read_by_hand()
    one.press(".verdict:has(input[value=both_bad])")
    one.send_by_hand()
    one.note("valid", {"verdict": "both_bad"})


def changes_their_mind(one: Judge, number: int) -> None:
    one.read_by_keys()
    one.key("1")
    one.send_by_keys()
    one.prefers(1)
    names, before = one.names, one.page.url
    one.press("[data-action=undo]") if number % 2 else one.key("u")
    one.page.wait_for_function(
        "() => JSON.parse(document.querySelector('#task-data')?.textContent ?? '{}').judgement > 0"
    )
    one.key("8")
    wait_until_ready(one.page)
    one.key("Control+Enter")
    one.page.wait_for_function(
        "() => document.querySelector('#nothing-left') ||"
        " JSON.parse(document.querySelector('#task-data')?.textContent ?? '{}').token"
    )
    assert one.page.url == before
    one.names = names
    one.said[-1].is_last_word = False
    one.prefers(8)


def reports_and_skips(one: Judge, number: int) -> None:
    one.key("f", "4", "Control+Enter")
    one.page.wait_for_selector("text=Reported, thank you")
    token = token_of(one.page)
    one.key("s", "3", "Control+Enter")
    wait_for_next(one.page, token)
    one.note("skipped", {"skip": "too_long"})


def keeps_the_order(one: Judge, number: int) -> None:
    one.read_by_keys()
    one.key("o")
    one.send_by_keys()
    one.orders([[place] for place in range(len(one.names))])


def moves_the_first_down(one: Judge, number: int) -> None:
    one.read_by_keys()
    one.key("Shift+J")
    one.send_by_keys()
    one.orders([[1], [0], *([place] for place in range(2, len(one.names)))])


def ties_by_buttons(one: Judge, number: int) -> None:
    one.read_by_hand()
    one.press("[data-action=next_card]")
    one.press("[data-action=tie_previous]")
    one.send_by_hand()
    one.orders([[0, 1], *([place] for place in range(2, len(one.names)))])


def sets_one_aside(one: Judge, number: int) -> None:
    one.read_by_keys()
    one.key("j", "x")
    one.send_by_keys()
    one.orders([[0], *([place] for place in range(2, len(one.names)))], [1])


def drags_the_second_to_the_top(one: Judge, number: int) -> None:
    one.read_by_hand()
    one.page.locator("[data-card='0']").scroll_into_view_if_needed()
    card = one.page.locator("[data-card='1']").bounding_box()
    top = one.page.locator("[data-place='0']").bounding_box()
    one.page.mouse.move(card["x"] + card["width"] / 2, card["y"] + card["height"] / 2)
    one.page.mouse.down()
    one.page.mouse.move(top["x"] + 80, top["y"] + 6, steps=6)
    one.page.mouse.move(top["x"] + 80, top["y"] + 3)
    one.page.mouse.up()
    one.send_by_hand()
    one.orders([[1], [0], *([place] for place in range(2, len(one.names)))])


Way = Callable[[Judge, int], None]
COMPARES: tuple[Way, ...] = (
    compares_by_keys,
    compares_by_hand,
    calls_it_a_tie,
    changes_their_mind,
    compares_differences_and_tells_why,
    calls_both_bad,
    compares_plain_text,
    reports_and_skips,
)
RANKS: tuple[Way, ...] = (
    moves_the_first_down,
    ties_by_buttons,
    sets_one_aside,
    drags_the_second_to_the_top,
    keeps_the_order,
    reports_and_skips,
)
COMMENT = "1. clearer  2. 更清楚, <b>bold</b> & t s f u"


# --- the tests -------------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """Three projects of imported tasks, what the commands said, and who judged there."""

    folder: Path
    site: Site
    printed: dict[str, str]
    judges: dict[str, Judge] = field(default_factory=dict)


@pytest.fixture(scope="module")
def place(shared, tmp_path_factory, browser) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("real")
    store = ("--store", folder / "labels.sqlite")
    (folder / "settings.yaml").write_text(SETTINGS)
    files = {
        OASST: shared / "data/oasst_en100/ranked.jsonl.gz",
        HH: shared / "data/hh_rlhf/harmless_pairs.jsonl.gz",
        BON: some_rows(
            shared / "data/bon11_tulu_alpacaeval/groups.jsonl.gz", folder / "groups.jsonl", BON_ROWS
        ),
    }
    printed = {}
    for name, file in files.items():
        cli("label", "project", "create", name, "--settings", folder / "settings.yaml", *store)
        wanted = ("--tasks-only", "--drop-bad-rows", "--project", name)
        printed[name] = cli("label", "import", "auto", file, *wanted, *store)
    with serving(folder) as site:
        there = Place(folder, site, printed)
        for name, number in NUM_JUDGED.items():
            there.judges[name] = judge_some(site, browser, name, number)
        yield there


def some_rows(file: Path, target: Path, numbers: Sequence[int]) -> Path:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        chosen = [line for number, line in enumerate(lines) if number in numbers]
    target.write_text("".join(chosen), encoding="utf-8")
    return target


def judge_some(site: Site, browser: Any, project: str, number: int) -> Judge:
    """Judges so many tasks of a project, each in another way; an error in a script fails."""
    _, token = site.person(f"Ada of {project}", project)
    has_touch = WINDOWS[project] is PHONE
    context = browser.new_context(viewport=WINDOWS[project], has_touch=has_touch, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    context.add_cookies([{"name": COOKIE, "value": token, "url": site.url}])
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{site.url}/judge/{project}")
    judge = Judge(site, page, has_touch)
    compares, ranks = itertools.cycle(COMPARES), itertools.cycle(RANKS)
    for done in range(number):
        way = next(compares if judge.begin() == "pairwise" else ranks)
        way(judge, done)
    assert errors == []
    context.close()
    return judge


def stored_by(place: Place, project: str) -> list[Said]:
    """The judgements of a project in the words of `Said`."""

    def read(connection: sa.Connection) -> list[Said]:
        rows = connection.execute(
            sa.select(judgement, task.c.completion_ids)
            .join(task, task.c.id == judgement.c.task_id)
            .where(judgement.c.project_id == project)
            .order_by(judgement.c.id)
        ).all()
        texts = {
            row.id: row.text for row in connection.execute(sa.select(completion.c.id, completion.c.text))
        }
        return [
            Said(
                one.state, in_names(one.value, [digest(texts[id]) for id in one.completion_ids]), one.comment
            )
            for one in rows
        ]

    return place.site.database.read(read)


def in_names(value: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    if "skip" in value:
        return value
    if "groups" in value:
        return {
            "groups": [sorted(names[place] for place in group) for group in value["groups"]],
            "unrankable": sorted(names[place] for place in value["unrankable"]),
        }
    if value["choice"] in ("tie", "both_bad"):
        assert value["strength"] is None
        return {"verdict": value["choice"]}
    better, worse = names if value["choice"] == "a" else names[::-1]
    return {"better": better, "worse": worse, "steps": min(value["strength"], 9 - value["strength"])}


def test_all_rows_of_the_data_sets_become_open_tasks_or_are_counted(place):
    assert (
        "150 tasks, 0 judgements from 150 rows; 150 judgements of the file left out" in place.printed[OASST]
    )
    assert (
        "14 tasks, 0 judgements from 14 rows; 14 ask about the first 9 completions only" in place.printed[BON]
    )
    found = re.search(r"(\d+) tasks, 0 judgements from 1812 rows", place.printed[HH])
    dropped = re.findall(r"(\d+) [a-z_]+(?=, |\n)", place.printed[HH].rpartition("left out: ")[2])
    assert found is not None
    assert int(found[1]) + sum(map(int, dropped)) == 1812
    assert "2 unequal_prompts" in place.printed[HH]


def test_fifty_real_tasks_are_stored_exactly_as_they_were_judged(place):
    assert sum(NUM_JUDGED.values()) == 50
    for name, judge in place.judges.items():
        assert stored_by(place, name) == judge.said, name
    assert sum(one.state == "skipped" for judge in place.judges.values() for one in judge.said) >= 3
    rows = place.site.judgements()
    chains = {one.id: one.supersedes for one in rows if one.supersedes is not None}
    assert len(chains) == len(rows) - 50 >= 3
    assert all(one.active_ms > 0 for one in rows if one.state == "valid")
    flags = place.site.database.read(lambda connection: connection.execute(sa.select(flag)).all())
    assert {one.reason for one in flags} == {"reject_prompt"}


def test_the_texts_were_long_and_of_many_kinds(place):
    seen: Counter[str] = Counter()
    for judge in place.judges.values():
        seen.update(judge.seen)
    assert set(seen) == set(KINDS_OF_TEXT)


TEMPLATE = (
    "{% for m in messages %}{{ ' Human: ' if m.role == 'user' else ' Assistant: ' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} Assistant: {% endif %}"
)
EXPERIMENT = """
name: fifty
model: {{path: {model}, terminator: <s>, template: "{template}"}}
reward: {{data: {pairs}, learning_rate: 1e-3, batch_size: 8, epochs: 1, max_length: 192}}
policy: {{offline_data: {pairs}, objective: {{kind: dpo, beta: 0.1}}, learning_rate: 1e-4, batch_size: 8, epochs: 1,
         max_length: 192, max_prompt_length: 64}}
evaluate: {{num_prompts: 0}}
loop: {{batches: 0}}
runtime: {{device: cpu, threads: 1}}
"""


def test_a_reward_model_and_a_policy_are_trained_on_what_was_said(place, shared, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    rows = 0
    for name in NUM_JUDGED:
        wanted = ("--project", name, "--store", place.folder / "labels.sqlite")
        cli("label", "export", "trl-preference", "-o", pairs / f"{name}.jsonl", *wanted)
        manifest = json.loads((pairs / f"{name}.manifest.json").read_text())
        assert manifest["rows_in"] == len(place.judges[name].said)
        assert manifest["rows_in"] == manifest["rows_out"] + sum(manifest["drops"].values())
        assert manifest["records"] == len(pairs_in(place.judges[name].said)), name
        rows += manifest["records"]
    experiment = tmp_path / "fifty.yaml"
    model = shared / "models/tinystories-260k"
    experiment.write_text(EXPERIMENT.format(model=model, template=TEMPLATE, pairs=pairs))
    cli("run", experiment, "--workspace", tmp_path / "workspace")
    told = json.loads(cli("status", "--json", "--workspace", tmp_path / "workspace"))
    found = {one["role"]: one for one in told["artefacts"]}
    assert {one["state"] for one in found.values()} == {"done"}
    stats = {
        role: json.loads((Path(one["path"]) / "manifest.json").read_text())["stats"]
        for role, one in found.items()
    }
    assert stats["policy"]["pairs"] == stats["reward_data"]["pairs"] == rows
    for role in ("reward", "policy"):
        assert stats[role]["loss_first"] == pytest.approx(math.log(2), abs=1e-4)  # nothing is preferred yet
        assert math.isfinite(stats[role]["loss_last"]), role
    assert math.isfinite(stats["reward"]["validation"]["accuracy"]["mean"])


def pairs_in(said: Sequence[Said]) -> set[tuple[str, str]]:
    """The better and the worse texts of all that was said last."""
    found: set[tuple[str, str]] = set()
    for one in said:
        if one.is_last_word and "better" in one.value:
            found.add((one.value["better"], one.value["worse"]))
        for place, group in enumerate(one.value.get("groups", [])):
            found.update((a, b) for a in group for later in one.value["groups"][place + 1 :] for b in later)
    return found
