"""The account's sending rate, shared by all senders through one row of the database.

The row holds the next free instant (the generic cell rate algorithm, ITU-T I.371): reserving n messages at a rate
moves it by n/rate, and whoever reserved waits for the instant that was free before. Since the row outlives every
process, neither a second sender nor a restart can exceed the rate.

When the mail service asks to slow down, everybody rests for a moment; when it asks again soon, the rate is lowered
by a factor, which recovers by itself.

Rates are recipients a second. Instants, such as `now`, are seconds since 1970 by the database's clock.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, case, select, true, update
from sqlalchemy.orm import Session

from .db import rows_matched
from .mailers import Account
from .models import Pace

HEADROOM = 0.97
"""The share of the granted rate that is used. What is left absorbs the jitter of threads, network and clocks."""
BATCH_SECONDS = 0.025
"""A batch is no larger than what the rate allows in this time, so that every second holds the same number."""
REST_SECONDS = 0.04
"""How long everybody rests when the mail service asks to slow down."""
AGAIN_SECONDS, AT_MOST_EVERY_SECONDS = 2.0, 0.5
"""A request to slow down within the first of these after another lowers the rate, but only once in the second."""
OF_LATE_SECONDS = 10.0
"""How long a request to slow down is told as the reason why nothing leaves."""
LOWERED, RECOVERED_A_SECOND, LOWEST = 0.96, 1.05, 0.02
"""The factor of one lowering of the rate, by how much it grows back in a second, and the least that is left of it."""
WRONG_CLOCK_SECONDS = 1.0
"""An instant that is further away than it can be by more than this is what a wrong clock has left."""
SLOWEST_RATE = 1.0
"""Recipients a second while the mail service does not tell its rate: that of an SES account in the sandbox."""
KNOWN_SECONDS, UNKNOWN_SECONDS = 60.0, 10.0
"""How often the mail service is asked about the account, once and before it has answered."""
ABSENT_SECONDS = 2 * KNOWN_SECONDS
"""Nobody has asked for so long: no sender is running."""
MOST_AHEAD_SECONDS, MOST_AHEAD_MESSAGES = 15.0, 10
"""Nobody reserves further ahead: a free instant beyond is what a wrong clock has left, and does not count."""
_AHEAD_AT_ANY_RATE = 60.0
"""The same for a rest, which does not know the rate of who reserved."""
_DAY = 86_400.0


def batch_size(rate: float, largest: int) -> int:
    """Return how many recipients one call should have at a rate of recipients a second."""
    return largest if rate * BATCH_SECONDS >= largest else max(1, int(rate * BATCH_SECONDS))


def seconds_needed(messages: int, account: Account, rate: float) -> float:
    """Return how long messages take at a rate, when the daily quota may run out and is free again a day later."""
    left_today = max(0.0, account.daily_quota - account.sent_last_day)
    if messages <= left_today:
        return messages / rate
    days = math.ceil((messages - left_today) / max(account.daily_quota, 1.0))
    on_last_day = messages - left_today - (days - 1) * account.daily_quota
    return days * _DAY + on_last_day / rate


def reserve(session: Session, messages: int, *, rate: float, now: float) -> float:
    """Reserve the sending of messages at a rate a second; return the seconds to wait before it.

    An infinite rate still heeds `back_off`.
    """
    taken = messages / rate
    session.execute(update(Pace).values(free_at=_latest(now, _most_ahead(rate)) + taken))
    return max(0.0, free_at(session) - taken - now)


def free_at(session: Session) -> float:
    """Return the next free instant."""
    return session.execute(select(Pace.free_at)).scalar_one()


def free_in(session: Session, *, rate: float, now: float) -> float:
    """Return the seconds until the next free instant, negative if that is past."""
    seconds = free_at(session) - now
    return seconds if seconds <= _most_ahead(rate) else 0.0


def back_off(session: Session, seconds: float, *, now: float) -> None:
    """Let nobody reserve an instant within the next seconds."""
    session.execute(update(Pace).values(free_at=_latest(now + seconds, _AHEAD_AT_ANY_RATE)))


def slow_down(session: Session, *, now: float) -> None:
    """Rest for a moment; lower the rate when this is not the first time in a while."""
    row = session.execute(select(Pace.factor, Pace.throttled_at).with_for_update()).one()
    since = _since(row.throttled_at, now)
    back_off(session, REST_SECONDS, now=now)
    if since < AT_MOST_EVERY_SECONDS:
        return
    factor = recovered(row.factor, since)
    lowered = max(LOWEST, factor * LOWERED) if since < AGAIN_SECONDS else factor
    session.execute(update(Pace).values(factor=lowered, throttled_at=now))


def is_throttled(session: Session, *, now: float) -> bool:
    """Return whether the mail service has asked to slow down of late."""
    return _since(session.execute(select(Pace.throttled_at)).scalar_one(), now) <= OF_LATE_SECONDS


def recovered(factor: float, seconds: float) -> float:
    """Return what a lowered factor has become after seconds without a request to slow down."""
    recovery: float = RECOVERED_A_SECOND ** min(seconds, 1000.0)
    return min(1.0, factor * recovery)


def needs_account(session: Session, *, now: float, at_once: bool = False) -> bool:
    """Return True to one of all senders when it is time to ask the mail service about the account: it is to ask.

    `at_once` is for who asks in any case: whatever is sent from now on is not in the answer.
    """
    known_for = case((Pace.granted_rate.is_(None), UNKNOWN_SECONDS), else_=KNOWN_SECONDS)
    due = true() if at_once else ~Pace.asked_at.between(now - known_for, now + WRONG_CLOCK_SECONDS)
    return rows_matched(session, update(Pace).where(due).values(asked_at=now)) > 0


def remember_account(session: Session, account: Account) -> None:
    """Write down what the mail service said of the account; infinity is stored as nothing, or as a rate of 0."""
    session.execute(
        update(Pace).values(
            granted_rate=0.0 if math.isinf(account.sending_rate) else account.sending_rate,
            daily_quota=None if math.isinf(account.daily_quota) else account.daily_quota,
            sent_last_day=account.sent_last_day,
        )
    )


def account(session: Session) -> Account:
    """Return what is known of the account; while nothing is, that of an SES account in the sandbox is assumed."""
    return _account(session.execute(select(Pace)).scalar_one())


def asked_at(session: Session) -> datetime:
    """Return when the mail service was last asked about the account."""
    return datetime.fromtimestamp(session.execute(select(Pace.asked_at)).scalar_one(), UTC)


def absent_since(session: Session, now: datetime) -> datetime | None:
    """Return when a sender was last at work, 1970 for never, if none is running now; each asks about the account.

    A time that is still to come is what a wrong clock has left: a running sender corrects it at once.
    """
    last = asked_at(session)
    return None if -WRONG_CLOCK_SECONDS <= (now - last).total_seconds() <= ABSENT_SECONDS else last


def is_account_known(session: Session) -> bool:
    """Return whether the mail service has ever told the account's rate."""
    return session.execute(select(Pace.granted_rate)).scalar_one() is not None


def current_rate(session: Session, *, limit: float, now: float) -> float:
    """Return the recipients a second to send now, all senders together; `limit` is the operator's own."""
    pace = session.execute(select(Pace)).scalar_one()
    return min(limit, _account(pace).sending_rate) * HEADROOM * recovered(pace.factor, _since(pace.throttled_at, now))


def _account(row: Pace) -> Account:
    return Account(
        sending_rate=SLOWEST_RATE if row.granted_rate is None else row.granted_rate or math.inf,
        daily_quota=math.inf if row.daily_quota is None else row.daily_quota,
        sent_last_day=row.sent_last_day or 0.0,
    )


def _since(instant: float, now: float) -> float:
    """Return the seconds since an instant; one that is still to come is what a wrong clock has left, and long past."""
    return max(0.0, now - instant) if instant <= now + WRONG_CLOCK_SECONDS else math.inf


def _most_ahead(rate: float) -> float:
    return MOST_AHEAD_SECONDS + MOST_AHEAD_MESSAGES / rate


def _latest(instant: float, most_ahead: float) -> ColumnElement[float]:
    return case((Pace.free_at.between(instant, instant + most_ahead), Pace.free_at), else_=instant)
