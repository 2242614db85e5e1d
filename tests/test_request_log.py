"""One log line a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

import config
from registration import create_application

from .conftest import HEADERS, dispose, empty


@pytest.fixture
def application(settings: dict[str, str], sqlite_url: str) -> Iterator[Flask]:
    """The application as in production, where the lines are JSON."""
    production = {**settings, "DB_CONN_STR": sqlite_url, "MAILER": "outbox", "ALLOW_RESERVED_DOMAINS": "true"}
    production |= {"PUBLIC_URL": "https://notices.example.org", "TOKEN_KEYS": "k" * 32, "SES_SENDER": "a@example.org"}
    application = create_application(config.read(production, development=False))
    with application.app_context():
        empty()
    yield application
    dispose(application)


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """Read the log."""
    return lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


Lines = Callable[[], list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/api/registration/unique", "/api/registration/unique", 200),
        ("POST", "/api/registration?email=ann@example.org", "/api/registration", 201),
        ("POST", "/api/registration?email=nobody", "/api/registration", 400),
        (
            "GET",
            "/api/registration/broadcast/7",
            "/api/registration/broadcast/<int(max=9223372036854775807):broadcast_id>",
            404,
        ),
        ("GET", "/ann@example.org?x=1", None, 404),
        ("GET", "/api//registration/unique", None, 404),
        ("DELETE", "/api/registration", None, 405),
        ("GET", "/fails", "/fails", 500),
    ],
)
def test_a_request_is_one_line_with_its_route_and_how_it_went(
    application: Flask, lines: Lines, method: str, path: str, route: str | None, status: int
) -> None:
    @application.get("/fails")
    def fails() -> None:
        raise RuntimeError

    response = application.test_client().open(path, method=method, headers=HEADERS)

    (line,) = [line for line in lines() if line["message"] == "request"]
    assert response.status_code == status
    assert (line["level"], line["method"], line["route"], line["status"]) == ("INFO", method, route, status)
    assert 0 < line["duration_ms"] < 60_000
    assert line["request_id"] == response.headers["X-Request-ID"]
    assert line["time"]
    for called in ("ann@example.org", "email=", "nobody", "broadcast/7"):
        assert called not in json.dumps(lines())


def test_all_lines_of_a_request_carry_its_id_and_no_other_request_has_it(application: Flask, lines: Lines) -> None:
    client = application.test_client()
    ids = [
        client.post("/api/registration", json={"email": f"{name}@example.org", "version": 7}).headers["X-Request-ID"]
        for name in ("ann", "bob")
    ]

    assert ids[0] != ids[1]
    own = [(line["request_id"], line["message"]) for line in lines() if line["request_id"]]
    ignored = "a field was ignored: too long or not printable"
    assert own == [(ids[0], ignored), (ids[0], "request"), (ids[1], ignored), (ids[1], "request")]
