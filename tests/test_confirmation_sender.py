"""Confirmation mails leave at the pace of all, and what does not get through is not lost."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pymysql
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from registration import broadcasts, confirmations, pacing, services
from registration.confirmation_sender import LONGEST_WAIT_SECONDS, REST, ConfirmationSender
from registration.confirmations import Confirmation
from registration.db import db
from registration.mailers import Account, Outcome, Recipient, Verdict
from registration.messages import Message
from registration.models import BroadcastStatus, ConfirmationRequest, Pace, Registration, RegistrationStatus
from registration.reports import InstallationReport
from registration.sender import BUSY_CONFIRMATIONS, Sender

from . import factories, people
from .inbox import Inbox
from .ledgers import commit
from .stepping import work

pytestmark = pytest.mark.usefixtures("in_context")

S = RegistrationStatus


def ask(number: int) -> None:
    """Let so many registrations wait for their confirmation mail."""
    factories.register(number, status=S.UNCONFIRMED)
    ids = db.session.execute(select(Registration.id)).scalars().all()
    due_at = datetime.now(UTC) - timedelta(seconds=1)
    db.session.execute(insert(ConfirmationRequest), [{"registration_id": each, "due_at": due_at} for each in ids])
    db.session.commit()


def waiting() -> int:
    db.session.rollback()
    return db.session.execute(select(func.count()).select_from(ConfirmationRequest)).scalar_one()


class Calls(list[str]):
    """Whom a mailer was called for; its answers are `verdicts` in turn, and then that it has taken each."""

    def __init__(self, *verdicts: Verdict) -> None:
        self._verdicts = list(verdicts)

    def __call__(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        self.append(recipients[0].address)
        return [Outcome(self._verdicts.pop(0) if self._verdicts else Verdict.ACCEPTED)]


@pytest.fixture
def confirming(application: Flask, sender: Sender) -> ConfirmationSender:
    """What sends confirmation mails, as fast as the account allows."""
    pacing.remember_account(db.session(), Account(1000.0))
    db.session.commit()
    tokens = services.of(application).tokens
    return ConfirmationSender(sender.sessions, sender.mailer, tokens, math.inf, threading.Event())


@pytest.mark.parametrize(
    ("verdict", "left"),
    [
        (Verdict.HELD, 5),
        (Verdict.UNREACHED, 5),
        (Verdict.UNKNOWN, 4),  # that one may have left, and nobody is asked twice a day
    ],
)
def test_the_first_that_does_not_get_through_is_the_last_for_a_while(
    confirming: ConfirmationSender, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, left: int
) -> None:
    ask(6)
    calls, now = Calls(Verdict.ACCEPTED, verdict), datetime.now(UTC)
    monkeypatch.setattr(confirming.mailer, "send", calls)

    confirming.send(now, 3)
    assert (len(calls), waiting()) == (2, left)
    confirming.send(now + REST - timedelta(seconds=1), 10)
    assert (len(calls), waiting()) == (2, left)
    confirming.send(now + 2 * REST, 10)
    assert (len(calls), waiting()) == (2 + left, 0)


def test_a_rest_that_a_wrong_clock_began_holds_nothing_up(
    confirming: ConfirmationSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(2)
    calls, now = Calls(Verdict.UNKNOWN, Verdict.ACCEPTED), datetime.now(UTC)
    monkeypatch.setattr(confirming.mailer, "send", calls)

    confirming.send(now + timedelta(hours=1), 1)
    confirming.send(now, 1)

    assert (len(calls), waiting()) == (2, 0)


def test_a_mail_that_is_too_fast_does_not_undo_how_others_slowed_down_meanwhile(
    confirming: ConfirmationSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(1)
    now = datetime.now(UTC)

    def answer_slowly(_: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 5)
        values = {"factor": 0.5, "throttled_at": now.timestamp() + 5}
        commit(lambda session: session.execute(update(Pace).values(values)))
        return [Outcome(Verdict.THROTTLED)] * len(recipients)

    monotonic = time.monotonic
    monkeypatch.setattr(confirming.mailer, "send", answer_slowly)
    confirming.send(now, 1)

    assert db.session.execute(select(Pace.factor)).scalar_one() == 0.5


def test_mails_that_are_taken_slowly_wait_less_for_their_instant(
    confirming: ConfirmationSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow database would else make each look give up what it has taken, as long as a broadcast is under way."""
    ask(1)
    calls, take, now = Calls(), confirmations.take, datetime.now(UTC)
    monkeypatch.setattr(confirming.mailer, "send", calls)

    def take_slowly(session: Session, *arguments: Any, **named: Any) -> list[Confirmation]:
        time.sleep(0.5)
        pacing.back_off(session, LONGEST_WAIT_SECONDS + 0.2, now=now.timestamp())
        return take(session, *arguments, **named)

    monkeypatch.setattr(confirmations, "take", take_slowly)

    confirming.send(now, 1)

    assert (len(calls), waiting()) == (1, 0)


def test_nobody_is_held_taken_when_all_begin_to_rest_just_then(
    confirming: ConfirmationSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who says no during the rest would be mailed at the end of it."""
    ask(2)
    calls, free_in = Calls(), pacing.free_in

    def then_all_rest(session: Session, *, rate: float, now: float) -> float:
        found = free_in(session, rate=rate, now=now)
        commit(pacing.back_off, 10.0, now=now)
        return found

    monkeypatch.setattr(pacing, "free_in", then_all_rest)
    monkeypatch.setattr(confirming.mailer, "send", calls)

    confirming.send(datetime.now(UTC), 2)

    assert (calls, waiting()) == ([], 2)
    assert db.session.execute(select(Registration.confirmation_sent_at).distinct()).scalars().all() == [None]


def test_what_is_too_fast_ends_the_lot_and_no_more(
    confirming: ConfirmationSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(5)
    calls, now = Calls(Verdict.ACCEPTED, Verdict.THROTTLED), datetime.now(UTC)
    monkeypatch.setattr(confirming.mailer, "send", calls)

    confirming.send(now, 3)
    assert (len(calls), waiting()) == (2, 4)
    confirming.send(now + timedelta(seconds=2), 3)
    assert (len(calls), waiting()) == (4, 2)


def test_mails_wait_for_their_turn(confirming: ConfirmationSender, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(1)
    now = datetime.now(UTC)
    pacing.back_off(db.session(), 0.5, now=now.timestamp())
    db.session.commit()
    waits: list[float] = []
    monkeypatch.setattr(confirming.stopping, "wait", waits.append)

    confirming.send(now, 10)

    assert [round(seconds, 1) for seconds in waits] == [0.5]


def test_who_bounced_while_his_mail_did_not_leave_still_has_to_confirm(
    confirming: ConfirmationSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(1)

    def send(_: object, recipients: Sequence[Recipient]) -> list[Outcome]:
        db.session.execute(update(Registration).values(status=RegistrationStatus.BOUNCED))
        db.session.commit()
        return [Outcome(Verdict.HELD)] * len(recipients)

    monkeypatch.setattr(confirming.mailer, "send", send)
    confirming.send(datetime.now(UTC), 10)
    email = db.session.execute(select(Registration.email)).scalar_one()

    people.register(email, installation=InstallationReport(version="7.0.3"))

    assert db.session.execute(select(Registration.status)).scalar_one() is RegistrationStatus.UNCONFIRMED


def test_what_the_database_does_not_take_back_is_given_back_the_next_time(
    confirming: ConfirmationSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(3)
    failures = [OperationalError("", {}, pymysql.err.OperationalError(1213, "Deadlock found"))]
    give_back = confirmations.give_back

    def fail_once(*arguments: Any, **named: Any) -> None:
        if failures:
            raise failures.pop()
        give_back(*arguments, **named)

    monkeypatch.setattr(confirmations, "give_back", fail_once)
    monkeypatch.setattr(confirming.mailer, "send", Calls(Verdict.HELD))
    with pytest.raises(OperationalError):
        confirming.send(datetime.now(UTC), 10)
    assert waiting() == 0

    confirming.send(datetime.now(UTC), 10)

    assert waiting() == 3


def test_fewer_are_sent_at_a_look_while_a_broadcast_waits_for_it(sender: Sender) -> None:
    ask(6)
    factories.register(1)
    factories.start_broadcast()

    sender.look()

    assert waiting() == 6 - BUSY_CONFIRMATIONS


def test_a_mail_that_fails_as_nobody_foresaw_holds_no_broadcast_up(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(1)
    factories.register(1)
    broadcast_id = factories.start_broadcast()
    send = sender.mailer.send

    def fail_to_confirm(message: Message, recipients: Sequence[Recipient]) -> Sequence[Outcome]:
        return send(message, recipients) if recipients[0].delivery_id else {}["Status"]

    monkeypatch.setattr(sender.mailer, "send", fail_to_confirm)

    work(sender)

    assert (waiting(), commit(broadcasts.status_of, broadcast_id)) == (0, BroadcastStatus.SENT)


def test_an_address_that_is_refused_keeps_no_other_waiting(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(3)
    verdicts = [Verdict.REFUSED, Verdict.ACCEPTED, Verdict.ACCEPTED]
    monkeypatch.setattr(sender.mailer, "send", lambda *_: [Outcome(verdicts.pop(0))])

    sender.look()

    assert (verdicts, waiting()) == ([], 0)


def test_a_mail_that_the_service_does_not_take_yet_is_sent_later(
    client: FlaskClient, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    (email,) = factories.register(status=S.OPTED_OUT)
    client.post("/api/registration", data={"email": email})
    sent = Calls(Verdict.HELD)
    monkeypatch.setattr(sender.mailer, "send", sent)
    sender.look()
    sender.look()
    assert sent == [email]
    sender.now = lambda: datetime.now(UTC) + timedelta(minutes=2)
    sender.look()
    sender.look()
    assert sent == [email, email]


def test_a_sender_that_is_to_end_gives_the_confirmations_that_it_took_back(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    (email,) = factories.register(status=S.OPTED_OUT)
    client.post("/api/registration", data={"email": email})
    sender.stop()
    sender.look()
    assert inbox.mails() == []

    later = replace(sender, stopping=threading.Event(), now=lambda: datetime.now(UTC) + timedelta(minutes=2))
    later.look()

    assert len(inbox.mails()) == 1


def test_who_opts_out_while_a_mail_could_not_leave_is_not_asked_again(
    client: FlaskClient, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    (email,) = factories.register(status=S.UNCONFIRMED)
    client.post("/api/registration", data={"email": email})
    link = services.current().tokens.opt_out_url(factories.product_id(email))
    db.session.rollback()
    sent = []

    def hold(message, recipients):
        client.post(link.removeprefix("http://127.0.0.1:5000"))
        sent.append(recipients)
        return [Outcome(Verdict.HELD)]

    monkeypatch.setattr(sender.mailer, "send", hold)
    sender.look()
    sender.now = lambda: datetime.now(UTC) + timedelta(minutes=2)
    sender.look()

    assert len(sent) == 1


def test_confirmation_mails_keep_to_the_pace_and_hold_nobody_up_while_all_rest(
    client: FlaskClient, sender: Sender, inbox: Inbox
) -> None:
    for email in factories.register(10, status=S.UNCONFIRMED):
        client.post("/api/registration", data={"email": email})
    slow, begun = replace(sender, rate_limit=2.0), datetime.now(UTC) + timedelta(seconds=5)
    sent = []
    for tenths in range(31):
        slow.now = lambda tenths=tenths: begun + timedelta(seconds=tenths / 10)
        slow.look()
        sent.append(len(inbox.mails()))

    assert max(after - before for before, after in pairwise(sent)) == 1
    assert 6 <= sent[-1] <= 8

    pacing.back_off(db.session(), 10.0, now=slow.now().timestamp())
    db.session.commit()
    started = time.monotonic()
    slow.look()
    assert time.monotonic() - started < 10
    assert len(inbox.mails()) == sent[-1]


def test_a_confirmation_mail_that_is_too_fast_slows_all_senders_down(
    client: FlaskClient, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    (email,) = factories.register(status=S.UNCONFIRMED)
    client.post("/api/registration", data={"email": email})
    monkeypatch.setattr(sender.mailer, "send", lambda *_: [Outcome(Verdict.THROTTLED)])

    sender.look()

    assert db.session.execute(select(Pace.throttled_at)).scalar_one() > 0
