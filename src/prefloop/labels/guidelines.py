"""What people read before they judge: versions of a project's guidelines, and who has read which."""

from dataclasses import dataclass

import sqlalchemy as sa

from prefloop.labels.errors import Conflict, NotFound
from prefloop.labels.people import Person
from prefloop.labels.schema import guideline, member, project


@dataclass(frozen=True)
class Guidelines:
    """One version."""

    version: int
    text: str
    created_at: int


def guidelines_of(connection: sa.Connection, project_id: str) -> list[Guidelines]:
    """All versions, the newest first."""
    rows = connection.execute(
        sa.select(guideline).where(guideline.c.project_id == project_id).order_by(guideline.c.version.desc())
    )
    return [Guidelines(row.version, row.text, row.created_at) for row in rows]


def acknowledged_version(connection: sa.Connection, project_id: str, person: Person) -> int:
    """The last version that somebody says to have read; 0 for none. Raises NotFound for who is not a member."""
    found = connection.execute(
        sa.select(member.c.guideline_version).where(
            member.c.project_id == project_id, member.c.annotator_id == person.id
        )
    ).scalar()
    if found is None:
        raise NotFound("there is no such project for you; ask its lead to add you")
    return found


def unread_guidelines(connection: sa.Connection, project_id: str, person: Person) -> Guidelines | None:
    """The newest version, where this person has not acknowledged it. Raises NotFound for who is not a member."""
    acknowledged = acknowledged_version(connection, project_id, person)
    newest = connection.execute(
        sa.select(project.c.guideline_version).where(project.c.id == project_id)
    ).scalar_one()
    return guidelines_of(connection, project_id)[0] if newest > acknowledged else None


def acknowledge_guidelines(connection: sa.Connection, project_id: str, person: Person, version: int) -> None:
    """Notes that somebody has read a version. Raises Conflict where there is a newer one, NotFound for others."""
    acknowledged = acknowledged_version(connection, project_id, person)
    newest = connection.execute(
        sa.select(project.c.guideline_version).where(project.c.id == project_id)
    ).scalar_one()
    if version != newest:
        raise Conflict(f"there is a newer version {newest} of the guidelines; read that one")
    if acknowledged < version:
        connection.execute(
            sa.update(member)
            .where(member.c.project_id == project_id, member.c.annotator_id == person.id)
            .values(guideline_version=version)
        )
