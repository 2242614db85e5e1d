"""Rows for tests, made directly in the database."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from sqlalchemy import func, insert, select, update

from registration import addresses, broadcasts, messages, versions
from registration.db import db
from registration.mailers.letters import Letterhead
from registration.models import (
    BroadcastStatus,
    Delivery,
    DeliveryStatus,
    Installation,
    Pace,
    Registration,
    RegistrationStatus,
)
from registration.monitoring import Progress

_numbers = count(1)


def register(
    number: int = 1,
    *,
    status: RegistrationStatus = RegistrationStatus.ACTIVE,
    created_at: datetime | None = None,
    ip_address: str | None = None,
) -> list[str]:
    """Store registrations and return their addresses. Needs an application context."""
    emails = [f"clinic-{next(_numbers)}@example.org" for _ in range(number)]
    register_as(*emails, status=status, created_at=created_at, ip_address=ip_address)
    return emails


def register_as(
    *emails: str,
    status: RegistrationStatus = RegistrationStatus.ACTIVE,
    created_at: datetime | None = None,
    ip_address: str | None = None,
) -> None:
    """Store registrations of these addresses. Needs an application context."""
    rows = [row(email, status=status, created_at=created_at, ip_address=ip_address) for email in emails]
    db.session.execute(insert(Registration), rows)
    db.session.commit()


def product_id(email: str) -> uuid.UUID:
    """Return the product id of a registered address. Needs an application context."""
    return db.session.execute(select(Registration.product_id).where(Registration.email == email)).scalar_one()


def row(
    email: str,
    *,
    status: RegistrationStatus = RegistrationStatus.ACTIVE,
    created_at: datetime | None = None,
    ip_address: str | None = None,
) -> dict[str, Any]:
    """Return a registration that is not stored."""
    return {
        "product_id": uuid.uuid4(),
        "email": email,
        "email_key": addresses.normalise(email).key,
        "status": status,
        "ip_address": ip_address,
        "created_at": created_at or datetime.now(UTC),
    }


def install(email: str, version: str, distribution: str = "", *, last_seen_at: datetime | None = None) -> None:
    """Store an installation of a registered address. Needs an application context."""
    registration_id = select(Registration.id).where(Registration.email == email).scalar_subquery()
    seen_at = last_seen_at or datetime.now(UTC)
    row = {"version": version, "version_key": versions.sort_key(version), "distribution": distribution}
    times = {"first_seen_at": seen_at, "last_seen_at": seen_at}
    db.session.execute(insert(Installation).values(registration_id=registration_id, **row, **times))
    db.session.commit()


def start_broadcast(title: str = "Update now", contents: str = "There is a hole.\n") -> int:
    """Start a broadcast to all registrations and return its id. Needs an application context."""
    message = messages.compose(title, contents)
    broadcast_id = broadcasts.start(db.session(), message, datetime.now(UTC), idempotency_key=uuid.uuid4().hex)
    db.session.commit()
    return broadcast_id


def put_sender_to_work(at: datetime | None = None) -> None:
    """Store when a sender was last at work; now if nothing is said. Needs an application context."""
    db.session.execute(update(Pace).values(asked_at=(at or datetime.now(UTC)).timestamp()))
    db.session.commit()


def letterhead(**changes: Any) -> Letterhead:
    """Return who writes letters in tests."""
    usual = Letterhead(
        sender="notices@example.org",
        public_url="https://registration.example.org",
        opt_out_url=lambda product_id: f"https://registration.example.org/opt-out/{product_id.hex}",
        postal_address="OEMR Foundation, 1 Main Street, Springfield, USA",
    )
    return replace(usual, **changes)


NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def progress(**changes: Any) -> Progress:
    """Return how far a broadcast has come that began at noon and is about half done."""
    usual = Progress(
        broadcast_id=7,
        title="Update now",
        status=BroadcastStatus.SENDING,
        reason=None,
        urgent=False,
        versions=None,
        recipients=9001,
        sent=4700,
        failed=2,
        skipped=0,
        cancelled=0,
        remaining=4299,
        rate=13.96,
        created_at=NOON,
        finished_at=None,
        resume_at=None,
        expected_end=NOON + timedelta(seconds=312),
    )
    return replace(usual, **changes)


def sent() -> int:
    """Return how many deliveries have been sent. Needs an application context."""
    db.session.rollback()
    those = select(func.count()).where(Delivery.status == DeliveryStatus.SENT)
    return db.session.execute(those).scalar_one()
