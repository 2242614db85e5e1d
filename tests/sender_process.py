"""`python application.py --sender` for the crash tests: the same process, prepared to die at a chosen point.

Run as a module it imports everything, prints a line, and waits for one line of JSON on standard input, `Orders`.
Only then does the sender start, so that a test can have the next process ready before it kills the last.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import urllib3.connection
from sqlalchemy import event
from sqlalchemy.orm import Session

import logger
import registration
from registration import ledger, pacing, sender
from registration.mailers import Recipient, ses
from registration.sender import Sender

POINTS = ("claimed", "committed", "called", "replied", "settled")
"""Where it can die: in the transaction of a claim before its commit; after that, before the call; with the call made
and no reply read; with the reply read and nothing written; in the transaction that writes it, before its commit."""

_FILL = "fill "


@dataclass(frozen=True)
class Orders:
    """How to run. `die` is a point and which passing of it, such as called:3; `calls` is the file that it leaves."""

    die: str = ""
    calls: str = ""
    rate: float = 0.0
    lease: float = 0.0
    batch_seconds: float = 0.0
    read_seconds: float = 0.0


class Points:
    """What kills the process when a point is passed for the time that it is told."""

    def __init__(self, die: str) -> None:
        self.name, _, passing = die.partition(":")
        self.left = int(passing or 0)
        self.lock = threading.Lock()

    def at(self, name: str) -> None:
        with self.lock:
            self.left -= name == self.name
            if name == self.name and self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Calls:
    """A file that tells which calls were in flight when the process died: what a kill cannot take back is written.

    It tells the longest transaction of a fill as well.
    """

    def __init__(self, file: str) -> None:
        self.file = os.open(file or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.longest_fill = 0.0

    def note(self, sign: str, recipients: Sequence[Recipient]) -> None:
        os.write(self.file, "".join(f"{sign}{recipient.address}\n" for recipient in recipients).encode())

    def begin(self, recipients: Sequence[Recipient]) -> None:
        self.note("+", recipients)

    def end(self, recipients: Sequence[Recipient]) -> None:
        self.note("-", recipients)

    def fill(self, seconds: float) -> None:
        if seconds > self.longest_fill:
            self.longest_fill = seconds
            os.write(self.file, f"{_FILL}{seconds}\n".encode())


def timed(fill: Callable[[Session, int], bool], calls: Calls) -> Callable[[Session, int], bool]:
    """Return `ledger.fill`, timed from its first statement to the end of the commit, whoever does that."""

    def timed_fill(session: Session, broadcast_id: int) -> bool:
        begun = time.monotonic()
        event.listen(session, "after_commit", lambda _: calls.fill(time.monotonic() - begun), once=True)
        return fill(session, broadcast_id)

    return timed_fill


def longest_fill(file: Path) -> float:
    """Return the seconds of the longest transaction in which a process filled a ledger; 0 if there was none."""
    lines = file.read_text().splitlines() if file.exists() else []
    return max((float(line.removeprefix(_FILL)) for line in lines if line.startswith(_FILL)), default=0.0)


def in_flight(file: Path) -> Counter[str]:
    """Return the addresses in calls that a process had begun, and whose outcome it had not written down."""
    lines = file.read_text().splitlines() if file.exists() else []
    noted = {sign: Counter(line[1:] for line in lines if line.startswith(sign)) for sign in "+-"}
    return noted["+"] - noted["-"]


def main(orders: Orders) -> None:
    """Prepare what the orders say and run the sender."""
    if orders.lease:
        ledger.LEASE = timedelta(seconds=orders.lease)
        sender.GRACE_SECONDS = 0.0  # what a dead sender leaves is to be sent while others are killed
    if orders.batch_seconds:
        pacing.BATCH_SECONDS = orders.batch_seconds
    if orders.read_seconds:
        ses.READ_SECONDS = orders.read_seconds
    os.environ["SENDING_RATE"] = str(orders.rate)
    _watch(orders)
    sys.argv = ["application.py", "--sender"]
    runpy.run_path("application.py", run_name="__main__")


def _watch(orders: Orders) -> None:
    """Note each call and each transaction of a fill, and pass each point on the way of a batch."""
    at = Points(orders.die).at
    calls = Calls(orders.calls)
    here = threading.local()

    def claim(*arguments: Any, **named: Any) -> Any:
        batch = original_claim(*arguments, **named)
        if batch is not None:
            at("claimed")
        return batch

    def send(mailer: Any, message: Any, recipients: Sequence[Recipient]) -> Any:
        at("committed")
        here.sending = True
        calls.begin(recipients)
        outcomes = original_send(mailer, message, recipients)
        here.sending = False
        at("replied")
        return outcomes

    def getresponse(connection: urllib3.connection.HTTPConnection) -> Any:
        if getattr(here, "sending", False):
            at("called")
        return original_getresponse(connection)

    def settle(*arguments: Any) -> None:
        original_settle(*arguments)
        at("settled")

    def settle_and_commit(sender: Any, batch: ledger.Batch, outcomes: Any) -> None:
        original_settle_and_commit(sender, batch, outcomes)
        calls.end(batch.recipients)

    original_claim, original_settle = ledger.claim, ledger.settle
    original_settle_and_commit = Sender._settle
    original_send: Callable[..., Any] = ses.SesMailer.send
    original_getresponse = urllib3.connection.HTTPConnection.getresponse
    for owner, name, replacement in (
        (ledger, "claim", claim),
        (ledger, "fill", timed(ledger.fill, calls)),
        (ledger, "settle", settle),
        (Sender, "_settle", settle_and_commit),
        (ses.SesMailer, "send", send),
        (urllib3.connection.HTTPConnection, "getresponse", getresponse),
    ):
        setattr(owner, name, replacement)


if __name__ == "__main__":
    assert registration, logger
    print("ready", flush=True)
    if line := sys.stdin.readline():
        main(Orders(**json.loads(line)))
