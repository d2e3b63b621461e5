"""Writes docs/reference/config.md and docs/reference/cli.md from the code, and parts of two other pages: the loop in
docs/architecture.md and the algorithms in docs/concepts/rl.md.

`python docs/generate_reference.py` writes the pages; with `--check` it writes nothing and fails where a page is not what
the code says. Knows nothing about what the keys and commands do: every word comes from docstrings, types and help texts.
"""

import argparse
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main
from pydantic.fields import FieldInfo

from prefloop import cli, interfaces, pipeline
from prefloop.algorithms import ALGORITHMS, Algorithm
from prefloop.commands import options
from prefloop.config import Experiment, PairObjective, Section, sections_in

DOCS = Path(__file__).parent
TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
WIDTH = 120
"""Of running text that is written here."""
NOTICE = "<!-- Written by docs/generate_reference.py; do not edit. -->"
PART_NAMES = {
    "SourceSection": "Source",
    "LoraSection": "LoRA",
    "RewardModelAnnotator": "Scorer: reward_model",
    "RuleAnnotator": "Scorer: rule",
    "FunctionAnnotator": "Scorer: function",
    "RuleModelAnnotator": "Scorer: rule_model",
    "CompositeAnnotator": "Scorer: composite",
    "PairwiseAnnotator": "Judge: pairwise",
    "JudgeAnnotator": "Judge: judge",
    "RecordedAnnotator": "Judge: recorded",
    "FileSource": "Prompt source: file",
    "SelfPlaySource": "Prompt source: self_play",
    "AdversarialSource": "Prompt source: adversarial",
    "HfEngine": "Engine: hf",
    "RemoteEngine": "Engine: remote",
    "VllmEngine": "Engine: vllm",
}
"""Titles of sections that are used in several places."""


def main() -> None:
    """Writes the pages, or checks them."""
    parser = argparse.ArgumentParser(description="Write the reference pages from the code.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a page is out of date"
    )
    check = parser.parse_args().check
    stale = [name for name, text in pages().items() if not is_current(name, text)]
    if check and stale:
        raise SystemExit(f"out of date: {', '.join(stale)}; run `make docs`")
    for name in stale:
        (DOCS / name).write_text(pages()[name], encoding="utf-8")


def pages() -> dict[str, str]:
    """The text of each page, by its path in docs."""
    return {
        "reference/config.md": config_page(),
        "reference/cli.md": cli_page(),
        "architecture.md": page_with("architecture.md", "online_loop", loop_text()),
        "concepts/rl.md": page_with("concepts/rl.md", "algorithms", algorithms_text()),
    }


def is_current(name: str, text: str) -> bool:
    """Whether the page on disk is what the code says."""
    path = DOCS / name
    return path.is_file() and path.read_text(encoding="utf-8") == text


def slug(title: str) -> str:
    """The anchor that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def page_with(name: str, part: str, text: str) -> str:
    """The page on disk with its marked part as the code says."""
    begins, ends = f"<!-- {part}: written by `make docs` -->", f"<!-- /{part} -->"
    before, opening, rest = (DOCS / name).read_text(encoding="utf-8").partition(begins)
    _, closing, after = rest.partition(ends)
    if not opening or not closing:
        raise SystemExit(f"docs/{name}: lacks the lines {begins} and {ends}")
    return f"{before}{begins}\n\n{text}\n\n{ends}{after}"


def loop_text() -> str:
    """The loop as it is in the code."""
    return f"```python\n{inspect.getsource(pipeline.online_loop).rstrip()}\n```"


# --- policy-gradient algorithms --------------------------------------------------------------------------------------


def algorithms_text() -> str:
    """The table of algorithms, and where each row comes from."""
    lines = [
        "| algorithm | baseline | scale | ratio | clip | reduction | KL | other |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ALGORITHMS.items():
        cells = (
            f"`{name}`",
            with_numbers(row.baseline, {"λ": row.gae_lambda}),
            row.scale,
            row.ratio,
            with_numbers(row.clip, {"-": row.clip_low, "+": row.clip_high}, space=""),
            row.reduction,
            with_numbers(row.kl, {"β": row.kl_coef}),
            other(row),
        )
        lines.append("| " + " | ".join(cells) + " |")
    sources = [
        textwrap.fill(f"- `{name}`: {row.source}.", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        for name, row in ALGORITHMS.items()
    ]
    return "\n".join([*lines, "", "Where the numbers come from, and who says otherwise:", "", *sources])


def with_numbers(word: str, numbers: dict[str, float | None], *, space: str = " ") -> str:
    """A column with the numbers that belong to it."""
    shown = [f"{sign}{space}{value:.3g}" for sign, value in numbers.items() if value is not None]
    return " ".join([word, *shown])


def other(row: Algorithm) -> str:
    """What few rows have."""
    numbers = {"critic's loss": row.value_coef, "value clip": row.value_clip, "ptx": row.ptx_coef or None}
    shown = [f"{name} {value:g}" for name, value in numbers.items() if value is not None]
    return ", ".join([*(["trust region"] if row.update == "trust_region" else []), *shown])


# --- config ----------------------------------------------------------------------------------------------------------


def config_page() -> str:
    """Every config key with type, default and meaning."""
    found = places()
    intro = (
        "# Configuration\n\n"
        f"{NOTICE}\n\n"
        "One YAML file describes one experiment; `section.key=value` on the command line changes it. An unknown key is an "
        "error. Everything enters the keys of the artefacts it influences, except `name`, `arms` and `runtime`.\n\n"
        "A section of several kinds says which one with `kind`. A [Source](#source) or a model may be written as a plain "
        "string, which is its `path`."
    )
    return "\n\n".join([intro, *(section_text(one, paths, found) for one, paths in found.items())]) + "\n"


Places = dict[type[Section], list[str]]


def places() -> Places:
    """Every section with the dotted paths where it is used, in the order of the experiment."""
    found: Places = {Experiment: [""]}

    def walk(section: type[Section], prefix: str) -> None:
        for name, field in section.model_fields.items():
            for inner in sections_in(field.annotation):
                paths = found.setdefault(inner, [])
                if prefix + name not in paths:
                    paths.append(prefix + name)
                walk(inner, f"{prefix}{name}.")

    walk(Experiment, "")
    once = {one: paths for one, paths in found.items() if len(paths) == 1}
    return once | {one: paths for one, paths in found.items() if len(paths) > 1}


def title(section: type[Section], paths: list[str]) -> str:
    """The heading of a section."""
    if section is Experiment:
        return "Experiment"
    kind = section.model_fields.get("kind")
    if issubclass(section, PairObjective) and kind is not None:
        return f"Objective: {get_args(kind.annotation)[0]}"
    if len(paths) > 1:
        return PART_NAMES[section.__name__]
    return paths[0] if kind is None else f"{paths[0]}: {get_args(kind.annotation)[0]}"


def section_text(section: type[Section], paths: list[str], found: Places) -> str:
    """Heading, description and table of one section."""
    prefix = f"{paths[0]}." if len(paths) == 1 and paths[0] else ""
    lines = [f"## {title(section, paths)}", "", " ".join((section.__doc__ or "").split())]
    if len(paths) > 1:
        lines += ["", f"Used at: {', '.join(f'`{path}`' for path in paths)}."]
    lines += ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        cells = (f"`{prefix}{name}`", field_type(field, found), default(field), field.description or "")
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def field_type(field: FieldInfo, found: Places) -> str:
    """The type of a field in words, with its range."""
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]
    patterns = [limit.pattern for limit in field.metadata if getattr(limit, "pattern", None)]
    text = type_text(field.annotation, found)
    if patterns:
        text += f" like `{patterns[0]}`"
    return f"{text}, {', '.join(bounds)}" if bounds else text


def type_text(annotation: Any, found: Places) -> str:
    """A type in words."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        name = title(annotation, found[annotation])
        return f"[{name.rpartition(': ')[2]}](#{slug(name)})"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(inner[0], found)
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin in (Union, UnionType):
        return " or ".join(type_text(one, found) for one in inner)
    if origin is list:
        return f"list of {type_text(inner[0], found)}"
    if origin is tuple:
        return f"list of {len(inner)} of {type_text(inner[0], found)}"
    if origin is dict:
        return f"mapping of {type_text(inner[0], found)} to {type_text(inner[1], found)}"
    return TYPE_NAMES.get(annotation, "any")


def default(field: FieldInfo) -> str:
    """The default of a field as it would stand in YAML."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        kind = getattr(value, "kind", None)
        return f"`{{kind: {kind}}}`" if kind else "its defaults"
    if isinstance(value, float):
        return f"`{re.sub(r'e-0', 'e-', f'{value:g}')}`"
    if isinstance(value, str) and re.fullmatch(r"[\w.:/ -]+", value):
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


# --- commands --------------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """Every command with arguments, options and exit codes."""
    group: Any = typer.main.get_command(cli.app)
    intro = (
        "# Commands\n\n"
        f"{NOTICE}\n\n"
        f"{group.help} `prefloop --help` and `prefloop COMMAND --help` say the same in the terminal.\n\n"
        "The workspace, the folder of all artefacts and runs, is `--workspace`, else the environment variable "
        "`PREFLOOP_WORKSPACE`, else `runtime.workspace` of the experiment where a command takes one, else `workspace`."
    )
    commands = (command_text(name, command) for name, command in all_commands(group))
    return "\n\n".join([intro, *commands, exit_codes()]) + "\n"


def all_commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name; a group comes before its own."""
    for name, command in group.commands.items():
        yield f"{before}{name}", command
        yield from all_commands(command, f"{before}{name} ") if hasattr(command, "commands") else ()


def command_text(name: str, command: Any) -> str:
    """One command, or a group of commands."""
    if hasattr(command, "commands"):
        inner = ", ".join(f"`{name} {one}`" for one in command.commands)
        return "\n\n".join(
            one for one in (f"## {name}", command.help, f"Commands: {inner}.", command.epilog) if one
        )
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    pieces = [f"prefloop {name}", *map(argument_usage, arguments), *(["[OPTIONS]"] if options else [])]
    lines = [f"## {name}", "", command.help, "", f"Usage: `{' '.join(pieces)}`"]
    rows = [*argument_rows(arguments), *option_rows(options)]
    if rows:
        lines += ["", "| | default | meaning |", "|---|---|---|", *rows]
    if command.epilog:
        lines += ["", command.epilog]
    return "\n".join(lines)


def argument_usage(argument: Any) -> str:
    """An argument as it stands in a usage line."""
    text = argument.name.upper() if argument.required else f"[{argument.name.upper()}]"
    return f"{text}…" if argument.nargs == -1 else text


def argument_rows(arguments: Iterable[Any]) -> Iterator[str]:
    """Table rows of arguments."""
    for one in arguments:
        shown = "required" if one.required else shown_default(one)
        yield f"| `{one.name.upper()}` | {shown} | {one.help or ''} |"


def option_rows(options: Iterable[Any]) -> Iterator[str]:
    """Table rows of options."""
    for one in options:
        environment = f" Environment variable: `{one.envvar}`." if one.envvar else ""
        flags = ", ".join(f"`{flag}`" for flag in (*one.opts, *one.secondary_opts))
        yield f"| {flags} | {shown_default(one)} | {one.help or ''}{environment} |"


def shown_default(parameter: Any) -> str:
    """The default of a parameter; flags and parameters that may be left out have none."""
    value = parameter.default
    return "" if value is None or value is False else f"`{value}`"


def exit_codes() -> str:
    """What the exit code of a command says."""
    errors = [interfaces.PrefloopError, *interfaces.PrefloopError.__subclasses__()]
    meanings: dict[int, list[str]] = {0: ["Everything that was asked for is done."]}
    for error in errors:
        meanings.setdefault(error.exit_code, []).append(" ".join((error.__doc__ or "").split()))
    meanings[2] = ["The command line cannot be understood."]
    meanings[options.INTERRUPTED] = ["Stopped by Ctrl-C; the same command goes on from there."]
    rows = [f"| {code} | {' '.join(texts)} |" for code, texts in sorted(meanings.items())]
    return "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *rows])


if __name__ == "__main__":
    main()
