"""The fields of a request, wherever they are: form, multipart, JSON object or query string."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge

from .. import addresses
from ..addresses import Address
from ..errors import InvalidEmailException, RegistrationError, UnsupportedInputException

_FLAGS = {"true": True, "false": False}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Fields:
    """The named text values of one request; of several with one name the first counts, those of the body first.

    Only a POST has a body: that of a GET means nothing (RFC 9110 section 9.3.1). What cannot be read raises
    `unreadable`, the route's own word for bad input; a body of an unknown type raises UnsupportedInputException.
    """

    def __init__(self, request: Request, *, unreadable: type[RegistrationError]) -> None:
        self.unreadable = unreadable
        body = self._read_body(request) if request.method == "POST" else []
        pairs = [*body, *_pairs(request.query_string)]
        self._names = [name for name, _ in pairs]
        self._values: dict[str, Any] = dict(reversed(pairs))

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def allow(self, names: Collection[str]) -> None:
        """Refuse a field that has none of the names, such as a misspelt `version`, or that is there twice.

        To leave one out would be another request than was meant.
        """
        for name, times in Counter(self._names).items():
            if name not in names:
                known = ", ".join(f"`{each}`" for each in names)
                raise self.unreadable(f"There is no field {name[:40]!a}, only {known}.")
            if times > 1:
                raise self.unreadable(f"The field `{name}` is there {times} times. Leave one.")

    def text(self, name: str) -> str:
        """Return a value, or an empty text when it is missing."""
        value = self._values.get(name, "")
        if not isinstance(value, str):
            raise self.unreadable(f"The field `{name}` must be text, and no file.")
        if _REPLACEMENT in value or not _is_unicode(value):
            raise self.unreadable(f"The field `{name}` is not UTF-8 text, or has lost a character: {_REPLACEMENT}.")
        return value

    def address(self, name: str) -> Address:
        """Return an e-mail address. Raises InvalidEmailException, or what `text` raises."""
        if not (text := self.text(name).strip()):
            raise InvalidEmailException(f"An e-mail address is needed, in the field `{name}`.")
        return addresses.normalise(text)

    def flag(self, name: str) -> bool:
        """Return a value that is true or false; false when it is missing."""
        value = self._values.get(name, False)
        if isinstance(value, bool):
            return value
        word = value.strip().lower() if isinstance(value, str) else ""
        if word not in _FLAGS:
            raise self.unreadable(f"The field `{name}` must be true or false.")
        return _FLAGS[word]

    def number(self, name: str, *, default: int, most: int, least: int = 1) -> int:
        """Return a whole number within limits."""
        if name not in self:
            return default
        text = self.text(name).strip()
        is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
        if not is_number or not least <= int(text) <= most:
            raise self.unreadable(f"The field `{name}` must be a whole number from {least} to {most}.")
        return int(text)

    def _read_body(self, request: Request) -> Collection[tuple[str, Any]]:
        data = self._whole_body(request)
        if not data:
            return []
        if request.mimetype == "multipart/form-data":
            return self._read_multipart(request, data)
        if request.mimetype == "application/x-www-form-urlencoded":
            return _pairs(data)
        if not request.is_json:
            raise UnsupportedInputException
        try:
            # No field is a number, and Python refuses to read an integer of more than 4,300 digits.
            value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_Object, parse_int=float)
        except (ValueError, RecursionError) as error:
            raise self.unreadable("The body is not valid JSON in UTF-8.") from error
        if not isinstance(value, _Object):
            raise self.unreadable("The JSON body must be an object with the fields as its members.")
        return value.members

    def _whole_body(self, request: Request) -> bytes:
        """Return the body, and keep it for others, unless it was cut off or has a broken chunk.

        Werkzeug leaves both to the server, gunicorn does not look, and a notice cut in half would be sent so. Of a body
        of unknown length Werkzeug reads as much as is allowed, without asking whether that was all.
        """
        try:
            data = request.get_data()
            at_limit = request.content_length is None and len(data) >= (request.max_content_length or math.inf)
            has_more = at_limit and request.input_stream.read(1) != b""
        except RequestEntityTooLarge:
            raise
        except Exception as error:  # what a server raises is its own, and quotes the body: it may reach no log
            raise self.unreadable("The body of the request is broken.") from error
        if has_more:
            raise RequestEntityTooLarge
        if len(data) < (request.content_length or 0):
            raise self.unreadable("The body of the request was cut off.")
        return data

    def _read_multipart(self, request: Request, data: bytes) -> Collection[tuple[str, Any]]:
        """Decode the parts of a body. Werkzeug by itself would take one that it cannot read as empty."""
        parser = request.make_form_data_parser()
        parser.silent = False
        parser.stream_factory = lambda *_, **__: BytesIO()  # nobody closes the file that it would be
        try:
            _, form, files = parser.parse(BytesIO(data), request.mimetype, len(data), request.mimetype_params)
        except ValueError as error:
            raise self.unreadable("The body is not valid multipart/form-data.") from error
        return [(name or "", value) for part in (form, files) for name, value in part.items(multi=True)]


def _pairs(encoded: bytes) -> list[tuple[str, str]]:
    """Decode a form or query string.

    Werkzeug would leave bytes that are not UTF-8 percent-encoded, and `%FF` is a valid part of an address.
    """
    return parse_qsl(encoded.decode(errors="replace"), keep_blank_values=True, errors="replace") if encoded else []


class _Object:
    """A JSON object with all its members, also those with the same name."""

    def __init__(self, members: Collection[tuple[str, Any]]) -> None:
        self.members = members


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded; JSON can smuggle in lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
