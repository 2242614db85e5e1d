"""The database's clock, which all machines share, as a sender keeps it between two looks at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from .db import database_time

QUESTIONS = 8
STEP = timedelta(seconds=0.25)
"""By how much this machine's clock and the time that has passed may come apart until one of them was interrupted."""


class Clock:
    """Tells the database's time, for any number of threads; `now` is this machine's clock.

    Once set it goes on by the time that has passed: this machine's clock may be put right at any moment, and leases
    written by it would then be over for everybody else, or those of others for this machine.
    """

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._set_to = now(), time.monotonic(), timedelta(0)

    def set(self, session: Session) -> None:
        """Look at the database's clock; on SQLite it is this machine's.

        The quickest of a few answers, taken to have been given halfway, as NTP does it (RFC 5905 section 8): on a busy
        machine a single one is off by so much that senders get into each other's way.
        """
        is_shared = session.get_bind().dialect.name != "sqlite"
        offset = min(self._ask(session) for _ in range(QUESTIONS))[1] if is_shared else timedelta(0)
        self._set_to = self._now(), time.monotonic(), offset

    def time(self) -> datetime:
        """Return the time by the database's clock."""
        set_to, set_at, offset = self._set_to
        return set_to + offset + timedelta(seconds=time.monotonic() - set_at)

    def has_stepped(self) -> bool:
        """Return whether this machine's clock was moved, or stood still with the machine, since it was set."""
        return abs(self._now() + self._set_to[2] - self.time()) > STEP

    def _ask(self, session: Session) -> tuple[float, timedelta]:
        """Return how long the database took to tell the time, in seconds, and how far ahead that is."""
        asked_at, begun = datetime.now(UTC), time.monotonic()
        there = database_time(session)
        seconds = time.monotonic() - begun
        return seconds, there - asked_at - timedelta(seconds=seconds / 2)
