"""Gold and qualification tasks: how people do on them, appeals, making one of a judged task, taking one out of use."""

from dataclasses import dataclass
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from prefloop.labels import appeals, gold
from prefloop.labels.browsing import Filter
from prefloop.labels.gold import GoldTask
from prefloop.web.annotators import Share, share
from prefloop.web.pages.lead import Leading, Text, render, seen
from prefloop.web.remembered import remembered
from prefloop.web.store import database_of, read, write

router = APIRouter(prefix="/lead")
MOST_SHOWN = 200
Steps = Annotated[int, Form()]


@dataclass(frozen=True)
class Standing:
    """A gold task and the share of people who failed it; None where nobody was asked yet."""

    task: GoldTask
    wrong: Share | None


def gold_standing(connection: sa.Connection, project_id: str, task_id: str) -> Standing | None:
    """How people did on one gold task; None for a task that is none."""
    found = gold.gold_tasks(connection, project_id, task_id=task_id)
    return _standing(found[0]) if found else None


def _standing(one: GoldTask) -> Standing:
    return Standing(one, share(one.wrong, one.answers) if one.answers else None)


@router.get("/{project_id}/gold")
async def gold_page(request: Request, desk: Leading) -> HTMLResponse:
    """Those in use first, and of them those that are surely failed most often."""
    found = await read(
        request,
        lambda connection: (
            [_standing(one) for one in gold.gold_tasks(connection, desk.id)],
            [one for one in gold.STRATEGIES if gold.remark(connection, desk.id, one)],
            appeals.open_appeals(connection, desk.id),
        ),
    )
    in_order = sorted(
        found[0], key=lambda one: (one.task.state != "open", -one.wrong.low if one.wrong else 0.0)
    )
    return render(
        request,
        "lead/gold.html",
        desk,
        "gold",
        found=in_order[:MOST_SHOWN],
        count=len(in_order),
        short=found[1],
        appeals=found[2],
    )


@router.post("/{project_id}/tasks/{task_id}/gold")
async def make(
    request: Request,
    desk: Leading,
    task_id: str,
    answer: Text = "",
    use: Text = "",
    why: Text = "",
    tolerance: Steps = 0,
) -> Response:
    """Makes a gold task of a judged one."""
    now, actor = database_of(request).now(), desk.asking.person.id
    made = await write(
        request,
        lambda connection: gold.make_gold(
            connection,
            now,
            desk.id,
            task_id,
            answer,
            why=why.replace("\r\n", "\n"),
            tolerance=tolerance,
            strategy=use,
            actor=actor,
        ),
    )
    return seen(f"/lead/{desk.id}/tasks/{made}")


@router.post("/{project_id}/gold/{task_id}")
async def set_state(request: Request, desk: Leading, task_id: str, state: Text = "") -> Response:
    """Takes a gold task out of use, or into use again."""
    now, actor = database_of(request).now(), desk.asking.person.id
    await write(
        request,
        lambda connection: gold.set_gold_state(connection, now, desk.id, task_id, state, actor=actor),
    )
    return seen(f"/lead/{desk.id}/gold")


@router.post("/{project_id}/appeals/{appeal_id}")
async def decide(request: Request, desk: Leading, appeal_id: int, resolution: Text = "") -> Response:
    """Upholds or dismisses an appeal."""
    now, person = database_of(request).now(), desk.asking.person
    await write(
        request,
        lambda connection: appeals.decide(connection, now, desk.id, appeal_id, resolution, person),
    )
    remembered(request).quality.forget(Filter(desk.id))
    return seen(f"/lead/{desk.id}/gold")
