"""What is to be judged goes into the store: projects, rounds, and tasks with their prompts and completions."""

import functools
import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import sqlalchemy as sa
import yaml
from sqlalchemy.dialects import postgresql, sqlite

from prefloop.labels.errors import Conflict, Invalid, NotFound
from prefloop.labels.projects import COMPLETIONS, Kind, ProjectConfig
from prefloop.labels.schema import completion, gold, guideline, policy, project, prompt, round_, task
from prefloop.records import Completion, Prompt

PROJECT_ID = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")
ROWS_A_STATEMENT = 500


@dataclass(frozen=True)
class NewTask:
    """A task to publish. The order of its completions is the one that stored values speak about."""

    prompt: Prompt
    completions: tuple[Completion, ...] = ()
    kind: Kind | None = None
    """Left out, it is the project's."""
    id: str = ""
    """Left out, it is drawn. A task of the same id is published once."""
    payload: Mapping[str, Any] | None = None
    overlap: int | None = None
    ai_overlap: int | None = None
    priority: float = 0.0
    strategy: str = ""
    score: float | None = None
    probability: float | None = None
    reward_p: float | None = None
    reward_confidence: float | None = None
    author_id: str | None = None
    for_annotator: str | None = None
    repeat_of: str | None = None
    """Of a gold task, the judged one that it was made of; who judged that one does not get it."""
    skill: str = ""
    lang: str = ""
    is_sensitive: bool = False
    expected: Mapping[str, Any] | None = None
    """The known value, which makes it a gold task."""
    tolerance: int = 0
    """By how many steps of strength or rating an answer to a gold task may differ."""
    why: str = ""
    """What people are told who got a gold task wrong."""
    tags: tuple[str, ...] = field(default=())
    split: str = "train"


# --- projects and rounds -----------------------------------------------------------------------------------------------


def add_project(
    connection: sa.Connection,
    now: int,
    project_id: str,
    config: ProjectConfig,
    *,
    title: str = "",
    guidelines: str = "",
    source: str = "",
) -> None:
    """A new project. Raises Invalid for an id that cannot stand in an address, Conflict for one that is taken."""
    if not PROJECT_ID.match(project_id):
        raise Invalid(f"project {project_id!r}: use small letters, digits, dots, dashes; 64 at most")
    if connection.execute(sa.select(project.c.id).where(project.c.id == project_id)).first() is not None:
        raise Conflict(f"there is a project {project_id} already")
    connection.execute(
        sa.insert(project).values(
            id=project_id,
            title=title or project_id,
            config=config.model_dump_json(exclude_defaults=True),
            config_source=source,
            created_at=now,
        )
    )
    if guidelines:
        publish_guidelines(connection, now, project_id, guidelines)


def project_config(connection: sa.Connection, project_id: str) -> ProjectConfig:
    """The configuration of a project. Raises NotFound."""
    text = connection.execute(sa.select(project.c.config).where(project.c.id == project_id)).scalar()
    if text is None:
        raise NotFound(f"there is no project {project_id}")
    return parsed_config(text)


@functools.lru_cache(maxsize=256)
def parsed_config(text: str) -> ProjectConfig:
    """A configuration as it is stored."""
    return ProjectConfig.model_validate_json(text)


def configure_project(
    connection: sa.Connection, project_id: str, config: ProjectConfig, *, source: str = ""
) -> None:
    """Gives a project another configuration; tasks that are published keep their kind and overlap. Raises NotFound."""
    project_config(connection, project_id)
    changed = config.model_dump_json(exclude_defaults=True)
    connection.execute(
        sa.update(project).where(project.c.id == project_id).values(config=changed, config_source=source)
    )


def project_source(connection: sa.Connection, project_id: str) -> str:
    """The YAML of a project: as it was written, or what differs from the defaults. Raises NotFound."""
    config = project_config(connection, project_id)
    written = connection.execute(
        sa.select(project.c.config_source).where(project.c.id == project_id)
    ).scalar_one()
    if written:
        return written
    differs = config.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(differs, sort_keys=False, allow_unicode=True) if differs else ""


def publish_guidelines(connection: sa.Connection, now: int, project_id: str, text: str) -> int:
    """A new version of what people read before they judge; returns its number. The same text again is no new one."""
    newest = connection.execute(
        sa.select(guideline)
        .where(guideline.c.project_id == project_id)
        .order_by(guideline.c.version.desc())
        .limit(1)
    ).first()
    if newest is not None and newest.text == text:
        return newest.version
    version = 1 if newest is None else newest.version + 1
    connection.execute(
        sa.insert(guideline).values(project_id=project_id, version=version, text=text, created_at=now)
    )
    connection.execute(sa.update(project).where(project.c.id == project_id).values(guideline_version=version))
    return version


def open_round(connection: sa.Connection, now: int, project_id: str, number: int, **about: Any) -> str:
    """The id of the round of this number, opened where it is new. `about`: policy_in, reward_in, budget_cents."""
    found = connection.execute(
        sa.select(round_.c.id).where(round_.c.project_id == project_id, round_.c.number == number)
    ).scalar()
    if found is not None:
        return found
    budget = about.pop("budget_cents", None)
    if budget is None:
        budget = project_config(connection, project_id).budget_cents
    round_id = secrets.token_hex(8)
    connection.execute(
        sa.insert(round_).values(
            id=round_id, project_id=project_id, number=number, opened_at=now, budget_cents=budget, **about
        )
    )
    return round_id


# --- tasks -----------------------------------------------------------------------------------------------------------


def publish_tasks(
    connection: sa.Connection,
    now: int,
    project_id: str,
    tasks: Iterable[NewTask],
    *,
    round_id: str | None = None,
) -> list[str]:
    """Puts tasks into a project, in order; returns their ids. Those that are there already stay as they are.

    Raises Invalid for a number of completions that a kind of task cannot show.
    """
    config = project_config(connection, project_id)
    version = connection.execute(
        sa.select(project.c.guideline_version).where(project.c.id == project_id)
    ).scalar_one()
    ordinal = connection.execute(
        sa.select(sa.func.coalesce(sa.func.max(task.c.ordinal), -1)).where(task.c.project_id == project_id)
    ).scalar_one()
    ids: list[str] = []
    for some in _batches(tasks):
        _insert_new(connection, prompt, [_prompt_row(one) for one in some])
        _insert_new(
            connection, completion, [_completion_row(text) for one in some for text in one.completions]
        )
        _insert_new(connection, policy, list(_policy_rows(some)))
        authors = _authors(connection, some)
        rows = []
        for one in some:
            ordinal += 1
            row = _task_row(one, config, now, project_id, round_id, ordinal, version)
            rows.append(row | {"author_id": one.author_id or authors.get(one.prompt.id)})
        _insert_new(connection, task, rows)
        known = [(row["id"], one) for row, one in zip(rows, some, strict=True) if one.expected is not None]
        _insert_new(
            connection,
            gold,
            [
                {"task_id": id, "expected": one.expected, "tolerance": one.tolerance, "why": one.why}
                for id, one in known
            ],
            key="task_id",
        )
        ids += [row["id"] for row in rows]
    forget_cursors(connection, project_id)
    return ids


def forget_cursors(connection: sa.Connection, project_id: str) -> None:
    """To be called, last in a transaction, by what gives a project tasks, or tasks room, that members may have passed."""
    connection.execute(
        sa.update(project)
        .where(project.c.id == project_id)
        .values(cursor_version=project.c.cursor_version + 1)
    )


def _batches(tasks: Iterable[NewTask]) -> Iterator[Sequence[NewTask]]:
    remaining = iter(tasks)
    while some := list(islice(remaining, ROWS_A_STATEMENT)):
        yield some


def _insert_new(
    connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]], *, key: str = "id"
) -> None:
    """Inserts what is not there; equal ids have equal contents."""
    if not rows:
        return
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    once = {row[key]: row for row in rows}
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), list(once.values()))


def _authors(connection: sa.Connection, tasks: Sequence[NewTask]) -> dict[str, str]:
    """Who of our people wrote which of these prompts."""
    rows = connection.execute(
        sa.select(prompt.c.id, prompt.c.author_id).where(
            prompt.c.id.in_({one.prompt.id for one in tasks}), prompt.c.author_id.is_not(None)
        )
    )
    return {row.id: row.author_id for row in rows}


def _prompt_row(one: NewTask) -> dict[str, Any]:
    messages = [message.model_dump() for message in one.prompt.messages]
    said = re.sub(r"\W+", " ", one.prompt.text.lower()).strip()
    return {
        "id": one.prompt.id,
        "messages": messages,
        "answer": one.prompt.answer,
        "source": one.prompt.source,
        "split": one.split,
        "tags": list(one.tags),
        "lang": one.lang,
        "safety_tag": "sensitive" if one.is_sensitive else "",
        "dedupe_hash": hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16],
    }


def _completion_row(text: Completion) -> dict[str, Any]:
    return {
        "id": text.id,
        "prompt_id": text.prompt_id,
        "policy_id": text.policy,
        "text": text.text,
        "sampling": None if text.sampling is None else text.sampling.model_dump(),
        "sequence_logp": None if text.token_logps is None else sum(text.token_logps),
        "num_tokens": None if text.token_ids is None else len(text.token_ids),
        "finish_reason": text.finish_reason,
    }


def _policy_rows(tasks: Sequence[NewTask]) -> Iterator[dict[str, Any]]:
    for one in tasks:
        for text in one.completions:
            if text.policy:
                yield {"id": text.policy, "digest": text.policy, "iteration": text.policy_version}


def _task_row(
    one: NewTask,
    config: ProjectConfig,
    now: int,
    project_id: str,
    round_id: str | None,
    ordinal: int,
    version: int,
) -> dict[str, Any]:
    kind = one.kind or config.kind
    if len(one.completions) not in COMPLETIONS[kind]:
        can = COMPLETIONS[kind]
        number = can.start if len(can) == 1 else f"{can.start} to {can.stop - 1}"
        raise Invalid(
            f"prompt {one.prompt.id}: a {kind} task shows {number} completions, not {len(one.completions)}"
        )
    return {
        "id": one.id or secrets.token_hex(8),
        "project_id": project_id,
        "round_id": round_id,
        "kind": kind,
        "prompt_id": one.prompt.id,
        "completion_ids": [text.id for text in one.completions],
        "payload": None if one.payload is None else dict(one.payload),
        "overlap": config.overlap if one.overlap is None else one.overlap,
        "ai_overlap": config.ai_overlap if one.ai_overlap is None else one.ai_overlap,
        "priority": one.priority,
        "ordinal": ordinal,
        "strategy": one.strategy or ("gold" if one.expected is not None else ""),
        "score": one.score,
        "probability": one.probability,
        "reward_p": one.reward_p,
        "reward_confidence": one.reward_confidence,
        "guideline_version": version,
        "is_gold": one.expected is not None,
        "is_sensitive": one.is_sensitive,
        "for_annotator": one.for_annotator,
        "repeat_of": one.repeat_of,
        "skill": one.skill,
        "lang": one.lang,
        "created_at": now,
    }
