"""A hundred annotators without a pause: `python -m benchmarks.label.load`.

`sqlite` is one server over a file on the disk, `postgresql` four workers over a throw-away PostgreSQL, both answered over
loopback and asked from another process of the same machine. `thinking` is two hundred annotators who take their time for
half an hour, with a page of progress read every second beside them; `--shrink` shortens the half hour and their time alike.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import console
from benchmarks.label import postgres, report
from benchmarks.label.annotators import Answered, Plan
from benchmarks.label.serving import served
from benchmarks.label.stores import PROJECT, Outcome, annotate, answers, fill, outcome
from benchmarks.rows import Row, Spread, Target
from prefloop.labels.database import open_database
from prefloop.labels.reading import progress

ANNOTATORS, TASKS, OVERLAP = 100, 10_000, 3
WORKERS = 4
ARRIVE_S = 0.05
TARGETS = {0.95: 150.0, 0.99: 400.0}
THINKERS, THOUGHT_S, THINKING_S = 200, (20.0, 40.0), 1800.0
TARGETS_THINKING = {0.95: 100.0}
MOST_GROWTH = 0.10
"""Of the server's memory, from a quarter of the time to its end."""
WORKS = ("sqlite", "postgresql", "thinking")


def main() -> None:
    """Measures each work, and writes label_load_WORK.json."""
    asked = report.options(__doc__, works=WORKS)
    tasks = max(ANNOTATORS, TASKS // asked.shrink)
    for work in asked.works:
        if work == "postgresql" and postgres.programs() is None:
            console.print("PostgreSQL is not installed: left out")
        elif work == "thinking":
            report.finish("label_load", asked, thinking_rows(asked.folder, asked.shrink), part=work)
        else:
            report.finish("label_load", asked, load_rows(work, asked.folder, tasks, asked.repeats), part=work)


@contextlib.contextmanager
def new_store(work: str, folder: Path | None = None) -> Iterator[str]:
    """The path or URL of an empty store."""
    if work == "postgresql":
        with postgres.cluster() as url:
            yield url
    else:
        with tempfile.TemporaryDirectory(dir=folder, prefix="prefloop-labels-") as made:
            yield str(Path(made) / "labels.sqlite")


def load_rows(work: str, folder: Path | None, tasks: int, repeats: int) -> list[Row]:
    """Everybody asks at once until nothing is left."""
    runs: list[list[Answered]] = []
    found: list[Outcome] = []
    seconds: list[float] = []
    cpu_ms: list[float] = []
    for _ in range(repeats):
        with new_store(work, folder) as store:
            told, after, took, cpu_s = pressed(store, tasks, workers=WORKERS if work == "postgresql" else 1)
        runs.append(told)
        found.append(after)
        seconds.append(took)
        cpu_ms.append(1000 * sum(cpu_s) / (tasks * OVERLAP))
        shares = ", ".join(f"{one:.0f}" for one in cpu_s)
        console.print(f"  {work}: {after}, {took:.0f} s; CPU seconds of each worker: {shares}")
    name = f"{ANNOTATORS} annotators, {tasks:,} tasks x {OVERLAP}, " + (
        "SQLite" if work == "sqlite" else f"PostgreSQL, {WORKERS} workers"
    )
    wanted = tasks * OVERLAP
    right = [(one.valid - one.problems) / wanted for one in found]
    fine = [sum(one.status in (200, 204) for one in run) / len(run) for run in runs]
    return [
        Row(name, "judgements wanted that are there, once", Spread.of(right), target=Target(1, of="value")),
        Row(name, "requests answered as they should", Spread.of(fine), target=Target(1, of="value")),
        Row(name, "judgements/s", Spread.of([wanted / one for one in seconds])),
        Row(name, "CPU of the server for a claim and an answer, ms", Spread.of(cpu_ms)),
        *report.latency_rows(name, runs, TARGETS if work == "sqlite" else {}),
    ]


def pressed(
    store: str, tasks: int, *, workers: int, annotators: int = ANNOTATORS
) -> tuple[list[Answered], Outcome, float, list[float]]:
    """One run: what the annotators were told, what is in the store, how long it took, and the CPU seconds of each worker."""
    database = open_database(store)
    tokens = fill(database, tasks=tasks, overlap=OVERLAP, annotators=annotators)
    database.close()
    with served(store, workers=workers) as (port, server):
        before = cpu_seconds(server.pid, workers)
        begun = time.monotonic()
        told = answers(annotate(Plan(port, PROJECT, tokens, arrive_s=ARRIVE_S if workers > 1 else 0.0)))
        took = time.monotonic() - begun
        after_all = cpu_seconds(server.pid, workers)
        cpu_s = [late - early for late, early in zip(after_all, before, strict=True)]
    database = open_database(store)
    after = outcome(database, told)
    database.close()
    return told, after, took, cpu_s


def cpu_seconds(server: int, workers: int) -> list[float]:
    """Of each worker of a server so far, the same order every time."""
    import psutil

    parent = psutil.Process(server)
    children = [one for one in parent.children() if "spawn_main" in " ".join(one.cmdline())]
    serving = [parent] if workers == 1 else sorted(children, key=lambda one: one.pid)
    return [sum(one.cpu_times()[:2]) for one in serving]


def thinking_rows(folder: Path | None, shrink: int) -> list[Row]:
    """People who take their time, and somebody who looks at the progress all the while."""
    seconds, (least, most) = THINKING_S / shrink, (one / shrink for one in THOUGHT_S)
    with new_store("sqlite", folder) as store:
        database = open_database(store)
        tokens = fill(database, tasks=TASKS, overlap=OVERLAP, annotators=THINKERS)
        with served(store) as (port, server):
            memory: list[float] = []
            done = threading.Event()

            def look() -> None:
                while not done.wait(1.0):
                    database.read(lambda connection: progress(connection, PROJECT))
                    memory.append(resident_mb(server.pid))

            watcher = threading.Thread(target=look)
            watcher.start()
            told = answers(annotate(Plan(port, PROJECT, tokens, seconds=seconds, think_s=(least, most))))
            done.set()
            watcher.join()
        after = outcome(database, told)
        database.close()
    console.print(f"  thinking: {after}")
    name = f"{THINKERS} annotators, {least:.3g}–{most:.3g} s a task, {seconds:.0f} s, SQLite"
    growth = memory[-1] / memory[len(memory) // 4] - 1
    return [
        *report.latency_rows(name, [told], TARGETS_THINKING),
        Row(
            name,
            "growth of the server's memory",
            Spread.of([growth]),
            target=Target(MOST_GROWTH, better="lower", of="value"),
        ),
    ]


def resident_mb(pid: int) -> float:
    """Memory of a process, on Linux; 0 elsewhere."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return 1.0
    line = next(one for one in status.read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    main()
