"""The account's sending rate, shared by all senders through one row of the database.

The row holds the next free instant (the generic cell rate algorithm, ITU-T I.371): reserving n messages at a rate
moves it by n/rate, and whoever reserved waits for the instant that was free before. Since the row outlives every
process, neither a second sender nor a restart can exceed the rate.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, case, select, update
from sqlalchemy.orm import Session

from .models import Pace

BATCH_SECONDS = 0.25
"""A batch is no larger than what the rate allows in this time, so that the sending is even."""


def batch_size(rate: float, largest: int) -> int:
    """Return how many recipients one call should have at a rate of recipients a second."""
    return largest if rate * BATCH_SECONDS >= largest else max(1, int(rate * BATCH_SECONDS))


def reserve(session: Session, messages: int, *, rate: float, now: float) -> float:
    """Reserve the sending of messages at a rate a second; return the seconds to wait before it.

    An infinite rate still heeds `back_off`.
    """
    taken = messages / rate
    session.execute(update(Pace).values(free_at=_latest(now) + taken))
    return max(0.0, session.execute(select(Pace.free_at)).scalar_one() - taken - now)


def back_off(session: Session, seconds: float, *, now: float) -> None:
    """Let nobody reserve an instant within the next seconds."""
    session.execute(update(Pace).values(free_at=_latest(now + seconds)))


def _latest(instant: float) -> ColumnElement[float]:
    return case((Pace.free_at > instant, Pace.free_at), else_=instant)
