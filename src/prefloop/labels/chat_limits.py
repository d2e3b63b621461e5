"""How far conversations go: turns, characters, tokens, and texts that may disturb.

Tokens are those that policies write, all answers of a turn together; where a source does not say how many, an estimate.
"""

import sqlalchemy as sa

from prefloop.labels.answers import DAY_MS
from prefloop.labels.conversations import Conversation, options_of
from prefloop.labels.errors import Conflict, Forbidden, Invalid
from prefloop.labels.people import Person
from prefloop.labels.projects import ChatOptions
from prefloop.labels.schema import conversation, judgement, round_, task, turn


def check_turn(
    connection: sa.Connection, now: int, found: Conversation, person: Person, options: ChatOptions, text: str
) -> None:
    """Raises Invalid for what is no turn, Conflict where there is no room for one, Forbidden past a day's share."""
    if not text.strip():
        raise Invalid("text: write something")
    if len(text) > options.max_characters:
        raise Invalid(f"text: {len(text)} characters; this project takes {options.max_characters} at most")
    if len(found.turns) >= options.max_turns:
        raise Conflict(f"a conversation has {options.max_turns} turns at most; end this one")
    if tokens_of(connection, found.id) >= options.max_tokens:
        raise Conflict("this conversation is as long as it may become; end this one")
    check_day(connection, now, found.project_id, person, options)
    _check_budget(connection, found.project_id)
    if found.kind == "probe":
        check_exposure(connection, now, person)


def _check_budget(connection: sa.Connection, project_id: str) -> None:
    spent = sa.select(round_.c.id).where(
        round_.c.project_id == project_id,
        round_.c.state == "open",
        round_.c.spent_cents + round_.c.reserved_cents >= round_.c.budget_cents,
    )
    if connection.execute(spent).first() is not None:
        raise Forbidden("the budget of this round is spent: nothing more can be paid in it")


def tokens_of(connection: sa.Connection, conversation_id: str) -> int:
    """What policies have written in a conversation."""
    return connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(turn.c.num_tokens), 0)).where(
            turn.c.conversation_id == conversation_id
        )
    ).scalar_one()


def is_full(connection: sa.Connection, found: Conversation) -> bool:
    """Whether there is no room for another turn."""
    options = options_of(connection, found.project_id)
    return len(found.turns) >= options.max_turns or tokens_of(connection, found.id) >= options.max_tokens


def check_day(
    connection: sa.Connection, now: int, project_id: str, person: Person, options: ChatOptions
) -> None:
    """Raises Forbidden where policies have written enough for a person in 24 hours."""
    spent = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(turn.c.num_tokens), 0)).where(
            turn.c.conversation_id == conversation.c.id,
            conversation.c.annotator_id == person.id,
            conversation.c.project_id == project_id,
            turn.c.created_at > now - DAY_MS,
        )
    ).scalar_one()
    if spent >= options.max_tokens_per_day:
        raise Forbidden(
            "the policies have written as much for you in 24 hours as this project allows; go on tomorrow"
        )


def check_exposure(connection: sa.Connection, now: int, person: Person) -> None:
    """Raises Forbidden for who has not opted in to disturbing texts, or has seen enough of them today."""
    if not person.exposure_cap:
        raise Forbidden(
            "probing rules is for those who chose to see such texts; you can choose it in your account"
        )
    if exposures(connection, now, person) >= person.exposure_cap:
        raise Forbidden("you have seen as many such texts in 24 hours as you chose; please do something else")


def exposures(connection: sa.Connection, now: int, person: Person) -> int:
    """Texts that may disturb, which somebody has seen in 24 hours: judged tasks, and answers while a rule was probed."""
    judged = sa.select(sa.func.count()).where(
        judgement.c.task_id == task.c.id,
        judgement.c.annotator_id == person.id,
        judgement.c.created_at > now - DAY_MS,
        judgement.c.revision == 0,
        task.c.is_sensitive,
        task.c.strategy != "probe",
    )
    probed = sa.select(sa.func.count()).where(
        turn.c.conversation_id == conversation.c.id,
        conversation.c.annotator_id == person.id,
        conversation.c.kind == "probe",
        turn.c.created_at > now - DAY_MS,
    )
    return connection.execute(judged).scalar_one() + connection.execute(probed).scalar_one()
