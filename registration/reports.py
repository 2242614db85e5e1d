"""Reports of installations: version and distribution, and when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from . import versions
from .addresses import Address
from .models import Installation, Registration

_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class InstallationReport:
    """What an installation says of itself; an empty text where it says nothing usable."""

    version: str = ""
    distribution: str = ""


@dataclass(frozen=True)
class VersionCount:
    """How many registrations reported a version and distribution; `is_known` says whether ranges can tell it."""

    version: str
    distribution: str
    registrations: int
    is_known: bool


def remember(connection: Connection, address: Address, report: InstallationReport, now: datetime) -> None:
    """Note what a registered address reported, in autocommit mode; of more than a hundred, those seen last stay."""
    registration_id = select(Registration.id).where(Registration.email_key == address.key).scalar_subquery()
    identity = {
        "registration_id": registration_id,
        "version": report.version,
        "distribution": report.distribution,
    }
    first_seen = insert(Installation).values(
        **identity, version_key=versions.sort_key(report.version), first_seen_at=now, last_seen_at=now
    )
    try:
        connection.execute(first_seen)
    except IntegrityError:
        connection.execute(update(Installation).filter_by(**identity).values(last_seen_at=now))
        return
    theirs = select(Installation.id).where(Installation.registration_id == registration_id)
    newest_first = theirs.order_by(Installation.last_seen_at.desc(), Installation.id.desc())
    too_many = connection.execute(newest_first.offset(versions.MOST_INSTALLATIONS).limit(_ROWS_AT_ONCE)).scalars().all()
    if too_many:
        connection.execute(delete(Installation).where(Installation.id.in_(too_many)))


def in_use(connection: Connection, limit: int) -> list[VersionCount]:
    """Return the versions and distributions that most registrations reported, most first.

    A registration counts once for each that it reported, the newest hundred of them. Looks at all installations,
    because nobody asks often and an index for it would slow down every report.
    """
    registrations = func.count().label("registrations")
    rows = connection.execute(
        select(Installation.version, Installation.distribution, registrations, func.max(Installation.version_key))
        .group_by(Installation.version, Installation.distribution)
        .order_by(registrations.desc(), Installation.version, Installation.distribution)
        .limit(limit)
    )
    return [VersionCount(version, distribution, number, key is not None) for version, distribution, number, key in rows]
