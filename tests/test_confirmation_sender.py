"""Confirmation mails leave at the pace of all, and what does not get through is not lost."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pymysql
import pytest
from flask import Flask, current_app
from flask.testing import FlaskClient
from sqlalchemy import func, insert, select
from sqlalchemy.exc import OperationalError

from registration import broadcasts, confirmation_sender, confirmations, pacing
from registration.confirmation_sender import ConfirmationSender
from registration.db import db
from registration.mailers import Account, Outcome, Recipient, Verdict
from registration.messages import Message
from registration.models import BroadcastStatus, ConfirmationRequest, Pace, Registration, RegistrationStatus
from registration.sender import BUSY_CONFIRMATIONS, Sender

from . import factories
from .ledgers import commit
from .stepping import work

S = RegistrationStatus


@pytest.fixture(autouse=True)
def _in_context(application: Flask) -> Iterator[None]:
    with application.app_context():
        yield


def product_id(email: str) -> uuid.UUID:
    return db.session.execute(select(Registration.product_id).where(Registration.email == email)).scalar_one()


def mails(settings: dict[str, str]) -> list[Path]:
    return list(Path(settings["OUTBOX_DIRECTORY"]).glob("*.eml"))


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


@pytest.mark.parametrize(
    ("verdict", "left"),
    [
        (Verdict.HELD, 5),
        (Verdict.UNREACHED, 5),
        (Verdict.UNKNOWN, 4),  # that one may have left, and nobody is asked twice a day
    ],
)
def test_the_first_that_does_not_get_through_is_the_last_for_a_while(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, left: int
) -> None:
    ask(6)
    verdicts, calls = [Verdict.ACCEPTED, verdict], []
    confirming = sender._confirmations
    assert isinstance(confirming, ConfirmationSender)

    def send(message: object, recipients: object) -> list[Outcome]:
        calls.append(recipients)
        return [Outcome(verdicts.pop(0) if verdicts else Verdict.ACCEPTED)]

    monkeypatch.setattr(sender.mailer, "send", send)
    pacing.remember_account(db.session(), Account(1000.0))
    db.session.commit()
    for minutes in (0, 2, 4):
        confirming.send(datetime.now(UTC) + timedelta(minutes=minutes), 10)
    assert (len(calls), waiting()) == (2, left)

    monkeypatch.setattr(confirming, "_rest_until", 0.0)
    confirming.send(datetime.now(UTC) + timedelta(minutes=2), 10)

    assert (len(calls), waiting()) == (2 + left, 0)


def test_what_is_too_fast_ends_the_lot_and_no_more(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(3)
    pacing.remember_account(db.session(), Account(1000.0))
    db.session.commit()
    confirming, calls = sender._confirmations, []
    assert isinstance(confirming, ConfirmationSender)
    verdicts = [Verdict.ACCEPTED, Verdict.THROTTLED]

    def send(message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        calls.append(recipients)
        return [Outcome(verdicts.pop(0) if verdicts else Verdict.ACCEPTED)]

    monkeypatch.setattr(sender.mailer, "send", send)
    confirming.send(datetime.now(UTC), 10)

    assert (len(calls), waiting(), confirming._rest_until) == (2, 2, 0.0)


def test_mails_wait_for_their_turn(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(1)
    pacing.remember_account(db.session(), Account(1000.0))
    now = datetime.now(UTC)
    pacing.back_off(db.session(), 0.5, now=now.timestamp())
    db.session.commit()
    waits: list[float] = []
    monkeypatch.setattr(sender.stopping, "wait", waits.append)
    assert isinstance(sender._confirmations, ConfirmationSender)

    sender._confirmations.send(now, 10)

    assert [round(seconds, 1) for seconds in waits] == [0.5]


def test_what_the_database_does_not_take_back_is_given_back_the_next_time(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(3)
    pacing.remember_account(db.session(), Account(1000.0))
    db.session.commit()
    failures = [OperationalError("", {}, pymysql.err.OperationalError(1213, "Deadlock found"))]
    give_back = confirmations.give_back

    def fail_once(*arguments: Any, **named: Any) -> None:
        if failures:
            raise failures.pop()
        give_back(*arguments, **named)

    monkeypatch.setattr(confirmations, "give_back", fail_once)
    monkeypatch.setattr(sender.mailer, "send", lambda *_: [Outcome(Verdict.HELD)])
    assert isinstance(sender._confirmations, ConfirmationSender)
    with pytest.raises(OperationalError):
        sender._confirmations.send(datetime.now(UTC), 10)
    assert waiting() == 0

    sender._confirmations.send(datetime.now(UTC), 10)

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
    monkeypatch.setattr(confirmation_sender, "REST_SECONDS", 0.0)
    verdicts, sent = [Verdict.HELD, Verdict.ACCEPTED], []

    def send(message, recipients):
        sent.append(recipients[0].address)
        return [Outcome(verdicts.pop(0))]

    monkeypatch.setattr(sender.mailer, "send", send)
    sender.look()
    sender.look()
    assert sent == [email]
    sender.now = lambda: datetime.now(UTC) + timedelta(minutes=2)
    sender.look()
    sender.look()
    assert sent == [email, email]


def test_a_sender_that_is_to_end_gives_the_confirmations_that_it_took_back(
    client: FlaskClient, sender: Sender, settings: dict[str, str]
) -> None:
    (email,) = factories.register(status=S.OPTED_OUT)
    client.post("/api/registration", data={"email": email})
    sender.stop()
    sender.look()
    assert mails(settings) == []
    assert isinstance(sender._confirmations, ConfirmationSender)
    assert sender._confirmations._rest_until == 0.0

    later = replace(sender, stopping=threading.Event(), now=lambda: datetime.now(UTC) + timedelta(minutes=2))
    later.look()

    assert len(mails(settings)) == 1


def test_who_opts_out_while_a_mail_could_not_leave_is_not_asked_again(
    client: FlaskClient, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    (email,) = factories.register(status=S.UNCONFIRMED)
    client.post("/api/registration", data={"email": email})
    link = current_app.extensions["tokens"].opt_out_url(product_id(email))
    db.session.rollback()
    sent = []

    def hold(message, recipients):
        client.post(link.removeprefix("http://127.0.0.1:5000"))
        sent.append(recipients)
        return [Outcome(Verdict.HELD)]

    monkeypatch.setattr(confirmation_sender, "REST_SECONDS", 0.0)
    monkeypatch.setattr(sender.mailer, "send", hold)
    sender.look()
    sender.now = lambda: datetime.now(UTC) + timedelta(minutes=2)
    sender.look()

    assert len(sent) == 1


def test_confirmation_mails_keep_to_the_pace_and_hold_nobody_up_while_all_rest(
    client: FlaskClient, sender: Sender, settings: dict[str, str]
) -> None:
    for email in factories.register(10, status=S.UNCONFIRMED):
        client.post("/api/registration", data={"email": email})
    slow, begun = replace(sender, rate_limit=2.0), datetime.now(UTC) + timedelta(seconds=5)
    sent = []
    for tenths in range(31):
        slow.now = lambda tenths=tenths: begun + timedelta(seconds=tenths / 10)
        slow.look()
        sent.append(len(mails(settings)))

    assert max(after - before for before, after in pairwise(sent)) == 1
    assert 6 <= sent[-1] <= 8

    pacing.back_off(db.session(), 30.0, now=slow.now().timestamp())
    db.session.commit()
    started = time.monotonic()
    slow.look()
    assert time.monotonic() - started < 10
    assert len(mails(settings)) == sent[-1]


def test_a_confirmation_mail_that_is_too_fast_slows_all_senders_down(
    client: FlaskClient, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    (email,) = factories.register(status=S.UNCONFIRMED)
    client.post("/api/registration", data={"email": email})
    monkeypatch.setattr(sender.mailer, "send", lambda *_: [Outcome(Verdict.THROTTLED)])

    sender.look()

    assert db.session.execute(select(Pace.throttled_at)).scalar_one() > 0
