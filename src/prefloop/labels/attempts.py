"""How the answers of a turn come: who generates takes an attempt, and brings answers or an error back.

No transaction is open in between. The answers of a turn are stored together, in one change, so they appear together. An
attempt ends when its time is over; then another server may take the next one, and what the first still brings is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from prefloop.labels.conversations import (
    Conversation,
    Turn,
    add_task,
    change_turn,
    loaded,
    options_of,
    source_of,
)
from prefloop.labels.projects import ChatOptions, Kind
from prefloop.labels.schema import completion, conversation, turn
from prefloop.labels.written import note_author
from prefloop.records import Completion, FinishReason, Message, Prompt, content_id

CHARACTERS_PER_TOKEN = 4
"""Where a source does not tell how many tokens it wrote."""


@dataclass(frozen=True)
class Draw:
    """One answer that is wanted."""

    policy: str
    seed: int


@dataclass(frozen=True)
class Attempt:
    """Answers that somebody has taken on to bring."""

    conversation_id: str
    number: int
    attempt: int
    messages: tuple[Message, ...]
    draws: tuple[Draw, ...]
    options: ChatOptions


@dataclass(frozen=True)
class Answered:
    """One answer as it came."""

    text: str
    seed: int
    finish_reason: FinishReason | None = None
    token_ids: tuple[int, ...] | None = None
    token_logps: tuple[float, ...] | None = None
    latency_ms: int | None = None
    names: tuple[str, ...] = ()
    """Names of vendors or models in it."""

    @property
    def num_tokens(self) -> int:
        """How long it is; an estimate where the source does not say."""
        if self.token_ids is not None:
            return len(self.token_ids)
        return -(-len(self.text) // CHARACTERS_PER_TOKEN)


def unfinished(connection: sa.Connection, now: int) -> list[tuple[str, int]]:
    """Turns that wait for answers while no server is at them."""
    rows = connection.execute(
        sa.select(turn.c.conversation_id, turn.c.number)
        .join(conversation, conversation.c.id == turn.c.conversation_id)
        .where(turn.c.state == "waiting", conversation.c.state == "open")
        .where(sa.or_(turn.c.busy_until.is_(None), turn.c.busy_until <= now))
        .order_by(turn.c.created_at)
    )
    return [(row.conversation_id, row.number) for row in rows]


def forget_attempts(connection: sa.Connection) -> None:
    """What a server that is no more had taken on is free again. For a store that has one server."""
    connection.execute(sa.update(turn).where(turn.c.state == "waiting").values(busy_until=None))


def begin_attempt(
    connection: sa.Connection, now: int, conversation_id: str, number: int, *, until: int
) -> Attempt | None:
    """Takes on the answers of a turn until a time; None where somebody else has, or nothing is to be done."""
    row = connection.execute(
        sa.select(conversation).where(conversation.c.id == conversation_id).with_for_update()
    ).first()
    if row is None or row.state != "open":
        return None
    place = (turn.c.conversation_id == conversation_id, turn.c.number == number)
    taken = connection.execute(
        sa.update(turn)
        .where(*place, turn.c.state == "waiting")
        .where(sa.or_(turn.c.busy_until.is_(None), turn.c.busy_until <= now))
        .values(busy_until=until, attempts=turn.c.attempts + 1)
    )
    if taken.rowcount != 1:
        return None
    found = loaded(connection, row)
    one = found.turns[number - 1]
    options = options_of(connection, found.project_id)
    count = options.num_completions if found.kind == "live" else options.probe_completions
    return Attempt(
        conversation_id,
        number,
        one.attempts,
        found.messages(number),
        tuple(_draw(found, one, place, count) for place in range(count)),
        options,
    )


def _draw(found: Conversation, one: Turn, place: int, count: int) -> Draw:
    """Pinned policies take turns, so that each answers about equally often."""
    named = found.policies[((one.number - 1) * count + place) % len(found.policies)]
    return Draw(named, drawn_seed(found.id, one.number, one.attempts, place))


def drawn_seed(*parts: object) -> int:
    """A seed that any server takes, of 31 bits."""
    return int(content_id("chat", *parts), 16) >> 33


def reveal(connection: sa.Connection, now: int, attempt: Attempt, answers: Sequence[Answered]) -> bool:
    """Stores all answers of a turn at once, to be seen from now on; False where they come too late."""
    row = _attempted(connection, attempt)
    if row is None:
        return False
    found = loaded(connection, row)
    one = found.turns[attempt.number - 1]
    prompt_id = note_author(
        connection, attempt.messages, row.annotator_id, source=source_of(found), group=found.id
    )
    asked = Prompt(id=prompt_id, messages=attempt.messages, source=source_of(found))
    rows = [_completion_row(attempt, place, answered, prompt_id) for place, answered in enumerate(answers)]
    connection.execute(sa.insert(completion), rows)
    tokens = sum(answered.num_tokens for answered in answers)
    values: dict[str, Any] = {"num_tokens": turn.c.num_tokens + tokens, "shown_at": now, "busy_until": None}
    if len(rows) == 1:
        values |= {"state": "chosen", "chosen_id": rows[0]["id"]}
    else:
        texts = tuple(Completion(id=one["id"], prompt_id=prompt_id, text=one["text"]) for one in rows)
        payload = {"attempt": attempt.attempt}
        if named := {place: list(answered.names) for place, answered in enumerate(answers) if answered.names}:
            payload |= {"names": named}
        kind: Kind = "pairwise" if len(rows) == 2 else "rank"
        values |= {
            "state": "shown",
            "task_id": add_task(connection, now, found, row.annotator_id, one, kind, asked, texts, payload),
        }
    change_turn(connection, found.id, one.number, **values)
    return True


def fail(connection: sa.Connection, attempt: Attempt, error: str) -> None:
    """Notes that a turn got no answers; the turn stays."""
    if _attempted(connection, attempt) is not None:
        change_turn(
            connection,
            attempt.conversation_id,
            attempt.number,
            state="failed",
            error=error[:2000],
            busy_until=None,
        )


def _attempted(connection: sa.Connection, attempt: Attempt) -> sa.Row[Any] | None:
    """The conversation, held, if the attempt is still the one that its turn waits for."""
    row = connection.execute(
        sa.select(conversation).where(conversation.c.id == attempt.conversation_id).with_for_update()
    ).one()
    waits = connection.execute(
        sa.select(turn.c.number).where(
            turn.c.conversation_id == attempt.conversation_id,
            turn.c.number == attempt.number,
            turn.c.state == "waiting",
            turn.c.attempts == attempt.attempt,
        )
    ).first()
    return row if waits is not None and row.state == "open" else None


def _completion_row(attempt: Attempt, place: int, answered: Answered, prompt_id: str) -> dict[str, Any]:
    logps = answered.token_logps
    return {
        "id": content_id("chat", attempt.conversation_id, attempt.number, attempt.attempt, place),
        "prompt_id": prompt_id,
        "policy_id": attempt.draws[place].policy,
        "text": answered.text,
        "sampling": {"temperature": attempt.options.temperature, "seed": answered.seed},
        "sequence_logp": None if logps is None else sum(logps),
        "num_tokens": None if answered.token_ids is None else len(answered.token_ids),
        "token_ids": None if answered.token_ids is None else list(answered.token_ids),
        "token_logps": None if logps is None else list(logps),
        "finish_reason": answered.finish_reason,
        "latency_ms": answered.latency_ms,
    }
