"""Broadcasts and their ledger: start, fill, claim, settle, pause, finish, progress.

The ledger holds one delivery per recipient. When a broadcast has ended,
recipients = sent + failed + skipped + cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session

from .db import rows_matched
from .errors import UnknownBroadcastException
from .mailers import Outcome, Recipient, Verdict
from .messages import Message
from .models import Broadcast, BroadcastStatus, Delivery, DeliveryStatus, Registration, RegistrationStatus

LEASE = timedelta(seconds=60)
"""How long a claim holds. Longer than a wait for the pace and the slowest call together."""
MOST_ATTEMPTS = 5
"""Calls with an unknown outcome before a delivery counts as failed."""
HOLD = timedelta(seconds=60)
"""How long a broadcast that the mail service held up rests before it tries again."""
FINAL = (DeliveryStatus.SENT, DeliveryStatus.FAILED, DeliveryStatus.SKIPPED, DeliveryStatus.CANCELLED)
"""The statuses in which a delivery ends."""
_IDS_AT_ONCE = 2_000
_UNANSWERED = f"The mail service left {MOST_ATTEMPTS} calls unanswered; the message may have been delivered."
_INTERRUPTED = "A sender stopped before the outcome was known; the message was queued again."


@dataclass(frozen=True)
class Batch:
    """Deliveries claimed together, and the name of the claim."""

    lease: str
    recipients: list[Recipient]


@dataclass(frozen=True)
class Progress:
    """How far a broadcast has come; `remaining` counts those that are queued, being sent or not yet in the ledger."""

    broadcast_id: int
    status: BroadcastStatus
    reason: str | None
    recipients: int
    sent: int
    failed: int
    skipped: int
    cancelled: int
    remaining: int


def start(session: Session, message: Message, now: datetime) -> Broadcast:
    """Start a broadcast to everybody who is registered now. Without recipients it has ended at once."""
    audience_end = session.execute(select(func.max(Registration.id))).scalar() or 0
    recipients = session.execute(select(func.count()).where(_in_audience(0, audience_end))).scalar_one()
    broadcast = Broadcast(
        title=message.subject,
        contents=message.text,
        status=BroadcastStatus.SENDING if recipients else BroadcastStatus.SENT,
        recipients=recipients,
        audience_end=audience_end,
        filled_to=0 if recipients else audience_end,
        created_at=now,
        finished_at=None if recipients else now,
    )
    session.add(broadcast)
    session.flush()
    return broadcast


def underway(session: Session, now: datetime) -> Sequence[int]:
    """Return the ids of the broadcasts to work on, oldest first; those whose pause is over go on."""
    over = and_(Broadcast.status == BroadcastStatus.PAUSED, Broadcast.resume_at <= now)
    sending = or_(Broadcast.status == BroadcastStatus.SENDING, over)
    rows = session.execute(select(Broadcast.id, Broadcast.status).where(sending).order_by(Broadcast.id)).all()
    if any(row.status == BroadcastStatus.PAUSED for row in rows):
        resumed = {"status": BroadcastStatus.SENDING, "reason": None, "resume_at": None}
        session.execute(update(Broadcast).where(over).values(resumed))
    return [row.id for row in rows]


def message_of(session: Session, broadcast_id: int) -> Message:
    """Return what a broadcast says; it never changes."""
    title, contents = session.execute(
        select(Broadcast.title, Broadcast.contents).where(Broadcast.id == broadcast_id)
    ).one()
    return Message(subject=title, text=contents)


def fill(session: Session, broadcast_id: int) -> bool:
    """Write the next chunk of the ledger, unless another sender is at it; return whether there was one to write.

    A chunk is a few thousand ids. Where the next one begins is part of the same transaction, so a crash neither
    loses nor repeats a recipient.
    """
    unfilled = select(Broadcast.filled_to, Broadcast.audience_end).where(
        Broadcast.id == broadcast_id, Broadcast.filled_to < Broadcast.audience_end
    )
    position = session.execute(unfilled.with_for_update(skip_locked=True)).one_or_none()
    if position is None:
        return False
    after, up_to = position.filled_to, min(position.filled_to + _IDS_AT_ONCE, position.audience_end)
    chunk = update(Broadcast).where(Broadcast.id == broadcast_id, Broadcast.filled_to == after)
    if not rows_matched(session, chunk.values(filled_to=up_to)):
        return False
    columns = [Delivery.broadcast_id, Delivery.registration_id, Delivery.status, Delivery.attempts]
    lines = select(literal(broadcast_id), Registration.id, literal(DeliveryStatus.QUEUED.value), literal(0))
    session.execute(insert(Delivery).from_select(columns, lines.where(_in_audience(after, up_to))))
    return True


def claim(session: Session, broadcast_id: int, *, lease: str, limit: int, now: datetime) -> Batch | None:
    """Claim up to `limit` queued deliveries; return None when none is queued.

    Whoever is no longer active becomes `skipped` here, at the last moment before the call.
    """
    queued = and_(Delivery.broadcast_id == broadcast_id, Delivery.status == DeliveryStatus.QUEUED)
    first = select(Delivery.id).where(queued).order_by(Delivery.id).limit(limit)
    ids = session.execute(first.with_for_update(skip_locked=True)).scalars().all()
    if not ids:
        return None
    session.execute(
        update(Delivery)
        .where(Delivery.id.in_(ids), Delivery.status == DeliveryStatus.QUEUED)
        .values(status=DeliveryStatus.SENDING, lease=lease, leased_until=now + LEASE, attempts=Delivery.attempts + 1)
    )
    claimed = session.execute(
        select(Delivery.id, Registration.email, Registration.status)
        .join(Registration, Registration.id == Delivery.registration_id)
        .where(Delivery.id.in_(ids), Delivery.lease == lease)
        .order_by(Delivery.id)
    ).all()
    inactive = {row.id: f"The address is {row.status}." for row in claimed if row.status != RegistrationStatus.ACTIVE}
    if inactive:
        _end(session, inactive, DeliveryStatus.SKIPPED, now)
    return Batch(lease, [Recipient(row.id, row.email) for row in claimed if row.id not in inactive])


def settle(session: Session, batch: Batch, outcomes: Sequence[Outcome], now: datetime) -> None:
    """Write down what became of a batch.

    An accepted message counts even if the lease has run out meanwhile. One whose outcome is unknown stays under
    its lease, so that an event of the mail service can still prove it accepted; see `expire`.
    """
    by_verdict: dict[Verdict, dict[int, Outcome]] = {}
    for recipient, outcome in zip(batch.recipients, outcomes, strict=True):
        by_verdict.setdefault(outcome.verdict, {})[recipient.delivery_id] = outcome
    for verdict, group in by_verdict.items():
        if verdict is Verdict.ACCEPTED:
            _accept(session, {delivery_id: outcome.message_id for delivery_id, outcome in group.items()}, now)
        elif verdict is Verdict.REFUSED:
            reasons = {delivery_id: outcome.reason for delivery_id, outcome in group.items()}
            _end(session, reasons, DeliveryStatus.FAILED, now)
        elif verdict is Verdict.UNKNOWN:
            reason = next(iter(group.values())).reason
            session.execute(_held(batch.lease, group).values(reason=reason))
        else:
            _requeue(session, batch.lease, group)


def release(session: Session, batch: Batch) -> None:
    """Give back a batch that nobody was called for."""
    _requeue(session, batch.lease, [recipient.delivery_id for recipient in batch.recipients])


def expire(session: Session, broadcast_id: int, now: datetime) -> bool:
    """Queue deliveries again whose lease has run out: nobody is lost, at the risk of a second copy.

    After MOST_ATTEMPTS calls without an answer a delivery has failed. Returns whether there were any.
    """
    expired = select(Delivery.id, Delivery.attempts).where(
        Delivery.broadcast_id == broadcast_id,
        Delivery.status == DeliveryStatus.SENDING,
        Delivery.leased_until < now,
    )
    rows = session.execute(expired.limit(_IDS_AT_ONCE).with_for_update(skip_locked=True)).all()
    exhausted = {row.id: _UNANSWERED for row in rows if row.attempts >= MOST_ATTEMPTS}
    if exhausted:
        _end(session, exhausted, DeliveryStatus.FAILED, now)
    again = update(Delivery).where(
        Delivery.id.in_([row.id for row in rows if row.id not in exhausted]),
        Delivery.status == DeliveryStatus.SENDING,
        Delivery.leased_until < now,
    )
    if len(rows) > len(exhausted):
        reason = func.coalesce(Delivery.reason, _INTERRUPTED)
        session.execute(again.values(status=DeliveryStatus.QUEUED, lease=None, leased_until=None, reason=reason))
    return bool(rows)


def pause(session: Session, broadcast_id: int, *, reason: str, resume_at: datetime) -> None:
    """Let a broadcast rest until a time, and say why."""
    sending = update(Broadcast).where(Broadcast.id == broadcast_id, Broadcast.status == BroadcastStatus.SENDING)
    session.execute(sending.values(status=BroadcastStatus.PAUSED, reason=reason, resume_at=resume_at))


def finish(session: Session, broadcast_id: int, now: datetime) -> bool:
    """End a broadcast that has nothing left to do; return whether it did."""
    unsettled = Delivery.status.in_([DeliveryStatus.QUEUED, DeliveryStatus.SENDING])
    done = update(Broadcast).where(
        Broadcast.id == broadcast_id,
        Broadcast.status == BroadcastStatus.SENDING,
        Broadcast.filled_to >= Broadcast.audience_end,
        ~exists().where(Delivery.broadcast_id == broadcast_id, unsettled),
    )
    return bool(rows_matched(session, done.values(status=BroadcastStatus.SENT, finished_at=now)))


def status_of(session: Session, broadcast_id: int) -> BroadcastStatus:
    """Return the status of a broadcast, without counting. Raises UnknownBroadcastException."""
    status = session.execute(select(Broadcast.status).where(Broadcast.id == broadcast_id)).scalar()
    if status is None:
        raise UnknownBroadcastException
    return status


def progress(session: Session, broadcast_id: int) -> Progress:
    """Return how far a broadcast has come, counted in its ledger. Raises UnknownBroadcastException."""
    broadcast = session.execute(
        select(
            Broadcast.status,
            Broadcast.reason,
            Broadcast.recipients,
            (Broadcast.filled_to >= Broadcast.audience_end).label("filled"),
        ).where(Broadcast.id == broadcast_id)
    ).one_or_none()
    if broadcast is None:
        raise UnknownBroadcastException
    by_status = select(Delivery.status, func.count()).where(Delivery.broadcast_id == broadcast_id)
    counts = dict(session.execute(by_status.group_by(Delivery.status)).all())
    ended = {status: counts.get(status, 0) for status in FINAL}
    recipients = sum(counts.values()) if broadcast.filled else broadcast.recipients
    return Progress(
        broadcast_id=broadcast_id,
        status=broadcast.status,
        reason=broadcast.reason,
        recipients=recipients,
        remaining=recipients - sum(ended.values()),
        **{status.value: number for status, number in ended.items()},
    )


def _in_audience(after: int, up_to: int) -> ColumnElement[bool]:
    return and_(Registration.id > after, Registration.id <= up_to, Registration.status == RegistrationStatus.ACTIVE)


def _accept(session: Session, message_ids: dict[int, str | None], now: datetime) -> None:
    unsettled = update(Delivery).where(
        Delivery.id.in_(message_ids), Delivery.status.in_([DeliveryStatus.SENDING, DeliveryStatus.QUEUED])
    )
    message_id = case(message_ids, value=Delivery.id)
    session.execute(
        unsettled.values(
            status=DeliveryStatus.SENT, message_id=message_id, settled_at=now, lease=None, leased_until=None
        )
    )


def _end(session: Session, reasons: dict[int, Any], status: DeliveryStatus, now: datetime) -> None:
    sending = update(Delivery).where(Delivery.id.in_(reasons), Delivery.status == DeliveryStatus.SENDING)
    reason = case(reasons, value=Delivery.id)
    session.execute(sending.values(status=status, reason=reason, settled_at=now, lease=None, leased_until=None))


def _requeue(session: Session, lease: str, delivery_ids: Any) -> None:
    unburnt = {"status": DeliveryStatus.QUEUED, "attempts": Delivery.attempts - 1}
    session.execute(_held(lease, delivery_ids).values(**unburnt, lease=None, leased_until=None))


def _held(lease: str, delivery_ids: Any) -> Any:
    return update(Delivery).where(
        Delivery.id.in_(delivery_ids), Delivery.lease == lease, Delivery.status == DeliveryStatus.SENDING
    )
