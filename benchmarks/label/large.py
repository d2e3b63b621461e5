"""A store that has grown: a million judgements, 200,000 prompts, all tasks open: `python -m benchmarks.label.large`.

`newcomer` has judged nothing; `veteran` has judged the first half of the open tasks, which a claim must not walk through
again and again. Each asks alone and without a pause, over HTTP; `everybody` asks together, with a second of thought. `lead`
opens the pages of a lead, the first time and twice more, and on until the figures are there that are computed meanwhile.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from benchmarks.common import console
from benchmarks.label import report
from benchmarks.label.annotators import Answered, Plan
from benchmarks.label.load import resident_mb
from benchmarks.label.serving import served
from benchmarks.label.stores import PROJECT, annotate, answers, fill
from benchmarks.rows import Row, Spread, Target
from prefloop.labels import people
from prefloop.labels.accounts import open_session
from prefloop.labels.database import Database, open_database
from prefloop.labels.schema import annotator, completion, judgement, prompt, round_, task

TASKS, JUDGEMENTS_A_TASK, ANNOTATORS = 200_000, 5, 20
VETERAN = 0
SECONDS = 20.0
THOUGHT_S = (0.5, 1.5)
ROWS = 20_000
TARGETS = {0.95: Target(50.0, better="lower", of="value")}
"""Of who asks alone."""
LEAD = "lead"
DASHBOARDS = ("", "/quality", "/rounds", "/rounds/0", "/data", "/gold")
LONGEST_PAGE_S = 2.0
COMPUTING = "figures are being computed"


def main() -> None:
    """Builds the store, asks, and writes label_large.json."""
    asked = report.options(__doc__, works=("newcomer", "veteran", "everybody", LEAD))
    tasks = TASKS // asked.shrink
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="prefloop-labels-") as folder:
        path = Path(folder) / "labels.sqlite"
        database = open_database(str(path))
        tokens = grow(database, tasks)
        session = database.write(lambda connection: lead_session(connection, database.now()))
        database.close()
        console.print(f"  {path.stat().st_size / 1e6:.0f} MB")
        with served(str(path)) as (port, server):
            size = f"{tasks * JUDGEMENTS_A_TASK:,} judgements"
            if LEAD in asked.works:
                rows += dashboard_rows(size, port, session)
            for work in asked.works:
                if work == LEAD:
                    continue
                who = {"newcomer": tokens[-1:], "veteran": tokens[:1], "everybody": tokens}[work]
                seconds = SECONDS / asked.shrink**0.5
                think = THOUGHT_S if work == "everybody" else (0.0, 0.0)
                told = answers(annotate(Plan(port, PROJECT, who, seconds=seconds, think_s=think)))
                name = f"{size}, {tasks:,} prompts, {work}"
                rows += claim_rows(name, told, {} if work == "everybody" else TARGETS)
            rows.append(
                Row(
                    size,
                    "server, MB",
                    Spread.of([resident_mb(server.pid)]),
                )
            )
    report.finish("label_large", asked, rows)


def claim_rows(name: str, told: list[Answered], targets: dict[float, Target]) -> list[Row]:
    """Percentiles of claims, and the first one, which begins at the top."""
    claims = [one.ms for one in told if one.kind == "claim" and one.status == 200]
    console.print(f"  {name}: {len(claims)} claims")
    return [
        Row(name, "first claim, ms", Spread.of(claims[:1])),
        *(
            Row(
                name,
                f"claim p{share * 100:.0f}, ms",
                Spread.of([report.percentile(claims, share)]),
                target=targets.get(share),
            )
            for share in (0.5, 0.95, 0.99)
        ),
    ]


def lead_session(connection: sa.Connection, now: int) -> str:
    """A lead of the project who is logged in; the token of their session."""
    person = people.add_person(connection, now, "lead", role="lead")
    people.join_project(connection, PROJECT, person.id)
    return open_session(connection, now, person.id)


def dashboard_rows(size: str, port: int, session: str) -> list[Row]:
    """How long each page of a lead takes, the first time and after that."""
    url = f"http://127.0.0.1:{port}"
    target = Target(LONGEST_PAGE_S, better="lower", of="value")
    rows = []
    with httpx.Client(base_url=url, cookies={"prefloop_session": session}, timeout=300) as client:
        for path in DASHBOARDS:
            taken, text = [], ""
            first = time.monotonic()
            while len(taken) < 3 or COMPUTING in text:
                begun = time.monotonic()
                text = client.get(f"/lead/{PROJECT}{path}", follow_redirects=True).raise_for_status().text
                taken.append(time.monotonic() - begun)
            whole = time.monotonic() - first
            name = f"{size}, page {path or '/'}"
            rows.append(Row(name, "dashboard, s", Spread.of(taken[:1]), target=target))
            rows.append(Row(name, "dashboard again, s", Spread.of(taken[1:]), target=target))
            if len(taken) > 3:
                rows.append(Row(name, "until its figures are there, s", Spread.of([whole])))
    return rows


def grow(database: Database, tasks: int) -> list[str]:
    """Fills a store by rows; returns the API tokens of the annotators, the veteran's first, a newcomer's last."""
    begun = time.monotonic()
    tokens = fill(database, tasks=0, overlap=JUDGEMENTS_A_TASK + 1, annotators=ANNOTATORS)

    def build(connection: sa.Connection) -> None:
        ids = {row.name: row.id for row in connection.execute(sa.select(annotator.c.name, annotator.c.id))}
        people = [ids[f"annotator {number}"] for number in range(ANNOTATORS)]
        round_id = connection.execute(sa.select(round_.c.id)).scalar_one()
        _insert(connection, prompt, _prompts(tasks))
        _insert(connection, completion, _completions(tasks))
        _insert(connection, task, _tasks(tasks, round_id, database.now()))
        _insert(connection, judgement, _judgements(tasks, round_id, people, database.now()))

    database.write(build)
    console.print(f"  built in {time.monotonic() - begun:.0f} s")
    return tokens


def _insert(connection: sa.Connection, table: sa.Table, rows: Iterator[dict[str, Any]]) -> None:
    columns: list[str] = []
    while some := list(islice(rows, ROWS)):
        columns = list(some[0])
        marks = ", ".join("?" * len(columns))
        words = f'INSERT INTO "{table.name}" ({", ".join(columns)}) VALUES ({marks})'
        connection.exec_driver_sql(words, [tuple(row.values()) for row in some])


def _prompts(tasks: int) -> Iterator[dict[str, Any]]:
    for number in range(tasks):
        asked = json.dumps([{"role": "user", "content": f"Tell me story number {number}."}])
        yield {"id": f"prompt{number}", "messages": asked}


def _completions(tasks: int) -> Iterator[dict[str, Any]]:
    for number in range(tasks):
        for end in range(2):
            text = f"Once upon a time, {number} foxes lived in a wood. " * 4 + str(end)
            yield {"id": f"text{number}-{end}", "prompt_id": f"prompt{number}", "text": text}


def _tasks(tasks: int, round_id: str, now: int) -> Iterator[dict[str, Any]]:
    for number in range(tasks):
        yield {
            "id": f"task{number}",
            "project_id": PROJECT,
            "round_id": round_id,
            "kind": "pairwise",
            "prompt_id": f"prompt{number}",
            "completion_ids": json.dumps([f"text{number}-0", f"text{number}-1"]),
            "overlap": JUDGEMENTS_A_TASK + 1,
            "valid": JUDGEMENTS_A_TASK,
            "ordinal": number,
            "created_at": now,
        }


def _judgements(tasks: int, round_id: str, people: list[str], now: int) -> Iterator[dict[str, Any]]:
    """The veteran has the first half of the tasks; the newcomer, the last of the people, has none."""
    others = people[1:-1]
    for number in range(tasks):
        who = [people[VETERAN]] if number < tasks // 2 else []
        who += [others[(number + place) % len(others)] for place in range(JUDGEMENTS_A_TASK - len(who))]
        for slot, person in enumerate(who):
            yield {
                "task_id": f"task{number}",
                "project_id": PROJECT,
                "round_id": round_id,
                "annotator_id": person,
                "value": '{"choice": "a", "strength": 2}',
                "presented": "[0, 1]",
                "slot": slot,
                "client_uuid": f"{number}-{slot}",
                "active_ms": 9000,
                "created_at": now,
            }


if __name__ == "__main__":
    main()
