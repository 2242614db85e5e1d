"""Registrations: what comes in becomes a row, at once and once. What is said about it later is in `consent`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Connection,
    Dialect,
    Engine,
    String,
    bindparam,
    case,
    delete,
    insert,
    select,
    union_all,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from . import addresses, confirmations, erasures, reports, windows
from .addresses import Address
from .db import repeatable, rows_matched
from .errors import AlreadyRegisteredException
from .group_commit import GroupCommit
from .models import (
    Erasure,
    Registration,
    RegistrationStatus,
    SoftBounce,
    Variation,
)
from .reports import InstallationReport
from .tokens import Tokens
from .windows import Window

Row = dict[str, Any]
ALONE_SECONDS = 1.0
"""For how long the rows of a refused group are tried one by one: less than a single one may wait for a lock."""
_INSERT = insert(Registration)


class Registrar:
    """Registers addresses, for any number of threads, of which `most` are at work at the same time.

    New rows are inserted in transactions of `rows_engine`. On `engine`, in autocommit mode, each statement stands for
    itself, and a repeated request completes what a lost one began. `tokens` tell who was erased.
    """

    def __init__(
        self, engine: Engine, rows_engine: Engine, *, tokens: Tokens, most: int, confirm: bool = False
    ) -> None:
        self._engine = engine
        self._rows_engine = rows_engine
        self._tokens = tokens
        self._first_status = RegistrationStatus.UNCONFIRMED if confirm else RegistrationStatus.ACTIVE
        self._rows = GroupCommit(self._insert, most=most)

    def register(
        self,
        address: Address,
        *,
        product_id: uuid.UUID,
        now: datetime,
        ip_address: str | None = None,
        installation: InstallationReport | None = None,
    ) -> uuid.UUID:
        """Register an address under a new product id; return that, or the one it already has.

        An installation that reports itself is remembered, and gets the product id of a known address as well;
        without one, an active address raises AlreadyRegisteredException. Who bounced is active again; who left, was
        erased or never confirmed is asked by mail, and so is a new address of a mailbox that is known.
        """
        new: Row = {
            "product_id": product_id,
            "email": address.stored,
            "email_key": address.key,
            "status": self._first_status_of(address),
            "ip_address": ip_address,
            "created_at": now,
        }
        known_id, status = self._insert_or_find(new)
        if known_id != new["product_id"] and status is RegistrationStatus.ACTIVE and installation is None:
            raise AlreadyRegisteredException
        if status is not RegistrationStatus.ACTIVE:
            repeatable(self._engine, lambda connection: _welcome_back(connection, address, now))
        if installation is not None:
            repeatable(self._engine, lambda connection: reports.remember(connection, address, installation, now))
        return known_id

    def _first_status_of(self, address: Address) -> RegistrationStatus:
        """Return the status with which an address is inserted; only a variation costs more than a look at it."""
        mailbox = addresses.mailbox(address.key)
        known = mailbox != address.key and repeatable(
            self._engine, lambda connection: _note_variation(connection, mailbox, variation=address)
        )
        return RegistrationStatus.UNCONFIRMED if known else self._first_status

    def _insert(self, rows: Sequence[Row]) -> list[DBAPIError | None]:
        """Insert rows together; when the database refuses that, each is tried alone.

        A connection that is lost again fails them all. Rows that are not tried within ALONE_SECONDS, because one before
        them waits for a lock, get the error of the group: requests that came later wait for this thread.
        """
        try:
            repeatable(self._rows_engine, lambda connection: self._insert_on(connection, rows))
        except DBAPIError as error:
            if len(rows) == 1 or error.connection_invalidated:
                return [error] * len(rows)
            give_up = time.monotonic() + ALONE_SECONDS
            return [self._insert([row])[0] if time.monotonic() < give_up else error for row in rows]
        return [None] * len(rows)

    def _insert_on(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Insert rows; one whose mailbox was erased, or is known by a variation, becomes `unconfirmed`.

        Whether it is such a one is looked up after the INSERT, which waits for an erasure of the same address to end.
        """
        with connection.begin():
            connection.execute(_INSERT, rows)
            uncertain = self._waiting_for_owner(connection, {row["email_key"] for row in rows})
            waiting = [row for row in rows if row["email_key"] in uncertain]
            for row in waiting:
                row["status"] = RegistrationStatus.UNCONFIRMED
            if waiting:
                those = Registration.product_id.in_([row["product_id"] for row in waiting])
                connection.execute(update(Registration).where(those).values(status=RegistrationStatus.UNCONFIRMED))

    def _waiting_for_owner(self, connection: Connection, address_keys: Collection[str]) -> set[str]:
        """Return those whose mailbox was erased, or is known by a variation: anybody may have typed them."""
        by_hash = erasures.mailbox_hashes(address_keys, tokens=self._tokens)
        question = _which_are_noted(type(connection.dialect), len(by_hash), len(address_keys))  # type: ignore[arg-type]
        noted = connection.exec_driver_sql(question, (*by_hash, *address_keys))
        return {key for name in noted.scalars() for key in by_hash.get(name, [name])}  # no hash looks like an address

    def _insert_or_find(self, new: Row) -> tuple[uuid.UUID, RegistrationStatus]:
        """Return product id and status of a new row, or of the one that its address has; erased meanwhile, it is new.

        Found is the new row itself if a lost connection made its group be inserted twice.
        """
        for is_last in (False, False, True):
            try:
                self._rows.commit(new)
            except IntegrityError:
                found = repeatable(self._engine, lambda connection: _find(connection, new["email_key"]))
                if found is not None:
                    return found
                if is_last:
                    raise
                new["product_id"] = uuid.uuid4()  # what was erased may be this row, of an attempt whose reply was lost
            else:
                break
        return new["product_id"], new["status"]


@lru_cache
def _which_are_noted(dialect: type[Dialect], hashes: int, mailboxes: int) -> str:
    """Return the SQL that asks which of so many hashes and mailboxes are noted, with places for them in this order.

    One statement, made once for each number: to put a list of values into it each time costs a registration as much as
    the answer.
    """
    hash_places = [bindparam(None, "", String) for _ in range(hashes)]
    mailbox_places = [bindparam(None, "", String) for _ in range(mailboxes)]
    erased = select(Erasure.key_hash).where(Erasure.key_hash.in_(hash_places))
    varied = select(Variation.mailbox).where(Variation.mailbox.in_(mailbox_places))
    return str(union_all(erased, varied).compile(dialect=dialect()))  # for no driver in particular: places lack names


def _find(connection: Connection, address_key: str) -> tuple[uuid.UUID, RegistrationStatus] | None:
    known = select(Registration.product_id, Registration.status).where(Registration.email_key == address_key)
    found = connection.execute(known).one_or_none()
    return None if found is None else (found.product_id, found.status)


def _note_variation(connection: Connection, mailbox: str, *, variation: Address) -> bool:
    """Note a variation of a mailbox; return whether that was known by its plain address or by another variation.

    Whoever types a hundred variations of one address would else fill that mailbox with each broadcast. The note says
    which variation came first, so that a request that is repeated meets its own note and not that of another. If the
    registration fails afterwards, it stays, and costs the owner of the plain address a click.
    """
    try:
        connection.execute(insert(Variation).values(mailbox=mailbox, email_key=variation.key))
    except IntegrityError:
        first = select(Variation.email_key).where(Variation.mailbox == mailbox)
        if connection.execute(first).scalar() != variation.key:
            return True
    plain = select(Registration.id).where(Registration.email_key == mailbox)
    # Waits for one that is being inserted, and has looked for our note perhaps before it was there.
    return connection.execute(plain.with_for_update(read=True)).first() is not None


def _welcome_back(connection: Connection, address: Address, now: datetime) -> None:
    """Let an address that bounced be what it was before, and ask the owner of one that left or never confirmed."""
    here = Registration.email_key == address.key, Registration.status == RegistrationStatus.BOUNCED
    if (registration_id := connection.execute(select(Registration.id).where(*here)).scalar()) is not None:
        connection.execute(delete(SoftBounce).where(SoftBounce.registration_id == registration_id))
        # Only a confirmation mail that bounced leaves its time: see `feedback`.
        was_confirmed = Registration.confirmation_sent_at.is_(None)
        before = case((was_confirmed, RegistrationStatus.ACTIVE), else_=RegistrationStatus.UNCONFIRMED)
        connection.execute(update(Registration).where(*here).values(status=before))
    confirmations.request(connection, address.key, now)


def forget_ip_addresses(session: Session, *, window: Window, before: datetime) -> None:
    """Forget the IP addresses of registrations created before a time, in one window of ids."""
    forget = update(Registration).where(
        windows.contains(window), Registration.created_at < before, Registration.ip_address.is_not(None)
    )
    rows_matched(session, forget.values(ip_address=None))
