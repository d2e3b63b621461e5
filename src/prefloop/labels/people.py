"""Who judges: people and AI judges, and the projects that they belong to. Passwords and sessions are in `accounts`."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from prefloop.labels.errors import Conflict, Invalid, NotFound
from prefloop.labels.schema import annotator, member, project

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
    name = name.strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise Invalid(f"name {name!r}: give 1 to {LONGEST_NAME} visible characters on one line")
    if role not in ROLES:
        raise Invalid(f"role {role!r}: choose one of {', '.join(ROLES)}")
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
