"""The deliveries of a broadcast, as JSON a page at a time or as one CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from flask import Blueprint, Response, request, stream_with_context, url_for
from flask.typing import ResponseReturnValue

from .. import broadcasts, ledger, spreadsheets
from ..db import LARGEST_ID, db
from ..errors import InvalidQueryException
from ..figures import iso
from ..ledger import Line
from ..models import DeliveryStatus
from . import access
from .fields import Fields

bp = Blueprint("deliveries", __name__, url_prefix="/api/registration/broadcast")

LARGEST_PAGE = 1000
COLUMNS = ("recipient", "status", "reason", "attempts", "settledAt", "messageId", "feedback")
FORMATS = ("json", "csv")


@bp.get(f"/<int(max={LARGEST_ID}):broadcast_id>/deliveries")
@access.secret_pin
def show(broadcast_id: int) -> ResponseReturnValue:
    """Tell what became of each delivery of a broadcast, or of those with one status."""
    fields = Fields(request, unreadable=InvalidQueryException)
    fields.allow(("status", "format", "limit", "after"))
    status = _status(fields)
    limit = fields.number("limit", default=LARGEST_PAGE, most=LARGEST_PAGE)
    after = fields.number("after", default=0, most=LARGEST_ID, least=0)
    form = _format(fields)
    if form == "csv" and "limit" in fields:
        raise InvalidQueryException("A CSV has no pages. Leave `limit` out, or ask for JSON.")
    broadcasts.status_of(db.session(), broadcast_id)
    if form == "csv":
        return _csv(broadcast_id, status, after)
    lines = ledger.lines(db.session(), broadcast_id, status=status, after=after, limit=limit + 1)
    position = lines[limit - 1].position if len(lines) > limit else None
    more = position and url_for(".show", broadcast_id=broadcast_id, status=status, limit=limit, after=position)
    return {"deliveries": [dict(zip(COLUMNS, _cells(line), strict=True)) for line in lines[:limit]], "next": more}


def _status(fields: Fields) -> DeliveryStatus | None:
    if "status" not in fields:
        return None
    try:
        return DeliveryStatus(fields.text("status"))
    except ValueError as error:
        raise InvalidQueryException(f"The status must be one of: {', '.join(DeliveryStatus)}.") from error


def _format(fields: Fields) -> str:
    if "format" not in fields:
        return "csv" if request.accept_mimetypes.best_match(["application/json", "text/csv"]) == "text/csv" else "json"
    if fields.text("format") not in FORMATS:
        raise InvalidQueryException(f"The format must be one of: {', '.join(FORMATS)}.")
    return fields.text("format")


def _csv(broadcast_id: int, status: DeliveryStatus | None, after: int) -> Response:
    chunks = stream_with_context(_csv_chunks(broadcast_id, status, after))
    name = f"broadcast-{broadcast_id}-{status or 'deliveries'}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(chunks, mimetype="text/csv", headers=headers)


def _csv_chunks(broadcast_id: int, status: DeliveryStatus | None, after: int) -> Iterator[str]:
    """Yield the file in pieces, each read in a transaction of its own that ends before the caller takes it."""
    yield _csv_text([COLUMNS])
    while lines := ledger.lines(db.session(), broadcast_id, status=status, after=after, limit=LARGEST_PAGE):
        db.session.rollback()
        after = lines[-1].position
        yield _csv_text(
            [spreadsheets.guard(cell) if isinstance(cell, str) else cell for cell in _cells(line)] for line in lines
        )


def _csv_text(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _cells(line: Line) -> tuple[str | int | None, ...]:
    settled_at = iso(line.settled_at)
    return line.recipient, line.status, line.reason, line.attempts, settled_at, line.message_id, line.feedback
