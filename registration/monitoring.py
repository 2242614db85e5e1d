"""Monitoring: how far a broadcast has come, what keeps it, when it will have ended, and what a new one would be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, literal, or_, select
from sqlalchemy.orm import Session

from . import audiences, ledger, pacing, windows
from .audiences import EVERYBODY, Audience
from .errors import UnknownBroadcastException
from .models import Broadcast, BroadcastStatus, DeliveryStatus, Registration, RegistrationStatus

_LONGEST_FORECAST = 10 * 365 * 86_400.0
_NO_SENDER = "No sender has been at work {}, so nothing happens. If it stays so, the operator has to start one."
_UNANSWERED = (
    "The mail service gave no answer for some messages. They are tried again a minute later; while it gives none at "
    "all, the others wait."
)
_THROTTLED = (
    "The mail service takes no message and asks to slow down. The next are tried, more slowly, until it takes some."
)

_S = BroadcastStatus
_ACTIVE = RegistrationStatus.ACTIVE


@dataclass(frozen=True)
class Progress:
    """How far a broadcast has come.

    `recipients` is the audience at the start, and who of those registered then became active until the ledger was
    filled; who left the audience in between is in no ledger and counts as `skipped`.
    `remaining` counts those that are queued, being sent or not yet in the ledger; `rate` is messages a second lately;
    `expected_end` heeds the broadcasts that go first, and is None unless it is sending or goes on by itself.
    """

    broadcast_id: int
    title: str
    status: BroadcastStatus
    reason: str | None
    urgent: bool
    versions: str | None
    recipients: int
    sent: int
    failed: int
    skipped: int
    cancelled: int
    remaining: int
    rate: float
    created_at: datetime
    finished_at: datetime | None
    resume_at: datetime | None
    expected_end: datetime | None


@dataclass(frozen=True)
class Forecast:
    """What a broadcast that started now would be.

    The active registrations are `in_range`, `outside` it, or of `unknown` version; without a range all are in it.
    `suppressed` are those whose address bounced or who complained. `seconds` is what sending takes, with the daily
    quota and without other broadcasts; None while the mail service has not told its rate.
    """

    recipients: int
    in_range: int
    unknown: int
    outside: int
    opted_out: int
    suppressed: int
    unconfirmed: int
    seconds: float | None


def progress(session: Session, broadcast_id: int, now: datetime, *, rate_limit: float = math.inf) -> Progress:
    """Return how far a broadcast has come, counted in its ledger. Raises UnknownBroadcastException.

    `rate_limit` is the operator's own, for the expected end.
    """
    broadcast = session.get(Broadcast, broadcast_id)
    if broadcast is None:
        raise UnknownBroadcastException
    filled = broadcast.filled_to >= broadcast.audience_end
    counts = _counts(session, broadcast_id, broadcast.recipients, filled=filled)
    remaining = _remaining(counts)
    rate = ledger.recent_rate(session, broadcast_id, now) if broadcast.status is _S.SENDING else 0.0
    obstacle = _obstacle(session, broadcast, rate, now)
    return Progress(
        broadcast_id=broadcast_id,
        title=broadcast.title,
        status=broadcast.status,
        reason=obstacle or broadcast.reason or (None if rate else _waits_for(session, broadcast)),
        urgent=broadcast.urgent,
        versions=broadcast.versions,
        recipients=sum(counts.values()),
        remaining=remaining,
        rate=rate,
        created_at=broadcast.created_at,
        finished_at=broadcast.finished_at,
        resume_at=broadcast.resume_at,
        expected_end=None if obstacle else _expected_end(session, broadcast, remaining, now, rate_limit, rate),
        **{status.value: counts[status] for status in ledger.FINAL},
    )


def forecast(session: Session, now: datetime, *, whom: Audience = EVERYBODY, rate_limit: float = math.inf) -> Forecast:
    """Return what a broadcast that started now would be; `rate_limit` is the operator's own."""
    place = literal(audiences.IN_RANGE) if whom.versions is None else audiences.place(whom)
    groups = select(Registration.status, place.label("place"), func.count()).group_by(Registration.status, "place")
    found: Counter[Any] = Counter()
    for window in windows.split(session, audiences.COUNTED_AT_ONCE):
        for status, placed, number in session.execute(groups.where(windows.contains(window))):
            found[placed if status == _ACTIVE else status] += number
    recipients = found[audiences.IN_RANGE] + (found[audiences.UNKNOWN_VERSION] if whom.include_unknown else 0)
    known = pacing.is_account_known(session)
    return Forecast(
        recipients=recipients,
        in_range=found[audiences.IN_RANGE],
        unknown=found[audiences.UNKNOWN_VERSION],
        outside=found[audiences.OUTSIDE],
        opted_out=found[RegistrationStatus.OPTED_OUT],
        suppressed=found[RegistrationStatus.BOUNCED] + found[RegistrationStatus.COMPLAINED],
        unconfirmed=found[RegistrationStatus.UNCONFIRMED],
        seconds=_seconds_needed(session, recipients, now, rate_limit) if known else None,
    )


def _obstacle(session: Session, broadcast: Broadcast, rate: float, now: datetime) -> str | None:
    """Return what keeps a broadcast from moving, nobody knows for how long: no sender, no answers, or no room."""
    if rate or not _is_due(broadcast, now):
        return None
    if (since := pacing.absent_since(session, now)) is not None:
        return _NO_SENDER.format(f"since {since:%Y-%m-%d %H:%M} UTC" if since.year > 1970 else "yet")
    if broadcast.status is not _S.SENDING:
        return None
    if ledger.has_unanswered(session, broadcast.id, now):
        return _UNANSWERED
    is_throttled = pacing.is_throttled(session, now=now.timestamp()) and _waits_for(session, broadcast) is None
    return _THROTTLED if is_throttled else None


def _is_due(broadcast: Broadcast, now: datetime) -> bool:
    """Return whether a sender has something to do for a broadcast now."""
    if broadcast.status is _S.PAUSED:
        return broadcast.resume_at is not None and broadcast.resume_at <= now
    return broadcast.finished_at is None


def _waits_for(session: Session, broadcast: Broadcast) -> str | None:
    """Return why a broadcast that is sending does not move, if another goes first."""
    before = select(Broadcast.id, Broadcast.urgent).where(Broadcast.status == _S.SENDING, _goes_before(broadcast))
    query = before.order_by(Broadcast.urgent.desc(), Broadcast.id).limit(1)
    if broadcast.status is not _S.SENDING or (first := session.execute(query).one_or_none()) is None:
        return None
    return f"It waits: broadcast {first.id} goes first." + ("" if first.urgent else " An urgent one would not wait.")


def _counts(session: Session, broadcast_id: int, promised: int, *, filled: bool) -> dict[DeliveryStatus, int]:
    """Return how many recipients have each status; who is not in the ledger is queued, or skipped when it is filled."""
    counts = ledger.counts(session, broadcast_id)
    missing = max(0, promised - sum(counts.values()))
    counts[DeliveryStatus.SKIPPED if filled else DeliveryStatus.QUEUED] += missing
    return counts


def _remaining(counts: Mapping[DeliveryStatus, int]) -> int:
    return sum(counts[status] for status in ledger.UNSETTLED)


def _expected_end(
    session: Session, broadcast: Broadcast, remaining: int, now: datetime, rate_limit: float, rate: float
) -> datetime | None:
    """Return when those who remain will have been sent to, after the broadcasts that go first; None if nobody knows.

    Nobody does before the mail service has told its rate; `rate`, that of late, counts where it has none.
    """
    if broadcast.status is not _S.SENDING and broadcast.resume_at is None:
        return None
    if remaining and not pacing.is_account_known(session):
        return None
    messages = remaining + _ahead_of(session, broadcast) if remaining else 0
    begin = max(now, broadcast.resume_at or now)
    seconds = _seconds_needed(session, messages, now, rate_limit, of_late=rate)
    return None if seconds is None else begin + timedelta(seconds=seconds)


def _ahead_of(session: Session, broadcast: Broadcast) -> int:
    """Return how many messages of other broadcasts go first; of one that waits for a person, none do."""
    filled = (Broadcast.filled_to >= Broadcast.audience_end).label("filled")
    rows = session.execute(
        select(Broadcast.id, Broadcast.recipients, filled).where(
            or_(Broadcast.status == _S.SENDING, Broadcast.resume_at.is_not(None)), _goes_before(broadcast)
        )
    ).all()
    return sum(_remaining(_counts(session, row.id, row.recipients, filled=row.filled)) for row in rows)


def _goes_before(broadcast: Broadcast) -> ColumnElement[bool]:
    older = and_(Broadcast.urgent.is_(broadcast.urgent), Broadcast.id < broadcast.id)
    return older if broadcast.urgent else or_(Broadcast.urgent.is_(True), older)


def _seconds_needed(
    session: Session, messages: int, now: datetime, rate_limit: float, *, of_late: float = 0.0
) -> float | None:
    """Return how long so many messages take; None if nobody knows: without a limit, and none was sent of late."""
    rate = pacing.current_rate(session, limit=rate_limit, now=now.timestamp())
    if math.isinf(rate) and messages:
        if not of_late:
            return None
        rate = of_late
    account = pacing.account(session)
    if not math.isinf(account.daily_quota):
        used = account.sent_last_day + _sent_since(session, pacing.asked_at(session))
        account = replace(account, sent_last_day=used)
    return min(pacing.seconds_needed(messages, account, rate), _LONGEST_FORECAST)


def _sent_since(session: Session, since: datetime) -> int:
    """Return how many messages have been sent since a time, in broadcasts that had not ended by then."""
    recent = select(Broadcast.id).where(or_(Broadcast.finished_at.is_(None), Broadcast.finished_at > since))
    return sum(ledger.sent_since(session, broadcast_id, since) for broadcast_id in session.execute(recent).scalars())
