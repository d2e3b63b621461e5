"""How hostile text gets into a page: all of it comes through here.

Text of models, prompts, imports, people's names, file names, comments and error messages may try to run code, to load
something, to pass for a part of the page or to hide what it says. Six ways lead into a page, and a template uses no
`|safe` beside them:

| function | for |
|---|---|
| `markdown_html` | completions, prompts, guidelines |
| `plain_html` | the same as they are; comments; further pieces of a long text |
| `diff_html` | two completions with what is not in the other one marked |
| `words_html` | words of settings, addresses and errors within a sentence of ours |
| `safe_name` | a name on one line; the template escapes it |
| `json_in_page` | data for the page's script |
"""

import json
from collections.abc import Sequence

from markupsafe import Markup
from pydantic import JsonValue

from prefloop.web.differences import differing
from prefloop.web.markdown import markdown_html
from prefloop.web.plain import MAX_SHOWN, cut_note, escaped, plain_block, plain_html, safe_name

__all__ = ["diff_html", "json_in_page", "markdown_html", "plain_html", "safe_name", "words_html"]

IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&'"}
"""`json` itself escapes what is not ASCII: line separators, halves of surrogate pairs."""


def diff_html(a: str, b: str) -> tuple[Markup, Markup]:
    """The first MAX_SHOWN characters of two texts, plain, with `<mark>` around what the other does not have."""
    head_a, head_b = a[:MAX_SHOWN], b[:MAX_SHOWN]
    in_a, in_b = differing(head_a, head_b)
    return (
        plain_block(_marked(head_a, in_a)) + cut_note(len(head_a), len(a)),
        plain_block(_marked(head_b, in_b)) + cut_note(len(head_b), len(b)),
    )


def words_html(text: str) -> Markup:
    """The first MAX_SHOWN characters of a text, within a line of the page; what cannot be seen in it is shown as a sign."""
    return escaped(text[:MAX_SHOWN]) + ("…" if len(text) > MAX_SHOWN else "")


def json_in_page(value: JsonValue) -> Markup:
    """A value for the inside of `<script type="application/json">`, which no text in it can leave.

    Raises ValueError for numbers that JSON has not.
    """
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).translate(IN_SCRIPT))


def _marked(text: str, spans: Sequence[tuple[int, int]]) -> Markup:
    parts: list[Markup] = []
    done = 0
    for start, end in spans:
        parts += (escaped(text, done, start), Markup("<mark>"), escaped(text, start, end), Markup("</mark>"))
        done = end
    return Markup("").join((*parts, escaped(text, done)))
