"""`prefloop label agreement`: how far people agree, with intervals, and what should be looked at."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import sqlalchemy as sa
import typer
from rich.table import Table

from prefloop import agreement as quality
from prefloop.agreement import Answer, Measure, Ranking, Rating
from prefloop.browse import shown
from prefloop.commands.label.files import RoundOption
from prefloop.commands.label.shared import ProjectOption, StoreOption, app, opened, the_project
from prefloop.commands.options import Json, WorkspaceOption
from prefloop.labels.browsing import Filter
from prefloop.labels.rows import JudgementRow
from prefloop.labels.schema import annotator
from prefloop.labels.streaming import judgement_rows, up_to
from prefloop.labels.values import p_a_of
from prefloop.screen import console, table_of

LEFT = 0
UNSURE = "*"
"""Marks a figure that rests on too little to be acted on."""


@app.command(epilog="Example: `prefloop label agreement --round 2 --json`")
def agreement(
    round: RoundOption = None,
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Show how far people agree: alpha, Gwet's AC1, kappa, with intervals; and each person beside the others."""
    with opened(store, workspace) as database, database.snapshot() as connection:
        wanted = Filter(
            the_project(database, project),
            rounds=() if round is None else (round,),
            annotator_kinds=("human",),
        )
        rows = [
            row
            for row in judgement_rows(connection, up_to(connection, wanted))
            if row.state == "valid" and not row.is_gold and not row.is_repeat
        ]
        everybody = connection.execute(sa.select(annotator.c.id, annotator.c.name))
        names = {row.id: row.name for row in everybody}
    measures = measures_of(rows)
    people = people_of(rows, names)
    flags = [asdict(one) for one in quality.flags(_answers(rows))]
    if as_json:
        found = {
            "measures": {name: asdict(one) for name, one in measures.items()},
            "people": people,
            "flags": flags,
        }
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
        return
    if not measures:
        console.print("nothing to compare yet: no task was judged", highlight=False)
        return
    console.print(_measures_table(measures))
    console.print(_people_table(people))
    console.print(f"{UNSURE} rests on too few labels to act on", style="dim")
    for one in flags:
        console.print(
            f"look at {shown(names.get(one['annotator'], one['annotator']))}: {one['reason']}",
            highlight=False,
        )


def measures_of(rows: Sequence[JudgementRow]) -> dict[str, Measure]:
    """The figures for each kind of task that was judged."""
    found: dict[str, Measure] = {}
    choices = [_rating(row, value) for row in rows if (value := _choice(row)) is not None]
    if choices:
        found |= {
            "choice, raw": quality.raw_agreement(choices),
            "choice, alpha (nominal)": quality.krippendorff_alpha(choices, level="nominal"),
            "choice, AC1": quality.gwet_ac1(choices),
            "choice, Fleiss kappa": quality.fleiss_kappa(choices),
        }
    strengths = [
        _rating(row, float(row.value["strength"])) for row in rows if row.value.get("strength") is not None
    ]
    if strengths:
        found["strength, alpha (ordinal)"] = quality.krippendorff_alpha(strengths, level="ordinal")
    overall = [
        _rating(row, float(row.value["ratings"]["overall"]))
        for row in rows
        if "overall" in row.value.get("ratings", {})
    ]
    if overall:
        found["rating, alpha (ordinal)"] = quality.krippendorff_alpha(overall, level="ordinal")
    if rankings := [
        _ranking(row) for row in rows if row.value.get("groups") and not row.value.get("unrankable")
    ]:
        found["ranking, Kendall tau-b"] = quality.kendall_tau_b(rankings)
    return found


def people_of(rows: Sequence[JudgementRow], names: dict[str, str]) -> list[dict[str, Any]]:
    """Each person's number of judgements, agreement with the others, and side bias."""
    votes = [
        _rating(row, p_a)
        for row in rows
        if row.task_kind == "pairwise" and (p_a := p_a_of(row.value)) is not None
    ]
    coins = {one.annotator: one for one in quality.one_coin(votes).annotators}
    sided = [(row.annotator, side == "left") for row in rows if (side := _side(row)) is not None]
    sides = {
        one.annotator: one for one in quality.side_bias([a for a, _ in sided], [left for _, left in sided])
    }
    found = []
    for id in dict.fromkeys(row.annotator for row in rows):
        coin, side = coins.get(id), sides.get(id)
        found.append(
            {
                "annotator": id,
                "name": names.get(id, id),
                "judgements": sum(row.annotator == id for row in rows),
                "reliability": asdict(coin) if coin else None,
                "side": asdict(side) if side else None,
            }
        )
    return sorted(found, key=lambda one: -one["judgements"])


def _rating(row: JudgementRow, value: str | float) -> Rating:
    return Rating(row.task_id, row.annotator, value, row.prompt.id)


def _choice(row: JudgementRow) -> str | None:
    return row.value.get("choice") if row.task_kind in ("pairwise", "chat", "steps") else None


def _ranking(row: JudgementRow) -> Ranking:
    place = {number: rank for rank, group in enumerate(row.value["groups"], 1) for number in group}
    return Ranking(row.task_id, row.annotator, tuple(float(place[n]) for n in sorted(place)), row.prompt.id)


def _side(row: JudgementRow) -> Literal["left", "right"] | None:
    """Which side of the screen won; None for ties and where there were no two sides."""
    choice = _choice(row)
    if choice not in ("a", "b") or len(row.presented_order) != 2:
        return None
    return "left" if row.presented_order[LEFT] == "ab".index(choice) else "right"


def _answers(rows: Sequence[JudgementRow]) -> list[Answer]:
    found = []
    for row in rows:
        p_a = p_a_of(row.value) if row.task_kind == "pairwise" else None
        if p_a is not None:
            characters = sum(len(one.text) for one in row.completions) + sum(
                len(m.content) for m in row.prompt.messages
            )
            least = quality.reading_ms(characters)
            side = _side(row)
            # who sent no time is not called too fast
            active = float(least if row.active_ms is None else row.active_ms)
            found.append(Answer(row.task_id, row.annotator, p_a, side, row.created_at, active, float(least)))
    return found


def _measures_table(measures: dict[str, Measure]) -> Table:
    table = table_of("agreement")
    for column in ("what", "value", "95 % interval", "units", "ratings"):
        table.add_column(column, no_wrap=True)
    for name, one in measures.items():
        value = f"undefined: {one.reason}" if one.value is None else f"{one.value:.3f}"
        interval = "" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"
        table.add_row(name, value, interval, str(one.units), str(one.ratings))
    return table


def _people_table(people: list[dict[str, Any]]) -> Table:
    table = table_of("people")
    for column in ("name", "judgements", "reliability", "left side won"):
        table.add_column(column, no_wrap=True)
    for one in people:
        table.add_row(
            shown(one["name"]),
            str(one["judgements"]),
            _figure(one["reliability"]),
            _figure(one["side"], "share_left"),
        )
    return table


def _figure(about: dict[str, Any] | None, key: str = "value") -> str:
    if about is None or about[key] is None or about["low"] is None:
        return ""
    is_sure = about["reason"] is None if "reason" in about else about["biased"] is not None
    return f"{about[key]:.2f} ({about['low']:.2f} to {about['high']:.2f}){'' if is_sure else UNSURE}"
