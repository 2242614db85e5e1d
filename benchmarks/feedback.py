"""A flood of events: through the core into the database, and through Amazon SQS as moto plays it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import boto3
from moto.server import ThreadedMotoServer
from sqlalchemy import create_engine, update
from sqlalchemy.orm import Session, sessionmaker

from registration import feedback
from registration.db import engine_options
from registration.event_queue import MOST_EVENTS, RECEIVERS, EventQueue
from registration.models import Delivery, Feedback
from tests import mariadb, ses_events

from . import report, servers

FLOOD = 100_000
AT_ONCE = 50_000
"""Deliveries that one statement changes: a million at once take longer than a statement may on a busy machine."""
THROUGH_MOTO = 500
"""Few, because moto takes longer for each message the more it holds."""
HARD, COMPLAINED = 50, 1000
"""One event in so many is a hard bounce, or a complaint; the others are deliveries."""


def run(server: mariadb.Server) -> None:
    """Take a flood in transactions of ten events, one after another and several at once, and a smaller one by SQS."""
    for threads in (1, RECEIVERS):
        with _database(server, f"core_{threads}", FLOOD) as sessions:
            seconds = _seconds(partial(_take, sessions, FLOOD, threads))
            _check(sessions, FLOOD)
        _report(f"core and MariaDB, {threads} at once", FLOOD, seconds)
    with _database(server, "moto", THROUGH_MOTO) as sessions, _queue(sessions) as queue:
        _put(queue, THROUGH_MOTO)
        seconds = _seconds(partial(_drain, queue, sessions, THROUGH_MOTO))
        _check(sessions, THROUGH_MOTO)
    _report(f"with moto's SQS, {RECEIVERS} at once", THROUGH_MOTO, seconds)
    with _database(server, "figures", 1_000_000) as sessions:
        _report_figures(sessions)


def _report(how: str, events: int, seconds: float) -> None:
    heading = "Bounces, complaints and deliveries, ten a transaction; none lost"
    report.table(heading, ["through", "events", "events/s"], [[how, f"{events:,}", f"{events / seconds:,.0f}"]])


def _tens(number: int) -> list[range]:
    return [range(start, min(start + MOST_EVENTS, number + 1)) for start in range(1, number + 1, MOST_EVENTS)]


def _event(number: int) -> str:
    if number % COMPLAINED == 0:
        return ses_events.complaint(number)
    return ses_events.bounce(number) if number % HARD == 0 else ses_events.delivery(number)


def _take(sessions: sessionmaker[Session], number: int, threads: int) -> None:
    def take(ids: Sequence[int]) -> None:
        with sessions.begin() as session:
            feedback.take(session, map(_event, ids), datetime.now(UTC))

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(take, _tens(number)):
            pass


def _check(sessions: sessionmaker[Session], number: int) -> None:
    with sessions.begin() as session:
        told = feedback.counts(session, 1)
    complained = number // COMPLAINED
    hard = number // HARD - complained
    expected = {Feedback.COMPLAINED: complained, Feedback.HARD_BOUNCE: hard}
    if any(told[name] != of for name, of in expected.items()) or sum(told.values()) != number:
        raise AssertionError(f"Events were lost: {told}")


def _report_figures(sessions: sessionmaker[Session]) -> None:
    """Print what it costs to count the feedback of a million deliveries."""
    delivered = update(Delivery).values(feedback=Feedback.DELIVERED, feedback_at=datetime.now(UTC))
    for first in range(1, 1_000_001, AT_ONCE):
        with sessions.begin() as session:
            session.execute(delivered.where(Delivery.id.between(first, first + AT_ONCE - 1)))
    with sessions.begin() as session:
        feedback.counts(session, 1)
        seconds = min(_seconds(lambda: feedback.counts(session, 1)) for _ in range(3))
    report.table(
        "Figures of a broadcast of which everything was delivered",
        ["deliveries", "ms for the feedback"],
        [["1,000,000", f"{seconds * 1000:.0f}"]],
    )


@contextmanager
def _database(server: mariadb.Server, name: str, deliveries: int) -> Iterator[sessionmaker[Session]]:
    """Give sessions on a database with one broadcast of which every message was accepted."""
    url = servers.create_database(server, name, deliveries)
    with server.connect(name) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO broadcast (id, title, contents, status, recipients, audience_end, filled_to, created_at,"
            f" urgent, include_unknown) VALUES (1, 'Update', 'Now.', 'sending', {deliveries}, {deliveries},"
            f" {deliveries}, UTC_TIMESTAMP(6), FALSE, TRUE)"
        )
        cursor.execute(
            "INSERT INTO delivery (id, broadcast_id, registration_id, status, attempts, message_id, settled_at)"
            " SELECT seq, 1, id, 'sent', 1, CONCAT('0100-', seq), UTC_TIMESTAMP(6)"
            " FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY id) AS seq FROM registration) AS numbered"
        )
    engine = create_engine(**engine_options(url, pool_size=RECEIVERS + 1, reset_on_return=False))
    yield sessionmaker(engine)
    engine.dispose()


@contextmanager
def _queue(sessions: sessionmaker[Session]) -> Iterator[EventQueue]:
    """Give a queue of events on a server of its own."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would tell of every call
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    url = client.create_queue(QueueName="feedback", Attributes={"VisibilityTimeout": "60"})["QueueUrl"]
    yield EventQueue(sessions, lambda: client, url, sample=0)
    server.stop()


def _put(queue: EventQueue, number: int) -> None:
    for ids in _tens(number):
        entries: list[Any] = [{"Id": str(one), "MessageBody": _event(one)} for one in ids]
        queue.client.send_message_batch(QueueUrl=queue.url, Entries=entries)


def _drain(queue: EventQueue, sessions: sessionmaker[Session], number: int) -> None:
    told = 0
    while told < number:
        queue.drain()
        with sessions.begin() as session:
            told = sum(feedback.counts(session, 1).values())


def _seconds(work: Callable[[], object]) -> float:
    begun_at = time.perf_counter()
    work()
    return time.perf_counter() - begun_at
