"""Who judges: people and AI judges, and the projects that they belong to. Passwords and sessions are in `accounts`.

Whatever changes a person names its `actor` for the audit. A deleted person leaves a tombstone: the row and its id, which
judgements point to, without a name, an address or anything else that tells who it was.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from prefloop.labels.audit import audit
from prefloop.labels.errors import Conflict, ConsentNeeded, Forbidden, Invalid, NotFound
from prefloop.labels.projects import ProjectConfig
from prefloop.labels.publish import project_config
from prefloop.labels.schema import (
    annotator,
    api_token,
    conversation,
    invite,
    lease,
    login_link,
    member,
    project,
    session,
)

Role = Literal["annotator", "reviewer", "lead", "admin", "judge"]
ROLES: tuple[Role, ...] = ("annotator", "reviewer", "lead", "admin", "judge")
"""From the least to the most that they may do; a `judge` is a program."""
LONGEST_NAME = 80


@dataclass(frozen=True)
class Person:
    """Somebody who judges."""

    id: str
    name: str
    role: Role = "annotator"
    skills: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    exposure_cap: int | None = None

    @property
    def kind(self) -> Literal["human", "ai"]:
        """Whose overlap their judgements count for."""
        return "ai" if self.role == "judge" else "human"


def add_person(
    connection: sa.Connection,
    now: int,
    name: str,
    *,
    role: Role = "annotator",
    email: str | None = None,
    skills: Sequence[str] = (),
    languages: Sequence[str] = (),
    exposure_cap: int | None = None,
) -> Person:
    """A new person. Raises Invalid for a name that cannot be shown, Conflict for one that is taken."""
    name = visible_name(name)
    _check_role(role)
    taken = (
        annotator.c.name == name
        if email is None
        else sa.or_(annotator.c.name == name, annotator.c.email == email)
    )
    if connection.execute(sa.select(annotator.c.id).where(taken)).first() is not None:
        raise Conflict(f"{name}: this name or e-mail address is taken")
    person = Person(secrets.token_hex(8), name, role, tuple(skills), tuple(languages), exposure_cap)
    connection.execute(
        sa.insert(annotator).values(
            id=person.id,
            name=name,
            email=email,
            role=role,
            skills=list(skills),
            languages=list(languages),
            exposure_cap=exposure_cap,
            created_at=now,
        )
    )
    return person


def find_person(connection: sa.Connection, *, id: str = "", name: str = "") -> Person:
    """An active person, by id or by name. Raises NotFound."""
    row = connection.execute(
        sa.select(annotator).where(annotator.c.id == id if id else annotator.c.name == name)
    ).first()
    if row is None or row.state != "active":
        raise NotFound(f"there is nobody {f'named {name}' if name else 'with this id'}")
    return person_of(row)


def person_of(row: sa.Row) -> Person:
    """The person of a row of `annotator`."""
    return Person(
        row.id, row.name, row.role, tuple(row.skills or ()), tuple(row.languages or ()), row.exposure_cap
    )


def join_project(connection: sa.Connection, project_id: str, person_id: str) -> None:
    """Makes somebody a member; again is the same. Raises NotFound."""
    if connection.execute(sa.select(project.c.id).where(project.c.id == project_id)).first() is None:
        raise NotFound(f"there is no project {project_id}")
    is_member = sa.select(member).where(member.c.project_id == project_id, member.c.annotator_id == person_id)
    if connection.execute(is_member).first() is None:
        connection.execute(sa.insert(member).values(project_id=project_id, annotator_id=person_id))


def visible_name(name: str) -> str:
    """A name without the blanks around it. Raises Invalid where it cannot be shown, or could be taken for an address."""
    name = name.strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or "@" in name:
        raise Invalid(f"name {name[:LONGEST_NAME]!r}: give 1 to {LONGEST_NAME} visible characters without @")
    return name


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise Invalid(f"role {role!r}: choose one of {', '.join(ROLES)}")


# --- projects --------------------------------------------------------------------------------------------------------


def require_member(connection: sa.Connection, project_id: str, person: Person) -> None:
    """Raises NotFound for who is not of the project, as if there were none. Admins are of all."""
    if person.role == "admin":
        project_config(connection, project_id)
        return
    is_member = sa.select(member).where(member.c.project_id == project_id, member.c.annotator_id == person.id)
    if connection.execute(is_member).first() is None:
        raise NotFound("there is no such project for you")


def leave_project(
    connection: sa.Connection, now: int, project_id: str, person_id: str, *, actor: str
) -> None:
    """Ends a membership; judgements stay, and a task that is held goes back. Raises NotFound."""
    gone = connection.execute(
        sa.delete(member).where(member.c.project_id == project_id, member.c.annotator_id == person_id)
    )
    if gone.rowcount != 1:
        raise NotFound("there is no such member")
    _let_go(connection, now, person_id, lease.c.project_id == project_id)
    audit(connection, now, actor, "member.remove", person_id, {"project": project_id})


def needs_consent(config: ProjectConfig, agreed: str) -> bool:
    """Whether there is something to agree to that was not agreed to yet, in these words."""
    return config.consent_version not in ("", agreed)


def require_consent(connection: sa.Connection, project_id: str, person: Person) -> None:
    """Raises ConsentNeeded for a person who has not agreed to what the project asks, NotFound for who is not of it."""
    config = project_config(connection, project_id)
    agreed = connection.execute(
        sa.select(member.c.consent_version).where(
            member.c.project_id == project_id, member.c.annotator_id == person.id
        )
    ).scalar()
    if agreed is None:
        raise NotFound("there is no such project for you")
    if person.kind == "human" and needs_consent(config, agreed):
        raise ConsentNeeded(project_id)


def accept_consent(
    connection: sa.Connection, now: int, project_id: str, person: Person, version: str
) -> None:
    """Notes that somebody agrees to the words of this version. Raises NotFound, Conflict where they have changed."""
    current = project_config(connection, project_id).consent_version
    if version != current:
        raise Conflict("the text has changed while you read it; read it again")
    changed = connection.execute(
        sa.update(member)
        .where(member.c.project_id == project_id, member.c.annotator_id == person.id)
        .values(consent_version=version)
    )
    if changed.rowcount != 1:
        raise NotFound("there is no such project for you")
    audit(connection, now, person.id, "consent.accept", project_id, {"version": version})


# --- changes ---------------------------------------------------------------------------------------------------------


def change_role(connection: sa.Connection, now: int, person_id: str, role: str, *, actor: str) -> None:
    """Gives another role, at once. People and programs do not become each other; one admin stays. Raises Invalid."""
    _check_role(role)
    person = find_person(connection, id=person_id)
    if role == person.role:
        return
    if "judge" in (role, person.role):
        raise Invalid("a program stays a program and a person a person: make a new account")
    _keep_an_admin(connection, person)
    connection.execute(sa.update(annotator).where(annotator.c.id == person_id).values(role=role))
    audit(connection, now, actor, "person.role", person_id, {"from": person.role, "to": role})


def change_profile(
    connection: sa.Connection,
    now: int,
    person_id: str,
    *,
    actor: str,
    skills: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
) -> None:
    """Sets what tasks suit somebody; None leaves it. Raises NotFound, Invalid."""
    find_person(connection, id=person_id)
    given = {"skills": skills, "languages": languages}
    values = {key: _words(key, value) for key, value in given.items() if value is not None}
    if values:
        connection.execute(sa.update(annotator).where(annotator.c.id == person_id).values(values))
        audit(connection, now, actor, "person.profile", person_id, values)


def _words(key: str, given: Sequence[str]) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in given if word.strip()))
    if len(words) > 50 or any(len(word) > 40 or not word.isprintable() for word in words):
        raise Invalid(f"{key}: at most 50 words of at most 40 characters")
    return words


def set_exposure_cap(
    connection: sa.Connection, now: int, person_id: str, cap: int | None, *, actor: str
) -> None:
    """How many sensitive tasks a day somebody takes; None or 0 for none. Only they themselves can take on more."""
    before = find_person(connection, id=person_id).exposure_cap or 0
    if cap is not None and not 0 <= cap <= 1000:
        raise Invalid("sensitive tasks a day: 0 to 1000")
    if actor != person_id and (cap or 0) > before:
        raise Forbidden("only the person can take on more sensitive tasks; others can lower the number")
    connection.execute(
        sa.update(annotator).where(annotator.c.id == person_id).values(exposure_cap=cap or None)
    )
    audit(connection, now, actor, "person.exposure", person_id, {"from": before, "to": cap or 0})


def disable_person(connection: sa.Connection, now: int, person_id: str, *, actor: str) -> None:
    """Shuts somebody out at once; all their sessions end, and a task that is held goes back. Raises NotFound."""
    _keep_an_admin(connection, find_person(connection, id=person_id))
    connection.execute(sa.update(annotator).where(annotator.c.id == person_id).values(state="disabled"))
    _shut_out(connection, now, person_id)
    audit(connection, now, actor, "person.disable", person_id)


def enable_person(connection: sa.Connection, now: int, person_id: str, *, actor: str) -> None:
    """Lets somebody in again who was disabled. Raises NotFound."""
    changed = connection.execute(
        sa.update(annotator)
        .where(annotator.c.id == person_id, annotator.c.state == "disabled")
        .values(state="active")
    )
    if changed.rowcount != 1:
        raise NotFound("there is nobody disabled with this id")
    audit(connection, now, actor, "person.enable", person_id)


def delete_person(connection: sa.Connection, now: int, person_id: str, *, actor: str) -> None:
    """Deletes who somebody is and keeps what they judged, under the id alone. Raises NotFound, Invalid."""
    row = connection.execute(sa.select(annotator).where(annotator.c.id == person_id)).first()
    if row is None or row.state == "deleted":
        raise NotFound("there is nobody with this id")
    if row.state == "active":
        _keep_an_admin(connection, person_of(row))
    connection.execute(
        sa.update(annotator)
        .where(annotator.c.id == person_id)
        .values(
            name=f"deleted-{person_id}",
            email=None,
            password_hash=None,
            skills=None,
            languages=None,
            groups=None,
            preferences=None,
            exposure_cap=None,
            state="deleted",
        )
    )
    _shut_out(connection, now, person_id)
    connection.execute(sa.update(invite).where(invite.c.used_by == person_id).values(email=""))
    connection.execute(sa.update(api_token).where(api_token.c.annotator_id == person_id).values(name=""))
    connection.execute(sa.delete(member).where(member.c.annotator_id == person_id))
    audit(connection, now, actor, "person.delete", person_id)


def _keep_an_admin(connection: sa.Connection, person: Person) -> None:
    if person.role != "admin":
        return
    others = sa.select(annotator.c.id).where(
        annotator.c.role == "admin", annotator.c.state == "active", annotator.c.id != person.id
    )
    if connection.execute(others).first() is None:
        raise Invalid(f"{person.name} is the only admin; make somebody else one first")


def _shut_out(connection: sa.Connection, now: int, person_id: str) -> None:
    connection.execute(sa.delete(session).where(session.c.annotator_id == person_id))
    connection.execute(sa.delete(login_link).where(login_link.c.annotator_id == person_id))
    connection.execute(
        sa.update(api_token)
        .where(api_token.c.annotator_id == person_id, api_token.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    connection.execute(
        sa.update(conversation)
        .where(conversation.c.annotator_id == person_id, conversation.c.state == "open")
        .values(state="ended", ended_at=now)
    )
    _let_go(connection, now, person_id)


def _let_go(connection: sa.Connection, now: int, person_id: str, *which: sa.ColumnElement[bool]) -> None:
    """Lets leases run out; the next claim of anybody gives their places back, as after any other lease."""
    connection.execute(
        sa.update(lease)
        .where(lease.c.annotator_id == person_id, lease.c.state == "open", *which)
        .values(expires_at=now, draft=None)
    )


# --- looking ---------------------------------------------------------------------------------------------------------


def list_people(connection: sa.Connection) -> Sequence[sa.Row]:
    """Everybody but the deleted, by name."""
    return connection.execute(
        sa.select(annotator).where(annotator.c.state != "deleted").order_by(sa.func.lower(annotator.c.name))
    ).all()


def projects_of_people(connection: sa.Connection) -> dict[str, list[str]]:
    """The ids of the projects of everybody who is of any."""
    found: dict[str, list[str]] = {}
    for row in connection.execute(sa.select(member).order_by(member.c.project_id)):
        found.setdefault(row.annotator_id, []).append(row.project_id)
    return found


def preferences_of(connection: sa.Connection, person_id: str) -> dict[str, Any]:
    """How somebody likes the pages: their language, their keys."""
    found = sa.select(annotator.c.preferences).where(annotator.c.id == person_id)
    return connection.execute(found).scalar() or {}


def change_preferences(
    connection: sa.Connection, person_id: str, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Sets some preferences; the others stay."""
    changed = preferences_of(connection, person_id) | dict(changes)
    connection.execute(sa.update(annotator).where(annotator.c.id == person_id).values(preferences=changed))
    return changed


def join_admins(connection: sa.Connection, project_id: str) -> None:
    """Makes every admin a member, so that who works alone sees what a run asks."""
    admins = sa.select(annotator.c.id).where(annotator.c.role == "admin", annotator.c.state == "active")
    for person_id in connection.execute(admins).scalars().all():
        join_project(connection, project_id, person_id)
