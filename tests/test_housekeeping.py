"""What the sender does beside sending, on SQLite and on MariaDB."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from registration import confirmations, counting, feedback, housekeeping, pins, registrations
from registration.db import db
from registration.housekeeping import COUNT_MARGIN_SECONDS, HOUR, MINUTE, Housekeeper, Timetable
from registration.models import ConfirmationMail, FeedbackEvent, Registration, RegistrationCount, WrongPin

from . import factories, failing
from .ledgers import commit

pytestmark = pytest.mark.usefixtures("in_context")

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Clock:
    """Stands in for the module `time`, and goes on only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(housekeeping, "time", clock)
    return clock


@pytest.fixture
def housekeeper(clock: Clock) -> Housekeeper:
    return Housekeeper(sessionmaker(db.engine), ip_retention=timedelta(days=90))


def remembered() -> int:
    db.session.rollback()
    return db.session.execute(select(RegistrationCount.registrations)).scalar_one()


def ip_addresses() -> list[str | None]:
    db.session.rollback()
    return list(db.session.execute(select(Registration.ip_address).order_by(Registration.id)).scalars())


def test_what_is_old_is_forgotten(housekeeper: Housekeeper) -> None:
    factories.register(2, created_at=NOW - timedelta(days=91), ip_address="192.0.2.1")
    factories.register(1, created_at=NOW, ip_address="192.0.2.1")
    commit(feedback.put_aside, "an old event", "It is not JSON.", NOW - feedback.RETENTION)
    commit(feedback.put_aside, "a new event", "It is not JSON.", NOW)
    old, new = NOW - timedelta(days=2), NOW - timedelta(minutes=1)
    for mailbox, sent_at in (("old", old), ("new", new)):
        db.session.execute(insert(ConfirmationMail).values(mailbox=mailbox, sent_at=sent_at))
        db.session.execute(insert(WrongPin).values(network=mailbox, created_at=sent_at))
    db.session.commit()

    housekeeper.work(NOW)

    assert ip_addresses() == [None, None, "192.0.2.1"]
    assert db.session.execute(select(FeedbackEvent.body)).scalars().all() == ["a new event"]
    assert db.session.execute(select(ConfirmationMail.mailbox)).scalars().all() == ["new"]
    assert db.session.execute(select(WrongPin.network)).scalars().all() == ["new"]
    assert old <= NOW - max(confirmations.INTERVAL, pins.WINDOW)


def test_registrations_are_counted_once_they_are_old_enough_to_be_settled(
    housekeeper: Housekeeper, clock: Clock
) -> None:
    factories.register(2)
    seen = []
    for _ in range(5):
        housekeeper.work(NOW)
        seen.append(remembered())
        clock.now += MINUTE
        factories.register(1)

    assert seen == [0, 0, 2, 3, 4]
    assert counting.count(db.session.connection()) == 7


def test_the_count_waits_for_the_whole_margin(housekeeper: Housekeeper, clock: Clock) -> None:
    factories.register(1)
    housekeeper.work(NOW)
    clock.now += COUNT_MARGIN_SECONDS - 1.0
    housekeeper.work(NOW)
    assert remembered() == 0


def test_ids_from_before_a_restore_count_for_nothing(housekeeper: Housekeeper, clock: Clock) -> None:
    factories.register(3)
    housekeeper.work(NOW)
    last = db.session.execute(select(func.max(Registration.id))).scalar_one()
    db.session.execute(delete(Registration).where(Registration.id == last))
    db.session.commit()

    clock.now += COUNT_MARGIN_SECONDS
    housekeeper.work(NOW)

    assert remembered() == 0


def test_an_empty_table_is_counted_too(housekeeper: Housekeeper, clock: Clock) -> None:
    for _ in range(4):
        housekeeper.work(NOW)
        clock.now += MINUTE
    assert remembered() == 0


def test_many_registrations_are_counted_in_transactions_of_their_own(
    housekeeper: Housekeeper, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_IDS_AT_ONCE", 2)
    factories.register(7)
    steps: list[int] = []
    remember = counting.remember

    def count(session: Session, **named: Any) -> bool:
        steps.append(session.execute(select(RegistrationCount.registrations)).scalar_one())
        return remember(session, **named)

    monkeypatch.setattr(counting, "remember", count)

    housekeeper.work(NOW)
    clock.now += COUNT_MARGIN_SECONDS
    housekeeper.work(NOW)

    assert steps == [0, 2, 4, 6]
    assert remembered() == 7


def test_each_chore_waits_for_its_time(housekeeper: Housekeeper, clock: Clock) -> None:
    housekeeper.work(NOW)
    factories.register(1, created_at=NOW - timedelta(days=91), ip_address="192.0.2.1")
    commit(feedback.put_aside, "an old event", "It is not JSON.", NOW - feedback.RETENTION)

    clock.now += MINUTE - 1.0
    housekeeper.work(NOW)
    assert db.session.execute(select(func.count()).select_from(FeedbackEvent)).scalar_one() == 1

    clock.now += 1.0
    housekeeper.work(NOW)
    db.session.rollback()
    assert db.session.execute(select(func.count()).select_from(FeedbackEvent)).scalar_one() == 0
    assert ip_addresses() == ["192.0.2.1"]

    clock.now += HOUR
    housekeeper.work(NOW)
    assert ip_addresses() == [None]


def test_ip_addresses_that_could_not_be_forgotten_are_forgotten_a_minute_later(
    housekeeper: Housekeeper, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.register(1, created_at=NOW - timedelta(days=91), ip_address="192.0.2.1")
    gone = OperationalError("", {}, Exception("gone"))
    failing.at_first(monkeypatch, registrations, "forget_ip_addresses", gone)
    with pytest.raises(OperationalError):
        housekeeper.work(NOW)

    seen = []
    for seconds in (MINUTE - 1.0, 1.0):
        clock.now += seconds
        housekeeper.work(NOW)
        seen += ip_addresses()
    assert seen == ["192.0.2.1", None]


def test_a_chore_that_fails_is_due_again_as_if_it_had_never_been() -> None:
    timetable = Timetable()
    assert timetable.is_due("a chore", 60.0)
    with pytest.raises(RuntimeError), timetable.again_after_failure("a chore"):
        raise RuntimeError

    assert not timetable.was_ever_due("a chore")
    assert timetable.is_due("a chore", 60.0)
    with timetable.again_after_failure("a chore"):
        pass
    assert not timetable.is_due("a chore", 60.0)


def test_a_timetable_tells_what_was_ever_due() -> None:
    timetable = Timetable()
    assert not timetable.was_ever_due("a chore")

    assert [timetable.is_due("a chore", 60.0) for _ in range(2)] == [True, False]

    assert timetable.was_ever_due("a chore")
    assert timetable.is_due("another", 60.0)
