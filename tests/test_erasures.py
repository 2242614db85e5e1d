"""Who had an address erased, and that nobody comes in as if that had not been, on SQLite and on MariaDB."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask, current_app
from sqlalchemy import Connection, event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from registration import addresses, consent, counting, erasures, services
from registration.db import AUTOCOMMIT, ROWS, db
from registration.models import Erasure, Registration
from registration.models import RegistrationStatus as S
from registration.registrations import Registrar
from registration.tokens import Tokens

from . import factories
from .people import erase, register

pytestmark = pytest.mark.usefixtures("in_context")

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def statuses() -> list[S]:
    try:
        those = select(Registration.status).where(Registration.status != S.ERASED).order_by(Registration.id)
        return list(db.session.execute(those).scalars())
    finally:
        db.session.rollback()


def once_before(statement: str, act: Callable[[Any], object]) -> list[str]:
    """Act once in a thread of its own before a registration executes its next statement that begins like this.

    `act` gets the connection's own cursor. Returns what there was to act on, for whoever wants to be sure.
    """
    application: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    acted: list[str] = []

    def in_context(cursor: Any) -> None:
        with application.app_context():
            act(cursor)

    def look(_connection: Any, cursor: Any, found: str, *_rest: Any) -> None:
        if found.startswith(statement) and not acted:
            acted.append(found)
            thread = threading.Thread(target=in_context, args=(cursor,))
            thread.start()
            thread.join()

    for name in (AUTOCOMMIT, ROWS):
        event.listen(db.engines[name], "before_cursor_execute", look)
    return acted


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
    tokens = services.current().tokens
    assert erasures.in_force(db.session(), keys, tokens=tokens) == {"ann+clinic@example.org"}


def test_an_erasure_keeps_no_address_and_may_be_repeated() -> None:
    for _ in range(2):
        register("ann@example.org")
        assert erase("ann@example.org")
    assert not erase("ann@example.org")

    hashes = db.session.execute(select(Erasure.key_hash)).scalars().all()
    assert [len(bytes.fromhex(text)) for text in hashes] == [32, 32]


def test_a_registration_that_comes_in_at_the_moment_of_an_erasure_waits_too() -> None:
    register("ann@example.org")
    acted = once_before("INSERT INTO registration ", lambda _: erase("ann@example.org"))

    register("ann@example.org")

    assert acted
    assert statuses() == [S.UNCONFIRMED]


def test_a_registration_waits_for_an_erasure_that_is_being_committed() -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has one writer at a time")
    register("ann@example.org")
    application: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    tokens = services.current().tokens

    def register_meanwhile() -> None:
        with application.app_context():
            register("ann@example.org")

    thread = threading.Thread(target=register_meanwhile)
    with Session(db.engine) as session:
        consent.erase(session, addresses.normalise("ann@example.org"), tokens=tokens, now=NOW)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        session.commit()
    thread.join()

    assert statuses() == [S.UNCONFIRMED]


@pytest.mark.parametrize("statement", ["SELECT erasure", "UPDATE registration"])
def test_a_registration_whose_connection_is_lost_on_the_way_is_made_as_a_whole(statement: str) -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has no connection to lose")
    register("ann@example.org")
    erase("ann@example.org")

    def kill(cursor: Any) -> None:
        db.session.execute(text(f"KILL {cursor.connection.thread_id()}"))

    acted = once_before(statement, kill)

    register("ann@example.org")

    assert acted
    assert statuses() == [S.UNCONFIRMED]


def test_of_registrations_inserted_together_one_that_is_refused_makes_no_other_active() -> None:
    for email in ("ann@example.org", "known@example.org"):
        register(email)
    erase("ann@example.org")

    registrar = services.current().registrar
    errors = registrar._insert([factories.row("ann@example.org"), factories.row("known@example.org")])

    assert [error is None for error in errors] == [True, False]
    assert statuses() == [S.ACTIVE, S.UNCONFIRMED]


def test_a_registration_that_was_refused_because_of_an_address_erased_since_is_made() -> None:
    register("ann@example.org")
    acted = once_before("SELECT registration.product_id", lambda _: erase("ann@example.org"))

    product_id = register("ann@example.org")

    assert acted
    assert statuses() == [S.UNCONFIRMED]
    found = select(Registration.product_id).where(Registration.email_key == "ann@example.org")
    assert db.session.execute(found).scalar_one() == product_id


def test_a_registration_whose_row_was_erased_before_its_lost_reply_was_noticed_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    insert_on, lost = Registrar._insert_on, []

    def lose_the_reply(registrar: Registrar, connection: Connection, rows: Any) -> None:
        insert_on(registrar, connection, rows)
        if not lost:
            lost.append(rows[0]["product_id"])
            erase("ann@example.org")
            raise OperationalError("", {}, Exception("gone"), connection_invalidated=True)

    monkeypatch.setattr(Registrar, "_insert_on", lose_the_reply)

    product_id = register("ann@example.org")

    assert product_id != lost[0]
    assert statuses() == [S.UNCONFIRMED]


@pytest.mark.parametrize("registered", ["ann@example.org", "ann+clinic@example.org"])
def test_what_the_version_before_noted_counts_too(registered: str) -> None:
    tokens = services.current().tokens
    (fingerprint,) = tokens.fingerprints("ann@example.org")
    db.session.add(Erasure(key_hash=fingerprint, erased_at=NOW))
    db.session.commit()

    register(registered)

    assert statuses() == [S.UNCONFIRMED]


@pytest.mark.parametrize(("of_eraser", "of_registrar"), [("one,two", "one"), ("one", "one,two"), ("one", "two,one")])
def test_an_erasure_is_known_to_whoever_shares_a_key(of_eraser: str, of_registrar: str) -> None:
    eraser, registrar = (Tokens(keys.split(","), "https://reg.example.org") for keys in (of_eraser, of_registrar))
    register("ann@example.org")
    consent.erase(db.session(), addresses.normalise("ann@example.org"), tokens=eraser, now=NOW)
    db.session.commit()

    key = "ann@example.org"
    noted = set(db.session.execute(select(Erasure.key_hash)).scalars())
    assert noted & erasures.mailbox_hashes([key], tokens=registrar).keys()
    assert erasures.in_force(db.session(), [key], tokens=registrar) == {key}


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
        assert counting.count(connection) == 2


def test_an_erasure_takes_the_count_before_anything_else_as_an_import_does() -> None:
    [email] = factories.register()
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    event.listen(db.engine, "before_cursor_execute", note)
    erase(email)
    event.remove(db.engine, "before_cursor_execute", note)

    assert statements[0].startswith("UPDATE registration_count")
