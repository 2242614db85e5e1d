"""Versions and distributions of the installations, for those who know the pin."""

from __future__ import annotations

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from .. import reports
from ..db import db
from ..errors import InvalidQueryException
from . import access
from .fields import Fields

bp = Blueprint("installations", __name__, url_prefix="/api/registration/versions")

ROWS, MOST_ROWS = 100, 1000


@bp.get("")
@access.secret_pin
def show() -> ResponseReturnValue:
    """Tell how many registrations reported each version and distribution, most first; `more` if not all are told."""
    fields = Fields(request, unreadable=InvalidQueryException)
    fields.allow(("limit",))
    limit = fields.number("limit", default=ROWS, most=MOST_ROWS)
    found = reports.in_use(db.session().connection(), limit + 1)
    rows = [
        {
            "version": row.version,
            "distribution": row.distribution,
            "registrations": row.registrations,
            "known": row.is_known,
        }
        for row in found[:limit]
    ]
    return {"versions": rows, "more": len(found) > limit}
