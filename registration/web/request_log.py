"""One log line a request. It names the route, never the address that was called: that can hold a query string."""

from __future__ import annotations

import logging
import time
import uuid

from flask import Flask, Response, g, request

log = logging.getLogger(__name__)


def init_app(application: Flask) -> None:
    """Give every request an id, which the answer carries too, and log how it went."""
    application.before_request(_begin)
    application.after_request(_end)


def _begin() -> None:
    g.begun_at = time.perf_counter()
    g.request_id = uuid.uuid4().hex


def _end(response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    log.info(
        "request",
        extra={
            "method": request.method,
            "route": request.url_rule.rule if request.url_rule else None,
            "status": response.status_code,
            "duration_ms": round((time.perf_counter() - g.begun_at) * 1000, 1),
        },
    )
    return response
