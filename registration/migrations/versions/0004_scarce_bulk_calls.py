"""The pace of bulk calls, for accounts that may make one a second."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COLUMNS = ("bulk_free_at", "bulk_probe_at")


def upgrade() -> None:
    with op.batch_alter_table("pace") as pace:
        for name in COLUMNS:
            pace.add_column(sa.Column(name, sa.Double(), nullable=False, server_default="0"))
    with op.batch_alter_table("pace") as pace:
        for name in COLUMNS:
            pace.alter_column(name, existing_type=sa.Double(), existing_nullable=False, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("pace") as pace:
        for name in COLUMNS:
            pace.drop_column(name)
