"""How many registrations are taken in a minute, and from where."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import redis
from flask import Flask
from limits.storage import Storage

from registration import limits
from registration.errors import TooManyRegistrationsException
from registration.limits import Limits

from . import redis_server
from .mariadb import free_port

REGISTRATION = "/api/registration"


def admitted(counter: Limits, number: int, ip_address: str | None = "192.0.2.1") -> int:
    """Try a number of registrations and return how many were taken."""
    taken = 0
    for _ in range(number):
        try:
            counter.admit(ip_address)
        except TooManyRegistrationsException:
            continue
        taken += 1
    return taken


def test_a_network_has_its_own_limit() -> None:
    counter = Limits(per_network=10, altogether=0)

    assert admitted(counter, 1000) == 10
    assert admitted(counter, 1000, "198.51.100.1") == 10
    assert admitted(counter, 1000, "198.51.100.254") == 0
    assert admitted(counter, 1000, "2001:db8:0:1200::1") == 10
    assert admitted(counter, 1000, "2001:db8:0:12ff::1") == 0
    assert admitted(counter, 1000, "2001:db8:0:1300::1") == 10


def test_who_is_refused_does_not_use_up_what_is_left_for_others() -> None:
    counter = Limits(per_network=10, altogether=15)

    assert admitted(counter, 1000) == 10
    assert admitted(counter, 1000, "198.51.100.1") == 5
    assert admitted(counter, 1, "203.0.113.1") == 0


def test_a_limit_of_zero_is_none() -> None:
    assert admitted(Limits(per_network=0, altogether=0), 200) == 200


def test_a_limit_of_one_takes_one_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(limits.time, "time", lambda: now)
    counter = Limits(per_network=0, altogether=1)

    taken = []
    for _ in range(3):
        taken.append(admitted(counter, 3))
        now += 60

    assert taken == [1, 1, 1]


def test_networks_are_not_remembered_when_nothing_is_left_for_anybody() -> None:
    counter = Limits(per_network=10, altogether=5)
    for number in range(100):
        admitted(counter, 1, f"10.0.{number}.1")

    assert len(counter._own.storage.counts) == 6


def test_a_count_ends_a_minute_after_its_beginning_as_who_is_refused_is_told_and_is_then_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(limits.time, "time", lambda: now)
    counter = Limits(per_network=10, altogether=0)
    assert admitted(counter, 20) == 10

    now += 20
    with pytest.raises(TooManyRegistrationsException) as caught:
        counter.admit("192.0.2.1")
    assert caught.value.retry_after == timedelta(seconds=40)

    now += 40
    assert admitted(counter, 20, "198.51.100.1") == 10

    assert len(counter._own.storage.counts) == 1
    assert admitted(counter, 20) == 10


def test_processes_that_share_a_storage_count_together(redis_url: str) -> None:
    one, other = (Limits(per_network=10, altogether=0, storage=redis_url) for _ in range(2))

    assert admitted(one, 6) + admitted(other, 6) == 10
    with pytest.raises(TooManyRegistrationsException) as caught:
        other.admit("192.0.2.1")
    assert 1 <= caught.value.retry_after.total_seconds() <= 60


def test_a_storage_that_is_away_refuses_nobody_and_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def connect(url: str) -> Storage:
        storage = original(url)
        incr = storage.incr

        def count(*arguments: object, **named: object) -> int:
            nonlocal asked
            asked += 1
            return incr(*arguments, **named)

        storage.incr = count
        return storage

    original = limits._connect
    monkeypatch.setattr(limits, "_connect", connect)
    counter = Limits(per_network=10, altogether=0, storage=f"redis://127.0.0.1:{free_port()}/0")

    assert admitted(counter, 20) == 10
    assert asked == 1


def test_a_storage_that_has_become_a_replica_is_left_for_the_one_that_its_name_leads_to_by_then(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redis_url  # there is Redis; this one has no clients but these
    with redis_server.running() as url, redis.Redis.from_url(url) as administrator:
        counter = Limits(per_network=10, altogether=0, storage=url)
        before = administrator.info("clients")["connected_clients"]
        assert admitted(counter, 1, "198.51.100.7") == 1
        administrator.replicaof("127.0.0.1", str(free_port()))
        assert administrator.info("clients")["connected_clients"] == before + 1

        assert admitted(counter, 1, "198.51.100.7") == 1

        assert administrator.info("clients")["connected_clients"] == before
        administrator.replicaof("NO", "ONE")
        monkeypatch.setattr(limits, "AWAY_SECONDS", 0.0)
        assert admitted(counter, 20, "198.51.100.7") == 10 - 1


def test_ten_clinics_in_a_minute_are_fine_and_a_script_with_a_thousand_is_not(
    settings: dict[str, str], database_url: str, application_with: Callable[[], Flask]
) -> None:
    del settings["REGISTRATIONS_PER_NETWORK"], settings["REGISTRATIONS_PER_MINUTE"]
    client = application_with().test_client()

    answers = [client.post(REGISTRATION, data={"email": f"clinic-{n}@example.org"}) for n in range(100)]

    assert {answer.status_code for answer in answers[:30]} == {201}
    assert {answer.status_code for answer in answers[30:]} == {429}
    last = answers[-1]
    assert last.content_type == "application/problem+json"
    assert last.json is not None
    assert last.json["title"] == "TooManyRegistrationsException"
    assert 1 <= int(last.headers["Retry-After"]) <= 60


@pytest.fixture
def application_with(request: pytest.FixtureRequest) -> Callable[[], Flask]:
    """Build the application after the test has changed its settings."""
    return lambda: request.getfixturevalue("application")
