"""Headers of every answer, in case a browser reads it: guess nothing, load nothing, keep nothing, tell nobody."""

from __future__ import annotations

from flask import Flask, Response, current_app

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""For answers to programs; a page says what it needs itself."""
HSTS = "max-age=31536000"
_WITH_HTTPS = HEADERS | {"Strict-Transport-Security": HSTS}


def init_app(application: Flask) -> None:
    """Add the headers that an answer does not have yet, and behind https that it stays so (RFC 6797)."""
    application.after_request(_add)


def _add(response: Response) -> Response:
    present = {name for name, _ in response.headers}
    wanted = _WITH_HTTPS if current_app.config["PUBLIC_URL"].startswith("https:") else HEADERS
    response.headers.extend([(name, value) for name, value in wanted.items() if name not in present])
    return response
