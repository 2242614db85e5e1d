"""Consent, what became of a mail after SES took it, HTML, and broadcasts to some versions only."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLE: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    with op.batch_alter_table("registration") as registration:
        registration.add_column(sa.Column("confirmation_sent_at", utc()))
    op.create_table(
        "soft_bounce",
        sa.Column("registration_id", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("broadcast_id", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("registration_id", "broadcast_id", name="pk_soft_bounce"),
        **TABLE,
    )
    op.create_table(
        "erasure",
        sa.Column("key_hash", ascii_string(64), nullable=False),
        sa.Column("erased_at", utc(), nullable=False),
        sa.PrimaryKeyConstraint("key_hash", name="pk_erasure"),
        **TABLE,
    )
    op.create_table(
        "confirmation_request",
        sa.Column("registration_id", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("due_at", utc(), nullable=False),
        sa.PrimaryKeyConstraint("registration_id", name="pk_confirmation_request"),
        **TABLE,
    )
    op.create_index("ix_confirmation_request_due_at", "confirmation_request", ["due_at"])
    op.create_table(
        "confirmation_mail",
        sa.Column("mailbox", ascii_string(254), nullable=False),
        sa.Column("sent_at", utc(), nullable=False),
        sa.Column("next_id", sa.BigInteger()),
        sa.PrimaryKeyConstraint("mailbox", name="pk_confirmation_mail"),
        **TABLE,
    )
    op.create_index("ix_confirmation_mail_sent_at", "confirmation_mail", ["sent_at"])
    op.create_table(
        "variation",
        sa.Column("mailbox", ascii_string(254), nullable=False),
        sa.Column("email_key", ascii_string(254), nullable=False),
        sa.PrimaryKeyConstraint("mailbox", name="pk_variation"),
        **TABLE,
    )
    with op.batch_alter_table("broadcast") as broadcast:
        broadcast.add_column(sa.Column("html", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql")))
        broadcast.add_column(sa.Column("versions", sa.String(200)))
        broadcast.add_column(sa.Column("include_unknown", sa.Boolean(), nullable=False, server_default=sa.true()))
        broadcast.add_column(sa.Column("seen_since", utc()))
        broadcast.add_column(sa.Column("circuit_broken_at", utc()))
    with op.batch_alter_table("broadcast") as broadcast:
        broadcast.alter_column(
            "include_unknown", existing_type=sa.Boolean(), existing_nullable=False, server_default=None
        )
    with op.batch_alter_table("delivery") as delivery:
        delivery.add_column(sa.Column("feedback", ascii_string(16)))
        delivery.add_column(sa.Column("feedback_at", utc()))
        delivery.create_index("ix_delivery_broadcast_id_feedback", ["broadcast_id", "feedback"])
        delivery.create_index("ix_delivery_message_id", ["message_id"])
    op.create_table(
        "feedback_event",
        sa.Column("id", large_id(), nullable=False),
        sa.Column("event_id", ascii_string(64), nullable=False),
        sa.Column("status", ascii_string(16), nullable=False),
        sa.Column("body", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql")),
        sa.Column("problem", sa.String(255)),
        sa.Column("received_at", utc(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_feedback_event"),
        sa.UniqueConstraint("event_id", name="uq_feedback_event_event_id"),
        **TABLE,
    )
    op.create_index("ix_feedback_event_status_received_at", "feedback_event", ["status", "received_at"])


def downgrade() -> None:
    for table in ("feedback_event", "variation", "confirmation_mail", "confirmation_request", "erasure", "soft_bounce"):
        op.drop_table(table)
    with op.batch_alter_table("delivery") as delivery:
        delivery.drop_index("ix_delivery_message_id")
        delivery.drop_index("ix_delivery_broadcast_id_feedback")
        delivery.drop_column("feedback_at")
        delivery.drop_column("feedback")
    with op.batch_alter_table("broadcast") as broadcast:
        for name in ("circuit_broken_at", "seen_since", "include_unknown", "versions", "html"):
            broadcast.drop_column(name)
    with op.batch_alter_table("registration") as registration:
        registration.drop_column("confirmation_sent_at")


def large_id() -> sa.types.TypeEngine[Any]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql")


def utc() -> sa.types.TypeEngine[Any]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")
