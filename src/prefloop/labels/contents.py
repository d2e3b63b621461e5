"""The texts of a task. They never change, and several people are shown them one after the other: the last are remembered."""

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.labels.schema import completion, prompt, task

MOST = 2000
LONGEST = 50_000
"""Characters of what is remembered; the longest texts are the rarest."""


@dataclass(frozen=True)
class Content:
    """What a task is about."""

    messages: list[dict[str, Any]]
    texts: tuple[str, ...]
    """In the task's own order."""

    @property
    def characters(self) -> int:
        """How much there is to read."""
        return sum(map(len, self.texts)) + sum(len(one["content"]) for one in self.messages)


_known: "weakref.WeakKeyDictionary[sa.Engine, OrderedDict[str, Content]]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def task_content(connection: sa.Connection, task_id: str) -> Content:
    """The prompt and the completions of a task."""
    with _lock:
        known = _known.setdefault(connection.engine, OrderedDict())
        if (found := known.get(task_id)) is not None:
            known.move_to_end(task_id)
            return found
    found = _read(connection, task_id)
    if found.characters <= LONGEST:
        with _lock:
            known[task_id] = found
            while len(known) > MOST:
                known.popitem(last=False)
    return found


_ASKED = (
    sa.select(task.c.completion_ids, prompt.c.messages)
    .outerjoin(prompt, prompt.c.id == task.c.prompt_id)
    .where(task.c.id == sa.bindparam("task"))
)
_TEXTS = sa.select(completion.c.id, completion.c.text).where(
    completion.c.id.in_(sa.bindparam("ids", expanding=True))
)


def _read(connection: sa.Connection, task_id: str) -> Content:
    asked = connection.execute(_ASKED, {"task": task_id}).one()
    found = {row.id: row.text for row in connection.execute(_TEXTS, {"ids": asked.completion_ids})}
    return Content(asked.messages or [], tuple(found[one] for one in asked.completion_ids))
