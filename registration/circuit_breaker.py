"""The circuit breaker: pauses a broadcast that bounces or annoys too much, before Amazon SES stops the account.

SES reviews an account at 5 % of hard bounces or 0.1 % of complaints and may stop it at 10 % and 0.5 %
(https://docs.aws.amazon.com/ses/latest/dg/faqs-enforcement.html).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from . import broadcasts
from .models import Broadcast, BroadcastStatus, Delivery, DeliveryStatus, Feedback

MOST_HARD_BOUNCES, MOST_COMPLAINTS = 0.04, 0.0008
"""Shares of the accepted messages. Of up to 1,250 messages a single complaint is more than its share."""
_LIMITS = (
    (Feedback.HARD_BOUNCE, MOST_HARD_BOUNCES, "bounced because the address does not exist", "5%"),
    (Feedback.COMPLAINED, MOST_COMPLAINTS, "were reported as spam", "0.1%"),
)


def check(session: Session, broadcast_id: int, *, sample: int, now: datetime) -> bool:
    """Pause a broadcast that is over a limit until a person resumes it; return whether it did.

    `sample` is how many messages must have been accepted at least. After a break only messages count that were accepted
    since, so that what is known already does not break it again.
    """
    broadcast = session.execute(
        select(Broadcast.status, Broadcast.circuit_broken_at).where(Broadcast.id == broadcast_id)
    ).one_or_none()
    if broadcast is None or broadcast.status not in {BroadcastStatus.SENDING, BroadcastStatus.PAUSED}:
        return False
    since = broadcast.circuit_broken_at
    for feedback, share, what, review in _LIMITS:
        told = _count(session, broadcast_id, since, Delivery.feedback == feedback)
        if told < max(1, share * sample):
            continue
        accepted = _count(
            session,
            broadcast_id,
            since,
            Delivery.status == DeliveryStatus.SENT,
            most=int(told / share) + 2,  # of more than that, rounded up, what was told is under the share
        )
        if accepted >= sample and told >= share * accepted:
            reason = _reason(told, accepted, what, review)
            return broadcasts.break_circuit(session, broadcast_id, reason, now, since=since)
    return False


def _count(
    session: Session, broadcast_id: int, since: datetime | None, *those: ColumnElement[bool], most: int | None = None
) -> int:
    """Return how many deliveries there are of these, without looking at more than `most`."""
    here = select(Delivery.id).where(Delivery.broadcast_id == broadcast_id, *those)
    found = (here if since is None else here.where(Delivery.settled_at > since)).limit(most).subquery()
    return session.execute(select(func.count()).select_from(found)).scalar_one()


def _reason(told: int, accepted: int, what: str, review: str) -> str:
    share = f"{told / accepted:.2%}"
    return (
        f"{told:,} of {accepted:,} messages ({share}) {what}; Amazon SES reviews the account at {review}. "
        "Find out why with the operator, then resume it, or cancel it."
    )
