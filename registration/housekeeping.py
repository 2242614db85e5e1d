"""The sender's chores: it keeps counting cheap, and forgets what is past its retention."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from sqlalchemy.orm import Session, sessionmaker

from . import confirmations, counting, feedback, pins, registrations, windows

MINUTE, HOUR = 60.0, 3600.0
COUNT_MARGIN_SECONDS = 120.0
"""Longer than any transaction that writes registrations takes."""
IDS_AT_ONCE = 10_000
"""Of registrations whose IP addresses one transaction forgets."""
MOST_CHUNKS = 20
"""Of old events forgotten, or of registrations counted, at once: the sender is not to be held up."""


class Timetable:
    """When chores were last done, by name."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def is_due(self, chore: str, seconds: float) -> bool:
        """Return whether a chore was last due at least this long ago, and take it as done now."""
        if time.monotonic() < self._next.get(chore, 0.0):
            return False
        self._next[chore] = time.monotonic() + seconds
        return True

    @contextmanager
    def again_after_failure(self, chore: str, seconds: float = 0.0) -> Iterator[None]:
        """Let a chore that fails be due again so much later, as if it had not been done."""
        try:
            yield
        except Exception:
            del self._next[chore]
            if seconds:
                self._next[chore] = time.monotonic() + seconds
            raise

    def was_ever_due(self, chore: str) -> bool:
        """Return whether a chore was ever due."""
        return chore in self._next


class Housekeeper:
    """Keeps the count of registrations short; forgets wrong pins, mails, events and IP addresses after their time."""

    def __init__(self, sessions: sessionmaker[Session], *, ip_retention: timedelta) -> None:
        self._sessions = sessions
        self._ip_retention = ip_retention
        self._timetable = Timetable()
        self._highest_ids: deque[tuple[float, int]] = deque()

    def work(self, now: datetime) -> None:
        """Do the chores that are due."""
        if self._timetable.is_due("count", MINUTE):
            self._count()
        if self._timetable.is_due("forget", MINUTE):
            with self._sessions.begin() as session:
                pins.forget(session, now)
                confirmations.forget(session, now)
            self._repeat(lambda session: bool(feedback.forget(session, now)))
        if self._timetable.is_due("forget IP addresses", HOUR):
            with self._timetable.again_after_failure("forget IP addresses", MINUTE):
                self._forget_ip_addresses(now)

    def _count(self) -> None:
        """Remember the count up to what was the highest id a while ago."""
        with self._sessions.begin() as session:
            highest_id = windows.highest_id(session)
        if self._highest_ids and highest_id < self._highest_ids[-1][1]:
            self._highest_ids.clear()  # the database was restored, and gives ids out again
        self._highest_ids.append((time.monotonic(), highest_id))
        long_ago = time.monotonic() - COUNT_MARGIN_SECONDS
        while len(self._highest_ids) > 1 and self._highest_ids[1][0] <= long_ago:
            self._highest_ids.popleft()
        seen_at, highest_id = self._highest_ids[0]
        if seen_at <= long_ago:
            self._repeat(lambda session: counting.remember(session, up_to=highest_id))

    def _forget_ip_addresses(self, now: datetime) -> None:
        with self._sessions.begin() as session:
            parts = list(windows.split(session, IDS_AT_ONCE))
        for window in parts:
            with self._sessions.begin() as session:
                registrations.forget_ip_addresses(session, window=window, before=now - self._ip_retention)

    def _repeat(self, step: Callable[[Session], bool]) -> None:
        """Take a step, each time in a transaction of its own, until it says that there is no more, or for this time."""
        for _ in range(MOST_CHUNKS):
            with self._sessions.begin() as session:
                if not step(session):
                    break
