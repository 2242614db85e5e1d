"""What a caller sees when something goes wrong."""

from __future__ import annotations

import io
import json
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask, Response, abort
from flask.testing import FlaskClient
from flask_migrate import upgrade
from sqlalchemy import create_engine, text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.test import TestResponse

from config import WEB_CONNECTIONS
from registration import LARGEST_BODY, broadcasts, errors, outage, services
from registration.db import AUTOCOMMIT, CONNECT_SECONDS, QUICK_SECONDS, db
from registration.errors import RepeatedBroadcastException
from registration.outage import AWAY_SECONDS, REFUSED_SECONDS
from registration.web.errors import STATUS

from . import factories, mariadb
from .conftest import HEADERS, PIN, empty

REGISTRATION = "/api/registration"
UNIQUE = "/api/registration/unique"
BROADCAST = "/api/registration/broadcast"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="email"%b\r\n\r\n%b\r\n--b--\r\n'
A_FEW_SECONDS = 10


@pytest.fixture
def offline(make_application: Callable[[str], Flask], sqlite_url: str) -> Flask:
    """An application whose database does not matter."""
    return make_application(sqlite_url)


@pytest.fixture
def own_server(mariadb_server: mariadb.Server) -> Iterator[mariadb.Server]:
    """A MariaDB server that a test may stop, where there is one at all."""
    with mariadb.running() as server:
        yield server


@pytest.fixture
def on_own_server(own_server: mariadb.Server, make_application: Callable[[str], Flask]) -> Flask:
    """An application whose database server a test may stop."""
    application = make_application(own_server.create_database("registration"))
    with application.app_context():
        upgrade()
    return application


def assert_problem(response: TestResponse, status: int, title: str) -> None:
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    body = response.json
    assert body is not None
    assert list(body) == ["type", "title", "status", "detail", "error"]
    assert (body["type"], body["title"], body["status"]) == ("about:blank", title, status)
    assert body["detail"] == body["error"] != ""


def assert_unavailable(response: TestResponse) -> None:
    assert_problem(response, 503, "Service Unavailable")
    assert int(response.headers["Retry-After"]) > 0


def assert_unavailable_page(response: TestResponse) -> None:
    assert (response.status_code, response.mimetype) == (503, "text/html")
    assert "Please try again in a few minutes" in response.text
    assert int(response.headers["Retry-After"]) > 0


def test_every_error_of_ours_has_a_status() -> None:
    told_otherwise = {RepeatedBroadcastException}  # the answer is the broadcast that was repeated
    assert set(errors.RegistrationError.__subclasses__()) - told_otherwise == STATUS.keys()


@pytest.mark.parametrize("error", sorted(STATUS, key=str))
def test_an_error_of_ours_says_a_sentence(error: type[errors.RegistrationError]) -> None:
    assert str(error()) == error.__doc__
    assert str(error("Something else.")) == "Something else."


@pytest.mark.parametrize("error", sorted(STATUS, key=str))
def test_an_error_of_ours_is_answered_with_its_name_and_its_sentence(
    offline: Flask, error: type[errors.RegistrationError]
) -> None:
    @offline.get("/fails")
    def fails() -> None:
        raise error("This is why.")

    response = offline.test_client().get("/fails")

    assert response.status_code == STATUS[error]
    assert response.content_type == "application/problem+json"
    assert response.json == {
        "type": f"tag:open-emr.org,2026:product-registration/{error.__name__}",
        "title": error.__name__,
        "status": STATUS[error],
        "detail": "This is why.",
        "error": "This is why.",
    }
    assert ("WWW-Authenticate" in response.headers) == (response.status_code == 401)


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/api", "/api/registration/", "/api/registration/nothing", "/api/%ff"]
)
def test_an_unknown_path_is_answered_404(offline: Flask, path: str) -> None:
    assert_problem(offline.test_client().get(path), 404, "Not Found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", REGISTRATION, {"POST", "OPTIONS"}),
        ("PUT", REGISTRATION, {"POST", "OPTIONS"}),
        ("PUT", BROADCAST, {"GET", "HEAD", "POST", "OPTIONS"}),
        ("GET", f"{BROADCAST}/1/pause", {"POST", "OPTIONS"}),
        ("POST", UNIQUE, {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", f"{BROADCAST}/1", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_method_that_a_path_does_not_take_is_answered_405_with_those_it_takes(
    offline: Flask, method: str, path: str, allowed: set[str]
) -> None:
    response = offline.test_client().open(path, method=method)

    assert_problem(response, 405, "Method Not Allowed")
    assert {name.strip() for name in response.headers["Allow"].split(",")} == allowed
    known = " or ".join(sorted(allowed - {"HEAD", "OPTIONS"}))
    assert response.json["error"] == f"This address does not take this method. It takes {known}."


@pytest.mark.parametrize("path", [REGISTRATION, BROADCAST])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"email=" + b"x" * LARGEST_BODY, FORM),
        (b'{"email": "' + b"x" * LARGEST_BODY + b'"}', "application/json"),
        (PART % (b"", b"x" * LARGEST_BODY), MULTIPART),
        (PART % (b'; filename="x"', b"x" * LARGEST_BODY), MULTIPART),
        (b"x" * (LARGEST_BODY + 1), "text/plain"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_512_kib_is_answered_413(
    offline: Flask, path: str, body: bytes, content_type: str, chunked: bool
) -> None:
    arguments: dict[str, Any] = {"data": body}
    if chunked:
        arguments = {"input_stream": io.BytesIO(body), "environ_overrides": {"wsgi.input_terminated": True}}

    response = offline.test_client().post(path, content_type=content_type, **arguments)

    assert_problem(response, 413, "Request Entity Too Large")
    assert f"{LARGEST_BODY // 1024} KiB" in response.json["detail"]


@pytest.mark.parametrize(
    ("begin", "end", "content_type"),
    [
        (b"email=", b"", FORM),
        (b'{"email": "', b'"}', "application/json"),
        (*(PART % (b"", b"|")).split(b"|"), MULTIPART),
    ],
)
def test_a_body_of_512_kib_is_read(offline: Flask, begin: bytes, end: bytes, content_type: str) -> None:
    body = begin + b"x" * (LARGEST_BODY - len(begin + end)) + end

    response = offline.test_client().post(REGISTRATION, data=body, content_type=content_type)

    assert (response.status_code, response.json["title"]) == (400, "InvalidEmailException")


def test_the_longest_contents_in_another_script_fit_as_multipart_and_as_json_in_utf_8(client: FlaskClient) -> None:
    notice = {"secretPin": PIN, "title": "Update now", "contents": "\u4f8b" * 100_000}
    in_utf_8 = json.dumps(notice, ensure_ascii=False).encode()

    assert client.post(BROADCAST, data=notice).status_code == 413
    assert client.post(BROADCAST, data=notice, content_type="multipart/form-data").status_code == 200
    assert client.post(BROADCAST, data=in_utf_8, content_type="application/json").status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", ""])
@pytest.mark.parametrize("path", [REGISTRATION, BROADCAST])
def test_a_body_of_another_type_is_answered_415(offline: Flask, path: str, content_type: str) -> None:
    response = offline.test_client().post(path, data=b"email=ann@example.org", content_type=content_type)

    assert (response.status_code, response.json["title"]) == (415, "UnsupportedInputException")
    assert response.content_type == "application/problem+json"


def test_too_many_requests_are_answered_429_with_the_headers_of_the_error(offline: Flask) -> None:
    @offline.get("/limited")
    def limited() -> None:
        abort(429, retry_after=7)

    response = offline.test_client().get("/limited")

    assert_problem(response, 429, "Too Many Requests")
    assert response.headers["Retry-After"] == "7"


def test_an_unexpected_error_is_answered_500_without_what_is_inside(offline: Flask, tmp_path: Path) -> None:
    @offline.get("/fails/<name>")
    def fails(name: str) -> None:
        raise RuntimeError("SELECT secret FROM botocore")

    response = offline.test_client().get("/fails/ann")

    assert_problem(response, 500, "Internal Server Error")
    for inside in ("RuntimeError", "SELECT", "botocore", "Traceback", "fails", ".py"):
        assert inside not in response.text
    log = (tmp_path / "log").read_text()
    assert "a request failed" in log
    assert "RuntimeError: SELECT secret FROM botocore" in log
    assert "/fails/ann" not in log


@pytest.mark.parametrize(
    "statement", ["SELECT 1 FROM no_such_table", "SELECT 1 +", "INSERT INTO pace (id, free_at) VALUES (1, 0)"]
)
def test_an_error_of_the_database_is_answered_without_sql(application: Flask, statement: str) -> None:
    @application.get("/fails")
    def fails() -> None:
        db.session.execute(text(statement))

    response = application.test_client().get("/fails")

    assert response.status_code in (500, 503)
    for inside in ("SELECT", "INSERT", "no_such_table", "pace", "sql", "Error:"):
        assert inside not in response.text


def test_a_statement_that_is_to_blame_is_no_outage(
    make_application: Callable[[str], Flask], mariadb_url: str, tmp_path: Path
) -> None:
    """PyMySQL raises the same as of a server that is away, and there the log has no traceback."""
    application = make_application(mariadb_url)

    @application.get("/fails")
    def fails() -> None:
        db.session.execute(text("SELECT no_such_column FROM broadcast"))

    assert_problem(application.test_client().get("/fails"), 500, "Internal Server Error")
    assert "no_such_column" in (tmp_path / "log").read_text()


def test_an_exhausted_connection_pool_is_answered_503_in_a_few_seconds(application: Flask, client: FlaskClient) -> None:
    with ExitStack() as stack, application.app_context():
        for _ in range(WEB_CONNECTIONS):
            stack.enter_context(db.engines[AUTOCOMMIT].connect())
        begun = time.monotonic()
        assert_unavailable(client.get("/ready"))
        assert time.monotonic() - begun < A_FEW_SECONDS

    assert client.get(UNIQUE).status_code == 200


@pytest.mark.parametrize("email", ["bob@example.org", "bob+openemr@example.org"])
def test_dead_connections_are_replaced_without_an_error_to_the_caller(
    make_application: Callable[[str], Flask], mariadb_url: str, email: str
) -> None:
    application = make_application(mariadb_url)
    with application.app_context():
        empty()
    client = application.test_client()
    assert client.post(REGISTRATION, data={"email": "ann@example.org"}).status_code == 201
    assert client.get(UNIQUE).json == {"count": 1}

    assert kill_connections(mariadb_url) == 3

    assert client.post(REGISTRATION, data={"email": email}).status_code == 201
    assert client.get(UNIQUE).json == {"count": 2}


def kill_connections(url: str) -> int:
    """Kill all connections to a database, on the server; return how many there were."""
    others = text("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
    engine = create_engine(url)
    with engine.connect() as connection:
        ids = connection.execute(others).scalars().all()
        for number in ids:
            connection.execute(text(f"KILL {number:d}"))
    engine.dispose()
    return len(ids)


def test_while_the_database_is_down_everything_is_answered_503_and_then_goes_on_by_itself(
    own_server: mariadb.Server, on_own_server: Flask
) -> None:
    with on_own_server.app_context():
        factories.register(1)
        broadcast_id = factories.start_broadcast()
    client = on_own_server.test_client()
    requests: list[dict[str, Any]] = [
        {"method": "POST", "path": REGISTRATION, "data": {"email": "ann@example.org"}},
        {"method": "POST", "path": REGISTRATION, "data": {"email": "ann@example.org", "version": "7.0.3"}},
        {"method": "GET", "path": UNIQUE},
        {"method": "POST", "path": BROADCAST, "data": {"title": "a", "contents": "b"}, "headers": HEADERS},
        {"method": "GET", "path": f"{BROADCAST}/{broadcast_id}", "headers": HEADERS},
        {"method": "GET", "path": "/ready"},
    ]

    own_server.stop()
    for request in requests:
        begun = time.monotonic()
        response = client.open(**request)
        assert time.monotonic() - begun < A_FEW_SECONDS
        assert_unavailable(response)
        assert "127.0.0.1" not in json.dumps(response.json)
    own_server.start()
    time.sleep(REFUSED_SECONDS)

    assert [client.open(**request).status_code for request in requests] == [201, 201, 200, 202, 200, 200]
    assert client.get(UNIQUE).json == {"count": 2}


@pytest.mark.parametrize(
    "error",
    [OperationalError("", {}, Exception("gone")), InterfaceError("", {}, Exception("gone")), PoolTimeoutError()],
    ids=lambda error: type(error).__name__,
)
def test_a_broadcast_that_has_started_is_never_answered_with_an_error(
    client: FlaskClient, application: Flask, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with application.app_context():
        factories.register(2)

    def go_away(*_: object) -> None:
        raise error

    monkeypatch.setattr(broadcasts, "status_of", go_away)
    response = client.post(BROADCAST, data={"secretPin": PIN, "title": "a", "contents": "b"})

    assert response.status_code == 202
    assert (response.json["status"], response.json["recipients"]) == ("sending", 2)
    assert response.headers["Location"].endswith(f"/{response.json['broadcastId']}")


@pytest.mark.parametrize(("method", "path"), [("GET", "/ready"), ("POST", REGISTRATION)])
def test_a_database_that_listens_and_does_not_speak_is_answered_in_seconds(
    make_application: Callable[[str], Flask], method: str, path: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = make_application(f"mysql+pymysql://root@127.0.0.1:{silent.getsockname()[1]}/none").test_client()
        begun = time.monotonic()
        response = client.open(path, method=method, data={"email": "ann@example.org"}, headers=HEADERS)
        assert time.monotonic() - begun < A_FEW_SECONDS
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()

    assert_unavailable(response)


def test_a_database_that_refused_one_pool_is_left_in_peace_by_the_others(
    make_application: Callable[[str], Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    application = make_application(f"mysql+pymysql://root@127.0.0.1:{mariadb.free_port()}/none")
    asked = []

    def refuse(address: object, *_: object, **__: object) -> None:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(outage, "REFUSED_SECONDS", 60.0)
    with application.app_context():
        for engine in db.engines.values():
            with pytest.raises(OperationalError):
                engine.connect()
        assert len(asked) == 1
        for _ in range(2):
            with pytest.raises(OperationalError):
                services.current().sender_engine().connect()
    assert len(asked) == 2


def test_a_connection_that_is_lost_once_the_answer_is_made_costs_no_answer(
    own_server: mariadb.Server, on_own_server: Flask
) -> None:
    lost = []

    @on_own_server.after_request
    def lose(response: Response) -> Response:
        if db.session.registry.has():
            number = db.session.execute(text("SELECT CONNECTION_ID()")).scalar_one()
            with own_server.connect() as connection, connection.cursor() as cursor:
                cursor.execute(f"KILL {number}")
            lost.append(number)
        return response

    client = on_own_server.test_client()

    answers = [client.get(BROADCAST, headers=HEADERS) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len(set(lost)) == 3


def test_a_database_that_is_away_is_logged_in_a_line_with_its_code(
    make_application: Callable[[str], Flask], tmp_path: Path
) -> None:
    client = make_application(f"mysql+pymysql://root@127.0.0.1:{mariadb.free_port()}/none").test_client()

    assert_unavailable(client.get(UNIQUE))

    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if "unavailable" in line]
    assert line.endswith("the database is unavailable  error=OperationalError code=2003")
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.fixture
def opt_out_page(on_own_server: Flask) -> str:
    """Return the path of a page of somebody who is registered."""
    registered = on_own_server.test_client().post(REGISTRATION, data={"email": "ann@example.org"})
    with on_own_server.app_context():
        link = services.of(on_own_server).tokens.opt_out_url(uuid.UUID(registered.json["productId"]))
    return urlsplit(link).path


def test_a_database_that_hangs_is_answered_in_seconds_however_many_ask(
    own_server: mariadb.Server, on_own_server: Flask, opt_out_page: str
) -> None:
    client = on_own_server.test_client()
    for path in (UNIQUE, opt_out_page, BROADCAST):  # the last one leaves a connection that may be waited for longer
        assert client.get(path, headers=HEADERS).status_code == 200
    assert own_server.process is not None

    own_server.process.send_signal(signal.SIGSTOP)
    try:
        calls = ("GET", opt_out_page), ("POST", REGISTRATION), ("GET", "/ready"), ("GET", UNIQUE)
        assert_unavailable(client.get(UNIQUE))
        begun = time.monotonic()
        assert_unavailable(client.get(UNIQUE))
        assert time.monotonic() - begun < CONNECT_SECONDS
        for method, path in calls * 2:
            begun = time.monotonic()
            refuses = assert_unavailable_page if path == opt_out_page else assert_unavailable
            refuses(client.open(path, method=method, data={"email": "bob@example.org"}))
            assert time.monotonic() - begun < QUICK_SECONDS + 2
    finally:
        own_server.process.send_signal(signal.SIGCONT)

    time.sleep(AWAY_SECONDS)
    for path in (UNIQUE, opt_out_page):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_that_is_held_up_in_the_middle_of_a_statement_is_answered_in_seconds(
    own_server: mariadb.Server, on_own_server: Flask, opt_out_page: str, method: str
) -> None:
    client = on_own_server.test_client()
    assert client.get(opt_out_page).status_code == 200

    with own_server.connect("registration") as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLES registration WRITE")
        begun = time.monotonic()
        assert_unavailable_page(client.open(opt_out_page, method=method))
        assert time.monotonic() - begun < QUICK_SECONDS + 2

    time.sleep(AWAY_SECONDS)
    assert client.open(opt_out_page, method=method).status_code == 200
