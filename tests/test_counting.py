"""The count is exact at any moment, whatever goes on beside it, and does not cost more the more there are."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask, current_app
from sqlalchemy import delete, event, func, insert, select, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionIsFree
from sqlalchemy.orm import Session

from registration import addresses, consent, counting, services, windows
from registration.db import db
from registration.models import Registration, RegistrationCount

from . import factories

pytestmark = pytest.mark.usefixtures("in_context")

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_the_count_is_exact_at_any_moment() -> None:
    assert counting.count(db.session) == 0
    factories.register(3)
    assert counting.count(db.session) == 3
    highest = windows.highest_id(db.session)
    remember(highest)
    assert counting.count(db.session) == 3
    factories.register(2)
    assert counting.count(db.session) == 5
    remember(highest)
    assert counting.count(db.session) == 5
    assert db.session.execute(select(RegistrationCount.registrations)).scalar_one() == 3


def test_a_registration_that_is_still_in_flight_beside_an_import_of_old_ones_is_counted() -> None:
    """Ids are given out before they are committed, and an import has new ids with old dates."""
    if db.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    factories.register(2, created_at=NOW - timedelta(days=1))
    settled = windows.highest_id(db.session)
    db.session.rollback()
    with Session(db.engine) as in_flight:
        in_flight.execute(insert(Registration), [factories.row("ann@example.org")])
        factories.register_as("old@example.org", created_at=NOW - timedelta(days=2000))

        remember(settled)

        in_flight.commit()
    assert counting.count(db.session) == 4


def test_an_erasure_beside_it_is_not_written_over() -> None:
    emails = factories.register(3)
    highest = windows.highest_id(db.session)
    db.session.rollback()
    eraser = threading.Thread(target=erase, args=(emails[0], current_app._get_current_object()))  # type: ignore[attr-defined]

    def erase_meanwhile(*arguments: Any) -> None:
        if "max(" in arguments[2]:
            eraser.start()
            eraser.join(0.5)

    event.listen(db.engine, "before_cursor_execute", erase_meanwhile)
    remember(highest)
    event.remove(db.engine, "before_cursor_execute", erase_meanwhile)
    eraser.join()

    assert counting.count(db.session) == 2


def erase(email: str, application: Flask) -> None:
    with application.app_context():
        who, tokens = addresses.normalise(email), services.of(application).tokens
        consent.erase(db.session(), who, tokens=tokens, now=NOW)
        db.session.commit()


def test_the_remembered_count_moves_by_a_few_at_once_whatever_gaps_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_IDS_AT_ONCE", 2)
    emails = factories.register(9)
    settled = windows.highest_id(db.session)
    db.session.execute(delete(Registration).where(Registration.email.in_(emails[2:6])))
    db.session.commit()
    factories.register(1)

    remembered = []
    more = True
    while more:
        more = remember(settled)
        remembered.append(db.session.execute(select(RegistrationCount.registrations)).scalar_one())
        assert counting.count(db.session) == 6

    assert remembered == [2, 4, 5]


def test_counting_reads_only_what_is_newer_than_the_remembered_count() -> None:
    factories.register(50)
    remember(windows.highest_id(db.session))
    last = db.session.execute(select(RegistrationCount.up_to_id)).scalar_one()
    assert last == db.session.execute(select(func.max(Registration.id))).scalar_one()

    if db.engine.dialect.name != "sqlite":
        before = rows_read()
        assert counting.count(db.session) == 50
        assert rows_read() - before < 10


def rows_read() -> int:
    """Return how many rows the storage engine has read for this connection."""
    status = db.session.execute(text("SHOW SESSION STATUS LIKE 'Handler_read%'"))
    return sum(int(value) for _, value in status)


def remember(up_to: int) -> bool:
    more = counting.remember(db.session, up_to=up_to)
    db.session.commit()
    return more


@pytest.mark.parametrize("error", [OperationalError("", {}, Exception("gone")), NoConnectionIsFree()])
def test_while_the_confirmed_are_counted_again_and_if_that_fails_everybody_is_told_the_number_of_before(
    monkeypatch: pytest.MonkeyPatch, error: SQLAlchemyError
) -> None:
    confirmed = counting.ConfirmedCount(db.engine)
    factories.register(2)
    assert confirmed.get() == 2
    factories.register(1)
    assert confirmed.get() == 2
    told = []

    def hang(*_: object) -> int:
        told.append(confirmed.get())
        raise error

    confirmed._fresh_until = 0.0
    with monkeypatch.context() as hanging:
        hanging.setattr(counting, "repeatable", hang)
        assert [confirmed.get() for _ in range(2)] == [2, 2]

    assert told == [2]
    confirmed._fresh_until -= counting.AGAIN_SECONDS
    assert confirmed.get() == 3


def test_the_confirmed_that_could_not_be_counted_yet_are_an_error_and_are_counted_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    confirmed = counting.ConfirmedCount(db.engine)
    factories.register(2)

    def fail(*_: object) -> int:
        raise OperationalError("", {}, Exception("gone"))

    with monkeypatch.context() as failing:
        failing.setattr(counting, "repeatable", fail)
        with pytest.raises(OperationalError):
            confirmed.get()

    assert confirmed.get() == 2


def test_the_remembered_count_is_moved_by_one_at_a_time() -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has one writer at a time")
    with Session(db.engine) as holder, Session(db.engine) as other:
        holder.execute(select(RegistrationCount).with_for_update())
        other.execute(text("SET innodb_lock_wait_timeout = 0"))
        with pytest.raises(OperationalError, match="Lock wait timeout"):
            counting.remember(other, up_to=1)
