"""Who may call what: every route says `public` or `secret_pin`, and a test refuses one that says neither."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import current_app, request

from ..errors import InvalidEmailMessageException, InvalidSecretPinException
from .fields import Fields

View = Callable[..., Any]


def public(view: View) -> View:
    """Let everybody in."""
    return _decided("public", view)


def secret_pin(view: View) -> View:
    """Let in who knows the pin: as `Authorization: Bearer`, or when posting as the field `secretPin`."""

    @wraps(view)
    def guarded(**arguments: Any) -> Any:
        expected = current_app.config["SECRET_PIN"]
        if not hmac.compare_digest(_given_pin(), expected.encode()):
            raise InvalidSecretPinException
        return view(**arguments)

    return _decided("secret pin", guarded)


def decision(view: View) -> str | None:
    """Return who may call a view, or None if nobody decided."""
    return getattr(view, "access", None)


def _decided(access: str, view: View) -> View:
    view.access = access  # type: ignore[attr-defined]
    return view


def _given_pin() -> bytes:
    # WSGI has headers in latin-1, and Werkzeug's own parser takes a token with an equals sign for parameters.
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip(" ").encode("latin-1")
    if request.method != "POST":
        return b""
    fields = Fields(request, unreadable=InvalidEmailMessageException)
    try:
        return fields.text("secretPin").encode()
    except InvalidEmailMessageException as error:
        raise InvalidSecretPinException from error
