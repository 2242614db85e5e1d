"""Wrong secret pins: how many there were of late, and who may still try. Processes share them through the database."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, case, delete, func, insert, select, true
from sqlalchemy.orm import Session

from .errors import InvalidSecretPinException, TooManyAttemptsException
from .models import WrongPin
from .networks import network_of

WINDOW = timedelta(minutes=15)
MOST_FROM_ONE, MOST_ALTOGETHER = 10, 100
"""Wrong pins within the window, from one network and altogether, after which there is no other try."""
PREFIXES = {"ipv4": 32, "ipv6": 48}
"""As much of IPv6 as one site may have (RFC 6177): a new network for every try costs nothing there."""


@dataclass(frozen=True)
class _Tally:
    """Wrong pins within the window."""

    from_one: int
    altogether: int


def admit(connection: Connection, given: bytes, expected: bytes, *, ip_address: str | None, now: datetime) -> None:
    """Let in who gives the right pin, at the cost of one query.

    Raises InvalidSecretPinException, or TooManyAttemptsException once there were too many wrong pins: then not even
    the right one from that network counts. When there were too many altogether, networks without a wrong one of
    their own are still heard. `connection` is in autocommit mode, so that a wrong pin stays written down.
    """
    network = network_of(ip_address, **PREFIXES)
    before = _tally(connection, network, now, true())
    if before.from_one >= (MOST_FROM_ONE if before.altogether < MOST_ALTOGETHER else 1):
        raise TooManyAttemptsException(retry_after=_wait(connection, network, now))
    if hmac.compare_digest(given, expected):
        return
    number = connection.execute(insert(WrongPin).values(network=network, created_at=now)).lastrowid
    up_to_it = _tally(connection, network, now, WrongPin.id <= number)
    if up_to_it.from_one > MOST_FROM_ONE or up_to_it.altogether > MOST_ALTOGETHER:
        raise TooManyAttemptsException(retry_after=_wait(connection, network, now))
    raise InvalidSecretPinException


def forget(session: Session, now: datetime) -> None:
    """Delete the wrong pins that no longer count, and with them the addresses they came from."""
    session.execute(delete(WrongPin).where(WrongPin.created_at <= now - WINDOW))


def _tally(connection: Connection, network: str, now: datetime, those: ColumnElement[bool]) -> _Tally:
    from_one = func.coalesce(func.sum(case((WrongPin.network == network, 1), else_=0)), 0)
    recent = select(from_one, func.count()).where(WrongPin.created_at > now - WINDOW, those)
    found = connection.execute(recent).one()
    return _Tally(int(found[0]), found[1])


def _wait(connection: Connection, network: str, now: datetime) -> timedelta:
    """Return how long until the network may try again if nobody gives another wrong pin."""
    of_one = WrongPin.network == network
    tenth = _time_of(connection, of_one, MOST_FROM_ONE, now)
    hundredth = _time_of(connection, true(), MOST_ALTOGETHER, now)
    last = _time_of(connection, of_one, 1, now)
    return max(tenth, min(hundredth, last)) + WINDOW - now


def _time_of(connection: Connection, those: ColumnElement[bool], number: int, now: datetime) -> datetime:
    """Return when the `number`-th newest wrong pin was given; the beginning of the window if there are fewer."""
    newest_first = select(WrongPin.created_at).where(WrongPin.created_at > now - WINDOW, those)
    nth = newest_first.order_by(WrongPin.created_at.desc()).offset(number - 1).limit(1)
    return connection.execute(nth).scalar() or now - WINDOW
