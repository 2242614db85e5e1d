"""Registering and forgetting, on SQLite and on MariaDB."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from flask import Flask, current_app
from sqlalchemy import event, func, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from config import WEB_THREADS
from registration import addresses, registrations, services, windows
from registration.db import db
from registration.errors import AlreadyRegisteredException
from registration.models import (
    Registration,
    RegistrationStatus,
    Variation,
)
from registration.registrations import InstallationReport, Registrar

from . import factories
from .people import IP_ADDRESS, NOW, register

pytestmark = pytest.mark.usefixtures("in_context")


def registrar() -> Registrar:
    return services.current().registrar


def test_a_registration_is_stored_as_given_and_unique_by_its_key() -> None:
    product_id = register("Ann@Example.org")

    stored = db.session.execute(select(Registration)).scalar_one()
    assert (stored.email, stored.email_key) == ("Ann@Example.org", "ann@example.org")
    assert (stored.product_id, stored.ip_address, stored.created_at) == (product_id, IP_ADDRESS, NOW)
    assert stored.status is RegistrationStatus.ACTIVE
    with pytest.raises(AlreadyRegisteredException):
        register("ann@example.org")


def test_a_known_address_that_reports_an_installation_keeps_its_product_id() -> None:
    product_id = register("ann@example.org")

    assert register("ANN@example.org", installation=InstallationReport("7.0.3 (1)")) == product_id
    assert db.session.execute(select(func.count()).select_from(Registration)).scalar_one() == 1


def test_simultaneous_registrations_of_one_address_make_one_row_and_only_conflicts() -> None:
    outcomes = simultaneously([lambda: register("ann@example.org") for _ in range(8)])

    assert sum(isinstance(outcome, uuid.UUID) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AlreadyRegisteredException) for outcome in outcomes) == 7


def test_a_known_address_among_simultaneous_registrations_costs_the_others_nothing() -> None:
    register("ann@example.org")
    emails = ["ann@example.org", *(f"clinic-{number}@example.org" for number in range(7))]

    first, *others = simultaneously([partial(register, email) for email in emails])

    assert isinstance(first, AlreadyRegisteredException)
    stored = dict(db.session.execute(select(Registration.email, Registration.product_id)).all())
    assert others == [stored[email] for email in emails[1:]]


def test_a_repeated_request_for_the_first_variation_of_a_mailbox_completes_what_a_lost_one_began() -> None:
    db.session.execute(insert(Variation).values(mailbox="ann@example.org", email_key="ann+clinic@example.org"))
    db.session.commit()
    emails = ["ann+other@example.org", "ann+clinic@example.org"]

    for email in emails:
        register(email)

    stored = dict(db.session.execute(select(Registration.email, Registration.status)).all())
    assert [stored[email] for email in emails] == [RegistrationStatus.UNCONFIRMED, RegistrationStatus.ACTIVE]


def test_of_simultaneous_variations_of_a_mailbox_one_is_active() -> None:
    emails = [f"ann+{number}@example.org" for number in range(8)]

    simultaneously([partial(register, email) for email in emails])

    statuses = db.session.execute(select(Registration.status)).scalars().all()
    assert sorted(statuses) == [RegistrationStatus.ACTIVE] + [RegistrationStatus.UNCONFIRMED] * 7


def test_a_variation_waits_for_its_plain_address_that_is_being_inserted() -> None:
    if db.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    statuses = select(Registration.status).where(Registration.email == "ann+1@example.org")
    arguments = {"product_id": uuid.uuid4(), "now": NOW}
    variation = threading.Thread(
        target=registrar().register, args=(addresses.normalise("ann+1@example.org"),), kwargs=arguments
    )
    with Session(db.engine) as in_flight:
        in_flight.execute(insert(Registration), [factories.row("ann@example.org")])
        variation.start()
        variation.join(0.3)
        assert db.session.execute(statuses).first() is None
        in_flight.commit()
    variation.join()
    db.session.rollback()

    assert db.session.execute(statuses).scalar_one() is RegistrationStatus.UNCONFIRMED


def test_of_rows_inserted_together_one_that_is_refused_costs_the_others_nothing() -> None:
    register("known@example.org")

    errors = registrar()._insert([factories.row(f"{name}@example.org") for name in ("ann", "known", "bob")])

    assert [type(error) for error in errors] == [type(None), IntegrityError, type(None)]
    emails = db.session.execute(select(Registration.email)).scalars().all()
    assert sorted(emails) == ["ann@example.org", "bob@example.org", "known@example.org"]


def test_rows_are_not_tried_one_after_the_other_for_as_long_as_each_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(_engine: object, _work: object) -> None:
        tried.append(1)
        raise OperationalError("INSERT", {}, Exception("Lock wait timeout exceeded"))

    monkeypatch.setattr(registrations, "repeatable", refuse)
    monkeypatch.setattr(registrations, "ALONE_SECONDS", 0.0)

    errors = registrar()._insert([factories.row(f"{name}@example.org") for name in ("ann", "bob")])

    assert [type(error) for error in errors] == [OperationalError] * 2
    assert len(tried) == 1


def test_a_connection_that_is_lost_for_good_fails_all_rows_inserted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def lose(_engine: object, _work: object) -> None:
        tried.append(1)
        raise OperationalError("INSERT", {}, Exception("gone"), connection_invalidated=True)

    monkeypatch.setattr(registrations, "repeatable", lose)

    errors = registrar()._insert([factories.row(f"{name}@example.org") for name in ("ann", "bob")])

    assert [type(error) for error in errors] == [OperationalError] * 2
    assert len(tried) == 1


@pytest.mark.parametrize("local_part", ["o'hara%s", "100%", "what?", "a`b", "{x}", "%%25"])
def test_signs_that_mean_something_in_sql_are_letters_of_an_address(local_part: str) -> None:
    variation, plain = f"{local_part}+clinic@example.org", f"{local_part}@example.org"

    for email in (variation, plain):
        register(email)

    stored = dict(db.session.execute(select(Registration.email, Registration.status)).all())
    assert stored == {variation: RegistrationStatus.ACTIVE, plain: RegistrationStatus.UNCONFIRMED}


def test_as_many_share_a_commit_at_most_as_a_worker_has_threads() -> None:
    assert registrar()._rows._most == WEB_THREADS


def test_a_plain_address_costs_an_insert_and_a_look_at_known_mailboxes_and_leaves_no_note() -> None:
    statements: list[str] = []
    for engine in db.engines.values():
        event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

    register("ann@example.org")

    assert [statement.split()[0] for statement in statements] == ["INSERT", "SELECT"]
    assert db.session.execute(select(Variation.mailbox)).scalars().all() == []


def simultaneously(calls: list[Callable[[], object]]) -> list[object]:
    """Call each in a thread of its own, at the same time; return results and exceptions."""
    barrier = threading.Barrier(len(calls))
    application: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    outcomes: list[object] = [None] * len(calls)

    def attempt(number: int) -> None:
        barrier.wait()
        with application.app_context():
            try:
                outcomes[number] = calls[number]()
            except AlreadyRegisteredException as error:
                outcomes[number] = error

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_ip_addresses_are_forgotten_after_their_time_and_not_before() -> None:
    factories.register(2, created_at=NOW - timedelta(days=91), ip_address="192.0.2.1")
    factories.register(1, created_at=NOW, ip_address="2001:db8::1")

    for window in list(windows.split(db.session(), 2)):
        registrations.forget_ip_addresses(db.session(), window=window, before=NOW - timedelta(days=90))
    db.session.commit()

    assert db.session.execute(select(Registration.ip_address)).scalars().all() == [None, None, "2001:db8::1"]
