"""Hostile text as HTML: nothing outside a short list comes out, and nothing of the text is hidden or lost."""

import json
import re
import sys
import time
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefloop.web.render import diff_html, json_in_page, markdown_html, plain_html, safe_name
from web.payloads import PAYLOADS

DIR = {"dir": "auto"}
SIGN = re.compile(r"U\+([0-9A-F]{4,6}) [A-Z0-9 ()-]+")
ALLOWED = {
    "a": {"href", "title", "rel", "target"},
    "code": {"class", "dir"},
    "ol": {"start"},
    "details": {"class"},
    "p": {"dir", "class"},
    "pre": {"class", "dir"},
    "span": {"class", "title"},
    "td": {"class", "dir"},
    "th": {"class", "dir"},
} | {tag: {"dir"} for tag in ("h3", "h4", "h5", "h6", "li")}
BARE = {
    "blockquote",
    "br",
    "em",
    "hr",
    "mark",
    "s",
    "strong",
    "summary",
    "table",
    "tbody",
    "thead",
    "tr",
    "ul",
}
CLASSES = {
    "span": {"invisible-char", "image-not-loaded"},
    "pre": {"plain-text", "math"},
    "code": {"math"},
    "p": {"text-cut"},
    "details": {"text-more"},
    "td": {"align-left", "align-center", "align-right"},
    "th": {"align-left", "align-center", "align-right"},
}
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
NEEDED = re.compile("[\n\t\u200c\u200d\U000e0020-\U000e007f]")
"""Unseen characters that may stand in a page; the tests of joiners and flags say where."""

SHOWN_BY_UNICODE = {  # categories Cc and Cf, but with a shape: tab and line feed are white space
    *"\t\n",
    *map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)),
}

MARKS = (
    *"#>-*_|\n\t$\\![]()<>&\"':+=`~ \u200b\u200c\u202e",
    *(
        "**",
        "~~",
        "```",
        "\n\n",
        "$$",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        "](",
        "![",
        "[x]: ",
        "&lt;",
        "&#x202e;",
        "1. ",
        "|-|-|\n",
    ),
    *("https://a.b/", "javascript:", "data:", "mailto:a@b", "//", "<script>", "</pre>", "<!--"),
)
"""What Markdown and HTML are made of."""

fragments = st.lists(
    st.one_of(
        st.sampled_from(MARKS),
        st.sampled_from(list(PAYLOADS.values())).filter(lambda text: len(text) < 500),
        st.text(st.characters(codec=None), max_size=5),
    ),
    max_size=30,
).map("".join)
anything = st.text(st.characters(codec=None)) | fragments


class Page(HTMLParser):
    """Reads a piece of HTML and refuses whatever is not on the lists above; `seen` is what a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen = ""
        self.sources: list[str] = []
        self.hrefs: list[str] = []
        html.encode()
        self.feed(str(html))  # slices of Markup are Markup and would escape what is joined to them
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert tag in ALLOWED or tag in BARE, tag
        assert given.keys() <= ALLOWED.get(tag, set()), (tag, given)
        assert len(given) == len(attrs)
        name = given.get("class")
        language = tag == "code" and re.fullmatch(r"language-[a-z0-9+#-]+", name or "")
        assert name is None or language or name in CLASSES[tag], (tag, name)
        assert given.get("dir", "auto") in ("auto", "ltr")
        if tag == "a":
            assert given["rel"] == "noopener noreferrer nofollow"
            assert given["target"] == "_blank"
            if "href" in given:
                assert re.match(r"https?://[a-z0-9\[]|mailto:", given["href"], re.IGNORECASE), given["href"]
                assert given["href"].isascii()
                self.hrefs.append(given["href"])
        if name == "invisible-char":
            assert SIGN.fullmatch(given["title"]), given["title"]
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        hidden = {one for one in data if unicodedata.category(one) in UNSEEN and not NEEDED.match(one)}
        assert hidden <= SHOWN_BY_UNICODE
        self.seen += data

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def source(html: str) -> str:
    """The text that a plain page was made of: signs turned back into characters."""

    def back(found: re.Match[str]) -> str:
        return chr(int(found[1], 16)) * int(found[2] or 1)

    inside = re.fullmatch(r'<pre class="plain-text" dir="auto">\n(.*)</pre>', html, re.DOTALL)
    assert inside
    text = re.sub(r'<span class="invisible-char" title="[^"]+">U\+(\w+)(?: ×(\d+))?</span>', back, inside[1])
    text = re.sub("</?mark>", "", text)
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&#34;", '"'), ("&#39;", "'"), ("&amp;", "&")):
        text = text.replace(entity, sign)
    return text


# --- nothing gets in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_payload_makes_nothing_but_text(text):
    Page(markdown_html(text))
    Page(markdown_html(f"- before\n\n  {text}\n\nafter"))
    Page(plain_html(text))
    for side in diff_html(text, "x" + text[::-1]):
        Page(side)


@settings(max_examples=400, deadline=2000)
@given(anything)
@example("<a\ud800 href='javascript:alert(1)'>\0")
def test_any_markdown_makes_only_elements_of_the_list(text):
    Page(markdown_html(text))


@settings(max_examples=300, deadline=2000)
@given(anything)
def test_any_plain_text_comes_back_whole(text):
    html = plain_html(text)
    Page(html)
    assert source(html) == text.replace("\r\n", "\n")


@settings(max_examples=300, deadline=2000)
@given(anything)
def test_json_of_any_text_stays_in_its_script_and_comes_back(text):
    page = json_in_page({"text": text, text: [text]})
    assert json.loads(page) == {"text": text, text: [text]}
    assert re.search("[<>&'\u2028\u2029]", page) is None
    page.encode()


def test_json_escapes_what_ends_a_script_or_a_line():
    assert json_in_page("</script>\u2028\u2029&") == '"\\u003c/script\\u003e\\u2028\\u2029\\u0026"'


def test_json_refuses_numbers_that_json_has_not():
    with pytest.raises(ValueError, match="JSON compliant"):
        json_in_page(float("nan"))


@settings(max_examples=300, deadline=2000)
@given(anything)
def test_any_name_is_one_short_visible_line(text):
    name = safe_name(text)
    assert len(name.splitlines()) <= 1
    assert len(re.sub(r"\[U\+\w+\]", "x", name)) <= 81
    name.encode()


def test_a_name_shows_its_controls_and_its_end():
    assert safe_name(" ad\u202emin\n") == "ad[U+202E]min"
    assert safe_name("a\r\nSet-Cookie: x") == "a[U+000D][U+000A]Set-Cookie: x"
    assert safe_name("x" * 100) == "x" * 80 + "…"


# --- links, images, code, formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "href"),
    [
        ("[a](https://example.org/x)", "https://example.org/x"),
        ("[a](HTTP://example.org)", "HTTP://example.org"),
        ("<mailto:a@example.org>", "mailto:a@example.org"),
        ("[a][1]\n\n[1]: https://example.org", "https://example.org"),
        ("[a](https://ехаmple.org/)", "https://xn--mple-43d7dwd.org/"),
    ],
)
def test_web_and_mail_links_work_and_show_where_they_lead(text, href):
    html = markdown_html(text)
    assert Page(html).hrefs[0].startswith(href[:12])
    assert f'title="{Page(html).hrefs[0]}"' in html


@pytest.mark.parametrize(
    "target",
    ["javascript:alert(1)", "/logout", "//evil.example", "#x", "data:text/html,x", "https:evil.example"],
)
def test_other_links_are_shown_as_they_were_written(target):
    page = Page(markdown_html(f"[click]({target})"))
    assert page.hrefs == []
    assert page.seen.strip() == f"[click]({target})"


def test_an_image_is_named_and_not_loaded():
    html = markdown_html("![a <b> cat](https://example.org/i.png)")
    assert "<img" not in html
    assert "a <b> cat https://example.org/i.png" in Page(html).seen


@pytest.mark.parametrize(
    ("info", "attribute"),
    [
        ("python", ' class="language-python"'),
        ("C++ numbered", ' class="language-c++"'),
        ('a"b', ""),
        ("é", ""),
    ],
)
def test_a_language_becomes_a_class_when_it_is_a_plain_word(info, attribute):
    assert f'<pre dir="ltr"><code{attribute}>x\n</code></pre>' in markdown_html(f"```{info}\nx\n```")


@pytest.mark.parametrize("formula", ["$a_1*b_2*c$", "\\(x_i\\)", "$$\\\\[2pt] *a*$$", "\\[ a_1 < b_1 \\]"])
def test_a_formula_keeps_its_source(formula):
    page = markdown_html(f"as {formula} says")
    assert '<code class="math" dir="ltr">' in page
    assert Page(page).seen.strip() == f"as {formula} says"


def test_a_formula_of_several_lines_is_no_list():
    formula = "\\[\n- a\n\n= b\n\\]"
    page = markdown_html(f"text\n{formula}\ntext")
    assert "<li" not in page
    assert formula in Page(page).seen


def test_prices_are_no_formula():
    assert "math" not in markdown_html("costs $5 and $6, or $5-$6")


def test_lines_stay_lines_and_headings_begin_below_those_of_the_page():
    assert markdown_html("# a\nb\nc") == '<h3 dir="auto">a</h3>\n<p dir="auto">b<br>\nc</p>\n'


def test_a_table_is_aligned_by_classes_not_styles():
    html = markdown_html("|a|b|\n|:-:|-:|\n|c|d|")
    assert html.count('class="align-center"') == html.count('class="align-right"') == 2
    assert "style" not in html


def test_each_block_has_the_direction_of_its_own_letters():
    html = markdown_html("שלום\n\nhello\n\n- مرحبا\n\n  x")
    assert html.count('dir="auto"') == 3  # two paragraphs and the item, whose paragraphs follow it


# --- invisible characters ---------------------------------------------------------------------------------------------


def test_every_control_and_format_character_is_made_visible():
    silent = {
        one
        for one in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(one) in UNSEEN and "invisible-char" not in plain_html(f"a{one}b")
    }
    assert silent == SHOWN_BY_UNICODE


@pytest.mark.parametrize(
    "one", [*map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x180B, 0x3164, 0xFE0F, 0xFFA0, 0xE0100))]
)
def test_letters_and_marks_without_a_shape_are_made_visible(one):
    assert "invisible-char" in plain_html(f"a{one}b")


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",  # Persian: I want
        "क्\u200dष",  # Devanagari: half ka and ssa
        "👩\u200d👩\u200d👧",
        "👩🏽\u200d⚕\ufe0f",
        "❤\ufe0f 1\ufe0f\u20e3",
        "葛\U000e0100",  # a variant of a Han character
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "٣ ٪\t\u00a0x",
    ],
)
def test_characters_that_writing_needs_stay(text):
    assert source(plain_html(text)) == text
    assert "invisible-char" not in plain_html(text) + markdown_html(text)


@pytest.mark.parametrize(
    "text",
    [
        "a\u200cb",
        "a\u200db",
        "\u200d",
        "می\u200c\u200cخ",
        "🏴\U000e0061\U000e007f",
        "x\ufe0f",
        "❤\ufe0f\ufe0f",
    ],
)
def test_the_same_characters_show_where_writing_does_not_need_them(text):
    assert "invisible-char" in plain_html(text)


def test_a_sign_names_its_character_and_counts_repetitions():
    assert plain_html("\u202e" + "\u200b" * 12) == (
        '<pre class="plain-text" dir="auto">\n'
        '<span class="invisible-char" title="U+202E RIGHT-TO-LEFT OVERRIDE">U+202E</span>'
        '<span class="invisible-char" title="U+200B ZERO WIDTH SPACE">U+200B ×12</span></pre>'
    )


def test_signs_without_end_become_words():
    html = plain_html("a\u202e" * 2_001)
    assert html.count("invisible-char") == 2_000
    assert html.endswith("</span>a[U+202E]</pre>")


def test_entities_and_escapes_of_markdown_hide_nothing():
    assert (
        markdown_html("&#x202e; &ZeroWidthSpace; <https://example.org/%E2%80%AE>").count("invisible-char")
        == 3
    )


# --- long and deep texts ----------------------------------------------------------------------------------------------


def pieces_of(html: str) -> list[str]:
    """What is shown, and what each button brings."""
    assert html.endswith("</details>" * html.count("<details"))
    return [source(one) for one in re.findall("<pre.*?</pre>", html, flags=re.DOTALL)]


def test_a_long_text_is_shown_in_pieces_that_make_the_whole():
    text = "".join(f"{number:07} é\n" for number in range(50_000))  # 500,000 characters
    for html in (plain_html(text), markdown_html(text)):
        pieces = pieces_of(html)
        assert [len(one) for one in pieces] == [200_000, 200_000, 100_000]
        assert "".join(pieces) == text
        assert re.findall("<summary>(.*?)</summary>", html) == ["… 200,000 / 500,000", "… 400,000 / 500,000"]
        assert html.index("<details") > html.index("</pre>") and "text-cut" not in html


def test_a_page_carries_so_many_characters_of_a_text_and_says_how_many_there_are():
    html = plain_html("a" * 600_001)
    assert sum(map(len, pieces_of(html))) == 600_000
    assert '<p class="text-cut">… 600,000 / 600,001</p></details>' in html


def test_a_text_of_fifty_thousand_characters_is_markdown_and_a_longer_one_is_shown_as_it_is():
    assert markdown_html("**a** " + "b" * 49_994).startswith('<p dir="auto"><strong>a</strong> b')
    longer = "**a** " + "b" * 49_995
    assert source(markdown_html(longer)) == longer


@pytest.mark.parametrize(
    "text", [">" * 100 + " x", "- " * 100 + "x", "*" * 200 + "x" + "*" * 200, "![" * 101]
)
def test_what_is_nested_too_deep_is_shown_plain_and_whole(text):
    assert source(markdown_html(text)) == text


@pytest.mark.parametrize("text", [">" * 10 + " x", "- " * 10 + "x", "*a " * 10 + "b*" * 10])
def test_what_people_nest_is_still_markdown(text):
    assert "plain-text" not in markdown_html(text)


HOSTILE_TO_PARSERS = {
    "quotes": ">",
    "quotes on lines": "> " * 50 + "x\n",
    "lists": "- ",
    "numbers": "1. ",
    "stairs": None,
    "brackets": "[",
    "closed brackets": "[]",
    "images": "![",
    "images in images": None,
    "links": "[a](b",
    "links with angles": "[a](<b",
    "links with titles": '[a](b "',
    "links with parentheses": "[a](" + "(" * 30,
    "nested links": None,
    "references": "[a]: b\n",
    "references wanted": "[a] ",
    "many references": None,
    "emphasis": "*a ",
    "emphasis closed": "a* ",
    "emphasis mixed": "*_a ",
    "emphasis both ways": "a**b",
    "emphasis deep": None,
    "strikes": "~~a ",
    "backticks": None,
    "code": "`a",
    "entities": "&",
    "autolinks": "<a:",
    "mails": "<a@",
    "escapes": "\\",
    "formulas": "$a",
    "formulas of brackets": "\\(a \\[",
    "formula blocks": "$$\na\n",
    "formula lines": "\\[\n",
    "tables": None,
    "fences": "```\n",
    "tags": "<a ",
    "comments": "<!--",
    "rules": "---\n",
    "blank lines": "\n",
    "spaces": " ",
    "tabs": "\t",
    "one letter": "a",
    "zero widths": "\u200b",
    "two zero widths": "\u200b\u200c",
    "signs between letters": "a\u202e",
    "joiners": "م\u200c",
}
SIZE = 200_000


def at_full_size(name: str) -> str:
    built = {
        "stairs": lambda: "\n".join("  " * depth + "- a" for depth in range(600)),
        "images in images": lambda: "![" * 20_000 + "a" + "](https://b.c)" * 12_000,
        "nested links": lambda: "[" * 20_000 + "a" + "](https://b.c)" * 12_000,
        "many references": lambda: "".join(f"[{n}]: https://b.c\n" for n in range(5_000)) + "[1][2]" * 15_000,
        "emphasis deep": lambda: "*" * 100_000 + "a" + "*" * 99_999,
        "backticks": lambda: "".join("a" + "`" * n for n in range(600)),
        "tables": lambda: "|" + "a|" * 40_000 + "\n|" + "-|" * 40_000 + "\n" + "|a\n" * 10_000,
    }
    unit = HOSTILE_TO_PARSERS[name]
    return (built[name]() if unit is None else unit * (SIZE // len(unit)))[:SIZE]


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE_TO_PARSERS)
def test_no_text_takes_long(name):
    text = at_full_size(name)
    for show in (markdown_html, plain_html, lambda text: diff_html(text, text[1:] + "x")[0]):
        began = time.process_time()
        html = show(text)
        assert time.process_time() - began < 10
        assert len(html) < 4_000_000


# --- differences ------------------------------------------------------------------------------------------------------


def marked(html: str) -> list[str]:
    """Without the white space around: of two equal line feeds either may count as the new one."""
    return [one.strip() for one in re.findall("<mark>(.*?)</mark>", html, re.DOTALL)]


@pytest.mark.parametrize(
    ("a", "b", "only_a", "only_b"),
    [
        ("the cat sat", "the dog sat", ["cat"], ["dog"]),
        ("same", "same", [], []),
        ("", "all new", [], ["all new"]),
        ("one two three", "one three", ["two"], []),
        ("今天天气很好", "今天天气不好", ["很"], ["不"]),
        ("a b c d e", "a x c y e", ["b", "d"], ["x", "y"]),
        ("a <b> c", "a <i> c", ["b"], ["i"]),
        ("first\nsecond\nthird\n", "second\nthird\nfirst\n", ["first"], ["first"]),
        ("می\u200cخواهم", "نمی\u200cخواهم", ["می\u200cخواهم"], ["نمی\u200cخواهم"]),
    ],
)
def test_words_that_the_other_side_lacks_are_marked(a, b, only_a, only_b):
    shown_a, shown_b = diff_html(a, b)
    assert marked(shown_a) == only_a
    assert marked(shown_b) == only_b


@settings(max_examples=300, deadline=2000)
@given(anything, anything)
def test_a_difference_hides_nothing_and_what_is_not_marked_is_the_same(a, b):
    shown_a, shown_b = diff_html(a, b)
    assert source(shown_a) == a.replace("\r\n", "\n")
    assert source(shown_b) == b.replace("\r\n", "\n")
    common_a, common_b = (re.sub("<mark>.*?</mark>", "", one, flags=re.DOTALL) for one in (shown_a, shown_b))
    assert source(common_a) == source(common_b)


def test_long_texts_that_share_nothing_are_marked_whole_in_bounded_time():
    a = " ".join(f"a{number % 7}" for number in range(60_000))
    b = " ".join(f"b{number % 7}" for number in range(60_000))
    began = time.process_time()
    shown_a, shown_b = diff_html(a, b)
    assert time.process_time() - began < 5
    assert "<mark>" in shown_a
    assert "<mark>" in shown_b
