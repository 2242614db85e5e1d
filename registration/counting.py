"""The count of registrations: to the last one, at a cost that does not grow with them."""

from __future__ import annotations

import time

from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .db import repeatable, rows_matched
from .models import Registration, RegistrationCount, RegistrationStatus

CONFIRMED_SECONDS = 60.0
"""How old the number of confirmed registrations may be that is told."""
AGAIN_SECONDS = 5.0
"""After a failure to count again, nobody tries for so long."""
_IDS_AT_ONCE = 10_000


def count(connection: Connection) -> int:
    """Return how many addresses are registered, to the last one.

    The remembered count covers all but the newest ids, so the cost depends on how many registered since
    `remember` last ran and not on how many there are. Measured against the alternatives: COUNT(*) takes
    80 to 400 ms at a million rows; one counter row in the registration's transaction halves the rate of
    registrations; rows kept by a trigger cost nothing measurable, but RDS lets nobody create a trigger while
    automated backups are on, unless a parameter group of one's own weakens log_bin_trust_function_creators.

    In two statements, because no database reads a range whose beginning another table holds: each would look at
    all registrations. What is remembered in between changes nothing.
    """
    remembered = connection.execute(select(RegistrationCount.registrations, RegistrationCount.up_to_id)).one()
    newer = select(func.count()).where(Registration.id > remembered.up_to_id)
    return int(remembered.registrations) + connection.execute(newer).scalar_one()


def remember(session: Session, *, up_to: int) -> bool:
    """Move the remembered count up by the next registrations up to an id; return whether there may be more.

    A few thousand at once, because whoever erases a registration waits for the row of the count meanwhile. `up_to`
    must have been the highest id so long ago that no transaction of then is still open, because ids are given out
    before they are committed: a lower one that came later would never be counted.
    """
    lock(session)
    remembered = session.execute(select(RegistrationCount)).scalar_one()
    newer = select(Registration.id).where(Registration.id > remembered.up_to_id, Registration.id <= up_to)
    window = newer.order_by(Registration.id).limit(_IDS_AT_ONCE).subquery()
    last, number = session.execute(select(func.max(window.c.id), func.count()).select_from(window)).one()
    if last is not None:
        remembered.registrations += number
        remembered.up_to_id = last
    return bool(number == _IDS_AT_ONCE)


def count_by_status(session: Session) -> dict[str, int]:
    """Return how many registrations have each status; reads them all."""
    found = dict(session.execute(select(Registration.status, func.count()).group_by(Registration.status)).all())
    return {status.value: found.get(status, 0) for status in RegistrationStatus}


def lock(session: Session) -> None:
    """Let nobody else erase, import, or move the remembered count until the end of the transaction.

    The same value is written again: on SQLite that locks the database, as FOR UPDATE would not.
    """
    rows_matched(session, update(RegistrationCount).values(registrations=RegistrationCount.registrations))


def take_away(session: Session) -> None:
    """Count one registration less: an erased one, wherever its id is."""
    session.execute(update(RegistrationCount).values(registrations=RegistrationCount.registrations - 1))


class ConfirmedCount:
    """How many registrations get notices, where each has to be confirmed first; for any number of threads.

    That goes through all of them, so it is looked up only when somebody asks, and once a minute at most. While one
    thread counts, or has just failed to, the others are told the previous number if there is one, so that they do not
    queue up behind a database that hangs.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: int | None = None
        self._fresh_until = 0.0

    def get(self) -> int:
        """Return the number, little more than a minute old where the database lets itself be asked."""
        if self._known is not None and time.monotonic() < self._fresh_until:
            return self._known
        self._fresh_until = time.monotonic() + CONFIRMED_SECONDS
        active = select(func.count()).where(Registration.status == RegistrationStatus.ACTIVE)
        try:
            self._known = repeatable(self._engine, lambda connection: connection.execute(active).scalar_one())
        except SQLAlchemyError:
            self._fresh_until = time.monotonic() + AGAIN_SECONDS
            if self._known is None:
                raise
        return self._known
