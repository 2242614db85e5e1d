"""Mail through Amazon SES, against a fake that can do what moto cannot, and against moto where it can."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from threading import Barrier
from typing import Any

import boto3
import pytest
from botocore.exceptions import CredentialRetrievalError
from botocore.utils import ContainerMetadataFetcher
from botocore.validate import ParamValidator
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from moto import mock_aws
from moto.ses.models import ses_backends

from registration import messages
from registration.mailers import Account, Outcome, Recipient, Verdict
from registration.mailers import ses as ses_module
from registration.mailers.letters import Letterhead
from registration.mailers.ses import SesMailer, make_client
from registration.messages import LONGEST_CONTENTS, Message

from . import factories, ses_fake
from .mariadb import free_port
from .ses_fake import Answer, SesFake

SENDER = "notices@example.org"
MESSAGE = Message(subject="Update now", text="There is a hole.\n")
ONE = [Recipient(7, "ann@example.org")]
THREE = [Recipient(7, "ann@example.org"), Recipient(8, "bob@example.org"), Recipient(9, "cid@example.org")]


@pytest.fixture(scope="module")
def shared_fake() -> Iterator[SesFake]:
    with ses_fake.running() as fake:
        yield fake


@pytest.fixture
def fake(shared_fake: SesFake) -> SesFake:
    shared_fake.accepted.clear()
    shared_fake.calls.clear()
    shared_fake.answers.clear()
    shared_fake.usual = Answer()
    return shared_fake


@pytest.fixture
def mailer(fake: SesFake, monkeypatch: pytest.MonkeyPatch) -> SesMailer:
    monkeypatch.setattr(ses_module, "ONE_BY_ONE_SECONDS", 60.0)  # however busy the machine is
    return make_mailer(fake.url, monkeypatch)


def make_mailer(url: str, monkeypatch: pytest.MonkeyPatch) -> SesMailer:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", url)
    return SesMailer(partial(make_client, "us-east-1", "test", "test"), factories.letterhead(), "notices")


def verdicts(outcomes: list[Outcome]) -> list[Verdict]:
    return [outcome.verdict for outcome in outcomes]


@pytest.mark.parametrize("recipients", [ONE, THREE], ids=["single", "bulk"])
def test_each_recipient_gets_a_message_of_their_own(
    mailer: SesMailer, fake: SesFake, recipients: list[Recipient]
) -> None:
    outcomes = mailer.send(MESSAGE, recipients)

    assert verdicts(outcomes) == [Verdict.ACCEPTED] * len(recipients)
    assert [(mail.address, mail.tags["delivery"]) for mail in fake.accepted] == [
        (recipient.address, str(recipient.delivery_id)) for recipient in recipients
    ]
    assert [outcome.message_id for outcome in outcomes] == [mail.message_id for mail in fake.accepted]
    assert {mail.subject for mail in fake.accepted} == {MESSAGE.subject}
    assert all(mail.text.startswith(MESSAGE.text) for mail in fake.accepted)
    assert fake.accepted[0].request["FromEmailAddress"] == SENDER
    assert fake.accepted[0].request["ConfigurationSetName"] == "notices"
    assert len(fake.calls) == 1


@pytest.mark.parametrize("batch", [1, 3], ids=["single", "bulk"])
def test_every_mail_has_the_headers_of_a_list_and_a_link_of_its_own(
    mailer: SesMailer, fake: SesFake, batch: int
) -> None:
    people = [Recipient(number, f"clinic-{number}@example.org", uuid.UUID(int=number)) for number in range(batch)]

    mailer.send(MESSAGE, people)

    for person, accepted in zip(people, fake.accepted, strict=True):
        assert person.product_id is not None
        assert accepted.tags.items() >= {"delivery": str(person.delivery_id), "product": "00000000"}.items()
        mail, link = accepted.mail, f"https://registration.example.org/opt-out/{person.product_id.hex}"
        assert mail["List-Unsubscribe"] == f"<{link}>"
        assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert mail["List-Id"] == "OpenEMR security and update notices <notices.registration.example.org>"
        assert mail["Auto-Submitted"] == "auto-generated"
        assert mail["Feedback-ID"].startswith("openemr-notices:")
        assert [part.get_content().count(link) for part in mail.iter_parts()] == [1, 1]


@pytest.mark.parametrize("name", ["OpenEMR", 'OpenEMR, "the board"', "Órgano"])
def test_a_mail_says_who_sends_it_and_where_answers_go(fake: SesFake, mailer: SesMailer, name: str) -> None:
    head = factories.letterhead(sender_name=name, reply_to="board@example.org")

    SesMailer(mailer.client, head).send(MESSAGE, ONE)

    sender = fake.accepted[0].mail["From"].addresses[0]
    assert (sender.display_name, sender.addr_spec) == (name, SENDER)
    assert fake.accepted[0].mail["Reply-To"] == "board@example.org"


def test_who_is_not_registered_gets_no_link_of_anybody(mailer: SesMailer, fake: SesFake) -> None:
    mailer.send(messages.mark_as_test(MESSAGE), ONE)

    mail = fake.accepted[0].mail
    assert "List-Unsubscribe" not in mail
    assert all("This is a test" in part.get_content() for part in mail.iter_parts())


def test_a_letter_is_written_once_for_all_calls(mailer: SesMailer, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Message] = []
    write = Letterhead.write
    monkeypatch.setattr(Letterhead, "write", lambda head, message: written.append(message) or write(head, message))

    for batch in (THREE, ONE, THREE):
        mailer.send(MESSAGE, batch)

    assert written == [MESSAGE]


def test_a_letter_too_large_for_a_template_arrives_in_calls_of_its_own(mailer: SesMailer, fake: SesFake) -> None:
    large = Message(subject="s" * 200, text='"' * LONGEST_CONTENTS)

    assert (mailer.largest_batch(MESSAGE), mailer.largest_batch(large)) == (50, 1)
    for recipient in THREE:
        assert verdicts(mailer.send(large, [recipient])) == [Verdict.ACCEPTED]
    assert all(mail.text.startswith('"' * LONGEST_CONTENTS) for mail in fake.accepted)


@pytest.mark.parametrize(
    ("answer", "verdict", "part_of_reason"),
    [
        (Answer(accept=False, status=429, code="TooManyRequestsException"), Verdict.THROTTLED, "slow down"),
        (
            Answer(accept=False, status=400, code="Throttling", text="Maximum sending rate exceeded."),
            Verdict.THROTTLED,
            "slow down",
        ),
        (
            Answer(accept=False, status=400, code="LimitExceededException", text="Daily message quota exceeded."),
            Verdict.HELD,
            "daily sending quota",
        ),
        (
            Answer(accept=False, status=429, code="TooManyRequestsException", text="Daily message quota exceeded."),
            Verdict.HELD,
            "daily sending quota",
        ),
        (Answer(accept=False, status=400, code="AccountSuspendedException"), Verdict.HELD, "suspended"),
        (Answer(accept=False, status=400, code="SendingPausedException"), Verdict.HELD, "Resume it"),
        (
            Answer(accept=False, status=400, code="MailFromDomainNotVerifiedException"),
            Verdict.HELD,
            "Verify SES_SENDER",
        ),
        (
            Answer(accept=False, status=400, code="MessageRejected", text="Email address is not verified."),
            Verdict.HELD,
            "Verify SES_SENDER",
        ),
        (Answer(accept=False, status=404, code="NotFoundException"), Verdict.HELD, "SES_CONFIGURATION_SET"),
        (Answer(accept=False, status=403, code="UnrecognizedClientException"), Verdict.HELD, "credentials"),
        (Answer(accept=False, status=403, code="AccessDeniedException"), Verdict.HELD, "policy of its role"),
        (Answer(accept=False, status=400, code="SomethingNew"), Verdict.HELD, "as a whole"),
        (Answer(status=500, code="InternalFailure"), Verdict.UNKNOWN, "may or may not"),
        (Answer(status=503), Verdict.UNKNOWN, "may or may not"),
        (Answer(drop=True), Verdict.UNKNOWN, "may or may not"),
        (Answer(body=b"<html>"), Verdict.UNKNOWN, "may or may not"),
    ],
)
@pytest.mark.parametrize("recipients", [ONE, THREE], ids=["single", "bulk"])
def test_an_error_of_the_whole_call_is_sorted(
    mailer: SesMailer,
    fake: SesFake,
    answer: Answer,
    verdict: Verdict,
    part_of_reason: str,
    recipients: list[Recipient],
) -> None:
    fake.usual = answer

    outcomes = mailer.send(MESSAGE, recipients)

    assert verdicts(outcomes) == [verdict] * len(recipients)
    assert part_of_reason in (outcomes[0].reason or "")
    assert len(fake.calls) == 1, "a lost reply must not be tried again here"


def test_the_log_names_the_action_that_a_policy_does_not_allow(
    mailer: SesMailer, fake: SesFake, caplog: pytest.LogCaptureFixture
) -> None:
    user = "User `arn:aws:sts::123456789012:assumed-role/registration-instance/i-0123' is not authorized to perform "
    text = (
        f"{user}`ses:SendBulkTemplatedEmail' on resource `arn:aws:ses:us-east-1:123456789012:identity/ann@example.org'"
    )
    fake.usual = Answer(accept=False, status=403, code="AccessDeniedException", text=text)

    mailer.send(MESSAGE, THREE)

    (record,) = caplog.records
    assert (record.code, record.action) == ("AccessDeniedException", "ses:SendBulkTemplatedEmail")  # type: ignore[attr-defined]
    assert "ann@example.org" not in str(vars(record))


def test_a_late_answer_is_unknown_and_not_asked_for_twice(fake: SesFake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ses_module, "READ_SECONDS", 0.2)
    mailer = make_mailer(fake.url, monkeypatch)
    fake.usual = Answer(delay=0.6)

    assert verdicts(mailer.send(MESSAGE, THREE)) == [Verdict.UNKNOWN] * 3
    assert len(fake.calls) == 1


def test_when_ses_cannot_be_reached_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    mailer = make_mailer(f"http://127.0.0.1:{free_port()}", monkeypatch)

    assert verdicts(mailer.send(MESSAGE, THREE)) == [Verdict.UNREACHED] * 3


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of 127.0.0.1, which nobody knows, and its key, in one file."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    alternative = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    signed = builder.add_extension(alternative, critical=True).sign(key, hashes.SHA256())
    plain = PrivateFormat.PKCS8, NoEncryption()
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    file.write_bytes(signed.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, *plain))
    return file


@contextmanager
def garbling(certificate: Path, *, handshake: bool) -> Iterator[str]:
    """Serve one connection that breaks off with what is no TLS, after the handshake and the request, or at once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            if handshake:
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls, request = context.wrap_bio(incoming, outgoing, server_side=True), b""
                while b"\r\n\r\n" not in request:
                    with suppress(ssl.SSLWantReadError):
                        request += tls.read()
                    connection.sendall(outgoing.read())
                    if b"\r\n\r\n" not in request:
                        incoming.write(connection.recv(65536))
            connection.sendall(b"This is no TLS.\n" * 10)
            connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize("recipients", [ONE, THREE], ids=["single", "bulk"])
@pytest.mark.parametrize(
    ("handshake", "trusted", "verdict"),
    [(False, True, Verdict.UNREACHED), (True, False, Verdict.UNREACHED), (True, True, Verdict.UNKNOWN)],
    ids=["no handshake", "unknown certificate", "garbled answer"],
)
def test_only_tls_that_fails_before_the_request_proves_that_nothing_was_sent(
    monkeypatch: pytest.MonkeyPatch,
    certificate: Path,
    handshake: bool,
    trusted: bool,
    verdict: Verdict,
    recipients: list[Recipient],
) -> None:
    if trusted:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with garbling(certificate, handshake=handshake) as url:
        outcomes = make_mailer(url, monkeypatch).send(MESSAGE, recipients)

    assert verdicts(outcomes) == [verdict] * len(recipients)


def test_missing_credentials_are_named(fake: SesFake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", fake.url)

    (outcome,) = SesMailer(partial(make_client, "us-east-1", "", ""), factories.letterhead()).send(MESSAGE, ONE)

    assert outcome.verdict is Verdict.UNREACHED, "another instance may have some"
    assert "AWS_ACCESS_ID" in (outcome.reason or "")


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_PROFILE", "nowhere"), ("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{free_port()}/role")],
    ids=["profile", "container"],
)
def test_without_credentials_that_can_be_fetched_nothing_leaves_until_they_can(
    fake: SesFake, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for other in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", fake.url)
    monkeypatch.setenv(name, value)
    mailer = SesMailer(partial(make_client, "us-east-1", "", ""), factories.letterhead())

    outcomes = mailer.send(MESSAGE, THREE)

    assert verdicts(outcomes) == [Verdict.UNREACHED] * 3
    assert "AWS_ACCESS_ID" in (outcomes[0].reason or "")
    assert mailer.account() is None
    monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert verdicts(mailer.send(MESSAGE, THREE)) == [Verdict.ACCEPTED] * 3


@pytest.mark.parametrize("recipients", [ONE, THREE], ids=["single", "bulk"])
def test_a_call_whose_credentials_took_too_long_does_not_leave(
    mailer: SesMailer, fake: SesFake, monkeypatch: pytest.MonkeyPatch, recipients: list[Recipient]
) -> None:
    """One thread after another fetches them, and by then the lease may be over and somebody else send the same."""
    monkeypatch.setattr(ses_module, "LATE_SECONDS", 0.2)
    waits = [0.3]
    mailer.client().meta.events.register("before-sign.sesv2", lambda **_: time.sleep(waits.pop() if waits else 0.0))

    outcomes = mailer.send(MESSAGE, recipients)

    assert verdicts(outcomes) == [Verdict.UNREACHED] * len(recipients)
    assert fake.calls == []
    assert verdicts(mailer.send(MESSAGE, recipients)) == [Verdict.ACCEPTED] * len(recipients)


def test_threads_that_wait_for_an_attempt_to_fetch_credentials_share_its_failure() -> None:
    threads, begun, attempts = 4, Barrier(4), []

    def connect() -> Any:
        attempts.append(1)
        time.sleep(0.3)
        raise CredentialRetrievalError(provider="container-role", error_msg="nobody listens")

    def send(_: int) -> list[Outcome]:
        begun.wait()
        return mailer.send(MESSAGE, ONE)

    mailer = SesMailer(connect, factories.letterhead())
    with ThreadPoolExecutor(threads) as pool:
        outcomes = [outcome for sent in pool.map(send, range(threads)) for outcome in sent]

    assert verdicts(outcomes) == [Verdict.UNREACHED] * threads
    assert len(attempts) == 1


@pytest.mark.parametrize(
    ("status", "error", "verdict"),
    [
        ("ACCOUNT_THROTTLED", "", Verdict.THROTTLED),
        ("TRANSIENT_FAILURE", "", Verdict.UNKNOWN),
        ("ACCOUNT_DAILY_QUOTA_EXCEEDED", "", Verdict.HELD),
        ("ACCOUNT_SUSPENDED", "", Verdict.HELD),
        ("ACCOUNT_SENDING_PAUSED", "", Verdict.HELD),
        ("CONFIGURATION_SET_SENDING_PAUSED", "", Verdict.HELD),
        ("CONFIGURATION_SET_NOT_FOUND", "", Verdict.HELD),
        ("MAIL_FROM_DOMAIN_NOT_VERIFIED", "", Verdict.HELD),
        ("MESSAGE_REJECTED", "Email address is not verified.", Verdict.HELD),
        ("MESSAGE_REJECTED", "", Verdict.REFUSED),
        ("INVALID_PARAMETER", "", Verdict.REFUSED),
        ("FAILED", "", Verdict.REFUSED),
        ("SOMETHING_NEW", "", Verdict.UNKNOWN),
    ],
)
def test_an_error_of_one_entry_is_that_entrys_alone(
    mailer: SesMailer, fake: SesFake, status: str, error: str, verdict: Verdict
) -> None:
    fake.usual = Answer(entries={"bob@example.org": (status, error)})

    assert verdicts(mailer.send(MESSAGE, THREE)) == [Verdict.ACCEPTED, verdict, Verdict.ACCEPTED]


UNVERIFIED = "Email address is not verified. The following identities failed the check in region US-EAST-1: {}"


@pytest.mark.parametrize("recipients", [ONE, THREE], ids=["single", "bulk"])
@pytest.mark.parametrize("whole_call", [True, False], ids=["call", "entry"])
@pytest.mark.parametrize(
    ("named", "part_of_reason"),
    [
        ("ann@example.org", "sandbox"),
        ("Ann@Example.org.", "sandbox"),
        (f"other-{SENDER}", "sandbox"),
        (SENDER, "Verify SES_SENDER"),
        (f"ann@example.org, OpenEMR <{SENDER.upper()}>", "Verify SES_SENDER"),
        ("", "Verify SES_SENDER"),
    ],
)
def test_an_unverified_recipient_means_that_the_account_is_in_the_sandbox(
    mailer: SesMailer,
    fake: SesFake,
    recipients: list[Recipient],
    whole_call: bool,
    named: str,
    part_of_reason: str,
) -> None:
    text = UNVERIFIED.format(named)
    fake.usual = Answer(accept=False, status=400, code="MessageRejected", text=text)
    if not whole_call and recipients == THREE:
        fake.usual = Answer(entries={recipient.address: ("MESSAGE_REJECTED", text) for recipient in recipients})

    outcomes = mailer.send(MESSAGE, recipients)

    assert verdicts(outcomes) == [Verdict.HELD] * len(recipients)
    assert all(part_of_reason in (outcome.reason or "") for outcome in outcomes)
    assert all(len(outcome.reason or "") <= 255 for outcome in outcomes)


@pytest.mark.parametrize("whole_call", [True, False], ids=["call", "entry"])
@pytest.mark.parametrize(
    ("text", "part_of_reason"),
    [
        ("Sending suspended for this account. For more information, please check the inbox.", "has suspended"),
        ("Sending paused for this account. For more information, please check the inbox.", "Resume it"),
    ],
)
def test_an_account_that_may_not_send_is_not_taken_for_a_bad_address(
    mailer: SesMailer, fake: SesFake, whole_call: bool, text: str, part_of_reason: str
) -> None:
    fake.usual = Answer(accept=False, status=400, code="MessageRejected", text=text)
    if not whole_call:
        fake.usual = Answer(entries={recipient.address: ("MESSAGE_REJECTED", text) for recipient in THREE})

    outcomes = mailer.send(MESSAGE, THREE)

    assert verdicts(outcomes) == [Verdict.HELD] * 3
    assert all(part_of_reason in (outcome.reason or "") for outcome in outcomes)


@pytest.mark.parametrize("recipients", [ONE, THREE], ids=["single", "bulk"])
@pytest.mark.parametrize(
    "code", [*ses_module._CALL_ERRORS, *ses_module._ENTRY_ERRORS, "MESSAGE_REJECTED", "MessageRejected", "SomethingNew"]
)
def test_a_reason_is_a_sentence_of_ours_and_names_no_address(
    mailer: SesMailer, fake: SesFake, recipients: list[Recipient], code: str
) -> None:
    text = "Address ann@example.org is on a list; ask bob@example.org."
    fake.usual = Answer(entries={recipient.address: (code, text) for recipient in recipients})
    if recipients == ONE or not code.isupper():
        fake.usual = Answer(accept=False, status=400, code=code, text=text)

    outcomes = mailer.send(MESSAGE, recipients)

    assert all(outcome.reason and "@" not in outcome.reason and "list" not in outcome.reason for outcome in outcomes)


@pytest.mark.parametrize("code", ["BadRequestException", "MessageRejected"])
def test_one_bad_address_in_a_bulk_call_costs_nobody_else_the_notice(
    mailer: SesMailer, fake: SesFake, code: str
) -> None:
    refused = Answer(accept=False, status=400, code=code)
    fake.answers.extend([refused, Answer(), refused, Answer()])

    outcomes = mailer.send(MESSAGE, THREE)

    assert verdicts(outcomes) == [Verdict.ACCEPTED, Verdict.REFUSED, Verdict.ACCEPTED]
    assert fake.addresses == ["ann@example.org", "cid@example.org"]


def test_when_address_after_address_is_refused_the_rest_waits_for_the_sender_to_judge(
    mailer: SesMailer, fake: SesFake
) -> None:
    fake.usual = Answer(accept=False, status=400, code="BadRequestException", text="Missing final '@domain'")

    outcomes = mailer.send(MESSAGE, [Recipient(number, f"clinic-{number}@example.org") for number in range(20)])

    assert verdicts(outcomes) == [Verdict.REFUSED] * 5 + [Verdict.APART] * 15
    assert len(fake.calls) == 6


def test_going_one_by_one_ends_in_time_and_leaves_the_rest_for_later(
    mailer: SesMailer, fake: SesFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ses_module, "ONE_BY_ONE_SECONDS", 0.2)
    fake.answers.append(Answer(accept=False, status=400, code="BadRequestException"))
    fake.usual = Answer(delay=0.15)

    first, _, last = verdicts(mailer.send(MESSAGE, THREE))

    assert (first, last) == (Verdict.ACCEPTED, Verdict.APART)
    assert len(fake.calls) <= 3


def test_entries_missing_from_the_answer_are_unknown(mailer: SesMailer, fake: SesFake) -> None:
    fake.usual = Answer(body=b'{"BulkEmailEntryResults": [{"Status": "SUCCESS", "MessageId": "1"}]}')

    assert verdicts(mailer.send(MESSAGE, THREE)) == [Verdict.ACCEPTED, Verdict.UNKNOWN, Verdict.UNKNOWN]


@pytest.mark.parametrize("entries", [[{"MessageId": "1"}] * 3, [{"Status": "SUCCESS", "MessageId": "1"}] * 4])
def test_an_answer_that_ses_does_not_document_gives_one_outcome_for_each(
    mailer: SesMailer, fake: SesFake, entries: list[dict[str, str]]
) -> None:
    fake.usual = Answer(body=json.dumps({"BulkEmailEntryResults": entries}).encode())

    expected = Verdict.ACCEPTED if "Status" in entries[0] else Verdict.UNKNOWN
    assert verdicts(mailer.send(MESSAGE, THREE)) == [expected] * 3


def test_the_accounts_rate_is_asked_of_ses(mailer: SesMailer, fake: SesFake) -> None:
    fake.max_send_rate = 14.0

    assert mailer.account() == Account(14.0, 50_000.0, 120.0)


def test_a_rate_of_nothing_is_as_good_as_untold(mailer: SesMailer, fake: SesFake) -> None:
    fake.max_send_rate = 0.0

    assert mailer.account() is None
    fake.max_send_rate = 14.0


def test_a_rate_that_ses_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_mailer(f"http://127.0.0.1:{free_port()}", monkeypatch).account() is None


@pytest.mark.parametrize(("batch", "operation"), [(1, "SendEmail"), (2, "SendBulkEmail")])
def test_a_body_has_nothing_that_the_api_does_not_know(
    mailer: SesMailer, fake: SesFake, batch: int, operation: str
) -> None:
    """It is written without botocore's serializer, but botocore can check it."""
    text = 'Mind {{ this }}, "that" and 100 % of \N{SNOWMAN}.\n'
    people = [Recipient(number, f"clinic-{number}@example.org", uuid.UUID(int=number)) for number in range(batch)]

    mailer.send(Message(subject="Update", text=text), people)

    shape = mailer.client().meta.service_model.operation_model(operation).input_shape
    assert ParamValidator().validate(fake.accepted[0].request, shape).generate_report() == ""
    assert all(mail.text.startswith(text) for mail in fake.accepted)


@mock_aws
def test_moto_takes_the_single_message_and_refuses_a_sender_it_has_not_verified() -> None:
    mailer = SesMailer(partial(make_client, "us-east-1", "test", "test"), factories.letterhead())

    (refused,) = mailer.send(MESSAGE, ONE)
    boto3.client("sesv2", region_name="us-east-1").create_email_identity(EmailIdentity=SENDER)
    (taken,) = mailer.send(MESSAGE, ONE)

    assert (refused.verdict, taken.verdict) == (Verdict.HELD, Verdict.ACCEPTED)
    (mail,) = ses_backends["123456789012"]["us-east-1"].sent_messages
    assert (mail.source, mail.subject) == (SENDER, MESSAGE.subject)
    assert MESSAGE.text.strip() in mail.body
    assert mail.destinations["ToAddresses"] == ["ann@example.org"]
