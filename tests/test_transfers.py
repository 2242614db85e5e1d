"""Lines of a table to rows, and rows to lines of a table."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from registration import addresses, consent, reports, services, transfers
from registration.db import AUTOCOMMIT, db
from registration.domains import Domains
from registration.models import Installation, RegistrationStatus, Variation
from registration.reports import InstallationReport
from registration.tokens import Tokens
from registration.transfers import RefusedLineError

from . import factories

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DOMAINS = Domains(allow_reserved=True, allow_disposable=True, mail_servers=None)
TOKENS = Tokens(["k" * 32], "https://reg.example.org")


def parse(**cells: str) -> transfers.Line:
    return transfers.parse(2, {"email": "Ann@example.org", **cells}, now=NOW, domains=DOMAINS)


def test_a_line_with_an_address_alone_is_active_since_now() -> None:
    line = parse()

    assert line.address == ("Ann@example.org", "ann@example.org")
    assert (line.number, line.product_id, line.version, line.distribution) == (2, None, "", "")
    assert (line.created_at, line.last_seen_at, line.status) == (NOW, NOW, RegistrationStatus.ACTIVE)


def test_an_installation_was_last_seen_when_it_registered_unless_its_line_says_otherwise() -> None:
    assert parse(created_at="2020-02-03").last_seen_at == datetime(2020, 2, 3, tzinfo=UTC)
    assert parse(created_at="2020-02-03", last_seen_at="2026-02-03").last_seen_at == datetime(2026, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize("name", ["created_at", "last_seen_at"])
@pytest.mark.parametrize("time", ["2020-02-03T04:05:06Z", "2020-02-03 04:05:06", "2020-02-03T06:05:06+02:00"])
def test_a_time_is_utc_unless_it_says_otherwise(name: str, time: str) -> None:
    assert getattr(parse(**{name: time}), name) == datetime(2020, 2, 3, 4, 5, 6, tzinfo=UTC)


@pytest.mark.parametrize("name", ["created_at", "last_seen_at"])
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-11-23T12:05:01Z"])
def test_a_time_that_cannot_be_is_refused(name: str, time: str) -> None:
    with pytest.raises(RefusedLineError, match=name):
        parse(**{name: time})


@pytest.mark.parametrize("name", ["created_at", "last_seen_at"])
def test_a_time_by_a_clock_that_is_a_little_ahead_is_now(name: str) -> None:
    assert getattr(parse(**{name: "2026-11-23T12:05:00Z"}), name) == NOW


def test_capitals_do_not_matter_in_a_status() -> None:
    assert parse(status=" Opted_Out").status is RegistrationStatus.OPTED_OUT


def test_another_variation_of_a_mailbox_that_was_taken_in_is_asked_when_it_registers(application: Flask) -> None:
    emails = ["ann+clinic@example.org", "ann+branch@example.org"]
    with application.app_context():
        for _ in range(2):
            transfers.take_in(db.session(), [parse(email=email) for email in emails], tokens=TOKENS)
            db.session.commit()
        address = addresses.normalise("ann+other@example.org")
        services.of(application).registrar.register(address, product_id=uuid.uuid4(), now=NOW)

        noted = db.session.execute(select(Variation.mailbox, Variation.email_key)).all()
        assert noted == [("ann@example.org", "ann+clinic@example.org")]
        assert consent.status_of(db.session(), address) is RegistrationStatus.UNCONFIRMED


def test_an_installation_that_reports_itself_beside_an_import_stays_as_new(application: Flask) -> None:
    with application.app_context():
        if db.engine.dialect.name != "mysql":
            pytest.skip("SQLite has one writer at a time anyway")
        factories.register_as("ann@example.org")
        factories.install("ann@example.org", "7.0.2", last_seen_at=NOW - timedelta(days=300))
        address = addresses.normalise("ann@example.org")

        def report(*arguments: Any) -> None:
            if arguments[2].startswith("UPDATE installation"):
                with db.engines[AUTOCOMMIT].connect() as connection:
                    reports.remember(connection, address, InstallationReport("7.0.2"), NOW)

        event.listen(db.engine, "before_cursor_execute", report)
        line = parse(version="7.0.2", last_seen_at="2026-06-01")
        transfers.take_in(db.session(), [line], tokens=TOKENS)
        event.remove(db.engine, "before_cursor_execute", report)
        db.session.commit()

        assert db.session.execute(select(Installation.last_seen_at)).scalar_one() == NOW


def test_installations_are_stored_in_the_order_of_their_registrations(application: Flask) -> None:
    """As events come to the same registrations, whatever the order of the table."""
    emails = ["ann@example.org", "bob@example.org", "cleo@example.org"]
    with application.app_context():
        factories.register_as(*emails)
        lines = [parse(email=email, version="7.0.2") for email in reversed(emails)]
        transfers.take_in(db.session(), lines, tokens=TOKENS)

        order = db.session.execute(select(Installation.registration_id).order_by(Installation.id)).scalars().all()
        assert len(order) == 3
        assert order == sorted(order)


def test_two_imports_wait_for_each_other(application: Flask) -> None:
    with application.app_context():
        if db.engine.dialect.name != "mysql":
            pytest.skip("SQLite has one writer at a time anyway")
        transfers.take_in(db.session(), [parse()], tokens=TOKENS)
        with Session(db.engine) as other:
            other.execute(text("SET innodb_lock_wait_timeout = 0"))
            with pytest.raises(OperationalError, match="Lock wait timeout"):
                transfers.take_in(other, [parse(email="bob@example.org")], tokens=TOKENS)
