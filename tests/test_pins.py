"""Wrong pins: how many are allowed, from where, and for how long."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, func, select
from sqlalchemy.orm import sessionmaker
from werkzeug.test import TestResponse

from registration import pins
from registration.db import AUTOCOMMIT, db
from registration.errors import InvalidSecretPinException, TooManyAttemptsException
from registration.models import WrongPin

from .conftest import PIN

pytestmark = pytest.mark.usefixtures("in_context")

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HERE, ELSEWHERE = "192.0.2.1", "198.51.100.7"
RIGHT, WRONG = PIN.encode(), b"wrong"


def admit(pin: bytes, ip_address: str | None = HERE, now: datetime = NOW) -> str:
    """Try a pin; return "in", "wrong" or "wait"."""
    with db.engines[AUTOCOMMIT].connect() as connection:
        try:
            pins.admit(connection, pin, RIGHT, ip_address=ip_address, now=now)
        except InvalidSecretPinException:
            return "wrong"
        except TooManyAttemptsException:
            return "wait"
    return "in"


def wait(pin: bytes, ip_address: str | None = HERE, now: datetime = NOW) -> timedelta:
    with db.engines[AUTOCOMMIT].connect() as connection, pytest.raises(TooManyAttemptsException) as caught:
        pins.admit(connection, pin, RIGHT, ip_address=ip_address, now=now)
    return caught.value.retry_after


def remembered() -> int:
    with db.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(WrongPin)).scalar_one()


def crowd(number: int, now: datetime = NOW) -> None:
    """Give wrong pins, each from another address."""
    for host in range(number):
        admit(WRONG, f"203.0.113.{host}", now)


def test_the_right_pin_lets_in_with_one_query_and_leaves_nothing_behind() -> None:
    statements: list[str] = []
    event.listen(db.engines[AUTOCOMMIT], "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

    assert admit(RIGHT) == "in"

    assert len([statement for statement in statements if statement != "SELECT 1"]) == 1
    assert remembered() == 0


def test_after_ten_wrong_pins_not_even_the_right_one_is_heard() -> None:
    assert [admit(WRONG) for _ in range(12)] == ["wrong"] * 10 + ["wait"] * 2
    assert admit(RIGHT) == "wait"


def test_what_is_not_heard_does_not_make_the_wait_longer() -> None:
    for minute in range(10):
        admit(WRONG, now=NOW + timedelta(minutes=minute))
    for _ in range(5):
        assert wait(WRONG, now=NOW + timedelta(minutes=10)) == timedelta(minutes=5)

    assert remembered() == 10
    assert admit(RIGHT, now=NOW + timedelta(minutes=15)) == "in"


def test_the_right_pin_from_elsewhere_still_lets_in() -> None:
    for _ in range(12):
        admit(WRONG)

    assert admit(RIGHT, ELSEWHERE) == "in"
    assert admit(RIGHT) == "wait"


def test_a_few_wrong_pins_do_not_shut_out_the_right_one() -> None:
    for _ in range(9):
        admit(WRONG)

    assert admit(RIGHT) == "in"


def test_after_a_hundred_wrong_pins_altogether_everybody_waits_who_gave_one() -> None:
    crowd(100)

    assert admit(RIGHT, "203.0.113.5") == "wait"
    assert admit(RIGHT, ELSEWHERE) == "in"


def test_after_a_hundred_wrong_pins_altogether_each_other_address_has_one_try() -> None:
    crowd(100)

    assert admit(WRONG, ELSEWHERE) == "wait"
    assert admit(RIGHT, ELSEWHERE) == "wait"
    assert remembered() == 101


def test_the_hundredth_wrong_pin_altogether_is_still_heard() -> None:
    crowd(99)

    assert admit(WRONG, ELSEWHERE) == "wrong"


def test_the_wait_ends_when_there_are_fewer_than_a_hundred_or_the_own_ones_are_forgotten() -> None:
    admit(WRONG, HERE)
    crowd(100, NOW + timedelta(minutes=5))
    now = NOW + timedelta(minutes=6)

    assert wait(RIGHT, HERE, now) == timedelta(minutes=9)
    assert wait(RIGHT, "203.0.113.0", now) == timedelta(minutes=14)


@pytest.mark.parametrize(
    ("address", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", True),
        ("2001:db8:1::1", "2001:db8:2::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        (None, None, True),
        (None, "192.0.2.1", False),
    ],
)
def test_who_shares_a_network_shares_the_limit(address: str | None, other: str | None, same: bool) -> None:
    for _ in range(10):
        admit(WRONG, address)

    assert admit(RIGHT, other) == ("wait" if same else "in")


def test_simultaneous_wrong_pins_get_hardly_more_answers_than_others(application: Flask) -> None:
    barrier = Barrier(8)

    def try_three(_: int) -> list[str]:
        barrier.wait()
        with application.app_context():
            return [admit(WRONG) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        answers = Counter(answer for three in pool.map(try_three, range(8)) for answer in three)

    assert answers["wrong"] + answers["wait"] == 24
    assert 10 <= answers["wrong"] <= 13
    assert admit(RIGHT) == "wait"


def test_wrong_pins_are_forgotten_after_a_quarter_of_an_hour() -> None:
    admit(WRONG)
    admit(WRONG, now=NOW + timedelta(minutes=5))

    with sessionmaker(db.engine).begin() as session:
        pins.forget(session, NOW + pins.WINDOW)

    assert remembered() == 1


# Over HTTP

BROADCASTS = "/api/registration/broadcast"


def ask(client: FlaskClient, pin: str, ip_address: str = HERE, method: str = "GET") -> int:
    return open_(client, pin, ip_address, method).status_code


def open_(client: FlaskClient, pin: str, ip_address: str = HERE, method: str = "GET") -> TestResponse:
    headers = {"Authorization": f"Bearer {pin}"}
    environment = {"REMOTE_ADDR": ip_address}
    return client.open(BROADCASTS, method=method, headers=headers, environ_overrides=environment)


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_too_many_wrong_pins_are_answered_429_whatever_they_were_for(client: FlaskClient, method: str) -> None:
    assert [ask(client, "wrong", method=method) for _ in range(11)] == [401] * 10 + [429]
    assert ask(client, PIN) == 429
    assert ask(client, PIN, ELSEWHERE) == 200


def test_the_answer_says_how_long_to_wait(client: FlaskClient) -> None:
    for _ in range(10):
        ask(client, "wrong")

    response = client.get(
        BROADCASTS, headers={"Authorization": "Bearer wrong"}, environ_overrides={"REMOTE_ADDR": HERE}
    )

    assert (response.status_code, response.json["title"]) == (429, "TooManyAttemptsException")
    assert response.content_type == "application/problem+json"
    assert 890 <= int(response.headers["Retry-After"]) <= 900


def test_wrong_pins_in_the_fields_of_a_post_are_counted_as_well(client: FlaskClient) -> None:
    answers = [client.post(BROADCASTS, data={"secretPin": "wrong"}).status_code for _ in range(11)]

    assert answers == [401] * 10 + [429]


def test_an_address_that_cannot_be_read_is_counted_too(client: FlaskClient) -> None:
    assert [ask(client, "wrong", "unknown") for _ in range(11)] == [401] * 10 + [429]
    assert ask(client, PIN, HERE) == 200


def test_a_pin_is_compared_in_a_time_that_tells_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: bytes, expected: bytes) -> bool:
        compared.append((given, expected))
        return given == expected

    monkeypatch.setattr(pins.hmac, "compare_digest", compare)

    assert [admit(WRONG), admit(RIGHT)] == ["wrong", "in"]
    assert compared == [(WRONG, RIGHT), (RIGHT, RIGHT)]
