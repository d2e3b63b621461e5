"""What every config section is made of: frozen models, shorthands, and the marks that keys can carry."""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

NOT_HASHED: dict[str, Any] = {"hashed": False}
"""Marks a key that must not change results, so that it does not enter an artefact's key."""


class Section(BaseModel):
    """A group of config keys; frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def shorthand(key: str) -> BeforeValidator:
    """Lets a section be written as a single string, which becomes its `key`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def default_kind(kind: str) -> BeforeValidator:
    """Lets `kind` be left out of a section that has a usual one."""
    return default("kind", kind)


def default(key: str, usual: str) -> BeforeValidator:
    """Lets the key that tells sections apart be left out."""
    return BeforeValidator(
        lambda value: {key: usual, **value} if isinstance(value, dict) and key not in value else value
    )
