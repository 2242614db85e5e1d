"""Runs the migrations on the application's own database."""

from __future__ import annotations

from alembic import context
from flask import current_app
from sqlalchemy import NullPool, create_engine

db = current_app.extensions["migrate"].db

# An engine of its own, because a change to a large table takes longer than the application waits for a statement.
engine = create_engine(db.engine.url, poolclass=NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=db.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
