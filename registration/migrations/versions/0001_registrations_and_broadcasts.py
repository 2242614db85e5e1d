"""Registrations, installations, broadcasts, the ledger and the pace."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLE: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    op.create_table(
        "registration",
        sa.Column("id", large_id(), nullable=False),
        sa.Column("product_id", sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql"), nullable=False),
        sa.Column("email", ascii_string(254), nullable=False),
        sa.Column("email_key", ascii_string(254), nullable=False),
        sa.Column("status", ascii_string(16), nullable=False),
        sa.Column("ip_address", ascii_string(45)),
        sa.Column("created_at", utc(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_registration"),
        sa.UniqueConstraint("product_id", name="uq_registration_product_id"),
        sa.UniqueConstraint("email_key", name="uq_registration_email_key"),
        **TABLE,
    )
    op.create_table(
        "registration_count",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("up_to_id", sa.BigInteger(), nullable=False),
        sa.Column("registrations", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_registration_count"),
        **TABLE,
    )
    op.create_table(
        "installation",
        sa.Column("id", large_id(), nullable=False),
        sa.Column("registration_id", large_id(), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("version_key", sa.BigInteger()),
        sa.Column("distribution", sa.String(64), nullable=False),
        sa.Column("first_seen_at", utc(), nullable=False),
        sa.Column("last_seen_at", utc(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_installation"),
        sa.UniqueConstraint(
            "registration_id",
            "version",
            "distribution",
            name="uq_installation_registration_id_version_distribution",
        ),
        sa.ForeignKeyConstraint(
            ["registration_id"], ["registration.id"], name="fk_installation_registration_id", ondelete="CASCADE"
        ),
        **TABLE,
    )
    op.create_table(
        "broadcast",
        sa.Column("id", large_id(), nullable=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("contents", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql"), nullable=False),
        sa.Column("status", ascii_string(16), nullable=False),
        sa.Column("reason", sa.String(255)),
        sa.Column("recipients", sa.BigInteger(), nullable=False),
        sa.Column("audience_end", sa.BigInteger(), nullable=False),
        sa.Column("filled_to", sa.BigInteger(), nullable=False),
        sa.Column("created_at", utc(), nullable=False),
        sa.Column("resume_at", utc()),
        sa.Column("finished_at", utc()),
        sa.PrimaryKeyConstraint("id", name="pk_broadcast"),
        **TABLE,
    )
    op.create_index("ix_broadcast_status", "broadcast", ["status"])
    op.create_table(
        "delivery",
        sa.Column("id", large_id(), nullable=False),
        sa.Column("broadcast_id", large_id(), nullable=False),
        sa.Column("registration_id", large_id(), nullable=False),
        sa.Column("status", ascii_string(16), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), nullable=False),
        sa.Column("lease", ascii_string(32)),
        sa.Column("leased_until", utc()),
        sa.Column("message_id", ascii_string(128)),
        sa.Column("reason", sa.String(255)),
        sa.Column("settled_at", utc()),
        sa.PrimaryKeyConstraint("id", name="pk_delivery"),
        sa.UniqueConstraint("broadcast_id", "registration_id", name="uq_delivery_broadcast_id_registration_id"),
        sa.ForeignKeyConstraint(["broadcast_id"], ["broadcast.id"], name="fk_delivery_broadcast_id"),
        sa.ForeignKeyConstraint(["registration_id"], ["registration.id"], name="fk_delivery_registration_id"),
        **TABLE,
    )
    op.create_index("ix_delivery_broadcast_id_status_id", "delivery", ["broadcast_id", "status", "id"])
    pace = op.create_table(
        "pace",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("free_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pace"),
        **TABLE,
    )
    op.execute(sa.insert(pace).values(id=1, free_at=0))
    op.execute("INSERT INTO registration_count (id, up_to_id, registrations) VALUES (1, 0, 0)")


def downgrade() -> None:
    for table in ("pace", "delivery", "broadcast", "installation", "registration_count", "registration"):
        op.drop_table(table)


def large_id() -> sa.types.TypeEngine[Any]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def ascii_string(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql")


def utc() -> sa.types.TypeEngine[Any]:
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")
