"""The ledger: who is in it, who gets what, and what becomes of each delivery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from registration import broadcasts, ledger, monitoring
from registration.db import db, rows_matched
from registration.ledger import Batch
from registration.mailers import Outcome, Verdict
from registration.models import Broadcast, Delivery, DeliveryStatus, Registration, RegistrationStatus

from . import factories
from .ledgers import (
    ACCEPTED,
    AFTER_LEASE,
    HELD,
    NOW,
    REFUSED,
    THROTTLED,
    UNKNOWN,
    claim,
    commit,
    filled,
    lines,
    settle,
    statuses,
)

pytestmark = pytest.mark.usefixtures("in_context")


def test_the_ledger_holds_every_active_registration_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "REGISTRATIONS_AT_ONCE", 3)
    factories.register(7)
    for status in (RegistrationStatus.OPTED_OUT, RegistrationStatus.BOUNCED, RegistrationStatus.COMPLAINED):
        factories.register(1, status=status)
    broadcast_id = factories.start_broadcast()

    chunks = 0
    while commit(ledger.fill, broadcast_id):
        chunks += 1

    assert chunks == 4
    assert statuses(broadcast_id) == {"queued": 7}
    assert len({delivery.registration_id for delivery in lines(broadcast_id)}) == 7


def test_ids_that_nobody_has_cost_no_chunk() -> None:
    """Each request for a known address uses one up."""
    rows = [factories.row(f"{number}@example.org") | {"id": number * 1_000_000} for number in (1, 2, 3)]
    db.session.execute(insert(Registration), rows)
    db.session.commit()
    broadcast_id = factories.start_broadcast()

    assert [commit(ledger.fill, broadcast_id) for _ in range(2)] == [True, False]
    assert statuses(broadcast_id) == {"queued": 3}


def test_of_two_who_fill_the_same_chunk_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    factories.register(3)
    broadcast_id = factories.start_broadcast()
    others: list[bool] = []

    def overtaken(*arguments: Any) -> int:
        monkeypatch.undo()
        others.append(commit(ledger.fill, broadcast_id))
        return rows_matched(*arguments)

    monkeypatch.setattr(ledger, "rows_matched", overtaken)
    own = commit(ledger.fill, broadcast_id)

    assert sorted([own, *others]) == [False, True]
    assert statuses(broadcast_id) == {"queued": 3}


def test_who_registers_after_the_start_is_not_in_the_audience(monkeypatch: pytest.MonkeyPatch) -> None:
    factories.register(2)
    broadcast_id = factories.start_broadcast()
    factories.register(1)

    while commit(ledger.fill, broadcast_id):
        pass

    assert len(lines(broadcast_id)) == 2


def test_a_fill_that_is_rolled_back_begins_again_where_it_was() -> None:
    factories.register(3)
    broadcast_id = factories.start_broadcast()
    session = sessionmaker(db.engine)()
    ledger.fill(session, broadcast_id)
    session.rollback()
    session.close()

    assert commit(ledger.fill, broadcast_id)
    assert not commit(ledger.fill, broadcast_id)
    assert len(lines(broadcast_id)) == 3


def test_a_delivery_is_claimed_once() -> None:
    broadcast_id = filled(3)

    first, second = claim(broadcast_id, 2), claim(broadcast_id, 2, lease="two")

    assert first is not None
    assert second is not None
    assert len(first.recipients) == 2
    assert len(second.recipients) == 1
    assert not {one.delivery_id for one in first.recipients} & {one.delivery_id for one in second.recipients}
    assert claim(broadcast_id) is None


def test_a_claim_leaves_alone_what_lies_between_its_deliveries() -> None:
    broadcast_id = filled(5)
    settle(claim(broadcast_id), THROTTLED, UNKNOWN, THROTTLED, UNKNOWN, THROTTLED)

    batch = claim(broadcast_id, 2, lease="two")

    first, _, third, *_ = lines(broadcast_id)
    assert batch is not None
    assert [recipient.delivery_id for recipient in batch.recipients] == [first.id, third.id]
    assert [delivery.lease for delivery in lines(broadcast_id)] == ["two", None, "two", None, None]
    assert statuses(broadcast_id) == {"sending": 4, "queued": 1}


def test_deliveries_that_are_named_twice_are_no_range() -> None:
    broadcast_id = filled(4)
    first, _, third, _ = (delivery.id for delivery in lines(broadcast_id))

    found = db.session.execute(select(Delivery.id).where(ledger._among([third, first, third]))).scalars()

    assert set(found) == {first, third}


def test_a_claim_hands_out_each_address_with_its_product_id() -> None:
    batch = claim(filled(3), 3)
    assert batch is not None

    registered = dict(db.session.execute(select(Registration.email, Registration.product_id)).all())
    assert {recipient.address: recipient.product_id for recipient in batch.recipients} == registered


def test_whoever_opted_out_before_their_turn_is_skipped() -> None:
    broadcast_id = filled(3)
    gone = lines(broadcast_id)[1]
    db.session.execute(update(Registration).where(Registration.id == gone.registration_id).values(status="opted_out"))
    db.session.commit()

    batch = claim(broadcast_id)

    assert batch is not None
    assert gone.id not in [recipient.delivery_id for recipient in batch.recipients]
    assert len(batch.recipients) == 2
    skipped = lines(broadcast_id)[1]
    assert (skipped.status, skipped.reason) == (DeliveryStatus.SKIPPED, "The address is opted_out.")


NEXT = {
    Verdict.ACCEPTED: DeliveryStatus.SENT,
    Verdict.THROTTLED: DeliveryStatus.QUEUED,
    Verdict.UNREACHED: DeliveryStatus.QUEUED,
    Verdict.HELD: DeliveryStatus.QUEUED,
    Verdict.APART: DeliveryStatus.QUEUED,
    Verdict.REFUSED: DeliveryStatus.FAILED,
    Verdict.UNKNOWN: DeliveryStatus.SENDING,
}


def test_each_verdict_decides_what_becomes_of_a_delivery() -> None:
    assert ledger.AFTER == NEXT


def test_a_call_that_is_left_unanswered_is_made_again_until_the_attempts_are_used_up() -> None:
    broadcast_id = filled(1)
    statuses = []
    for attempt in range(ledger.MOST_ATTEMPTS):
        now = NOW + 2 * attempt * ledger.LEASE
        settle(claim(broadcast_id, now=now), UNKNOWN)
        commit(ledger.expire, broadcast_id, now + 2 * ledger.LEASE)
        statuses += [line.status for line in lines(broadcast_id)]

    assert statuses == [DeliveryStatus.QUEUED] * (ledger.MOST_ATTEMPTS - 1) + [DeliveryStatus.FAILED]


def test_who_was_tried_in_vain_can_be_left_aside() -> None:
    broadcast_id = filled(3)
    settle(claim(broadcast_id, 1), UNKNOWN)
    first, *others = lines(broadcast_id)
    later = NOW + 2 * ledger.LEASE
    commit(ledger.expire, broadcast_id, later)

    def claim_those(tried_at_most: int) -> list[int]:
        batch = commit(ledger.claim, broadcast_id, lease="two", limit=50, now=later, tried_at_most=tried_at_most)
        return [recipient.delivery_id for recipient in batch.recipients] if batch else []

    assert [claim_those(0), claim_those(0), claim_those(1)] == [[other.id for other in others], [], [first.id]]


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

    (delivery,) = lines(broadcast_id)
    assert (delivery.status, delivery.attempts, delivery.reason) == (status, attempts, reason)
    assert delivery.message_id == outcome.message_id
    assert (delivery.settled_at == NOW) is (status in ledger.FINAL)


def test_outcomes_of_one_batch_are_kept_apart() -> None:
    broadcast_id = filled(6)

    settle(claim(broadcast_id), ACCEPTED, REFUSED, THROTTLED, HELD, UNKNOWN, Outcome(Verdict.ACCEPTED, "0100-6"))

    assert [(delivery.status.value, delivery.message_id) for delivery in lines(broadcast_id)] == [
        ("sent", "0100-1"),
        ("failed", None),
        ("queued", None),
        ("queued", None),
        ("sending", None),
        ("sent", "0100-6"),
    ]


@pytest.mark.parametrize("message_id", ["x" * 129, "0100-\N{EN DASH}1"])
def test_an_id_that_does_not_fit_keeps_no_outcome_from_being_written_down(message_id: str) -> None:
    broadcast_id = filled(2)

    settle(claim(broadcast_id), Outcome(Verdict.ACCEPTED, message_id), Outcome(Verdict.ACCEPTED, "x" * 128))

    assert [(delivery.status.value, delivery.message_id) for delivery in lines(broadcast_id)] == [
        ("sent", None),
        ("sent", "x" * 128),
    ]


def test_an_unknown_outcome_lets_go_of_no_other_delivery_of_its_batch() -> None:
    broadcast_id = filled(3)

    settle(claim(broadcast_id), UNKNOWN, REFUSED, THROTTLED)

    assert [(delivery.status.value, delivery.reason) for delivery in lines(broadcast_id)] == [
        ("sending", "No answer."),
        ("failed", "No such address."),
        ("queued", None),
    ]


def test_a_batch_that_is_released_is_queued_as_if_it_had_not_been_claimed() -> None:
    broadcast_id = filled(2)
    batch = claim(broadcast_id)

    commit(ledger.release, batch)

    assert [(one.status.value, one.attempts, one.lease) for one in lines(broadcast_id)] == [("queued", 0, None)] * 2


def test_an_unknown_outcome_is_sent_again_only_when_its_lease_is_over_and_says_so() -> None:
    broadcast_id = filled(1)
    settle(claim(broadcast_id), UNKNOWN)

    commit(ledger.expire, broadcast_id, NOW)
    assert claim(broadcast_id) is None
    commit(ledger.expire, broadcast_id, AFTER_LEASE)
    settle(claim(broadcast_id, lease="two"), ACCEPTED)

    (delivery,) = lines(broadcast_id)
    assert (delivery.status, delivery.attempts, delivery.reason) == (DeliveryStatus.SENT, 2, "No answer.")


def test_a_lease_that_holds_is_nothing_to_expire() -> None:
    broadcast_id = filled(1)
    claim(broadcast_id)

    assert not commit(ledger.expire, broadcast_id, NOW)
    assert commit(ledger.expire, broadcast_id, AFTER_LEASE)


def test_a_delivery_whose_sender_died_says_so() -> None:
    broadcast_id = filled(1)
    claim(broadcast_id)

    commit(ledger.expire, broadcast_id, AFTER_LEASE)

    (delivery,) = lines(broadcast_id)
    assert delivery.status is DeliveryStatus.QUEUED
    assert "stopped before the outcome was known" in (delivery.reason or "")


def test_a_delivery_that_is_never_answered_fails_in_the_end() -> None:
    broadcast_id = filled(1)
    for _ in range(ledger.MOST_ATTEMPTS):
        settle(claim(broadcast_id), UNKNOWN)
        commit(ledger.expire, broadcast_id, AFTER_LEASE)

    (delivery,) = lines(broadcast_id)
    assert delivery.status is DeliveryStatus.FAILED
    assert "unanswered" in (delivery.reason or "")


def test_an_acceptance_counts_even_after_the_lease_is_over() -> None:
    broadcast_id = filled(1)
    batch = claim(broadcast_id)
    commit(ledger.expire, broadcast_id, AFTER_LEASE)

    settle(batch, ACCEPTED)

    assert statuses(broadcast_id) == {"sent": 1}


@pytest.mark.parametrize("status", [DeliveryStatus.CANCELLED, DeliveryStatus.SKIPPED])
def test_an_acceptance_counts_whatever_became_of_the_delivery_meanwhile_and_nobody_is_mailed_again(
    status: DeliveryStatus,
) -> None:
    broadcast_id = filled(3)
    batch = claim(broadcast_id)
    commit(ledger.expire, broadcast_id, AFTER_LEASE)
    if status is DeliveryStatus.SKIPPED:
        db.session.execute(update(Registration).values(status="opted_out"))
        db.session.commit()
        claim(broadcast_id, lease="two", now=AFTER_LEASE)
    commit(broadcasts.cancel, broadcast_id)
    commit(broadcasts.cancel_rest, broadcast_id, NOW)
    commit(broadcasts.finish, broadcast_id, NOW)
    assert statuses(broadcast_id) == {status: 3}
    second = lines(broadcast_id)[1]

    settle(batch, ACCEPTED, UNKNOWN, UNKNOWN)
    commit(ledger.accept, {second.id: "0100-2"}, NOW)

    sent = [line.status is DeliveryStatus.SENT for line in lines(broadcast_id)]
    assert sent == [True, True, False]
    assert "The address" not in (lines(broadcast_id)[0].reason or "")
    told = commit(monitoring.progress, broadcast_id, NOW)
    assert (told.recipients, told.sent, told.remaining) == (3, 2, 0)
    assert (told.cancelled, told.skipped) == ((1, 0) if status is DeliveryStatus.CANCELLED else (0, 1))
    assert commit(broadcasts.retry, broadcast_id, AFTER_LEASE) is (status is DeliveryStatus.CANCELLED)
    assert statuses(broadcast_id)["sent"] == 2


def test_simultaneous_senders_claim_each_delivery_once_without_an_error(application: Flask) -> None:
    from concurrent.futures import ThreadPoolExecutor

    broadcast_id = filled(200)

    def work(number: int) -> list[int]:
        mine: list[int] = []
        while (batch := claim_in(number, len(mine))) is not None:
            mine += [recipient.delivery_id for recipient in batch.recipients]
            with sessions.begin() as session:
                ledger.settle(session, batch, [ACCEPTED] * len(batch.recipients), NOW)
        return mine

    def claim_in(number: int, turn: int) -> Batch | None:
        with sessions.begin() as session:
            return ledger.claim(session, broadcast_id, lease=f"{number}-{turn}", limit=7, now=NOW)

    sessions = sessionmaker(db.engine)
    with ThreadPoolExecutor(4) as pool:
        claimed = [delivery_id for ids in pool.map(work, range(4)) for delivery_id in ids]

    assert len(claimed) == len(set(claimed)) == 200
    assert statuses(broadcast_id) == {"sent": 200}
    assert db.session.get(Broadcast, broadcast_id) is not None


def test_deliveries_are_listed_in_pages_in_every_order() -> None:
    other, broadcast_id = filled(2), filled(5)
    settle(claim(broadcast_id), *[ACCEPTED, REFUSED] * 3, ACCEPTED)
    emails = commit(lambda session: [line.recipient for line in page_through(session, broadcast_id, None)])

    assert len(set(emails)) == 7
    sent = commit(page_through, broadcast_id, DeliveryStatus.SENT)
    assert [(line.status, line.message_id) for line in sent] == [(DeliveryStatus.SENT, "0100-1")] * 4
    failed = commit(page_through, broadcast_id, DeliveryStatus.FAILED)
    assert [(line.reason, line.attempts, line.settled_at) for line in failed] == [("No such address.", 1, NOW)] * 3
    assert {line.recipient for line in sent} | {line.recipient for line in failed} == set(emails)
    assert commit(page_through, other, DeliveryStatus.SENT) == []


def page_through(session: Session, broadcast_id: int, status: DeliveryStatus | None) -> list[ledger.Line]:
    found: list[ledger.Line] = []
    while page := ledger.lines(session, broadcast_id, status=status, after=found[-1].position if found else 0, limit=2):
        found += page
    return found


def test_a_claim_does_not_wait_for_another_that_is_not_committed_yet() -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has one writer at a time")
    broadcast_id = filled(4)
    with Session(db.engine) as one, Session(db.engine) as other:
        first = ledger.claim(one, broadcast_id, lease="one", limit=2, now=NOW)
        second = ledger.claim(other, broadcast_id, lease="other", limit=2, now=NOW)

    assert first is not None
    assert second is not None
    assert not {recipient.delivery_id for recipient in first.recipients} & {
        recipient.delivery_id for recipient in second.recipients
    }


def test_the_attempts_of_senders_that_died_do_not_count() -> None:
    broadcast_id = filled(1)
    for _ in range(ledger.MOST_ATTEMPTS):
        assert claim(broadcast_id) is not None
        assert commit(ledger.expire, broadcast_id, AFTER_LEASE)

    settle(claim(broadcast_id), UNKNOWN)
    commit(ledger.expire, broadcast_id, AFTER_LEASE)

    assert statuses(broadcast_id) == {"queued": 1}


def test_nobody_waits_for_another_who_fills_the_same_ledger() -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has one writer at a time")
    factories.register(1)
    broadcast_id = factories.start_broadcast()
    with Session(db.engine) as one, Session(db.engine) as other:
        other.execute(text("SET innodb_lock_wait_timeout = 1"))
        assert [ledger.fill(session, broadcast_id) for session in (one, other)] == [True, False]


@pytest.mark.parametrize("outcome", [REFUSED, THROTTLED, UNKNOWN])
def test_who_has_lost_a_lease_leaves_the_delivery_to_who_holds_it_now(outcome: Outcome) -> None:
    broadcast_id = filled(1)
    late = claim(broadcast_id)
    commit(ledger.expire, broadcast_id, AFTER_LEASE)
    claim(broadcast_id, lease="other", now=AFTER_LEASE)

    settle(late, outcome)

    (delivery,) = lines(broadcast_id)
    assert (delivery.status, delivery.lease) == (DeliveryStatus.SENDING, "other")


def test_no_database_chooses_another_way_to_the_next_delivery_of_a_status() -> None:
    """MySQL 8.4 by itself goes through all that were sent before: 240 ms in place of one, with 900,000 of them."""
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite is given no hints")
    broadcast_id = filled(2)
    looks: list[Callable[[Session], object]] = [
        lambda session: ledger.claim(session, broadcast_id, lease="one", limit=1, now=NOW),
        lambda session: ledger.expire(session, broadcast_id, NOW),
        lambda session: ledger.is_settled(session, broadcast_id),
        lambda session: ledger.has_unanswered(session, broadcast_id, NOW),
        lambda session: ledger.sent_since(session, broadcast_id, NOW),
        lambda session: ledger.recent_rate(session, broadcast_id, NOW),
        lambda session: ledger.queue_again(session, broadcast_id, NOW),
        lambda session: ledger.lines(session, broadcast_id, status=DeliveryStatus.QUEUED, after=0, limit=1),
        lambda session: ledger.cancel_rest(session, broadcast_id, NOW),
    ]
    for look in looks:
        asked: list[str] = []
        with Session(db.engine) as session, listening(asked):
            look(session)
        reads = [statement for statement in asked if statement.startswith("SELECT")]
        assert all("FORCE INDEX (ix_delivery_broadcast_id_status_id)" in statement for statement in reads), reads
        assert reads


@contextmanager
def listening(asked: list[str]) -> Iterator[None]:
    """Note the statements of the engine."""

    def note(_: object, __: object, statement: str, *___: object) -> None:
        asked.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
