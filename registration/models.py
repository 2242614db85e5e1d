"""The tables, as typed columns. What happens to the rows is decided in the modules named after them."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Mapped, mapped_column

from .db import LARGE_ID, Base, Names, UtcDateTime, UuidBytes, ascii_string

LONGEST_MESSAGE_ID = 128
"""Characters of ASCII in the mail service's id of a message; those of Amazon SES have 60."""
_TABLE = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


class RegistrationStatus(StrEnum):
    """Whether a registration is mailed to; only `active` ones are. Of an `erased` one the address is gone."""

    ACTIVE = "active"
    UNCONFIRMED = "unconfirmed"
    OPTED_OUT = "opted_out"
    BOUNCED = "bounced"
    COMPLAINED = "complained"
    ERASED = "erased"


class BroadcastStatus(StrEnum):
    """How far a broadcast has come."""

    SENDING = "sending"
    PAUSED = "paused"
    SENT = "sent"
    CANCELLED = "cancelled"


class DeliveryStatus(StrEnum):
    """How far one message to one recipient has come; the last four are final."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class Feedback(StrEnum):
    """What became of a message after the mail service took it, as far as it has told."""

    DELAYED = "delayed"
    DELIVERED = "delivered"
    SOFT_BOUNCE = "soft_bounce"
    HARD_BOUNCE = "hard_bounce"
    COMPLAINED = "complained"
    REJECTED = "rejected"


class FeedbackEventStatus(StrEnum):
    """How far an event has come: it waits for a delivery that is not settled yet, or was put aside as unreadable."""

    WAITING = "waiting"
    APPLIED = "applied"
    ASIDE = "aside"


class Registration(Base):
    """One e-mail address."""

    __tablename__ = "registration"
    __table_args__ = (_TABLE,)

    id: Mapped[int] = mapped_column(LARGE_ID, primary_key=True)
    product_id: Mapped[uuid.UUID] = mapped_column(UuidBytes, unique=True)
    email: Mapped[str] = mapped_column(ascii_string(254))
    email_key: Mapped[str] = mapped_column(ascii_string(254), unique=True)
    status: Mapped[RegistrationStatus] = mapped_column(Names(RegistrationStatus))
    ip_address: Mapped[str | None] = mapped_column(ascii_string(45))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    confirmation_sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class SoftBounce(Base):
    """One of a recipient's soft bounces in a row, each in another broadcast, until mail has arrived."""

    __tablename__ = "soft_bounce"
    __table_args__ = (_TABLE,)

    registration_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    broadcast_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


class Erasure(Base):
    """The keyed hash of an address that was erased, or of its mailbox, so that nobody but its owner brings it back."""

    __tablename__ = "erasure"
    __table_args__ = (_TABLE,)

    key_hash: Mapped[str] = mapped_column(ascii_string(64), primary_key=True)
    erased_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ConfirmationRequest(Base):
    """A confirmation mail that waits to be sent, from `due_at` on."""

    __tablename__ = "confirmation_request"
    __table_args__ = (Index(None, "due_at"), _TABLE)

    registration_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ConfirmationMail(Base):
    """When a mailbox last got a confirmation mail, whichever variation of its address was registered; for a day.

    `mailbox` is a keyed hash, so that an erasure can leave it. `next_id` is the registration that gets the next one.
    """

    __tablename__ = "confirmation_mail"
    __table_args__ = (Index(None, "sent_at"), _TABLE)

    mailbox: Mapped[str] = mapped_column(ascii_string(254), primary_key=True)
    sent_at: Mapped[datetime] = mapped_column(UtcDateTime)
    next_id: Mapped[int | None] = mapped_column(BigInteger)


class Variation(Base):
    """The variation of a mailbox's plain address, such as ann+openemr@example.org, that was registered first."""

    __tablename__ = "variation"
    __table_args__ = (_TABLE,)

    mailbox: Mapped[str] = mapped_column(ascii_string(254), primary_key=True)
    email_key: Mapped[str] = mapped_column(ascii_string(254))


class RegistrationCount(Base):
    """How many registrations there are up to a remembered id; one row."""

    __tablename__ = "registration_count"
    __table_args__ = (_TABLE,)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    up_to_id: Mapped[int] = mapped_column(BigInteger)
    registrations: Mapped[int] = mapped_column(BigInteger)


class Installation(Base):
    """A version and distribution that an address reported."""

    __tablename__ = "installation"
    __table_args__ = (UniqueConstraint("registration_id", "version", "distribution"), _TABLE)

    id: Mapped[int] = mapped_column(LARGE_ID, primary_key=True)
    registration_id: Mapped[int] = mapped_column(ForeignKey("registration.id", ondelete="CASCADE"))
    version: Mapped[str] = mapped_column(String(64))
    version_key: Mapped[int | None] = mapped_column(BigInteger)
    distribution: Mapped[str] = mapped_column(String(64))
    first_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Broadcast(Base):
    """One message to everybody who was registered when it started.

    The audience is the active registrations up to `audience_end`; the ledger holds those up to `filled_to`.
    A paused broadcast goes on by itself at `resume_at`, or waits for a person if that is empty. `versions` limits it
    to installations in that range seen since `seen_since`; `include_unknown` keeps those with an unknown version.
    Only messages accepted after `circuit_broken_at` count for the next break of the circuit breaker. `contents` and
    `html` may be large, so they are loaded only where somebody asks for them.
    """

    __tablename__ = "broadcast"
    __table_args__ = (Index(None, "status"), _TABLE)

    id: Mapped[int] = mapped_column(LARGE_ID, primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    contents: Mapped[str] = mapped_column(Text().with_variant(mysql.MEDIUMTEXT(), "mysql"), deferred=True)
    status: Mapped[BroadcastStatus] = mapped_column(Names(BroadcastStatus))
    reason: Mapped[str | None] = mapped_column(String(255))
    recipients: Mapped[int] = mapped_column(BigInteger)
    audience_end: Mapped[int] = mapped_column(BigInteger)
    filled_to: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    resume_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    urgent: Mapped[bool] = mapped_column(Boolean)
    html: Mapped[str | None] = mapped_column(Text().with_variant(mysql.MEDIUMTEXT(), "mysql"), deferred=True)
    versions: Mapped[str | None] = mapped_column(String(200))
    include_unknown: Mapped[bool] = mapped_column(Boolean, default=True)
    seen_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    circuit_broken_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Delivery(Base):
    """One broadcast to one recipient: a line of the ledger.

    A sender that claims a delivery holds it until `leased_until`; `lease` names the claim until its outcome is written.
    """

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("broadcast_id", "registration_id"),
        Index(None, "broadcast_id", "status", "id"),
        Index(None, "broadcast_id", "feedback"),
        Index(None, "message_id"),
        _TABLE,
    )

    id: Mapped[int] = mapped_column(LARGE_ID, primary_key=True)
    broadcast_id: Mapped[int] = mapped_column(ForeignKey("broadcast.id"))
    registration_id: Mapped[int] = mapped_column(ForeignKey("registration.id"))
    status: Mapped[DeliveryStatus] = mapped_column(Names(DeliveryStatus))
    attempts: Mapped[int] = mapped_column(SmallInteger)
    lease: Mapped[str | None] = mapped_column(ascii_string(32))
    leased_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    message_id: Mapped[str | None] = mapped_column(ascii_string(LONGEST_MESSAGE_ID))
    reason: Mapped[str | None] = mapped_column(String(255))
    settled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    feedback: Mapped[Feedback | None] = mapped_column(Names(Feedback))
    feedback_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class FeedbackEvent(Base):
    """An event of the mail service, once each; `body` is kept until it has had its effect."""

    __tablename__ = "feedback_event"
    __table_args__ = (Index(None, "status", "received_at"), _TABLE)

    id: Mapped[int] = mapped_column(LARGE_ID, primary_key=True)
    event_id: Mapped[str] = mapped_column(ascii_string(64), unique=True)
    status: Mapped[FeedbackEventStatus] = mapped_column(Names(FeedbackEventStatus))
    body: Mapped[str | None] = mapped_column(Text().with_variant(mysql.MEDIUMTEXT(), "mysql"))
    problem: Mapped[str | None] = mapped_column(String(255))
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)


class BroadcastRequest(Base):
    """What a broadcast was asked for with: its idempotency key, or the fingerprint of what it says.

    The unique `name` lets only one of two simultaneous requests start a broadcast.
    """

    __tablename__ = "broadcast_request"
    __table_args__ = (_TABLE,)

    name: Mapped[str] = mapped_column(ascii_string(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(ascii_string(64))
    broadcast_id: Mapped[int] = mapped_column(ForeignKey("broadcast.id"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class WrongPin(Base):
    """One wrong secret pin, remembered for a quarter of an hour, and the network that it came from."""

    __tablename__ = "wrong_pin"
    __table_args__ = (Index(None, "created_at"), _TABLE)

    id: Mapped[int] = mapped_column(LARGE_ID, primary_key=True)
    network: Mapped[str | None] = mapped_column("ip_address", ascii_string(45), key="network")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Pace(Base):
    """The account's pace; one row that all senders share. Times are seconds since 1970.

    `free_at` is the next free instant. `factor` lowers the rate since `throttled_at`, the last time the mail service
    asked to slow down. Where it lets hardly more than one bulk call a second through, `bulk_free_at` is the next
    instant for one, and at `bulk_probe_at` it is seen whether that is still so; 0 where it is not known to be. The rest
    is what the mail service said of the account at `asked_at`.
    """

    __tablename__ = "pace"
    __table_args__ = (_TABLE,)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    free_at: Mapped[float] = mapped_column(Double)
    factor: Mapped[float] = mapped_column(Double)
    throttled_at: Mapped[float] = mapped_column(Double)
    asked_at: Mapped[float] = mapped_column(Double)
    granted_rate: Mapped[float | None] = mapped_column(Double)
    daily_quota: Mapped[float | None] = mapped_column(Double)
    sent_last_day: Mapped[float | None] = mapped_column(Double)
    bulk_free_at: Mapped[float] = mapped_column(Double, default=0.0)
    bulk_probe_at: Mapped[float] = mapped_column(Double, default=0.0)
