"""Unread bodies: the rest of one is read before the answer leaves, so that the answer arrives."""

from __future__ import annotations

from contextlib import suppress

from flask import Flask, Response, request

AT_ONCE, MOST = 64 * 1024, 1024 * 1024
"""Bytes that are read at once, and altogether: as much as nginx lets through."""


def init_app(application: Flask) -> None:
    """Read on when an answer was made without the whole body, as to a wrong address or one that is too large.

    Where the server closes a connection with something unread, the answer is lost (RFC 9112 section 9.6), and nginx
    says in its place that the service is unavailable.
    """
    application.after_request(_read_rest)


def _read_rest(response: Response) -> Response:
    if request.environ.get("wsgi.input_terminated"):  # else reading on would wait for the next request
        with suppress(Exception):  # a broken chunk, or a client that has gone
            for _ in range(MOST // AT_ONCE):
                if not request.environ["wsgi.input"].read(AT_ONCE):
                    break
    return response
