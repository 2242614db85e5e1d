"""The ledger: one delivery per broadcast and recipient, and every step that one can take.

When a broadcast has ended, recipients = sent + failed + skipped + cancelled. docs/engine.md draws MOVES. `now` is
always the database's clock, which all senders share: leases written by another would end too soon, or too late.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from itertools import takewhile
from typing import Any, TypeGuard

from sqlalchemy import (
    ColumnElement,
    Select,
    TextClause,
    Update,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session

from . import audiences, windows
from .db import UtcDateTime, rows_matched
from .mailers import Outcome, Recipient, Verdict
from .models import (
    LONGEST_MESSAGE_ID,
    Broadcast,
    Delivery,
    DeliveryStatus,
    Feedback,
    Registration,
    RegistrationStatus,
)

LEASE = timedelta(seconds=60)
"""How long a claim holds: longer than a wait for the pace, the slowest call and the writing of its outcome together."""
LONGEST_CALL = timedelta(seconds=30)
"""From a claim to its outcome, with the wait for its instant: a delivery `sending` for longer has a call left open."""
MOST_ATTEMPTS = 5
"""Calls with an unknown outcome before a delivery counts as failed."""
REGISTRATIONS_AT_ONCE = 2_000
"""Registrations that one transaction of `fill` goes through."""
ROWS_AT_ONCE = 2_000
"""Deliveries that one transaction changes when it is not about a batch."""

_S = DeliveryStatus
MOVES: Mapping[DeliveryStatus, frozenset[DeliveryStatus]] = {
    _S.QUEUED: frozenset({_S.SENDING, _S.FAILED, _S.CANCELLED}),
    _S.SENDING: frozenset({_S.QUEUED}),
    _S.SENT: frozenset({_S.SENDING, _S.QUEUED, _S.FAILED, _S.SKIPPED, _S.CANCELLED}),
    _S.FAILED: frozenset({_S.SENDING}),
    _S.SKIPPED: frozenset({_S.SENDING}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
}
"""For each status, those from which a delivery may come to it; nothing else is ever written."""
AFTER = {
    Verdict.ACCEPTED: _S.SENT,
    Verdict.REFUSED: _S.FAILED,
    Verdict.THROTTLED: _S.QUEUED,
    Verdict.UNREACHED: _S.QUEUED,
    Verdict.HELD: _S.QUEUED,
    Verdict.APART: _S.QUEUED,
    Verdict.UNKNOWN: _S.SENDING,
}
"""What becomes of a delivery by the mail service's verdict. An unknown outcome waits for the end of its lease, during
which an event of the mail service can still prove it accepted."""
_BY_STATUS = Delivery, "FORCE INDEX (ix_delivery_broadcast_id_status_id)", "mysql"
"""MySQL 8.4 by itself would go through all that were sent, of this broadcast or of all, to come to the next one."""
FINAL = (_S.SENT, _S.FAILED, _S.SKIPPED, _S.CANCELLED)
"""The statuses in which a delivery ends; a person may queue failed and cancelled ones again."""
UNSETTLED = (_S.QUEUED, _S.SENDING)

_RECENT, _OF_LATE = 500, timedelta(seconds=10)
"""The rate of late is that of the last deliveries, so many at most, within this time."""
_UNANSWERED = f"The mail service left {MOST_ATTEMPTS} calls unanswered; the message may have been delivered."
_INTERRUPTED = "A sender stopped before the outcome was known; the message was queued again."


@dataclass(frozen=True)
class Batch:
    """Deliveries claimed together, and the name of the claim; a retry is of one who got no answer before."""

    lease: str
    recipients: list[Recipient]
    is_retry: bool = False


@dataclass(frozen=True)
class Line:
    """A delivery as people see it; `position` is where it stands in the order of its page."""

    position: int
    recipient: str
    status: DeliveryStatus
    reason: str | None
    attempts: int
    settled_at: datetime | None
    message_id: str | None
    feedback: Feedback | None


def fill(session: Session, broadcast_id: int) -> bool:
    """Write the next chunk of the ledger, unless another sender is at it; return whether this call wrote one.

    A chunk is REGISTRATIONS_AT_ONCE registrations, not ids: those have gaps, because each refused INSERT used one up.
    Where the next one begins is part of the same transaction, so a crash neither loses nor repeats a recipient.
    """
    unfilled = select(
        Broadcast.filled_to,
        Broadcast.audience_end,
        Broadcast.versions,
        Broadcast.include_unknown,
        Broadcast.seen_since,
    ).where(Broadcast.id == broadcast_id, Broadcast.filled_to < Broadcast.audience_end)
    position = session.execute(unfilled.with_for_update(skip_locked=True)).one_or_none()
    if position is None:
        return False
    after = position.filled_to
    next_ones = select(Registration.id).where(windows.contains((after, position.audience_end)))
    last_of_chunk = next_ones.order_by(Registration.id).offset(REGISTRATIONS_AT_ONCE - 1).limit(1)
    up_to = session.execute(last_of_chunk).scalar() or position.audience_end
    chunk = update(Broadcast).where(Broadcast.id == broadcast_id, Broadcast.filled_to == after)
    if not rows_matched(session, chunk.values(filled_to=up_to)):
        return False
    columns = [Delivery.broadcast_id, Delivery.registration_id, Delivery.status, Delivery.attempts]
    whom = audiences.stored_in(position)
    lines = select(literal(broadcast_id), Registration.id, literal(_S.QUEUED.value), literal(0))
    session.execute(insert(Delivery).from_select(columns, lines.where(audiences.contains(whom, (after, up_to)))))
    return True


def claim(
    session: Session, broadcast_id: int, *, lease: str, limit: int, now: datetime, tried_at_most: int | None = None
) -> Batch | None:
    """Claim up to `limit` queued deliveries; return None when there is none to claim.

    `lease` is the name of this claim and no other, 32 ASCII characters, such as `uuid4().hex`.

    A delivery that had an unanswered call is claimed alone: if its recipient was the cause, all claimed with it would
    go unanswered again, until their attempts are used up. Whoever is no longer active becomes `skipped` here, at the
    last moment before the call. With `tried_at_most`, none is claimed that had more unanswered calls.
    """
    queued = _select(broadcast_id, _S.QUEUED, Delivery.id, Delivery.attempts).order_by(Delivery.id).limit(limit)
    if tried_at_most is not None:
        queued = queued.where(Delivery.attempts <= tried_at_most)
    rows = session.execute(queued.with_for_update(skip_locked=True)).all()
    if not rows:
        return None
    fresh = [row.id for row in takewhile(lambda row: row.attempts == 0, rows)]
    ids = fresh or [rows[0].id]
    _move(
        session, ids, _S.SENDING, lease=lease, leased_until=now + LEASE, attempts=Delivery.attempts + 1, settled_at=None
    )
    claimed = session.execute(
        _select(broadcast_id, _S.SENDING, Delivery.id, Registration.email, Registration.product_id, Registration.status)
        .join(Registration, Registration.id == Delivery.registration_id)
        .where(Delivery.id.between(ids[0], ids[-1]), Delivery.lease == lease)
        .order_by(Delivery.id)
    ).all()
    recipients: list[Recipient] = []
    inactive: dict[int, str] = {}
    for delivery_id, address, product_id, status in claimed:
        if status is RegistrationStatus.ACTIVE:
            recipients.append(Recipient(delivery_id, address, product_id))
        else:
            inactive[delivery_id] = f"The address is {status}."
    _end(session, inactive, _S.SKIPPED, now, lease)
    return Batch(lease, recipients, is_retry=not fresh)


def attempts_of_next(session: Session, broadcast_id: int) -> int | None:
    """Return how many calls for the next in the queue went unanswered; None when nobody is queued."""
    following = _select(broadcast_id, _S.QUEUED, Delivery.attempts).order_by(Delivery.id).limit(1)
    attempts: int | None = session.execute(following).scalar()
    return attempts


def settle(session: Session, batch: Batch, outcomes: Sequence[Outcome], now: datetime) -> None:
    """Write down what became of a batch, an outcome for each recipient in order; other numbers raise ValueError.

    An accepted message counts even if the lease has run out meanwhile.
    """
    by_status: dict[DeliveryStatus, dict[int, Outcome]] = {}
    for recipient, outcome in zip(batch.recipients, outcomes, strict=True):
        by_status.setdefault(AFTER[outcome.verdict], {})[recipient.delivery_id] = outcome
    for status, group in by_status.items():
        reasons = {delivery_id: outcome.reason for delivery_id, outcome in group.items()}
        if status is _S.SENT:
            accept(session, {delivery_id: outcome.message_id for delivery_id, outcome in group.items()}, now)
        elif status is _S.FAILED:
            _end(session, reasons, status, now, batch.lease)
        elif status is _S.QUEUED:
            _requeue(session, group, batch.lease)
        else:
            still = update(Delivery).where(Delivery.id.in_(group), Delivery.lease == batch.lease)
            session.execute(still.values(lease=None, reason=case(reasons, value=Delivery.id)))


def accept(session: Session, message_ids: Mapping[int, str | None], now: datetime) -> None:
    """Settle deliveries as sent, by their ids.

    An event of the mail service that carries a delivery's tag proves as much as the answer to the call. Both count
    against whatever the delivery has become meanwhile: one that stayed cancelled would be mailed again by a retry. An
    id that does not fit is left out: what cannot be written down is sent again.
    """
    if not message_ids:
        return
    parameters: dict[str, Any] = {"now": now}
    for number, (delivery_id, message_id) in enumerate(message_ids.items()):
        parameters[f"id_{number}"] = delivery_id
        parameters[f"message_id_{number}"] = message_id if is_message_id(message_id) else None
    rows_matched(session, _acceptance(len(message_ids)), parameters)


def is_message_id(value: object) -> TypeGuard[str]:
    """Return whether the ledger can hold this as the id of a message."""
    return isinstance(value, str) and value.isascii() and 0 < len(value) <= LONGEST_MESSAGE_ID


@lru_cache(maxsize=64)
def _acceptance(number: int) -> TextClause:
    """Return the statement that settles so many deliveries as sent.

    Every message passes here, and as an expression its CASE would take five times the processor time. The reason comes
    first, because MySQL sees the new status in what follows it: why somebody was skipped is no reason any more.
    """
    cases = " ".join(f"WHEN :id_{each} THEN :message_id_{each}" for each in range(number))
    ids = ", ".join(f":id_{each}" for each in range(number))
    movable = ", ".join(f"'{status}'" for status in sorted(MOVES[_S.SENT]))
    statement = (
        f"UPDATE delivery SET reason = CASE status WHEN '{_S.SKIPPED}' THEN NULL ELSE reason END,"  # noqa: S608
        f" status = '{_S.SENT}', message_id = CASE id {cases} END, settled_at = :now, lease = NULL, leased_until = NULL"
        f" WHERE id IN ({ids}) AND status IN ({movable})"
    )
    return text(statement).bindparams(bindparam("now", type_=UtcDateTime()))


def release(session: Session, batch: Batch) -> None:
    """Give back a batch for which nobody was called."""
    _requeue(session, [recipient.delivery_id for recipient in batch.recipients], batch.lease)


def expire(session: Session, broadcast_id: int, now: datetime) -> bool:
    """Queue deliveries again whose lease has run out; return whether there were any.

    Nobody is lost, at the risk of a second copy: SES has no idempotency token. A delivery that still has the name of
    its claim was left by a sender that died before it wrote an outcome; that attempt does not count, because senders
    that keep dying would else use up everybody's attempts.
    """
    over = Delivery.leased_until < now
    first = _select(broadcast_id, _S.SENDING, Delivery.id, Delivery.attempts, Delivery.lease).where(over)
    rows = session.execute(first.limit(ROWS_AT_ONCE).with_for_update(skip_locked=True)).all()
    if died := [row.id for row in rows if row.lease is not None]:
        reason = func.coalesce(Delivery.reason, _INTERRUPTED)
        _move(session, died, _S.QUEUED, over, **_unburnt(), reason=reason)
    by_status: dict[DeliveryStatus, list[int]] = {}
    for row in rows:
        if row.lease is None:
            status = _S.FAILED if row.attempts >= MOST_ATTEMPTS else _S.QUEUED
            by_status.setdefault(status, []).append(row.id)
    for status, ids in by_status.items():
        failed = {"reason": _UNANSWERED, "settled_at": now} if status is _S.FAILED else {}
        _move(session, ids, status, over, leased_until=None, **failed)
    return bool(rows)


def has_unanswered(session: Session, broadcast_id: int, now: datetime) -> bool:
    """Return whether an unsettled delivery had a call without an answer, or has one that is overdue.

    Calls that certainly came to nothing are taken off `attempts` again, so a queued delivery with any left had an
    unanswered one. Those come before the ones that had no call yet, so the head of the queue tells.
    """
    is_overdue = Delivery.leased_until < now + LEASE - LONGEST_CALL
    is_unanswered = or_(Delivery.lease.is_(None), Delivery.attempts > 1, is_overdue)
    sending = _select(broadcast_id, _S.SENDING, Delivery.id).where(is_unanswered).limit(1)
    return session.execute(sending).first() is not None or bool(attempts_of_next(session, broadcast_id))


def cancel_rest(session: Session, broadcast_id: int, now: datetime) -> bool:
    """Cancel the next chunk of queued deliveries; return whether there was any."""
    queued = _select(broadcast_id, _S.QUEUED, Delivery.id).order_by(Delivery.id).limit(ROWS_AT_ONCE)
    ids = session.execute(queued.with_for_update(skip_locked=True)).scalars().all()
    if ids:
        _move(session, ids, _S.CANCELLED, settled_at=now)
    return bool(ids)


def queue_again(session: Session, broadcast_id: int, before: datetime) -> bool:
    """Queue the next chunk of those that failed or were cancelled before a time; return whether there was any."""
    for status in (_S.FAILED, _S.CANCELLED):
        ended = _select(broadcast_id, status, Delivery.id).where(Delivery.settled_at <= before)
        ended = ended.order_by(Delivery.id).limit(ROWS_AT_ONCE)
        if ids := session.execute(ended.with_for_update(skip_locked=True)).scalars().all():
            _move(session, ids, _S.QUEUED, attempts=0, reason=None, settled_at=None)
            return True
    return False


def is_settled(session: Session, broadcast_id: int) -> bool:
    """Return whether no delivery is queued or being sent."""
    unsettled = select(Delivery.id).where(Delivery.broadcast_id == broadcast_id, Delivery.status.in_(UNSETTLED))
    return session.execute(unsettled.limit(1).with_hint(*_BY_STATUS)).first() is None


def counts(session: Session, broadcast_id: int) -> dict[DeliveryStatus, int]:
    """Return how many deliveries of a broadcast have each status."""
    by_status = select(Delivery.status, func.count()).where(Delivery.broadcast_id == broadcast_id)
    found = dict(session.execute(by_status.group_by(Delivery.status)).all())
    return {status: found.get(status, 0) for status in DeliveryStatus}


def lines(
    session: Session, broadcast_id: int, *, status: DeliveryStatus | None, after: int, limit: int
) -> Sequence[Line]:
    """Return the next deliveries of a broadcast, all or those with a status; `after` is the last position before.

    Each of the two orders has an index of its own, so every page costs the same.
    """
    position = Delivery.registration_id if status is None else Delivery.id
    columns = (
        position,
        Registration.email,
        Delivery.status,
        Delivery.reason,
        Delivery.attempts,
        Delivery.settled_at,
        Delivery.message_id,
        Delivery.feedback,
    )
    everyone = select(*columns).where(Delivery.broadcast_id == broadcast_id)
    those = everyone if status is None else _select(broadcast_id, status, *columns)
    rows = session.execute(
        those.join(Registration, Registration.id == Delivery.registration_id)
        .where(position > after)
        .order_by(position)
        .limit(limit)
    )
    return [Line(*row) for row in rows]


def recent_rate(session: Session, broadcast_id: int, now: datetime) -> float:
    """Return the messages a second of the last ten seconds.

    The newest are those with the highest ids below the head of the queue, because they are sent in that order. In a
    retry of a few here and there those were sent long ago, and the rate is 0.
    """
    queued = _select(broadcast_id, _S.QUEUED, func.min(Delivery.id))
    before = [] if (following := session.execute(queued).scalar()) is None else [Delivery.id < following]
    last = _select(broadcast_id, _S.SENT, Delivery.settled_at).where(*before).order_by(Delivery.id.desc())
    settled = session.execute(last.limit(_RECENT)).scalars()
    times = [settled_at for settled_at in settled if settled_at is not None and settled_at > now - _OF_LATE]
    seconds = (now - min(times)).total_seconds() if times else 0.0
    return len(times) / max(seconds, 1.0)


def sent_since(session: Session, broadcast_id: int, since: datetime) -> int:
    """Return how many deliveries were sent since a time, without those among older ones that were queued again.

    They are sent in the order of their ids: halving finds the first in some twenty look-ups, and from there on the
    index alone is read. An index by time would cost every message a write.
    """
    sent = partial(_select, broadcast_id, _S.SENT)
    last = session.execute(sent(func.max(Delivery.id))).scalar()
    if last is None:
        return 0

    def sent_at(delivery_id: int) -> datetime:
        # The least id, not the first row: MySQL looks that up, but would read all that were sent to come to the row.
        here = sent(func.min(Delivery.id)).where(Delivery.id >= delivery_id).scalar_subquery()
        return session.execute(select(Delivery.settled_at).where(Delivery.id == here)).scalar_one() or since

    before = bisect_right(range(1, last + 1), since, key=sent_at)
    number: int = session.execute(sent(func.count()).where(Delivery.id > before)).scalar_one()
    return number


def _select(broadcast_id: int, status: DeliveryStatus, *columns: Any) -> Select[Any]:
    """Return a query of the deliveries of a broadcast with one status, by the index that has them in their order."""
    those = select(*columns).where(Delivery.broadcast_id == broadcast_id, Delivery.status == status)
    return those.with_hint(*_BY_STATUS)


def _requeue(session: Session, delivery_ids: Collection[int], lease: str) -> None:
    """Queue deliveries of a claim again, as if they had not been claimed."""
    _move(session, delivery_ids, _S.QUEUED, Delivery.lease == lease, **_unburnt())


def _unburnt() -> dict[str, Any]:
    return {"attempts": Delivery.attempts - 1, "lease": None, "leased_until": None}


def _end(session: Session, reasons: dict[int, Any], status: DeliveryStatus, now: datetime, lease: str) -> None:
    if reasons:
        ended = {"reason": case(reasons, value=Delivery.id), "settled_at": now, "lease": None, "leased_until": None}
        _move(session, reasons, status, Delivery.lease == lease, **ended)


def _move(
    session: Session,
    delivery_ids: Collection[int],
    status: DeliveryStatus,
    *conditions: ColumnElement[bool],
    **values: Any,
) -> None:
    """Change the status of those deliveries that may come to it."""
    movable = [_among(delivery_ids), Delivery.status.in_(sorted(MOVES[status]))]
    move: Update = update(Delivery).where(*movable, *conditions)
    rows_matched(session, move.values(status=status, **values))


def _among(delivery_ids: Collection[int]) -> ColumnElement[bool]:
    """Return the condition for deliveries; without a gap, as most claims have them, a range costs less than a list."""
    first, last = min(delivery_ids, default=0), max(delivery_ids, default=0)
    if last - first + 1 == len(set(delivery_ids)):
        return Delivery.id.between(first, last)
    return Delivery.id.in_(delivery_ids)
