"""Health checks: whether the process is up, and whether it can work."""

from __future__ import annotations

from alembic.runtime.migration import MigrationContext
from flask import Blueprint
from flask.typing import ResponseReturnValue

from .. import services
from ..db import AUTOCOMMIT, db, repeatable
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
    """Answer that the database is there and its schema is the one this version needs, or a newer one.

    During a deployment the version before is still serving when the new one has migrated the database.
    """
    heads = repeatable(
        db.engines[AUTOCOMMIT], lambda connection: MigrationContext.configure(connection).get_current_heads()
    )
    revisions = set(heads)
    migrations = services.current().migrations
    known = {script.revision for script in migrations.walk_revisions()}
    if revisions == set(migrations.get_heads()) or not revisions <= known:
        return {"status": "ready"}
    response = problem(503, "Service Unavailable", "The database's schema is not up to date. Run the migrations.")
    response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response
