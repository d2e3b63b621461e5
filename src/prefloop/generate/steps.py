"""Where the steps of a completion end: after a sentence, after a line, or after some tokens.

A step is whole tokens, and text that the completion's own text grows by: a character is never cut. An end that only the
terminator follows is the end of the completion.
"""

import bisect
import re
from collections.abc import Callable
from typing import Literal

from prefloop.batches import Codec
from prefloop.generate.tree import Step
from prefloop.records import Completion

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers write for bytes that are no character yet."""
LINE = re.compile(r"\S[^\n]*\n+")
SENTENCE = re.compile(r"\S.*?(?:[.!?…]++[\"'”’)\]]*+(?=\s)|[。！？]+[”’」』）]*|\n+)", re.DOTALL)
"""Ends at the mark of an abbreviation too, which only makes a shorter step."""


def cutter(codec: Codec, step: Literal["sentence", "line"] | int) -> Callable[[Completion, int], Step]:
    """The step of a completion that begins after so many tokens."""

    def cut(completion: Completion, start: int) -> Step:
        tokens = completion.token_ids
        assert tokens is not None and start < len(tokens), "the caller asks for steps that are there"
        text, before = completion.text, codec.decode(tokens[:start])
        if isinstance(step, int):
            end = min(start + step, len(tokens))
        else:
            found = (SENTENCE if step == "sentence" else LINE).search(text, len(before))
            end = _first_with(codec, tokens, start, found.end()) if found else len(tokens)
        while not _is_whole(after := codec.decode(tokens[:end]), text) and end < len(tokens):
            end += 1
        if not text[len(after) :].strip():
            end, after = len(tokens), text
        return Step(end, after[len(before) :])

    return cut


def _is_whole(part: str, text: str) -> bool:
    """Whether a text begins with this part, however it may go on: an unfinished character is never its end."""
    return text.startswith(part) and not part.endswith(UNFINISHED)


def _first_with(codec: Codec, tokens: tuple[int, ...], start: int, characters: int) -> int:
    """The fewest tokens, more than `start`, whose text has so many characters."""
    ends = range(start + 1, len(tokens) + 1)
    at = bisect.bisect_left(ends, characters, key=lambda end: len(codec.decode(tokens[:end])))
    return ends[min(at, len(ends) - 1)]
