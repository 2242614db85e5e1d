"""The public contract, over HTTP: register, count, broadcast."""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade
from sqlalchemy import select, update
from sqlalchemy.orm import undefer
from werkzeug.test import TestResponse

from registration.db import db
from registration.mailers import Outcome, Recipient, Verdict
from registration.messages import LONGEST_CONTENTS, LONGEST_TITLE, Message
from registration.models import Broadcast, BroadcastStatus, Installation, Registration, RegistrationStatus

from . import factories
from .conftest import HEADERS, PIN, empty
from .running import sending

REGISTRATION = "/api/registration"
UNIQUE = "/api/registration/unique"
BROADCAST = "/api/registration/broadcast"
NOTICE = {"title": "Update now", "contents": "There is a hole.\n"}
RACERS = 24
SURROGATE = chr(0xD800)
"""What JSON can hold and UTF-8 cannot."""

FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "form": lambda fields: {"data": fields},
    "multipart": lambda fields: {"data": fields, "content_type": "multipart/form-data"},
    "json": lambda fields: {"json": fields},
    "query": lambda fields: {"query_string": fields},
}
JSON = "application/json"


def unreadable(field: str, **others: str) -> list[Any]:
    """Return requests, as arguments of the test client, in which a field cannot be read."""
    rest, bad = urlencode(others), b"a\xff@example.org"
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    multipart = b"".join(part % (name.encode(), text.encode()) for name, text in others.items())
    bodies = {
        "truncated JSON": (json.dumps(others | {field: "a@example.org"})[:-1].encode(), JSON),
        "JSON array": (json.dumps([others | {field: "a@example.org"}]).encode(), JSON),
        "JSON text": (b'"a@example.org"', JSON),
        "JSON null": (b"null", JSON),
        "JSON not in UTF-8": (json.dumps(others | {field: "?"}).encode().replace(b"?", bad), JSON),
        "deep JSON": (b'{"a":' * 50_000, JSON),
        "form with raw bytes": (f"{rest}&{field}=".encode() + bad, "application/x-www-form-urlencoded"),
        "form with encoded bytes": (f"{rest}&{field}=a%FF@example.org".encode(), "application/x-www-form-urlencoded"),
        "multipart": (multipart + part % (field.encode(), bad) + b"--b--\r\n", "multipart/form-data; boundary=b"),
    }
    requests = {name: {"data": data, "content_type": kind} for name, (data, kind) in bodies.items()}
    for value in (5, True, None, ["a@example.org"], {"a": "b"}, "a\ud800@example.org"):
        requests[json.dumps(value)] = {"json": others | {field: value}}
    for name, text in {"raw": "a\xff@example.org", "encoded": "a%FF@example.org"}.items():
        requests[f"query with {name} bytes"] = {"environ_overrides": {"QUERY_STRING": f"{rest}&{field}={text}"}}
    return [pytest.param(arguments, id=f"{field}: {name}") for name, arguments in requests.items()]


def assert_problem(response: TestResponse, status: int, title: str) -> None:
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    assert response.json is not None
    assert response.json.keys() == {"type", "title", "status", "detail", "error"}
    assert (response.json["title"], response.json["status"]) == (title, status)
    assert response.json["type"].endswith(f"/{title}")
    assert response.json["detail"] == response.json["error"] != ""


def rows(application: Flask, model: type[Any]) -> Sequence[Any]:
    with application.app_context():
        return db.session.execute(select(model).options(undefer("*")).order_by(model.id)).scalars().all()


@pytest.fixture
def build(
    settings: dict[str, str], make_application: Callable[[str], Flask], database_url: str
) -> Callable[..., Flask]:
    """Build the application with other settings."""

    def build(**others: str) -> Flask:
        settings.update(others)
        application = make_application(database_url)
        with application.app_context():
            upgrade()
            empty()
        return application

    return build


def race(application: Flask, fields: dict[str, str]) -> list[TestResponse]:
    """Post the same fields many times at once."""
    barrier, responses = threading.Barrier(RACERS), []

    def post() -> None:
        client = application.test_client()
        barrier.wait()
        responses.append(client.post(REGISTRATION, data=fields))

    threads = [threading.Thread(target=post) for _ in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return responses


# Registering


@pytest.mark.parametrize("form", FORMS)
def test_an_address_is_registered_from_every_form_of_input(application: Flask, client: FlaskClient, form: str) -> None:
    response = client.post(REGISTRATION, **FORMS[form]({"email": "Ann@Example.org"}))

    assert response.status_code == 201
    assert response.content_type == "application/json"
    (stored,) = rows(application, Registration)
    assert response.json == {"productId": str(stored.product_id)}
    assert stored.email == "Ann@Example.org"
    assert stored.status is RegistrationStatus.ACTIVE


def test_every_address_gets_a_product_id_of_its_own(client: FlaskClient) -> None:
    ids = {
        uuid.UUID(client.post(REGISTRATION, data={"email": f"clinic-{number}@example.org"}).json["productId"])
        for number in range(3)
    }

    assert len(ids) == 3
    assert {one.version for one in ids} == {4}


@pytest.mark.parametrize("again", ["ann@example.org", "ANN@EXAMPLE.ORG", " Ann@Example.org\n"])
def test_a_known_address_is_answered_409_however_it_is_spelled(client: FlaskClient, again: str) -> None:
    client.post(REGISTRATION, data={"email": "Ann@Example.org"})

    assert_problem(client.post(REGISTRATION, data={"email": again}), 409, "AlreadyRegisteredException")
    assert client.get(UNIQUE).json == {"count": 1}


@pytest.mark.parametrize("email", ["", " ", "nobody", "a@b@example.org", "jos\u00e9@example.org", f"{'a' * 250}@b.org"])
def test_an_address_that_is_none_is_answered_400_and_not_stored(
    application: Flask, client: FlaskClient, email: str
) -> None:
    assert_problem(client.post(REGISTRATION, data={"email": email}), 400, "InvalidEmailException")
    assert not rows(application, Registration)


def test_a_request_without_an_address_is_answered_400(client: FlaskClient) -> None:
    assert_problem(client.post(REGISTRATION), 400, "InvalidEmailException")


@pytest.mark.parametrize("request_", unreadable("email"))
def test_a_registration_that_cannot_be_read_is_answered_400(
    application: Flask, client: FlaskClient, request_: dict[str, Any]
) -> None:
    assert_problem(client.post(REGISTRATION, **request_), 400, "InvalidEmailException")
    assert not rows(application, Registration)


def test_the_body_comes_before_the_query_string(application: Flask, client: FlaskClient) -> None:
    client.post(REGISTRATION, query_string={"email": "bob@example.org"}, data={"email": "ann@example.org"})

    assert [stored.email for stored in rows(application, Registration)] == ["ann@example.org"]


@pytest.mark.parametrize("spelling", ["ann@example.org", "ANN@example.org"])
@pytest.mark.parametrize("report", [{"version": "7.0.3 (1)"}, {"distribution": "docker"}, {"version": ""}])
def test_an_installation_that_reports_itself_is_answered_201_with_the_same_product_id(
    client: FlaskClient, report: dict[str, str], spelling: str
) -> None:
    first = client.post(REGISTRATION, data={"email": "ann@example.org"})

    again = client.post(REGISTRATION, data={"email": spelling, **report})

    assert (again.status_code, again.json) == (201, first.json)
    assert client.get(UNIQUE).json == {"count": 1}


@pytest.mark.parametrize("form", FORMS)
def test_an_installation_is_remembered_with_first_and_last_time_seen(
    application: Flask, client: FlaskClient, form: str
) -> None:
    report = {"email": "ann@example.org", "version": " 7.0.3 (1) ", "distribution": "docker"}
    client.post(REGISTRATION, **FORMS[form](report))
    (first,) = rows(application, Installation)
    assert (first.version, first.distribution) == ("7.0.3 (1)", "docker")
    assert first.first_seen_at == first.last_seen_at

    client.post(REGISTRATION, **FORMS[form](report))

    (again,) = rows(application, Installation)
    assert again.first_seen_at == first.first_seen_at < again.last_seen_at
    client.post(REGISTRATION, **FORMS[form](report | {"version": "7.0.4"}))
    assert [one.version for one in rows(application, Installation)] == ["7.0.3 (1)", "7.0.4"]


@pytest.mark.parametrize("name", ["version", "distribution"])
@pytest.mark.parametrize(
    "value", ["x" * 65, "7.0\n3", "7.0\x00", "7\u202e0", "7\ufffd0", SURROGATE, 7, 7.03, None, True, ["7.0.3"], {}]
)
def test_an_unusable_value_is_ignored_and_logged_and_never_costs_a_registration(
    application: Flask, client: FlaskClient, tmp_path: Path, name: str, value: object
) -> None:
    first = client.post(REGISTRATION, json={"email": "ann@example.org", name: value})
    again = client.post(REGISTRATION, json={"email": "ann@example.org", name: value})

    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json == again.json
    (seen,) = rows(application, Installation)
    assert (seen.version, seen.distribution) == ("", "")
    assert f"a field was ignored: too long or not printable  field={name}" in (tmp_path / "log").read_text()


def test_a_number_of_any_length_costs_no_registration(application: Flask, client: FlaskClient) -> None:
    body = f'{{"email": "ann@example.org", "version": {"7" * 5000}, "other": -{"1" * 5000}}}'

    assert client.post(REGISTRATION, data=body, content_type="application/json").status_code == 201
    (seen,) = rows(application, Installation)
    assert seen.version == ""


def test_the_longest_version_is_kept_whole(application: Flask, client: FlaskClient) -> None:
    longest = "\N{POLICE CARS REVOLVING LIGHT}" * 64
    client.post(REGISTRATION, data={"email": "ann@example.org", "version": longest, "distribution": longest})

    (seen,) = rows(application, Installation)
    assert (seen.version, seen.distribution) == (longest, longest)


@pytest.mark.parametrize(
    ("proxies", "forwarded_for", "stored"),
    [
        (0, "203.0.113.7", "10.0.0.9"),
        (1, "198.51.100.1, 203.0.113.7", "203.0.113.7"),
        (2, "198.51.100.1, 203.0.113.7, 10.1.1.1", "203.0.113.7"),
        (2, "203.0.113.7", "10.0.0.9"),
        (1, "2001:DB8:0:0::1", "2001:db8::1"),
        (1, f"fe80::1%{'z' * 80}", "fe80::1"),
        (1, "203.0.113.7:51234", "203.0.113.7"),
        (2, "203.0.113.7:51234, 10.1.1.1", "203.0.113.7"),
        (1, "[2001:db8::1]:443", "2001:db8::1"),
        (1, "[2001:db8::1]", "2001:db8::1"),
        (1, "[fe80::1%eth0]:443", "fe80::1"),
        (1, "203.0.113.7:", None),
        (1, "203.0.113.7:51234:1", None),
        (1, "[2001:db8::1", None),
        (1, "unknown", None),
        (1, "\xff", None),
    ],
)
def test_the_ip_address_is_what_the_trusted_proxies_say(
    build: Callable[..., Flask], proxies: int, forwarded_for: str, stored: str | None
) -> None:
    application = build(TRUSTED_PROXIES=str(proxies))

    response = application.test_client().post(
        REGISTRATION,
        data={"email": "ann@example.org"},
        headers={"X-Forwarded-For": forwarded_for},
        environ_overrides={"REMOTE_ADDR": "10.0.0.9"},
    )

    assert response.status_code == 201
    assert [one.ip_address for one in rows(application, Registration)] == [stored]


def test_of_many_simultaneous_registrations_of_one_address_exactly_one_succeeds(application: Flask) -> None:
    responses = race(application, {"email": "ann@example.org"})

    assert sorted(response.status_code for response in responses) == [201] + [409] * (RACERS - 1)
    (stored,) = rows(application, Registration)
    assert [response.json for response in responses if response.status_code == 201] == [
        {"productId": str(stored.product_id)}
    ]


def test_many_simultaneous_reports_of_one_installation_all_get_the_same_product_id(application: Flask) -> None:
    responses = race(application, {"email": "ann@example.org", "version": "7.0.3 (1)"})

    assert {response.status_code for response in responses} == {201}
    assert len(responses) == RACERS
    (stored,) = rows(application, Registration)
    assert {response.json["productId"] for response in responses} == {str(stored.product_id)}
    assert len(rows(application, Installation)) == 1


# Counting


def test_everybody_may_read_how_many_addresses_are_registered(application: Flask, client: FlaskClient) -> None:
    assert client.get(UNIQUE).json == {"count": 0}
    with application.app_context():
        factories.register(3)
        factories.register(1, status=RegistrationStatus.OPTED_OUT)

    response = client.get(UNIQUE)

    assert (response.status_code, response.json) == (200, {"count": 4})


# Broadcasting


@pytest.mark.parametrize("form", FORMS)
def test_a_broadcast_is_started_from_every_form_of_input(application: Flask, client: FlaskClient, form: str) -> None:
    response = client.post(BROADCAST, **FORMS[form]({"secretPin": PIN, **NOTICE}))

    assert response.status_code == 200
    (stored,) = rows(application, Broadcast)
    assert (stored.title, stored.contents) == (NOTICE["title"], NOTICE["contents"].replace("\r\n", "\n"))


@pytest.mark.parametrize(
    "pin",
    ["", PIN[:-1], f"{PIN}x", PIN.upper(), f"{PIN} x", "p\u00efn", "\u2603" * len(PIN), PIN * 1000],
)
@pytest.mark.parametrize("form", ["form", "json", "query"])
def test_a_wrong_pin_is_answered_401(application: Flask, client: FlaskClient, form: str, pin: str) -> None:
    response = client.post(BROADCAST, **FORMS[form]({"secretPin": pin, **NOTICE}))

    assert_problem(response, 401, "InvalidSecretPinException")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert not rows(application, Broadcast)


@pytest.mark.parametrize("pin", [5, True, None, [PIN], {"pin": PIN}, "\ud800"])
def test_a_pin_that_is_no_text_is_answered_401(application: Flask, client: FlaskClient, pin: object) -> None:
    response = client.post(BROADCAST, json={"secretPin": pin, **NOTICE})

    assert_problem(response, 401, "InvalidSecretPinException")
    assert "The field `secretPin` " in response.json["detail"]
    assert not rows(application, Broadcast)


@pytest.mark.parametrize("fields", [{}, {"title": "a\r\nBcc: b@example.org"}, {"title": "x" * 201, "contents": ""}])
def test_the_pin_is_checked_before_anything_else(client: FlaskClient, fields: dict[str, str]) -> None:
    assert_problem(client.post(BROADCAST, data={"secretPin": "wrong", **fields}), 401, "InvalidSecretPinException")
    assert_problem(client.post(BROADCAST, data=fields), 401, "InvalidSecretPinException")


def test_the_pin_may_be_a_bearer_token(client: FlaskClient) -> None:
    assert client.post(BROADCAST, data=NOTICE, headers=HEADERS).status_code == 200


@pytest.mark.parametrize(
    "request_", [*unreadable("title", contents=NOTICE["contents"]), *unreadable("contents", title=NOTICE["title"])]
)
def test_a_broadcast_that_cannot_be_read_is_answered_400(
    application: Flask, client: FlaskClient, request_: dict[str, Any]
) -> None:
    assert_problem(client.post(BROADCAST, headers=HEADERS, **request_), 400, "InvalidEmailMessageException")
    assert not rows(application, Broadcast)


@pytest.mark.parametrize("body", [b'{"secretPin": ', b'["secretPin"]'])
def test_malformed_json_is_answered_400_though_no_pin_can_be_read_from_it(client: FlaskClient, body: bytes) -> None:
    response = client.post(BROADCAST, data=body, content_type=JSON)

    assert_problem(response, 400, "InvalidEmailMessageException")


@pytest.mark.parametrize(
    ("title", "contents"),
    [
        ("x", "x"),
        ("x" * LONGEST_TITLE, "x" * LONGEST_CONTENTS),
        ("\N{POLICE CARS REVOLVING LIGHT}" * LONGEST_TITLE, "\u20ac\n" * (LONGEST_CONTENTS // 2)),
    ],
)
def test_a_title_and_contents_within_the_limits_are_stored_whole(
    application: Flask, client: FlaskClient, title: str, contents: str
) -> None:
    response = client.post(BROADCAST, json={"title": title, "contents": contents}, headers=HEADERS)

    assert response.status_code == 200
    (stored,) = rows(application, Broadcast)
    assert (stored.title, stored.contents) == (title, contents)


@pytest.mark.parametrize(
    "fields",
    [
        {"title": ""},
        {"title": "x" * (LONGEST_TITLE + 1)},
        *({"title": f"a{breaker}b"} for breaker in ("\r", "\n", "\r\n", "\x00", "\x1b", "\x7f", "\x85", "\u2028")),
        {"contents": ""},
        {"contents": "x" * (LONGEST_CONTENTS + 1)},
        {"contents": "a\x00b"},
    ],
)
def test_a_title_or_contents_outside_the_limits_are_answered_400(
    application: Flask, client: FlaskClient, fields: dict[str, str]
) -> None:
    response = client.post(BROADCAST, headers=HEADERS, data=NOTICE | fields)

    assert_problem(response, 400, "InvalidEmailMessageException")
    assert not rows(application, Broadcast)


@pytest.mark.parametrize("missing", NOTICE)
def test_a_broadcast_without_title_or_contents_is_answered_400(client: FlaskClient, missing: str) -> None:
    fields = {name: text for name, text in NOTICE.items() if name != missing}

    assert_problem(client.post(BROADCAST, data=fields, headers=HEADERS), 400, "InvalidEmailMessageException")


def test_a_broadcast_to_nobody_has_been_sent_at_once(client: FlaskClient) -> None:
    response = client.post(BROADCAST, data=NOTICE, headers=HEADERS)

    assert response.status_code == 200
    assert "Location" not in response.headers
    assert (response.json["status"], response.json["recipients"], response.json["remaining"]) == ("sent", 0, 0)
    assert response.json["finishedAt"] == response.json["createdAt"]


def test_without_a_wait_a_broadcast_is_answered_202_and_its_location_tells_the_same(
    application: Flask, client: FlaskClient
) -> None:
    with application.app_context():
        factories.register(3)
        factories.register(1, status=RegistrationStatus.BOUNCED)

    response = client.post(BROADCAST, data=NOTICE, headers=HEADERS)

    assert response.status_code == 202
    figures = response.json
    assert (figures["status"], figures["recipients"], figures["sent"], figures["remaining"]) == ("sending", 3, 0, 3)
    location = response.headers["Location"]
    assert location.endswith(f"{BROADCAST}/{figures['broadcastId']}")
    again = client.get(location, headers=HEADERS)
    assert again.status_code == 200
    steady = figures.keys() - {"expectedEnd", "secondsLeft"}  # which move with the clock while nothing is sent
    assert {name: again.json[name] for name in steady} == {name: figures[name] for name in steady}


def test_where_a_broadcast_stands_is_told_only_with_the_pin(application: Flask, client: FlaskClient) -> None:
    with application.app_context():
        location = f"{BROADCAST}/{factories.start_broadcast()}"

    assert client.get(location, headers=HEADERS).status_code == 200
    for request_ in ({}, {"headers": {"Authorization": "Bearer wrong"}}, {"query_string": {"secretPin": PIN}}):
        response = client.get(location, **request_)
        assert_problem(response, 401, "InvalidSecretPinException")
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_broadcast_that_ends_within_the_wait_is_answered_200_with_what_became_of_it(
    build: Callable[..., Flask], tmp_path: Path
) -> None:
    application = build(BROADCAST_WAIT_SECONDS="30")
    with application.app_context():
        emails = factories.register(60)
        factories.register(2, status=RegistrationStatus.OPTED_OUT)

    with sending(application):
        response = application.test_client().post(BROADCAST, data=NOTICE, headers=HEADERS)

    assert response.status_code == 200
    assert response.json["status"] == "sent"
    figures = {name: response.json[name] for name in ("recipients", "sent", "failed", "skipped", "cancelled")}
    assert figures == {"recipients": 60, "sent": 60, "failed": 0, "skipped": 0, "cancelled": 0}
    assert response.json["remaining"] == 0
    assert len(list((tmp_path / "outbox").glob("*.eml"))) == len(emails)


class OneAnswer:
    """A mailer with the same outcome for everybody."""

    def largest_batch(self, message: Message) -> int:
        return 50

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def send(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        return [self.outcome] * len(recipients)

    def sending_rate(self) -> float:
        return math.inf


def test_those_whom_the_mail_service_refuses_are_counted_as_failed(build: Callable[..., Flask]) -> None:
    application = build(BROADCAST_WAIT_SECONDS="30")
    with application.app_context():
        factories.register(2)

    with sending(application, OneAnswer(Outcome(Verdict.REFUSED, reason="No such mailbox."))):
        response = application.test_client().post(BROADCAST, data=NOTICE, headers=HEADERS)

    assert response.status_code == 200
    assert (response.json["recipients"], response.json["sent"], response.json["failed"]) == (2, 0, 2)


def test_a_broadcast_that_is_held_up_is_answered_202_with_the_reason_at_once(build: Callable[..., Flask]) -> None:
    application = build(BROADCAST_WAIT_SECONDS="50")
    with application.app_context():
        factories.register(2)

    begun = time.monotonic()
    with sending(application, OneAnswer(Outcome(Verdict.HELD, reason="The account rests."))):
        response = application.test_client().post(BROADCAST, data=NOTICE, headers=HEADERS)

    assert response.status_code == 202
    assert (response.json["status"], response.json["reason"]) == ("paused", "The account rests.")
    assert "Location" in response.headers
    assert time.monotonic() - begun < 30


def test_a_broadcast_that_goes_on_after_the_wait_is_answered_202(build: Callable[..., Flask]) -> None:
    application = build(BROADCAST_WAIT_SECONDS="0.3")
    with application.app_context():
        factories.register(1)

    begun = time.monotonic()
    response = application.test_client().post(BROADCAST, data=NOTICE, headers=HEADERS)

    assert (response.status_code, response.json["status"]) == (202, "sending")
    assert 0.3 <= time.monotonic() - begun < 10


def test_a_broadcast_that_waits_holds_no_connection_meanwhile(build: Callable[..., Flask]) -> None:
    application = build(BROADCAST_WAIT_SECONDS="10")
    with application.app_context():
        factories.register(1)
        pool = db.engine.pool
    client, released = application.test_client(), False
    waiting = threading.Thread(target=lambda: client.post(BROADCAST, data=NOTICE, headers=HEADERS))

    waiting.start()
    while not rows(application, Broadcast):
        time.sleep(0.02)
    time.sleep(0.1)
    give_up = time.monotonic() + 5  # well before the wait ends, after which it is released in any case
    while time.monotonic() < give_up and not released:
        released = pool.checkedout() == 0
        time.sleep(0.001)

    assert released
    with application.app_context():
        db.session.execute(update(Broadcast).values(status=BroadcastStatus.SENT))
        db.session.commit()
    waiting.join()


@pytest.mark.parametrize("broadcast_id", [0, 7_000_000, 2**63 - 1])
def test_an_unknown_broadcast_is_answered_404(client: FlaskClient, broadcast_id: int) -> None:
    response = client.get(f"{BROADCAST}/{broadcast_id}", headers=HEADERS)

    assert_problem(response, 404, "UnknownBroadcastException")


@pytest.mark.parametrize("broadcast_id", [str(2**63), "9" * 30, "9" * 5000, "-1", "1.5", "\u00b2", "x"])
def test_what_cannot_be_a_broadcast_is_answered_404(client: FlaskClient, broadcast_id: str) -> None:
    response = client.get(f"{BROADCAST}/{broadcast_id}", headers=HEADERS)

    assert response.status_code == 404
    assert response.content_type == "application/problem+json"
