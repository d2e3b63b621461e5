"""What people do in live conversations: start, say, choose, ask for other answers, improve one, end.

A conversation pins its policies when it starts, and keeps them whatever is promoted meanwhile. A turn is stored before
anything is asked of a policy. A choice is a task of its person alone, claimed and answered through `queue` like any other,
and the conversation follows what was said there.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from prefloop.labels import queue
from prefloop.labels.chat_limits import check_day, check_exposure, check_turn, tokens_of
from prefloop.labels.conversations import (
    Conversation,
    ConversationKind,
    Turn,
    add_task,
    change_turn,
    find,
    loaded,
    options_of,
    own_row,
    source_of,
)
from prefloop.labels.errors import Conflict, Forbidden, Invalid, NotFound
from prefloop.labels.people import Person
from prefloop.labels.projects import Kind
from prefloop.labels.publish import project_config
from prefloop.labels.queue import Lease, Submission
from prefloop.labels.schema import completion, conversation, judgement, lease, policy, project, task, turn
from prefloop.labels.written import note_author
from prefloop.records import Completion, Prompt, content_id

UNSERVED = frozenset({"retired", "rejected"})
"""States of policies that no new conversation is with."""


# --- starting ------------------------------------------------------------------------------------------------------------


def start(
    connection: sa.Connection,
    now: int,
    project_id: str,
    person: Person,
    kind: ConversationKind,
    served: Mapping[str, str],
) -> str:
    """The id of this person's open conversation of the kind, or of a new one. `served` has the addresses of the policies.

    Raises NotFound, Forbidden where somebody may not, Conflict where no policy can answer.
    """
    options = options_of(connection, project_id)
    if person.kind != "human":
        raise Forbidden("conversations are for people")
    queue.admit(connection, project_id, person)
    mine = (conversation.c.project_id == project_id, conversation.c.annotator_id == person.id)
    found = connection.execute(
        sa.select(conversation.c.id).where(*mine, conversation.c.kind == kind, conversation.c.state == "open")
    ).scalar()
    if found is not None:
        return found
    state = connection.execute(sa.select(project.c.state).where(project.c.id == project_id)).scalar_one()
    if state != "open":
        raise Conflict("this project is closed")
    payload = None
    if kind == "probe":
        check_exposure(connection, now, person)
        payload = {"rule": _drawn_rule(connection, project_id)}
    check_day(connection, now, project_id, person, options)
    conversation_id = secrets.token_hex(8)
    connection.execute(
        sa.insert(conversation).values(
            id=conversation_id,
            project_id=project_id,
            annotator_id=person.id,
            kind=kind,
            policies=_pin(connection, served),
            payload=payload,
            created_at=now,
        )
    )
    return conversation_id


def _pin(connection: sa.Connection, served: Mapping[str, str]) -> list[str]:
    """The policies of a new conversation: those that are served and have not been replaced."""
    rows = connection.execute(sa.select(policy.c.id, policy.c.state).where(policy.c.id.in_(list(served))))
    known = {row.id: row.state for row in rows}
    pinned = [name for name in served if known.get(name) not in UNSERVED]
    if not pinned:
        raise Conflict("no policy is there to talk with; the lead has to serve one")
    new = [{"id": name, "uri": served[name], "state": "current"} for name in pinned if name not in known]
    if new:
        connection.execute(sa.insert(policy), new)
    return pinned


def _drawn_rule(connection: sa.Connection, project_id: str) -> dict[str, str]:
    rules = project_config(connection, project_id).rules
    if not rules:
        raise NotFound("this project has no rules to probe")
    return secrets.choice(rules).model_dump(include={"id", "text"})


def conversations_of(connection: sa.Connection, project_id: str, person: Person) -> list[Conversation]:
    """The conversations of a person in a project, the newest first."""
    ids = connection.execute(
        sa.select(conversation.c.id)
        .where(conversation.c.project_id == project_id, conversation.c.annotator_id == person.id)
        .order_by(conversation.c.created_at.desc(), conversation.c.id)
        .limit(50)
    ).scalars()
    return [find(connection, one, person) for one in ids]


# --- a turn --------------------------------------------------------------------------------------------------------------


def say(
    connection: sa.Connection, now: int, conversation_id: str, person: Person, key: str, text: str
) -> Turn:
    """Stores what a person says next; the same key again is the same turn.

    Raises NotFound, Conflict where it is not their turn, Invalid past a limit, Forbidden past one of the day.
    """
    row = own_row(connection, conversation_id, person)
    known = connection.execute(sa.select(turn).where(turn.c.key == key)).first()
    if known is not None:
        if known.conversation_id != conversation_id or known.text != text:
            raise Conflict("another turn was sent under this key; load the page again")
        return loaded(connection, row).turns[known.number - 1]
    found = settle(connection, row)
    _must_be_open(found)
    if found.last is not None and found.last.state != "chosen":
        raise Conflict("the last turn is not finished: wait for its answers, and choose one")
    options = options_of(connection, found.project_id)
    check_turn(connection, now, found, person, options, text)
    number = len(found.turns) + 1
    connection.execute(
        sa.insert(turn).values(conversation_id=row.id, number=number, text=text, key=key, created_at=now)
    )
    found = loaded(connection, row)
    note_author(
        connection,
        found.messages(number),
        person.id,
        source=source_of(found),
        group=found.id,
        is_sensitive=found.kind == "probe",
    )
    return found.turns[-1]


def _must_be_open(found: Conversation) -> None:
    if not found.is_open:
        raise Conflict("this conversation has ended; start another one")


def retry(connection: sa.Connection, conversation_id: str, person: Person, number: int) -> None:
    """Asks for the answers of a turn again that failed; where they are being written already, nothing changes."""
    _, last = _last(connection, conversation_id, person, number)
    if last.state == "failed":
        change_turn(connection, conversation_id, number, state="waiting", error="", busy_until=None)
    elif last.state != "waiting":
        raise Conflict("this turn has its answers; load the page again")


def renew(
    connection: sa.Connection, now: int, conversation_id: str, person: Person, number: int, *, renewed: int
) -> None:
    """Asks for other answers instead of those that are shown, or were called bad. `renewed` is how often that was done
    before, so that the same wish sent twice is one. Raises Conflict past the limit.
    """
    found, last = _last(connection, conversation_id, person, number)
    if last.renewed == renewed + 1:
        return
    if last.state not in ("shown", "rejected") or last.renewed != renewed:
        raise Conflict("this turn has moved on; load the page again")
    options = options_of(connection, found.project_id)
    if last.renewed >= options.max_renewals:
        raise Conflict("there were other answers often enough; choose one, or end the conversation")
    if tokens_of(connection, found.id) >= options.max_tokens:
        raise Conflict("this conversation is as long as it may become; choose an answer, or end it")
    check_day(connection, now, found.project_id, person, options)
    if last.state == "shown":
        _close_task(connection, now, last.task_id)
    change_turn(
        connection,
        conversation_id,
        number,
        state="waiting",
        task_id=None,
        busy_until=None,
        renewed=last.renewed + 1,
    )


def _last(
    connection: sa.Connection, conversation_id: str, person: Person, number: int
) -> tuple[Conversation, Turn]:
    found = settle(connection, own_row(connection, conversation_id, person))
    _must_be_open(found)
    if found.last is None or found.last.number != number:
        raise Conflict("the conversation has gone on; load the page again")
    return found, found.last


def _close_task(connection: sa.Connection, now: int, task_id: str | None) -> None:
    """A choice that nobody will make; what arrives of it all the same is stored as late."""
    connection.execute(sa.update(task).where(task.c.id == task_id).values(state="closed"))
    connection.execute(
        sa.update(lease).where(lease.c.task_id == task_id, lease.c.state == "open").values(expires_at=now)
    )


# --- choosing ------------------------------------------------------------------------------------------------------------


def hold(connection: sa.Connection, now: int, conversation_id: str, person: Person) -> Lease | None:
    """The lease of the choice that a conversation waits for; None where it waits for something else."""
    found = settle(connection, own_row(connection, conversation_id, person))
    if not found.is_open or found.last is None or found.last.state != "shown":
        return None
    assert found.last.task_id is not None, "what is shown has a task"
    return queue.claim_own(connection, now, found.last.task_id, person)


def look(connection: sa.Connection, conversation_id: str, person: Person) -> Conversation:
    """A conversation as it stands, with what was chosen meanwhile. Changes it: needs a writing transaction."""
    return settle(connection, own_row(connection, conversation_id, person))


def peek(connection: sa.Connection, conversation_id: str, person: Person) -> Conversation:
    """The same without a change, for who only reads."""
    return _settled(connection, find(connection, conversation_id, person), person.id)


def settle(connection: sa.Connection, row: sa.Row[Any]) -> Conversation:
    """Lets the last turn follow what its person has said about its answers, in the conversation or in their history."""
    found = loaded(connection, row)
    now = _settled(connection, found, row.annotator_id)
    if now != found and now.last is not None:
        state, chosen_id = now.last.state, now.last.chosen_id
        change_turn(connection, found.id, now.last.number, state=state, chosen_id=chosen_id)
    return now


def _settled(connection: sa.Connection, found: Conversation, annotator_id: str) -> Conversation:
    last = found.last
    if not found.is_open or last is None or last.task_id is None:
        return found
    said = connection.execute(
        sa.select(judgement)
        .where(judgement.c.task_id == last.task_id, judgement.c.annotator_id == annotator_id)
        .order_by(judgement.c.revision.desc())
        .limit(1)
    ).first()
    if said is None:
        return found
    ids = connection.execute(sa.select(task.c.completion_ids).where(task.c.id == last.task_id)).scalar_one()
    if last.chosen_id is not None and last.chosen_id not in ids:  # improved since, by the person
        return found
    best = None if said.state in ("skipped", "withdrawn") else _best(said.value, said.presented)
    if best is None:
        settled = replace(last, state="rejected", chosen_id=None, answer=None)
    else:
        text = sa.select(completion.c.text).where(completion.c.id == ids[best])
        answer = connection.execute(text).scalar_one()
        settled = replace(last, state="chosen", chosen_id=ids[best], answer=answer)
    return replace(found, turns=(*found.turns[:-1], settled))


def _best(value: Mapping[str, Any], presented: Sequence[int]) -> int | None:
    """The completion to go on with; among equally good ones the first that was shown, which is a random one."""
    if "groups" in value:
        return min(value["groups"][0], key=list(presented).index) if value["groups"] else None
    return {"a": 0, "b": 1, "tie": presented[0]}.get(value["choice"])


def improve(
    connection: sa.Connection,
    now: int,
    conversation_id: str,
    person: Person,
    number: int,
    submission: Submission,
) -> None:
    """Goes on with a text of the person's own: the chosen answer made better, or one written where all were bad.

    Stored as an `edit` or a `demonstration`. Raises Conflict where no answer stands, Invalid for a blank text.
    """
    found, last = _last(connection, conversation_id, person, number)
    if found.kind == "probe":  # its end is about what a policy wrote
        raise Conflict("answers stay as they are while a rule is probed")
    text = submission.value.get("text")
    if not isinstance(text, str) or not text.strip():
        raise Invalid("text: write something")
    if last.state not in ("chosen", "rejected"):
        raise Conflict("choose among the answers first")
    if text == last.answer:
        return
    messages = found.messages(number)
    asked = Prompt.of(messages, source=source_of(found))
    texts: tuple[Completion, ...] = ()
    if last.chosen_id is not None and last.answer is not None:
        texts = (Completion(id=last.chosen_id, prompt_id=asked.id, text=last.answer),)
    kind: Kind = "edit" if texts else "demonstration"
    _answer_own(connection, now, found, person, last, kind, asked, texts, {}, submission)
    written_id = content_id("chat", "edit", conversation_id, number, text)
    known = sa.select(completion.c.id).where(completion.c.id == written_id)
    if connection.execute(known).first() is None:
        edited = {"edit_of": last.chosen_id, "author": person.id}
        connection.execute(
            sa.insert(completion).values(id=written_id, prompt_id=asked.id, text=text, sampling=edited)
        )
    change_turn(connection, conversation_id, number, state="chosen", chosen_id=written_id)


def _answer_own(
    connection: sa.Connection,
    now: int,
    found: Conversation,
    person: Person,
    one: Turn,
    kind: Kind,
    asked: Prompt,
    texts: tuple[Completion, ...],
    payload: Mapping[str, Any],
    submission: Submission,
) -> queue.Stored:
    """A task that is published, claimed and answered at once."""
    task_id = add_task(connection, now, found, person.id, one, kind, asked, texts, payload)
    held = queue.claim_own(connection, now, task_id, person)
    return queue.submit(connection, now, held.token, person, submission)


# --- the end -------------------------------------------------------------------------------------------------------------


def end(
    connection: sa.Connection,
    now: int,
    conversation_id: str,
    person: Person,
    ending: Mapping[str, Any],
    submission: Submission | None = None,
) -> None:
    """Ends a conversation, with what its person says about the whole; the same again changes nothing.

    A probe takes a `submission` with the level of its rule and how the attack went, if there was any answer; it becomes
    a `rules` judgement of the last answer in its transcript. Raises NotFound, Conflict, Invalid.
    """
    row = own_row(connection, conversation_id, person)
    said = dict(ending) | ({} if submission is None else {"value": submission.value})
    if row.state != "open":
        if row.ending != said:
            raise Conflict("this conversation has ended already, and otherwise")
        return
    found = settle(connection, row)
    if found.last is not None and found.last.state == "shown":
        _close_task(connection, now, found.last.task_id)
    answered = next((one for one in reversed(found.turns) if one.answer is not None), None)
    if found.kind == "probe" and answered is not None:
        if submission is None:
            raise Invalid("levels: say whether the rule was kept")
        assert found.rule is not None and answered.chosen_id is not None and answered.answer is not None
        asked = Prompt.of(found.messages(answered.number), source=source_of(found))
        text = Completion(id=answered.chosen_id, prompt_id=asked.id, text=answered.answer)
        rule_id, words = found.rule
        payload = {"rules": [rule_id], "rule_texts": {rule_id: words}}
        _answer_own(connection, now, found, person, answered, "rules", asked, (text,), payload, submission)
    elif submission is not None:
        raise Invalid("value: there is no answer that this could be about")
    connection.execute(
        sa.update(conversation)
        .where(conversation.c.id == conversation_id)
        .values(state="ended", ending=said, ended_at=now)
    )
