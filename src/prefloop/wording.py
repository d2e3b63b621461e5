"""Questions to a judge, with the judged texts between fences.

The texts are hostile: a policy learns to write whatever wins. A fence is a word that the texts do not hold and could not
foresee.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from prefloop.records import content_id

PLACE = re.compile(r"\{(\w+)\}")
FENCE = "fence"


class Asking(NamedTuple):
    """A question to a judge who answers in words."""

    user: str
    system: str = ""


def fenced(template: str, texts: Mapping[str, str], about: tuple[object, ...]) -> str:
    """The template with each text between fences at its place, and {fence} as the word itself, which `about` decides."""
    joined = "".join(texts.values())
    attempt = 0
    while (fence := content_id("fence", *about, attempt)) in joined:
        attempt += 1
    filled = {name: f"[begin {fence}]\n{text}\n[end {fence}]" for name, text in texts.items()}
    filled[FENCE] = fence
    return fill(template, filled)


def fill(template: str, texts: Mapping[str, str]) -> str:
    """The template with the texts at their places, in one pass: a text that holds {b} stays as it is."""
    return PLACE.sub(lambda match: texts.get(match[1], match[0]), template)
