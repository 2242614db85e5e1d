"""Rows for tests, made directly in the database."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from itertools import count

from sqlalchemy import insert

from registration import addresses, broadcasts, messages
from registration.db import db
from registration.models import Registration, RegistrationStatus

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
    rows = [
        {
            "product_id": uuid.uuid4(),
            "email": email,
            "email_key": addresses.normalise(email).key,
            "status": status,
            "ip_address": ip_address,
            "created_at": created_at or datetime.now(UTC),
        }
        for email in emails
    ]
    db.session.execute(insert(Registration), rows)
    db.session.commit()
    return emails


def start_broadcast(title: str = "Update now", contents: str = "There is a hole.\n") -> int:
    """Start a broadcast to all registrations and return its id. Needs an application context."""
    broadcast_id = broadcasts.start(db.session, messages.compose(title, contents), datetime.now(UTC)).id
    db.session.commit()
    return broadcast_id
