"""The data of a project (S17): looking for tasks, the lineage of one, and exports."""

import threading
from typing import Annotated, Any
from urllib.parse import urlencode

import sqlalchemy as sa
from fastapi import APIRouter, Form, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, Response
from pydantic import ValidationError

from prefloop.interfaces import InputError
from prefloop.labels import browsing, exporting, gold, oversight
from prefloop.labels.browsing import STATES, Filter
from prefloop.labels.errors import Invalid
from prefloop.labels.exporting import ENDINGS, Wanted
from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.table import FORMATS, format_named
from prefloop.labels.formats.writing import Counts
from prefloop.labels.projects import KINDS
from prefloop.web.limits import limit
from prefloop.web.pages.lead import Desk, Leading, render, seen
from prefloop.web.pages.lead_gold import gold_standing
from prefloop.web.store import database_of, read

router = APIRouter(prefix="/lead")
WHAT_NARROWS = ("round", "kind", "state", "annotator", "tag", "text")
TABLES = (".parquet", ".csv")
exporting_now = threading.Lock()
"""One export at a time: each reads a whole store."""


def filter_of(project_id: str, said: Any) -> Filter:
    """A filter out of an address or a form. Raises Invalid."""
    text = {name: str(said.get(name, "")).strip() for name in WHAT_NARROWS}
    if text["round"] and not (text["round"].isascii() and text["round"].isdigit()):
        raise Invalid(f"round {text['round'][:20]!r}: give a number")
    for name, choices in (("kind", KINDS), ("state", STATES)):
        if text[name] and text[name] not in choices:
            raise Invalid(f"{name} {text[name][:20]!r}: choose one of {', '.join(choices)}")
    try:
        return Filter(
            project_id,
            rounds=(int(text["round"]),) if text["round"] else (),
            kind=text["kind"],
            state=text["state"],
            annotator_id=text["annotator"],
            tag=text["tag"],
            text=text["text"],
        )
    except ValidationError as error:
        raise Invalid(f"filter: {error.errors()[0]['msg']}") from error


def address_of(wanted: Filter) -> str:
    """The filter as it stands in an address."""
    said = {
        "round": str(wanted.rounds[0]) if wanted.rounds else "",
        "kind": wanted.kind,
        "state": wanted.state,
        "annotator": wanted.annotator_id,
        "tag": wanted.tag,
        "text": wanted.text,
    }
    return urlencode({name: value for name, value in said.items() if value})


# --- looking ---------------------------------------------------------------------------------------------------------


@router.get("/{project_id}/data")
async def browser(
    request: Request, desk: Leading, after: Annotated[int | None, Query(ge=-1)] = None
) -> HTMLResponse:
    """Tasks by filter, a page at a time."""
    wanted = filter_of(desk.id, request.query_params)

    def find(connection: sa.Connection) -> dict[str, Any]:
        found = browsing.find_tasks(connection, wanted, after=after)
        return {
            "found": found,
            "count": browsing.count_tasks(connection, wanted),
            "next": found[-1].ordinal if len(found) == browsing.PAGE else None,
            "choices": _choices(connection, desk.id),
        }

    template = "lead/data_list.html" if "hx-request" in request.headers else "lead/data.html"
    values = await read(request, find)
    return render(request, template, desk, "data", wanted=wanted, address=address_of(wanted), **values)


def _choices(connection: sa.Connection, project_id: str) -> dict[str, Any]:
    return {
        "round": oversight.round_numbers(connection, project_id),
        "kind": KINDS,
        "state": STATES,
        "annotator": oversight.names_of(connection, project_id),
        "tag": browsing.tags_of(connection, project_id),
    }


@router.get("/{project_id}/tasks/{task_id}")
async def lineage(request: Request, desk: Leading, task_id: str) -> HTMLResponse:
    """Everything about a task."""

    def find(connection: sa.Connection) -> dict[str, Any]:
        return {
            "line": browsing.lineage(connection, desk.id, task_id),
            "exports": exporting.exports_with(connection, desk.id, task_id),
            "standing": gold_standing(connection, desk.id, task_id),
            "candidate": gold.candidate(connection, desk.id, task_id),
        }

    return render(request, "lead/lineage.html", desk, "data", **await read(request, find))


# --- exports ---------------------------------------------------------------------------------------------------------


@router.get("/{project_id}/export")
async def export_page(request: Request, desk: Leading) -> HTMLResponse:
    """What can be exported, and what was."""
    return await _export_page(request, desk, filter_of(desk.id, request.query_params))


async def _export_page(
    request: Request, desk: Desk, wanted: Filter, *, error: str = "", status: int = 200, chosen: Any = None
) -> HTMLResponse:
    values = await read(
        request,
        lambda connection: {
            "exports": exporting.exports_of(connection, desk.id),
            "choices": _choices(connection, desk.id),
        },
    )
    return render(
        request,
        "lead/export.html",
        desk,
        "export",
        status=status,
        wanted=wanted,
        formats=FORMATS,
        endings=ENDINGS,
        keeps_files=exporting.keeps_files(database_of(request)),
        error=error,
        chosen=chosen or {},
        **values,
    )


def _options(said: Any) -> ExportOptions:
    """Options out of the form. Raises Invalid."""
    values: dict[str, Any] = {
        "weakest": said.get("weakest") or "keep",
        "near_duplicates": said.get("near_duplicates") or "drop",
    }
    try:
        if said.get("min_agreement"):
            values["min_agreement"] = float(said["min_agreement"])
        return ExportOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise Invalid(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise Invalid("min_agreement: give a share such as 0.7") from error


async def _wanted(request: Request, desk: Desk) -> tuple[Wanted, Any]:
    said = await request.form()
    name = str(said.get("format") or "trl-preference")
    if name not in FORMATS:
        raise Invalid(f"format {name[:40]!r}: choose one of {', '.join(FORMATS)}")
    return Wanted(filter_of(desk.id, said), name, _options(said)), said


@router.post("/{project_id}/export/count")
async def count(request: Request, desk: Leading) -> HTMLResponse:
    """What would be in the file."""
    wanted, _ = await _wanted(request, desk)
    counts, error = await run_in_threadpool(_count, request, wanted)
    return render(request, "lead/export_counts.html", desk, "export", counts=counts, error=error)


def _count(request: Request, wanted: Wanted) -> tuple[Counts | None, str]:
    try:
        with exporting_now:
            return exporting.dry_run(database_of(request), wanted), ""
    except InputError as error:
        return None, str(error)


@router.post("/{project_id}/export")
async def make(request: Request, desk: Leading, ending: Annotated[str, Form()] = ".jsonl") -> Response:
    """Writes an export."""
    wanted, said = await _wanted(request, desk)
    limit(request, "export", desk.asking.person.id)
    if ending in TABLES and format_named(wanted.format).columns is None:
        why = f"{wanted.format}: rows of this format fit no table; choose .jsonl or .json"
        return await _export_page(request, desk, wanted.filter, error=why, status=422, chosen=said)
    try:
        id = await run_in_threadpool(_make, request, wanted, ending, desk)
    except InputError as error:
        return await _export_page(request, desk, wanted.filter, error=str(error), status=422, chosen=said)
    return seen(f"/lead/{desk.id}/exports/{id}")


def _make(request: Request, wanted: Wanted, ending: str, desk: Desk) -> str:
    with exporting_now:
        return exporting.make_export(database_of(request), wanted, ending, desk.asking.person.id)


@router.get("/{project_id}/exports/{export_id}")
async def export_made(request: Request, desk: Leading, export_id: str) -> HTMLResponse:
    """An export, with its manifest."""
    database = database_of(request)

    def find(connection: sa.Connection) -> dict[str, Any]:
        path = exporting.export_file(connection, database, desk.id, export_id)
        return {"manifest": exporting.manifest_of(path), "bytes": path.stat().st_size}

    return render(request, "lead/export_made.html", desk, "export", id=export_id, **await read(request, find))


@router.get("/{project_id}/exports/{export_id}/{part}")
async def download(request: Request, desk: Leading, export_id: str, part: str) -> Response:
    """The file, or its manifest."""
    database = database_of(request)
    path = await read(
        request, lambda connection: exporting.export_file(connection, database, desk.id, export_id)
    )
    if part == "manifest":
        path = path.with_suffix(".manifest.json")
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")
