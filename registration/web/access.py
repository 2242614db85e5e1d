"""Access decisions: every route says `public` or `secret_pin`, and a test refuses one that says neither."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any

from flask import current_app, request

from .. import pins
from ..db import AUTOCOMMIT, db, repeatable
from ..errors import InvalidEmailMessageException, InvalidSecretPinException
from .fields import Fields

_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}|\[([^\]]+)\](?::[0-9]{1,5})?")
"""An address as some proxies pass it on: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/x-forwarded-headers.html"""

_NO_PIN = (
    "There is no secret pin in this request. A POST takes it in the field `secretPin`; a GET only as a Bearer token."
)

View = Callable[..., Any]


def public(view: View) -> View:
    """Let everybody in."""
    return _decided("public", view)


def secret_pin(view: View) -> View:
    """Let in who knows the pin: as `Authorization: Bearer`, or when posting as the field `secretPin`.

    Whoever gives too many wrong ones has to wait; none at all is not counted.
    """

    @wraps(view)
    def guarded(**arguments: Any) -> Any:
        if not (given := _given_pin()):
            raise InvalidSecretPinException(_NO_PIN)
        expected = current_app.config["SECRET_PIN"].encode()
        admit = partial(pins.admit, given=given, expected=expected, ip_address=ip_address(), now=datetime.now(UTC))
        repeatable(db.engines[AUTOCOMMIT], admit)
        return view(**arguments)

    return _decided("secret pin", guarded)


def decision(view: View) -> str | None:
    """Return who may call a view, or None if nobody decided."""
    return getattr(view, "access", None)


def ip_address() -> str | None:
    """Return the client's address without port and IPv6 zone, or None when the proxies passed on no readable one."""
    try:
        with_port = _WITH_PORT.fullmatch(request.remote_addr or "")
        address = with_port[1] or with_port[2] if with_port else request.remote_addr or ""
        return str(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return None


def _decided(access: str, view: View) -> View:
    view.access = access  # type: ignore[attr-defined]
    return view


def _given_pin() -> bytes:
    # WSGI has headers in latin-1, and Werkzeug's own parser takes a token with an equals sign for parameters.
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and (token := token.strip(" ")):
        return token.encode("latin-1")
    if request.method != "POST":
        return b""
    fields = Fields(request, unreadable=InvalidEmailMessageException)
    try:
        return fields.text("secretPin").strip().encode()
    except InvalidEmailMessageException as error:
        raise InvalidSecretPinException(str(error)) from error
