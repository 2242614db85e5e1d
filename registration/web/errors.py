"""Every error as problem details (RFC 9457), and the one place that chooses an HTTP status."""

from __future__ import annotations

import logging
import math

from flask import Flask, Response, json
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException, InternalServerError, MethodNotAllowed

from ..db import code_of, is_fault
from ..errors import (
    AlreadyRegisteredException,
    ExpiredLinkException,
    ForgedLinkException,
    IdempotencyKeyException,
    InvalidEmailException,
    InvalidEmailMessageException,
    InvalidIdempotencyKeyException,
    InvalidQueryException,
    InvalidSecretPinException,
    InvalidVersionRangeException,
    MailServiceBusyException,
    MailServiceRefusedException,
    RegistrationError,
    TooManyAttemptsException,
    TooManyRegistrationsException,
    UnknownBroadcastException,
    UnsupportedInputException,
)

STATUS = {
    InvalidEmailException: 400,
    InvalidEmailMessageException: 400,
    InvalidIdempotencyKeyException: 400,
    InvalidQueryException: 400,
    InvalidVersionRangeException: 400,
    InvalidSecretPinException: 401,
    ForgedLinkException: 404,
    UnknownBroadcastException: 404,
    AlreadyRegisteredException: 409,
    ExpiredLinkException: 410,
    UnsupportedInputException: 415,
    IdempotencyKeyException: 422,
    TooManyAttemptsException: 429,
    TooManyRegistrationsException: 429,
    MailServiceRefusedException: 502,
    MailServiceBusyException: 503,
}
UNAVAILABLE = (OperationalError, InterfaceError, PoolTimeoutError)
"""What a database that is away raises."""
RETRY_SECONDS = 5
_SENTENCES = {
    404: "There is nothing at this address.",
    405: "This address does not take this method.",
    413: (
        "The request is larger than 512 KiB, or has too many parts. Text that is not English is shortest as form-data "
        "(curl -F) or JSON."
    ),
    500: "Something went wrong on our side. It has been logged; please try again later.",
}

log = logging.getLogger(__name__)


def init_app(application: Flask) -> None:
    """Answer every error with a problem; none tells the caller about SQL, AWS or our code."""
    application.register_error_handler(RegistrationError, _refuse)
    application.register_error_handler(HTTPException, _answer_http)
    for unavailable in UNAVAILABLE:
        application.register_error_handler(unavailable, answer_unavailable)
    application.register_error_handler(Exception, _answer_unexpected)


def problem(status: int, title: str, detail: str, *, kind: str = "about:blank") -> Response:
    """Return a problem. `error` repeats `detail` for the clients of the service's predecessor."""
    body = {"type": kind, "title": title, "status": status, "detail": detail, "error": detail}
    return Response(json.dumps(body), status, content_type="application/problem+json")


def _refuse(error: RegistrationError) -> Response:
    name = type(error).__name__
    kind = f"tag:open-emr.org,2026:product-registration/{name}"
    response = problem(STATUS[type(error)], name, str(error), kind=kind)
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after.total_seconds())))
    return response


def _answer_http(error: HTTPException) -> Response:
    status = error.code or 500
    sentence = _SENTENCES.get(status, error.description or error.name)
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        sentence += f" It takes {' or '.join(sorted(set(error.valid_methods) - {'HEAD', 'OPTIONS'}))}."
    response = problem(status, error.name, sentence)
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def answer_unavailable(error: Exception) -> Response:
    """Log that the database is away, and answer so (503); where a statement is to blame, it is our fault (500)."""
    if is_fault(error):
        return _answer_unexpected(error)
    # Without the traceback, which is 16 KB and always the same: there may be hundreds a second.
    log.error("the database is unavailable", extra={"error": type(error).__name__, "code": code_of(error)})
    response = problem(503, "Service Unavailable", "The service is unavailable. Please try again in a few seconds.")
    response.headers["Retry-After"] = str(RETRY_SECONDS)
    return response


def _answer_unexpected(error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return _answer_http(InternalServerError())
