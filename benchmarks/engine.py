"""What a message costs: the whole engine with its ledger, against a plain loop of SES version 1 calls without one.

Both talk to the same stand-in for SES, in turn, in one run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import boto3
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from registration import broadcasts, ledger, messages
from registration.db import engine_options
from registration.mailers.ses import SesMailer, make_client
from registration.models import DeliveryStatus
from registration.sender import Sender
from registration.tokens import Tokens
from tests import factories, mariadb

from . import report

ROOT = Path(__file__).parent.parent
ROUNDS = 3
PLAIN_MESSAGES, ENGINE_MESSAGES = 1_500, 20_000
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
    """Measure both in turn and print medians and ratios."""
    with ses() as url:
        sessions = prepare(server, "engine", ENGINE_MESSAGES)
        plain, whole = [], []
        for _ in range(ROUNDS):
            plain.append(_measure(lambda: send_plainly(url, PLAIN_MESSAGES), PLAIN_MESSAGES))
            whole.append(_measure(lambda: send_with_engine(url, sessions), ENGINE_MESSAGES))
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
    report.at_least(8, cost[0] / cost[1], "Processor time of the plain loop / of the engine")
    report.at_least(10, rate[1] / rate[0], "Messages a second of the engine / of the plain loop")


@contextmanager
def ses() -> Iterator[str]:
    """Run the stand-in as a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ses"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.communicate()


def prepare(server: mariadb.Server, name: str, registrations: int) -> sessionmaker[Session]:
    """Create a database with registrations and return sessions on it."""
    url = server.create_database(name)
    subprocess.run(
        ["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=root", name],
        input=(ROOT / "schema.sql").read_text().partition("\n")[2].encode(),
        check=True,
    )
    engine = create_engine(**engine_options(url, pool_size=50, careful=False))
    sessions = sessionmaker(engine)
    with sessions.begin() as session:
        session.execute(
            text(
                "INSERT INTO registration (product_id, email, email_key, status, created_at)"
                " SELECT UNHEX(MD5(seq)), CONCAT('clinic-', seq, '@example.org'),"
                " CONCAT('clinic-', seq, '@example.org'), 'active', UTC_TIMESTAMP(6)"
                f" FROM seq_1_to_{registrations}"
            )
        )
    return sessions


def send_plainly(url: str, number: int) -> None:
    """Send as the predecessor did: one call after another, nothing written down."""
    client = boto3.client(
        "ses", region_name="us-east-1", endpoint_url=url, aws_access_key_id="test", aws_secret_access_key="test"
    )
    for recipient in range(number):
        client.send_email(
            Source=SENDER,
            Destination={"ToAddresses": [f"clinic-{recipient}@example.org"]},
            Message={"Subject": {"Data": MESSAGE.subject}, "Body": {"Text": {"Data": MESSAGE.text}}},
        )


def send_with_engine(url: str, sessions: sessionmaker[Session]) -> None:
    """Send a broadcast to everybody, from its start to its end."""
    with sessions.begin() as session:
        broadcast_id = broadcasts.start(session, MESSAGE, datetime.now(UTC), idempotency_key=uuid.uuid4().hex)
    send(url, sessions, broadcast_id)


def send(url: str, sessions: sessionmaker[Session], broadcast_id: int) -> int:
    """Send a broadcast that has started, as the service does it; return how many messages were sent."""
    os.environ["AWS_ENDPOINT_URL_SESV2"] = url
    tokens = Tokens(["a key of at least thirty-two characters"], "https://reg.example.org")
    letterhead = factories.letterhead(opt_out_url=tokens.opt_out_url)
    mailer = SesMailer(partial(make_client, "us-east-1", "test", "test"), letterhead)
    with sender_thread(Sender(sessions, mailer)):
        while True:
            time.sleep(0.02)
            with sessions.begin() as session:
                if broadcasts.status_of(session, broadcast_id) == "sent":
                    break
    with sessions.begin() as session:
        counts = ledger.counts(session, broadcast_id)
    if counts[DeliveryStatus.SENT] != sum(counts.values()):
        raise AssertionError(f"Not everybody was sent to: {counts}")
    return counts[DeliveryStatus.SENT]


@contextmanager
def sender_thread(sender: Sender) -> Iterator[None]:
    """Run a sender until the block ends."""
    thread = threading.Thread(target=sender.run)
    thread.start()
    try:
        yield
    finally:
        sender.stop()
        thread.join()


def _measure(work: Callable[[], None], number: int) -> Cost:
    begun = time.perf_counter(), time.process_time()
    work()
    return Cost(number, time.process_time() - begun[1], time.perf_counter() - begun[0])
