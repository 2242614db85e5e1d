"""What each thing that is said makes of each registration, on SQLite and on MariaDB."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, insert, select, update
from sqlalchemy.orm import Session

from registration import addresses, confirmations, consent, services
from registration.db import AUTOCOMMIT, db
from registration.models import ConfirmationRequest, Registration, Variation
from registration.models import RegistrationStatus as S
from registration.tokens import ConfirmationLink

from . import factories
from .people import erase, register

pytestmark = pytest.mark.usefixtures("in_context")

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def opt_out(session: Session, key: str) -> None:
    consent.opt_out(session, addresses.normalise(key))


def undo_opt_out(session: Session, key: str) -> None:
    consent.undo_opt_out(session, addresses.normalise(key))


def confirm(session: Session, key: str) -> None:
    session.execute(update(Registration).values(confirmation_sent_at=NOW))
    consent.confirm(session, ConfirmationLink(factories.product_id(key), NOW))


def suppress(status: S) -> Callable[[Session, str], bool]:
    return lambda session, key: consent.suppress(session, key, status)


BECOMES = {
    #             of an active, an unconfirmed, one that opted out, that bounced, that complained
    opt_out: (S.OPTED_OUT, S.OPTED_OUT, S.OPTED_OUT, S.OPTED_OUT, S.COMPLAINED),
    undo_opt_out: (S.ACTIVE, S.UNCONFIRMED, S.ACTIVE, S.BOUNCED, S.COMPLAINED),
    confirm: (S.ACTIVE, S.ACTIVE, S.ACTIVE, S.BOUNCED, S.ACTIVE),
    suppress(S.OPTED_OUT): (S.OPTED_OUT, S.OPTED_OUT, S.OPTED_OUT, S.OPTED_OUT, S.COMPLAINED),
    suppress(S.COMPLAINED): (S.COMPLAINED, S.COMPLAINED, S.COMPLAINED, S.COMPLAINED, S.COMPLAINED),
    suppress(S.BOUNCED): (S.BOUNCED, S.UNCONFIRMED, S.OPTED_OUT, S.BOUNCED, S.COMPLAINED),
}
BEFORE = (S.ACTIVE, S.UNCONFIRMED, S.OPTED_OUT, S.BOUNCED, S.COMPLAINED)


@pytest.mark.parametrize(
    ("step", "before", "after"), [(step, *pair) for step in BECOMES for pair in zip(BEFORE, BECOMES[step], strict=True)]
)
def test_what_is_said_of_one_registration_changes_it_as_the_table_has_it_and_no_other(
    step: Callable[[Session, str], object], before: S, after: S
) -> None:
    for status in BEFORE:
        factories.register(status=status)
    [email] = factories.register(status=before)

    step(db.session(), email)
    db.session.commit()

    statuses = db.session.execute(select(Registration.status).order_by(Registration.id)).scalars().all()
    assert statuses == [*BEFORE, after]


@pytest.mark.parametrize("seconds", [-1, 1])
def test_only_the_link_of_the_newest_confirmation_mail_confirms(seconds: int) -> None:
    [email] = factories.register(status=S.UNCONFIRMED)
    db.session.execute(update(Registration).values(confirmation_sent_at=NOW))
    link = ConfirmationLink(factories.product_id(email), NOW + timedelta(seconds=seconds))

    consent.confirm(db.session(), link)

    assert not consent.is_confirmable(db.session(), link)
    assert consent.status_of(db.session(), link.product_id) is S.UNCONFIRMED


def test_an_erasure_leaves_no_address_and_no_time_of_a_confirmation_mail_in_the_row() -> None:
    [email] = factories.register(1, ip_address="192.0.2.1")
    db.session.execute(update(Registration).values(confirmation_sent_at=NOW))

    erase(email)

    left = db.session.execute(select(Registration)).scalar_one()
    assert (left.email, left.ip_address, left.confirmation_sent_at, left.status) == ("", None, None, S.ERASED)
    assert email not in left.email_key


def test_an_erasure_waits_for_a_sender_that_takes_the_confirmation_mail(application: Flask) -> None:
    """If it locked the registration first, one of the two would have to give way."""
    [email] = factories.register(status=S.UNCONFIRMED)
    with db.engines[AUTOCOMMIT].connect() as connection:
        confirmations.request(connection, email, NOW)
    tokens, erasing = services.current().tokens, []

    def erase_it() -> None:
        with application.app_context():
            erase(email)

    def begin(*arguments: Any) -> None:
        if arguments[2].startswith("SELECT registration.product_id, registration.email"):
            erasing.append(pool.submit(erase_it))
            wait(erasing, 0.3)

    with ThreadPoolExecutor(1) as pool:
        event.listen(db.engine, "before_cursor_execute", begin)
        (taken,) = confirmations.take(db.session(), NOW, tokens=tokens, limit=10)
        event.remove(db.engine, "before_cursor_execute", begin)
        db.session.commit()
        erasing[0].result()

    assert taken.email == email
    assert db.session.execute(select(Registration.status)).scalar_one() is S.ERASED


def test_an_erasure_deletes_a_confirmation_that_is_asked_for_while_it_begins() -> None:
    if db.engine.dialect.name != "mysql":
        pytest.skip("SQLite has one writer at a time")
    [email] = factories.register(status=S.UNCONFIRMED)

    def ask(*arguments: Any) -> None:
        if arguments[2].startswith("SELECT registration.id, registration.email_key"):
            with db.engines[AUTOCOMMIT].connect() as connection:
                confirmations.request(connection, email, NOW)

    event.listen(db.engine, "before_cursor_execute", ask)
    erase(email)
    event.remove(db.engine, "before_cursor_execute", ask)

    assert db.session.execute(select(ConfirmationRequest.due_at)).scalars().all() == []


def test_erasing_a_plain_address_erases_it_from_the_note_of_a_variation_that_stays() -> None:
    for email in ("ann+1@example.org", "ann@example.org", "bob+1@example.org"):
        register(email)

    erase("ann@example.org")

    assert db.session.execute(select(Variation.mailbox)).scalars().all() == ["bob@example.org"]
    emails = db.session.execute(select(Registration.email)).scalars()
    assert set(emails) == {"", "ann+1@example.org", "bob+1@example.org"}


def test_erasing_the_first_variation_of_a_mailbox_removes_its_note_and_no_other() -> None:
    for email in ("ann+1@example.org", "ann+2@example.org", "bob+1@example.org"):
        register(email)

    erase("ann+2@example.org")
    assert len(db.session.execute(select(Variation)).scalars().all()) == 2
    erase("ann+1@example.org")
    assert db.session.execute(select(Variation.mailbox)).scalars().all() == ["bob@example.org"]


def test_erasing_what_was_never_registered_erases_the_note_that_an_attempt_left() -> None:
    """One that failed: as the first variation of a mailbox, the address was noted before."""
    register("ann+2@example.org")
    db.session.execute(insert(Variation).values(mailbox="bob@example.org", email_key="bob+1@example.org"))
    db.session.commit()

    erased = [
        erase(email) for email in ("ann@example.org", "bob@example.org", "bob+2@example.org", "bob+1@example.org")
    ]

    assert erased == [False, False, False, True]
    assert db.session.execute(select(Variation.email_key)).scalars().all() == ["ann+2@example.org"]


def test_who_is_taken_off_voids_the_confirmation_that_is_under_way_to_him_and_no_other() -> None:
    one, other = factories.register(2, status=S.OPTED_OUT)
    db.session.execute(update(Registration).values(confirmation_sent_at=NOW))

    assert consent.suppress(db.session(), one, S.OPTED_OUT)

    links = [ConfirmationLink(factories.product_id(email), NOW) for email in (one, other)]
    assert [consent.is_confirmable(db.session(), link) for link in links] == [False, True]
