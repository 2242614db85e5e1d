"""What the sender does beside sending, at times: the count of registrations, and what is to be forgotten."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from sqlalchemy.orm import Session, sessionmaker

from . import confirmations, feedback, pins, registrations

COUNT_SECONDS, FORGET_SECONDS = 60.0, 3600.0
MOST_CHUNKS = 20
"""Of old events forgotten, or of registrations counted, at once: the sender is not to be held up."""
COUNT_MARGIN = timedelta(minutes=2)


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

    def was_ever_due(self, chore: str) -> bool:
        """Return whether a chore was ever due."""
        return chore in self._next


def keep_house(
    sessions: sessionmaker[Session], timetable: Timetable, now: datetime, *, ip_retention: timedelta
) -> None:
    """Keep the count of registrations short; forget wrong pins, mails, events and IP addresses after their time."""
    if timetable.is_due("count", COUNT_SECONDS):
        for _ in range(MOST_CHUNKS):
            with sessions.begin() as session:
                if not registrations.remember_count(session, before=now - COUNT_MARGIN):
                    break
        with sessions.begin() as session:
            pins.forget(session, now)
            confirmations.forget(session, now)
    if timetable.is_due("forget events", COUNT_SECONDS):
        for _ in range(MOST_CHUNKS):
            with sessions.begin() as session:
                if not feedback.forget(session, now):
                    break
    if timetable.is_due("forget IP addresses", FORGET_SECONDS):
        with sessions.begin() as session:
            windows = registrations.ip_address_windows(session)
        for window in windows:
            with sessions.begin() as session:
                registrations.forget_ip_addresses(session, window=window, before=now - ip_retention)
