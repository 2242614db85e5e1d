"""The audience of a broadcast: everybody who is active, or those with an installation in a range of versions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, false, func, or_, select
from sqlalchemy.orm import Session

from . import windows
from .errors import InvalidVersionRangeException
from .models import Installation, Registration, RegistrationStatus
from .versions import MOST_INSTALLATIONS, Range, parse_range
from .windows import Window

COUNTED_AT_ONCE = 100_000
"""Registrations that one statement counts by their versions: of all in one, it could last longer than one may."""
UNKNOWN_CHOICES = ("include", "exclude")
"""What may be asked for with those whose version is unknown."""

OUTSIDE, UNKNOWN_VERSION, IN_RANGE = range(3)
"""Where a registration's installations are, seen from a range of versions; of several the highest counts."""


@dataclass(frozen=True)
class Audience:
    """Whom a broadcast is for: everybody, or those with an installation in a range of versions.

    An installation last seen before `seen_since` counts as if it had never been reported. Whose version is unknown,
    because there is no installation or one whose version cannot be read, is in it if `include_unknown`.
    """

    versions: Range | None = None
    include_unknown: bool = True
    seen_since: datetime | None = None


EVERYBODY = Audience()


def asked_for(versions: str | None, unknown: str, oldest: timedelta, now: datetime) -> Audience:
    """Return whom a broadcast is for that is asked for in words.

    `unknown` is `include` or `exclude`; an installation not seen for longer than `oldest` counts as never reported,
    zero for no such limit. Raises InvalidVersionRangeException.
    """
    if unknown not in UNKNOWN_CHOICES:
        raise InvalidVersionRangeException("`unknown` must be include or exclude.")
    if versions is None and unknown == "exclude":
        raise InvalidVersionRangeException("To exclude unknown versions takes a range of versions, such as <7.0.3.1.")
    if versions is None:
        return EVERYBODY
    return Audience(parse_range(versions), unknown == "include", now - oldest if oldest else None)


def stored_in(row: Any) -> Audience:
    """Return the audience that a row of `Broadcast` was started with."""
    versions = None if row.versions is None else parse_range(row.versions)
    return Audience(versions, row.include_unknown, row.seen_since)


def contains(whom: Audience, window: Window) -> ColumnElement[bool]:
    """Return the condition for the registrations in a window of ids that a broadcast is for."""
    active = and_(windows.contains(window), Registration.status == RegistrationStatus.ACTIVE)
    lowest = UNKNOWN_VERSION if whom.include_unknown else IN_RANGE
    return active if whom.versions is None else and_(active, place(whom) >= lowest)


def place(whom: Audience) -> ColumnElement[int]:
    """Return where a registration is: IN_RANGE with one of its installations, else UNKNOWN_VERSION, or OUTSIDE.

    One installation whose version cannot be read is enough to be unknown: it may be the one that a notice concerns. So
    may one that was forgotten because there were too many.
    One look-up in the index of a registration's installations answers all three. An EXISTS for each would be two,
    and the database may turn an EXISTS into a join with the whole table.
    """
    theirs = [Installation.registration_id == Registration.id]
    if whom.seen_since is not None:
        theirs.append(Installation.last_seen_at >= whom.seen_since)
    intervals = whom.versions.intervals if whom.versions else ()
    inside = or_(false(), *(Installation.version_key.between(first, last) for first, last in intervals))
    unreadable = Installation.version_key.is_(None)
    highest = func.max(case((inside, IN_RANGE), (unreadable, UNKNOWN_VERSION), else_=OUTSIDE))
    were_forgotten = and_(highest == OUTSIDE, func.count() >= MOST_INSTALLATIONS)
    best = select(case((were_forgotten, UNKNOWN_VERSION), else_=highest)).where(*theirs)
    return func.coalesce(best.correlate(Registration).scalar_subquery(), UNKNOWN_VERSION)


def count(session: Session, whom: Audience, up_to: int) -> int:
    """Return how many registrations up to an id a broadcast is for."""
    number = select(func.count()).select_from(Registration)
    parts = windows.split(session, COUNTED_AT_ONCE, up_to)
    return sum(session.execute(number.where(contains(whom, part))).scalar_one() for part in parts)
