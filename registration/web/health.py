"""Whether the process is up, and whether it can work."""

from __future__ import annotations

from alembic.runtime.migration import MigrationContext
from flask import Blueprint, current_app
from flask.typing import ResponseReturnValue

from ..db import autocommit
from . import access
from .errors import RETRY_SECONDS, problem

bp = Blueprint("health", __name__)


@bp.get("/health")
@access.public
def health() -> ResponseReturnValue:
    """Answer that the process is up."""
    return {"status": "up"}


@bp.get("/ready")
@access.public
def ready() -> ResponseReturnValue:
    """Answer that the database is there and its schema is the one this version needs."""
    with autocommit() as connection:
        heads = MigrationContext.configure(connection).get_current_heads()
    if set(heads) == set(current_app.extensions["schema_heads"]):
        return {"status": "ready"}
    response = problem(503, "Service Unavailable", "The database's schema is not up to date. Run the migrations.")
    response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response
