"""Judgement rows for tests: only what a test is about has to be said."""

import itertools
import json
from pathlib import Path
from typing import Any

from prefloop.labels.formats.options import ExportOptions
from prefloop.labels.formats.writing import Manifest, write_export
from prefloop.labels.rows import Acquisition, JudgementRow, RowCompletion, RowPrompt, in_order
from prefloop.records import Message

COUNTER = itertools.count(1)


def prompt(*turns: str, id: str = "", **about: Any) -> RowPrompt:
    """A conversation in which user and assistant take turns."""
    roles = itertools.cycle(("user", "assistant"))
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, turns, strict=False))
    return RowPrompt(id or "p-" + "|".join(turns), messages, **about)


def completions(*texts: str) -> tuple[RowCompletion, ...]:
    return tuple(RowCompletion(f"c-{text}", text, f"policy-{text[:1]}") for text in texts)


def row(kind: str, value: dict[str, Any], *texts: str, **about: Any) -> JudgementRow:
    """A judgement of completions with these texts, of a prompt "Hello" unless another is given."""
    number = about.pop("judgement_id", None) or next(COUNTER)
    asked = about.pop("prompt", None) or prompt("Hello")
    if isinstance(asked, str):
        asked = prompt(asked)
    return JudgementRow(
        judgement_id=number,
        task_id=about.pop("task_id", f"t{number:06}"),
        task_kind=kind,  # pyright: ignore[reportArgumentType]
        prompt=asked,
        completions=completions(*texts),
        value=value,
        annotator=about.pop("annotator", "ann"),
        **about,
    )


def pair(strength: int | None = 1, **about: Any) -> JudgementRow:
    """A comparison of the texts "one" and "two"."""
    choice = about.pop("choice", None) or ("a" if strength and strength <= 4 else "b")
    texts = about.pop("texts", ("one", "two"))
    return row("pairwise", {"choice": choice, "strength": strength}, *texts, **about)


def ranking(
    groups: list[list[int]], *texts: str, unrankable: tuple[int, ...] = (), **about: Any
) -> JudgementRow:
    return row("rank", {"groups": groups, "unrankable": list(unrankable)}, *texts, **about)


def form(
    text: str, ratings: dict[str, float], flags: dict[str, bool] | None = None, **about: Any
) -> JudgementRow:
    return row("form", {"ratings": ratings, "flags": flags or {}}, text, **about)


def exported(
    rows: list[JudgementRow], format: str, folder: Path, **options: Any
) -> tuple[list[dict[str, Any]], Manifest]:
    """The records of an export and its manifest."""
    out = folder / "out.jsonl"
    manifest = write_export(in_order(rows), format, out, ExportOptions(**options))
    return [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line], manifest


def one_of_each() -> list[JudgementRow]:
    """Every kind of task and every reason to stay behind."""
    return [
        pair(1, prompt="pair", comment="clear\u2028", active_ms=4200, presented_order=(1, 0)),
        pair(4, prompt="weak"),
        pair(None, choice="tie", prompt="tie"),
        pair(None, choice="both_bad", prompt="bad"),
        pair(2, prompt="surplus", state="surplus"),
        pair(2, prompt="late", state="late"),
        pair(2, prompt="old", state="superseded"),
        pair(2, prompt="gold", is_gold=True),
        pair(2, prompt="again", is_repeat=True),
        pair(2, prompt="flag", flags=("personal_data",)),
        pair(2, prompt=prompt("held out", split="test")),
        pair(2, prompt="empty", texts=("one", " ")),
        pair(2, prompt="same", texts=("one", "one")),
        pair(2, prompt="marker", texts=("one\n\nHuman: two", "three")),
        row("pairwise", {"choice": "b", "strength": None, "p_a": 0.25}, "one", "two", prompt="judge",
            annotator_kind="ai", judge={"model": "m", "temperature": 0.0}),
        ranking([[2], [0, 1]], "one", "two", "three", "four", prompt="rank", unrankable=(3,)),
        ranking([[0, 1]], "one", "two", prompt="all tied"),
        form("one", {"overall": 6, "helpful": 5}, {"harmful": False}, prompt="form"),
        form("one", {"overall": 4}, prompt="neutral"),
        form("one", {"overall": 10}, prompt="off the scale"),
        row("rules", {"levels": {"no medical advice": "definitely_break"}, "attack": {"success": 4, "harm": 2,
            "actionability": 1}}, "Take two.", prompt=prompt("What helps?", tags=("medical",)),
            payload={"rule_texts": {"no medical advice": "Do not give medical advice."}}),
        row("edit", {"text": "better"}, "good", prompt="edit"),
        row("demonstration", {"text": "Like so."}, prompt="show"),
        row("prompt", {"text": "Why?", "style": "few_shot", "examples": [["How?", "So."]]},
            prompt=RowPrompt("", ())),
        row("steps", {"choice": "a", "strength": 2, "labels": ["correct", "incorrect"]}, "1+1\n=2", "1+1\n=3",
            prompt="steps"),
        row("chat", {"choice": "c", "strength": None}, "one", "two", "three", prompt=prompt("a", "b", "c"),
            acquisition=Acquisition("random", 0.5, 0.25), created_at=1_700_000_000_000),
    ]  # fmt: skip
