"""`prefloop tournament`: a leaderboard of any set of policies out of pairwise verdicts, with intervals and a plot."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from prefloop.commands.options import Json
from prefloop.interfaces import InputError
from prefloop.scoring import tournament as scale
from prefloop.scoring.figures import DRAWS
from prefloop.scoring.games import Read, read_games
from prefloop.scoring.style import Control
from prefloop.scoring.tournament import Tournament
from prefloop.screen import console, table_of

app = typer.Typer()
PANEL = "Measure"
PLOTS = (".png", ".svg", ".pdf")
ROW_HEIGHT, WIDTH = 0.32, 6.4
"""Inches."""


@app.command(
    rich_help_panel=PANEL,
    epilog="Example: `prefloop tournament verdicts.jsonl --anchor start=1000 --plot board.png`. "
    "400 points are odds of ten to one; intervals draw prompts.",
)
def tournament(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Verdicts: rows with model_a, model_b, and winner or p_a; a prompt's id; or annotations."
        ),
    ],
    anchor: Annotated[
        list[str] | None,
        typer.Option("--anchor", help="MODEL=POINTS: holds a model there; may be given several times."),
    ] = None,
    style: Annotated[
        Literal["none", "length", "markdown", "both"],
        typer.Option("--style", help="Take out what length and Markdown win; needs the texts in the rows."),
    ] = "none",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the board to this .png, .svg or .pdf.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=2, help="Bootstrap samples of prompts.")] = DRAWS,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Put policies on one scale (Bradley-Terry, in points of Elo) from verdicts on pairs of their answers.

    All games are fitted together, so that policies that never met are compared through others. Games that do not join all
    policies are refused with the groups named. Reads battles, verdicts of `prefloop eval`, AlpacaEval's annotations and
    FastChat's pairs, in any mixture.
    """
    anchors = dict(_anchor(one) for one in anchor or ())
    if plot is not None and plot.suffix not in PLOTS:
        raise InputError(f"{plot}: plots are written to {', '.join(PLOTS)}")
    controls: dict[str, list[Control]] = {
        "none": [],
        "length": ["length"],
        "markdown": ["markdown"],
        "both": ["length", "markdown"],
    }
    read = read_games([str(file) for file in files])
    found = scale.play(read.games, anchors=anchors, controls=controls[style], draws=draws, seed=seed)
    if plot is not None:
        draw(found, plot)
    if as_json:
        how = {"ridge": scale.RIDGE, "draws": draws, "seed": seed, "style": style, "anchors": anchors}
        typer.echo(json.dumps(_json(found, read) | {"how": how, "notes": _notes(found, read)}, indent=1))
        return
    _print(found, read)


def _anchor(given: str) -> tuple[str, float]:
    name, _, points = given.rpartition("=")
    try:
        value = float(points)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise InputError(f"--anchor {given}: give MODEL=POINTS, such as start=1000")
    return name, value


def _notes(found: Tournament, read: Read) -> list[str]:
    notes = []
    if found.unbounded:
        notes.append(
            f"never beaten, or never won, in games that would bound them: {', '.join(found.unbounded)}; how far they "
            f"stand from the others is the ridge's doing ({scale.RIDGE:g})"
        )
    if read.without_prompt:
        notes.append(
            f"{read.without_prompt} of {len(read.games)} games name no prompt: each is drawn by itself, and intervals are "
            "too narrow if several share one"
        )
    return notes


def _json(found: Tournament, read: Read) -> dict[str, Any]:
    return {
        "standings": [asdict(one) for one in found.standings],
        "pairings": [asdict(one) for one in found.pairings],
        "style": {name: asdict(one) for name, one in found.style.items()},
        "prompts": found.prompts,
        "rows": {"in": read.rows_in, "scored": len(read.games), "dropped": dict(read.dropped)},
    }


def _print(found: Tournament, read: Read) -> None:
    table = table_of(
        f"{len(read.games):,} games of {len(found.standings)} policies on {found.prompts:,} prompts"
    )
    for name in ("rank", "policy", "points", "95 % interval", "won", "games"):
        table.add_column(name, justify="left" if name in ("rank", "policy") else "right", overflow="fold")
    for one in found.standings:
        ranks = "" if one.best_rank == one.worst_rank else f" ({one.best_rank}-{one.worst_rank})"
        low, high = one.strength.low or 0.0, one.strength.high or 0.0
        table.add_row(
            f"{one.rank}{ranks}",
            escape(one.model),
            f"{one.strength.value:.0f}",
            "anchored" if one.anchored else f"[{low:.0f}, {high:.0f}]".replace("[", r"\["),
            f"{one.won:.1%}",
            f"{one.games:,}",
        )
    console.print(table)
    for name, one in found.style.items():
        console.print(
            f"style, {name}: {one.value:+.3f} \\[{one.low:+.3f}, {one.high:+.3f}] log-odds for a difference of usual size",
            highlight=False,
        )
    dropped = ", ".join(f"{count} {reason}" for reason, count in read.dropped.items())
    console.print(
        f"rows: {read.rows_in} in, {len(read.games)} scored" + (f", dropped: {dropped}" if dropped else ""),
        highlight=False,
    )
    for note in _notes(found, read):
        console.print(escape(note), highlight=False, soft_wrap=True)


# --- the plot --------------------------------------------------------------------------------------------------------


def draw(found: Tournament, path: Path) -> None:
    """Writes a line a policy with its interval; raises Unavailable where matplotlib is missing."""
    from prefloop.studies.plots import COLOURS, new_figure

    figure = new_figure()
    figure.set_size_inches(WIDTH, 0.9 + ROW_HEIGHT * max(3, len(found.standings)))
    axes = figure.subplots()
    for at, one in enumerate(found.standings):
        value = one.strength.value or 0.0
        ends: Sequence[float] = (value - (one.strength.low or value), (one.strength.high or value) - value)
        colour = COLOURS[1] if one.anchored else COLOURS[0]
        # percentiles may leave out the estimate itself, by a little
        halves = [[max(0.0, ends[0])], [max(0.0, ends[1])]]
        axes.errorbar(value, at, xerr=halves, fmt="D", color=colour, markersize=4, capsize=2)
    axes.set_yticks(range(len(found.standings)), [one.model for one in found.standings])
    axes.invert_yaxis()
    axes.set_xlabel(f"points of Elo, with 95 % intervals over {found.prompts:,} prompts")
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path)
