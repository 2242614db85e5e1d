"""What a message costs: the whole engine with its ledger, against a plain loop of SES version 1 calls without one.

Both talk to the same stand-in for SES, in turn, in one run.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import boto3
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from registration import broadcasts, ledger, messages
from registration.db import engine_options
from registration.mailers.ses import SesMailer, make_client
from registration.models import DeliveryStatus
from registration.sender import Sender
from registration.tokens import Tokens
from tests import factories, mariadb
from tests.running import running
from tests.waiting import until

from . import report, servers

ROUNDS = 9
"""Many short rounds rather than a few long ones: whatever else the machine does then hits both alike."""
PLAIN_MESSAGES, ENGINE_MESSAGES = 500, 10_000
TOKENS = Tokens(["a key of at least thirty-two characters"], "https://reg.example.org")
MESSAGE = messages.compose("OpenEMR 7.0.3 (2) closes a hole", "Please update today.\n" * 50)
SENDER = "notices@example.org"


@dataclass(frozen=True)
class Cost:
    """What sending took, in seconds of this process's processor and of the clock."""

    messages: int
    processor: float
    clock: float

    @property
    def microseconds(self) -> float:
        """Processor time a message."""
        return self.processor / self.messages * 1e6

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.clock


def run(server: mariadb.Server) -> None:
    """Measure both in turn and print medians, and medians of the ratios of each round."""
    with ses() as url:
        sessions = prepare(server, "engine", ENGINE_MESSAGES)
        client, mailer = _create_plain_client(url), create_mailer(url)
        plain, whole = [], []
        for _ in range(ROUNDS):
            plain.append(_measure(lambda: send_plainly(client, PLAIN_MESSAGES), PLAIN_MESSAGES))
            whole.append(_measure(lambda: send_with_engine(mailer, sessions), ENGINE_MESSAGES))
    cost = statistics.median(one.microseconds for one in plain), statistics.median(one.microseconds for one in whole)
    rate = statistics.median(one.rate for one in plain), statistics.median(one.rate for one in whole)
    report.table(
        f"Sending, medians of {ROUNDS}",
        ["", "processor µs a message", "messages/s"],
        [
            ["plain loop, SES v1, no ledger", f"{cost[0]:.0f}", f"{rate[0]:,.0f}"],
            ["the engine, bulk, ledger on MariaDB", f"{cost[1]:.0f}", f"{rate[1]:,.0f}"],
        ],
    )
    pairs = list(zip(plain, whole, strict=True))
    cheaper = statistics.median(one.microseconds / other.microseconds for one, other in pairs)
    faster = statistics.median(other.rate / one.rate for one, other in pairs)
    report.at_least(8, cheaper, "Processor time of the plain loop / of the engine, median of the rounds")
    report.at_least(10, faster, "Messages a second of the engine / of the plain loop, median of the rounds")


@contextmanager
def ses() -> Iterator[str]:
    """Run the stand-in as a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ses"]
    with subprocess.Popen(
        command, cwd=servers.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.communicate()


def prepare(server: mariadb.Server, name: str, registrations: int) -> sessionmaker[Session]:
    """Create a database with registrations and return sessions on it."""
    url = servers.create_database(server, name, registrations)
    return sessionmaker(create_engine(**engine_options(url, pool_size=50, reset_on_return=False)))


def _create_plain_client(url: str) -> Any:
    return boto3.client(
        "ses", region_name="us-east-1", endpoint_url=url, aws_access_key_id="test", aws_secret_access_key="test"
    )


def create_mailer(url: str) -> SesMailer:
    """Build what the service sends with, for the stand-in, and connect it."""
    os.environ["AWS_ENDPOINT_URL_SESV2"] = url
    letterhead = factories.letterhead(opt_out_url=TOKENS.opt_out_url)
    mailer = SesMailer(partial(make_client, "us-east-1", "test", "test"), letterhead)
    mailer.client()
    return mailer


def send_plainly(client: Any, number: int) -> None:
    """Send as the predecessor did: one call after another, nothing written down."""
    for recipient in range(number):
        client.send_email(
            Source=SENDER,
            Destination={"ToAddresses": [f"clinic-{recipient}@example.org"]},
            Message={"Subject": {"Data": MESSAGE.subject}, "Body": {"Text": {"Data": MESSAGE.text}}},
        )


def send_with_engine(mailer: SesMailer, sessions: sessionmaker[Session]) -> None:
    """Send a broadcast to everybody, from its start to its end."""
    with sessions.begin() as session:
        broadcast_id = broadcasts.start(session, MESSAGE, datetime.now(UTC), idempotency_key=uuid.uuid4().hex)
    send(mailer, sessions, broadcast_id)


def send(mailer: SesMailer, sessions: sessionmaker[Session], broadcast_id: int) -> int:
    """Send a broadcast that has started, as the service does it; return how many messages were sent."""
    with running(sender := Sender(sessions, mailer, math.inf, timedelta(days=90), TOKENS)):
        until(lambda: sender.has_work)
        until(lambda: not sender.has_work, math.inf)
    with sessions.begin() as session:
        counts = ledger.counts(session, broadcast_id)
    if counts[DeliveryStatus.SENT] != sum(counts.values()):
        raise AssertionError(f"Not everybody was sent to: {counts}")
    return counts[DeliveryStatus.SENT]


def _measure(work: Callable[[], None], number: int) -> Cost:
    begun = time.perf_counter(), time.process_time()
    work()
    return Cost(number, time.process_time() - begun[1], time.perf_counter() - begun[0])
