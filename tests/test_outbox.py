"""Mail as files."""

from __future__ import annotations

import uuid
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.policy import default
from email.utils import parsedate_to_datetime
from pathlib import Path

from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from registration import messages
from registration.errors import InvalidEmailMessageException
from registration.mailers import Recipient, Verdict
from registration.mailers.outbox import OutboxMailer
from registration.messages import LONGEST_TITLE, Message

from . import factories

MESSAGE = Message(subject="Update now \U0001f6a8", text="Es gibt eine Lücke.\n")


def read(folder: Path) -> list[EmailMessage]:
    return [message_from_bytes(file.read_bytes(), policy=default) for file in sorted(folder.glob("*.eml"))]


def body(mail: EmailMessage, kind: str) -> str:
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def test_a_file_has_the_headers_of_a_list_and_a_long_link_stays_whole(tmp_path: Path) -> None:
    link = f"https://registration.example.org/opt-out/{'t' * 400}"
    head = factories.letterhead(opt_out_url=lambda _: link, reply_to="board@example.org", sender_name='Ünï "x", <y>')

    OutboxMailer(tmp_path, head).send(MESSAGE, [Recipient(1, "ann@example.org", uuid.UUID(int=1))])

    (mail,) = read(tmp_path)
    (file,) = tmp_path.iterdir()
    assert f"\r\nList-Unsubscribe: <{link}>\r\n".encode() in file.read_bytes(), "no mail program decodes it"
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert mail["List-Id"].endswith("<notices.registration.example.org>")
    assert (mail["Auto-Submitted"], mail["Reply-To"]) == ("auto-generated", "board@example.org")
    assert [one.display_name for one in mail["From"].addresses] == ['Ünï "x", <y>']
    assert link in body(mail, "plain")
    assert link in body(mail, "html")
    assert mail.get_content_type() == "multipart/alternative"


def test_every_recipient_gets_a_file_that_a_mail_program_opens(tmp_path: Path) -> None:
    outcomes = OutboxMailer(tmp_path / "outbox", factories.letterhead()).send(
        MESSAGE, [Recipient(1, "ann@example.org"), Recipient(2, "bob@example.org")]
    )

    ann, bob = read(tmp_path / "outbox")
    assert (ann["To"], bob["To"]) == ("ann@example.org", "bob@example.org")
    assert (ann["From"], ann["Subject"]) == ("notices@example.org", MESSAGE.subject)
    assert body(ann, "plain").startswith(MESSAGE.text)
    assert "Lücke" in body(ann, "html")
    assert parsedate_to_datetime(ann["Date"]).tzinfo is not None
    assert ann["Message-ID"].endswith("@example.org>")
    assert ann["Message-ID"] != bob["Message-ID"]
    assert [(outcome.verdict, outcome.message_id) for outcome in outcomes] == [
        (Verdict.ACCEPTED, ann["Message-ID"]),
        (Verdict.ACCEPTED, bob["Message-ID"]),
    ]


def test_an_unusual_address_stays_inside_the_folder(tmp_path: Path) -> None:
    OutboxMailer(tmp_path, factories.letterhead()).send(
        MESSAGE, [Recipient(1, "../a/b@example.org"), Recipient(2, f"{'x' * 60}@{'y' * 180}.org")]
    )

    assert [mail["To"] for mail in read(tmp_path)] == ["../a/b@example.org", f"{'x' * 60}@{'y' * 180}.org"]


def test_an_address_that_no_header_can_hold_fails_alone(tmp_path: Path) -> None:
    """One that was registered before such addresses were refused held up everybody."""
    addresses = ["=?utf-8?q?a=0Ab?=@example.org", "b@example.org"]
    recipients = [Recipient(number, each) for number, each in enumerate(addresses)]

    outcomes = OutboxMailer(tmp_path, factories.letterhead()).send(MESSAGE, recipients)

    assert [outcome.verdict for outcome in outcomes] == [Verdict.REFUSED, Verdict.ACCEPTED]
    assert [mail["To"] for mail in read(tmp_path)] == ["b@example.org"]


def test_sending_a_delivery_again_replaces_its_file(tmp_path: Path) -> None:
    mailer = OutboxMailer(tmp_path, factories.letterhead())
    for _ in range(2):
        mailer.send(MESSAGE, [Recipient(1, "ann@example.org")])

    assert len(read(tmp_path)) == 1


@given(title=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=LONGEST_TITLE))
@example(title="\u00e9 " * 100)
@example(title="Ein Loch  in  \u00dcbertragung   wird geschlossen, bitte heute noch " + "\U0001f6a8 " * 60)
@example(title="a " * 100)
@example(title="\u05e2\u05d3\u05db\u05e0\u05d5 " * 20)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_the_title_is_what_was_written_and_in_short_lines_of_ascii(tmp_path: Path, title: str) -> None:
    try:
        message = messages.compose(title, "Text")
    except InvalidEmailMessageException:
        return
    OutboxMailer(tmp_path, factories.letterhead()).send(message, [Recipient(1, "ann@example.org")])

    (file,) = tmp_path.glob("*.eml")
    raw = file.read_bytes()
    assert message_from_bytes(raw, policy=default)["Subject"] == message.subject
    assert str(make_header(decode_header(message_from_bytes(raw)["Subject"]))) == message.subject
    lines = raw.partition(b"Subject: ")[2].partition(b"\r\nDate: ")[0].split(b"\r\n")
    assert all(len(line) <= 78 and line.isascii() for line in lines)


@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\t\n"), min_size=1))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
def test_the_text_is_what_was_written(tmp_path: Path, text: str) -> None:
    OutboxMailer(tmp_path, factories.letterhead()).send(Message("Title", text), [Recipient(1, "ann@example.org")])

    (mail,) = read(tmp_path)
    assert body(mail, "plain").startswith(text)
