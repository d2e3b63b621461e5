"""Prompts that people write, as tasks or as turns of conversations, and how they reach the next iteration.

A prompt keeps its author: when answers to it are published as tasks, the author is not among those who may judge them,
however the prompt has travelled in between, since its id is the hash of its words.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from prefloop.labels.publish import NewTask, publish_tasks
from prefloop.labels.schema import judgement, prompt, task
from prefloop.records import Message, Prompt

USE_CASES = (
    *(
        "generation",
        "open_qa",
        "brainstorming",
        "chat",
        "rewrite",
        "summarization",
        "classification",
        "closed_qa",
    ),
    *("extract", "other"),
)
"""Of InstructGPT (arXiv:2203.02155, Table 1)."""
INSTRUCTION = "Write a prompt for an assistant."


@dataclass(frozen=True)
class Written:
    """A prompt as somebody wrote it."""

    prompt: Prompt
    author_id: str
    group: str
    """Of whom or of which conversation; prompts of a group belong into one split."""
    use_case: str = ""
    style: str = ""
    is_sensitive: bool = False


def ask_for_prompts(
    connection: sa.Connection,
    now: int,
    project_id: str,
    count: int,
    *,
    instruction: str = INSTRUCTION,
    use_case: str = "",
    is_sensitive: bool = False,
    round_id: str | None = None,
) -> list[str]:
    """Publishes so many tasks in which somebody writes a prompt; returns their ids. `use_case` asks for one of its kind."""
    asked = Prompt.of((Message(role="user", content=instruction),), source="instruction")
    payload = {"use_case": use_case} if use_case else None
    tasks = (
        NewTask(asked, kind="prompt", payload=payload, overlap=1, ai_overlap=0, is_sensitive=is_sensitive)
        for _ in range(count)
    )
    return publish_tasks(connection, now, project_id, tasks, round_id=round_id)


def written_messages(value: Mapping[str, Any]) -> tuple[Message, ...]:
    """The turns of a prompt that was written: its examples as turns before it."""
    turns: list[Message] = []
    for query, answer in value.get("examples", ()):
        turns += [Message(role="user", content=query), Message(role="assistant", content=answer)]
    return (*turns, Message(role="user", content=value["text"]))


def note_author(
    connection: sa.Connection,
    messages: Sequence[Message],
    author_id: str,
    *,
    source: str,
    group: str = "",
    is_sensitive: bool = False,
) -> str:
    """Keeps a prompt with the person who wrote it; returns its id. Who wrote it first stays its author."""
    made = Prompt.of(tuple(messages), source=source)
    said = " ".join(made.text.lower().split())
    values = {
        "id": made.id,
        "messages": [one.model_dump() for one in made.messages],
        "source": source,
        "user_hash": group_hash(group or author_id),
        "safety_tag": "sensitive" if is_sensitive else "",
        "dedupe_hash": hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        "author_id": author_id,
    }
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(dialect.insert(prompt).values(values).on_conflict_do_nothing())
    connection.execute(
        sa.update(prompt)
        .where(prompt.c.id == made.id, prompt.c.author_id.is_(None))
        .values(author_id=author_id)
    )
    return made.id


def group_hash(group: str) -> str:
    """Stands for a person or a conversation where splits are made, and says nothing about them."""
    return hashlib.sha256(f"prompt group/{group}".encode()).hexdigest()[:16]


def written_prompts(
    connection: sa.Connection, project_id: str, *, watermark: int | None = None
) -> list[Written]:
    """The prompts that people wrote in `prompt` tasks and in conversations, each once, the oldest first.

    Those of tasks as they stand at the watermark; of conversations the turns whose answers were judged up to it.
    """
    newer = judgement.alias("newer")
    upto = sa.true() if watermark is None else judgement.c.id <= watermark
    newer_upto = sa.true() if watermark is None else newer.c.id <= watermark
    rows = connection.execute(
        sa.select(judgement, task.c.kind.label("task_kind"), task.c.payload, task.c.is_sensitive, prompt)
        .join(task, task.c.id == judgement.c.task_id)
        .join(prompt, prompt.c.id == task.c.prompt_id)
        .where(task.c.project_id == project_id, judgement.c.state == "valid", upto)
        .where(sa.or_(task.c.kind == "prompt", task.c.strategy.in_(["chat", "probe"])))
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id, newer_upto))
        .order_by(judgement.c.id)
    ).all()
    found: dict[str, Written] = {}
    for row in rows:
        one = _of_task(row) if row.task_kind == "prompt" else _of_turn(row)
        found.setdefault(one.prompt.id, one)
    return list(found.values())


def _of_task(row: sa.Row[Any]) -> Written:
    value = row.value
    return Written(
        Prompt.of(written_messages(value), source=f"written:{row.project_id}"),
        row.annotator_id,
        group_hash(row.annotator_id),
        value.get("use_case", ""),
        value.get("style", "plain"),
        bool(value.get("is_sensitive")) or row.is_sensitive,
    )


def _of_turn(row: sa.Row[Any]) -> Written:
    messages = tuple(Message.model_validate(one) for one in row.messages)
    return Written(
        Prompt.of(messages, source=row.source),
        row.annotator_id,
        row.user_hash or group_hash(row.payload["conversation"]),
        "chat",
        "chat",
        row.is_sensitive,
    )
