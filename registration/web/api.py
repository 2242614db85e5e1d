"""The public contract: register, count, broadcast."""

from __future__ import annotations

import ipaddress
import logging
import time
import uuid
from datetime import UTC, datetime

from flask import Blueprint, Response, current_app, jsonify, request, url_for
from flask.typing import ResponseReturnValue

from .. import addresses, broadcasts, messages, registrations
from ..broadcasts import Progress
from ..db import autocommit, db
from ..errors import InvalidEmailException, InvalidEmailMessageException
from ..models import BroadcastStatus
from ..registrations import InstallationReport
from . import access
from .errors import UNAVAILABLE
from .fields import Fields

bp = Blueprint("api", __name__, url_prefix="/api/registration")

LONGEST_VERSION = 64
POLL_SECONDS = 0.05
LARGEST_ID = 2**63 - 1

log = logging.getLogger(__name__)


@bp.post("")
@access.public
def register() -> ResponseReturnValue:
    """Register an e-mail address, or note that a known one reports its installation."""
    fields = Fields(request, unreadable=InvalidEmailException)
    address = addresses.normalise(fields.text("email"))
    with autocommit() as connection:
        product_id = registrations.register(
            connection,
            address,
            product_id=uuid.uuid4(),
            now=datetime.now(UTC),
            ip_address=_ip_address(),
            installation=_installation(fields),
        )
    return {"productId": str(product_id)}, 201


@bp.get("/unique")
@access.public
def count() -> ResponseReturnValue:
    """Tell how many addresses are registered."""
    with autocommit() as connection:
        return {"count": registrations.count(connection)}


@bp.post("/broadcast")
@access.secret_pin
def broadcast() -> ResponseReturnValue:
    """Send a message to everybody who is registered."""
    fields = Fields(request, unreadable=InvalidEmailMessageException)
    message = messages.compose(fields.text("title"), fields.text("contents"))
    started = broadcasts.progress(db.session(), broadcasts.start(db.session(), message, datetime.now(UTC)).id)
    db.session.commit()
    log.info("a broadcast has started", extra={"broadcast": started.broadcast_id})
    return _answer(_watch(started))


@bp.get(f"/broadcast/<int(max={LARGEST_ID}):broadcast_id>")
@access.secret_pin
def show_broadcast(broadcast_id: int) -> ResponseReturnValue:
    """Tell how far a broadcast has come."""
    return _figures(broadcasts.progress(db.session(), broadcast_id))


def _installation(fields: Fields) -> InstallationReport | None:
    """Return what the installation says of itself; None from a client that says nothing."""
    names = [name for name in ("version", "distribution") if name in fields]
    if not names:
        return None
    texts = {name: fields.optional_text(name, LONGEST_VERSION) for name in names}
    for name, text in texts.items():
        if text is None:
            log.warning("a field was ignored: too long or not printable", extra={"field": name})
    return InstallationReport(**{name: text for name, text in texts.items() if text is not None})


def _ip_address() -> str | None:
    """Return the client's address without an IPv6 zone, or None when the proxies did not pass on a readable one."""
    try:
        return str(ipaddress.ip_address((request.remote_addr or "").partition("%")[0]))
    except ValueError:
        return None


def _watch(started: Progress) -> Progress:
    """Wait until a broadcast is no longer sending, at most as long as the settings say; return how far it has come.

    It goes on whatever happens to the database meanwhile. An error here would make the caller send it again.
    """
    try:
        _wait_for_end(started.broadcast_id)
        return broadcasts.progress(db.session(), started.broadcast_id)
    except UNAVAILABLE:
        log.exception("the database went away while a broadcast was watched")
        return started


def _wait_for_end(broadcast_id: int) -> None:
    give_up = time.monotonic() + current_app.config["BROADCAST_WAIT_SECONDS"]
    while broadcasts.status_of(db.session(), broadcast_id) is BroadcastStatus.SENDING:
        db.session.rollback()
        if time.monotonic() >= give_up:
            return
        time.sleep(POLL_SECONDS)


def _answer(progress: Progress) -> Response:
    response = _figures(progress)
    if progress.status is not BroadcastStatus.SENT:
        response.status_code = 202
        response.headers["Location"] = url_for(".show_broadcast", broadcast_id=progress.broadcast_id)
    return response


def _figures(progress: Progress) -> Response:
    return jsonify(
        status=progress.status,
        reason=progress.reason,
        broadcastId=progress.broadcast_id,
        recipients=progress.recipients,
        sent=progress.sent,
        failed=progress.failed,
        skipped=progress.skipped,
        cancelled=progress.cancelled,
        remaining=progress.remaining,
    )
