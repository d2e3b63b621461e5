"""SIGKILL under load: `python -m benchmarks.label.kill`.

The server is killed at random moments while annotators press it, and started again. Every judgement that was acknowledged
must be there exactly once, the file must be whole, and the places of those who never came back must be free again when
their leases have run out.
"""

import contextlib
import random
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import console
from benchmarks.label import report
from benchmarks.label.annotators import Answered, Plan
from benchmarks.label.serving import served
from benchmarks.label.stores import PROJECT, annotate, answers, fill, first_answers, outcome
from benchmarks.rows import Row, Spread, Target
from prefloop.labels.database import open_database
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import configure_project

KILLS, ANNOTATORS, OVERLAP = 20, 30, 3
TASKS = 3000
LEASE_S = 3.0
ANSWERS = (1, 200)
"""How many judgements are acknowledged before a kill, at least and at most."""


@dataclass(frozen=True)
class Survival:
    """What was found after all kills."""

    kills: int
    acknowledged: int
    lost: int
    broken_files: int
    problems: int
    """Duplicates, tasks over their overlap, wrong counters; after each kill."""
    restart_s: tuple[float, ...]
    unfinished: int
    """Tasks that lack judgements when nothing is left, after the leases of the killed have run out."""


def main() -> None:
    """Kills, looks, and writes label_kill.json."""
    asked = report.options(__doc__, works=("sqlite",))
    kills = max(2, KILLS // asked.shrink)
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="prefloop-labels-") as folder:
        found = survive(Path(folder) / "labels.sqlite", kills=kills, tasks=max(200, TASKS // asked.shrink))
    console.print(f"  {found}")
    name = f"SIGKILL at {found.kills} random moments, {ANNOTATORS} annotators, SQLite"
    kept = 1 - found.lost / max(1, found.acknowledged)
    whole = 1 - found.broken_files / found.kills
    rows = [
        Row(
            name,
            "acknowledged judgements that are there, once",
            Spread.of([kept]),
            target=Target(1, of="value"),
        ),
        Row(name, "kills after which the file is whole", Spread.of([whole]), target=Target(1, of="value")),
        Row(
            name,
            "kills after which all counters are right",
            Spread.of([1.0 if not found.problems else 0.0]),
            target=Target(1, of="value"),
        ),
        Row(
            name,
            "tasks finished once leases ran out",
            Spread.of([1 - found.unfinished / max(200, TASKS // asked.shrink)]),
            target=Target(1, of="value"),
        ),
        Row(name, "acknowledged judgements", Spread.of([found.acknowledged])),
        Row(name, "start until it listens, s", Spread.of(found.restart_s)),
    ]
    report.finish("label_kill", asked, rows)


def survive(
    path: Path,
    *,
    kills: int,
    tasks: int,
    annotators: int = ANNOTATORS,
    before_kill: tuple[int, int] = ANSWERS,
    seed: int = 0,
) -> Survival:
    """Kills a server so many times, and lets others finish its work."""
    rng = random.Random(seed)
    database = open_database(str(path))
    tokens = fill(database, tasks=tasks, overlap=OVERLAP, annotators=2 * annotators)
    short = ProjectConfig(overlap=OVERLAP, repeat_share=0.0, lease_minutes=LEASE_S / 60)
    database.write(lambda connection: configure_project(connection, PROJECT, short))
    told: list[Answered] = []
    restarts: list[float] = []
    broken = problems = 0
    for number in range(kills):
        begun = time.monotonic()
        with served(str(path)) as (port, server):
            restarts.append(time.monotonic() - begun)
            working = annotate(Plan(port, PROJECT, tokens[:annotators], seed=number))
            told += first_answers(working, rng.randint(*before_kill))
            server.kill()
            server.wait()
            told += answers(working)
        broken += not _is_whole(path)
        found = outcome(database, told)
        problems += found.problems - found.lost
        console.print(f"  kill {number + 1}: {found}")
    time.sleep(LEASE_S)
    with served(str(path)) as (port, _):  # others, for those who were killed may not have a task twice
        told += answers(annotate(Plan(port, PROJECT, tokens)))
    found = outcome(database, told)
    database.close()
    acknowledged = sum(one.kind == "submit" and one.status == 200 for one in told)
    return Survival(
        kills,
        acknowledged,
        found.lost,
        broken,
        problems + found.problems - found.lost,
        tuple(restarts),
        unfinished=tasks - found.valid // OVERLAP,
    )


def _is_whole(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as raw:
        return raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


if __name__ == "__main__":
    main()
