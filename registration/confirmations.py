"""Confirmation mails: anybody can type anybody's address, so its owner is asked, once a day at most.

Whoever registers leaves a request here, and the sender takes it. A mailbox gets at most one mail in 24 hours, counting
those that may have left; one more may wait for the next day.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, insert, literal, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from . import addresses
from .db import UtcDateTime, rows_matched
from .messages import Message
from .models import ConfirmationMail, ConfirmationRequest, Registration, RegistrationStatus
from .tokens import Tokens

INTERVAL = timedelta(days=1)
"""Between two mails to one mailbox."""
LATER = timedelta(minutes=1)
"""When a mail is tried again that the mail service would not take yet."""
SAID_NO = (RegistrationStatus.OPTED_OUT, RegistrationStatus.COMPLAINED)
CONFIRMABLE = (RegistrationStatus.UNCONFIRMED, *SAID_NO)
_TEXT = """\
Somebody, probably you, registered this e-mail address for security and update notices of OpenEMR.

To get them, open this page within seven days and press the button:

{url}

If it was not you, do nothing: no notice will come to this address.
"""


class Confirmation(NamedTuple):
    """A mail that is to be sent."""

    registration_id: int
    product_id: uuid.UUID
    email: str
    sent_before: datetime | None
    """When the one before was sent, whose link works until this one has left."""


def request(connection: Connection, address_key: str, now: datetime) -> None:
    """Ask for the mail to an address, in autocommit mode, unless it had one within a day or waits for one."""
    due = select(Registration.id, literal(now, UtcDateTime())).where(
        Registration.email_key == address_key, _may_be_asked(now)
    )
    try:
        connection.execute(
            insert(ConfirmationRequest).from_select(
                [ConfirmationRequest.registration_id, ConfirmationRequest.due_at], due
            )
        )
    except IntegrityError:
        return


def are_due(session: Session, now: datetime) -> bool:
    """Return whether a mail is due."""
    due = select(ConfirmationRequest.due_at).where(ConfirmationRequest.due_at <= now)
    return session.execute(due.limit(1)).first() is not None


def take(session: Session, now: datetime, *, tokens: Tokens, limit: int) -> list[Confirmation]:
    """Take the mails that are due, oldest first, and count them as sent: the caller commits before it sends.

    Those that another sender takes at the same time are left to it. A mail whose mailbox had one within a day is put
    off, or dropped if another already waits for the next.
    """
    due = (
        select(ConfirmationRequest.registration_id)
        .where(ConfirmationRequest.due_at <= now)
        .order_by(ConfirmationRequest.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = []
    for registration_id in session.execute(due).scalars().all():
        of_one = ConfirmationRequest.registration_id == registration_id
        if not rows_matched(session, delete(ConfirmationRequest).where(of_one)):
            continue  # it was dropped since
        this = Registration.id == registration_id
        columns = select(Registration.product_id, Registration.email, Registration.confirmation_sent_at)
        asked = session.execute(columns.where(this, _may_be_asked(now)).with_for_update()).one_or_none()
        if asked is None:
            continue
        mailbox = _mailbox(asked.email, tokens)
        if not _count_mail(session, mailbox, now):
            _put_off(session, registration_id, mailbox)
            continue
        session.execute(update(Registration).where(this).values(confirmation_sent_at=now))
        taken.append(Confirmation(registration_id, *asked))
    return taken


def give_back(session: Session, confirmation: Confirmation, taken_at: datetime, *, tokens: Tokens) -> None:
    """Let a mail that certainly did not leave be taken again in a while, unless its owner said no meanwhile."""
    session.execute(delete(ConfirmationMail).where(ConfirmationMail.mailbox == _mailbox(confirmation.email, tokens)))
    taken = update(Registration).where(
        Registration.id == confirmation.registration_id,
        Registration.confirmation_sent_at == taken_at,
        Registration.status.in_(CONFIRMABLE),  # who bounced meanwhile would else look as if he had confirmed once
    )
    if rows_matched(session, taken.values(confirmation_sent_at=confirmation.sent_before)):
        session.merge(ConfirmationRequest(registration_id=confirmation.registration_id, due_at=taken_at + LATER))


def drop(session: Session, *those: ColumnElement[bool]) -> bool:
    """Send no mail that is due to some registrations: they said no. Return whether one was.

    In two statements: MySQL would lock every request for one.
    """
    if not (ids := session.execute(select(Registration.id).where(*those)).scalars().all()):
        return False
    waiting = delete(ConfirmationRequest).where(ConfirmationRequest.registration_id.in_(ids))
    return bool(rows_matched(session, waiting))


def forget(session: Session, now: datetime) -> None:
    """Forget the mailboxes that may get a mail again."""
    session.execute(delete(ConfirmationMail).where(ConfirmationMail.sent_at <= now - INTERVAL))


def compose(url: str) -> Message:
    """Return the mail with a confirmation link; nothing in it comes from a caller."""
    return Message(subject="Please confirm: OpenEMR security and update notices", text=_TEXT.format(url=url))


def _count_mail(session: Session, mailbox: str, now: datetime) -> bool:
    """Count a mail to a mailbox and return True, unless it had one within a day.

    Whoever registers variations of somebody's address would else fill that mailbox.
    """
    this = ConfirmationMail.mailbox == mailbox
    again = update(ConfirmationMail).where(this, ConfirmationMail.sent_at <= now - INTERVAL)
    if rows_matched(session, again.values(sent_at=now, next_id=None)):
        return True
    if session.execute(select(ConfirmationMail.mailbox).where(this)).first():
        return False
    try:
        session.execute(insert(ConfirmationMail).values(mailbox=mailbox, sent_at=now))
    except IntegrityError:  # another sender took a variation at the same moment
        return False
    return True


def _put_off(session: Session, registration_id: int, mailbox: str) -> None:
    """Let a registration get the next mail of its mailbox, unless another does.

    If all of them waited, a flood of variations would bring a mail a day for as long as there are some.
    """
    this = ConfirmationMail.mailbox == mailbox
    columns = select(ConfirmationMail.sent_at, ConfirmationMail.next_id).where(this)
    sent_at, next_id = session.execute(columns).one()
    waits = select(ConfirmationRequest.due_at).where(ConfirmationRequest.registration_id == next_id)
    if next_id not in (None, registration_id) and session.execute(waits).first():
        return
    still = update(ConfirmationMail).where(this, ConfirmationMail.next_id.is_not_distinct_from(next_id))
    if rows_matched(session, still.values(next_id=registration_id)):
        session.execute(insert(ConfirmationRequest).values(registration_id=registration_id, due_at=sent_at + INTERVAL))


def _mailbox(email: str, tokens: Tokens) -> str:
    """Return the hash of a mailbox under the oldest key, which all senders have while the keys are being rotated."""
    return tokens.fingerprints(addresses.mailbox(email.lower()))[-1]


def _may_be_asked(now: datetime) -> ColumnElement[bool]:
    sent_at = Registration.confirmation_sent_at
    return Registration.status.in_(CONFIRMABLE) & or_(sent_at.is_(None), sent_at <= now - INTERVAL)
