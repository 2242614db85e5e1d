"""The fields of a request, wherever they are: form, multipart, JSON object or query string."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Request
from werkzeug.exceptions import BadRequest

from ..errors import RegistrationError, UnsupportedInputException

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_FORMS = {"application/x-www-form-urlencoded", "multipart/form-data"}


class Fields:
    """The named text values of one request; the body comes before the query string.

    What cannot be read raises `unreadable`, the route's own word for bad input; a body of an unknown type raises
    UnsupportedInputException.
    """

    def __init__(self, request: Request, *, unreadable: type[RegistrationError]) -> None:
        self.unreadable = unreadable
        self._values: dict[str, Any] = {**request.args, **self._read_body(request)}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str:
        """Return a value, or an empty text when it is missing."""
        value = self._values.get(name, "")
        if not isinstance(value, str):
            raise self.unreadable(f"The field `{name}` must be text.")
        if _REPLACEMENT in value or not _is_unicode(value):
            raise self.unreadable(f"The field `{name}` is not UTF-8 text.")
        return value

    def optional_text(self, name: str, longest: int) -> str | None:
        """Return a printable value of limited length, trimmed; None when it is anything else."""
        try:
            value = self.text(name).strip()
        except self.unreadable:
            return None
        return value if len(value) <= longest and value.isprintable() else None

    def _read_body(self, request: Request) -> Mapping[str, Any]:
        if request.mimetype in _FORMS:
            return request.form
        if not request.get_data():
            return {}
        if not request.is_json:
            raise UnsupportedInputException
        try:
            value = request.get_json()
        except (BadRequest, RecursionError) as error:
            raise self.unreadable("The body is not valid JSON.") from error
        if not isinstance(value, dict):
            raise self.unreadable("The JSON body must be an object with the fields as its members.")
        return value


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded; JSON can smuggle in lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
