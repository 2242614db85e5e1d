"""Consent: people opt out, undo it, confirm and are erased, and an operator takes an address off."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from . import addresses, confirmations, counting, erasures, feedback
from .addresses import Address
from .db import rows_matched
from .models import (
    ConfirmationMail,
    ConfirmationRequest,
    Installation,
    Registration,
    RegistrationStatus,
    SoftBounce,
    Variation,
)
from .tokens import ConfirmationLink, Tokens

Who = uuid.UUID | Address
"""A registration, by its product id or its address."""
OFF = {
    RegistrationStatus.BOUNCED: (RegistrationStatus.ACTIVE,),
    RegistrationStatus.COMPLAINED: feedback.MAY_BECOME[RegistrationStatus.COMPLAINED],
    RegistrationStatus.OPTED_OUT: (
        RegistrationStatus.ACTIVE,
        RegistrationStatus.UNCONFIRMED,
        RegistrationStatus.BOUNCED,
    ),
}
"""The statuses that take an address off, with those that each may follow. Who bounced is active again by registering,
so an opt-out or a complaint counts from there too."""
_ERASED = RegistrationStatus.ERASED


def status_of(session: Session, who: Who) -> RegistrationStatus | None:
    """Return the status of a registration, or None when there is none."""
    return session.execute(select(Registration.status).where(_is(who))).scalar()


def opt_out(session: Session, who: Who) -> None:
    """Mail nothing to a registration any more; a complaint and an erasure stay what they are.

    What confirmation mail it got before confirms nothing from now on, and one that is due is not sent.
    """
    confirmations.drop(session, _is(who))
    session.execute(update(Registration).where(_is(who)).values(confirmation_sent_at=None))
    staying = (RegistrationStatus.COMPLAINED, RegistrationStatus.ERASED)
    leave = update(Registration).where(_is(who), Registration.status.not_in(staying))
    session.execute(leave.values(status=RegistrationStatus.OPTED_OUT))


def undo_opt_out(session: Session, who: Who) -> None:
    """Mail again to a registration that opted out; a confirmation that it was asked for is not needed any more."""
    _activate(session, _is(who), Registration.status == RegistrationStatus.OPTED_OUT)


def is_confirmable(session: Session, link: ConfirmationLink) -> bool:
    """Return whether a link would confirm a registration."""
    return session.execute(select(Registration.id).where(_confirmable_by(link))).first() is not None


def confirm(session: Session, link: ConfirmationLink) -> None:
    """Mail to a registration from now on, because its owner said so; a link does it once."""
    _activate(session, _confirmable_by(link))


def erase(session: Session, who: Who, *, tokens: Tokens, now: datetime) -> bool:
    """Delete an address and what is known of it, but for keyed hashes; return whether it was there.

    The row stays, because the ledger names it, and the count goes down by one wherever its id is. A registration that
    failed may have left the note of a variation alone.
    """
    counting.lock(session)
    confirmations.drop(session, _is(who))  # before the registration is locked, in the order of who takes them
    there = select(Registration.id, Registration.email_key).where(_is(who), Registration.status != _ERASED)
    if (found := session.execute(there.with_for_update()).one_or_none()) is None:
        return isinstance(who, Address) and _delete_note(session, who.key)
    registration_id, key = found
    erasures.note(session, key, tokens=tokens, now=now)
    for table in (Installation, SoftBounce, ConfirmationRequest):
        session.execute(delete(table).where(table.registration_id == registration_id))
    session.execute(update(ConfirmationMail).where(ConfirmationMail.next_id == registration_id).values(next_id=None))
    session.execute(delete(Variation).where(Variation.mailbox == key))
    _delete_note(session, key)
    gone = {"email": "", "email_key": f"erased:{registration_id}", "ip_address": None, "status": _ERASED}
    gone |= {"confirmation_sent_at": None}
    session.execute(update(Registration).where(Registration.id == registration_id).values(**gone))
    counting.take_away(session)
    return True


def take_off(session: Session, keys: Collection[str], status: RegistrationStatus) -> int:
    """Give some addresses one of the statuses of OFF, unless they have a weightier one; return how many got it.

    A status is weightier if more is needed before the address gets mail again: registering anew after a bounce, a
    confirmation after a complaint. A confirmation mail from before confirms nothing any more, and one that is due is
    not sent.
    """
    those = Registration.email_key.in_(keys), Registration.status.in_(OFF[status])
    confirmations.drop(session, *those)
    return rows_matched(session, update(Registration).where(*those).values(status=status, confirmation_sent_at=None))


def suppress(session: Session, key: str, status: RegistrationStatus) -> bool:
    """Take one address off; return whether that changed anything.

    Unlike an old table, somebody who says so now has the last word: a confirmation that is under way to who is off
    already confirms nothing any more.
    """
    changed = take_off(session, [key], status)
    if status is RegistrationStatus.BOUNCED:
        return bool(changed)
    said_no = Registration.email_key == key, Registration.status.in_(confirmations.SAID_NO)
    dropped = confirmations.drop(session, *said_no)
    under_way = update(Registration).where(*said_no, Registration.confirmation_sent_at.is_not(None))
    return bool(rows_matched(session, under_way.values(confirmation_sent_at=None)) or dropped or changed)


def _activate(session: Session, *those: ColumnElement[bool]) -> None:
    """Mail again to registrations whose owner has just shown that mail arrives.

    What its owner does in between, such as an erasure, wins: the last statement repeats the condition.
    """
    ids = session.execute(select(Registration.id).where(*those)).scalars().all()
    session.execute(delete(SoftBounce).where(SoftBounce.registration_id.in_(ids)))
    back = update(Registration).where(Registration.id.in_(ids), *those)
    session.execute(back.values(status=RegistrationStatus.ACTIVE, confirmation_sent_at=None))


def _delete_note(session: Session, key: str) -> bool:
    """Delete the note of an address as the variation of another; return whether there was one."""
    noted = Variation.mailbox == addresses.mailbox(key), Variation.email_key == key
    return bool(rows_matched(session, delete(Variation).where(*noted)))


def _is(who: Who) -> ColumnElement[bool]:
    return Registration.product_id == who if isinstance(who, uuid.UUID) else Registration.email_key == who.key


def _confirmable_by(link: ConfirmationLink) -> ColumnElement[bool]:
    """Match a registration that waits for this link, the one of the newest mail: whatever came later has the say."""
    sent_at = Registration.confirmation_sent_at
    is_newest = (sent_at >= link.sent_at) & (sent_at < link.sent_at + timedelta(seconds=1))
    return (Registration.product_id == link.product_id) & Registration.status.in_(confirmations.CONFIRMABLE) & is_newest
