"""The queue on which the mail service's events wait for us: Amazon SQS.

An event is deleted from it only when its effect is committed. What is taken and not deleted, because the process died
or the database failed, comes again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from . import broadcasts, circuit_breaker, feedback
from .db import database_time, is_fault

MOST_EVENTS = 10
"""https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html"""
WAIT_SECONDS = 2
"""How long a call waits for an event. It cannot be interrupted, so a stop takes as long."""
RECEIVERS = 4
"""Batches in hand at once while there are many events: most of the time of each is waiting for the network."""
ATTEMPTS = 3
TROUBLE_SECONDS, LONGEST_TROUBLE_SECONDS = 1.0, 30.0
DRAIN_SECONDS = 20.0
"""How long one `drain` takes at most, so that whoever calls it sees to other things too."""
CHECK_SECONDS = 3.0
"""Between two looks at whether a broadcast is to be paused, also when no event comes: what bounced may have been too
little to judge by until more was sent, or told to a process that has died since."""
WAITING_SECONDS = 5.0
"""Between two looks at the events that wait for a message id."""
CONNECT_SECONDS, READ_SECONDS = 3.0, 10.0

log = logging.getLogger(__name__)


@dataclass
class EventQueue:
    """Takes the events of a queue until it is told to stop. `sample` is the circuit breaker's.

    `now` is the database's clock, by which the senders write down what was accepted.
    """

    sessions: sessionmaker[Session]
    connect: Callable[[], Any]
    url: str
    sample: int
    now: Callable[[Session], datetime] = database_time
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._check_at = self._waiting_at = 0.0
        self._failures = 0
        self._chores, self._draining = threading.Lock(), threading.Lock()

    @cached_property
    def client(self) -> Any:
        """The client, made at its first use: credentials that cannot be fetched are waited for, like the queue."""
        return self.connect()

    def run(self) -> None:
        """Work until `stop`; batches in hand are finished first. No failure ends it."""
        log.info("taking events has begun")
        while not self.stopping.is_set():
            self.drain()
        log.info("taking events has stopped")

    def stop(self) -> None:
        """Ask for the end; safe in a signal handler unless `run` is in the main thread."""
        self.stopping.set()

    def drain(self) -> None:
        """Take events until there are none for a moment, in several threads when there are many; one call at a time."""
        if self.stopping.is_set() or not self._draining.acquire(blocking=False):
            return
        try:
            self._drain()
        finally:
            self._draining.release()

    def _drain(self) -> None:
        give_up = time.monotonic() + DRAIN_SECONDS
        if self._guard(self.take) == MOST_EVENTS:
            with ThreadPoolExecutor(RECEIVERS, thread_name_prefix="events") as threads:
                for _ in range(RECEIVERS):
                    threads.submit(self._take_until, give_up)
        self._guard(self._do_chores)

    def take(self) -> int:
        """Take up to ten events from the queue, give them their effect, and delete them; return how many."""
        answer = self.client.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=MOST_EVENTS, WaitTimeSeconds=WAIT_SECONDS
        )
        taken = answer.get("Messages", [])
        if taken:
            self._apply([message["Body"] for message in taken])
            self._delete([message["ReceiptHandle"] for message in taken])
        return len(taken)

    def _take_until(self, give_up: float) -> None:
        while not self.stopping.is_set() and time.monotonic() < give_up and self._guard(self.take):
            self._guard(self._do_chores)

    def _apply(self, bodies: list[str]) -> None:
        """Give events their effect in one transaction; one by one if that fails, so that none holds up the others."""
        try:
            self._commit(bodies)
        except Exception as error:
            if isinstance(error, OperationalError) and not is_fault(error):  # the database is away
                raise
            if len(bodies) > 1:
                for body in bodies:
                    self._apply([body])
                return
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                raise
            log.exception("an event was put aside")
            with self.sessions.begin() as session:
                problem = f"It could not be applied: {type(error).__name__}."
                feedback.put_aside(session, bodies[0], problem, self.now(session))

    def _commit(self, bodies: list[str]) -> None:
        """Give events their effect, again if another transaction went first, such as one with the same event."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self.sessions.begin() as session:
                    feedback.take(session, bodies, self.now(session))
            except (OperationalError, IntegrityError):
                if attempt == ATTEMPTS:
                    raise
            else:
                return

    def _delete(self, handles: list[str]) -> None:
        """Delete events from the queue. One that stays comes again, and does nothing then."""
        entries = [{"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(handles)]
        answer = self.client.delete_message_batch(QueueUrl=self.url, Entries=entries)
        if failed := answer.get("Failed"):
            log.warning("events could not be deleted from the queue", extra={"events": len(failed)})

    def _do_chores(self) -> int:
        """Apply events that waited long enough, and pause broadcasts that bounce too much; not more than needed."""
        with self._chores:
            if time.monotonic() >= self._waiting_at:
                self._waiting_at = time.monotonic() + WAITING_SECONDS
                self._take_waiting()
            if self.sample and time.monotonic() >= self._check_at:
                self._check_at = time.monotonic() + CHECK_SECONDS
                self._break_circuits()
        return 1

    def _take_waiting(self) -> None:
        number = feedback.ROWS_AT_ONCE
        while number == feedback.ROWS_AT_ONCE:
            with self.sessions.begin() as session:
                number = feedback.take_waiting(session, self.now(session))

    def _break_circuits(self) -> None:
        with self.sessions.begin() as session:
            going_on = broadcasts.going_on(session)
        for broadcast_id in going_on:
            with self.sessions.begin() as session:
                broken = circuit_breaker.check(session, broadcast_id, sample=self.sample, now=self.now(session))
            if broken:
                log.warning("a broadcast was paused: too many bounces or complaints", extra={"broadcast": broadcast_id})

    def _guard(self, piece_of_work: Callable[[], int]) -> int:
        """Do a piece of work; a failure is logged and waited out, longer each time."""
        try:
            done = piece_of_work()
        except (BotoCoreError, ClientError) as error:
            code = error.response["Error"].get("Code") if isinstance(error, ClientError) else None
            named = {"error": type(error).__name__, "code": code}
            log.warning("the queue of events could not be reached", extra=named)
        except SQLAlchemyError:
            log.exception("events wait for the database")
        except Exception:
            log.exception("taking events failed and is tried again")
        else:
            self._failures = 0
            return done
        self._failures += 1
        self.stopping.wait(min(TROUBLE_SECONDS * 2.0 ** min(self._failures - 1, 5), LONGEST_TROUBLE_SECONDS))
        return 0


def make_client(region: str, access_id: str, secret_key: str) -> Any:
    """Return a client of Amazon SQS with time limits. Empty keys leave the search for them to boto3.

    In a session of its own: threads that make clients at the same time must not share one.
    """
    return boto3.Session().client(
        "sqs",
        region_name=region,
        aws_access_key_id=access_id or None,
        aws_secret_access_key=secret_key or None,
        config=ClientConfig(
            retries={"total_max_attempts": 2},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=RECEIVERS + 1,
        ),
    )
