"""Stores for benchmarks: a project full of tasks, annotators with API tokens; and what must hold afterwards."""

import json
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from benchmarks.common import ROOT
from benchmarks.label.annotators import Answered, Plan
from prefloop.labels import people, publish
from prefloop.labels.database import Database
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import NewTask
from prefloop.labels.schema import api_token, judgement, lease, task
from prefloop.records import Message, Prompt, file_completion
from prefloop.web.security import token_hash

PROJECT = "load"
YEAR_MS = 365 * 24 * 3600 * 1000
TASKS_A_TRANSACTION = 500
TEXT = "A story of a fox who wanted to learn to count and asked everybody in the forest for help. " * 6


def fill(database: Database, *, tasks: int, overlap: int, annotators: int, cents: int = 0) -> list[str]:
    """Makes the project; returns the annotators' API tokens. Gold and repeats are as usual, but there are no gold tasks."""
    config = ProjectConfig(overlap=overlap, cents={"pairwise": cents} if cents else {}, repeat_share=0.0)

    def project(connection: sa.Connection) -> str:
        publish.add_project(connection, database.now(), PROJECT, config)
        return publish.open_round(connection, database.now(), PROJECT, 0)

    round_id = database.write(project)
    for start in range(0, tasks, TASKS_A_TRANSACTION):
        some = [_task(number) for number in range(start, min(tasks, start + TASKS_A_TRANSACTION))]
        database.write(
            lambda connection, some=some: publish.publish_tasks(
                connection, database.now(), PROJECT, some, round_id=round_id
            )
        )
    return database.write(lambda connection: [_annotator(connection, database, n) for n in range(annotators)])


def _task(number: int) -> NewTask:
    prompt = Prompt.of((Message(role="user", content=f"Tell me story number {number}."),))
    return NewTask(prompt, tuple(file_completion(prompt, f"{TEXT} {end}", end) for end in range(2)))


def _annotator(connection: sa.Connection, database: Database, number: int) -> str:
    person = people.add_person(connection, database.now(), f"annotator {number}")
    people.join_project(connection, PROJECT, person.id)
    token = secrets.token_urlsafe(24)
    connection.execute(
        sa.insert(api_token).values(
            token_hash=token_hash(token),
            id=secrets.token_hex(8),
            annotator_id=person.id,
            scopes=["judge:write"],
            created_at=database.now(),
            expires_at=database.now() + YEAR_MS,
        )
    )
    return token


def annotate(plan: Plan) -> "subprocess.Popen[str]":
    """Starts the annotators; their output has one line for each answer."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.label.annotators"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(plan.to_json())
    process.stdin.close()
    process.stdin = None
    return process


def answers(process: "subprocess.Popen[str]") -> list[Answered]:
    """What came back, once all have gone home."""
    text, _ = process.communicate()
    return [_answered(line) for line in text.splitlines()]


def first_answers(process: "subprocess.Popen[str]", number: int) -> list[Answered]:
    """What has come back when so many judgements were acknowledged."""
    assert process.stdout is not None
    found: list[Answered] = []
    while number > 0 and (line := process.stdout.readline()):
        found.append(_answered(line))
        number -= found[-1].kind == "submit" and found[-1].status == 200
    return found


def _answered(line: str) -> Answered:
    return Answered(*json.loads(line))


@dataclass(frozen=True)
class Outcome:
    """What is in the store, beside what the annotators were told."""

    valid: int
    surplus: int
    lost: int
    """Acknowledged judgements that are not there."""
    duplicate: int
    """Judgements of one person on one task beside the first."""
    over_overlap: int
    """Tasks with more valid judgements and leases than they want."""
    miscounted: int
    """Tasks whose counters differ from their rows."""

    @property
    def problems(self) -> int:
        """What must be none."""
        return self.lost + self.duplicate + self.over_overlap + self.miscounted


def outcome(database: Database, told: Sequence[Answered]) -> Outcome:
    """Looks at every row."""

    def look(connection: sa.Connection) -> Outcome:
        rows = connection.execute(
            sa.select(
                judgement.c.id,
                judgement.c.task_id,
                judgement.c.annotator_id,
                judgement.c.state,
                judgement.c.client_uuid,
            )
        ).all()
        leased = Counter(
            connection.execute(sa.select(lease.c.task_id).where(lease.c.state == "open")).scalars()
        )
        tasks = connection.execute(sa.select(task.c.id, task.c.overlap, task.c.valid, task.c.leased)).all()
        valid = Counter(row.task_id for row in rows if row.state == "valid")
        ids = {(row.id, row.client_uuid) for row in rows}
        acknowledged = [
            (one.judgement, one.token) for one in told if one.kind == "submit" and one.status == 200
        ]
        return Outcome(
            valid=valid.total(),
            surplus=sum(row.state == "surplus" for row in rows),
            lost=sum(one not in ids for one in acknowledged),
            duplicate=len(rows) - len({(row.task_id, row.annotator_id) for row in rows}),
            over_overlap=sum(valid[row.id] + leased[row.id] > row.overlap for row in tasks),
            miscounted=sum((row.valid, row.leased) != (valid[row.id], leased[row.id]) for row in tasks),
        )

    return database.read(look)
