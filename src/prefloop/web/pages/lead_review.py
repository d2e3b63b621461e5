"""Adjudication (S14): a reviewer looks at what others disagree on, votes, says why, and then sees the other side."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from prefloop.labels import adjudicating, oversight
from prefloop.labels.adjudicating import AGAINST, Against
from prefloop.labels.audit import audit
from prefloop.labels.errors import Invalid, NotFound
from prefloop.labels.schema import adjudication
from prefloop.web.disagreements import Disagreements
from prefloop.web.pages.lead import Desk, Reviewing, Text, render, seen
from prefloop.web.pages.shared import script_words
from prefloop.web.remembered import remembered
from prefloop.web.store import database_of, read, write

router = APIRouter(prefix="/lead")
Number = Annotated[str, Form()]


def queues(request: Request) -> Disagreements:
    """The queues of the store that is served."""
    return remembered(request).disagreements


def _against(text: str) -> Against:
    for one in AGAINST:
        if one == text:
            return one
    raise NotFound(f"there is no queue {text[:20]!r}; choose {', '.join(AGAINST)}")


def _round(text: str) -> int | None:
    """A number out of an address; nothing, or anything else, is all rounds."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None


def _words(request: Request) -> dict[str, str]:
    """For the script. What pages say of the other side is not among them."""
    own = {f"lead.{name}" for name in ("need_verdict", "need_reason", "vote_first")}
    found = script_words(request, "judge", "base", "lead")
    return {key: text for key, text in found.items() if key in own or not key.startswith("lead.")}


@router.get("/{project_id}/review")
async def next_case(
    request: Request, desk: Reviewing, against: str = "reward", round: str = "", anew: bool = False
) -> HTMLResponse:
    """The next task of a queue, as it is before the vote."""
    which, number, now = _against(against), _round(round), database_of(request).now()
    reviewer = desk.asking.person

    def find(connection: sa.Connection) -> dict[str, Any]:
        waiting = queues(request).waiting(connection, desk.id, which, number, reviewer, anew=anew)
        chosen = queues(request).hand_out(waiting, reviewer, now)
        case = None
        if chosen is not None:
            case = adjudicating.case(connection, desk.id, chosen.unit, reviewer)
        return {
            "case": case,
            "waiting": len(waiting),
            "rounds": oversight.round_numbers(connection, desk.id),
            "flips": adjudicating.flips(connection, desk.id, round_number=number),
        }

    found = await read(request, find)
    return render(
        request,
        "lead/review.html",
        desk,
        "review",
        against=which,
        round=number,
        queues=AGAINST,
        words=_words(request),
        **found,
    )


@router.post("/{project_id}/review/{task_id}")
async def vote(
    request: Request,
    desk: Reviewing,
    task_id: str,
    strength: Text = "",
    reason: Text = "",
    against: Text = "reward",
    round: Number = "",
) -> Response:
    """Keeps the reviewer's verdict."""
    which, now, reviewer = _against(against), database_of(request).now(), desk.asking.person
    entry = await read(
        request, lambda connection: _entry(request, connection, desk, which, _round(round), task_id)
    )

    def work(connection: sa.Connection) -> None:
        id, outcome = adjudicating.adjudicate(
            connection,
            now,
            desk.id,
            task_id,
            reviewer,
            _said(strength),
            reason.replace("\r\n", "\n"),
            which,
            **entry,
        )
        detail = {"task": task_id, "outcome": outcome}
        audit(connection, now, reviewer.id, "task.adjudicate", str(id), detail)

    await write(request, work)
    return seen(f"/lead/{desk.id}/review/{task_id}?against={which}&round={_round(round) or ''}")


def _entry(
    request: Request, connection: sa.Connection, desk: Desk, which: Against, number: int | None, task_id: str
) -> dict[str, Any]:
    """How the task came into the queue; empty where the queue was made anew meanwhile."""
    for one in queues(request).queue(connection, desk.id, which, number, anew=False):
        if one.unit == task_id:
            return {"drawn": one.drawn, "probability": one.probability}
    return {}


def _said(strength: str) -> dict[str, Any]:
    if strength in ("tie", "both_bad"):
        return {"verdict": strength}
    if strength.isascii() and strength.isdigit() and len(strength) == 1:
        return {"strength": int(strength)}
    raise Invalid("verdict: say which is better, that they are equally good, or that both are bad")


@router.get("/{project_id}/review/{task_id}")
async def after_vote(
    request: Request, desk: Reviewing, task_id: str, against: str = "reward", round: str = ""
) -> HTMLResponse:
    """A task that this reviewer has voted on; the other side is shown once they have asked for it."""
    which, number = _against(against), _round(round)
    reviewer = desk.asking.person

    def find(connection: sa.Connection) -> dict[str, Any]:
        own = connection.execute(
            sa.select(adjudication).where(
                adjudication.c.task_id == task_id, adjudication.c.annotator_id == reviewer.id
            )
        ).first()
        if own is None:
            raise NotFound("you have not voted on this task")
        case = adjudicating.case(connection, desk.id, task_id, reviewer)
        return {"case": case, "own": own, "said": adjudicating.shown_to(own.value, case.presented)}

    found = await read(request, find)
    return render(
        request,
        "lead/reviewed.html",
        desk,
        "review",
        against=which,
        round=number,
        words=_words(request),
        **found,
    )


@router.post("/{project_id}/review/{task_id}/reveal")
async def reveal(
    request: Request,
    desk: Reviewing,
    task_id: str,
    against: Text = "reward",
    round: Number = "",
) -> Response:
    """Shows the other side, and notes that it was shown."""
    which = _against(against)
    await write(
        request, lambda connection: adjudicating.reveal(connection, desk.id, task_id, desk.asking.person)
    )
    return seen(f"/lead/{desk.id}/review/{task_id}?against={which}&round={_round(round) or ''}")
