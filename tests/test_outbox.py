"""Mail as files."""

from __future__ import annotations

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from email.utils import parsedate_to_datetime
from pathlib import Path

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from registration.mailers import Recipient, Verdict
from registration.mailers.outbox import OutboxMailer
from registration.messages import Message

MESSAGE = Message(subject="Update now \U0001f6a8", text="Es gibt eine Lücke.\n")


def read(folder: Path) -> list[EmailMessage]:
    return [message_from_bytes(file.read_bytes(), policy=default) for file in sorted(folder.glob("*.eml"))]


def test_every_recipient_gets_a_file_that_a_mail_program_opens(tmp_path: Path) -> None:
    outcomes = OutboxMailer(tmp_path / "outbox", "notices@example.org").send(
        MESSAGE, [Recipient(1, "ann@example.org"), Recipient(2, "bob@example.org")]
    )

    ann, bob = read(tmp_path / "outbox")
    assert (ann["To"], bob["To"]) == ("ann@example.org", "bob@example.org")
    assert (ann["From"], ann["Subject"]) == ("notices@example.org", MESSAGE.subject)
    assert ann.get_content().replace("\r\n", "\n") == MESSAGE.text
    assert parsedate_to_datetime(ann["Date"]).tzinfo is not None
    assert ann["Message-ID"].endswith("@example.org>")
    assert ann["Message-ID"] != bob["Message-ID"]
    assert [(outcome.verdict, outcome.message_id) for outcome in outcomes] == [
        (Verdict.ACCEPTED, ann["Message-ID"]),
        (Verdict.ACCEPTED, bob["Message-ID"]),
    ]


def test_an_unusual_address_stays_inside_the_folder(tmp_path: Path) -> None:
    OutboxMailer(tmp_path, "notices@example.org").send(
        MESSAGE, [Recipient(1, "../a/b@example.org"), Recipient(2, f"{'x' * 60}@{'y' * 180}.org")]
    )

    assert [mail["To"] for mail in read(tmp_path)] == ["../a/b@example.org", f"{'x' * 60}@{'y' * 180}.org"]


def test_sending_a_delivery_again_replaces_its_file(tmp_path: Path) -> None:
    mailer = OutboxMailer(tmp_path, "notices@example.org")
    for _ in range(2):
        mailer.send(MESSAGE, [Recipient(1, "ann@example.org")])

    assert len(read(tmp_path)) == 1


@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\t\n"), min_size=1))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
def test_the_text_is_what_was_written(tmp_path: Path, text: str) -> None:
    OutboxMailer(tmp_path, "notices@example.org").send(Message("Title", text), [Recipient(1, "ann@example.org")])

    (mail,) = read(tmp_path)
    assert mail.get_content().replace("\r\n", "\n").rstrip("\n") == text.rstrip("\n")
