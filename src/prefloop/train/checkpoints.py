"""Checkpoints of a training stage, and the log of its steps: what a killed stage goes on from.

A checkpoint holds whole tensors by name and each process's random state. Knows nothing about losses or how weights are
spread over processes.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

CHECKPOINTS = "checkpoints"
"""Folder of a stage that is being built; gone when it is done."""
STATE = "state.pt"
DIGITS = 8
"""Significant ones in the log."""


def save(
    state: Mapping[str, Any], folder: Path, *, step: int, process: int, wait: Any, previous: Path | None
) -> Path:
    """Saves everything a killed stage needs; the old checkpoint goes only when the new one is whole.

    All processes take part, `wait` holds each until all have come; the first one writes the state.
    """
    target = folder / CHECKPOINTS / f"step-{step:08d}"
    temporary = target.with_suffix(".tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    _write(_random_state(), temporary / _random_file(process))
    if process == 0:
        _write(dict(state), temporary / STATE)
    wait()
    if process == 0:
        temporary.rename(target)
        if previous is not None:
            shutil.rmtree(previous)
    wait()
    return target


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    found = sorted(path for path in (folder / CHECKPOINTS).glob("step-*") if path.suffix != ".tmp")
    return next((path for path in reversed(found) if (path / STATE).is_file()), None)


def load(checkpoint: Path, *, process: int) -> dict[str, Any]:
    """The state that a checkpoint holds; also sets this process's random state, where there was such a process."""
    if (checkpoint / _random_file(process)).is_file():
        _set_random_state(torch.load(checkpoint / _random_file(process), weights_only=True))
    return torch.load(checkpoint / STATE, weights_only=True)


def clear(folder: Path, *, unfinished_only: bool = False) -> None:
    """Removes all checkpoints, or only those that a kill left unfinished."""
    if unfinished_only:
        for path in (folder / CHECKPOINTS).glob("step-*.tmp"):
            shutil.rmtree(path)
    else:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _random_file(process: int) -> str:
    return f"random-{process}.pt"


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _write(value: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


class MetricsLog:
    """A JSONL file of step metrics; on resume, rows after the checkpoint are cut off."""

    def __init__(self, path: Path, *, upto: int, enabled: bool) -> None:
        self._path = path
        self._enabled = enabled
        self.rows: list[dict[str, float]] = []
        if path.is_file():
            self.rows = [row for row in _whole_rows(path) if row["step"] <= upto]
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def write(self, row: dict[str, float]) -> None:
        """Appends the metrics of one step."""
        rounded = {
            name: value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")
            for name, value in row.items()
        }
        self.rows.append(rounded)
        if self._enabled:
            with self._path.open("a") as file:
                file.write(json.dumps(rounded) + "\n")

    def first_and_last(self, window: int = 10) -> dict[str, float]:
        """Mean loss over the first and the last few steps."""
        losses = [row["train/loss"] for row in self.rows]
        window = min(window, max(1, len(losses) // 2))
        return {
            "loss_first": round(sum(losses[:window]) / window, 6),
            "loss_last": round(sum(losses[-window:]) / window, 6),
        }


def _whole_rows(path: Path) -> Iterator[dict[str, float]]:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # a kill can leave half a line
            yield json.loads(line)
