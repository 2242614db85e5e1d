"""Taking events from Amazon SQS, which moto plays: once their effect is committed, and whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pymysql
import pytest
from flask import Flask
from moto.server import ThreadedMotoServer
from pymysql.constants.ER import TRUNCATED_WRONG_VALUE
from sqlalchemy import Connection, func, select
from sqlalchemy.event import listens_for
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from registration import (
    ROOT,
    broadcasts,
    circuit_breaker,
    create_event_queue,
    event_queue,
    events,
    feedback,
    ledger,
    services,
)
from registration.db import db
from registration.event_queue import EventQueue
from registration.models import (
    Broadcast,
    BroadcastStatus,
    Delivery,
    Feedback,
    FeedbackEvent,
    Registration,
    RegistrationStatus,
)

from . import ledgers, mariadb, ses_events
from .ledgers import commit
from .waiting import until

VISIBLE_AGAIN = 2
"""Seconds after which an event that was taken and not deleted comes again."""


@pytest.fixture(scope="module")
def sqs() -> Iterator[Any]:
    """A client of Amazon SQS, played by moto."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield boto3.client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    server.stop()


@pytest.fixture
def queue_url(sqs: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", sqs.meta.endpoint_url)
    name = f"feedback-{uuid.uuid4().hex}"
    return sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": str(VISIBLE_AGAIN)})["QueueUrl"]


@pytest.fixture
def settings(settings: dict[str, str], queue_url: str) -> dict[str, str]:
    return settings | {
        "FEEDBACK_QUEUE_URL": queue_url,
        "SES_REGION": "us-east-1",
        "AWS_ACCESS_ID": "test",
        "AWS_SECRET_KEY": "test",
        "CIRCUIT_BREAKER_SAMPLE": "20",
    }


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_queue, "WAIT_SECONDS", 0)
    monkeypatch.setattr(event_queue, "TROUBLE_SECONDS", 0.0)
    monkeypatch.setattr(event_queue, "CHECK_SECONDS", 0.0)


@pytest.fixture
def queue(application: Flask) -> Iterator[EventQueue]:
    with application.app_context():
        yield create_event_queue(application)


def put(sqs: Any, url: str, *bodies: str) -> None:
    for start in range(0, len(bodies), 10):
        entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(bodies[start : start + 10])]
        assert not sqs.send_message_batch(QueueUrl=url, Entries=entries).get("Failed")


def left(sqs: Any, url: str) -> int:
    """Return how many events there are in the queue, those included that somebody has in hand."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)


def sent(number: int) -> tuple[int, list[int]]:
    """Return a broadcast of which every message was called for, and its deliveries."""
    broadcast_id = ledgers.filled(number)
    return broadcast_id, [line.id for line in ledgers.lines(broadcast_id)]


def told(broadcast_id: int) -> dict[Feedback, int]:
    return {name: number for name, number in commit(feedback.counts, broadcast_id).items() if number}


def kept() -> list[tuple[str, str | None]]:
    db.session.rollback()
    rows = db.session.execute(select(FeedbackEvent.status, FeedbackEvent.problem).order_by(FeedbackEvent.id))
    return [(row.status, row.problem) for row in rows]


def test_events_have_their_effect_and_are_deleted(queue: EventQueue, sqs: Any) -> None:
    broadcast_id, ids = sent(3)
    put(sqs, queue.url, ses_events.delivery(ids[0]), ses_events.by_sns(ses_events.bounce(ids[1])))

    assert queue.take() == 2

    assert told(broadcast_id) == {Feedback.DELIVERED: 1, Feedback.HARD_BOUNCE: 1}
    bounced = select(func.count()).where(Registration.status == RegistrationStatus.BOUNCED)
    assert db.session.execute(bounced).scalar_one() == 1
    assert left(sqs, queue.url) == 0
    assert queue.take() == 0


def test_an_event_stays_in_the_queue_until_its_effect_is_committed(
    queue: EventQueue, sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast_id, ids = sent(1)
    put(sqs, queue.url, ses_events.bounce(ids[0]))

    def fail(*_: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("the database went away"))

    with monkeypatch.context() as patch:
        patch.setattr(feedback, "take", fail)
        queue.drain()
    assert (left(sqs, queue.url), told(broadcast_id)) == (1, {})

    until(lambda: queue.drain() or told(broadcast_id) != {})
    until(lambda: told(broadcast_id) != {} or queue.drain())
    assert told(broadcast_id) == {Feedback.HARD_BOUNCE: 1}


@pytest.mark.parametrize("error", [OperationalError, IntegrityError])
def test_a_transaction_that_let_another_go_first_is_tried_again_at_once(
    queue: EventQueue, sqs: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    broadcast_id, ids = sent(1)
    put(sqs, queue.url, ses_events.bounce(ids[0]))
    take, failures = feedback.take, [error("INSERT", {}, Exception("a deadlock"))] * 2  # type: ignore[call-arg]

    def fail_twice(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        take(*arguments)

    monkeypatch.setattr(feedback, "take", fail_twice)

    assert queue.take() == 1

    assert (told(broadcast_id), left(sqs, queue.url)) == ({Feedback.HARD_BOUNCE: 1}, 0)
    assert kept() == [("applied", None)]


def test_an_event_that_the_database_does_not_take_is_put_aside_and_holds_up_no_other(
    queue: EventQueue, sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where PyMySQL raises the same as of a database that is away."""
    broadcast_id, ids = sent(2)
    bad, good = ses_events.bounce(ids[0]), ses_events.bounce(ids[1])
    put(sqs, queue.url, bad, good)
    take = feedback.take

    def refuse(session: Session, bodies: list[str], now: datetime) -> None:
        if bad in bodies:
            fault = pymysql.err.OperationalError(TRUNCATED_WRONG_VALUE, "Incorrect datetime value")
            raise OperationalError("INSERT", {}, fault)
        take(session, bodies, now)

    monkeypatch.setattr(feedback, "take", refuse)

    assert queue.take() == 2

    assert (told(broadcast_id), left(sqs, queue.url)) == ({Feedback.HARD_BOUNCE: 1}, 0)
    assert set(kept()) == {("applied", None), ("aside", "It could not be applied: OperationalError.")}


def test_an_event_that_could_not_be_deleted_comes_again_and_does_nothing(
    queue: EventQueue, sqs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broadcast_id, ids = sent(1)
    put(sqs, queue.url, ses_events.bounce(ids[0]))
    failing = replace(queue, connect=lambda: FailsToDelete(queue.client))
    assert failing.take() == 1
    assert "could not be deleted" in caplog.text

    until(lambda: queue.take() == 1)

    assert (told(broadcast_id), left(sqs, queue.url), len(kept())) == ({Feedback.HARD_BOUNCE: 1}, 0, 1)


class FailsToDelete:
    def __init__(self, client: Any) -> None:
        self.receive_message = client.receive_message

    def delete_message_batch(self, **asked: Any) -> dict[str, Any]:
        return {"Failed": [{"Id": entry["Id"]} for entry in asked["Entries"]]}


def test_a_malformed_event_does_not_stop_the_queue(queue: EventQueue, sqs: Any) -> None:
    broadcast_id, ids = sent(1)
    put(
        sqs, queue.url, "Successfully validated SNS topic for Amazon SES event publishing.", ses_events.delivery(ids[0])
    )

    queue.drain()

    assert (told(broadcast_id), left(sqs, queue.url)) == ({Feedback.DELIVERED: 1}, 0)
    assert sorted(kept()) == [("applied", None), ("aside", "It is not JSON.")]


def test_an_event_that_cannot_be_applied_goes_aside_and_the_others_of_its_batch_do_not(
    queue: EventQueue, sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast_id, ids = sent(2)
    poison = ses_events.bounce(ids[0])
    take = feedback.take

    def fail(session: Any, bodies: list[str], now: Any) -> None:
        if poison in bodies:
            raise KeyError("a mistake of ours")
        take(session, bodies, now)

    monkeypatch.setattr(feedback, "take", fail)
    put(sqs, queue.url, poison, ses_events.delivery(ids[1]))

    queue.drain()

    assert (told(broadcast_id), left(sqs, queue.url)) == ({Feedback.DELIVERED: 1}, 0)
    assert sorted(kept()) == [("applied", None), ("aside", "It could not be applied: KeyError.")]


def test_no_address_is_logged(queue: EventQueue, sqs: Any, caplog: pytest.LogCaptureFixture) -> None:
    put(sqs, queue.url, ses_events.bounce(0, address="ann@example.org"), '{"eventType": "ann@example.org"}')

    queue.drain()

    assert "ann@" not in caplog.text


def test_events_that_wait_are_applied_when_their_time_has_come(queue: EventQueue, sqs: Any) -> None:
    broadcast_id, ids = sent(1)
    put(sqs, queue.url, ses_events.by_identity(ses_events.bounce(ids[0])))
    queue.drain()
    assert told(broadcast_id) == {}
    ledgers.settle(ledgers.claim(broadcast_id), ledgers.ACCEPTED._replace(message_id=f"0100-{ids[0]}"))

    later = replace(queue, now=lambda session: queue.now(session) + feedback.PATIENCE)
    later.drain()

    assert told(broadcast_id) == {Feedback.HARD_BOUNCE: 1}


def test_events_are_written_down_by_the_databases_clock(application: Flask, queue: EventQueue, sqs: Any) -> None:
    """Where it has one: MariaDB lets a session have a time of its own."""
    there = datetime.now(UTC)
    if db.engine.dialect.name == "mysql":
        there -= timedelta(days=30)

        @listens_for(services.of(application).sender_engine(), "engine_connect")
        def set_clock(connection: Connection) -> None:
            connection.exec_driver_sql(f"SET timestamp = {there.timestamp()}")

    broadcast_id, [delivery_id] = sent(1)
    put(sqs, queue.url, ses_events.send(delivery_id))
    queue.drain()

    [line] = ledgers.lines(broadcast_id)
    received_at = db.session.execute(select(FeedbackEvent.received_at)).scalar_one()
    assert all(abs(at - there) < timedelta(minutes=5) for at in (line.settled_at, received_at))


def test_a_broadcast_that_bounces_too_much_is_paused(queue: EventQueue, sqs: Any) -> None:
    broadcast_id, ids = sent(40)
    put(sqs, queue.url, *map(ses_events.send, ids[:30]), *map(ses_events.bounce, ids[:5]))

    until(lambda: queue.drain() or left(sqs, queue.url) == 0)

    assert status_of(broadcast_id) is BroadcastStatus.PAUSED


@pytest.mark.parametrize("is_held", [False, True])
def test_what_bounced_before_there_were_enough_messages_counts_when_there_are_though_no_event_comes_any_more(
    queue: EventQueue, sqs: Any, is_held: bool
) -> None:
    broadcast_id, ids = sent(40)
    put(sqs, queue.url, *map(ses_events.send, ids[:15]), *map(ses_events.bounce, ids[:5]))
    until(lambda: queue.drain() or left(sqs, queue.url) == 0)
    assert status_of(broadcast_id) is BroadcastStatus.SENDING
    commit(ledger.accept, {number: f"0100-{number}" for number in ids[15:30]}, ledgers.NOW)
    if is_held:
        commit(broadcasts.hold, broadcast_id, reason="The quota is used up.", now=ledgers.NOW)

    restarted = replace(queue)
    restarted.drain()

    assert status_of(broadcast_id) is BroadcastStatus.PAUSED
    assert db.session.execute(select(Broadcast.resume_at)).scalar_one() is None


def test_only_broadcasts_that_go_on_by_themselves_are_looked_at(
    queue: EventQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending, held, paused, cancelled = (sent(1)[0] for _ in range(4))
    commit(broadcasts.hold, held, reason="The quota is used up.", now=ledgers.NOW)
    commit(broadcasts.pause, paused)
    commit(broadcasts.cancel, cancelled)
    looked_at: list[int] = []
    monkeypatch.setattr(circuit_breaker, "check", lambda _, broadcast_id, **__: looked_at.append(broadcast_id))

    queue.drain()
    replace(queue, sample=0).drain()

    assert looked_at == [sending, held]


def status_of(broadcast_id: int) -> BroadcastStatus:
    db.session.rollback()
    return broadcasts.status_of(db.session(), broadcast_id)


def test_a_queue_that_is_away_is_waited_for(application: Flask, caplog: pytest.LogCaptureFixture) -> None:
    queue = create_event_queue(application)
    queue.client.meta.events.register("before-send.sqs.*", lambda **_: 1 / 0)
    away = replace(queue, connect=lambda: queue.client, url=f"http://127.0.0.1:{mariadb.free_port()}/queue")

    away.drain()

    assert "taking events failed" in caplog.text or "could not be reached" in caplog.text


def test_why_the_queue_cannot_be_reached_is_logged(queue: EventQueue, caplog: pytest.LogCaptureFixture) -> None:
    replace(queue, url=f"{queue.url}-deleted").drain()

    (told,) = [record for record in caplog.records if record.message == "the queue of events could not be reached"]
    assert told.code == "AWS.SimpleQueueService.NonExistentQueue"


def test_credentials_that_cannot_be_fetched_are_waited_for(
    queue: EventQueue, sqs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast_id, ids = sent(1)
    put(sqs, queue.url, ses_events.bounce(ids[0]))
    monkeypatch.setattr(event_queue, "TROUBLE_SECONDS", 0.01)
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    queue.drain()
    assert told(broadcast_id) == {}

    monkeypatch.delenv("AWS_PROFILE")
    until(lambda: queue.drain() or left(sqs, queue.url) == 0)

    assert told(broadcast_id) == {Feedback.HARD_BOUNCE: 1}


def test_it_runs_until_it_is_told_to_stop(queue: EventQueue, sqs: Any) -> None:
    broadcast_id, ids = sent(25)
    put(sqs, queue.url, *map(ses_events.delivery, ids))
    thread = threading.Thread(target=queue.run)
    thread.start()
    until(lambda: left(sqs, queue.url) == 0)

    queue.stop()
    thread.join(20)

    assert not thread.is_alive()
    assert told(broadcast_id) == {Feedback.DELIVERED: 25}


def test_a_second_call_leaves_it_to_the_first(queue: EventQueue) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow:
        calls = 0

        def receive_message(self, **_: Any) -> dict[str, Any]:
            self.calls += 1
            entered.set()
            leave.wait(20)
            return {}

    slow = replace(queue, connect=Slow)
    first = threading.Thread(target=slow.drain)
    first.start()
    entered.wait(20)
    slow.drain()
    leave.set()
    first.join(20)

    assert slow.client.calls == 1


def test_a_stop_does_not_wait_long_for_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    assert event_queue.WAIT_SECONDS <= 5


def sender_process(url: str, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the production process that sends and takes events."""
    environment = os.environ | settings | {"DB_CONN_STR": url, "MAILER": "outbox", "SES_SENDER": "a@example.org"}
    environment |= {"PUBLIC_URL": "https://notices.example.org", "TOKEN_KEYS": "k" * 32}
    return subprocess.Popen([sys.executable, "application.py", "--sender"], cwd=ROOT, env=environment)


@pytest.mark.timeout(240)
def test_kills_in_a_flood_lose_nothing(
    make_application: Callable[[str], Flask], mariadb_url: str, settings: dict[str, str], sqs: Any, queue_url: str
) -> None:
    application = make_application(mariadb_url)
    with application.app_context():
        from .conftest import empty

        empty()
        broadcast_id, ids = sent(200)
        db.session.execute(Broadcast.__table__.update().values(status="paused"))
        db.session.commit()
        put(sqs, queue_url, *map(ses_events.delivery, ids), *map(ses_events.bounce, ids[:50]))
        put(sqs, queue_url, *map(ses_events.delivery, ids[:25]))
        for share in (25, 100, None):
            process = sender_process(mariadb_url, settings)
            try:
                if share is None:
                    until(lambda: left(sqs, queue_url) == 0, 90)
                else:
                    until(lambda share=share: sum(told(broadcast_id).values()) >= share or left(sqs, queue_url) == 0)
            finally:
                process.send_signal(signal.SIGTERM if share is None else signal.SIGKILL)
                stopped = process.wait(30)
        assert stopped == 0
        assert told(broadcast_id) == {Feedback.DELIVERED: 150, Feedback.HARD_BOUNCE: 50}
        bounced = select(func.count()).where(Registration.status == RegistrationStatus.BOUNCED)
        assert db.session.execute(bounced).scalar_one() == 50
        assert {status for status, _ in kept()} == {"applied"}
        assert len(kept()) == 250
        assert db.session.execute(select(func.count()).where(Delivery.status == "sent")).scalar_one() == 200


def test_a_bodys_tags_are_those_of_the_mailer() -> None:
    """The name of the tag is written in two modules that do not know each other."""
    from registration.mailers import Recipient
    from registration.mailers.ses import _tags

    (tag,) = (tag for tag in _tags(Recipient(4711, "ann@example.org")) if tag["Value"] == "4711")
    event = json.loads(ses_events.send())
    event["mail"]["tags"][tag["Name"]] = [tag["Value"]]

    assert events.read(json.dumps(event)).delivery_id == 4711
