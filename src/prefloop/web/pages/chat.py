"""Live conversations and the probing of rules: where they start, the page of one, and what its script asks for.

Nothing that is sent names a policy or tells how long one took. The page of a conversation shows pieces of HTML, whole
each time: the transcript, and below it what the conversation waits for.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field

from prefloop.labels import chats, queue
from prefloop.labels.chat_limits import exposures, is_full
from prefloop.labels.conversations import Conversation, ConversationKind, Turn, find
from prefloop.labels.errors import NotFound
from prefloop.labels.people import require_member
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import project_config
from prefloop.labels.queue import Lease, Submission
from prefloop.labels.reading import shown_task
from prefloop.labels.schema import project
from prefloop.web.limits import limit
from prefloop.web.pages.judge import Frame, task_html, work_page
from prefloop.web.pages.shared import page
from prefloop.web.security import Visitor, scoped, visitor
from prefloop.web.store import database_of, read, write
from prefloop.web.talking import Talks

router = APIRouter()
Asking = Annotated[Visitor, Depends(visitor)]
Reading = Annotated[Visitor, Depends(scoped("tasks:read"))]
Judging = Annotated[Visitor, Depends(scoped("judge:write"))]
API = "/api/v1/chats"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StartBody(Body):
    project: str
    kind: ConversationKind = "live"


class TurnBody(Body):
    key: str = Field(min_length=8, max_length=64)
    """Drawn by the client; the same again is the same turn."""
    text: str


class RenewBody(Body):
    renewed: int = Field(ge=0)
    """How often there were other answers in this turn before."""


class EndBody(Body):
    rating: int | None = Field(default=None, ge=1, le=5)
    """Of the whole conversation, 5 the best."""
    comment: str = Field(default="", max_length=10_000)
    submission: Submission | None = None
    """What was found out about the rule of a probe."""


# --- pages -------------------------------------------------------------------------------------------------------------


@router.get("/chat/{project_id}")
async def begin(request: Request, asking: Asking, project_id: str) -> HTMLResponse:
    """Where a conversation is begun, or one goes on."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> tuple[str, ProjectConfig, list[Conversation], int]:
        require_member(connection, project_id, asking.person)
        config = project_config(connection, project_id)
        if config.chat is None:
            raise NotFound("there are no conversations in this project")
        title = connection.execute(sa.select(project.c.title).where(project.c.id == project_id)).scalar_one()
        found = chats.conversations_of(connection, project_id, asking.person)
        return title, config, found, exposures(connection, now, asking.person)

    title, config, found, seen = await read(request, work)
    html = page(
        request,
        "chat/start.html",
        asking,
        project_id=project_id,
        project_title=title,
        config=config,
        conversations=found,
        open_kinds={one.kind for one in found if one.is_open},
        exposures_left=max(0, (asking.person.exposure_cap or 0) - seen),
        is_served=bool(_talks(request).answerers),
        about={"project": project_id},
    )
    return HTMLResponse(html)


@router.get("/chats/{conversation_id}")
async def conversation(request: Request, asking: Asking, conversation_id: str) -> HTMLResponse:
    """The page of one conversation."""
    found = await read(request, lambda connection: find(connection, conversation_id, asking.person))
    return await work_page(
        request,
        asking,
        found.project_id,
        first=f"/chats/{conversation_id}/piece",
        template="chat/chat.html",
        more={"conversation": conversation_id},
    )


@router.post("/chats/{conversation_id}/piece")
async def piece(request: Request, asking: Asking, conversation_id: str) -> HTMLResponse:
    """The conversation as it stands, and the choice or the field for what comes next."""
    now = database_of(request).now()

    def work(connection: sa.Connection) -> tuple[Conversation, Lease | None, ProjectConfig, bool]:
        held = chats.hold(connection, now, conversation_id, asking.person)
        found = chats.look(connection, conversation_id, asking.person)
        return found, held, project_config(connection, found.project_id), is_full(connection, found)

    found, held, config, full = await write(request, work)
    task = ""
    if held is not None:
        shown = await read(request, lambda connection: shown_task(connection, held))
        frame = Frame(f"/judge/leases/{held.token}", held.token, 0, held.draft or {}, shown["dwell_ms"])
        task = task_html(request, asking, shown, frame, area="chat")
    html = page(
        request,
        "chat/piece.html",
        asking,
        found=found,
        task=Markup(task),
        config=config,
        is_full=full,
        data=_data(found, config, full),
    )
    return HTMLResponse(html)


def _data(found: Conversation, config: ProjectConfig, full: bool) -> dict[str, Any]:
    """What the page's script is told."""
    assert config.chat is not None, "a conversation is of a project that has them"
    return {
        **_state(found),
        "is_full": full,
        "max_characters": config.chat.max_characters,
        "may_renew": found.last is not None and found.last.renewed < config.chat.max_renewals,
    }


def _state(found: Conversation) -> dict[str, Any]:
    last = found.last
    return {
        "id": found.id,
        "project": found.project_id,
        "kind": found.kind,
        "is_open": found.is_open,
        "state": None if last is None else last.state,
        "number": 0 if last is None else last.number,
        "renewed": 0 if last is None else last.renewed,
        "answer": None if last is None else last.answer,
        "has_answer": any(one.answer is not None for one in found.turns),
    }


# --- what scripts and programs ask for ---------------------------------------------------------------------------------


@router.post(API)
async def start(request: Request, asking: Judging, body: StartBody) -> dict[str, Any]:
    """Starts a conversation with the policies that are served now; an open one of this kind goes on instead."""
    limit(request, "chat", asking.person.id)
    now, served = database_of(request).now(), _talks(request).served

    def work(connection: sa.Connection) -> str:
        return chats.start(connection, now, body.project, asking.person, body.kind, served)

    return {"id": await write(request, work)}


@router.get(API + "/{conversation_id}")
async def state(request: Request, asking: Reading, conversation_id: str) -> dict[str, Any]:
    """A conversation with its transcript."""
    found = await read(request, lambda connection: chats.peek(connection, conversation_id, asking.person))
    turns = [
        {"number": one.number, "text": one.text, "state": one.state, "answer": one.answer}
        for one in found.turns
    ]
    rule = None if found.rule is None else {"id": found.rule[0], "text": found.rule[1]}
    return {**_state(found), "turns": turns, "rule": rule}


@router.get(API + "/{conversation_id}/turns/{number}")
async def turn_state(request: Request, asking: Reading, conversation_id: str, number: int) -> dict[str, Any]:
    """Whether a turn has its answers."""
    found = await read(request, lambda connection: find(connection, conversation_id, asking.person))
    if not 1 <= number <= len(found.turns):
        raise NotFound("there is no such turn")
    return {"number": number, "state": found.turns[number - 1].state}


@router.post(API + "/{conversation_id}/turns", status_code=202)
async def say(request: Request, asking: Judging, conversation_id: str, body: TurnBody) -> dict[str, Any]:
    """Stores a turn and has its answers written."""
    limit(request, "chat", asking.person.id)
    now = database_of(request).now()

    def work(connection: sa.Connection) -> Turn:
        return chats.say(connection, now, conversation_id, asking.person, body.key, body.text)

    said = await write(request, work)
    if said.state == "waiting":
        _talks(request).begin(conversation_id, said.number)
    return {"number": said.number, "state": said.state}


@router.post(API + "/{conversation_id}/turns/{number}/retry", status_code=202)
async def retry(request: Request, asking: Judging, conversation_id: str, number: int) -> dict[str, Any]:
    """Has the answers written again of a turn that got none."""
    limit(request, "chat", asking.person.id)
    await write(request, lambda connection: chats.retry(connection, conversation_id, asking.person, number))
    _talks(request).begin(conversation_id, number)
    return {"number": number, "state": "waiting"}


@router.post(API + "/{conversation_id}/turns/{number}/renew", status_code=202)
async def renew(
    request: Request, asking: Judging, conversation_id: str, number: int, body: RenewBody
) -> dict[str, Any]:
    """Has other answers written."""
    limit(request, "chat", asking.person.id)
    now = database_of(request).now()

    def work(connection: sa.Connection) -> None:
        chats.renew(connection, now, conversation_id, asking.person, number, renewed=body.renewed)

    await write(request, work)
    _talks(request).begin(conversation_id, number)
    return {"number": number, "state": "waiting"}


@router.post(API + "/{conversation_id}/claim", response_model=None)
async def claim(request: Request, asking: Judging, conversation_id: str) -> Mapping[str, Any]:
    """The choice that a conversation waits for, as `tasks/claim` gives one. It is answered through its lease."""
    limit(request, "claim", asking.person.id)
    now = database_of(request).now()
    held = await write(
        request, lambda connection: chats.hold(connection, now, conversation_id, asking.person)
    )
    if held is None:
        raise NotFound("this conversation waits for no choice")
    task = await read(request, lambda connection: shown_task(connection, held))
    return {"lease": {"token": held.token, "expires_at": held.expires_at, "draft": held.draft}, "task": task}


@router.post(API + "/{conversation_id}/turns/{number}/improve")
async def improve(
    request: Request, asking: Judging, conversation_id: str, number: int, body: queue.Submission
) -> dict[str, Any]:
    """Goes on with a text of the person's own instead of the answer."""
    limit(request, "submit", asking.person.id)
    now = database_of(request).now()

    def work(connection: sa.Connection) -> Conversation:
        chats.improve(connection, now, conversation_id, asking.person, number, body)
        return find(connection, conversation_id, asking.person)

    return _state(await write(request, work))


@router.post(API + "/{conversation_id}/end")
async def end(request: Request, asking: Judging, conversation_id: str, body: EndBody) -> dict[str, Any]:
    """Ends a conversation with what its person says about the whole."""
    limit(request, "submit", asking.person.id)
    now = database_of(request).now()

    def work(connection: sa.Connection) -> Conversation:
        ending = {"rating": body.rating, "comment": body.comment}
        chats.end(connection, now, conversation_id, asking.person, ending, body.submission)
        return find(connection, conversation_id, asking.person)

    return _state(await write(request, work))


def _talks(request: Request) -> Talks:
    return request.app.state.talks
