"""Log lines: what they look like, where they go, and what is never in them."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from werkzeug.routing import Rule

import config
import logger
from registration import broadcasts, create_application, create_sender, registrations
from registration.db import db

from .conftest import dispose, empty
from .stepping import work

log = logging.getLogger("test")

MARK = "zanzibar"
"""A word that is in every address, pin, title and text of the test that greps the log, and nowhere else."""
ADDRESS = f"{MARK}.ann+x@{MARK}.example.org"
PIN = f"{MARK} battery staple"
NOTICE = {"title": f"Update {MARK}", "contents": f"There is a hole in {MARK}.\n"}


@pytest.fixture(params=[True, False], ids=["readable", "json"])
def readable(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_in_production_a_line_is_one_json_object(file: Path) -> None:
    logger.configure(sys.stdout, file, readable=False)

    log.warning("two\nlines", extra={"broadcast": 7, "path": Path("x")})

    (line,) = file.read_text().splitlines()
    values = json.loads(line)
    assert datetime.fromisoformat(values.pop("time")).tzinfo is not None
    assert values == {
        "level": "WARNING",
        "logger": "test",
        "message": "two\nlines",
        "request_id": None,
        "broadcast": 7,
        "path": "x",
    }


def test_in_production_a_traceback_is_inside_the_object(file: Path) -> None:
    logger.configure(sys.stdout, file, readable=False)

    log_failure("Duplicate entry")

    (line,) = file.read_text().splitlines()
    assert json.loads(line)["message"] == "it failed"
    assert "ValueError: Duplicate entry" in line
    assert "Traceback" in line


def test_in_development_a_line_is_for_a_person(file: Path) -> None:
    logger.configure(sys.stdout, file, readable=True)

    log.warning("a broadcast has started", extra={"broadcast": 7})
    log_failure("Duplicate entry")

    first, second, *traceback = file.read_text().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING a broadcast has started  broadcast=7", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d ERROR   it failed", second)
    assert traceback[0].startswith("Traceback")
    assert traceback[-1] == "ValueError: Duplicate entry"


def test_a_line_goes_to_standard_output_and_to_the_file(
    file: Path, capsys: pytest.CaptureFixture[str], readable: bool
) -> None:
    logger.configure(sys.stdout, file, readable=readable)

    log.info("it works")

    assert "it works" in file.read_text()
    assert capsys.readouterr().out == file.read_text()


@pytest.mark.parametrize("name", [".", "missing/folder/log", "file/log"])
def test_a_file_that_cannot_be_written_is_done_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], readable: bool, name: str
) -> None:
    (tmp_path / "file").touch()

    logger.configure(sys.stdout, tmp_path / name, readable=readable)
    log.info("it works")

    first, second = capsys.readouterr().out.splitlines()
    assert "the log file cannot be written" in first
    assert "it works" in second


def test_configuring_again_replaces_what_was_configured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = [handler for handler in logging.getLogger().handlers if not isinstance(handler, logger.Handler)]
    logger.configure(sys.stdout, tmp_path / "first", readable=True)
    logger.configure(sys.stdout, tmp_path / "second", readable=True)

    log.info("it works")

    assert (tmp_path / "first").read_text() == ""
    assert (tmp_path / "second").read_text().count("it works") == 1
    assert capsys.readouterr().out.count("it works") == 1
    assert set(others) < set(logging.getLogger().handlers)


def test_chatty_libraries_are_heard_only_when_something_is_wrong(file: Path) -> None:
    logger.configure(sys.stdout, file, readable=True)

    for name in ("alembic.runtime.migration", "botocore.hooks", "urllib3.connectionpool"):
        logging.getLogger(name).info("GET /api/registration?secretPin=1234")
        logging.getLogger(name).warning("%s warns", name)

    assert [line.split()[2] for line in file.read_text().splitlines()] == [
        "alembic.runtime.migration",
        "botocore.hooks",
        "urllib3.connectionpool",
    ]


def test_the_development_server_does_not_quote_requests(file: Path) -> None:
    logger.configure(sys.stdout, file, readable=True)

    logging.getLogger("werkzeug").error("code 400, message Bad request syntax ('GET /?secretPin=1234')")

    assert file.read_text() == ""


@given(st.emails())
@settings(deadline=None)
def test_nothing_of_an_address_stays_in_a_line(address: str) -> None:
    assert logger.blot_out(f"before {address} after") == "before [address] after"


@pytest.mark.parametrize(
    ("line", "blotted"),
    [
        ("no address at all", "no address at all"),
        ("<ann@example.org>, (bob@example.org)", "<[address]>, ([address])"),
        ("To:ann@example.org;bob@example.org", "To:[address];[address]"),
        ("50 @ 3", "50 @ 3"),
    ],
)
def test_what_is_around_an_address_stays(line: str, blotted: str) -> None:
    assert logger.blot_out(line) == blotted


@pytest.mark.parametrize("around", ['"', '\\"', "'", "\n", "\\", "\t", "\u00e9", "<"])
def test_a_json_line_stays_json_whatever_is_around_an_address(file: Path, around: str) -> None:
    logger.configure(sys.stdout, file, readable=False)

    log.warning("before %sann@example.org%s after", around, around)

    message = json.loads(file.read_text())["message"]
    assert message.startswith("before")
    assert message.endswith("after")
    assert "[address]" in message
    assert "ann" not in message


def test_an_address_is_blotted_out_of_a_traceback_and_of_what_varies(file: Path, readable: bool) -> None:
    logger.configure(sys.stdout, file, readable=readable)

    log_failure("Duplicate entry 'ann@example.org' for key 'email'", who="ann@example.org")

    line = file.read_text()
    assert "ann@" not in line
    assert "example.org" not in line
    assert line.count("[address]") >= 2


def log_failure(reason: str, **extra: str) -> None:
    try:
        raise ValueError(reason)
    except ValueError:
        log.exception("it failed", extra=extra)


# What is never in the log


@pytest.fixture
def application(database_url: str, file: Path, tmp_path: Path, readable: bool) -> Iterator[Flask]:
    """The application on an empty database, with readable lines or as in production."""
    environment = {
        "DB_CONN_STR": database_url,
        "SECRET_PIN": PIN,
        "PUBLIC_URL": "https://reg.example.org",
        "TOKEN_KEYS": "a key of at least thirty-two characters",
        "MAILER": "outbox",
        "SES_SENDER": "notices@example.org",
        "OUTBOX_DIRECTORY": str(tmp_path / "outbox"),
        "LOG_FILE": str(file),
        "BROADCAST_WAIT_SECONDS": "0",
        "ALLOW_RESERVED_DOMAINS": "true",
        "REGISTRATIONS_PER_NETWORK": "0",
    }
    application = create_application(config.read(environment, development=readable))
    with application.app_context():
        empty()
    yield application
    dispose(application)


def drive(application: Flask, only: str | None = None) -> set[int]:
    """Send to every route, or to those whose path matches, by every method, addresses, pins and messages in every way.

    Returns the statuses of the answers.
    """
    fields = {"email": ADDRESS, "secretPin": PIN, "version": MARK * 20, "distribution": MARK, **NOTICE}
    wrong = {**fields, "email": f"{MARK} is no address", "title": f"{MARK}\n", "secretPin": f"{PIN}?"}
    notice = {"secretPin": PIN, **NOTICE}
    ways: list[dict[str, Any]] = [{"data": {"email": ADDRESS}}] * 2
    for values in (fields, wrong, notice, {**notice, "title": f"{MARK}\n"}, {**notice, "secretPin": f"{PIN}?"}):
        ways += [
            {"data": values},
            {"data": values, "content_type": "multipart/form-data"},
            {"json": values},
            {"json": [values]},
            {"data": str(values).encode(), "content_type": "application/json"},
            {"data": str(values).encode(), "content_type": "text/plain"},
            {"query_string": values},
            {"json": values, "headers": {"Authorization": f"Bearer {values['secretPin']}"}},
            {"json": values, "headers": {"Authorization": f"Basic {values['secretPin']}", "Referer": f"?{ADDRESS}"}},
        ]
    client = application.test_client()
    return {
        client.open(path, method=method, **way).status_code
        for rule in application.url_map.iter_rules()
        if only is None or re.fullmatch(only, rule.rule)
        for path in (path_of(rule), f"{path_of(rule)}/{ADDRESS}")
        for method in ("GET", "POST", "PUT")
        for way in ways
    }


def path_of(rule: Rule) -> str:
    return re.sub(r"<[^>]*>", "1", rule.rule)


def fail_with(statement: str, **values: object) -> Callable[..., None]:
    """Return a function that fails with an error of the database, in a statement with these values."""

    def fail(*_: object, **__: object) -> None:
        for number in range(2):
            db.session.execute(text(statement), values | {"id": bytes([number]) * 16})

    return fail


@contextmanager
def failing_core(monkeypatch: pytest.MonkeyPatch, failure: Callable[..., Any]) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(registrations.Registrar, "register", failure)
        patch.setattr(broadcasts, "start", failure)
        yield


def assert_silent(file: Path) -> None:
    """Assert that nobody was named in a log that has lines."""
    lines = file.read_text()
    assert "request" in lines
    assert [line for line in lines.splitlines() if MARK in line.lower()] == []


def test_an_address_a_pin_or_a_message_is_never_logged(application: Flask, file: Path) -> None:
    statuses = drive(application)
    with application.app_context():
        work(create_sender(application))

    assert statuses >= {200, 201, 202, 400, 401, 404, 405, 409, 415}
    assert_silent(file)


INSERT = (
    "INSERT INTO registration (product_id, email, email_key, status, created_at)"
    " VALUES (:id, :email, :email, 'active', '2026-11-23 12:00:00')"
)


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(fail_with(INSERT, email=ADDRESS), id="duplicate"),
        pytest.param(fail_with("SELECT :pin, :contents FROM nowhere", pin=PIN, **NOTICE), id="unknown table"),
    ],
)
def test_not_even_by_an_error_of_the_database(
    application: Flask, file: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[..., None]
) -> None:
    with failing_core(monkeypatch, failure):
        statuses = drive(application, "/api/registration(/broadcast)?")

    assert statuses & {500, 503}
    assert re.search("Traceback|the database is unavailable", file.read_text())
    assert_silent(file)
