"""Mail through Amazon SES, against a fake that can do what moto cannot, and against moto where it can."""

from __future__ import annotations

import json
from collections.abc import Iterator

import boto3
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from moto import mock_aws
from moto.ses.models import ses_backends

from registration.mailers import Account, Outcome, Recipient, Verdict
from registration.mailers import ses as ses_module
from registration.mailers.ses import SesMailer, make_client
from registration.messages import LONGEST_CONTENTS, Message

from . import ses_fake
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
    return make_mailer(fake.url, monkeypatch)


def make_mailer(url: str, monkeypatch: pytest.MonkeyPatch) -> SesMailer:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", url)
    return SesMailer(make_client("us-east-1", "test", "test"), SENDER, "notices")


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
    assert {(mail.subject, mail.text) for mail in fake.accepted} == {(MESSAGE.subject, MESSAGE.text)}
    assert fake.accepted[0].request["FromEmailAddress"] == SENDER
    assert fake.accepted[0].request["ConfigurationSetName"] == "notices"
    assert len(fake.calls) == 1


@given(
    subject=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=200),
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    number=st.sampled_from([1, 2]),
)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_a_message_arrives_exactly_as_written(
    mailer: SesMailer, fake: SesFake, subject: str, text: str, number: int
) -> None:
    mailer.send(Message(subject, text), THREE[:number])

    assert (fake.accepted[-1].subject, fake.accepted[-1].text) == (subject, text)


@pytest.mark.parametrize("text", ["Use {{ mustache }} and {{{x}}}, {{ 5", "</script> & <b>\"'", "\U0001f6a8 שלום"])
def test_what_looks_like_a_template_or_markup_is_left_alone(mailer: SesMailer, fake: SesFake, text: str) -> None:
    mailer.send(Message(subject=text, text=text), THREE)

    assert (fake.accepted[0].subject, fake.accepted[0].text) == (text, text)


def test_the_longest_contents_fit_the_template_data_of_a_bulk_call(mailer: SesMailer, fake: SesFake) -> None:
    mailer.send(Message(subject="s" * 200, text='"' * LONGEST_CONTENTS), THREE)

    data = fake.accepted[0].request["DefaultContent"]["Template"]["TemplateData"]
    assert len(data) <= 262_144
    assert json.loads(data)["text"] == '"' * LONGEST_CONTENTS


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
        (Answer(accept=False, status=403, code="AccessDeniedException"), Verdict.HELD, "credentials"),
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


def test_a_late_answer_is_unknown_and_not_asked_for_twice(fake: SesFake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ses_module, "READ_SECONDS", 0.2)
    mailer = make_mailer(fake.url, monkeypatch)
    fake.usual = Answer(delay=0.6)

    assert verdicts(mailer.send(MESSAGE, THREE)) == [Verdict.UNKNOWN] * 3
    assert len(fake.calls) == 1


def test_when_ses_cannot_be_reached_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    mailer = make_mailer(f"http://127.0.0.1:{free_port()}", monkeypatch)

    assert verdicts(mailer.send(MESSAGE, THREE)) == [Verdict.THROTTLED] * 3


def test_missing_credentials_are_named(fake: SesFake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", fake.url)

    (outcome,) = SesMailer(make_client("us-east-1", "", ""), SENDER).send(MESSAGE, ONE)

    assert outcome.verdict is Verdict.HELD
    assert "AWS_ACCESS_ID" in (outcome.reason or "")


@pytest.mark.parametrize(
    ("status", "error", "verdict"),
    [
        ("ACCOUNT_THROTTLED", "", Verdict.THROTTLED),
        ("TRANSIENT_FAILURE", "", Verdict.THROTTLED),
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


@pytest.mark.parametrize("code", ["BadRequestException", "MessageRejected"])
def test_one_bad_address_in_a_bulk_call_costs_nobody_else_the_notice(
    mailer: SesMailer, fake: SesFake, code: str
) -> None:
    refused = Answer(accept=False, status=400, code=code)
    fake.answers.extend([refused, Answer(), refused, Answer()])

    outcomes = mailer.send(MESSAGE, THREE)

    assert verdicts(outcomes) == [Verdict.ACCEPTED, Verdict.REFUSED, Verdict.ACCEPTED]
    assert fake.addresses == ["ann@example.org", "cid@example.org"]


def test_when_address_after_address_is_refused_the_addresses_are_not_to_blame(mailer: SesMailer, fake: SesFake) -> None:
    fake.usual = Answer(accept=False, status=400, code="BadRequestException", text="Missing final '@domain'")

    outcomes = mailer.send(MESSAGE, [Recipient(number, f"clinic-{number}@example.org") for number in range(20)])

    assert verdicts(outcomes) == [Verdict.HELD] * 20
    assert len(fake.calls) == 6


def test_going_one_by_one_ends_in_time_and_leaves_the_rest_for_later(
    mailer: SesMailer, fake: SesFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ses_module, "ONE_BY_ONE_SECONDS", 0.2)
    fake.answers.append(Answer(accept=False, status=400, code="BadRequestException"))
    fake.usual = Answer(delay=0.15)

    assert verdicts(mailer.send(MESSAGE, THREE)) == [Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.THROTTLED]


def test_entries_missing_from_the_answer_are_unknown(mailer: SesMailer, fake: SesFake) -> None:
    fake.usual = Answer(body=b'{"BulkEmailEntryResults": [{"Status": "SUCCESS", "MessageId": "1"}]}')

    assert verdicts(mailer.send(MESSAGE, THREE)) == [Verdict.ACCEPTED, Verdict.UNKNOWN, Verdict.UNKNOWN]


def test_the_accounts_rate_is_asked_of_ses(mailer: SesMailer, fake: SesFake) -> None:
    fake.max_send_rate = 14.0

    assert mailer.account() == Account(14.0, 50_000.0, 120.0)


def test_a_rate_of_nothing_is_as_good_as_untold(mailer: SesMailer, fake: SesFake) -> None:
    fake.max_send_rate = 0.0

    assert mailer.account() is None
    fake.max_send_rate = 14.0


def test_a_rate_that_ses_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_mailer(f"http://127.0.0.1:{free_port()}", monkeypatch).account() is None


@mock_aws
def test_moto_takes_the_single_message_and_refuses_a_sender_it_has_not_verified() -> None:
    mailer = SesMailer(make_client("us-east-1", "test", "test"), SENDER)

    (refused,) = mailer.send(MESSAGE, ONE)
    boto3.client("sesv2", region_name="us-east-1").create_email_identity(EmailIdentity=SENDER)
    (taken,) = mailer.send(MESSAGE, ONE)

    assert (refused.verdict, taken.verdict) == (Verdict.HELD, Verdict.ACCEPTED)
    (mail,) = ses_backends["123456789012"]["us-east-1"].sent_messages
    assert (mail.source, mail.subject, mail.body) == (SENDER, MESSAGE.subject, MESSAGE.text)
    assert mail.destinations["ToAddresses"] == ["ann@example.org"]
