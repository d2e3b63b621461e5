import importlib.machinery
import json
import sys
import types

import pytest

from prefloop.interfaces import InputError
from prefloop.store import Workspace
from prefloop.tracking import Tracker, flatten
from small import small
from test_store import stage


def test_nested_figures_become_flat_names():
    nested = {"a": 1, "b": {"c": 2.5, "d": {"e": True}}, "f": "text", "g": None}
    assert flatten(nested, "stage/") == {"stage/a": 1, "stage/b/c": 2.5, "stage/b/d/e": 1.0}


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(
            InputError, match=r"runtime.trackers: wandb is not installed; pip install 'prefloop\[wandb\]'"
        ),
        Tracker(tmp_path, small("runtime.trackers=[wandb]")),
    ):
        pass


def test_a_tracker_receives_what_the_file_receives(tmp_path, monkeypatch):
    logged, finished = [], []
    trackio = types.ModuleType("trackio")
    trackio.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    trackio.init = lambda **settings: types.SimpleNamespace(
        log=lambda metrics, step: logged.append((step, metrics))
    )
    trackio.finish = lambda: finished.append(True)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    workspace = Workspace(tmp_path / "workspace")
    workspace.create()
    artefact = workspace.build(stage())
    with Tracker(tmp_path, small("runtime.trackers=[trackio]")) as tracker:
        tracker.stage("main", 0, "demo", artefact)
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (row["arm"], row["iteration"], row["demo/length"]) == ("main", 0, 5)
    ((step, metrics),) = logged
    assert (step, metrics["main/demo/length"], finished) == (1, 5, [True])
