"""Quality of the labels (S15), and rounds with what leads decide about them (S16)."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response

from prefloop.labels import adjudicating, oversight, rounds, webhooks
from prefloop.labels.browsing import Filter
from prefloop.labels.errors import Conflict, NotFound
from prefloop.labels.projects import KINDS
from prefloop.labels.rounds import Round, Standing
from prefloop.labels.streaming import newest_judgement
from prefloop.web.calibrating import RoundFigures, round_figures
from prefloop.web.drift import questions_in
from prefloop.web.keeping import figures
from prefloop.web.pages.lead import Desk, Leading, Text, render, seen
from prefloop.web.remembered import remembered
from prefloop.web.store import database_of, read, write

router = APIRouter(prefix="/lead")
ACTIONS = ("freeze", "promote", "reject", "rollback")
LONGEST_REASON = 2000


# --- quality ---------------------------------------------------------------------------------------------------------


@router.get("/{project_id}/quality")
async def quality(
    request: Request,
    desk: Leading,
    round: str = "",
    kind: str = "",
    annotator: str = "",
    anew: bool = False,
) -> HTMLResponse:
    """How far people agree, and how each of them is doing."""
    wanted = Filter(
        desk.id,
        rounds=(int(round),) if round.isascii() and round.isdigit() and len(round) < 9 else (),
        kind=kind if kind in KINDS else "",
        annotator_id=annotator[:64],
    )
    found = await run_in_threadpool(
        figures, database_of(request), remembered(request).quality, wanted, anew=anew
    )
    about = await read(
        request,
        lambda connection: {
            "names": oversight.names_of(connection, desk.id),
            "rounds": oversight.round_numbers(connection, desk.id),
            "flips": adjudicating.flips(connection, desk.id),
        },
    )
    template = "lead/quality_figures.html" if "hx-request" in request.headers else "lead/quality.html"
    return render(
        request,
        template,
        desk,
        "quality",
        quality=found,
        drifted=questions_in(found.versions) if found is not None else (),
        wanted=wanted,
        kinds=KINDS,
        **about,
    )


# --- rounds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoundView:
    """A round as leads see it."""

    round: Round
    standing: Standing | None
    """None: it is being counted."""
    new: int
    """Judgements since the round before was frozen."""


def _views(request: Request, connection: sa.Connection, project_id: str) -> list[RoundView]:
    """Rounds of a project, the newest first."""
    newest = newest_judgement(connection, project_id)
    found: list[RoundView] = []
    before = 0
    for one in rounds.rounds_of(connection, project_id):
        found.append(_view(request, one, before, newest))
        before = one.watermark or before
    return found[::-1]


def _view(request: Request, one: Round, before: int, newest: int) -> RoundView:
    """A round that follows one whose watermark is `before`."""

    def count(connection: sa.Connection) -> tuple[Standing, int]:
        is_open = one.state == "open"
        new = oversight.judgements_after(connection, one.project_id, before) if is_open else 0
        return rounds.standing(connection, one.id), new

    counted = remembered(request).standings.soon(
        (one.id, one.state),
        one.watermark or newest,
        lambda: database_of(request).read(count),
        anew=False,
    )
    return RoundView(one, *(counted or (None, 0)))


@router.get("/{project_id}/rounds")
async def rounds_page(request: Request, desk: Leading) -> HTMLResponse:
    """All rounds."""
    found = await read(request, lambda connection: _views(request, connection, desk.id))
    template = "lead/rounds_list.html" if "hx-request" in request.headers else "lead/rounds.html"
    return render(request, template, desk, "rounds", views=found)


@router.get("/{project_id}/rounds/{number}")
async def round_page(request: Request, desk: Leading, number: int) -> HTMLResponse:
    """One round: how far it is, and how well the reward model foresaw it."""
    return render(request, "lead/round.html", desk, "rounds", **await _round_values(request, desk, number))


async def _round_values(request: Request, desk: Desk, number: int) -> dict[str, Any]:
    database, kept = database_of(request), remembered(request).rounds

    def find(connection: sa.Connection) -> dict[str, Any]:
        views = _views(request, connection, desk.id)
        view = next((one for one in views if one.round.number == number), None)
        if view is None:
            raise NotFound(f"this project has no round {number}")
        return {
            "view": view,
            "newest": newest_judgement(connection, desk.id),
            "flips": adjudicating.flips(connection, desk.id, round_number=number),
            "decision": rounds.decisions(connection, desk.id).get(view.round.policy_out),
            "evaluation": _evaluation(connection, view.round.id),
        }

    found = await read(request, find)
    one: Round = found["view"].round

    def compute() -> RoundFigures:
        return database.read(lambda connection: round_figures(connection, desk.id, one.id))

    figures = await run_in_threadpool(kept.soon, one.id, found.pop("newest"), compute, anew=False)
    actions = [action for action in ACTIONS if _hindrance(one, action) is None]
    return found | {"figures": figures, "actions": actions}


def _evaluation(connection: sa.Connection, round_id: str) -> dict[str, Any]:
    """What the loop noted about the policy that was trained, as flat figures."""
    wanted = sa.select(rounds.round_.c.evaluation).where(rounds.round_.c.id == round_id)
    value = connection.execute(wanted).scalar()
    return {name: one for name, one in (value or {}).items() if isinstance(one, str | int | float)}


def _hindrance(one: Round, action: str) -> str | None:
    """Why something cannot be done with a round; None where it can."""
    if action == "freeze":
        return None if one.state == "open" else f"round {one.number} is {one.state} already"
    if not one.policy_out:
        return f"round {one.number} is {one.state}: no policy has been trained on it yet"
    if action == "rollback":
        return None if one.state == "promoted" else f"round {one.number} was not promoted"
    wanted = rounds.STATE_AFTER["promote" if action == "promote" else "reject"]
    if action == "reject" and one.state == "promoted":
        return f"round {one.number} is promoted: roll it back"
    return f"round {one.number} is {one.state} already" if one.state == wanted else None


def _checked(connection: sa.Connection, project_id: str, number: int, action: str) -> Round:
    if action not in ACTIONS:
        raise NotFound(f"there is no such thing to do; choose {', '.join(ACTIONS)}")
    found = rounds.numbered_round(connection, project_id, number)
    if (why := _hindrance(found, action)) is not None:
        raise Conflict(why)
    return found


@router.get("/{project_id}/rounds/{number}/{action}")
async def confirm(request: Request, desk: Leading, number: int, action: str) -> HTMLResponse:
    """What will happen, before it does."""

    def find(connection: sa.Connection) -> RoundView:
        found = _checked(connection, desk.id, number, action)
        return RoundView(found, rounds.standing(connection, found.id), 0)

    view = await read(request, find)
    return render(request, "lead/confirm.html", desk, "rounds", view=view, action=action)


@router.post("/{project_id}/rounds/{number}/{action}")
async def act(request: Request, desk: Leading, number: int, action: str, reason: Text = "") -> Response:
    """Freezes a round, or decides about the policy that was trained on it."""
    now, actor, why = database_of(request).now(), desk.asking.person.id, reason.strip()[:LONGEST_REASON]

    def work(connection: sa.Connection) -> None:
        found = _checked(connection, desk.id, number, action)
        about: dict[str, Any] = {"round": found.number}
        if action == "freeze":
            about["watermark"] = rounds.freeze(
                connection, now, found.id, actor=actor, reason=why or "by the lead"
            )
            event = "round.frozen"
        elif action == "rollback":
            rounds.roll_back(connection, now, desk.id, actor=actor, number=number, reason=why)
            event = "round.rolled_back"
        else:
            verdict = "promote" if action == "promote" else "reject"
            rounds.decide(connection, now, found, verdict, actor=actor, reason=why)
            event = "round.promoted" if verdict == "promote" else "round.rejected"
        webhooks.announce(connection, now, desk.id, event, about | {"policy": found.policy_out})

    await write(request, work)
    return seen(f"/lead/{desk.id}/rounds/{number}")
