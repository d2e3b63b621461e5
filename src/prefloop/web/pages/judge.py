"""Where people judge: the page of a task, the pieces that its script swaps in, guidelines, one's own answers.

The page itself claims nothing. Its script asks for `next`, which claims and comes back as a piece of HTML: a task,
guidelines to read, or word that nothing is left. Answers go to the JSON interface.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from prefloop.labels import appeals, guidelines, qualification, queue
from prefloop.labels.errors import NotFound
from prefloop.labels.people import Person, preferences_of, require_consent
from prefloop.labels.publish import project_config
from prefloop.labels.qualification import Feedback, feedback_for
from prefloop.labels.queue import Lease
from prefloop.labels.reading import (
    OwnJudgement,
    answered_since,
    own_judgement,
    own_judgements,
    shown_task,
)
from prefloop.labels.schema import member, project
from prefloop.labels.values import LONGEST_TEXT
from prefloop.web.limits import limit
from prefloop.web.pages.home import day_start
from prefloop.web.pages.shared import page, script_words
from prefloop.web.render import diff_html, markdown_html, plain_html
from prefloop.web.security import Visitor, visitor
from prefloop.web.store import database_of, read, write

router = APIRouter()
Asking = Annotated[Visitor, Depends(visitor)]
LETTERS = "ABCDEFGHI"
COLLAPSED_FROM = 12_000
"""Characters from which a text is shown folded, all texts of a task alike."""
TEXT_FORMS = {"markdown": markdown_html, "raw": plain_html}
UNSEEN = re.compile(r"\r(?=\n)")
"""The one character of a text that stands for nothing on a page; places of marked words count it."""
KINDS_SHOWN = ("pairwise", "rank", "form", "rules", "edit", "demonstration", "prompt", "steps")


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AcknowledgeBody(Body):
    version: int = Field(ge=1)


class SeenBody(Body):
    judgement: int = Field(ge=1)


class DiffBody(Body):
    text: str = Field(max_length=LONGEST_TEXT)


@dataclass(frozen=True)
class Frame:
    """What a task page is for: a task that is held, or an answer to change."""

    address: str
    """Where its texts are found in other forms."""
    token: str
    """Of the lease; empty for an answer to change."""
    judgement_id: int
    draft: Mapping[str, Any]
    dwell_ms: int
    is_frozen: bool = False


# --- the page and its pieces -----------------------------------------------------------------------------------------


@router.get("/judge/{project_id}")
async def judge(request: Request, asking: Asking, project_id: str) -> HTMLResponse:
    """The page on which tasks of a project appear one after the other."""
    return await work_page(request, asking, project_id, first=f"/judge/{project_id}/next")


@router.post("/judge/{project_id}/next")
async def next_piece(request: Request, asking: Asking, project_id: str) -> HTMLResponse:
    """The next task, or guidelines that must be read first, or that nothing is left."""
    limit(request, "claim", asking.person.id)
    now = database_of(request).now()

    def work(connection: sa.Connection) -> guidelines.Guidelines | Feedback | Lease | None:
        if (told := feedback_for(connection, project_id, asking.person)) is not None:
            return told
        # who holds a task finishes it by the guidelines that it was begun with
        held = queue.open_lease(connection, now, project_id, asking.person)
        if held is None and (unread := guidelines.unread_guidelines(connection, project_id, asking.person)):
            return unread
        return queue.claim(connection, now, project_id, asking.person)

    found = await write(request, work)
    if found is None:
        return HTMLResponse(page(request, "judge/nothing_left.html", asking))
    if isinstance(found, guidelines.Guidelines):
        return HTMLResponse(await _unread_html(request, asking, project_id, found))
    if isinstance(found, Feedback):
        values = {"told": found, "letters": LETTERS, "project_id": project_id}
        return HTMLResponse(page(request, "judge/feedback.html", asking, **values))
    shown = await read(request, lambda connection: shown_task(connection, found))
    frame = Frame(f"/judge/leases/{found.token}", found.token, 0, found.draft or {}, shown["dwell_ms"])
    return HTMLResponse(task_html(request, asking, shown, frame))


@router.get("/judge/leases/{token}/texts")
async def lease_texts(request: Request, asking: Asking, token: str, form: str) -> dict[str, list[str]]:
    """The texts of a held task as they are, or with their differences marked."""

    def work(connection: sa.Connection) -> dict[str, Any]:
        return shown_task(connection, queue.find_lease(connection, token, asking.person))

    return _texts_as(form, await read(request, work))


@router.post("/judge/leases/{token}/diff")
async def lease_diff(request: Request, asking: Asking, token: str, body: DiffBody) -> dict[str, list[str]]:
    """What an edit changes in the first text of a held task."""

    def work(connection: sa.Connection) -> dict[str, Any]:
        return shown_task(connection, queue.find_lease(connection, token, asking.person))

    return _diff_with(await read(request, work), body.text)


async def work_page(
    request: Request,
    asking: Visitor,
    project_id: str,
    *,
    first: str,
    template: str = "judge/judge.html",
    more: Mapping[str, Any] | None = None,
) -> HTMLResponse:
    """The page in which tasks appear; `more` is what else its script is told."""
    start = day_start(request, database_of(request).now())

    def work(connection: sa.Connection) -> tuple[str, float, int, dict[str, Any]]:
        found = _own_title(connection, project_id, asking.person)
        require_consent(connection, project_id, asking.person)
        config = project_config(connection, project_id)
        today = sum(answered_since(connection, asking.person, start).values())
        return found, config.break_after_minutes, today, preferences_of(connection, asking.person.id)

    own_title, break_after, today, preferences = await read(request, work)
    about = {
        "project": project_id,
        "first": first,
        "break_after_minutes": break_after,
        "today": today,
        "keys": preferences.get("keys", {}),
        "single_keys": preferences.get("single_keys", True),
        **(more or {}),
    }
    html = page(
        request,
        template,
        asking,
        project_id=project_id,
        project_title=own_title,
        about=about,
        words=script_words(request, "judge", "base", "chat"),
    )
    return HTMLResponse(html)


def _own_title(connection: sa.Connection, project_id: str, person: Person) -> str:
    found = connection.execute(
        sa.select(project.c.title)
        .join(member, member.c.project_id == project.c.id)
        .where(project.c.id == project_id, member.c.annotator_id == person.id)
    ).scalar()
    if found is None:
        raise NotFound("there is no such project for you; ask its lead to add you")
    return found


def task_html(
    request: Request, asking: Visitor, shown: Mapping[str, Any], frame: Frame, *, area: str = "judge"
) -> str:
    """A task as a piece of HTML, by the templates of an area; texts that are long are folded, all or none."""
    kind = shown["kind"]
    data = {
        "kind": kind,
        "token": frame.token,
        "judgement": frame.judgement_id,
        "address": frame.address,
        "draft": frame.draft,
        "dwell_ms": frame.dwell_ms,
        "frozen": frame.is_frozen,
        "num_texts": len(shown["texts"]),
        "form": shown["form"],
        "original": shown["texts"][0] if kind == "edit" else "",
        "unseen": [[found.start() for found in UNSEEN.finditer(text)] for text in shown["texts"]],
    }
    texts, shared = shown["texts"], ""
    if kind == "steps":
        shared, texts = split_steps(texts, shown["payload"].get("prefix", ""))
    folded = max((len(text) for text in texts), default=0) > COLLAPSED_FROM
    template = f"{area}/{kind}.html" if kind in KINDS_SHOWN else "judge/elsewhere.html"
    values = {"shown": shown, "frame": frame, "letters": LETTERS, "data": data, "texts": texts}
    return page(request, template, asking, folded=folded, shared=shared, **values)


def split_steps(texts: Sequence[str], prefix: str) -> tuple[str, list[str]]:
    """The beginning that two steps share, and what follows it in each.

    The texts are whole where `prefix` is empty; then they part at the last end of a line that they share, or else of a word.
    """
    if prefix:
        return prefix, [text.removeprefix(prefix) for text in texts]
    first, last = min(texts), max(texts)  # what these two share, all share
    parted = next(
        (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    common = first[:parted]
    end = (common.rfind("\n") if "\n" in common else common.rfind(" ")) + 1
    return common[:end], [text[end:] for text in texts]


def _texts_as(form: str, shown: Mapping[str, Any]) -> dict[str, list[str]]:
    texts = shown["texts"]
    if shown["kind"] == "steps":
        texts = split_steps(texts, shown["payload"].get("prefix", ""))[1]
    if form == "diff" and len(texts) == 2:
        return {"texts": [str(one) for one in diff_html(*texts)]}
    if (render := TEXT_FORMS.get(form)) is None:
        raise NotFound(f"these texts have no form {form}; ask for markdown, raw, or diff where there are two")
    return {
        "texts": [str(render(one)) for one in texts],
        "messages": [str(render(one["content"])) for one in shown["messages"]],
    }


def _diff_with(shown: Mapping[str, Any], text: str) -> dict[str, list[str]]:
    if not shown["texts"]:
        raise NotFound("this task has no text to compare with")
    return {"texts": [str(one) for one in diff_html(shown["texts"][0], text)]}


@router.post("/judge/{project_id}/feedback", status_code=204)
async def see(request: Request, asking: Asking, project_id: str, body: SeenBody) -> None:
    """Notes that this person has read what they were told about an answer of their qualification."""
    await write(
        request,
        lambda connection: qualification.see_feedback(connection, project_id, asking.person, body.judgement),
    )


@router.post("/judge/{project_id}/appeal")
async def appeal(
    request: Request,
    asking: Asking,
    project_id: str,
    judgement: Annotated[int, Form()],
    reason: Annotated[str, Form()] = "",
) -> Response:
    """Puts an answer of one's qualification before the lead."""
    limit(request, "submit", asking.person.id)
    now = database_of(request).now()
    await write(
        request,
        lambda connection: appeals.appeal(connection, now, project_id, asking.person, judgement, reason),
    )
    return RedirectResponse(f"/judge/{project_id}", status_code=303)


# --- guidelines ------------------------------------------------------------------------------------------------------


@router.get("/judge/{project_id}/guidelines")
async def read_guidelines(request: Request, asking: Asking, project_id: str) -> HTMLResponse:
    """The guidelines of a project, with their earlier versions."""

    def work(connection: sa.Connection) -> tuple[str, list[guidelines.Guidelines]]:
        return _own_title(connection, project_id, asking.person), guidelines.guidelines_of(
            connection, project_id
        )

    title, versions = await read(request, work)
    html = page(
        request,
        "judge/guidelines.html",
        asking,
        project_id=project_id,
        project_title=title,
        versions=versions,
        changes=[diff_html(before.text, after.text)[1] for after, before in itertools.pairwise(versions)],
    )
    return HTMLResponse(html)


@router.post("/judge/{project_id}/guidelines", status_code=204)
async def acknowledge(request: Request, asking: Asking, project_id: str, body: AcknowledgeBody) -> None:
    """Notes that this person has read a version."""

    def work(connection: sa.Connection) -> None:
        guidelines.acknowledge_guidelines(connection, project_id, asking.person, body.version)

    await write(request, work)


async def _unread_html(
    request: Request, asking: Visitor, project_id: str, unread: guidelines.Guidelines
) -> str:
    def work(connection: sa.Connection) -> str | None:
        version = guidelines.acknowledged_version(connection, project_id, asking.person)
        texts = {one.version: one.text for one in guidelines.guidelines_of(connection, project_id)}
        return texts.get(version)

    before = await read(request, work)
    return page(
        request,
        "judge/unread.html",
        asking,
        project_id=project_id,
        unread=unread,
        changes=None if before is None else diff_html(before, unread.text)[1],
    )


# --- one's own answers -----------------------------------------------------------------------------------------------


@router.get("/history")
async def history(request: Request, asking: Asking) -> HTMLResponse:
    """The last answers of this person, which can be changed until the freeze."""
    found = await read(request, lambda connection: own_judgements(connection, asking.person))
    return HTMLResponse(page(request, "judge/history.html", asking, answers=found, letters=LETTERS))


@router.get("/history/{judgement_id}")
async def change(request: Request, asking: Asking, judgement_id: int) -> HTMLResponse:
    """The page of a task that was answered."""
    answer, _ = await _own(request, asking, judgement_id)
    return await work_page(request, asking, answer.project_id, first=f"/history/{judgement_id}/task")


@router.get("/history/{judgement_id}/task")
async def change_piece(request: Request, asking: Asking, judgement_id: int) -> HTMLResponse:
    """The task of an answer, with what was said."""
    answer, shown = await _own(request, asking, judgement_id)
    frame = Frame(
        f"/history/{judgement_id}",
        "",
        judgement_id,
        {"value": dict(answer.said), "comment": answer.comment},
        0,
        answer.is_frozen,
    )
    return HTMLResponse(task_html(request, asking, shown, frame))


@router.get("/history/{judgement_id}/texts")
async def history_texts(
    request: Request, asking: Asking, judgement_id: int, form: str
) -> dict[str, list[str]]:
    """The texts of an answered task as they are, or with their differences marked."""
    _, shown = await _own(request, asking, judgement_id)
    return _texts_as(form, shown)


@router.post("/history/{judgement_id}/diff")
async def history_diff(
    request: Request, asking: Asking, judgement_id: int, body: DiffBody
) -> dict[str, list[str]]:
    """What an edit changes in the first text of an answered task."""
    _, shown = await _own(request, asking, judgement_id)
    return _diff_with(shown, body.text)


async def _own(request: Request, asking: Visitor, judgement_id: int) -> tuple[OwnJudgement, dict[str, Any]]:
    return await read(request, lambda connection: own_judgement(connection, judgement_id, asking.person))
