"""Letters: what a recipient sees, and that it is what was written, all the way through each mailer."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import partial
from html.parser import HTMLParser
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from markupsafe import escape

from registration import markup, messages
from registration.errors import InvalidEmailMessageException
from registration.mailers import Mailer, Recipient, Verdict
from registration.mailers.letters import LONGEST_LINK, STOP, WHY, render
from registration.mailers.outbox import OutboxMailer
from registration.mailers.ses import SesMailer, make_client
from registration.messages import Message

from . import factories, ses_fake
from .ses_fake import SesFake

PEOPLE = [Recipient(number, f"clinic-{number}@example.org", uuid.UUID(int=number)) for number in (1, 2, 3)]
PRODUCT_ID = uuid.UUID(int=1)
LINK = f"https://registration.example.org/opt-out/{PRODUCT_ID.hex}"
Send = Callable[[Message], list[EmailMessage]]

_written = st.characters(exclude_categories=["Cc", "Cs"], include_characters="\t\n")
titles = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=200).filter(
    lambda title: title == title.strip() != "" and "=?" not in title
)
texts = st.text(_written, min_size=1).filter(str.strip)
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


class Shown(HTMLParser):
    """The text that a mail program shows of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.hidden = "", 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in {"style", "title"}

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in {"style", "title"}

    def handle_data(self, data: str) -> None:
        self.text += "" if self.hidden else data


@pytest.fixture(scope="module")
def fake() -> Iterator[SesFake]:
    with ses_fake.running() as fake:
        yield fake


@pytest.fixture(params=["single", "bulk", "outbox"])
def send(request: pytest.FixtureRequest, fake: SesFake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Send:
    """Send a message by one of the three ways, and return the mails as their recipients' programs read them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", fake.url)
    outbox = request.param == "outbox"
    mailer: Mailer = OutboxMailer(tmp_path, factories.letterhead())
    if not outbox:
        mailer = SesMailer(partial(make_client, "us-east-1", "test", "test"), factories.letterhead())
    people = PEOPLE[:1] if request.param == "single" else PEOPLE

    def send_and_read(message: Message) -> list[EmailMessage]:
        fake.accepted.clear()
        size = mailer.largest_batch(message)
        for batch in (people[start : start + size] for start in range(0, len(people), size)):
            assert {outcome.verdict for outcome in mailer.send(message, batch)} == {Verdict.ACCEPTED}
        if not outbox:
            return [accepted.mail for accepted in fake.accepted]
        return [message_from_bytes(file.read_bytes(), policy=default) for file in sorted(tmp_path.glob("*.eml"))]

    return send_and_read


def part(mail: EmailMessage, kind: str) -> str:
    found = mail.get_body((kind,))
    assert found is not None
    return str(found.get_content()).replace("\r\n", "\n")


def html_of(contents: str, html: str | None = None) -> str:
    return factories.letterhead().write(messages.compose("Update now", contents, html)).html.with_link(LINK)


@given(title=titles, text=texts)
@example(title="Use {{ x }} & <b>", text="{{ mustache }} {{{x}}} {{ 5 {{link}} {{/if}} \\{{x}}")
@example(title="\U0001f6a8 \"quotes' =?", text="</td></body></html><script>alert(1)</script> &amp; &lt;")
@example(
    title="\u05e9\u05dc\u05d5\u05dd",
    text="\u05e2\u05d3\u05db\u05e0\u05d5 \u0639\u0631\u0628\u064a \u202eabc \U0001f468\u200d\u2695\ufe0f",
)
@example(title="x" * 200, text="x" * 50_000 + " " + "y" * 49_999)
@example(title="\U0001f6a8" * 200, text='"<{{&' * 20_000)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_a_message_arrives_exactly_as_written(send: Send, title: str, text: str) -> None:
    for mail in send(Message(title, text)):
        assert mail["Subject"] == title
        plain = part(mail, "plain")
        assert plain.startswith(f"{text}\n\n-- \n{WHY}")
        assert not mail.defects


@given(words=st.text(st.sampled_from("ab<>&\"'{}\U0001f6a8\u05e9"), min_size=1))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_plain_words_are_shown_as_written_in_the_html_part(send: Send, words: str) -> None:
    for mail in send(Message("Title", f"a{words}b")):
        assert f"a{words}b" in Shown(part(mail, "html")).text


@given(html=texts)
@example(html="<p>{{ x }} {{link}}</p>")
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_html_of_ones_own_arrives_as_written(send: Send, html: str) -> None:
    for mail in send(Message("Title", "Text", html=f"<p>{html}</p>")):
        assert f"<p>{html}</p>" in part(mail, "html")


def test_each_recipient_gets_their_own_link_in_both_parts(send: Send) -> None:
    for person, mail in zip(PEOPLE, send(Message("Title", "Text")), strict=False):
        assert person.product_id is not None
        assert f"{STOP}: https://registration.example.org/opt-out/{person.product_id.hex}\n" in part(mail, "plain")
        assert f'href="https://registration.example.org/opt-out/{person.product_id.hex}"' in part(mail, "html")


@pytest.mark.parametrize(
    "title", ["a\r\nBcc: x@example.org", "a\nb", "a\rb", "a\0b", "a\x85b", "a\u2028b", "a =?utf-8?q?=0D=0ABcc:_x?="]
)
def test_a_title_cannot_bring_a_header(title: str) -> None:
    with pytest.raises(InvalidEmailMessageException):
        messages.compose(title, "Text")


@pytest.mark.parametrize(
    "link", ["https://example.org/\r\nBcc:x", 'https://example.org/"><b>', f"https://e/{'x' * 990}"]
)
def test_a_link_that_would_break_a_header_or_the_page_is_refused(link: str) -> None:
    with pytest.raises(ValueError, match="opt-out link"):
        factories.letterhead(opt_out_url=lambda _: link).link(PRODUCT_ID)
    assert LONGEST_LINK < 996


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
        "10023. A bug",
        "2026. A year",
        "&lt; &amp; &nbsp;",
    ],
)
def test_a_line_of_versions_numbers_or_entities_is_shown_as_it_was_written(line: str) -> None:
    shown = str(escape(line))

    assert f">{shown}</p>" in render(line)
    assert f"<br />\n{shown}</p>" in render(f"Before\n{line}")
    assert f">{shown}</li>" in render(f"- {line}")


def test_a_quotation_ends_before_a_line_of_versions() -> None:
    html = render("> Ann asked\n> for it.\n>= 7.0.0 and\nabove.\n\n> 7.0.2 too\n\n> > Deep\n> >= 7")

    words = " ".join(Shown(html).text.split())
    assert words == "Ann asked for it. >= 7.0.0 and above. > 7.0.2 too Deep >= 7"


@pytest.mark.parametrize("path", ["L\u2019\u00c9tranger", "Gauss\u2013Bonnet", "Col\u00b7legi", "f(x)"])
def test_what_is_no_quotation_mark_does_not_cut_a_bare_address(path: str) -> None:
    assert f">https://open-emr.org/{path}</a>" in render(f"See \u201chttps://open-emr.org/{path}\u201d.")


@pytest.mark.parametrize("text", ["> they said", ">they said", "> 5 said so", "> > 7 of them"])
def test_what_was_said_is_a_quotation(text: str) -> None:
    assert "<blockquote" in render(text)


def test_a_letter_says_why_one_gets_it_from_whom_and_how_to_stop() -> None:
    letter = factories.letterhead().write(Message("Title", "Text"))

    for part in (letter.text, letter.html):
        whole = part.with_link(LINK)
        assert all(words in whole for words in (WHY, STOP, LINK, factories.letterhead().postal_address))


@pytest.mark.parametrize(
    ("html", "end"),
    [
        ("<!doctype html><html><body><p>Own</p></body></html>", "</div></body></html>"),
        ("<HTML><BODY><p></body></p>Own</BODY></HTML>\n", "</div></BODY></HTML>\n"),
        ("<html><p>Own</html>", "</div></html>"),
        ("<body><p>Own", "</div>"),
        ("<body>Own</body></html><!-- </body> -->", "</div></body></html><!-- </body> -->"),
        ("<body>Own</body><style>/*</body>*/</style>", "</div></body><style>/*</body>*/</style>"),
    ],
)
def test_a_whole_document_keeps_its_own_looks_and_gets_the_footer_at_its_end(html: str, end: str) -> None:
    mail = html_of("Text", html)

    assert mail.endswith(end)
    assert mail.startswith(html[:6])
    assert mail.count(LINK) == mail.count(WHY) == 1
    assert 'class="oemr-sheet"' not in mail


def test_the_footer_is_looked_for_in_a_page_like_ours() -> None:
    words, marked = "board", html_of("Text", "board")

    between = re.search(rf"<body.*{words}.*oemr-footer", marked, re.DOTALL)
    assert between is not None
    before, _, after = between[0].partition(f"\n{words}\n")
    tags = [re.findall(r"</?(?:body|table|tr|td)\b", part) for part in (before, after)]
    assert tags == [re.findall(r"</?(?:body|table|tr|td)\b", part) for part in markup.CARD]


def test_a_style_sheet_of_the_boards_own_does_not_hide_the_footer_by_accident() -> None:
    mail = html_of("Text", "<style>.footer { display: none }</style><p>Own</p>")

    (footer,) = re.findall(r'<td class="oemr-footer" style="([^"]*)"', mail)
    assert 'class="footer' not in mail
    for protection in ("display: table-cell", "visibility: visible", "opacity: 1"):
        assert f"{protection} !important" in footer


@pytest.mark.parametrize("link", ["http://a", "https://a.b/c,"])
def test_links_in_one_long_word_take_no_minute_to_find(link: str) -> None:
    begun = time.process_time()

    rendered = render(link * (messages.LONGEST_CONTENTS // len(link)) + " https://b.example/c")

    assert 'href="https://b.example/c"' in rendered
    assert time.process_time() - begun < 20


def test_a_fragment_takes_the_place_of_the_rendered_text_in_our_page() -> None:
    mail = html_of("**Text**", "<h1>Own</h1>")

    assert "<h1>Own</h1>" in mail
    assert "Text" not in Shown(mail).text
    assert mail.count(LINK) == 1
    assert 'class="oemr-sheet"' in mail


@pytest.mark.parametrize("html", ["", "  ", "x" * (messages.LONGEST_HTML + 1), "a\0b"])
def test_html_that_is_empty_too_long_or_not_text_is_refused(html: str) -> None:
    with pytest.raises(InvalidEmailMessageException, match="html"):
        messages.compose("Title", "Text", html)


def test_lines_between_fences_are_shown_as_typed() -> None:
    html = render("```\n$ a  <b>\n  c\n```")

    assert "$ a  &lt;b&gt;\n  c\n</pre>" in html
    assert '<pre style="' in html
