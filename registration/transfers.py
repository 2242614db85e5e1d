"""Moving registrations in and out: lines of a table to rows, and rows to lines of a table."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import and_, bindparam, case, insert, select, update
from sqlalchemy.orm import Session

from . import addresses, consent, counting, dossiers, erasures, versions, windows
from .addresses import Address
from .domains import Domains
from .errors import InvalidEmailException
from .models import (
    Installation,
    Registration,
    RegistrationStatus,
    Variation,
)
from .tokens import Tokens
from .windows import Window

COLUMNS = ("email", "product_id", "version", "distribution", "created_at", "status", "last_seen_at")
"""What a line may have; of these only `email` it must have. An IP address is neither taken nor given."""
LINES_AT_ONCE = 1_000
IDS_AT_ONCE = 5_000
STATUSES = {status.value: status for status in RegistrationStatus if status is not RegistrationStatus.ERASED}

_WRONG_CLOCK = timedelta(minutes=5)
"""By how much the clock of the machine that wrote a table may be ahead of this one's."""

Value = TypeVar("Value")


class RefusedLineError(Exception):
    """A line cannot be taken; the message is the reason, without the address."""


@dataclass(frozen=True)
class Line:
    """A registration with at most one installation, as a table has it; `number` is where in the table.

    `last_seen_at` is when the installation last reported itself, if `is_dated`; else the line does not say.
    """

    number: int
    address: Address
    product_id: uuid.UUID | None
    version: str
    distribution: str
    created_at: datetime
    status: RegistrationStatus
    last_seen_at: datetime
    is_dated: bool


@dataclass
class Tally:
    """What became of lines: their number by outcome, and the reason of each that was refused."""

    outcomes: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[int, str]] = field(default_factory=list)

    def refuse(self, number: int, reason: str) -> None:
        """Note that a line is not taken."""
        self.outcomes["refused"] += 1
        self.refused.append((number, reason))


def takes_off(cells: Mapping[str, str]) -> bool:
    """Return whether a line takes its address off the list."""
    return STATUSES.get(cells.get("status", "").strip().lower()) in consent.OFF


def parse(number: int, cells: Mapping[str, str], *, now: datetime, domains: Domains) -> Line:
    """Read a line. Raises RefusedLineError; a time without a zone is UTC, and a line without a time is of now.

    Without a time of its own an installation was last seen when the address was registered. Of a line that takes its
    address off the list, that counts, and what else in it cannot be read is left out.
    """
    texts = {name: cells.get(name, "").strip() for name in COLUMNS}
    if (name := texts["status"].lower() or RegistrationStatus.ACTIVE.value) not in STATUSES:
        raise RefusedLineError(f"The status must be one of: {', '.join(STATUSES)}.")
    is_off = takes_off(texts)
    try:
        address = addresses.normalise(texts["email"], is_new=not is_off)
        if not is_off:
            domains.check(address, look_up=False)
    except InvalidEmailException as error:
        raise RefusedLineError(str(error)) from error

    def read(cell: Callable[[str, str], Value], name: str) -> Value | None:
        try:
            return cell(name, texts[name]) if texts[name] else None
        except RefusedLineError:
            if is_off:
                return None
            raise

    version, distribution = (read(_label, name) or "" for name in ("version", "distribution"))
    product_id = read(_uuid, "product_id")
    created_at, last_seen_at = (read(partial(_time, now=now), name) for name in ("created_at", "last_seen_at"))
    created_at = created_at or now
    return Line(
        number=number,
        address=address,
        product_id=product_id,
        version=version,
        distribution=distribution,
        created_at=created_at,
        status=STATUSES[name],
        last_seen_at=last_seen_at or created_at,
        is_dated=last_seen_at is not None,
    )


def take_in(session: Session, lines: Sequence[Line], *, tokens: Tokens) -> Tally:
    """Store a chunk of lines; taking them in again changes nothing. The whole chunk is to be one transaction.

    A known address keeps its product id. It is never made active; the table can only take it off the list. Who was
    erased stays away. Two lines with one address are one registration. Raises IntegrityError when somebody else
    registers one of the addresses meanwhile; then the chunk is to be tried again.
    """
    # Two imports wait for each other. And on SQLite who has read may not write any more once somebody else has.
    counting.lock(session)
    tally = Tally()
    erased = erasures.in_force(session, [line.address.key for line in lines], tokens=tokens)
    known = _known(session, lines)
    given = [line.product_id for line in lines if line.product_id is not None]
    taken = set(session.execute(select(Registration.product_id).where(Registration.product_id.in_(given))).scalars())
    rows: dict[str, dict[str, Any]] = {}
    kept: list[Line] = []
    for line in lines:
        key = line.address.key
        if key in erased:
            tally.refuse(line.number, "The person had this address erased.")
        elif key in known or key in rows:
            tally.outcomes["known"] += 1
            kept.append(line)
        elif line.product_id in taken and line.status not in consent.OFF:
            tally.refuse(line.number, "The product_id belongs to another address.")
        else:
            rows[key] = _row(line, taken)
            taken.add(rows[key]["product_id"])
            tally.outcomes["new"] += 1
            kept.append(line)
    if rows:
        session.execute(insert(Registration), list(rows.values()))
    _note_variations(session, [line.address for line in kept])
    _take_off(session, kept)
    _remember_installations(session, kept)
    return tally


def lines_of(session: Session, window: Window) -> list[tuple[str, ...]]:
    """Return a window of ids as lines with the columns of COLUMNS, one for each installation or registration.

    A registration whose confirmation mail bounced is exported as `unconfirmed`: the file has no column that would tell
    it from one that bounced later.
    """
    never_confirmed = Registration.status == RegistrationStatus.BOUNCED, Registration.confirmation_sent_at.is_not(None)
    lines = select(
        Registration.email,
        Registration.product_id,
        Installation.version,
        Installation.distribution,
        Registration.created_at,
        case((and_(*never_confirmed), RegistrationStatus.UNCONFIRMED), else_=Registration.status),
        Installation.last_seen_at,
    ).outerjoin(Installation, Installation.registration_id == Registration.id)
    those = lines.where(windows.contains(window), Registration.status != RegistrationStatus.ERASED)
    rows = session.execute(those.order_by(Registration.id, Installation.id))
    return [tuple(dossiers.plain(value) or "" for value in row) for row in rows]


def _label(name: str, text: str) -> str:
    if not versions.is_label(text):
        raise RefusedLineError(f"The {name} is longer than {versions.LONGEST_LABEL} characters or not printable.")
    return text


def _uuid(name: str, text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise RefusedLineError(f"The {name} must be a UUID.") from error


def _time(name: str, text: str, *, now: datetime) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise RefusedLineError(f"The {name} must be a time such as 2026-11-23T12:00:00Z.") from error
    if not datetime(2000, 1, 1, tzinfo=UTC) <= time <= now + _WRONG_CLOCK:
        raise RefusedLineError(f"The {name} is before the year 2000 or in the future.")
    return min(time, now)


def _row(line: Line, taken: Collection[uuid.UUID]) -> dict[str, Any]:
    is_free = line.product_id is not None and line.product_id not in taken
    return {
        "product_id": line.product_id if is_free else uuid.uuid4(),
        "email": line.address.stored,
        "email_key": line.address.key,
        "status": line.status,
        "ip_address": None,
        "created_at": line.created_at,
    }


def _known(session: Session, lines: Sequence[Line]) -> dict[str, int]:
    """Return the ids of the registrations that some lines are about, by the keys of their addresses."""
    keys = {line.address.key for line in lines}
    found = session.execute(select(Registration.email_key, Registration.id).where(Registration.email_key.in_(keys)))
    return {row.email_key: row.id for row in found}


def _note_variations(session: Session, those: Sequence[Address]) -> None:
    """Note which variation of a mailbox is here, so that another address of it is asked for confirmation."""
    mailboxes = [(addresses.mailbox(address.key), address.key) for address in reversed(those)]
    first = {mailbox: key for mailbox, key in mailboxes if mailbox != key}
    noted = session.execute(select(Variation.mailbox).where(Variation.mailbox.in_(first))).scalars() if first else ()
    rows = [{"mailbox": mailbox, "email_key": first[mailbox]} for mailbox in first.keys() - set(noted)]
    if rows:
        session.execute(insert(Variation), rows)


def _take_off(session: Session, lines: Sequence[Line]) -> None:
    """Give registrations the status that a line has for them, if it takes them off."""
    by_status: dict[RegistrationStatus, list[str]] = {}
    for line in lines:
        if line.status in consent.OFF:
            by_status.setdefault(line.status, []).append(line.address.key)
    for status, keys in by_status.items():
        consent.take_off(session, keys, status)


def _remember_installations(session: Session, lines: Sequence[Line]) -> None:
    """Store the installations of lines; one that is known was last seen at the latest time that a line told."""
    reporting = [line for line in lines if line.version or line.distribution or line.is_dated]
    if not reporting:
        return
    ids = _known(session, reporting)
    reporting.sort(key=lambda line: line.last_seen_at)
    new = {(ids[line.address.key], line.version, line.distribution): line for line in reporting}
    there = select(
        Installation.id,
        Installation.registration_id,
        Installation.version,
        Installation.distribution,
        Installation.last_seen_at,
    ).where(Installation.registration_id.in_(set(ids.values())))
    later = []
    for known in session.execute(there):
        line = new.pop((known.registration_id, known.version, known.distribution), None)
        if line is not None and line.is_dated and line.last_seen_at > known.last_seen_at:
            later.append({"known_id": known.id, "seen_at": line.last_seen_at})
    if later:
        is_later = Installation.last_seen_at < bindparam("seen_at")
        seen = update(Installation).where(Installation.id == bindparam("known_id"), is_later)
        session.connection().execute(seen.values(last_seen_at=bindparam("seen_at")), later)
    rows = [
        {
            "registration_id": registration_id,
            "version": version,
            "distribution": distribution,
            "version_key": versions.sort_key(version),
            "first_seen_at": min(line.created_at, line.last_seen_at),
            "last_seen_at": line.last_seen_at,
        }
        for (registration_id, version, distribution), line in sorted(new.items(), key=lambda one: one[0][0])
    ]
    if rows:
        session.execute(insert(Installation), rows)
