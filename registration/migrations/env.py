"""Runs the migrations on the application's own database."""

from __future__ import annotations

import logging
from typing import Any

from alembic import context
from flask import current_app
from sqlalchemy import Connection, NullPool, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from registration.db import LOCK_SECONDS

log = logging.getLogger("registration.migrations")

db = current_app.extensions["migrate"].db

is_sqlite = db.engine.dialect.name == "sqlite"
# An engine of its own, because a change to a large table takes longer than the application waits for a statement. But
# behind one that waits for somebody who has only read the table, everybody waits: MySQL would let it for a year.
patience = {} if is_sqlite else {"init_command": f"SET lock_wait_timeout = {LOCK_SECONDS}"}
engine = create_engine(db.engine.url, poolclass=NullPool, connect_args=patience)
if is_sqlite:

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: ConnectionPoolEntry) -> None:
        """Let tables be replaced: SQLite would refuse to drop one that others refer to, or empty those.

        And let Python not commit before each such statement, so that a migration that fails leaves nothing
        (https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#sqlite-enabling-transactions).
        """
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=db.metadata,
        render_as_batch=True,
        transactional_ddl=is_sqlite,
    )
    with context.begin_transaction():
        known = {script.revision for script in context.script.walk_revisions()}
        if newer := set(context.get_context().get_current_heads()) - known:
            # This is an earlier version, to which somebody went back. A migration suits the version before it.
            log.warning("the database has a newer schema, which stays", extra={"revisions": sorted(newer)})
        else:
            context.run_migrations()
