"""Who had an address erased, and that nobody comes in as if that had not been, on SQLite and on MariaDB."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask, current_app
from sqlalchemy import event, select

from registration import addresses, registrations
from registration.db import db
from registration.models import Erasure, Registration
from registration.models import RegistrationStatus as S

from . import factories

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _in_context(application: Flask):
    with application.app_context():
        yield


def register(email: str) -> uuid.UUID:
    registrar = current_app.extensions["registrar"]
    return registrar.register(addresses.normalise(email), product_id=uuid.uuid4(), now=NOW)


def erase(email: str) -> bool:
    tokens = current_app.extensions["tokens"]
    was_there = registrations.erase(db.session(), addresses.normalise(email), tokens=tokens, now=NOW)
    db.session.commit()
    return was_there


def statuses() -> list[S]:
    try:
        those = select(Registration.status).where(Registration.status != S.ERASED).order_by(Registration.id)
        return list(db.session.execute(those).scalars())
    finally:
        db.session.rollback()


def once_before(statement: str, act: Callable[[], object]) -> None:
    """Act once in a thread of its own before a registration executes its next statement that begins like this."""
    application: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    is_done = threading.Event()

    def in_context() -> None:
        with application.app_context():
            act()

    def look(_connection: Any, _cursor: Any, text: str, *_rest: Any) -> None:
        if text.startswith(statement) and not is_done.is_set():
            is_done.set()
            thread = threading.Thread(target=in_context)
            thread.start()
            thread.join()

    event.listen(db.engines["autocommit"], "before_cursor_execute", look)


@pytest.mark.parametrize(
    ("erased", "registered"),
    [
        ("ann@example.org", "ann@example.org"),
        ("ann@example.org", "Ann+clinic@example.org"),
        ("ann+clinic@example.org", "ann@example.org"),
        ("ann+clinic@example.org", "ann+other@example.org"),
        ("a.nn@gmail.com", "ann@googlemail.com"),
    ],
)
def test_after_an_erasure_each_variation_of_the_address_waits_for_its_owner(erased: str, registered: str) -> None:
    register(erased)
    assert erase(erased)

    register(registered)

    assert statuses() == [S.UNCONFIRMED]


def test_who_shares_no_mailbox_with_an_erased_address_does_not_wait() -> None:
    register("ann@example.org")
    erase("ann@example.org")

    register("ann@example.com")
    register("bob@example.org")

    assert statuses() == [S.ACTIVE, S.ACTIVE]


def test_an_import_is_kept_from_the_erased_address_and_from_no_variation() -> None:
    register("ann+clinic@example.org")
    erase("ann+clinic@example.org")

    keys = ["ann@example.org", "ann+clinic@example.org", "ann+other@example.org"]
    tokens = current_app.extensions["tokens"]
    assert registrations.erased_among(db.session(), keys, tokens=tokens) == {"ann+clinic@example.org"}


def test_an_erasure_keeps_no_address_and_may_be_repeated() -> None:
    for _ in range(2):
        register("ann@example.org")
        assert erase("ann@example.org")
    assert not erase("ann@example.org")

    hashes = db.session.execute(select(Erasure.key_hash)).scalars().all()
    assert [len(bytes.fromhex(text)) for text in hashes] == [32, 32]


def test_a_registration_that_looked_before_an_erasure_and_came_in_after_it_waits_too() -> None:
    register("ann@example.org")
    once_before("INSERT INTO registration ", lambda: erase("ann@example.org"))

    register("ann@example.org")

    assert statuses() == [S.UNCONFIRMED]


def test_a_registration_that_was_refused_because_of_an_address_erased_since_is_made() -> None:
    register("ann@example.org")
    once_before("SELECT registration.product_id", lambda: erase("ann@example.org"))

    product_id = register("ann@example.org")

    assert statuses() == [S.UNCONFIRMED]
    found = select(Registration.product_id).where(Registration.email_key == "ann@example.org")
    assert db.session.execute(found).scalar_one() == product_id


def test_of_two_simultaneous_erasures_of_an_address_one_counts() -> None:
    factories.register(3)
    (email, *_) = db.session.execute(select(Registration.email).order_by(Registration.id)).scalars()
    db.session.rollback()
    application: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    barrier, counted = threading.Barrier(4), []

    def erase_too() -> None:
        with application.app_context():
            barrier.wait()
            counted.append(erase(email))

    threads = [threading.Thread(target=erase_too) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(counted) == [False, False, False, True]
    with db.engine.connect() as connection:
        assert registrations.count(connection) == 2
