"""Control of broadcasts, protection against double posts and guessed pins, and a pace that adapts."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLE: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    with op.batch_alter_table("broadcast") as broadcast:
        broadcast.add_column(sa.Column("urgent", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("broadcast") as broadcast:
        broadcast.alter_column("urgent", existing_type=sa.Boolean(), existing_nullable=False, server_default=None)
    op.create_table(
        "broadcast_request",
        sa.Column("name", ascii_string(64), nullable=False),
        sa.Column("fingerprint", ascii_string(64), nullable=False),
        sa.Column("broadcast_id", large_id(), nullable=False),
        sa.Column("created_at", utc(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_broadcast_request"),
        sa.ForeignKeyConstraint(["broadcast_id"], ["broadcast.id"], name="fk_broadcast_request_broadcast_id"),
        **TABLE,
    )
    op.create_table(
        "wrong_pin",
        sa.Column("id", large_id(), nullable=False),
        sa.Column("ip_address", ascii_string(45)),
        sa.Column("created_at", utc(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_wrong_pin"),
        **TABLE,
    )
    op.create_index("ix_wrong_pin_created_at", "wrong_pin", ["created_at"])
    with op.batch_alter_table("pace") as pace:
        for name, start in (("factor", "1"), ("throttled_at", "0"), ("asked_at", "0")):
            pace.add_column(sa.Column(name, sa.Double(), nullable=False, server_default=sa.text(start)))
        for name in ("granted_rate", "daily_quota", "sent_last_day"):
            pace.add_column(sa.Column(name, sa.Double()))
    with op.batch_alter_table("pace") as pace:
        for name in ("factor", "throttled_at", "asked_at"):
            pace.alter_column(name, existing_type=sa.Double(), existing_nullable=False, server_default=None)


def downgrade() -> None:
    op.drop_table("wrong_pin")
    op.drop_table("broadcast_request")
    with op.batch_alter_table("pace") as pace:
        for name in ("factor", "throttled_at", "asked_at", "granted_rate", "daily_quota", "sent_last_day"):
            pace.drop_column(name)
    with op.batch_alter_table("broadcast") as broadcast:
        broadcast.drop_column("urgent")


def large_id() -> sa.types.TypeEngine[Any]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql")


def utc() -> sa.types.TypeEngine[Any]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")
