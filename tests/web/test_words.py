"""The words of the pages: the same in every language, and no page asks for one that there is not."""

import re
import string
from pathlib import Path

import pytest

from prefloop import web
from prefloop.web.pages.shared import LANGUAGES, words

HERE = Path(web.__file__).parent
USED = re.compile(r"""\bt\(\s*["']([a-z_]+\.[a-z_0-9]*[a-z0-9])["']""")
BEGUN = re.compile(r"""\bt\(\s*(?:["']([a-z_]+\.[a-z_]+_)["']\s*~|`([a-z_]+\.[a-z_]+_)\$\{)""")


def parts(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("language", [one for one in LANGUAGES if one != "en"])
def test_languages_have_the_same_words_with_the_same_parts(language):
    english, other = words("en"), words(language)
    assert english.keys() == other.keys()
    assert [key for key in english if parts(english[key]) != parts(other[key])] == []


@pytest.mark.parametrize(
    "path", [*HERE.glob("templates/**/*.html"), *HERE.glob("static/**/*.js")], ids=lambda path: path.name
)
def test_a_page_asks_only_for_words_that_there_are(path):
    text = path.read_text("utf-8")
    known = words("en")
    assert [key for key in USED.findall(text) if key not in known] == []
    begun = [left or right for left, right in BEGUN.findall(text)]
    assert [start for start in begun if not any(key.startswith(start) for key in known)] == []
