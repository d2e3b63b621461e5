"""Runs side by side: each an ordinary `prefloop run` in a process of its own, on one thread.

They share a workspace, which sees to it that nothing is computed twice and that what was killed goes on. Knows nothing about
what is measured.
"""

import multiprocessing
import os
import re
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from statistics import fmean

import yaml

from prefloop import pipeline
from prefloop.config import Experiment
from prefloop.pipeline import Entry
from prefloop.store import Workspace, write_text
from prefloop.studies.definition import Run

PAUSE_S = 0.2
"""Between two looks at the processes."""
IMPORTED_ONCE = tuple(
    f"prefloop.{name}"
    for name in (
        "screen", "report", "train.online", "train.sft", "train.reward", "train.preference", "generate.hf",
        "generate.choose", "annotate.choose", "annotate.reward_model", "evaluate.measure", "evaluate.text",
    )
)  # fmt: skip
"""By the process that the others are forked from: importing torch takes as long as a small run."""


@dataclass(frozen=True)
class Ended:
    """A run whose process has ended."""

    run: Run
    seconds: float
    error: str | None
    """What it said when it failed."""
    log: Path


def is_finished(entries: Sequence[Entry]) -> bool:
    """Whether a run has nothing left to do."""
    return all(one.artefact.exists for one in entries)


def run_all(
    runs: Sequence[Run], workspace: Workspace, folder: Path, *, workers: int
) -> Generator[Ended, None, None]:
    """Runs them, so many at once, and tells of each when it has ended. Closed before the end, it ends those under way, which
    lose no more than they would by a kill."""
    waiting = deque(runs)
    live: list[_Child] = []
    try:
        while waiting or live:
            while waiting and len(live) < workers:
                live.append(_Child(waiting.popleft(), workspace, folder))
            time.sleep(PAUSE_S)
            for one in [one for one in live if one.process.exitcode is not None]:
                live.remove(one)
                yield one.ended()
    finally:
        for one in live:
            one.process.terminate()
        for one in live:
            one.process.join()


class _Child:
    """A run under way."""

    def __init__(self, run: Run, workspace: Workspace, folder: Path) -> None:
        self.run = run
        self._started = time.monotonic()
        file = folder / "experiments" / f"{run.experiment.name}.yaml"
        self._log = folder / "logs" / f"{run.experiment.name}.log"
        for one in (file, self._log):
            one.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, _spelled(run.experiment))
        self._log.unlink(missing_ok=True)
        self.process = _context().Process(target=_run, args=(file, workspace.root, self._log))
        self.process.start()

    def ended(self) -> Ended:
        """What became of it."""
        seconds = time.monotonic() - self._started
        error = None
        if self.process.exitcode:
            log = self._log.read_text(encoding="utf-8", errors="replace") if self._log.is_file() else ""
            error = last_words(log) or f"its process ended with {self.process.exitcode}, without a word"
        return Ended(self.run, seconds, error, self._log)


def _context() -> ForkServerContext | SpawnContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED_ONCE))
    return context


def _spelled(x: Experiment) -> str:
    """An experiment file, of a run on one thread unless it says otherwise."""
    runtime = x.runtime.model_copy(update={"threads": x.runtime.threads or 1})
    values = x.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump(
        values | {"runtime": runtime.model_dump(mode="json", exclude_unset=True)}, sort_keys=False
    )


def _run(file: Path, workspace: Path, log: Path) -> None:
    """What a child process does: the command, with all that it prints going to a file."""
    from prefloop import cli

    with log.open("w", encoding="utf-8") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.argv = ["prefloop", "run", str(file), "--workspace", str(workspace)]
    cli.main()


def last_words(log: str) -> str:
    """The error at the end of what a process printed, or its last line."""
    lines = [one.strip() for one in log.splitlines() if one.strip()]
    starts = [
        place for place, one in enumerate(lines) if re.match(r"[\w.]*(Error|Unavailable|Waiting):", one)
    ]
    return " ".join(lines[starts[-1] :] if starts else lines[-1:])


def seconds_left(
    plans: Sequence[Sequence[Entry]],
    left: Sequence[Sequence[Entry]],
    workspace: Workspace,
    *,
    workers: int,
    overhead: float,
) -> tuple[float, bool]:
    """About how long the plans that are left take: their missing artefacts, each once, at what others of their role took in
    any of the plans; and whether every role is known. What has never been built counts nothing.

    `overhead` is how much longer runs have taken than their stages.
    """
    taken = {one.key: one.manifest["seconds"] for one in workspace.published()}

    def each(some: Sequence[Sequence[Entry]]) -> Iterable[Entry]:
        return {one.artefact.name: one for entries in some for one in entries}.values()

    by_role: dict[str, list[float]] = {}
    for one in each(plans):
        if one.artefact.key in taken:
            by_role.setdefault(one.role, []).append(taken[one.artefact.key])
    missing = [one.role for one in each(left) if one.artefact.key not in taken]
    seconds = sum(fmean(by_role[role]) for role in missing if role in by_role)
    return overhead * seconds / workers, by_role.keys() >= set(missing)


def plan_of(run: Run, workspace: Workspace) -> list[Entry]:
    """The stages of a run, built or not."""
    return pipeline.plan(run.experiment, workspace)
