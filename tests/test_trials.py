"""Trials: one message to one address, at the pace that everybody keeps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import pytest

from registration import messages, pacing, trials
from registration.errors import MailServiceBusyException, MailServiceRefusedException, RegistrationError
from registration.mailers import Account, Outcome, Recipient, Verdict
from registration.messages import Message

from .ledgers import commit

pytestmark = pytest.mark.usefixtures("in_context")

MESSAGE = messages.compose("x" * messages.LONGEST_TITLE, "There is a hole.")


class OneAnswer:
    """A mailer with the same outcome for everybody, which remembers what it was given."""

    def largest_batch(self, message: Message) -> int:
        return 50

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.given: list[tuple[Message, Sequence[Recipient]]] = []

    def send(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        self.given.append((message, recipients))
        return [self.outcome] * len(recipients)

    def account(self) -> Account | None:
        return None


def reserve(now: float, rate_limit: float = 10.0) -> float:
    return commit(trials.reserve, rate_limit=rate_limit, now=now)


def test_a_test_goes_to_one_address_and_says_that_it_is_one() -> None:
    mailer = OneAnswer(Outcome(Verdict.ACCEPTED, message_id="0100-1"))

    trials.send(mailer, MESSAGE, "ann@example.org")

    ((message, recipients),) = mailer.given
    assert message == Message(f"[TEST] {MESSAGE.subject}", MESSAGE.text, is_test=True)
    assert [recipient.address for recipient in recipients] == ["ann@example.org"]


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        (Verdict.THROTTLED, MailServiceBusyException),
        (Verdict.UNREACHED, MailServiceBusyException),
        (Verdict.HELD, MailServiceBusyException),
        (Verdict.REFUSED, MailServiceRefusedException),
        (Verdict.UNKNOWN, MailServiceRefusedException),
    ],
)
def test_a_test_that_was_not_taken_says_why(verdict: Verdict, error: type[RegistrationError]) -> None:
    with pytest.raises(error, match="Because"):
        trials.send(OneAnswer(Outcome(verdict, reason="Because.")), MESSAGE, "ann@example.org")


def test_a_test_that_fails_as_nobody_foresaw_is_answered_like_one_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mailer = OneAnswer(Outcome(Verdict.ACCEPTED))
    monkeypatch.setattr(mailer, "send", lambda *_: {}["Status"])

    with pytest.raises(MailServiceRefusedException, match="as nobody foresaw"):
        trials.send(mailer, MESSAGE, "ann@example.org")


def test_a_test_waits_for_its_turn_and_the_next_one_for_it() -> None:
    commit(pacing.remember_account, Account(10.0))
    now = time.time()

    waits = [reserve(now) for _ in range(3)]

    assert waits == pytest.approx([0.0, 0.1 / pacing.HEADROOM, 0.2 / pacing.HEADROOM], abs=0.001)


def test_nobody_waits_long_for_a_test() -> None:
    now = time.time()
    commit(pacing.back_off, trials.LONGEST_WAIT + 1, now=now)

    with pytest.raises(MailServiceBusyException) as refused:
        reserve(now)
    assert refused.value.retry_after == timedelta(minutes=1)
    assert reserve(now + 2) == pytest.approx(trials.LONGEST_WAIT - 1, abs=0.01)
