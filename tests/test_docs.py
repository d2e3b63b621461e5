"""The documentation says what the code does: reference pages, commands, configuration examples and links."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.main
import yaml

from prefloop import cli, config
from prefloop.commands import files
from prefloop.studies import definition

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
UsageError = typer.BadParameter.__mro__[1]
"""The base of all errors of the command line's parser, whichever click typer brings."""


def fenced(page: Path, *languages: str) -> list[str]:
    return [
        body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages
    ]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands() -> list[tuple[str, str]]:
    """Every `prefloop ...` line of a shell block, with its page."""
    return [
        (str(page.relative_to(ROOT)), line)
        for page in PAGES
        for block in fenced(page, "bash", "sh", "shell")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("prefloop ")
    ]


def examples() -> list[tuple[str, str]]:
    """Every YAML block, with its page."""
    return [(str(page.relative_to(ROOT)), block) for page in PAGES for block in fenced(page, "yaml")]


def test_reference_pages_are_what_the_code_says():
    script = ROOT / "docs" / "generate_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_config_key_is_documented():
    documented: set[str] = set()
    for section in (ROOT / "docs/reference/config.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        used_at = re.search(r"^Used at: (.+)\.$", section, re.MULTILINE)
        prefixes = [f"{path}." for path in re.findall(r"`([^`]+)`", used_at[1])] if used_at else [""]
        names = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
        documented |= {prefix + name for prefix in prefixes for name in names}
    assert documented == set(config.keys())


def test_every_command_is_documented():
    titles = HEADING.findall((ROOT / "docs/reference/cli.md").read_text(encoding="utf-8"))
    assert set(names_of(typer.main.get_command(cli.app))) <= set(titles)


def names_of(group) -> Iterator[str]:
    """Every command, `label round freeze` for instance."""
    for name, command in group.commands.items():
        yield name
        yield from (f"{name} {one}" for one in names_of(command)) if hasattr(command, "commands") else ()


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_documented_command_can_be_parsed(page, line):
    words = shlex.split(line, comments=True)
    words = words[: next((place for place, word in enumerate(words) if word in (">", "|", "&&")), len(words))]
    _, name, *rest = words
    group = typer.main.get_command(cli.app)
    if name.startswith("-"):
        group.make_context("prefloop", words[1:], resilient_parsing=True)
        return
    assert name in group.commands, f"{page}: no command {name}"
    while hasattr(group.commands[name], "commands"):
        group = group.commands[name]
        if rest[0] not in group.commands and hasattr(group, "default"):
            rest = [group.default, *rest]
        name, *rest = rest
        assert name in group.commands, f"{page}: {line}: no command {name}"
    try:
        context = group.commands[name].make_context(name, rest)
    except UsageError as error:
        pytest.fail(f"{page}: {line}: {error}")
    keys = [one.partition("=")[0] for one in context.params.get("overrides") or ()]
    assert set(keys) <= set(config.keys()), f"{page}: {line}"


def test_commands_named_in_running_text_exist():
    group = typer.main.get_command(cli.app)
    for page in PAGES:
        for name in re.findall(r"`prefloop (\w[\w-]*)", prose(page)):
            known = name in group.commands or name == "COMMAND"
            assert known, f"{page.name}: `prefloop {name}`"


@pytest.mark.parametrize(("page", "block"), examples())
def test_a_documented_example_is_a_valid_experiment(page, block):
    """A block without prompts is a fragment: it is tried inside a small experiment. One with measures is a study."""
    given = yaml.safe_load(block)
    if "measures" in given:
        definition.parse(block, where=page)
        return
    whole = "model" in given or "loop" in given
    frame = (
        {}
        if whole
        else {"model": "a-model", "prompts": "prompts.jsonl", "reward": {"model": "a-reward-model"}}
    )
    config.parse(yaml.safe_dump(frame | given), where=page)


def test_presets_named_by_the_command_line_are_valid():
    for name in files.PRESETS:
        config.parse(config.preset(name), where=name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    for image, target in LINK.findall(prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists() or image, f"{page.name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(goal), f"{page.name}: {target}: no such heading"


def anchors(page: Path) -> set[str]:
    titles = HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_reachable_from_the_index():
    linked = {
        (ROOT / "docs" / target.partition("#")[0]).resolve()
        for _, target in LINK.findall(prose(ROOT / "docs" / "index.md"))
    }
    pages = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "index.md"}
    assert pages <= linked, f"not in docs/index.md: {sorted(pages - linked)}"
