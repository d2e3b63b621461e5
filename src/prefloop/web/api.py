"""The JSON interface: claim, keep, answer. Pages, AI judges and other programs use the same."""

from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.routing import Route

from prefloop.labels import queue
from prefloop.labels.people import change_preferences
from prefloop.labels.reading import MOST_OWN, own_judgements, shown_task
from prefloop.web.limits import limit
from prefloop.web.security import Visitor, need_scope, scoped, visitor
from prefloop.web.store import database_of, read, write

router = APIRouter(prefix="/api/v1")
Reading = Annotated[Visitor, Depends(scoped("tasks:read"))]
Judging = Annotated[Visitor, Depends(scoped("judge:write"))]
M = TypeVar("M", bound=BaseModel)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClaimBody(Body):
    project: str


class DraftBody(Body):
    draft: dict[str, Any]


class ReasonBody(Body):
    reason: str
    comment: str = Field(default="", max_length=10_000)


class PreferencesBody(Body):
    keys: dict[Annotated[str, Field(max_length=60)], Annotated[str, Field(max_length=30)]] = Field(
        max_length=100
    )
    """The key of each action that has another one than usual."""
    single_keys: bool
    """Whether keys without Ctrl or Alt do anything; who dictates turns them off."""


class ReviseBody(queue.Submission):
    client_uuid: str = Field(min_length=8, max_length=64)


async def claim(request: Request) -> Response:
    """The next task, as it is to be shown; 204 when nothing is left."""
    asking = await visitor(request)
    need_scope(asking, "judge:write")
    limit(request, "claim", asking.person.id)
    body = await _body(request, ClaimBody)
    now = database_of(request).now()

    def work(connection: sa.Connection) -> dict[str, Any] | None:
        held = queue.claim(connection, now, body.project, asking.person)
        return None if held is None else {"lease": _lease(held), "task": shown_task(connection, held)}

    given = await write(request, work)
    return Response(status_code=204) if given is None else JSONResponse(given)


@router.post("/leases/{token}/heartbeat")
async def heartbeat(request: Request, asking: Judging, token: str) -> dict[str, int]:
    """Keeps a task for as long as its page is open."""
    now = database_of(request).now()
    until = await write(request, lambda connection: queue.heartbeat(connection, now, token, asking.person))
    return {"expires_at": until}


@router.put("/leases/{token}/draft", status_code=204)
async def save_draft(request: Request, asking: Judging, token: str, body: DraftBody) -> None:
    """Keeps what has not been sent."""
    await write(request, lambda connection: queue.save_draft(connection, token, asking.person, body.draft))


async def submit(request: Request) -> Response:
    """Stores an answer; the same again is the same answer."""
    asking = await visitor(request)
    need_scope(asking, "judge:write")
    limit(request, "submit", asking.person.id)
    token, body = request.path_params["token"], await _body(request, queue.Submission)
    now = database_of(request).now()
    stored = await write(
        request, lambda connection: queue.submit(connection, now, token, asking.person, body)
    )
    return JSONResponse(_stored(stored))


@router.post("/leases/{token}/skip")
async def skip(request: Request, asking: Judging, token: str, body: ReasonBody) -> dict[str, Any]:
    """Gives a task back for good."""
    limit(request, "submit", asking.person.id)
    now = database_of(request).now()

    def work(connection: sa.Connection) -> queue.Stored:
        return queue.skip(connection, now, token, asking.person, body.reason, body.comment)

    return _stored(await write(request, work))


@router.post("/leases/{token}/flag", status_code=204)
async def flag(request: Request, asking: Judging, token: str, body: ReasonBody) -> None:
    """Tells the lead about a task."""
    limit(request, "submit", asking.person.id)
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        queue.flag(connection, now, token, asking.person, body.reason, body.comment)

    await write(request, work)


@router.get("/judgements/mine")
async def mine(request: Request, asking: Reading, limit: int = MOST_OWN) -> list[dict[str, Any]]:
    """One's own last answers, as they stand."""
    found = await read(
        request, lambda connection: own_judgements(connection, asking.person, limit=max(1, limit))
    )
    return [asdict(one) for one in found]


@router.put("/me/preferences", status_code=204)
async def prefer(request: Request, asking: Judging, body: PreferencesBody) -> None:
    """Keeps which keys somebody likes."""
    changes = body.model_dump()
    await write(request, lambda connection: change_preferences(connection, asking.person.id, changes))


@router.post("/judgements/{judgement_id}/revise")
async def revise(request: Request, asking: Judging, judgement_id: int, body: ReviseBody) -> dict[str, Any]:
    """Changes an answer until the freeze."""
    limit(request, "submit", asking.person.id)
    now = database_of(request).now()
    said = queue.Submission.model_validate(body.model_dump(exclude={"client_uuid"}))

    def work(connection: sa.Connection) -> queue.Stored:
        return queue.revise(connection, now, judgement_id, asking.person, said, body.client_uuid)

    return _stored(await write(request, work))


MOST_ASKED = (
    Route("/api/v1/tasks/claim", claim, methods=["POST"]),
    Route("/api/v1/leases/{token}/submit", submit, methods=["POST"]),
)
"""Plain routes, which come before all others: what injects and checks arguments takes longer than the store."""


async def _body(request: Request, model: type[M]) -> M:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        places = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(places) from error


def _lease(held: queue.Lease) -> dict[str, Any]:
    return {"token": held.token, "expires_at": held.expires_at, "draft": held.draft}


def _stored(stored: queue.Stored) -> dict[str, Any]:
    return {"judgement_id": stored.id, "state": stored.state, "revision": stored.revision}
