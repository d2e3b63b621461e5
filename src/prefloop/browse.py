"""What `prefloop show` prints: artefacts as rows and figures, and the lineage of a policy.

Returns rich renderables; text from data and models is escaped and stripped of control characters.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from prefloop.config import Experiment, RewardBenchSuite
from prefloop.interfaces import InputError
from prefloop.records import (
    Comparison,
    Completion,
    Group,
    Judgement,
    PreferencePair,
    Prompt,
    Rollout,
    Score,
    SearchTree,
    judgement_adapter,
)
from prefloop.store import Artefact, Workspace, read_json, read_records, read_rows
from prefloop.tokens import Piece

CHARACTERS_SHOWN = 400
STEP_CHARACTERS = 60
NODES_SHOWN = 40
PART_STYLES = {"template": "dim", "system": "magenta", "user": "cyan", "assistant": "green"}
POLICY_KINDS = ("base", "sft", "policy", "promote")
CLASSIFIER = "ForSequenceClassification"
"""End of the architecture of a model that scores."""


ESCAPE_SEQUENCE = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links, clipboard
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # device control strings
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor
    r"|\x1b[ -/]*[0-~]?"
)
CONTROL_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode: controls, directions of writing, halves of characters, line and paragraph separators."""
KEPT_CONTROLS = frozenset("\n\t\u200c\u200d")
"""Line feed, tab, and the joiners that Persian, Hindi and emoji are written with."""


def printable(text: str) -> str:
    """The text without terminal escapes, control characters and marks that turn the direction of writing."""
    return "".join(
        sign
        for sign in ESCAPE_SEQUENCE.sub("", text)
        if sign in KEPT_CONTROLS or unicodedata.category(sign) not in CONTROL_CATEGORIES
    )


def shown(text: str) -> str:
    """Hostile text made safe for a terminal and cut to a readable length."""
    clean = printable(text)
    return escape(clean if len(clean) <= CHARACTERS_SHOWN else clean[:CHARACTERS_SHOWN] + " …")


def artefact_page(workspace: Workspace, artefact: Artefact, *, start: int, number: int) -> Stack:
    """Facts about an artefact, then `number` of its rows from position `start`."""
    parts: list[RenderableType] = [_facts(artefact)]
    rows = list(_rows(workspace, artefact))
    if rows and start >= len(rows):
        raise InputError(f"--start {start}: {artefact.name} has {len(rows)} rows")
    if rows:
        end = min(start + number, len(rows))
        parts += [f"[dim]rows {start + 1} to {end} of {len(rows)}[/]", *rows[start:end]]
    if artefact.kind in ("policy", "sft", "promote", "reward"):
        parts.append(lineage(workspace, artefact))
    return Stack(*parts)


def _facts(artefact: Artefact) -> Table:
    manifest = artefact.manifest
    table = Table(title=artefact.name, show_header=False, title_justify="left", box=None)
    dropped = (
        ", ".join(f"{number} {reason}" for reason, number in manifest["rows"]["dropped"].items()) or "none"
    )
    table.add_row("digest", manifest["digest"])
    table.add_row("rows", f"{manifest['rows']['in']} in, {manifest['rows']['out']} out, dropped: {dropped}")
    table.add_row("made in", f"{manifest['seconds']:.1f} s")
    for name, value in manifest["stats"].items():
        if value is not None:
            table.add_row(name, escape(_short(value)))
    for role, keys in manifest["inputs"].items():
        table.add_row(f"from {role}", " ".join([keys] if isinstance(keys, str) else keys))
    return table


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items() if one is not None)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rows(workspace: Workspace, artefact: Artefact) -> Iterator[RenderableType]:
    folder = artefact.path
    match artefact.kind:
        case "prompts" | "draw" | "invent":
            for file in ("prompts.jsonl", "train.jsonl", "gate.jsonl", "evaluation.jsonl"):
                if (folder / file).is_file():
                    for prompt in read_records(folder / file, Prompt):
                        yield _prompt_line(file.removesuffix(".jsonl"), prompt)
        case "policy" if (folder / "samples.jsonl").is_file():
            for one in read_records(folder / "samples.jsonl", Rollout):
                yield Stack(f"[bold]batch {one.batch}[/]", group_table(one.group, one.scores))
        case "generate":
            for group in read_records(folder / "groups.jsonl", Group):
                yield (
                    group_table(group, [])
                    if group.tree is None
                    else Stack(group_table(group, []), search_tree(group.tree))
                )
        case "annotate":
            yield from _judged_groups(workspace, artefact)
        case "select" | "import":
            for pair in read_records(folder / "pairs.jsonl", PreferencePair):
                yield pair_table(pair)
        case "evaluate":
            measured = {row["completion_id"]: row for row in read_rows(folder / "measurements.jsonl")}
            for group in read_records(folder / "groups.jsonl", Group):
                yield group_table(group, [], measured)


def _prompt_line(split: str, prompt: Prompt) -> str:
    earlier = len(prompt.messages) - 1
    turns = f"[dim]after {earlier} turns[/] " if earlier else ""
    return f"[blue]{split}[/] [dim]{escape(prompt.source)}[/] {turns}{shown(prompt.text)}"


def _judged_groups(workspace: Workspace, artefact: Artefact) -> Iterator[RenderableType]:
    source = workspace.find(f"generate-{artefact.manifest['inputs']['groups']}")
    judgements: dict[str, list[Judgement]] = {}
    for file in ("judgements.jsonl", "proxy.jsonl"):
        if (artefact.path / file).is_file():
            for row in read_rows(artefact.path / file):
                one = judgement_adapter.validate_python(row)
                judgements.setdefault(one.prompt_id, []).append(one)
    for group in read_records(source.path / "groups.jsonl", Group):
        yield group_table(group, judgements.get(group.prompt.id, []))


def group_table(
    group: Group, judgements: Sequence[Judgement], measured: dict[str, dict[str, Any]] | None = None
) -> Table:
    """A prompt and its completions with what was said about each."""
    table = Table(title=shown(group.prompt.text), title_justify="left", show_lines=True)
    for name in ("#", "completion", "T", "said"):
        table.add_column(name, overflow="fold", ratio=1 if name == "completion" else None)
    for index, one in enumerate(group.completions):
        said = list(_said_of(one, judgements))
        if measured and one.id in measured:
            row = measured[one.id]
            said = [
                f"{key} {row[key]:.3f}" for key in ("score", "second", "proxy", "kl") if row[key] is not None
            ]
        temperature = f"{one.sampling.temperature:g}" if one.sampling else "–"
        cut = " [yellow](cut at the length limit)[/]" if one.finish_reason == "length" else ""
        table.add_row(str(index), shown(one.text) + cut, temperature, "\n".join(said))
    return table


def _said_of(one: Completion, judgements: Sequence[Judgement]) -> Iterator[str]:
    for judgement in judgements:
        if isinstance(judgement, Score) and judgement.completion_id == one.id:
            yield f"{judgement.value:.3f} {escape(judgement.annotator)}"
        elif isinstance(judgement, Comparison) and one.id in (judgement.a, judgement.b):
            p = judgement.p_a if one.id == judgement.a else 1 - judgement.p_a
            verdict = "tie" if p == 0.5 else "[green]better[/]" if p > 0.5 else "worse"
            yield f"{verdict} {escape(judgement.annotator)}"


def search_tree(tree: SearchTree) -> Tree:
    """The steps of a search, the most visited ones; what it committed itself to is bold."""
    often = sorted(range(1, len(tree.nodes)), key=lambda at: (-tree.nodes[at].visits, at))
    kept = {
        0,
        *tree.committed,
        *often[:NODES_SHOWN],
    }  # a parent has as many visits as its children at least, and comes first
    branches: dict[int, Tree] = {}
    for number, node in enumerate(tree.nodes):
        if number not in kept:
            continue
        line = f"{node.visits} visits, Q {node.q:+.3f}, value {node.value:.3f}"
        if node.parent is None:
            line = f"search by {escape(printable(tree.annotator))}: {tree.num_drawn} completions of {tree.num_tokens} tokens"
            branches[number] = Tree(line)
            continue
        places = [str(place) for place, leaf in enumerate(tree.leaves) if leaf == number]
        words = _one_line(node.text)
        words = f"[bold]{words}[/]" if number in tree.committed else words
        words += " [dim](end)[/]" if node.ends else ""
        found = f" [green]#{', #'.join(places)}[/]" if places else ""
        branches[number] = branches[node.parent].add(f"{words} [dim]{line}[/]{found}")
    if len(kept) < len(tree.nodes):
        branches[0].add(f"[dim]{len(tree.nodes) - len(kept)} more with fewer visits[/]")
    return branches[0]


def _one_line(text: str) -> str:
    """A step, safe for a terminal and short enough for a branch."""
    clean = " ".join(printable(text).split())
    return escape(clean if len(clean) <= STEP_CHARACTERS else clean[:STEP_CHARACTERS] + " …")


def pair_table(pair: PreferencePair) -> Table:
    """A preference pair."""
    table = Table(title=shown(pair.prompt.text), title_justify="left", show_header=False, show_lines=True)
    table.add_row("[green]chosen[/]", shown(pair.chosen.text))
    table.add_row("rejected", shown(pair.rejected.text))
    table.add_row(
        "",
        f"margin {pair.margin:.3f} by {escape(pair.annotator)}, written by {pair.chosen.policy or 'a file'}",
    )
    return table


def lineage(workspace: Workspace, artefact: Artefact) -> Tree:
    """Where an artefact comes from, back to every pair, annotator and policy."""
    tree = Tree(_line(artefact))
    _grow(tree, workspace, artefact, set())
    return tree


LINEAGE_ROLES = (
    "start",
    "pairs",
    "base",
    "trunk",
    "candidate",
    "previous",
    "groups",
    "judgements",
    "policy",
    "reward",
)


def _grow(tree: Tree, workspace: Workspace, artefact: Artefact, seen: set[str]) -> None:
    for role, keys in artefact.manifest["inputs"].items():
        if role not in LINEAGE_ROLES:
            continue
        for key in [keys] if isinstance(keys, str) else keys:
            parent = workspace.find(key)
            known = parent.name in seen
            branch = tree.add(f"[dim]{role}[/] {_line(parent)}" + (" [dim](above)[/]" if known else ""))
            if not known:
                seen.add(parent.name)
                _grow(branch, workspace, parent, seen)


def _line(artefact: Artefact) -> str:
    if not artefact.exists:
        return f"{artefact.name} [red]missing[/]"
    stats = artefact.stats
    match artefact.kind:
        case "select" | "import":
            return f"{artefact.name}: {stats['pairs']} pairs"
        case "annotate":
            who = ", ".join(f"{number} by {name}" for name, number in list(stats["annotators"].items())[:4])
            more = len(stats["annotators"]) - 4
            return f"{artefact.name}: {stats['labels']} labels ({escape(who)}{f' and {more} more' if more > 0 else ''})"
        case "generate":
            return f"{artefact.name}: {stats['num_completions']} completions"
        case "promote":
            choice = read_json(artefact.path / "policy.json")
            return f"{artefact.name}: {'kept' if choice['promoted'] else 'rolled back'}"
        case _:
            return artefact.name


def run_page(plan: dict[str, Any], artefacts: Sequence[Artefact]) -> Table:
    """A run's stages with the names to look closer."""
    exists = {one.name: one.exists for one in artefacts}
    table = Table(title=f"run {plan['name']}", title_justify="left")
    for name in ("arm", "iteration", "stage", "artefact", "state"):
        table.add_column(name)
    for one in plan["entries"]:
        name = f"{one['kind']}-{one['key']}"
        step = "" if one["iteration"] is None else str(one["iteration"] + 1)
        table.add_row(one["arm"], step, one["role"], name, "[green]done[/]" if exists[name] else "to do")
    return table


def token_text(pieces: Sequence[Piece]) -> Text:
    """Tokens in the colours of their roles, one as light and the next as dark; trained ones are underlined."""
    text = Text()
    for number, piece in enumerate(pieces):
        style = PART_STYLES[piece.part] + (" underline" if piece.trained else "")
        shown = printable(piece.text).replace("\n", "⏎\n").replace(" ", "·")
        text.append(shown, style=f"{style} on grey15" if number % 2 else style)
    return text


def legend() -> Text:
    """What the colours of `token_text` mean."""
    text = Text("Every other token is shaded. ")
    for part, style in PART_STYLES.items():
        text.append(part, style=style)
        text.append(" ")
    return text.append("trained", style="underline")


def model_artefact(
    workspace: Workspace, text: str, *, kinds: Sequence[str] = POLICY_KINDS, what: str = "policy"
) -> Artefact | None:
    """The artefact with a policy (or what else) that a name on the command line means; None where it is a folder or a hub
    name. Raises InputError for artefacts of another kind."""
    try:
        artefact = workspace.find(text)
    except InputError:
        return None
    if artefact.kind not in kinds:
        raise InputError(f"{artefact.name}: no {what}; artefacts of {', '.join(kinds)} have one")
    return artefact


def is_reward_model(x: Experiment, text: str) -> bool:
    """Whether a folder or hub name is meant as a reward model: by its architecture, or because nothing else is measured."""
    path = Path(text) / "config.json"
    if path.is_file():
        names = read_json(path).get("architectures") or ()
        return any(str(one).endswith(CLASSIFIER) for one in names)
    return all(isinstance(one, RewardBenchSuite) and one.of == "reward" for one in x.evaluate.suites.values())


def only_suites(x: Experiment, names: Sequence[str]) -> Experiment:
    """The experiment with the benchmarks named, or all where none is. Raises InputError for others."""
    if unknown := [one for one in names if one not in x.evaluate.suites]:
        raise InputError(f"--suite {unknown[0]}: there is none; choose {', '.join(x.evaluate.suites)}")
    kept = {name: one for name, one in x.evaluate.suites.items() if not names or name in names}
    return x.model_copy(update={"evaluate": x.evaluate.model_copy(update={"suites": kept})})


def named_model(workspace: Workspace, text: str) -> str:
    """The model folder that a name on the command line means: an artefact of the workspace, a folder or a hub name."""
    try:
        artefact = workspace.find(text)
    except InputError:
        return text
    from prefloop.stages.shared import model_folder

    return str(model_folder(artefact))
