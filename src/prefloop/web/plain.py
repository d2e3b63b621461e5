"""Text shown as it is: escaped, whitespace kept, and nothing in it invisible.

A character that a reader cannot see can still turn the direction of a line, hide a message or make two names look
alike. Each is shown as a small sign with its number (`U+202E`) and its name; such a sign stands for one character of the
text, or for as many as it says (`U+200B ×12`). Characters that writing needs stay: joiners in Persian, in Indian
scripts and in emoji, variation selectors after what they select. Homoglyphs are visible and stay too.
"""

import re
import unicodedata
from functools import cache, lru_cache

from markupsafe import Markup, escape

MAX_SHOWN = 200_000
"""Characters of a text that are shown at once."""
MOST_CARRIED = 600_000
"""Characters of a text that a page carries, those that are folded included."""
MOST_SIGNS = 2_000
"""Signs of a paragraph that are elements; further ones are words, as a browser takes minutes for 100,000 elements."""
MAX_NAME = 80
"""Characters of a name that stand in one line."""

NONCHARACTERS = "".join(f"\\U{plane << 16 | 0xFFFE:08x}\\U{plane << 16 | 0xFFFF:08x}" for plane in range(17))
INVISIBLE = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls other than tab and line feed
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"  # hyphens and letters without a shape
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"  # widths, joiners, directions, separators
    r"\ufe00-\ufe0f\U000e0000-\U000e0fff"  # variation selectors and tags
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # layout of hieroglyphs, shorthand, music
    rf"\ud800-\udfff\ufdd0-\ufdef{NONCHARACTERS}"  # what is no character at all
)
"""A set for a regular expression: whatever has no shape and no width of its own (Unicode: Cc, Cf, Cs, Zl, Zp and the
default ignorable characters), without the signs of Arabic, Syriac and Kaithi that Unicode files there but that show."""
RUN = re.compile(rf"([{INVISIBLE}])\1*")
IN_NAME = re.compile(rf"[\t\n{INVISIBLE}]")

FLAGS = tuple(
    "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in region) + "\U000e007f"
    for region in ("gbeng", "gbsct", "gbwls")
)
"""England, Scotland, Wales: the only emoji that tags are written for."""
JOINED_SCRIPTS = re.compile(
    "[\u0600-\u109f\u1780-\u18af\u1900-\u1cff\ua800-\uabff\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc"
    "\U00010a00-\U00011fff\U0001e900-\U0001e95f]"
)
"""Blocks whose letters change their shape beside a joiner: Arabic to Myanmar, Khmer, Mongolian, and further ones."""
HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")
NAMES = {"Cc": "CONTROL CHARACTER", "Cs": "HALF OF A SURROGATE PAIR"}
"""What Unicode gives no name."""


def plain_html(text: str) -> Markup:
    """A text as it is; what is more than MAX_SHOWN characters is one `Show more` away, piece by piece.

    Every line takes its direction from its own letters (`dir="auto"` on `pre`).
    """
    end = min(MAX_SHOWN, len(text))
    return plain_block(escaped(text, 0, end)) + rest_html(text, end)


def plain_block(content: Markup) -> Markup:
    """The frame of plain text. The line feed is the one that a parser drops after `<pre>`."""
    return Markup('<pre class="plain-text" dir="auto">\n{}</pre>').format(content)


def rest_html(text: str, shown: int) -> Markup:
    """What follows the characters that are shown, plain and folded: elements that open by keys and need no script.

    A browser lays out nothing that is folded. The words of the button are in `text.css`, in the language of the page.
    """
    starts = range(shown, min(len(text), MOST_CARRIED), MAX_SHOWN)
    html = cut_note(max(shown, MOST_CARRIED), len(text))
    for start in reversed(starts):
        end = min(start + MAX_SHOWN, MOST_CARRIED, len(text))
        html = Markup('<details class="text-more"><summary>… {} / {}</summary>{}{}</details>').format(
            f"{start:,}", f"{len(text):,}", plain_block(escaped(text, start, end)), html
        )
    return html


def cut_note(shown: int, total: int) -> Markup:
    """What stands, without words, under a text that a page does not carry to its end."""
    if shown >= total:
        return Markup("")
    return Markup(f'<p class="text-cut">… {shown:,} / {total:,}</p>')


def safe_name(text: str) -> str:
    """A name of a person, a project or a file for one line of a page, a log or an attribute: still to be escaped.

    Every invisible character, line feed and tab is spelt out as `[U+000A]`, and what is too long ends in `…`. Put the
    name into `<bdi>`, as a name of another direction turns what stands beside it.
    """
    head = text.strip()[: MAX_NAME + 1]
    name = IN_NAME.sub(lambda found: f"[{_number(found[0])}]", head[:MAX_NAME])
    return name + ("…" if len(head) > MAX_NAME else "")


def escaped(text: str, start: int = 0, end: int | None = None) -> Markup:
    """A part of a text for the inside of an element, invisible characters made visible.

    The text around the part decides too: a joiner is kept after a Persian letter.
    """
    end = len(text) if end is None else end
    parts: list[str] = []
    done = start
    for number, found in enumerate(RUN.finditer(text, start, end)):
        sign = _shown(text, found)
        if done < found.start():
            parts.append(escape(text[done : found.start()]))
        parts.append(sign if number < MOST_SIGNS else _in_words(sign))
        done = found.end()
    return Markup("".join((*parts, escape(text[done:end]))))


def _shown(text: str, found: re.Match[str]) -> str:
    character, count = found[1], len(found[0])
    if character == "\r" and text[found.end() : found.end() + 1] == "\n":
        return _sign(character, count - 1)  # the last one belongs to the line feed
    if _belongs(text, found.start()):
        return character + _sign(character, count - 1)
    return _sign(character, count)


def _belongs(text: str, place: int) -> bool:
    """Whether the invisible character at a place is one that its neighbours are written with."""
    if place == 0:
        return False
    character, before, after = text[place], text[place - 1], text[place + 1 : place + 2]
    if (
        character == "\u200d"
        and _is_pictogram(before)
        and after
        and unicodedata.category(after) in ("So", "Sm")
    ):
        return True
    if character in "\u200c\u200d":
        return unicodedata.category(before)[0] in "LM" and JOINED_SCRIPTS.match(before) is not None
    if character in "\ufe0e\ufe0f":
        keycap = before in "0123456789#*" and after == "\u20e3"
        return keycap or before in "‼⁉〰ℹ" or unicodedata.category(before) in ("So", "Sm")
    if "\ufe00" <= character <= "\ufe0d":
        return before > "\xff" and unicodedata.category(before) in ("Lo", "Sm", "So")
    if "\u180b" <= character <= "\u180f":
        return "\u1820" <= before <= "\u18aa"
    if "\U000e0100" <= character <= "\U000e01ef":
        return HAN.match(before) is not None
    if "\U000e0020" <= character <= "\U000e007f":
        flag = text.rfind("\U0001f3f4", max(0, place - 6), place)
        return flag >= 0 and text.startswith(FLAGS, flag)
    return False


def _is_pictogram(character: str) -> bool:
    """An emoji or the end of one: a picture, a skin tone, or the selector of a coloured shape."""
    return character == "\ufe0f" or unicodedata.category(character) in ("So", "Sk")


@lru_cache(maxsize=4096)
def _in_words(sign: str) -> str:
    return re.sub("<span[^>]*>", "[", sign).replace("</span>", "]")


def _sign(character: str, count: int) -> str:
    if count < 2:
        return _single_sign(character) * count
    return _single_sign(character).replace("</span>", f" ×{count}</span>")


@cache
def _single_sign(character: str) -> str:
    number = _number(character)
    name = unicodedata.name(character, NAMES.get(unicodedata.category(character), "NOT A CHARACTER"))
    return f'<span class="invisible-char" title="{number} {name}">{number}</span>'


def _number(character: str) -> str:
    return f"U+{ord(character):04X}"
