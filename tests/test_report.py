"""The report against hand-written runs: what is shown, what is counted, and that hostile text stays text."""

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prefloop.config import Experiment
from prefloop.interfaces import InputError
from prefloop.records import Group, Message, Prompt, file_completion
from prefloop.report import as_dict, collect, write_report
from prefloop.store import Workspace, write_json

Entry = dict[str, Any]


class Planted:
    """A run written by hand, file by file, as the pipeline leaves it."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.workspace = Workspace(root)
        self.workspace.create()
        self.experiment = Experiment.model_validate(settings).model_dump(mode="json")
        self.entries: list[Entry] = []
        self.save()

    def save(self) -> None:
        folder = self.workspace.runs / "demo"
        folder.mkdir(exist_ok=True)
        write_json(
            folder / "run.json", {"name": "demo", "experiment": self.experiment, "entries": self.entries}
        )

    def add(
        self,
        kind: str,
        iteration: int | None = None,
        *,
        arm: str = "main",
        role: str = "",
        inputs: dict[str, Any] | None = None,
        rows: tuple[int, int, dict[str, int]] = (0, 0, {}),
        files: dict[str, list[Any]] | None = None,
        seconds: float = 1.0,
        exists: bool = True,
        **stats: Any,
    ) -> str:
        """Adds an entry and, unless it is still missing, its artefact; returns the key."""
        name = f"{arm}/{iteration}/{kind}/{role}/{len(self.entries)}"
        key = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        entry = {
            "arm": arm,
            "iteration": iteration,
            "role": role or kind,
            "kind": kind,
            "key": key,
            "work": "",
        }
        self.entries.append(entry)
        self.save()
        if exists:
            folder = self.workspace.artefacts / f"{kind}-{key}"
            for path, content in (files or {}).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                lines = (row if isinstance(row, str) else json.dumps(row) for row in content)
                (folder / path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            folder.mkdir(exist_ok=True)
            rows_in, rows_out, dropped = rows
            counted = {"in": rows_in, "out": rows_out, "dropped": dropped}
            manifest = {"kind": kind, "key": key, "format": 1, "digest": "", "rows": counted, "stats": stats}
            manifest |= {"config": {}, "inputs": inputs or {}, "external": {}, "files": {}}
            write_json(folder / "manifest.json", manifest | {"started": 1.7e9, "seconds": seconds})
        return key

    def share(self, arm: str) -> None:
        """Repeats the entries before the loop in another arm's list."""
        self.entries += [
            one | {"arm": arm} for one in self.entries if one["arm"] == "main" and one["iteration"] is None
        ]
        self.save()

    def evaluate(
        self,
        iteration: int | None,
        scores: list[float],
        *,
        arm: str = "main",
        texts: list[str] | None = None,
        prompts: list[str] | None = None,
        policy: str = "",
        seconds: float = 1.0,
        **stats: Any,
    ) -> str:
        """An evaluation with one answer a prompt."""
        groups, measurements = [], []
        for index, score in enumerate(scores):
            prompt = Prompt.of(
                (Message(role="user", content=prompts[index] if prompts else f"prompt {index}"),)
            )
            completion = file_completion(
                prompt, texts[index] if texts else f"{arm} {iteration} answer {index}"
            )
            groups.append(Group(prompt=prompt, completions=(completion,)).model_dump_json())
            measurements.append(
                {"prompt_id": prompt.id, "completion_id": completion.id, "score": score, "second": None}
                | {
                    "proxy": 2 * score,
                    "proxy_start": 2 * score,
                    "kl": 1.0,
                    "tokens": 10 + index,
                    "characters": 50,
                }
            )
        figures = {"num_prompts": len(scores), "num_completions": len(scores)}
        files = {"groups.jsonl": groups, "measurements.jsonl": measurements}
        return self.add(
            "evaluate",
            iteration,
            arm=arm,
            files=files,
            seconds=seconds,
            inputs={"policy": policy} if policy else {},
            **(figures | stats),
        )


def between(mean: float, low: float, high: float) -> dict[str, float]:
    """An interval as stages write it."""
    return {"mean": mean, "low": low, "high": high}
