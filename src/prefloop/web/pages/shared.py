"""What all pages share: templates, and the words in the reader's language."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from fastapi import Request

from prefloop.web.render import json_in_page, markdown_html, plain_html, safe_name, words_html
from prefloop.web.security import Visitor

HERE = Path(__file__).parent.parent
LANGUAGES = ("en", "zh")
LANGUAGE_COOKIE = "prefloop_language"


@functools.cache
def templates() -> jinja2.Environment:
    """Templates with everything escaped; an unknown name is an error, not an empty place."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "markdown_html": markdown_html,
        "plain_html": plain_html,
        "safe_name": safe_name,
        "words_html": words_html,
        "json_in_page": json_in_page,
    }
    return environment


@functools.cache
def words(language: str) -> Mapping[str, str]:
    """All texts of the pages in one language: `locale/AREA.LANGUAGE.yaml`, keys `area.name`."""
    found: dict[str, str] = {}
    for path in sorted((HERE / "locale").glob(f"*.{language}.yaml")):
        area = path.name.split(".")[0]
        found |= {f"{area}.{key}": text for key, text in yaml.safe_load(path.read_text("utf-8")).items()}
    return found


def script_words(request: Request, *areas: str) -> dict[str, str]:
    """The texts of some areas for a page's script, which fills in `{name}` itself."""
    found = words(language_of(request))
    return {key: text for key, text in found.items() if key.split(".")[0] in areas}


def language_of(request: Request) -> str:
    """What the reader chose, or what their browser prefers."""
    chosen = request.cookies.get(LANGUAGE_COOKIE)
    if chosen in LANGUAGES:
        return chosen
    return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"


def page(request: Request, template: str, asking: Visitor | None, /, **values: Any) -> str:
    """A page as HTML. Templates get `t(key, **values)` for words, `asking`, and the values."""
    language = language_of(request)

    def t(key: str, **parts: Any) -> str:
        return words(language)[key].format(**parts)

    return (
        templates()
        .get_template(template)
        .render(t=t, language=language, asking=asking, request=request, **values)
    )
