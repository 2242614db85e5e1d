"""The public contract: register and count. Broadcasts are in `control`."""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress
from datetime import UTC, datetime

from flask import Blueprint, current_app, request
from flask.typing import ResponseReturnValue

from .. import counting, services, versions
from ..db import AUTOCOMMIT, db, repeatable
from ..errors import InvalidEmailException
from ..reports import InstallationReport
from . import access
from .fields import Fields

bp = Blueprint("api", __name__, url_prefix="/api/registration")

log = logging.getLogger(__name__)


@bp.post("")
@access.public
def register() -> ResponseReturnValue:
    """Register an e-mail address, or note that a known one reports its installation."""
    here, ip_address = services.current(), access.ip_address()
    here.limits.admit(ip_address)
    fields = Fields(request, unreadable=InvalidEmailException)
    address = fields.address("email")
    here.domains.check(address)
    product_id = here.registrar.register(
        address,
        product_id=uuid.uuid4(),
        now=datetime.now(UTC),
        ip_address=ip_address,
        installation=_installation(fields),
    )
    return {"productId": str(product_id)}, 201


@bp.get("/unique")
@access.public
def count() -> ResponseReturnValue:
    """Tell how many addresses are registered, and how many of them are confirmed where that is asked for."""
    counted = {"count": repeatable(db.engines[AUTOCOMMIT], counting.count)}
    if current_app.config["CONFIRM_REGISTRATIONS"]:
        counted["confirmed"] = min(counted["count"], services.current().confirmed_count.get())
    return counted


def _installation(fields: Fields) -> InstallationReport | None:
    """Return what the installation says of itself; None from a client that says nothing."""
    names = [name for name in ("version", "distribution") if name in fields]
    if not names:
        return None
    return InstallationReport(**{name: _label(fields, name) for name in names})


def _label(fields: Fields, name: str) -> str:
    """Return the label in a field; empty for anything else, because an address counts without one too."""
    with suppress(InvalidEmailException):
        if versions.is_label(text := fields.text(name).strip()):
            return text
    log.warning("a field was ignored: too long or not printable", extra={"field": name})
    return ""
