"""Letters: what a recipient sees, and that it is what was written, all the way through each mailer."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from registration import markup, messages
from registration.errors import InvalidEmailMessageException
from registration.mailers import Mailer, Recipient, Verdict
from registration.mailers.letters import LONGEST_LINK, STOP, WHY
from registration.mailers.outbox import OutboxMailer
from registration.mailers.ses import SesMailer, make_client
from registration.messages import Message

from . import factories, ses_fake
from .inbox import Shown
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
