"""Which task somebody gets next.

Tasks with room are gone through by priority, then in the order of publication. An annotator may have judged a hundred
thousand of them that still want others' judgements; so as not to pass them all at every claim, a member has a cursor:
nothing that comes before it is theirs to take, except tasks of which a place was given back since, which have an index of
their own. A cursor lasts for a few minutes, and no longer than until tasks are published or a budget has money again.

On PostgreSQL nobody waits here for a task that somebody else is changing: locked tasks are passed over.
"""

import functools
import hashlib
import hmac
import math
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from prefloop.labels import database
from prefloop.labels.faults import TryAgain
from prefloop.labels.people import Person
from prefloop.labels.projects import MINUTE_MS, Kind, ProjectConfig
from prefloop.labels.publish import project_config
from prefloop.labels.schema import (
    HAS_ROOM,
    IS_GOLD,
    OWN_HAS_ROOM,
    judgement,
    lease,
    member,
    round_,
    task,
)

DAY_MS = 24 * 60 * MINUTE_MS
CURSOR_MS = 5 * MINUTE_MS
"""How long a cursor is believed: as long as it takes to see a new skill, or sensitive tasks on the next day."""
SLOWEST_COMMIT_MS = MINUTE_MS
"""What was given back by a transaction of this length is still seen."""
Look = Literal["this", "at", "below", "reopened", "own", "gold"]


@dataclass(frozen=True)
class Cursor:
    """Where a member's search begins."""

    priority: float = math.inf
    ordinal: int = 0
    since: int | None = None
    """When the search last began at the top."""

    @property
    def is_at_top(self) -> bool:
        """Whether nothing has been passed yet."""
        return self.priority == math.inf


NOTHING_LEFT = -math.inf


@dataclass(frozen=True)
class Asking:
    """A member who asks for a task."""

    person: Person
    project_id: str
    config: ProjectConfig
    served: int
    """How many they have been given."""
    cursor: Cursor
    has_reopened: bool
    """Whether places were given back since the cursor began."""
    has_own: bool
    """Whether a task waits that is for this person alone."""


@dataclass(frozen=True)
class Choice:
    """The task, None where nothing is left, and where the next search begins."""

    task: sa.Row[Any] | None
    cursor: Cursor


def cursor_of(now: int, row: sa.Row[Any]) -> Cursor:
    """The cursor of a row of `member`, joined with its project; at the top where it is not to be believed any more."""
    since = row.member_cursor_since
    if row.member_cursor_version != row.cursor_version or since is None or now - since >= CURSOR_MS:
        return Cursor(since=now)
    return Cursor(row.member_cursor_priority, row.member_cursor_ordinal, since)


def has_reopened() -> sa.ColumnElement[bool]:
    """Whether tasks were reopened since the cursor of a `member` began."""
    since = member.c.cursor_since - SLOWEST_COMMIT_MS
    return sa.exists().where(
        task.c.project_id == member.c.project_id, task.c.reopened_at.is_not(None), task.c.reopened_at >= since
    )


def has_own() -> sa.ColumnElement[bool]:
    """Whether a task waits for a `member` alone."""
    return sa.exists().where(
        task.c.for_annotator == member.c.annotator_id,
        task.c.project_id == member.c.project_id,
        task.c.not_before <= sa.bindparam("now"),
        OWN_HAS_ROOM,
    )


# --- choosing --------------------------------------------------------------------------------------------------------


def choose(connection: sa.Connection, now: int, asking: Asking) -> Choice:
    """The next task, held against others until the end of the transaction. Nothing has been changed yet."""
    person = asking.person
    choice = _choose(connection, now, asking, sensitive=person.kind == "ai" or bool(person.exposure_cap))
    found = choice.task
    if person.kind == "ai" or found is None or not found.is_sensitive:
        return choice
    if found.for_annotator is not None and found.repeat_of is None:  # their own conversation
        return choice
    if _num_exposures(connection, now, person) < (person.exposure_cap or 0):
        return choice
    return _choose(connection, now, asking, sensitive=False)


def _choose(connection: sa.Connection, now: int, asking: Asking, *, sensitive: bool) -> Choice:
    special = None
    if asking.person.kind == "human":
        if asking.has_own:
            special = _first(connection, now, asking, "own", sensitive=sensitive, locked=True)
        if special is None and is_due(
            connection, asking.project_id, asking.person, asking.served, asking.config.gold_share
        ):
            special = _first(connection, now, asking, "gold", sensitive=sensitive, locked=True)
    if special is not None:
        return Choice(special, asking.cursor)
    return _choose_usual(connection, now, asking, sensitive=sensitive)


def _choose_usual(connection: sa.Connection, now: int, asking: Asking, *, sensitive: bool) -> Choice:
    cursor = asking.cursor
    if cursor.is_at_top:
        found = _first(connection, now, asking, "below", sensitive=sensitive)
        passed = None
    else:
        passed = (
            _first(connection, now, asking, "reopened", sensitive=sensitive) if asking.has_reopened else None
        )
        found = (
            passed
            or _first(connection, now, asking, "at", sensitive=sensitive)
            or _first(connection, now, asking, "below", sensitive=sensitive)
        )
    if found is None:
        return Choice(None, Cursor(NOTHING_LEFT, 0, cursor.since))
    # the task itself is not passed: somebody else may hold a lock on it now, and leave a place
    moved = cursor if passed is not None else Cursor(found.priority, found.ordinal, cursor.since)
    if connection.dialect.name == "postgresql":
        found = _held(connection, now, asking, found, sensitive=sensitive)
    return Choice(found, moved)


def _held(
    connection: sa.Connection, now: int, asking: Asking, found: sa.Row[Any], *, sensitive: bool
) -> sa.Row[Any]:
    """The task that was found, or the next that nobody else is changing, locked. Raises TryAgain where all are."""
    looks: tuple[Look, ...] = ("this", "reopened", "at", "below")
    for look in looks:
        row = _first(connection, now, asking, look, sensitive=sensitive, locked=True, found=found.id)
        if row is not None:
            return row
    raise TryAgain("others are taking the last tasks at this moment; try again")


def is_due(connection: sa.Connection, what: str, person: Person, number: int, share: float) -> bool:
    """Whether number so much of this person's is a special one: by a secret, so that nobody sees it coming."""
    if not share:
        return False
    key = database.secret(connection).encode()
    digest = hmac.new(key, f"{what}/{person.id}/{number}".encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


_EXPOSURES = sa.select(
    sa.select(sa.func.count())
    .select_from(judgement.join(task, task.c.id == judgement.c.task_id))
    .where(
        judgement.c.annotator_id == sa.bindparam("person"),
        judgement.c.created_at > sa.bindparam("since"),
        judgement.c.revision == 0,
        task.c.is_sensitive,
    )
    .scalar_subquery()
    + sa.select(sa.func.count())
    .select_from(lease.join(task, task.c.id == lease.c.task_id))
    .where(
        lease.c.annotator_id == sa.bindparam("person"),
        lease.c.created_at > sa.bindparam("since"),
        task.c.is_sensitive,
    )
    .scalar_subquery()
)


def _num_exposures(connection: sa.Connection, now: int, person: Person) -> int:
    """Sensitive tasks that were shown within a day: answered, held or let go."""
    return connection.execute(_EXPOSURES, {"person": person.id, "since": now - DAY_MS}).scalar_one()


# --- searching -------------------------------------------------------------------------------------------------------


def _first(
    connection: sa.Connection,
    now: int,
    asking: Asking,
    look: Look,
    *,
    sensitive: bool,
    locked: bool = False,
    found: str = "",
) -> sa.Row[Any] | None:
    person = asking.person
    statement = _search(
        look,
        person.kind,
        len(person.skills),
        len(person.languages),
        _paid(asking),
        sensitive=sensitive,
        locked=locked and connection.dialect.name == "postgresql",
    )
    return connection.execute(statement, _parameters(now, asking) | {"found": found}).first()


def _paid(asking: Asking) -> tuple[Kind, ...]:
    if asking.person.kind == "ai":
        return ()
    return tuple(kind for kind, cents in sorted(asking.config.cents.items()) if cents)


def _parameters(now: int, asking: Asking) -> dict[str, Any]:
    person, cursor = asking.person, asking.cursor
    values: dict[str, Any] = {
        "now": now,
        "project": asking.project_id,
        "person": person.id,
        "priority": cursor.priority,
        "ordinal": cursor.ordinal,
        "since": (cursor.since or 0) - SLOWEST_COMMIT_MS,
    }
    values |= {f"own_skill_{place}": one for place, one in enumerate(person.skills)}
    values |= {f"own_language_{place}": one for place, one in enumerate(person.languages)}
    return values | {f"its_cents_{kind}": asking.config.cents[kind] for kind in _paid(asking)}


@functools.cache
def _search(
    look: Look,
    kind: Literal["human", "ai"],
    num_skills: int,
    num_languages: int,
    paid: tuple[Kind, ...],
    *,
    sensitive: bool,
    locked: bool,
) -> sa.Select:
    """The first task of one look; built once, for building takes longer than the search."""
    fits = [*_place(look, kind), *_suits(num_skills, num_languages), _is_new()]
    if paid:
        fits.append(_is_affordable(paid, look))
    if not sensitive:
        fits.append(sa.not_(task.c.is_sensitive))
    statement = sa.select(
        task.c.id,
        task.c.round_id,
        task.c.kind,
        task.c.completion_ids,
        task.c.overlap,
        task.c.priority,
        task.c.ordinal,
        task.c.is_sensitive,
        task.c.for_annotator,
        task.c.repeat_of,
    )
    statement = statement.where(*fits).order_by(*_ORDER[look]).limit(1)
    return statement.with_for_update(skip_locked=True, key_share=True) if locked else statement


_ORDER: dict[Look, tuple[sa.ColumnElement[Any], ...]] = {
    "this": (),
    "at": (task.c.ordinal,),
    "below": (task.c.priority.desc(), task.c.ordinal),
    # with a sign, so that SQLite does not go through all tasks to have them in order
    "reopened": (sa.literal_column("+priority").desc(), task.c.ordinal),
    "own": (task.c.not_before, task.c.ordinal),
    "gold": (task.c.ordinal,),
}


def _place(look: Look, kind: Literal["human", "ai"]) -> list[sa.ColumnElement[bool] | sa.TextClause]:
    here: list[sa.ColumnElement[bool] | sa.TextClause] = [task.c.project_id == sa.bindparam("project")]
    priority, ordinal = (
        sa.bindparam("priority", type_=sa.Float),
        sa.bindparam("ordinal", type_=sa.Integer),
    )
    match look:
        case "this":
            return [HAS_ROOM[kind], task.c.id == sa.bindparam("found")]
        case "at":
            return [*here, HAS_ROOM[kind], task.c.priority == priority, task.c.ordinal >= ordinal]
        case "below":
            return [*here, HAS_ROOM[kind], task.c.priority < priority]
        case "reopened":
            before = sa.or_(
                task.c.priority > priority, sa.and_(task.c.priority == priority, task.c.ordinal < ordinal)
            )
            since = sa.bindparam("since", type_=sa.BigInteger)
            return [
                *here,
                HAS_ROOM[kind],
                task.c.reopened_at.is_not(None),
                task.c.reopened_at >= since,
                before,
            ]
        case "own":
            is_theirs = task.c.for_annotator == sa.bindparam("person")
            return [*here, OWN_HAS_ROOM, is_theirs, task.c.not_before <= sa.bindparam("now")]
        case "gold":
            # who judged the task that a gold one was made of knows the question
            of = judgement.alias("of")
            knows = sa.exists().where(
                of.c.task_id == task.c.repeat_of, of.c.annotator_id == sa.bindparam("person")
            )
            return [*here, IS_GOLD, task.c.state == "open", task.c.for_annotator.is_(None), ~knows]


def _suits(num_skills: int, num_languages: int) -> list[sa.ColumnElement[bool]]:
    skills = [sa.bindparam(f"own_skill_{place}") for place in range(num_skills)]
    languages = [sa.bindparam(f"own_language_{place}") for place in range(num_languages)]
    person = sa.bindparam("person")
    suits: list[sa.ColumnElement[bool]] = [
        sa.or_(task.c.author_id.is_(None), task.c.author_id != person),
        sa.or_(task.c.skill == "", *(task.c.skill == one for one in skills)),
    ]
    if languages:  # who names no language reads any
        suits.append(sa.or_(task.c.lang == "", *(task.c.lang == one for one in languages)))
    return suits


def _is_new() -> sa.ColumnElement[bool]:
    """No judgement of theirs, skips and withdrawn ones included; who let a lease run out may come again."""
    return sa.not_(
        sa.exists().where(
            judgement.c.task_id == task.c.id, judgement.c.annotator_id == sa.bindparam("person")
        )
    )


def _is_affordable(paid: tuple[Kind, ...], look: Look) -> sa.ColumnElement[bool]:
    """Whether the round can pay one more; tasks of no round cost nothing of a budget."""
    cost = sa.case(*((task.c.kind == kind, sa.bindparam(f"its_cents_{kind}")) for kind in paid), else_=0)
    pays = round_.c.id == task.c.round_id
    if look == "own":  # repeats outlive their round; the one that is open pays
        is_open = sa.and_(round_.c.project_id == task.c.project_id, round_.c.state == "open")
        pays = sa.or_(pays, sa.and_(task.c.round_id.is_(None), task.c.repeat_of.is_not(None), is_open))
    over = round_.c.spent_cents + round_.c.reserved_cents + cost > round_.c.budget_cents
    return sa.not_(sa.exists().where(pays, round_.c.budget_cents.is_not(None), over))


def count_waiting(
    connection: sa.Connection, now: int, project_id: str, person: Person, *, at_most: int
) -> int:
    """How many usual tasks this person could claim, as far as `at_most`."""
    config = project_config(connection, project_id)
    asking = Asking(person, project_id, config, 0, Cursor(since=now), has_reopened=False, has_own=False)
    takes = person.kind == "ai" or _num_exposures(connection, now, person) < (person.exposure_cap or 0)
    found = _search(
        "below",
        person.kind,
        len(person.skills),
        len(person.languages),
        _paid(asking),
        sensitive=takes,
        locked=False,
    )
    some = found.order_by(None).limit(at_most).subquery()
    count = sa.select(sa.func.count()).select_from(some)
    return connection.execute(count, _parameters(now, asking)).scalar_one()
