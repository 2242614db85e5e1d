"""Broadcasts for those who know the pin: start one, steer it, tell how far it has come."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy.orm import Session

from .. import audiences, broadcasts, feedback, figures, messages, monitoring, services, trials
from ..audiences import Audience
from ..db import LARGEST_ID, commit_step, commit_steps, database_time, db
from ..errors import (
    InvalidEmailMessageException,
    InvalidIdempotencyKeyException,
    InvalidQueryException,
    RepeatedBroadcastException,
)
from ..messages import Message
from ..models import BroadcastStatus
from . import access
from .errors import UNAVAILABLE
from .fields import Fields

bp = Blueprint("control", __name__, url_prefix="/api/registration/broadcast")

POLL_SECONDS = 0.05
PAGE, LARGEST_PAGE = 20, 100
LONGEST_KEY = 255
FIELDS = ("secretPin", "title", "contents", "html", "versions", "unknown", "dry_run", "test", "urgent", "resend")
_ONE = f"/<int(max={LARGEST_ID}):broadcast_id>"

log = logging.getLogger(__name__)


@bp.post("")
@access.secret_pin
def start() -> ResponseReturnValue:
    """Send a message to everybody who is registered or to some versions, or with `test` to one address only.

    With `dry_run` nobody gets it, and the answer says who would.
    """
    fields = Fields(request, unreadable=InvalidEmailMessageException)
    fields.allow(FIELDS)
    html = fields.text("html") if "html" in fields else None
    message = messages.compose(fields.text("title"), fields.text("contents"), html)
    urgent, resend, dry_run = (fields.flag(name) for name in ("urgent", "resend", "dry_run"))
    whom = _audience(fields)
    key = _idempotency_key()
    if dry_run:
        forecast = monitoring.forecast(db.session(), _now(), whom=whom, rate_limit=services.current().rate_limit)
        return figures.of_forecast(forecast, whom.versions.text if whom.versions else None)
    if "test" in fields:
        return _send_test(message, fields.address("test").stored)
    begin = partial(
        broadcasts.start, message=message, now=_now(), whom=whom, urgent=urgent, resend=resend, idempotency_key=key
    )
    return _begin(begin, urgent=urgent)


@bp.get("")
@access.secret_pin
def show_page() -> ResponseReturnValue:
    """Tell how far each broadcast has come, newest first."""
    fields = Fields(request, unreadable=InvalidQueryException)
    fields.allow(("limit", "before"))
    limit = fields.number("limit", default=PAGE, most=LARGEST_PAGE)
    before = fields.number("before", default=LARGEST_ID, most=LARGEST_ID)
    ids = broadcasts.page(db.session(), before=before, limit=limit + 1)
    more = url_for(".show_page", before=ids[limit - 1], limit=limit) if len(ids) > limit else None
    return {"broadcasts": [_figures(broadcast_id) for broadcast_id in ids[:limit]], "next": more}


@bp.get(_ONE)
@access.secret_pin
def show(broadcast_id: int) -> ResponseReturnValue:
    """Tell how far a broadcast has come, and what became of its messages."""
    told = _figures(broadcast_id)
    return told | {"feedback": figures.of_feedback(told["sent"], feedback.counts(db.session(), broadcast_id))}


@bp.post(f"{_ONE}/pause")
@access.secret_pin
def pause(broadcast_id: int) -> ResponseReturnValue:
    """Let a broadcast rest until somebody resumes it."""
    return _steer(broadcasts.pause, broadcast_id)


@bp.post(f"{_ONE}/resume")
@access.secret_pin
def resume(broadcast_id: int) -> ResponseReturnValue:
    """Let a paused broadcast go on."""
    return _steer(broadcasts.resume, broadcast_id)


@bp.post(f"{_ONE}/cancel")
@access.secret_pin
def cancel(broadcast_id: int) -> ResponseReturnValue:
    """End a broadcast; who has not got it yet does not get it."""
    return _steer(broadcasts.cancel, broadcast_id)


@bp.post(f"{_ONE}/retry")
@access.secret_pin
def retry(broadcast_id: int) -> ResponseReturnValue:
    """Send a broadcast again to those who failed or were cancelled, nobody else."""
    commit_steps(partial(broadcasts.retry, broadcast_id=broadcast_id, before=_now()))
    return _steer(broadcasts.status_of, broadcast_id)


def _audience(fields: Fields) -> Audience:
    versions = fields.text("versions") if "versions" in fields else None
    unknown = fields.text("unknown").strip().lower() if "unknown" in fields else "include"
    oldest = timedelta(days=current_app.config["INSTALLATION_MAX_AGE_DAYS"])
    return audiences.asked_for(versions, unknown, oldest, _now())


def _idempotency_key() -> str | None:
    """Return the key without the blanks around it, which are no part of a header's value (RFC 9110 section 5.5)."""
    if (key := request.headers.get("Idempotency-Key")) is None:
        return None
    key = key.strip(" \t")
    if not (1 <= len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
        raise InvalidIdempotencyKeyException
    return key


def _begin(begin: Callable[[Session], int], *, urgent: bool) -> ResponseReturnValue:
    """Start a broadcast and watch it, or the one that the request repeats, which an urgent repetition makes urgent."""

    def step(session: Session) -> tuple[int, int]:
        started = begin(session)
        return started, broadcasts.recipients_of(session, started)

    try:
        broadcast_id, recipients = commit_step(step)
    except RepeatedBroadcastException as repetition:
        if urgent:
            commit_step(partial(broadcasts.hurry, broadcast_id=repetition.broadcast_id))
            log.info("a broadcast was made urgent", extra={"broadcast": repetition.broadcast_id})
        return _answer(_watch(repetition.broadcast_id) | {"repeated": True})
    log.info("a broadcast has started", extra={"broadcast": broadcast_id})
    services.current().wake()
    return _answer(_watch_new(broadcast_id, recipients))


def _send_test(message: Message, address: str) -> ResponseReturnValue:
    wait = trials.reserve(db.session(), rate_limit=services.current().rate_limit, now=_now().timestamp())
    db.session.commit()
    time.sleep(wait)
    trials.send(services.current().mailer(), message, address)
    log.info("a test was sent")
    return {"status": "sent", "test": True}


def _steer(step: Callable[[Session, int], Any], broadcast_id: int) -> ResponseReturnValue:
    """Take one step, and tell what came of it."""
    commit_step(lambda session: step(session, broadcast_id))
    log.info("somebody steered a broadcast", extra={"broadcast": broadcast_id, "call": request.endpoint})
    services.current().wake()
    return _figures(broadcast_id)


def _answer(told: dict[str, Any]) -> Response:
    """Answer with the figures of a broadcast, and where to ask again if it goes on."""
    response = jsonify(told)
    if told["finishedAt"] is None:
        response.status_code = 202
        response.headers["Location"] = url_for(".show", broadcast_id=told["broadcastId"])
    return response


def _watch(broadcast_id: int) -> dict[str, Any]:
    """Wait until a broadcast rests or has ended, as long as the settings say, and return its figures."""
    _wait_for_end(broadcast_id)
    return _figures(broadcast_id)


def _watch_new(broadcast_id: int, recipients: int) -> dict[str, Any]:
    """Watch a broadcast that was just started; where the database goes away, return how it began.

    It goes on whatever happens to the database meanwhile. An error here would make the caller send it again.
    """
    try:
        return _watch(broadcast_id)
    except UNAVAILABLE:
        log.exception("the database went away while a broadcast was watched")
        begun = {"recipients": recipients, "sent": 0, "failed": 0, "finishedAt": None}
        return {"status": BroadcastStatus.SENDING, "broadcastId": broadcast_id, **begun}


def _wait_for_end(broadcast_id: int) -> None:
    give_up = time.monotonic() + current_app.config["BROADCAST_WAIT_SECONDS"]
    while broadcasts.is_moving(db.session(), broadcast_id):
        db.session.rollback()
        if time.monotonic() >= give_up:
            return
        time.sleep(POLL_SECONDS)


def _figures(broadcast_id: int) -> dict[str, Any]:
    now, rate_limit = _now(), services.current().rate_limit
    return figures.of(monitoring.progress(db.session(), broadcast_id, now, rate_limit=rate_limit), now)


def _now() -> datetime:
    return database_time(db.session())
