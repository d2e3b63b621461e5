"""Alembic's entry: migrates the connection that `database.upgrade` hands over."""

from typing import Any, Literal

from alembic import context

from prefloop.labels.schema import JSON, metadata


def _render(kind: str, item: Any, _: object) -> str | Literal[False]:
    """The store's JSON by its name: Alembic spells its variants out in a way that does not run."""
    return "JSON" if kind == "type" and item is JSON else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_item=_render,
    render_as_batch=True,  # SQLite changes a table by making it anew
)
context.run_migrations()
