"""All that is known of an address, on SQLite and on MariaDB."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, literal, select, update

from registration import confirmations, dossiers
from registration.db import AUTOCOMMIT, db
from registration.models import Delivery, Feedback, Registration, RegistrationStatus, SoftBounce, Variation

from . import factories
from .ledgers import ACCEPTED, NOW, claim, filled, settle

pytestmark = pytest.mark.usefixtures("in_context")

DUE = datetime(2026, 11, 25, tzinfo=UTC)


def test_of_an_address_that_is_not_registered_nothing_is_known() -> None:
    factories.register()

    assert dossiers.of_address(db.session(), "ann@example.org") is None


def test_a_dossier_tells_of_installations_mails_and_what_came_back() -> None:
    settle(claim(filled(2)), ACCEPTED, ACCEPTED)
    db.session.execute(update(Delivery).values(feedback=Feedback.COMPLAINED, feedback_at=NOW))
    email = db.session.execute(select(Registration.email).limit(1)).scalar_one()
    for version in ("7.0.2", "7.0.3"):
        factories.install(email, version, "docker", last_seen_at=NOW)

    known = dossiers.of_address(db.session(), email)

    assert known is not None
    assert json.loads(json.dumps(known)) == known
    assert (known["email"], known["status"], known["product_id"]) == (email, "active", str(factories.product_id(email)))
    seen_at = {"first_seen_at": NOW.isoformat(), "last_seen_at": NOW.isoformat()}
    assert known["installations"] == [
        {"version": version, "distribution": "docker", **seen_at} for version in ("7.0.2", "7.0.3")
    ]
    assert known["mails"] == [
        {
            "title": "Update now",
            "status": "sent",
            "reason": None,
            "settled_at": NOW.isoformat(),
            "feedback": "complained",
            "feedback_at": NOW.isoformat(),
        }
    ]


def test_a_dossier_tells_of_whose_mailbox_an_address_was_noted_as_the_first_variation() -> None:
    factories.register_as("ann@example.org", "ann+a@example.org", "ann+b@example.org")
    db.session.execute(insert(Variation).values(mailbox="ann@example.org", email_key="ann+a@example.org"))

    db.session.execute(insert(Variation).values(mailbox="bob@example.org", email_key="bob+a@example.org"))

    known = [dossiers.of_address(db.session(), f"ann{tag}@example.org") for tag in ("", "+a", "+b")]

    assert [each and each["variation_of"] for each in known] == [None, "ann@example.org", None]
    assert dossiers.of_address(db.session(), "bob+a@example.org") == {"variation_of": "bob@example.org"}
    assert dossiers.of_address(db.session(), "bob@example.org") is None


def test_a_dossier_tells_of_soft_bounces_and_of_a_confirmation_mail_that_is_due() -> None:
    [email, other] = factories.register(2, status=RegistrationStatus.UNCONFIRMED)
    each = select(Registration.id, literal(1)).where(Registration.email == email)
    db.session.execute(insert(SoftBounce).from_select(["registration_id", "broadcast_id"], each))
    db.session.commit()
    with db.engines[AUTOCOMMIT].connect() as connection:
        confirmations.request(connection, email, DUE)

    known, nothing = (dossiers.of_address(db.session(), each) for each in (email, other))

    assert known is not None
    assert (known["soft_bounces"], known["confirmation_due_at"]) == (1, DUE.isoformat())
    assert nothing is not None
    assert (nothing["soft_bounces"], nothing["confirmation_due_at"]) == (0, None)
