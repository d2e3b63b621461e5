"""What a run looks like in a terminal: a line a stage, bars, the table of its policies, and figures in words."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from prefloop.browse import shown
from prefloop.config import MAIN_ARM, Experiment
from prefloop.interfaces import Progress as Report
from prefloop.pipeline import Entry, Watcher
from prefloop.records import Group
from prefloop.store import Artefact, Workspace, read_records

console = Console(emoji=False)  # text from data and models may hold :names:

beside = Console(stderr=True, emoji=False)
"""Where bars go, so that what a command prints can be piped."""


class Screen(Watcher):
    """Draws a run: one line a finished stage, a bar with the time left for the one under way."""

    def __init__(self, workspace: Workspace, on: Console = console) -> None:
        self._workspace = workspace
        self._console = on
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=on,
            transient=True,
            disable=not on.is_terminal,
        )
        self._bar: Any = None
        self._header: tuple[str, int | None] | None = None
        self._seen: list[Entry] = []

    def __enter__(self) -> "Screen":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the bars off the screen."""
        self._bars.stop()

    def begins(self, entry: Entry, number: int, total: int) -> Report:
        """Starts a bar."""
        self._say_where(entry)
        self._bar = self._bars.add_task(f"  {entry.role}", total=None, note=entry.stage.work)

        def progress(done: int, total: int, note: str = "") -> None:
            self._bars.update(self._bar, completed=done, total=total, note=note or entry.stage.work)

        return progress

    def ends(self, entry: Entry, seconds: float, reused: bool) -> None:
        """Replaces the bar by a line."""
        self._say_where(entry)
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
        time_text = "kept" if reused else duration(seconds)
        self._console.print(
            f"  {entry.role:<11} {time_text:>7}  {escape(summary(entry.artefact))}",
            highlight=False,
            soft_wrap=True,
        )

    def waits(self, entry: Entry) -> None:
        """Says that another process is at it."""
        self._console.print(f"  {entry.role}: another run is building this; waiting for it", style="yellow")

    def _say_where(self, entry: Entry) -> None:
        where = (entry.arm, entry.iteration)
        if where != self._header:
            self._header = where
            arm = "" if entry.arm == MAIN_ARM else f"arm {entry.arm}, "
            step = "preparation" if entry.iteration is None else f"iteration {entry.iteration + 1}"
            self._console.print(f"[bold blue]{arm}{step}[/]")


@contextlib.contextmanager
def bar(name: str) -> Iterator[Report]:
    """A bar for work that is no run; nothing where nobody watches."""
    with Progress(
        TextColumn(name),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=beside,
        transient=True,
        disable=not beside.is_terminal,
    ) as bars:
        task = bars.add_task(name, total=None)

        def progress(done: int, total: int, note: str = "") -> None:
            bars.update(task, completed=done, total=total)

        yield progress


def summary(artefact: Artefact) -> str:
    """One line about an artefact: what went in, came out, was dropped, and how good it is."""
    manifest = artefact.manifest
    stats, rows = manifest["stats"], manifest["rows"]
    dropped = ", ".join(f"{number} {reason}" for reason, number in rows["dropped"].items())
    lines = {
        "base": lambda: (
            f"{stats.get('parameters', '')} {stats.get('architecture', 'made from scratch')}".strip()
        ),
        "sft": lambda: _training_summary(stats),
        "policy": lambda: _policy_summary(stats),
        "reward": lambda: _reward_summary(stats),
        "generate": lambda: (
            f"{stats['num_completions']} completions, {number_text(stats['mean_tokens'])} tokens on average"
        ),
        "annotate": lambda: _labels_summary(stats),
        "suite": lambda: _suite_summary(stats),
        "invent": lambda: ", ".join(f"{number} {source}" for source, number in stats["sources"].items()),
        "select": lambda: f"{stats['pairs']} pairs",
        "evaluate": lambda: _evaluation_summary(stats),
        "promote": lambda: f"{'kept' if stats['promoted'] else 'rolled back'}: {stats['reason']}",
        "import": lambda: f"{stats['pairs']} pairs ({stats['format']})",
    }
    line = lines.get(artefact.kind, lambda: f"{rows['out']} rows")()
    return f"{line}; dropped {dropped}" if dropped else line


def _suite_summary(stats: dict[str, Any]) -> str:
    figure = stats["scores"][0]["figures"][stats["figure"]]
    value = "undefined" if figure["value"] is None else number_text(figure["value"])
    between = f" [{number_text(figure['low'])}, {number_text(figure['high'])}]" if "low" in figure else ""
    return f"{stats['figure']} {value}{between}"


def _training_summary(stats: dict[str, Any]) -> str:
    return f"{stats['steps']} steps, loss {stats['loss_first']:.3f} → {stats['loss_last']:.3f}"


def _policy_summary(stats: dict[str, Any]) -> str:
    if "algorithm" not in stats:
        return f"{_training_summary(stats)}, {stats['pairs']} pairs"
    kl = "" if stats["kl"] is None else f", {stats['kl']:.2f} nats from the reference"
    score = f"score {stats['score_first']:.3f} → {stats['score_last']:.3f}"
    return f"{stats['steps']} steps of {stats['algorithm']}, {score}{kl}"


def _reward_summary(stats: dict[str, Any]) -> str:
    if "rules" in stats:
        held_out = stats["held_out"]
        right = f", held-out accuracy {interval_text(held_out['accuracy'], percent=True)}" if held_out else ""
        return f"{stats['num_rows']} verdicts on {stats['rules']} rules{right}"
    if not stats.get("validation"):
        return f"{stats['num_rows']} pairs" if stats["num_rows"] else "imported"
    accuracy, length = stats["validation"]["accuracy"], stats["validation"]["length_baseline"]
    return (
        f"{stats['num_rows']} pairs, held-out accuracy {interval_text(accuracy, percent=True)} "
        f"(longer answer: {100 * length['mean']:.1f} %)"
    )


def _labels_summary(stats: dict[str, Any]) -> str:
    parts = [f"{stats['labels']} labels"]
    for name in ("ties", "refusals"):
        if stats[name]:
            parts.append(f"{stats[name]} {name}")
    if stats["gold_agreement"] is not None:
        parts.append(f"{100 * stats['gold_agreement']:.0f} % agree with the hidden truth")
    if stats["score"]:
        parts.append(f"mean {stats['score']['mean']:.3f}, best of K {stats['score']['best_of_k']:.3f}")
    return ", ".join(parts)


def _evaluation_summary(stats: dict[str, Any]) -> str:
    judged = stats["judged_by"]
    parts = [f"{judged} {interval_text(stats[judged])}"] if judged else []
    if stats["win_rate_vs_start"]:
        parts.append(f"wins {interval_text(stats['win_rate_vs_start'], percent=True)} against the start")
    parts.append(f"KL {number_text(stats['kl']['mean'] if stats['kl'] else None)}")
    if "text_loss" in stats:
        parts.append(f"text loss {interval_text(stats['text_loss'])}")
    return ", ".join(parts)


def print_results(x: Experiment, entries: Sequence[Entry]) -> None:
    """The table of a run's policies, and samples of the first and the last side by side."""
    by_name: dict[str, Entry] = {}
    for one in entries:
        if one.role == "evaluate":
            by_name.setdefault(one.artefact.name, one)
    measured = list(by_name.values())
    if not measured:
        return
    title = f"{x.name}: held-out evaluation, {100 * x.evaluate.confidence:g} % intervals over prompts"
    console.print(results_table(entries, measured, title))
    _print_samples(measured)


def results_table(entries: Sequence[Entry], measured: Sequence[Entry], title: str) -> Table:
    """Evaluations as rows, with the labels that each policy had cost."""
    table = table_of(title)
    for name in (
        "policy",
        "labels",
        "score",
        "gain on previous",
        "wins vs start",
        "KL",
        "tokens",
        "distinct-2",
    ):
        table.add_column(name, justify="left" if name == "policy" else "right", overflow="fold")
    for one in measured:
        stats = one.artefact.stats
        judged = stats["judged_by"]
        arm = "" if one.arm == MAIN_ARM else f"{one.arm}, "
        table.add_row(
            arm + ("start" if one.iteration is None else f"iteration {one.iteration + 1}"),
            str(labels_until(entries, one)),
            interval_text(stats[judged], digits=2) if judged else "–",
            interval_text(stats[f"{judged}_gain_vs_previous"], sign=True, digits=2) if judged else "–",
            interval_text(stats["win_rate_vs_start"], percent=True, digits=0),
            number_text(stats["kl"]["mean"] if stats["kl"] else None),
            number_text(stats["mean_tokens"]),
            number_text(stats["distinct_2"]),
        )
    return table


def labels_until(entries: Iterable[Entry], until: Entry) -> int:
    """Labels that went into a policy: none into the start, then all that its arm had spent."""
    if until.iteration is None:
        return 0
    last = until.iteration
    spent = {
        one.artefact.name: one.artefact.stats["labels"]
        for one in entries
        if one.role == "annotate"
        and one.arm == until.arm
        and (-1 if one.iteration is None else one.iteration) <= last
    }
    return sum(spent.values())


def _print_samples(measured: Sequence[Entry], number: int = 3) -> None:
    mine = [one for one in measured if one.arm == MAIN_ARM]
    if len(mine) < 2:
        return
    before, after = (read_records(one.artefact.path / "groups.jsonl", Group) for one in (mine[0], mine[-1]))
    later = {group.prompt.id: group for group in after}
    console.print("[bold]Before and after[/] (same prompt, same random numbers)")
    for group in [one for one in before if one.prompt.id in later][:number]:
        table = Table(show_header=False, box=None, padding=(0, 1))
        table.add_row("[blue]prompt[/]", shown(group.prompt.text))
        table.add_row("[blue]before[/]", shown(group.completions[0].text))
        table.add_row("[blue]after[/]", shown(later[group.prompt.id].completions[0].text))
        console.print(table)


# --- figures in words ---------------------------------------------------------------------------------------------------


def table_of(title: str) -> Table:
    """A table narrow enough that names and numbers survive a terminal of 80 columns."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def number_text(value: float | None) -> str:
    """Three digits; a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"


def interval_text(
    value: dict[str, float] | None, *, percent: bool = False, sign: bool = False, digits: int | None = None
) -> str:
    """A mean and its interval; a dash where there is none."""
    if value is None:
        return "–"
    factor, usual = (100, 1) if percent else (1, 3)
    places = usual if digits is None else digits
    plus = "+" if sign else ""
    mean, low, high = (factor * value[one] for one in ("mean", "low", "high"))
    return f"{mean:{plus}.{places}f} [{low:{plus}.{places}f}, {high:{plus}.{places}f}]" + (
        " %" if percent else ""
    )
