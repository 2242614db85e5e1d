"""Registering, counting and forgetting, on SQLite and on MariaDB."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import event, func, select

from registration import addresses, registrations
from registration.db import autocommit, db
from registration.errors import AlreadyRegisteredException
from registration.models import Installation, Registration, RegistrationCount, RegistrationStatus
from registration.registrations import InstallationReport

from . import factories

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _in_context(application: Flask):
    with application.app_context():
        yield


def register(email: str, *, installation: InstallationReport | None = None, now: datetime = NOW) -> uuid.UUID:
    with autocommit() as connection:
        return registrations.register(
            connection,
            addresses.normalise(email),
            product_id=uuid.uuid4(),
            now=now,
            ip_address="192.0.2.1",
            installation=installation,
        )


def test_a_registration_is_stored_as_given_and_unique_by_its_key() -> None:
    product_id = register("Ann@Example.org")

    stored = db.session.execute(select(Registration)).scalar_one()
    assert (stored.email, stored.email_key) == ("Ann@Example.org", "ann@example.org")
    assert (stored.product_id, stored.ip_address, stored.created_at) == (product_id, "192.0.2.1", NOW)
    assert stored.status is RegistrationStatus.ACTIVE
    with pytest.raises(AlreadyRegisteredException):
        register("ann@example.org")


def test_a_known_address_that_reports_an_installation_keeps_its_product_id() -> None:
    product_id = register("ann@example.org")

    assert register("ANN@example.org", installation=InstallationReport("7.0.3 (1)")) == product_id
    assert db.session.execute(select(func.count()).select_from(Registration)).scalar_one() == 1


def test_each_version_and_distribution_is_remembered_once_with_first_and_last_time_seen() -> None:
    later = NOW + timedelta(days=1)
    register("ann@example.org", installation=InstallationReport("7.0.3 (1)", "docker"))
    register("ann@example.org", installation=InstallationReport("7.0.3 (1)", "docker"), now=later)
    register("ann@example.org", installation=InstallationReport("banana"), now=later)

    seen = db.session.execute(select(Installation).order_by(Installation.id)).scalars().all()
    assert [(one.version, one.distribution, one.first_seen_at, one.last_seen_at) for one in seen] == [
        ("7.0.3 (1)", "docker", NOW, later),
        ("banana", "", later, later),
    ]
    assert [one.version_key is None for one in seen] == [False, True]


@pytest.mark.parametrize(("one", "other"), [("jose", "josé"), ("a", "A"), ("a", "a "), ("ss", "ß")])
def test_the_servers_collation_does_not_decide_which_versions_are_the_same(one: str, other: str) -> None:
    for version in (one, other.strip() if other.endswith(" ") else other):
        register("ann@example.org", installation=InstallationReport(version))

    stored = db.session.execute(select(Installation.version)).scalars().all()
    assert sorted(stored) == sorted({one, other.strip()})


def test_simultaneous_registrations_of_one_address_make_one_row_and_only_conflicts() -> None:
    application_context = db.engines["autocommit"]
    barrier, outcomes = threading.Barrier(8), []

    def attempt() -> None:
        barrier.wait()
        with application_context.connect() as connection:
            address = addresses.normalise("ann@example.org")
            try:
                registrations.register(connection, address, product_id=uuid.uuid4(), now=NOW)
                outcomes.append("registered")
            except AlreadyRegisteredException:
                outcomes.append("known")

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["known"] * 7 + ["registered"]


def test_the_count_is_exact_at_any_moment() -> None:
    assert registrations.count(db.session) == 0
    factories.register(3, created_at=NOW)
    assert registrations.count(db.session) == 3
    remember(NOW + timedelta(seconds=1))
    assert registrations.count(db.session) == 3
    factories.register(2, created_at=NOW + timedelta(hours=1))
    assert registrations.count(db.session) == 5
    remember(NOW + timedelta(seconds=1))
    assert registrations.count(db.session) == 5


def test_the_remembered_count_stops_before_registrations_that_may_still_be_in_flight() -> None:
    factories.register(3, created_at=NOW)
    factories.register(2, created_at=NOW + timedelta(seconds=10))

    remember(NOW + timedelta(seconds=5))

    assert db.session.execute(select(RegistrationCount.registrations)).scalar_one() == 3


def test_counting_reads_only_what_is_newer_than_the_remembered_count() -> None:
    factories.register(50, created_at=NOW)
    remember(NOW + timedelta(seconds=1))
    last = db.session.execute(select(RegistrationCount.up_to_id)).scalar_one()
    assert last == db.session.execute(select(func.max(Registration.id))).scalar_one()

    statements: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    assert registrations.count(db.session) == 50
    assert len(statements) == 1
    assert "registration.id > registration_count.up_to_id" in " ".join(statements[0].split())


def test_ip_addresses_are_forgotten_after_their_time_and_not_before() -> None:
    factories.register(2, created_at=NOW - timedelta(days=91), ip_address="192.0.2.1")
    factories.register(1, created_at=NOW, ip_address="2001:db8::1")

    forgotten = sum(
        registrations.forget_ip_addresses(db.session, window=window, before=NOW - timedelta(days=90))
        for window in registrations.ip_address_windows(db.session)
    )
    db.session.commit()

    assert forgotten == 2
    assert db.session.execute(select(Registration.ip_address)).scalars().all() == [None, None, "2001:db8::1"]


def test_windows_of_ids_cover_every_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrations, "_IDS_AT_ONCE", 2)
    factories.register(5, created_at=NOW - timedelta(days=91), ip_address="192.0.2.1")

    windows = registrations.ip_address_windows(db.session)
    counts = [registrations.forget_ip_addresses(db.session, window=window, before=NOW) for window in windows]

    assert sum(counts) == 5
    assert max(counts) == 2


def remember(before: datetime) -> None:
    registrations.remember_count(db.session, before=before)
    db.session.commit()
