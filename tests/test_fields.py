"""Reading the fields of a request."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Request
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.test import EnvironBuilder

from registration import LARGEST_BODY, ROOT
from registration.errors import InvalidEmailException, UnsupportedInputException
from registration.web.fields import Fields

from . import mariadb

PART = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\ntext\r\n'
FORM = "application/x-www-form-urlencoded"


def read(**arguments: Any) -> Fields:
    """Read the fields of a request that has the arguments of Werkzeug's EnvironBuilder."""
    environ = EnvironBuilder(**{"method": "POST"} | arguments).get_environ()
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
        {"data": '{"name": "first", "name": "second"}', "content_type": "application/json"},
    ],
)
def test_of_two_values_with_one_name_the_first_counts(arguments: dict[str, Any]) -> None:
    assert read(**arguments).text("name") == "first"


@pytest.mark.parametrize("value", [1, 0, None, [], {}, 1.0, "1", "yes"])
def test_what_is_no_flag_is_told_what_one_is(value: object) -> None:
    with pytest.raises(InvalidEmailException, match="must be true or false"):
        read(json={"name": value}).flag("name")


@given(st.dictionaries(st.text(min_size=1), st.text().filter(lambda text: "\ufffd" not in text), min_size=1))
@hypothesis_settings(deadline=None)
def test_a_form_and_a_query_string_say_the_same(values: dict[str, str]) -> None:
    by_form, by_query = read(data=urlencode(values), content_type=FORM), read(query_string=urlencode(values))

    for name, value in values.items():
        assert by_form.text(name) == by_query.text(name) == value


@given(st.binary(max_size=40))
@hypothesis_settings(deadline=None)
def test_no_bytes_in_a_form_or_query_string_are_more_than_unreadable(encoded: bytes) -> None:
    for arguments in ({"data": b"name=" + encoded, "content_type": FORM}, {"query_string": encoded.decode("latin-1")}):
        with suppress(InvalidEmailException):
            read(**arguments).text("name").encode()


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"name": }', b"[1]", b'"name"', b"5", b"null", b'{"name": "\xff"}', b"[" * 99_999, b"1" * 9_999]
    + ['{"name": "text"}'.encode(charset) for charset in ("utf-16", "utf-16-le", "utf-32")],
)
def test_a_json_body_that_is_no_object_is_unreadable(body: bytes) -> None:
    with pytest.raises(InvalidEmailException, match="JSON"):
        read(data=body, content_type="application/json")


def test_a_json_body_may_begin_with_a_byte_order_mark() -> None:
    assert read(data=b'\xef\xbb\xbf{"name": "text"}', content_type="application/json").text("name") == "text"


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


@pytest.mark.parametrize(
    ("data", "boundary"),
    [(PART, "b"), (PART + b"--b", "b"), (PART[:30], "b"), (PART + b"--b--\r\n", "c"), (PART + b"--b--\r\n", "")],
    ids=["no end", "half an end", "cut off", "another boundary", "no boundary"],
)
def test_parts_that_cannot_be_read_are_not_taken_as_none(data: bytes, boundary: str) -> None:
    content_type = f"multipart/form-data; boundary={boundary}" if boundary else "multipart/form-data"

    with pytest.raises(InvalidEmailException, match="not valid multipart"):
        read(data=data, content_type=content_type, query_string={"name": "text"})


def test_no_parts_at_all_are_no_error() -> None:
    arguments = {"content_type": "multipart/form-data; boundary=b", "query_string": {"name": "text"}}
    assert [read(data=data, **arguments).text("name") for data in (b"", b"--b--\r\n")] == ["text", "text"]


@pytest.mark.parametrize("content_type", ["text/plain", "text/html", "application/xml", "application/octet-stream", ""])
def test_a_body_of_another_type_is_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedInputException):
        read(data=b"name=text", content_type=content_type)


@pytest.mark.parametrize(
    "content_type", ["text/plain", FORM, "multipart/form-data; boundary=b", "application/json", ""]
)
def test_the_type_of_an_empty_body_does_not_matter(content_type: str) -> None:
    assert read(query_string={"name": "text"}, content_type=content_type).text("name") == "text"


@pytest.mark.parametrize("value", ["", " \n"])
def test_an_address_that_is_missing_is_asked_for_by_the_name_of_its_field(value: str) -> None:
    with pytest.raises(InvalidEmailException, match="needed, in the field `name`"):
        read(json={"name": value}).address("name")


def test_an_address_is_normalised() -> None:
    assert read(json={"name": " Ann@Example.org\n"}).address("name") == ("Ann@Example.org", "ann@example.org")


@pytest.mark.parametrize("content_type", [FORM, "multipart/form-data; boundary=b", "application/json", "text/plain"])
def test_a_body_over_the_limit_is_refused_before_it_is_read(content_type: str) -> None:
    request = Request(EnvironBuilder(method="POST", data=b"x" * 101, content_type=content_type).get_environ())
    request.max_content_length = 100

    with pytest.raises(RequestEntityTooLarge):
        Fields(request, unreadable=InvalidEmailException)


@pytest.mark.parametrize("content_type", [FORM, "multipart/form-data; boundary=b", "application/json"])
def test_a_body_that_was_cut_off_is_refused(content_type: str) -> None:
    environ = EnvironBuilder(method="POST", data=b"name=te", content_type=content_type).get_environ()
    environ |= {"CONTENT_LENGTH": "9", "wsgi.input_terminated": True}

    with pytest.raises(InvalidEmailException, match="cut off"):
        Fields(Request(environ), unreadable=InvalidEmailException)


@pytest.mark.parametrize("content_type", [FORM, "multipart/form-data; boundary=b", "application/json"])
def test_a_body_of_unknown_length_over_the_limit_is_refused(content_type: str) -> None:
    environ = EnvironBuilder(method="POST", data=b"x" * 101, content_type=content_type).get_environ()
    del environ["CONTENT_LENGTH"]
    request = Request(environ | {"wsgi.input_terminated": True})
    request.max_content_length = 100

    with pytest.raises(RequestEntityTooLarge):
        Fields(request, unreadable=InvalidEmailException)


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"name=text", FORM),
        (PART + b"--b--\r\n", "multipart/form-data; boundary=b"),
        (b'{"name": "text"}', "application/json"),
    ],
)
def test_a_body_of_unknown_length_up_to_the_limit_is_read(data: bytes, content_type: str) -> None:
    environ = EnvironBuilder(method="POST", data=data, content_type=content_type).get_environ()
    length = int(environ.pop("CONTENT_LENGTH"))
    request = Request(environ | {"wsgi.input_terminated": True})
    request.max_content_length = length

    assert Fields(request, unreadable=InvalidEmailException).text("name") == "text"
    assert len(request.get_data()) == length


@pytest.mark.parametrize("error", [OSError, RuntimeError, ClientDisconnected])
def test_a_body_with_a_broken_chunk_is_refused_without_quoting_it(error: type[Exception]) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise error("Invalid chunk size: b'secretPin=1234'")

        readline = readinto = readall = read  # type: ignore[assignment]

    environ = EnvironBuilder(method="POST", content_type=FORM).get_environ()
    environ |= {"wsgi.input": Broken(), "wsgi.input_terminated": True}
    environ.pop("CONTENT_LENGTH", None)

    with pytest.raises(InvalidEmailException, match="broken") as caught:
        Fields(Request(environ), unreadable=InvalidEmailException)

    assert "1234" not in str(caught.value)


@pytest.fixture
def gunicorn(sqlite_url: str, settings: dict[str, str], tmp_path: Path) -> Iterator[int]:
    """Serve the service as in production on a port; its output goes to a file."""
    port = mariadb.free_port()
    environment = {**os.environ, **settings, "DB_CONN_STR": sqlite_url, "DEVELOPMENT": "", "MAILER": "outbox"}
    environment |= {"SES_SENDER": "a@example.org", "PUBLIC_URL": "https://a.example.org", "TOKEN_KEYS": "k" * 32}
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "application:application"]
    with (
        (tmp_path / "output").open("wb") as output,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            wait_for(port)
            yield port
        finally:
            process.terminate()


def wait_for(port: int) -> None:
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail("gunicorn does not listen")


def post_chunks(port: int, path: str, chunks: bytes) -> bytes:
    """Post a chunked form as it is; return the whole answer."""
    head = f"POST /api/registration{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {FORM}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks)
        with connection.makefile("rb") as answer:
            return answer.read()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_gunicorn_answers_broken_chunks_400_and_logs_nothing_of_them(gunicorn: int, tmp_path: Path) -> None:
    mark = b"zanzibar"
    notice = b"secretPin=" + mark + b"&title=" + mark + b"&contents=" + mark

    for broken in (
        notice + b"\r\n",
        chunk(b"title=a&") + notice + b"\r\n",
        b"3\r\n" + notice + b"\r\n0\r\n\r\n",
        b"3;" + notice + b"\r\r\n",
        chunk(notice) + b"0\r\n" + mark + b"\r\n\r\n",
    ):
        answer = post_chunks(gunicorn, "/broadcast", broken)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b"InvalidEmailMessageException" in answer
        assert mark not in answer

    log = (tmp_path / "output").read_text() + (tmp_path / "log").read_text()
    assert log.count('"status": 400') == 2 * 5
    assert mark.decode() not in log
    assert "Traceback" not in log


def test_gunicorn_reads_a_chunked_body_of_exactly_512_kib_and_not_a_byte_more(gunicorn: int) -> None:
    body = b"email=" + b"x" * (LARGEST_BODY - 6)

    assert b"InvalidEmailException" in post_chunks(gunicorn, "", chunk(body) + b"0\r\n\r\n")
    assert post_chunks(gunicorn, "", chunk(body + b"x") + b"0\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_the_body_of_a_get_means_nothing() -> None:
    fields = read(method="GET", data={"email": "ann@example.org"}, query_string={"limit": "1"})

    assert "email" not in fields
    assert fields.text("limit") == "1"
