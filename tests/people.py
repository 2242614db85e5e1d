"""What people do about their addresses, through the core. All need an application context."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from registration import addresses, consent, services
from registration.db import db
from registration.reports import InstallationReport

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
IP_ADDRESS = "192.0.2.1"


def register(email: str, *, installation: InstallationReport | None = None, now: datetime = NOW) -> uuid.UUID:
    """Register an address as an installer does; return the product id."""
    return services.current().registrar.register(
        addresses.normalise(email),
        product_id=uuid.uuid4(),
        now=now,
        ip_address=IP_ADDRESS,
        installation=installation,
    )


def erase(email: str) -> bool:
    """Have an address erased; return whether it was there."""
    tokens = services.current().tokens
    was_there = consent.erase(db.session(), addresses.normalise(email), tokens=tokens, now=NOW)
    db.session.commit()
    return was_there
