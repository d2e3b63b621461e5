"""Markdown of models and strangers as HTML that cannot do anything.

CommonMark with tables and strikethrough; a line break is shown as one, as chat windows do. Raw HTML is text. What the
renderer writes is built from a short list of elements, and `nh3` checks it against that list once more. Images are
named, never loaded. Mathematics is shown as its source. Headings begin below those of the page. Text that is nested too
deep to read, or very long, is shown plain.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

from prefloop.web.plain import escaped, plain_html

DEEPEST = 24
"""Levels of quotes and lists, or of emphasis: more cannot be read, and cost time that grows with the square."""
LONGEST_FORMULA = 50
"""Lines."""
MOST_OPEN_BRACKETS = 100
"""In one paragraph: the parser looks for the end of each link again and again."""
LONGEST_MARKDOWN = 50_000
"""Characters: the parser needs up to a second for as many that mean it ill, and people seldom write more."""
LONGEST_KEPT = 20_000
"""Characters of a text whose HTML is kept, so that the cache stays small."""
LINK = re.compile(r"(?:https?://[^/?#\\]|mailto:[^?#])", re.IGNORECASE)
LANGUAGE_CLASS = re.compile(r"language-[a-z0-9+#-]{1,32}")
BRACKET = re.compile(r"[\[\]]|\n[ \t]*\n")
NOT_IN_UTF8 = re.compile("[\0\ud800-\udfff]")
FORMULA = re.compile(
    r"\$\$(?:[^$\\]|\\.)++\$\$"
    r"|\$(?![\s$])(?:[^$\\]|\\.)++(?<!\s)\$(?!\d)"  # pandoc's rule: not what lies between two prices
    r"|\\\((?:[^\\]|\\[^()])++\\\)"
    r"|\\\[(?:[^\\]|\\[^\[\]])++\\\]",
    re.DOTALL,
)
"""Each alternative stops where the next formula of its kind begins, so all attempts together read the text once."""

DIRECTED = ("p", "h3", "h4", "h5", "h6", "li", "th", "td")
"""Elements that take their direction from their own letters."""
ALLOWED: dict[str, set[str]] = {tag: {"dir"} for tag in DIRECTED} | {
    "a": {"href", "title"},
    "blockquote": set(),
    "br": set(),
    "code": {"class", "dir"},
    "em": set(),
    "hr": set(),
    "ol": {"start"},
    "pre": {"class", "dir"},
    "s": set(),
    "span": {"class", "title"},
    "strong": set(),
    "table": set(),
    "tbody": set(),
    "td": {"class", "dir"},
    "th": {"class", "dir"},
    "thead": set(),
    "tr": set(),
    "ul": set(),
}
"""Elements and the attributes that may stand on them; `nh3` adds `rel` and `target` to links."""
CLASSES = {"invisible-char", "image-not-loaded", "math", "align-left", "align-center", "align-right"}


class TooDeep(Exception):
    """The text is nested deeper than anybody reads."""


def markdown_html(text: str) -> Markup:
    """A Markdown text as HTML; one that is longer than LONGEST_MARKDOWN, or nested too deep, as it is.

    NUL and halves of surrogate pairs appear as U+FFFD; every other invisible character is made visible.
    """
    if len(text) > LONGEST_MARKDOWN:
        return plain_html(text)
    html = _kept_html(text) if len(text) <= LONGEST_KEPT else _html(text)
    return plain_html(text) if html is None else html


def _html(text: str) -> Markup | None:
    """None for what is nested too deep."""
    if _open_brackets(text) > MOST_OPEN_BRACKETS:
        return None
    try:
        return Markup(CLEANER.clean(MARKDOWN.render(NOT_IN_UTF8.sub("\ufffd", text))))
    except TooDeep:
        return None


def _open_brackets(text: str) -> int:
    """The most square brackets that are open at once in a paragraph."""
    most = now = 0
    for found in BRACKET.finditer(text):
        now = now + 1 if found[0] == "[" else max(now - 1, 0) if found[0] == "]" else 0
        most = max(most, now)
    return most


_kept_html = lru_cache(maxsize=512)(_html)  # several people see the same task, and many tasks the same prompt


class HostileTextHTML(RendererHTML):
    """Writes tokens as HTML. The rules below are found by the names of the tokens."""

    def render(self, tokens: Sequence[Token], options: OptionsDict, env: EnvType) -> str:
        _dress(tokens)
        return super().render(tokens, options, env)

    def text(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return escaped(tokens[idx].content)

    def code_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<code dir="auto">{escaped(tokens[idx].content)}</code>'

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<pre dir="ltr"><code>{escaped(tokens[idx].content)}</code></pre>\n'

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        name = "language-" + "".join(tokens[idx].info.lower().split()[:1])
        language = f' class="{name}"' if LANGUAGE_CLASS.fullmatch(name) else ""
        return f'<pre dir="ltr"><code{language}>{escaped(tokens[idx].content)}</code></pre>\n'

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        address = escaped(str(token.attrs["src"]))
        return f'<span class="image-not-loaded">🖼 {escaped(token.content)} <code dir="ltr">{address}</code></span>'

    def formula(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<code class="math" dir="ltr">{escaped(tokens[idx].content)}</code>'

    def formula_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f'<pre class="math" dir="ltr"><code>{escaped(tokens[idx].content)}</code></pre>\n'


def _dress(tokens: Sequence[Token]) -> None:
    """Puts directions, classes and titles on the tokens of a text. Raises TooDeep."""
    around: list[str] = []
    for token in tokens:
        if token.nesting == -1:
            around.pop()
        if token.tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
        if token.nesting == 1:
            # a paragraph of a list item goes the way of the item, whose mark stands on that side
            if token.tag in DIRECTED and not (token.tag == "p" and around[-1:] == ["li"]):
                token.attrSet("dir", "auto")
            if (style := token.attrs.pop("style", None)) is not None:  # of a table's cell
                token.attrSet("class", str(style).replace("text-align:", "align-"))
            around.append(token.tag)
        if token.children:
            _dress_inline(token.children)


def _dress_inline(tokens: Sequence[Token]) -> None:
    depth = 0
    for token in tokens:
        depth += token.nesting
        if depth > DEEPEST:
            raise TooDeep
        if token.type == "link_open":
            token.attrs = {"href": token.attrs["href"], "title": token.attrs["href"]}


# --- rules of our own in the parser ----------------------------------------------------------------------------------


def _stop_too_deep(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Comes first at every block: the parser itself would drop the rest of the text at its limit."""
    if state.level > DEEPEST:
        raise TooDeep
    return False


def _formula(state: StateInline, silent: bool) -> bool:
    found = FORMULA.match(state.src, state.pos, state.posMax) if state.src[state.pos] in "$\\" else None
    if found is None:
        return False
    if not silent:
        state.push("formula", "code", 0).content = found[0]
    state.pos = found.end()
    return True


def _formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """From a line that begins with `$$` or `\\[` to the next one that ends the formula."""
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].rstrip()
    closing = {"$$": "$$", "\\[": "\\]"}.get(first[:2])
    if closing is None or closing in first[2:] or state.is_code_block(start):
        return False
    for line in range(start + 1, min(end, start + LONGEST_FORMULA)):
        if state.sCount[line] < state.blkIndent and not state.isEmpty(line):
            return False
        if state.src[state.bMarks[line] : state.eMarks[line]].rstrip().endswith(closing):
            break
    else:
        return False
    if not silent:
        token = state.push("formula_block", "code", 0)
        token.content = state.getLines(start, line + 1, state.sCount[start], False)
        token.map = [start, line + 1]
        state.line = line + 1
    return True


def _parser() -> MarkdownIt:
    parser = MarkdownIt(
        "commonmark",
        {"html": False, "breaks": True, "maxNesting": 2 * DEEPEST},
        renderer_cls=HostileTextHTML,
    )
    parser.enable(["table", "strikethrough"]).disable(["html_block", "html_inline"])
    parser.validateLink = lambda url: LINK.match(url) is not None
    parser.block.ruler.before("table", "too_deep", _stop_too_deep)
    parser.block.ruler.before(
        "fence",
        "formula_block",
        _formula_block,
        {"alt": ["paragraph", "reference", "blockquote", "list"]},
    )
    parser.inline.ruler.before("escape", "formula", _formula)
    return parser


def _known_class(tag: str, attribute: str, value: str) -> str | None:
    if attribute != "class" or value in CLASSES:
        return value
    return value if tag == "code" and LANGUAGE_CLASS.fullmatch(value) else None


MARKDOWN = _parser()
CLEANER = nh3.Cleaner(
    tags=set(ALLOWED),
    clean_content_tags=set(),
    attributes=ALLOWED,
    attribute_filter=_known_class,
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
)
