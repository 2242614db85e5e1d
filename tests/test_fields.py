"""Reading the fields of a request."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge
from werkzeug.test import EnvironBuilder

from registration.errors import InvalidEmailException, UnsupportedInputException
from registration.web.fields import Fields

FORM = "application/x-www-form-urlencoded"


def read(**arguments: Any) -> Fields:
    """Read the fields of a request that has the arguments of Werkzeug's EnvironBuilder."""
    environ = EnvironBuilder(method="POST", **arguments).get_environ()
    return Fields(Request(environ), unreadable=InvalidEmailException)


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": {"name": "J\u00f3\u2603"}},
        {"data": {"name": "J\u00f3\u2603"}, "content_type": "multipart/form-data"},
        {"json": {"name": "J\u00f3\u2603"}},
        {"data": '{"name": "J\u00f3\u2603"}', "content_type": "application/problem+json; charset=utf-8"},
        {"query_string": {"name": "J\u00f3\u2603"}},
    ],
)
def test_a_value_is_read_from_every_form_of_input(arguments: dict[str, Any]) -> None:
    fields = read(**arguments)

    assert fields.text("name") == "J\u00f3\u2603"
    assert "name" in fields
    assert "other" not in fields


def test_a_missing_value_is_an_empty_text() -> None:
    assert read().text("name") == ""


def test_an_empty_value_is_there() -> None:
    assert "name" in read(data="name=", content_type=FORM)


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"name": "body"}},
        {"data": {"name": "body"}, "content_type": "multipart/form-data"},
        {"json": {"name": "body"}},
    ],
)
def test_the_body_comes_before_the_query_string(body: dict[str, Any]) -> None:
    fields = read(query_string={"name": "query", "other": "query"}, **body)

    assert (fields.text("name"), fields.text("other")) == ("body", "query")


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": "name=first&name=second", "content_type": FORM},
        {"data": {"name": ["first", "second"]}, "content_type": "multipart/form-data"},
        {"query_string": "name=first&name=second"},
    ],
)
def test_of_two_values_with_one_name_the_first_counts(arguments: dict[str, Any]) -> None:
    assert read(**arguments).text("name") == "first"


@given(st.dictionaries(st.text(min_size=1), st.text().filter(lambda text: "\ufffd" not in text), min_size=1))
@settings(deadline=None)
def test_a_form_and_a_query_string_say_the_same(values: dict[str, str]) -> None:
    by_form, by_query = read(data=urlencode(values), content_type=FORM), read(query_string=urlencode(values))

    for name, value in values.items():
        assert by_form.text(name) == by_query.text(name) == value


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_no_bytes_in_a_form_or_query_string_are_more_than_unreadable(encoded: bytes) -> None:
    for arguments in ({"data": b"name=" + encoded, "content_type": FORM}, {"query_string": encoded.decode("latin-1")}):
        with suppress(InvalidEmailException):
            read(**arguments).text("name").encode()


@pytest.mark.parametrize(
    "body", [b"{", b'{"name": }', b"[1]", b'"name"', b"5", b"null", b'{"name": "\xff"}', b"[" * 99_999]
)
def test_a_json_body_that_is_no_object_is_unreadable(body: bytes) -> None:
    with pytest.raises(InvalidEmailException, match="JSON"):
        read(data=body, content_type="application/json")


@pytest.mark.parametrize("value", [5, 5.5, True, None, [], ["text"], {}])
def test_a_value_that_is_no_text_is_unreadable(value: object) -> None:
    fields = read(json={"name": value, "other": "text"})

    assert fields.text("other") == "text"
    with pytest.raises(InvalidEmailException, match="`name` must be text"):
        fields.text("name")


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": b"name=a%FFb", "content_type": FORM},
        {"data": b"name=a\xffb", "content_type": FORM},
        {"query_string": "name=a%FFb"},
        {"environ_overrides": {"QUERY_STRING": "name=a\xffb"}},
        {"data": b'{"name": "a\\ud800b"}', "content_type": "application/json"},
        {
            "data": b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\na\xffb\r\n--b--\r\n',
            "content_type": "multipart/form-data; boundary=b",
        },
    ],
)
def test_bytes_that_are_not_utf_8_are_unreadable(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidEmailException, match="`name` is not UTF-8"):
        read(**arguments).text("name")


@pytest.mark.parametrize("content_type", ["text/plain", "text/html", "application/xml", "application/octet-stream", ""])
def test_a_body_of_another_type_is_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedInputException):
        read(data=b"name=text", content_type=content_type)


def test_the_type_of_an_empty_body_does_not_matter() -> None:
    assert read(query_string={"name": "text"}, content_type="text/plain").text("name") == "text"


@pytest.mark.parametrize("content_type", [FORM, "multipart/form-data; boundary=b", "application/json", "text/plain"])
def test_a_body_over_the_limit_is_refused_before_it_is_read(content_type: str) -> None:
    request = Request(EnvironBuilder(method="POST", data=b"x" * 101, content_type=content_type).get_environ())
    request.max_content_length = 100

    with pytest.raises(RequestEntityTooLarge):
        Fields(request, unreadable=InvalidEmailException)


@pytest.mark.parametrize("value", ["7.0.3 (1)", " 7.0.3 (1)\n", "x" * 64, "", "\u00e9\u2603"])
def test_an_optional_value_is_trimmed(value: str) -> None:
    assert read(json={"name": value}).optional_text("name", 64) == value.strip()


@pytest.mark.parametrize("value", ["x" * 65, "a\nb", "a\x00b", "a\u202eb", "a\ufffdb", chr(0xD800), 5, None, ["x"]])
def test_an_optional_value_that_is_too_long_or_unprintable_or_no_text_is_none(value: object) -> None:
    assert read(json={"name": value}).optional_text("name", 64) is None


@pytest.mark.parametrize("content_type", [FORM, "multipart/form-data; boundary=b", "application/json"])
def test_a_body_that_was_cut_off_is_refused(content_type: str) -> None:
    environ = EnvironBuilder(method="POST", data=b"name=te", content_type=content_type).get_environ()
    environ |= {"CONTENT_LENGTH": "9", "wsgi.input_terminated": True}

    with pytest.raises(BadRequest):
        Fields(Request(environ), unreadable=InvalidEmailException)


@pytest.mark.parametrize("content_type", [FORM, "multipart/form-data; boundary=b", "application/json"])
def test_a_body_of_unknown_length_over_the_limit_is_refused(content_type: str) -> None:
    environ = EnvironBuilder(method="POST", data=b"x" * 101, content_type=content_type).get_environ()
    del environ["CONTENT_LENGTH"]
    request = Request(environ | {"wsgi.input_terminated": True})
    request.max_content_length = 100

    with pytest.raises(RequestEntityTooLarge):
        Fields(request, unreadable=InvalidEmailException)


def test_a_body_with_a_broken_chunk_is_refused_without_quoting_it() -> None:
    class Broken(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError("Invalid chunk size: b'secretPin=1234'")

        readline = readinto = readall = read  # type: ignore[assignment]

    environ = EnvironBuilder(method="POST", content_type=FORM).get_environ()
    environ |= {"wsgi.input": Broken(), "wsgi.input_terminated": True}
    environ.pop("CONTENT_LENGTH", None)

    with pytest.raises(BadRequest) as caught:
        Fields(Request(environ), unreadable=InvalidEmailException)

    assert "1234" not in str(caught.value)
