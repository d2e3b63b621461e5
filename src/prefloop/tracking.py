"""Metrics of a run: always to metrics.jsonl, and to wandb, TensorBoard or trackio when asked and installed.

The file is written anew from the artefacts at every run, so that a resumed run has each row once.
"""

import importlib.util
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from prefloop.config import Experiment
from prefloop.interfaces import InputError
from prefloop.store import LOGS, Artefact, read_rows, write_text


class Tracker:
    """Writes step metrics and stage figures; a context manager, because trackers have to be finished."""

    def __init__(self, folder: Path, x: Experiment) -> None:
        self.path = folder / "metrics.jsonl"
        self._experiment = x
        self._folder = folder
        self._rows: list[str] = []
        self._sinks: list[Any] = []

    def __enter__(self) -> "Tracker":
        check_installed(self._experiment)
        self._sinks = [
            _open_sink(name, self._experiment, self._folder) for name in self._experiment.runtime.trackers
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.finish()

    def stage(self, arm: str, iteration: int | None, role: str, artefact: Artefact) -> None:
        """Writes the metrics of a finished stage: one row a training step, then one for its summary."""
        where = {"arm": arm, "iteration": iteration, "stage": role}
        steps = artefact.path / LOGS / "metrics.jsonl"
        if steps.is_file():
            for row in read_rows(steps):
                self._write({**where, **row})
        manifest = artefact.manifest
        numbers = flatten(manifest["stats"], prefix=f"{role}/")
        self._write({**where, **numbers, f"{role}/seconds": manifest["seconds"]})
        write_text(self.path, "".join(self._rows))

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.append(json.dumps(row) + "\n")
        metrics = {
            f"{row['arm']}/{name}": value
            for name, value in row.items()
            if isinstance(value, int | float) and name not in ("iteration", "step")
        }
        for sink in self._sinks:
            sink.log(metrics, len(self._rows))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested mapping under slash-joined names."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, bool | int | float):
            flat[prefix + name] = float(value) if isinstance(value, bool) else value
    return flat


def check_installed(x: Experiment) -> None:
    """Raises InputError for a tracker that is asked for but not installed."""
    for name in x.runtime.trackers:
        module = {"tensorboard": "tensorboard"}.get(name, name)
        if importlib.util.find_spec(module) is None:
            raise InputError(f"runtime.trackers: {name} is not installed; pip install 'prefloop[{name}]'")


def _open_sink(name: str, x: Experiment, folder: Path) -> Any:
    if name == "tensorboard":
        return _TensorBoard(folder / "tensorboard")
    import importlib

    module = importlib.import_module(name)  # wandb and trackio share this interface
    return _Wandb(module.init(project="prefloop", name=x.name, config=x.model_dump(mode="json")), module)


class _Wandb:
    def __init__(self, run: Any, module: Any) -> None:
        self._run, self._module = run, module

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)

    def finish(self) -> None:
        self._module.finish()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()
