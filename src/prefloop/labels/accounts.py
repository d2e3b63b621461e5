"""How people come in: passwords, sessions, one-time links, invites.

Of every token only its SHA-256 is stored, and of passwords an Argon2id hash: who reads the database cannot log in.
Hashing takes time and memory on purpose, so callers do it outside of transactions and hand the hash over.
"""

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from prefloop.labels.audit import SYSTEM, audit
from prefloop.labels.errors import Invalid, NotFound
from prefloop.labels.people import ROLES, Person, Role, add_person, find_person, join_project, person_of
from prefloop.labels.schema import annotator, invite, login_link, project, session

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
IDLE_MS = 2 * HOUR_MS
"""A session ends when nothing was asked for so long,"""
SESSION_MS = 12 * HOUR_MS
"""and after this time in any case."""
SEEN_EVERY_MS = MINUTE_MS
"""How exactly it is known when a session was last used; finer would be a write for every request."""
LINK_MS = 15 * MINUTE_MS
INVITE_HOURS = 72
RECENT_MS = 15 * MINUTE_MS
"""For how long after coming in by link or invite a new password needs no old one."""
SHORTEST_PASSWORD, LONGEST_PASSWORD = 10, 1000
EMAIL = re.compile(r"^[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,190}$")
OpenedBy = Literal["password", "link", "invite"]


def token_hash(token: str) -> str:
    """What is stored of a token: it cannot be used to log in."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


# --- passwords -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """Whether a password was right."""

    is_right: bool
    rehashed: str | None = None
    """The hash to store from now on, where the parameters have changed since the last one."""


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher()


@cache
def _nobodys_hash() -> str:
    return _hasher().hash(secrets.token_hex(16))


def check_new_password(password: str, *own: str) -> None:
    """Raises Invalid for a password that is too short, too long, or one of the person's `own` words."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise Invalid(
            f"the password: {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters; a few words do well"
        )
    if len(set(password)) < 4 or password.casefold() in {one.casefold() for one in own if one}:
        raise Invalid("the password: too easy to guess; take a few words that do not belong together")


def hash_password(password: str) -> str:
    """Argon2id with the library's parameters. Slow on purpose."""
    return _hasher().hash(_typed(password))


def verify_password(hashed: str | None, password: str) -> Verified:
    """Compares; with no hash it works as long and says no, so that time does not tell who has an account."""
    if len(password) > LONGEST_PASSWORD:
        return Verified(False)
    try:
        _hasher().verify(hashed or _nobodys_hash(), _typed(password))
    except (VerificationError, InvalidHashError):
        return Verified(False)
    if hashed is None:
        return Verified(False)
    return Verified(True, hash_password(password) if _hasher().check_needs_rehash(hashed) else None)


def _typed(password: str) -> bytes:
    # one character typed on two keyboards can be two code points, or three
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def normal_email(text: str) -> str | None:
    """An e-mail address as it is compared; None for an empty one. Raises Invalid."""
    if not (address := text.strip().casefold()):
        return None
    if not EMAIL.match(address):
        raise Invalid("e-mail: give an address like ada@example.org")
    return address


def login_account(connection: sa.Connection, called: str) -> sa.Row | None:
    """The active person of an e-mail address or a name who may log in with a password; AI judges have tokens."""
    called = called.strip()
    same = annotator.c.email == called.casefold() if "@" in called else annotator.c.name == called
    return connection.execute(
        sa.select(annotator).where(same, annotator.c.state == "active", annotator.c.role != "judge")
    ).first()


def set_password(connection: sa.Connection, now: int, person_id: str, hashed: str, *, actor: str) -> None:
    """Stores a new password and ends all sessions, those of a thief too."""
    connection.execute(sa.update(annotator).where(annotator.c.id == person_id).values(password_hash=hashed))
    close_sessions(connection, person_id)
    audit(connection, now, actor, "password.set", person_id)


# --- sessions --------------------------------------------------------------------------------------------------------


def open_session(
    connection: sa.Connection, now: int, person_id: str, *, opened_by: OpenedBy = "password"
) -> str:
    """A new session; returns the token for the cookie, which is stored nowhere."""
    token = secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(session).values(
            token_hash=token_hash(token),
            annotator_id=person_id,
            csrf=secrets.token_urlsafe(24),
            opened_by=opened_by,
            created_at=now,
            seen_at=now,
            expires_at=now + SESSION_MS,
        )
    )
    return token


def find_session(connection: sa.Connection, now: int, token: str) -> sa.Row | None:
    """The person of a running session with its `csrf`, `opened_by`, `opened_at` and `seen_at`."""
    return connection.execute(
        sa.select(
            annotator,
            session.c.csrf,
            session.c.opened_by,
            session.c.created_at.label("opened_at"),
            session.c.seen_at,
        )
        .join(session, session.c.annotator_id == annotator.c.id)
        .where(
            session.c.token_hash == token_hash(token),
            session.c.expires_at > now,
            session.c.seen_at > now - IDLE_MS,
            annotator.c.state == "active",
        )
    ).first()


def touch_session(connection: sa.Connection, now: int, token: str) -> None:
    """Notes that a session is in use."""
    connection.execute(
        sa.update(session).where(session.c.token_hash == token_hash(token)).values(seen_at=now)
    )


def close_session(connection: sa.Connection, token: str) -> None:
    """Ends one session."""
    connection.execute(sa.delete(session).where(session.c.token_hash == token_hash(token)))


def close_sessions(connection: sa.Connection, person_id: str) -> None:
    """Ends all sessions of a person, and takes back links that would open one."""
    connection.execute(sa.delete(session).where(session.c.annotator_id == person_id))
    connection.execute(sa.delete(login_link).where(login_link.c.annotator_id == person_id))


def forget_expired(connection: sa.Connection, now: int) -> None:
    """Deletes sessions and links that nobody can use any more."""
    over = sa.or_(session.c.expires_at <= now, session.c.seen_at <= now - IDLE_MS)
    connection.execute(sa.delete(session).where(over))
    connection.execute(sa.delete(login_link).where(login_link.c.expires_at <= now))


# --- one-time links --------------------------------------------------------------------------------------------------


def make_link(connection: sa.Connection, now: int, person_id: str, *, actor: str) -> str:
    """A token that lets a person in once, soon. Raises NotFound."""
    find_person(connection, id=person_id)
    token = secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(login_link).values(
            token_hash=token_hash(token),
            annotator_id=person_id,
            created_by=actor,
            created_at=now,
            expires_at=now + LINK_MS,
        )
    )
    audit(connection, now, actor, "link.make", person_id)
    return token


def redeem_link(connection: sa.Connection, now: int, token: str) -> Person:
    """Whom a link lets in; it is used up. Raises NotFound for one that is unknown, used or too old."""
    person_id = connection.execute(
        sa.update(login_link)
        .where(
            login_link.c.token_hash == token_hash(token),
            login_link.c.used_at.is_(None),
            login_link.c.expires_at > now,
        )
        .values(used_at=now)
        .returning(login_link.c.annotator_id)
    ).scalar()
    if person_id is None:
        raise NotFound("this link was used already, or is too old; ask for a new one")
    audit(connection, now, person_id, "link.redeem", person_id)
    return find_person(connection, id=person_id)


def first_admin_link(connection: sa.Connection, now: int, name: str = "admin") -> str:
    """A one-time link for who started the server: for the admin, who is made where there is none."""
    row = connection.execute(
        sa.select(annotator)
        .where(annotator.c.role == "admin", annotator.c.state == "active")
        .order_by(annotator.c.created_at)
        .limit(1)
    ).first()
    if row is None:
        person = add_person(connection, now, name, role="admin")
        audit(connection, now, SYSTEM, "person.add", person.id, {"role": "admin"})
    else:
        person = person_of(row)
    return make_link(connection, now, person.id, actor=SYSTEM)


def has_admin_with_password(connection: sa.Connection) -> bool:
    """Whether the app can be shown to a network: somebody can log in and is in charge."""
    found = sa.select(annotator.c.id).where(
        annotator.c.role == "admin", annotator.c.state == "active", annotator.c.password_hash.is_not(None)
    )
    return connection.execute(found).first() is not None


# --- invites ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Invite:
    """What somebody is invited to."""

    role: Role
    project_ids: tuple[str, ...]
    titles: tuple[str, ...]
    email: str
    expires_at: int


def make_invite(
    connection: sa.Connection,
    now: int,
    *,
    actor: str,
    role: Role = "annotator",
    project_ids: Sequence[str] = (),
    email: str = "",
    hours: int = INVITE_HOURS,
) -> str:
    """A token that makes an account, once. Raises Invalid, NotFound for a project that is not there."""
    if role not in ROLES or role == "judge":
        raise Invalid(f"role {role!r}: people are invited as annotator, reviewer, lead or admin")
    if not 1 <= hours <= 24 * 30:
        raise Invalid(f"hours {hours}: an invite is good for 1 to 720 hours")
    if missing := set(project_ids) - set(_titles(connection, project_ids)):
        raise NotFound(f"there is no project {sorted(missing)[0]}")
    token = secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(invite).values(
            token_hash=token_hash(token),
            role=role,
            project_ids=list(project_ids),
            email=normal_email(email) or "",
            created_by=actor,
            created_at=now,
            expires_at=now + hours * HOUR_MS,
        )
    )
    audit(connection, now, actor, "invite.make", "", {"role": role, "projects": list(project_ids)})
    return token


def open_invite(connection: sa.Connection, now: int, token: str) -> Invite:
    """What an invite is for; it stays good. Raises NotFound."""
    row = connection.execute(
        sa.select(invite).where(
            invite.c.token_hash == token_hash(token), invite.c.used_by.is_(None), invite.c.expires_at > now
        )
    ).first()
    if row is None:
        raise NotFound("this invite was used already, or is too old; ask for a new one")
    titles = _titles(connection, row.project_ids)
    return Invite(row.role, tuple(row.project_ids), tuple(titles.values()), row.email, row.expires_at)


def accept_invite(
    connection: sa.Connection, now: int, token: str, *, name: str, email: str, password_hash: str
) -> Person:
    """Makes the account. An invite to an address is for that address. Raises NotFound, Invalid, Conflict."""
    found = open_invite(connection, now, token)
    person = add_person(connection, now, name, role=found.role, email=found.email or normal_email(email))
    taken = connection.execute(
        sa.update(invite)
        .where(invite.c.token_hash == token_hash(token), invite.c.used_by.is_(None))
        .values(used_by=person.id)
    )
    if taken.rowcount != 1:  # another browser was faster
        raise NotFound("this invite was used already; ask for a new one")
    connection.execute(
        sa.update(annotator).where(annotator.c.id == person.id).values(password_hash=password_hash)
    )
    for project_id in found.project_ids:
        join_project(connection, project_id, person.id)
    audit(connection, now, person.id, "invite.accept", person.id, {"role": found.role})
    return person


def open_invites(connection: sa.Connection, now: int) -> Sequence[sa.Row]:
    """Invites that nobody has used yet, newest first."""
    return connection.execute(
        sa.select(invite)
        .where(invite.c.used_by.is_(None), invite.c.expires_at > now)
        .order_by(invite.c.created_at.desc())
    ).all()


def withdraw_invite(connection: sa.Connection, now: int, hashed: str, *, actor: str) -> None:
    """Takes an invite back, by what is stored of its token. Raises NotFound."""
    gone = connection.execute(
        sa.delete(invite).where(invite.c.token_hash == hashed, invite.c.used_by.is_(None))
    )
    if gone.rowcount != 1:
        raise NotFound("this invite was used already, or taken back")
    audit(connection, now, actor, "invite.withdraw")


def _titles(connection: sa.Connection, project_ids: Sequence[str]) -> dict[str, str]:
    rows = connection.execute(
        sa.select(project.c.id, project.c.title).where(project.c.id.in_(list(project_ids)))
    )
    return {row.id: row.title for row in rows}
