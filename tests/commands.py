"""`prefloop` commands that tests start again and again: each forks from one process that has imported torch already.

A new Python takes seconds of CPU time to import what a command needs; a fork takes a tenth of one. What is started is a
process of its own all the same, in a session of its own, and can be killed, watched and asked how it ended.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch", "transformers", "accelerate", "prefloop.cli", "prefloop.train.preference", "prefloop.train.sft"]
)


@dataclass(frozen=True)
class Command:
    """A command that was started."""

    process: BaseProcess
    out: Path
    err: Path

    @property
    def is_running(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        """SIGKILL for it and all that it started; no harm where it has ended."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self, timeout_s: float = 480) -> int | None:
        """Waits, and says how it ended: the exit status, or minus the signal."""
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.kill()
            self.process.join()
        return self.process.exitcode


def start(args: Sequence[str], out: Path, err: Path, environment: Mapping[str, str]) -> Command:
    """Starts `prefloop` with these words, with files for what it prints."""
    process = SERVER.Process(
        target=_run, args=(list(args), str(out), str(err), dict(environment)), daemon=True
    )
    process.start()
    return Command(process, out, err)


def _run(args: list[str], out: str, err: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        with open(path, "ab") as file:  # noqa: PTH123
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["prefloop", *args]
    from prefloop.cli import main

    main()
