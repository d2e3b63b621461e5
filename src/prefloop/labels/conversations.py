"""What a conversation is: its turns, its pinned policies, and how it is read from the store.

A turn is waiting (for its answers), shown, chosen, rejected (no answer was good enough) or failed (there was none).
What people do with conversations is in `chats`, how their answers come in `attempts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from prefloop.labels.errors import NotFound
from prefloop.labels.people import Person
from prefloop.labels.projects import ChatOptions, Kind
from prefloop.labels.publish import NewTask, project_config, publish_tasks
from prefloop.labels.schema import completion, conversation, round_, task, turn
from prefloop.records import Completion, Message, Prompt

ConversationKind = Literal["live", "probe"]
TurnState = Literal["waiting", "shown", "chosen", "rejected", "failed"]
TASKS_BEGIN = 2**53
"""A time that never comes: claims do not hand out the tasks of conversations, which take them themselves."""


@dataclass(frozen=True)
class Turn:
    """What a person wrote and what became of it."""

    number: int
    text: str
    key: str
    state: TurnState
    answer: str | None
    """The text that the conversation goes on with."""
    task_id: str | None
    chosen_id: str | None
    attempts: int
    renewed: int


@dataclass(frozen=True)
class Conversation:
    """A conversation with its turns, as its person may know it, and the policies, which they may not."""

    id: str
    project_id: str
    kind: ConversationKind
    policies: tuple[str, ...]
    rule: tuple[str, str] | None
    """Id and words of the rule that is probed."""
    is_open: bool
    ending: Mapping[str, Any] | None
    created_at: int
    turns: tuple[Turn, ...]

    @property
    def last(self) -> Turn | None:
        """The turn that it stands at."""
        return self.turns[-1] if self.turns else None

    def messages(self, number: int) -> tuple[Message, ...]:
        """The transcript up to a turn of the person, that one included."""
        said: list[Message] = []
        for one in self.turns[:number]:
            said.append(Message(role="user", content=one.text))
            if one.number < number and one.answer is not None:
                said.append(Message(role="assistant", content=one.answer))
        return tuple(said)


def options_of(connection: sa.Connection, project_id: str) -> ChatOptions:
    options = project_config(connection, project_id).chat
    if options is None:
        raise NotFound("there are no conversations in this project")
    return options


def source_of(found: Conversation) -> str:
    return f"{'chat' if found.kind == 'live' else 'probe'}:{found.project_id}"


def find(connection: sa.Connection, conversation_id: str, person: Person) -> Conversation:
    """A conversation of this person. Raises NotFound for another's, as if there were none."""
    return loaded(connection, _row(connection, _of(conversation_id, person)))


def own_row(connection: sa.Connection, conversation_id: str, person: Person) -> sa.Row[Any]:
    """The same as a row, held against other changes of it until the end of the transaction."""
    return _row(connection, _of(conversation_id, person).with_for_update())


def _of(conversation_id: str, person: Person) -> sa.Select[Any]:
    return sa.select(conversation).where(
        conversation.c.id == conversation_id, conversation.c.annotator_id == person.id
    )


def _row(connection: sa.Connection, wanted: sa.Select[Any]) -> sa.Row[Any]:
    row = connection.execute(wanted).first()
    if row is None:
        raise NotFound("there is no such conversation of yours")
    return row


def loaded(connection: sa.Connection, row: sa.Row[Any]) -> Conversation:
    turns = connection.execute(
        sa.select(turn, completion.c.text.label("answer"))
        .outerjoin(completion, completion.c.id == turn.c.chosen_id)
        .where(turn.c.conversation_id == row.id)
        .order_by(turn.c.number)
    )
    rule = (row.payload or {}).get("rule")
    return Conversation(
        row.id,
        row.project_id,
        row.kind,
        tuple(row.policies),
        None if rule is None else (rule["id"], rule["text"]),
        row.state == "open",
        row.ending,
        row.created_at,
        tuple(
            Turn(
                one.number,
                one.text,
                one.key,
                one.state,
                one.answer,
                one.task_id,
                one.chosen_id,
                one.attempts,
                one.renewed,
            )
            for one in turns
        ),
    )


def change_turn(connection: sa.Connection, conversation_id: str, number: int, **values: Any) -> None:
    connection.execute(
        sa.update(turn)
        .where(turn.c.conversation_id == conversation_id, turn.c.number == number)
        .values(**values)
    )


def add_task(
    connection: sa.Connection,
    now: int,
    found: Conversation,
    annotator_id: str,
    one: Turn,
    kind: Kind,
    asked: Prompt,
    texts: tuple[Completion, ...],
    payload: Mapping[str, Any],
) -> str:
    """A task of this person alone about a turn, in the round that is open."""
    open_round = connection.execute(
        sa.select(round_.c.id)
        .where(round_.c.project_id == found.project_id, round_.c.state == "open")
        .order_by(round_.c.number.desc())
        .limit(1)
    ).scalar()
    made = NewTask(
        asked,
        texts,
        kind=kind,
        payload={"conversation": found.id, "turn": one.number, **payload},
        overlap=1,
        ai_overlap=0,
        strategy="chat" if found.kind == "live" else "probe",
        for_annotator=annotator_id,
        is_sensitive=found.kind == "probe",
    )
    (task_id,) = publish_tasks(connection, now, found.project_id, [made], round_id=open_round)
    connection.execute(sa.update(task).where(task.c.id == task_id).values(not_before=TASKS_BEGIN))
    return task_id
