"""`prefloop label terminal`: tasks of the queue in a terminal, blind and in a balanced order, as in a browser.

Texts are hostile: no escape reaches the terminal, and none can pass for one of our own lines.
"""

import builtins
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from prefloop.browse import printable
from prefloop.commands.label.shared import ProjectOption, StoreOption, app, member_named, opened, the_project
from prefloop.commands.options import WorkspaceOption
from prefloop.labels import guidelines, queue
from prefloop.labels.database import Database
from prefloop.labels.errors import ConsentNeeded, Frozen
from prefloop.labels.people import Person, accept_consent, require_consent
from prefloop.labels.publish import project_config
from prefloop.labels.reading import shown_task
from prefloop.labels.schema import judgement

LETTERS = "abcdefghi"
MARGIN = "  | "
"""Stands before every line of a judged text, so that no text can pass for one of our own lines."""
A_BETTER, B_BETTER = 2, 7
"""Of the strip from 1, A strongly better, to 8, B strongly better."""
NOTHING_LEFT = "Nothing is left for you here. u undo, Enter to leave > "
SKIPS = {"u": "unclear", "e": "no_expertise", "l": "too_long", "t": "technical", "o": "offensive"}
WHY_SKIPPED = "Why? u unclear, e no expertise, l too long, t technical, o offensive > "
QUESTIONS = {
    "pairwise": "Better: a or b, or 1 (a by far) to 8 (b by far)? t tie, n neither is usable, s skip, u undo, q quit > ",
    "rank": "Best first, as in `b a=c d`? n none can be ranked, s skip, u undo, q quit > ",
    "form": "Overall, 1 to 7? s skip, u undo, q quit > ",
}
Ask = Callable[[str], str]
Show = Callable[[str], object]


@app.command(epilog="Example: `prefloop label terminal --as ada`")
def terminal(
    name: Annotated[str, typer.Option("--as", help="Your name; what you say is kept under it.")] = "me",
    project: ProjectOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Judge completions in the terminal, blind. Everything is saved at once; stop at any time."""
    with opened(store, workspace) as database:
        label_in_terminal(
            database, the_project(database, project), name, ask=builtins.input, show=builtins.print
        )


@dataclass(frozen=True)
class Session:
    """One person at a terminal."""

    database: Database
    project: str
    person: Person
    ask: Ask
    show: Show


def label_in_terminal(database: Database, project: str, name: str, *, ask: Ask, show: Show) -> int:
    """Puts open tasks to one person; returns how many judgements of the project are theirs now."""
    person = database.write(lambda c: member_named(c, database.now(), name, project))
    session = Session(database, project, person, ask, show)
    try:
        if not _has_read_what_comes_first(session):
            return 0
        while (key := _step(session)) != "quit":
            if key == "undo":
                _change_last(session)
    except (EOFError, KeyboardInterrupt):
        show("")  # every answered task is stored already
    mine = database.read(lambda c: _number_of_judgements(c, project, person))
    show(f"{mine} judgements by {person.name}.")
    return mine


def _has_read_what_comes_first(session: Session) -> bool:
    """Shows the guidelines and what is to be agreed to, where this person has not seen them; Enter says yes."""
    database, project, person = session.database, session.project, session.person
    unread = database.read(lambda c: guidelines.unread_guidelines(c, project, person))
    if unread is not None:
        session.show(f"GUIDELINES, version {unread.version}\n{_framed(unread.text)}")
        if session.ask("Have you read them? Enter goes on, q leaves > ").strip():
            return False
        database.write(lambda c: guidelines.acknowledge_guidelines(c, project, person, unread.version))
    config = database.read(lambda c: project_config(c, project))
    try:
        database.read(lambda c: require_consent(c, project, person))
    except ConsentNeeded:
        words = "\n\n".join(one for one in (config.warning, config.consent) if one)
        session.show(f"BEFORE YOU START\n{_framed(words)}")
        if session.ask("Do you agree? Enter agrees, q leaves > ").strip():
            return False
        version = config.consent_version
        database.write(lambda c: accept_consent(c, database.now(), project, person, version))
    return True


def _step(session: Session) -> str:
    """Asks about the next task and stores the answer; returns the key where it was none."""
    database = session.database
    held = database.write(lambda c: queue.claim(c, database.now(), session.project, session.person))
    if held is None:
        return "undo" if session.ask(NOTHING_LEFT).strip().lower() == "u" else "quit"
    shown = database.read(lambda c: shown_task(c, held))
    answer = _answer(session, shown)
    if isinstance(answer, str):
        return answer

    def work(connection: sa.Connection) -> None:
        if "skip" in answer:
            queue.skip(connection, database.now(), held.token, session.person, answer["skip"])
        else:
            said = queue.Submission(value=dict(answer))
            queue.submit(connection, database.now(), held.token, session.person, said)

    database.write(work)
    return "answered"


def _answer(session: Session, shown: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """What the person says about a task in screen positions, or `undo` or `quit`."""
    _show_task(session.show, shown)
    kind = shown["kind"]
    if kind not in QUESTIONS:
        session.show(f"A task of the kind {kind} needs a browser: `prefloop label serve`.")
        return "quit"
    while True:
        typed = session.ask(QUESTIONS[kind]).strip().lower()
        if typed in ("q", "u"):
            return {"q": "quit", "u": "undo"}[typed]
        if typed == "s":
            reason = SKIPS.get(session.ask(WHY_SKIPPED).strip().lower()[:1], "unclear")
            return {"skip": reason}
        if (value := _value(kind, typed, shown)) is not None:
            return value
        session.show("That is none of these; type one of them, then Enter.")


def _value(kind: str, typed: str, shown: Mapping[str, Any]) -> dict[str, Any] | None:
    if kind == "form":
        return {"ratings": {"overall": int(typed)}} if typed in set("1234567") else None
    if kind == "rank":
        return _ranking(typed, len(shown["texts"]))
    if typed in ("a", "b"):
        return {"strength": A_BETTER if typed == "a" else B_BETTER}
    if typed in set("12345678"):
        return {"strength": int(typed)}
    if typed == "t" and shown["ties"]:
        return {"verdict": "tie"}
    return {"verdict": "both_bad"} if typed == "n" and shown["both_bad"] else None


def _ranking(typed: str, number: int) -> dict[str, Any] | None:
    if typed == "n":
        return {"unrankable": list(range(number))}
    groups = [[LETTERS.find(one) for one in group.split("=")] for group in typed.split()]
    named = sorted(place for group in groups for place in group)
    return {"groups": groups} if named == list(range(number)) else None


def _change_last(session: Session) -> None:
    """Asks once more about the last task that this person answered; the new words take the place of the old ones."""
    database = session.database
    last = database.read(lambda c: _last_judgement(c, session))
    if last is None:
        session.show("There is nothing to undo.")
        return
    shown = database.read(lambda c: shown_task(c, _as_shown(c, last, session.person)))
    answer = _answer(session, shown)
    if isinstance(answer, str) or "skip" in answer:
        session.show("The answer stays as it was.")
        return
    said = queue.Submission(value=dict(answer))
    try:
        database.write(
            lambda c: queue.revise(c, database.now(), last.id, session.person, said, secrets.token_hex(16))
        )
    except Frozen as error:
        session.show(str(error))


def _last_judgement(connection: sa.Connection, session: Session) -> sa.Row[Any] | None:
    newer = judgement.alias("newer")
    return connection.execute(
        sa.select(judgement)
        .where(judgement.c.project_id == session.project, judgement.c.annotator_id == session.person.id)
        .where(~sa.exists().where(newer.c.supersedes == judgement.c.id))
        .order_by(judgement.c.id.desc())
        .limit(1)
    ).first()


def _as_shown(connection: sa.Connection, last: sa.Row[Any], person: Person) -> queue.Lease:
    """The lease under which a judgement was given, as far as showing its task needs it."""
    return queue.Lease(
        last.client_uuid,
        last.task_id,
        last.project_id,
        person.id,
        person.kind,
        last.slot,
        tuple(last.presented),
        0,
        False,
        last.created_at,
        last.created_at,
        last.created_at,
        None,
    )


def _number_of_judgements(connection: sa.Connection, project: str, person: Person) -> int:
    mine = (judgement.c.project_id == project) & (judgement.c.annotator_id == person.id)
    return connection.execute(
        sa.select(sa.func.count(sa.distinct(judgement.c.task_id))).where(mine)
    ).scalar_one()


def _show_task(show: Show, shown: Mapping[str, Any]) -> None:
    show("=" * 80)
    for message in shown["messages"]:
        show(f"{message['role'].upper()}\n{_framed(message['content'])}")
    for letter, text in zip(LETTERS.upper(), shown["texts"], strict=False):
        show(f"ANSWER {letter}\n{_framed(text)}" if len(shown["texts"]) > 1 else f"ANSWER\n{_framed(text)}")


def _framed(text: str) -> str:
    return "\n".join(MARGIN + line for line in printable(text).split("\n"))
