"""What the sender does beside sending, on SQLite and on MariaDB."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from registration import feedback, housekeeping, registrations
from registration.db import db
from registration.housekeeping import Timetable, keep_house
from registration.models import FeedbackEvent, Registration, RegistrationCount

from . import factories
from .ledgers import commit

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _in_context(application: Flask) -> Iterator[None]:
    with application.app_context():
        yield


def keep(timetable: Timetable | None = None, now: datetime = NOW) -> None:
    sessions = sessionmaker(db.engine)
    keep_house(sessions, timetable or Timetable(), now, ip_retention=timedelta(days=90))


def test_the_house_is_kept() -> None:
    factories.register(2, created_at=NOW - timedelta(days=91), ip_address="192.0.2.1")
    factories.register(1, created_at=NOW, ip_address="192.0.2.1")
    commit(feedback.put_aside, "an old event", "It is not JSON.", NOW - feedback.RETENTION)
    commit(feedback.put_aside, "a new event", "It is not JSON.", NOW)

    keep()

    assert db.session.execute(select(RegistrationCount.registrations)).scalar_one() == 2
    assert db.session.execute(select(Registration.ip_address)).scalars().all() == [None, None, "192.0.2.1"]
    assert db.session.execute(select(FeedbackEvent.body)).scalars().all() == ["a new event"]


def test_many_registrations_are_counted_in_transactions_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrations, "_IDS_AT_ONCE", 2)
    factories.register(7, created_at=NOW - timedelta(hours=1))
    steps: list[int] = []
    remember_count = registrations.remember_count

    def count(session: Session, **named: Any) -> bool:
        steps.append(session.execute(select(RegistrationCount.registrations)).scalar_one())
        return remember_count(session, **named)

    monkeypatch.setattr(registrations, "remember_count", count)

    keep()

    assert steps == [0, 2, 4, 6]
    assert db.session.execute(select(RegistrationCount.registrations)).scalar_one() == 7


def test_each_chore_waits_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    timetable = Timetable()
    keep(timetable)
    factories.register(1, created_at=NOW - timedelta(days=91), ip_address="192.0.2.1")

    keep(timetable)
    assert db.session.execute(select(Registration.ip_address)).scalars().all() == ["192.0.2.1"]
    assert db.session.execute(select(RegistrationCount.registrations)).scalar_one() == 0
    db.session.rollback()

    later = housekeeping.time.monotonic() + max(housekeeping.COUNT_SECONDS, housekeeping.FORGET_SECONDS) + 1
    monkeypatch.setattr(housekeeping.time, "monotonic", lambda: later)
    keep(timetable)
    assert db.session.execute(select(Registration.ip_address)).scalars().all() == [None]
    assert db.session.execute(select(RegistrationCount.registrations)).scalar_one() == 1


def test_a_timetable_tells_what_was_ever_due() -> None:
    timetable = Timetable()
    assert not timetable.was_ever_due("a chore")

    assert [timetable.is_due("a chore", 60.0) for _ in range(2)] == [True, False]

    assert timetable.was_ever_due("a chore")
    assert timetable.is_due("another", 60.0)
