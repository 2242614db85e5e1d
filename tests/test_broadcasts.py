"""The ledger: who is in it, who gets what, and what becomes of each delivery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.orm import sessionmaker

from registration import broadcasts
from registration.broadcasts import Batch
from registration.db import db
from registration.errors import UnknownBroadcastException
from registration.mailers import Outcome, Verdict
from registration.models import Broadcast, BroadcastStatus, Delivery, DeliveryStatus, Registration, RegistrationStatus

from . import factories

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
AFTER_LEASE = NOW + broadcasts.LEASE + timedelta(seconds=1)
ACCEPTED = Outcome(Verdict.ACCEPTED, message_id="0100-1")
REFUSED = Outcome(Verdict.REFUSED, reason="No such address.")
THROTTLED = Outcome(Verdict.THROTTLED, reason="Slow down.")
HELD = Outcome(Verdict.HELD, reason="Paused.")
UNKNOWN = Outcome(Verdict.UNKNOWN, reason="No answer.")


@pytest.fixture(autouse=True)
def _in_context(application: Flask):
    with application.app_context():
        yield


def commit(step: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with sessionmaker(db.engine).begin() as session:
        return step(session, *arguments, **named)


def filled(number: int) -> int:
    """Start a broadcast to new registrations and fill its ledger."""
    factories.register(number)
    broadcast_id = factories.start_broadcast()
    while commit(broadcasts.fill, broadcast_id):
        pass
    return broadcast_id


def claim(broadcast_id: int, limit: int = 50, *, lease: str = "one", now: datetime = NOW) -> Batch | None:
    return commit(broadcasts.claim, broadcast_id, lease=lease, limit=limit, now=now)


def settle(batch: Batch | None, *outcomes: Outcome) -> None:
    assert batch is not None
    commit(broadcasts.settle, batch, outcomes, NOW)


def ledger(broadcast_id: int) -> list[Delivery]:
    db.session.rollback()
    rows = db.session.execute(select(Delivery).filter_by(broadcast_id=broadcast_id).order_by(Delivery.id))
    db.session.expire_all()
    return list(rows.scalars())


def statuses(broadcast_id: int) -> Counter[str]:
    return Counter(delivery.status.value for delivery in ledger(broadcast_id))


def test_a_broadcast_to_nobody_has_ended_at_once() -> None:
    broadcast_id = factories.start_broadcast()

    assert commit(broadcasts.status_of, broadcast_id) is BroadcastStatus.SENT
    assert commit(broadcasts.progress, broadcast_id).recipients == 0


def test_the_ledger_holds_every_active_registration_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasts, "_IDS_AT_ONCE", 3)
    factories.register(7)
    for status in (RegistrationStatus.OPTED_OUT, RegistrationStatus.BOUNCED, RegistrationStatus.COMPLAINED):
        factories.register(1, status=status)
    broadcast_id = factories.start_broadcast()

    chunks = 0
    while commit(broadcasts.fill, broadcast_id):
        chunks += 1

    assert chunks > 2
    assert statuses(broadcast_id) == {"queued": 7}
    assert len({delivery.registration_id for delivery in ledger(broadcast_id)}) == 7


def test_who_registers_after_the_start_is_not_in_the_audience(monkeypatch: pytest.MonkeyPatch) -> None:
    factories.register(2)
    broadcast_id = factories.start_broadcast()
    factories.register(1)

    while commit(broadcasts.fill, broadcast_id):
        pass

    assert len(ledger(broadcast_id)) == 2


def test_a_fill_that_is_rolled_back_begins_again_where_it_was() -> None:
    factories.register(3)
    broadcast_id = factories.start_broadcast()
    session = sessionmaker(db.engine)()
    broadcasts.fill(session, broadcast_id)
    session.rollback()
    session.close()

    assert commit(broadcasts.fill, broadcast_id)
    assert not commit(broadcasts.fill, broadcast_id)
    assert len(ledger(broadcast_id)) == 3


def test_progress_promises_the_whole_audience_while_the_ledger_is_being_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broadcasts, "_IDS_AT_ONCE", 2)
    factories.register(5)
    broadcast_id = factories.start_broadcast()
    commit(broadcasts.fill, broadcast_id)

    progress = commit(broadcasts.progress, broadcast_id)
    assert (progress.recipients, progress.remaining) == (5, 5)


def test_a_delivery_is_claimed_once() -> None:
    broadcast_id = filled(3)

    first, second = claim(broadcast_id, 2), claim(broadcast_id, 2, lease="two")

    assert first is not None
    assert second is not None
    assert len(first.recipients) == 2
    assert len(second.recipients) == 1
    assert not {one.delivery_id for one in first.recipients} & {one.delivery_id for one in second.recipients}
    assert claim(broadcast_id) is None


def test_whoever_opted_out_before_their_turn_is_skipped() -> None:
    broadcast_id = filled(3)
    gone = ledger(broadcast_id)[1]
    db.session.execute(update(Registration).where(Registration.id == gone.registration_id).values(status="opted_out"))
    db.session.commit()

    batch = claim(broadcast_id)

    assert batch is not None
    assert gone.id not in [recipient.delivery_id for recipient in batch.recipients]
    assert len(batch.recipients) == 2
    skipped = ledger(broadcast_id)[1]
    assert (skipped.status, skipped.reason) == (DeliveryStatus.SKIPPED, "The address is opted_out.")


@pytest.mark.parametrize(
    ("outcome", "status", "attempts", "reason"),
    [
        (ACCEPTED, DeliveryStatus.SENT, 1, None),
        (REFUSED, DeliveryStatus.FAILED, 1, "No such address."),
        (THROTTLED, DeliveryStatus.QUEUED, 0, None),
        (HELD, DeliveryStatus.QUEUED, 0, None),
        (UNKNOWN, DeliveryStatus.SENDING, 1, "No answer."),
    ],
)
def test_each_outcome_has_its_answer(
    outcome: Outcome, status: DeliveryStatus, attempts: int, reason: str | None
) -> None:
    broadcast_id = filled(1)

    settle(claim(broadcast_id), outcome)

    (delivery,) = ledger(broadcast_id)
    assert (delivery.status, delivery.attempts, delivery.reason) == (status, attempts, reason)
    assert delivery.message_id == outcome.message_id
    assert (delivery.settled_at == NOW) is (status in broadcasts.FINAL)


def test_outcomes_of_one_batch_are_kept_apart() -> None:
    broadcast_id = filled(6)

    settle(claim(broadcast_id), ACCEPTED, REFUSED, THROTTLED, HELD, UNKNOWN, Outcome(Verdict.ACCEPTED, "0100-6"))

    assert [(delivery.status.value, delivery.message_id) for delivery in ledger(broadcast_id)] == [
        ("sent", "0100-1"),
        ("failed", None),
        ("queued", None),
        ("queued", None),
        ("sending", None),
        ("sent", "0100-6"),
    ]


def test_a_batch_that_is_released_is_queued_as_if_it_had_not_been_claimed() -> None:
    broadcast_id = filled(2)
    batch = claim(broadcast_id)

    commit(broadcasts.release, batch)

    assert [(one.status.value, one.attempts, one.lease) for one in ledger(broadcast_id)] == [("queued", 0, None)] * 2


def test_an_unknown_outcome_is_sent_again_only_when_its_lease_is_over_and_says_so() -> None:
    broadcast_id = filled(1)
    settle(claim(broadcast_id), UNKNOWN)

    commit(broadcasts.expire, broadcast_id, NOW)
    assert claim(broadcast_id) is None
    commit(broadcasts.expire, broadcast_id, AFTER_LEASE)
    settle(claim(broadcast_id, lease="two"), ACCEPTED)

    (delivery,) = ledger(broadcast_id)
    assert (delivery.status, delivery.attempts, delivery.reason) == (DeliveryStatus.SENT, 2, "No answer.")


def test_a_delivery_whose_sender_died_says_so() -> None:
    broadcast_id = filled(1)
    claim(broadcast_id)

    commit(broadcasts.expire, broadcast_id, AFTER_LEASE)

    (delivery,) = ledger(broadcast_id)
    assert delivery.status is DeliveryStatus.QUEUED
    assert "stopped before the outcome was known" in (delivery.reason or "")


def test_a_delivery_that_is_never_answered_fails_in_the_end() -> None:
    broadcast_id = filled(1)
    for _ in range(broadcasts.MOST_ATTEMPTS):
        settle(claim(broadcast_id), UNKNOWN)
        commit(broadcasts.expire, broadcast_id, AFTER_LEASE)

    (delivery,) = ledger(broadcast_id)
    assert delivery.status is DeliveryStatus.FAILED
    assert "unanswered" in (delivery.reason or "")


def test_an_acceptance_counts_even_after_the_lease_is_over() -> None:
    broadcast_id = filled(1)
    batch = claim(broadcast_id)
    commit(broadcasts.expire, broadcast_id, AFTER_LEASE)

    settle(batch, ACCEPTED)

    assert statuses(broadcast_id) == {"sent": 1}


def test_a_throttled_answer_does_not_take_back_what_another_sender_has_claimed_since() -> None:
    broadcast_id = filled(1)
    batch = claim(broadcast_id)
    commit(broadcasts.expire, broadcast_id, AFTER_LEASE)
    claim(broadcast_id, lease="two", now=AFTER_LEASE)

    settle(batch, THROTTLED)

    assert statuses(broadcast_id) == {"sending": 1}


def test_a_broadcast_ends_when_nothing_is_left_and_the_figures_add_up() -> None:
    broadcast_id = filled(3)
    assert not commit(broadcasts.finish, broadcast_id, NOW)
    settle(claim(broadcast_id), ACCEPTED, REFUSED, ACCEPTED)

    assert commit(broadcasts.finish, broadcast_id, NOW)
    assert not commit(broadcasts.finish, broadcast_id, NOW)

    progress = commit(broadcasts.progress, broadcast_id)
    assert (progress.status, progress.sent, progress.failed) == (BroadcastStatus.SENT, 2, 1)
    assert progress.recipients == progress.sent + progress.failed + progress.skipped + progress.cancelled == 3
    assert progress.remaining == 0


def test_a_broadcast_does_not_end_before_its_ledger_is_filled() -> None:
    factories.register(1)
    broadcast_id = factories.start_broadcast()

    assert not commit(broadcasts.finish, broadcast_id, NOW)


def test_a_paused_broadcast_is_left_alone_until_its_time() -> None:
    broadcast_id = filled(1)
    commit(broadcasts.pause, broadcast_id, reason="Quota.", resume_at=NOW + timedelta(seconds=60))

    assert commit(broadcasts.underway, NOW) == []
    assert commit(broadcasts.progress, broadcast_id).reason == "Quota."
    assert commit(broadcasts.underway, NOW + timedelta(seconds=60)) == [broadcast_id]
    resumed = commit(broadcasts.progress, broadcast_id)
    assert (resumed.status, resumed.reason) == (BroadcastStatus.SENDING, None)


def test_broadcasts_are_worked_on_oldest_first_and_ended_ones_not_at_all() -> None:
    ended = factories.start_broadcast()
    factories.register(1)
    ids = [factories.start_broadcast(), factories.start_broadcast()]

    assert commit(broadcasts.underway, NOW) == ids
    assert ended not in ids


def test_a_broadcast_keeps_what_it_says_to_the_letter() -> None:
    contents = "Ünïcode \U0001f6a8\r\n" + "x" * 90_000
    message = commit(broadcasts.message_of, factories.start_broadcast("Tïtle \U0001f6a8", contents))

    assert (message.subject, message.text) == ("Tïtle \U0001f6a8", contents)


@pytest.mark.parametrize("question", [broadcasts.status_of, broadcasts.progress])
def test_an_unknown_broadcast_is_an_error(question: Callable[..., Any]) -> None:
    with pytest.raises(UnknownBroadcastException):
        commit(question, 4711)


def test_simultaneous_senders_claim_each_delivery_once_without_an_error(application: Flask) -> None:
    from concurrent.futures import ThreadPoolExecutor

    broadcast_id = filled(200)

    def work(number: int) -> list[int]:
        mine: list[int] = []
        while (batch := claim_in(number, len(mine))) is not None:
            mine += [recipient.delivery_id for recipient in batch.recipients]
            with sessions.begin() as session:
                broadcasts.settle(session, batch, [ACCEPTED] * len(batch.recipients), NOW)
        return mine

    def claim_in(number: int, turn: int) -> Batch | None:
        with sessions.begin() as session:
            return broadcasts.claim(session, broadcast_id, lease=f"{number}-{turn}", limit=7, now=NOW)

    sessions = sessionmaker(db.engine)
    with ThreadPoolExecutor(4) as pool:
        claimed = [delivery_id for ids in pool.map(work, range(4)) for delivery_id in ids]

    assert len(claimed) == len(set(claimed)) == 200
    assert statuses(broadcast_id) == {"sent": 200}
    assert db.session.get(Broadcast, broadcast_id) is not None
