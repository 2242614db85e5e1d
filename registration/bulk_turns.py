"""Turns at bulk calls, for accounts that are held to one bulk call a second.

All senders take turns, by the row that also holds the pace, and what a bulk call holds is taken off the rate of the
calls with one recipient each. A probe, a second bulk call within a second, finds out now and then whether the account
is still held to one.

Rates are recipients a second. Instants, such as `now`, are seconds since 1970 by the database's clock.
"""

from __future__ import annotations

from enum import Enum, auto

from sqlalchemy import case, select, update
from sqlalchemy.orm import Session

from . import pacing
from .models import Pace

EVERY_SECONDS, LATER_SECONDS = 1.1, 3.0
"""Between two turns, and after one in which the call was refused."""
PROBE_FIRST_SECONDS, PROBE_EVERY_SECONDS = 10.0, 60.0
"""How long after bulk calls were found scarce the first probe comes, and between two probes."""
_PROBE_AFTER_SECONDS = 0.3, 0.75
"""When a probe comes after the call before: surely within the same second, and surely not at the same moment."""


class BulkTurn(Enum):
    """What a bulk call is where they are scarce: the one of its second, or one more than is known to be let through."""

    REGULAR = auto()
    PROBE = auto()


def note_scarce(session: Session, *, now: float) -> None:
    """Let all senders together make one bulk call a second from now on, unless they do already.

    The rate, which what was refused has lowered, is not to blame then.
    """
    known = update(Pace).where(Pace.bulk_probe_at == 0)
    session.execute(known.values(bulk_free_at=now, bulk_probe_at=now + PROBE_FIRST_SECONDS, factor=1.0))


def note_plenty(session: Session) -> None:
    """Let senders make as many bulk calls as the rate asks for again."""
    session.execute(update(Pace).values(bulk_probe_at=0.0))


def are_scarce(session: Session) -> bool:
    """Return whether one bulk call a second is let through."""
    return session.execute(select(Pace.bulk_probe_at)).scalar_one() > 0


def find(session: Session, *, now: float, ahead: float = 0.0) -> tuple[BulkTurn, float] | None:
    """Return the turn that is free within `ahead` seconds, and the seconds until then; None if there is none.

    Until the commit the row is locked, so that no other sender finds the same turn.
    """
    columns = select(Pace.bulk_free_at, Pace.bulk_probe_at)
    found = _find(*session.execute(columns).one(), now, ahead)
    if found is not None:
        # The same value again: unlike FOR UPDATE, that locks on SQLite too.
        session.execute(update(Pace).values(bulk_free_at=Pace.bulk_free_at))
        found = _find(*session.execute(columns).one(), now, ahead)
    return found


def take(session: Session, turn: BulkTurn, messages: int, *, rate: float, at: float) -> None:
    """Take the turn that `find` found, at its instant. The other calls, at their rate, make room for a probe."""
    taken = {"bulk_free_at": at + EVERY_SECONDS}
    if turn is BulkTurn.PROBE:
        taken["bulk_probe_at"] = at + PROBE_EVERY_SECONDS
        pacing.reserve(session, messages, rate=rate, now=at)
    session.execute(update(Pace).values(**taken))


def postpone(session: Session, *, now: float) -> None:
    """Let nobody make a bulk call for a while, because one in its turn was refused, and nobody probe before."""
    turn_at = now + LATER_SECONDS
    probe_at = case((Pace.bulk_probe_at < turn_at, turn_at), else_=Pace.bulk_probe_at)
    session.execute(update(Pace).where(Pace.bulk_probe_at > 0).values(bulk_free_at=turn_at, bulk_probe_at=probe_at))


def miss(session: Session) -> None:
    """Let nobody probe before the next turn, because the call that had the last one did not leave."""
    too_early = (Pace.bulk_probe_at > 0) & (Pace.bulk_probe_at < Pace.bulk_free_at)
    session.execute(update(Pace).where(too_early).values(bulk_probe_at=Pace.bulk_free_at))


def _find(turn_at: float, probe_at: float, now: float, ahead: float) -> tuple[BulkTurn, float] | None:
    if probe_at == 0:
        return None
    earliest, latest = (turn_at - EVERY_SECONDS + after for after in _PROBE_AFTER_SECONDS)
    is_due = not now < probe_at <= now + PROBE_EVERY_SECONDS + pacing.WRONG_CLOCK_SECONDS
    if is_due and earliest <= now <= latest:
        return BulkTurn.PROBE, 0.0
    wait = turn_at - now
    if not 0 < wait <= LATER_SECONDS + pacing.WRONG_CLOCK_SECONDS:
        return BulkTurn.REGULAR, 0.0
    return (BulkTurn.REGULAR, wait) if wait <= ahead else None
