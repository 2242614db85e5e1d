"""The rest of a body that an answer was made without."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from flask.testing import FlaskClient

from registration import LARGEST_BODY
from registration.web.bodies import MOST

UNREAD = [
    ("/nowhere", 404, 200_000),
    ("/api/registration/unique", 405, 200_000),
    ("/api/registration/broadcast", 413, LARGEST_BODY + 1),
]


def post(client: FlaskClient, path: str, body: BytesIO, *, is_terminated: bool = True) -> int:
    overrides: dict[str, Any] = {"wsgi.input": body, "wsgi.input_terminated": is_terminated}
    length = str(len(body.getvalue()))
    return client.post(path, headers={"Content-Length": length}, environ_overrides=overrides).status_code


@pytest.mark.parametrize(("path", "status", "length"), UNREAD)
def test_a_body_is_read_to_its_end_whatever_the_answer(
    client: FlaskClient, path: str, status: int, length: int
) -> None:
    body = BytesIO(b"x" * length)

    assert post(client, path, body) == status
    assert body.tell() == length


def test_no_more_is_read_than_nginx_lets_through(client: FlaskClient) -> None:
    body = BytesIO(b"x" * (MOST + 1))

    assert post(client, "/nowhere", body) == 404
    assert body.tell() == MOST


def test_a_server_whose_input_has_no_end_is_not_waited_for(client: FlaskClient) -> None:
    body = BytesIO(b"x" * 10)

    assert post(client, "/nowhere", body, is_terminated=False) == 404
    assert body.tell() == 0


def test_a_body_that_breaks_off_changes_no_answer(client: FlaskClient) -> None:
    class Broken(BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError("the client has gone")

    assert post(client, "/nowhere", Broken(b"x")) == 404
