"""All that is known of an address: what a subject access request asks for (GDPR article 15)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Executable, func, select
from sqlalchemy.orm import Session

from . import addresses
from .models import Broadcast, ConfirmationRequest, Delivery, Installation, Registration, SoftBounce, Variation


def of_address(session: Session, key: str) -> dict[str, Any] | None:
    """Return all that is known of an address, ready for JSON; None if that is nothing.

    `variation_of` is the mailbox whose first variation it is: all that an attempt to register may have left.
    """
    noted = Variation.mailbox == addresses.mailbox(key), Variation.email_key == key
    variation_of = session.execute(select(Variation.mailbox).where(*noted)).scalar()
    known = session.execute(select(Registration).where(Registration.email_key == key)).scalar_one_or_none()
    if known is None:
        return None if variation_of is None else {"variation_of": variation_of}
    installations = select(
        Installation.version, Installation.distribution, Installation.first_seen_at, Installation.last_seen_at
    ).where(Installation.registration_id == known.id)
    mails = (
        select(
            Broadcast.title,
            Delivery.status,
            Delivery.reason,
            Delivery.settled_at,
            Delivery.feedback,
            Delivery.feedback_at,
        )
        .join(Broadcast, Broadcast.id == Delivery.broadcast_id)
        .where(Delivery.registration_id == known.id)
        .order_by(Delivery.id)
    )
    names = ("email", "product_id", "status", "ip_address", "created_at", "confirmation_sent_at")
    due = select(ConfirmationRequest.due_at).where(ConfirmationRequest.registration_id == known.id)
    soft_bounces = select(func.count()).where(SoftBounce.registration_id == known.id)
    return {
        **{name: plain(getattr(known, name)) for name in names},
        "confirmation_due_at": plain(session.execute(due).scalar()),
        "variation_of": variation_of,
        "soft_bounces": session.execute(soft_bounces).scalar_one(),
        "installations": _plain_rows(session, installations.order_by(Installation.id)),
        "mails": _plain_rows(session, mails),
    }


def _plain_rows(session: Session, query: Executable) -> list[dict[str, Any]]:
    return [{name: plain(value) for name, value in row.items()} for row in session.execute(query).mappings()]


def plain(value: Any) -> str | None:
    """Return a value of the database as text that tells it to people and to JSON; None stays None."""
    if value is None:
        return None
    return value.isoformat() if isinstance(value, datetime) else str(value)
