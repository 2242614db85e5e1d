"""Markdown that people write as if it were plain text: nothing of it is lost, and it looks as they meant it."""

from __future__ import annotations

import re
import time
from itertools import count

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from markupsafe import escape

from registration import messages
from registration.markdown import render

from .inbox import Shown

_MARKS = [
    ">",
    "> ",
    "- ",
    "* ",
    "1. ",
    "#",
    " ",
    "    ",
    "\t",
    "\n",
    "\n\n",
    "|",
    "\n|-|-|\n",
    "---\n",
    "=\n",
    "```\n",
    "~~~\n",
]
_MARKS += [
    " `",
    "[",
    "]",
    "](",
    ")",
    "![",
    "*",
    "_",
    "**",
    "\n[1]: https://open-emr.org/",
    "\\",
    "&",
    "<",
    "<!--",
    "-->",
]


def _repeated(mark_and_number: tuple[str, int]) -> str:
    mark, number = mark_and_number
    return mark * number


def test_markdown_becomes_html_with_its_styles_in_each_tag() -> None:
    html = render("# Head\n\nSome **bold** and `code`.\n\n- one\n- two\n\n| a |\n|---|\n| b |")

    assert '<h1 style="' in html
    assert "<strong>bold</strong>" in html
    assert all(f'<{tag} style="' in html for tag in ("p", "code", "ul", "li", "table", "th", "td"))


@given(
    pieces=st.lists(
        st.sampled_from(["WORD"] * 10 + _MARKS) | st.tuples(st.sampled_from(_MARKS), st.integers(2, 60)).map(_repeated),
        min_size=1,
        max_size=60,
    )
)
@example(pieces=[">" * 99_000, " ", "WORD"])
@example(pieces=["- " * 49_000, "WORD"])
@example(pieces=["1. > " * 15_000, "WORD"])
@example(pieces=["\n".join(f"{'  ' * depth}- WORD" for depth in range(100))])
@example(pieces=["[" * 90, "WORD", "](" * 90, "WORD"])
@example(pieces=["WORD\n\n[1]: https://open-emr.org/WORD\n[2]: <WORD> 'WORD'\n\nWORD"])
@example(pieces=["| WORD | WORD |\n|---|---|\n| WORD | WORD | WORD | WORD |\n|| WORD | WORD\n"])
@example(pieces=["~~~ WORD WORD ~~~\nWORD"])
@example(pieces=["~~~WORD~~~\n~~~\nWORD"])
@example(pieces=["![WORD](", "))"])
@hypothesis_settings(deadline=None, max_examples=300)
def test_no_word_of_the_contents_is_missing_from_the_html_part(pieces: list[str]) -> None:
    numbers = count()
    contents = re.sub("WORD", lambda _: f"w{next(numbers)}x", "".join(pieces))

    shown = Shown(render(contents)).text

    assert [word for word in re.findall(r"w\d+x", contents) if word not in shown] == []


@pytest.mark.parametrize("mark", [">", "- "])
def test_what_is_nested_too_deep_for_a_phone_is_text(mark: str) -> None:
    html = render(mark * 30 + "Text")

    assert html.count("<blockquote") + html.count("<ul") == 5
    assert Shown(html).text.strip() == f"{mark * 25}Text"


def test_plain_text_keeps_its_lines_and_its_indentation_is_no_code() -> None:
    html = render("Dear all,\nplease update.\n\n    Yours")

    assert "Dear all,<br>" in html.replace("<br />", "<br>")
    assert "<pre" not in html


@pytest.mark.parametrize(
    "text",
    [
        r"Delete C:\_backup and \\server\share\*.php, and again C:\*.php",
        "Look at sites/*/documents/*.php, sites/*/era/*.php, *.php and *.inc, or *.php,*.inc",
        "__init__.py, __construct, _id_ and /etc/__pycache__/x",
        "5*3*2 = 30 and 2**3**4",
        r"Remove *.php from sites/default/documents/* and *.php in C:\dir\*, *.*, or *_old and log_*",
        "src/**/*.js, **/docs/**/*.php, **/**/x and /**/",
        "Use \"*\" or '*', (*) or [*], 'openemr'@'*' or '*'@'localhost', and {**} or \"**\"",
        r"Escape \* and \_ and \# and \\",
    ],
)
def test_paths_and_calculations_stay_as_they_were_written(text: str) -> None:
    html = render(text)

    assert Shown(html).text.strip() == text
    assert html.count("<") == 2


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("(**yes**) and *no*.", "(<strong>yes</strong>) and <em>no</em>."),
        ("**Note:** ***both***, **bold *nested* here**", "<strong>bold <em>nested</em> here</strong>"),
        ('"**quoted**"', "<strong>quoted</strong>"),
        ("**Sicherheits**-Update", "<strong>Sicherheits</strong>-Update"),
        ("**重要**です", "<strong>重要</strong>です"),
        ("**7.0.2**/**7.0.3**", "<strong>7.0.2</strong>/<strong>7.0.3</strong>"),
    ],
)
def test_words_between_asterisks_are_emphasized(text: str, html: str) -> None:
    assert html in render(text)


def test_items_keep_the_numbers_that_they_were_given() -> None:
    """Markdown would count on, and make the third of December of the twelfth."""
    html = render("1. Back up.\n2. Update.\n\n12. December is the deadline.\n\n- no number")

    assert re.findall(r'<li value="(\d+)"', html) == ["1", "2", "12"]
    assert html.count("<li") == 4


def test_a_line_of_dashes_makes_no_heading_of_what_is_above_it() -> None:
    html = render("Yours,\nthe board\n---\nOpenEMR\n===")

    assert "<h" not in html.replace("<hr", "")
    assert Shown(html).text.split() == ["Yours,", "the", "board", "OpenEMR", "==="]


def test_html_inside_markdown_is_shown_and_not_run() -> None:
    html = render("<script>alert(1)</script>\n\n<img src=x onerror=alert(1)> and <b>this</b>")

    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "/relative", "relative", "//host/x", "data:text/html,x", "ftp://h/x"]
)
def test_a_link_that_is_not_absolute_http_or_mailto_stays_text(url: str) -> None:
    html = render(f"[click]({url}) ![image]({url})")

    assert "<a" not in html
    assert "<img" not in html


@pytest.mark.parametrize(
    "text",
    [
        "[words]()",
        "[words]( )",
        "![words]()",
        "![words](mailto:board@example.org)",
        "[![words](mailto:board@example.org)]()",
    ],
)
def test_a_link_to_nothing_and_an_image_that_is_none_stay_text(text: str) -> None:
    html = render(f"Before {text} [this one](https://open-emr.org) after")

    assert f"Before {text} <a href" in html
    assert html.count("<a ") == html.count("</a>") == 1
    assert "<img" not in html


@pytest.mark.parametrize(("length", "links"), [(1_990, 1), (2_001, 0)])
def test_a_bare_address_becomes_a_link_as_a_whole_or_not_at_all(length: int, links: int) -> None:
    address = "https:" + "//open-emr.org/".ljust(length, "a")

    assert render(f"See {address}.").count(f'href="{address}"') == links
    assert render(f"See {address}.").count("<a ") == links


def test_an_exclamation_mark_before_a_link_makes_no_image_of_it() -> None:
    html = render("Update now![Notes](https://open-emr.org) ![Logo](https://open-emr.org/logo.png)")

    assert 'now!<a href="https://open-emr.org"' in html
    assert 'alt="Logo"' in html
    assert html.count("<img") == 1


def test_a_bare_address_is_shown_as_it_was_written() -> None:
    address = "https://open-emr.org/a%20b%2Ac%E2%80%AEd"

    assert f'href="{address}"' in render(address)
    assert f">{address}</a>" in render(address)


@pytest.mark.parametrize("words", ["", " "])
def test_a_link_without_words_shows_its_address(words: str) -> None:
    assert ">https://open-emr.org</a>" in render(f"[{words}](https://open-emr.org)")


@pytest.mark.parametrize("url", ["https://open-emr.org/a?b=1", "http://open-emr.org", "mailto:board@example.org"])
def test_a_proper_link_is_one(url: str) -> None:
    assert f'href="{url}"' in render(f"[click]({url})")


@pytest.mark.parametrize(
    "around",
    [
        "{}.",
        "{}\u2019",
        "({})",
        "“{}”",
        "“{}.”",
        '"{}."',
        "\u2018{}\u2019",
        "„{}“",
        "»{}«",
        "{}…",
        "{}!",
        "{}。然后",
        "{}، then",
        "{}। then",
        "{}\u2014it",
        "{}\u200b",
        "{}: this",
        "<{}>",
    ],
)
def test_a_bare_address_of_the_web_becomes_a_link_without_what_is_around_it(around: str) -> None:
    address = "https://open-emr.org/a_(b)/c.d?e=[f],g;h'i"

    assert f'href="{address.translate({91: "%5B", 93: "%5D"})}"' in render(f"See {around.format(address)} now")


@pytest.mark.parametrize(
    "line",
    [
        ">= 6.0.0, < 7.0.3",
        ">=7",
        ">7, <8",
        ">7.0.2",
        "> 7.0.2 too",
        "> 8",
        "> v8.0, < 9",
        ">v8",
        "10023. A bug",
        "2026. A year",
        "01. October",
        "1) one",
        "+ 1 555 123",
        "&lt; &amp; &nbsp;",
    ],
)
def test_a_line_of_versions_numbers_or_entities_is_shown_as_it_was_written(line: str) -> None:
    shown = str(escape(line))

    assert f">{shown}</p>" in render(line)
    assert f"<br />\n{shown}</p>" in render(f"Before\n{line}")
    assert f">{shown}</li>" in render(f"- {line}")
    assert f">{shown}</p>" in render(f"> Somebody asked.\n\n{line}")


def test_a_quotation_ends_before_a_line_of_versions() -> None:
    html = render("> Ann asked\n> for it.\n>= 7.0.0 and\nabove.\n\n> So?\n>7 is.\n\n> 7.0.2 too\n\n> > Deep\n> >= 7")

    words = " ".join(Shown(html).text.split())
    assert words == "Ann asked for it. >= 7.0.0 and above. So? >7 is. > 7.0.2 too Deep >= 7"


@pytest.mark.parametrize("path", ["L\u2019\u00c9tranger", "Gauss\u2013Bonnet", "Col\u00b7legi", "f(x)"])
def test_what_is_no_quotation_mark_does_not_cut_a_bare_address(path: str) -> None:
    assert f">https://open-emr.org/{path}</a>" in render(f"See \u201chttps://open-emr.org/{path}\u201d.")


@pytest.mark.parametrize("text", ["> they said", ">they said", "> they said so 5 times", "> > they"])
def test_what_was_said_is_a_quotation(text: str) -> None:
    assert "<blockquote" in render(text)


@pytest.mark.parametrize("link", ["http://a", "https://a.b/c,"])
def test_links_in_one_long_word_take_no_minute_to_find(link: str) -> None:
    begun = time.process_time()

    rendered = render(link * (messages.LONGEST_CONTENTS // len(link)) + " https://b.example/c")

    assert 'href="https://b.example/c"' in rendered
    assert time.process_time() - begun < 20


@pytest.mark.parametrize("text", ["```reboot\n```", "``` iisreset\nthen log in\n```"])
def test_words_beside_a_fence_are_no_language_where_a_language_is_not_meant(text: str) -> None:
    words = re.findall(r"\w+", text)

    assert re.findall(r"\w+", Shown(render(text)).text) == words


def test_lines_between_fences_are_shown_as_typed() -> None:
    html = render("```\n$ a  <b>\n  c\n```")

    assert "$ a  &lt;b&gt;\n  c\n</pre>" in html
    assert '<pre style="' in html
