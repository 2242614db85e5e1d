"""Windows of ids, to go through all registrations some thousands at a time."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from .models import Registration

Window = tuple[int, int]
"""The ids after the first number, up to the second."""


def highest_id(session: Session) -> int:
    """Return the highest id of a registration; 0 if there is none."""
    return session.execute(select(func.max(Registration.id))).scalar() or 0


def split(session: Session, size: int, up_to: int | None = None) -> Iterator[Window]:
    """Yield windows of `size` ids that cover all registrations there are now, or those up to an id.

    Each begins at an id that somebody has. Every request for a known address uses an id up, so that there may be
    millions of unused ones between two registrations.
    """
    if up_to is None:
        up_to = highest_id(session)
    after, next_id = 0, select(func.min(Registration.id))
    while (first := session.execute(next_id.where(contains((after, up_to)))).scalar()) is not None:
        begin, after = first - 1, min(first - 1 + size, up_to)
        yield begin, after


def contains(window: Window) -> ColumnElement[bool]:
    """Return the condition for the registrations in a window."""
    after, up_to = window
    return and_(Registration.id > after, Registration.id <= up_to)
