"""Which mailbox got a confirmation mail is remembered as a keyed hash: that survives an erasure."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _replace_table("mailbox_hash", 64)


def downgrade() -> None:
    _replace_table("mailbox", 254)


def _replace_table(key: str, length: int) -> None:
    """Begin the memory of one day anew: a mailbox may get a second mail on the day of the migration."""
    op.drop_table("confirmation_mail")
    op.create_table(
        "confirmation_mail",
        sa.Column(key, ascii_string(length), nullable=False),
        sa.Column("sent_at", utc(), nullable=False),
        sa.Column("next_id", sa.BigInteger()),
        sa.PrimaryKeyConstraint(key, name="pk_confirmation_mail"),
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index("ix_confirmation_mail_sent_at", "confirmation_mail", ["sent_at"])


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql")


def utc() -> sa.types.TypeEngine[Any]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")
