"""What size costs: filling the ledger, a message and memory, at ten thousand recipients and at a million.

Each size runs in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime

from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from registration import broadcasts, ledger
from registration.db import engine_options
from tests import mariadb

from . import engine, report, servers

SIZES = (10_000, 1_000_000)
MOST_MEMORY = 150
MOST_GROWTH = 1.3


def run(server: mariadb.Server) -> None:
    """Measure each size and print a table, and the ratios of the largest to the smallest."""
    with engine.ses() as url:
        seen = {}
        for size in SIZES:
            engine.prepare(server, "scale", size)
            command = [sys.executable, "-m", "benchmarks.scale", server.url("scale"), url]
            done = subprocess.run(command, cwd=servers.ROOT, check=True, stdout=subprocess.PIPE)
            seen[size] = json.loads(done.stdout)
    report.table(
        "The engine by the number of recipients",
        [
            "recipients",
            "filled a second",
            "longest transaction of the fill",
            "processor µs a message",
            "sent a second",
            "peak MB",
        ],
        [
            [
                f"{size:,}",
                f"{size / figures['fill']:,.0f}",
                f"{figures['longest']:.2f} s",
                f"{figures['processor']:.0f}",
                f"{size / figures['send']:,.0f}",
                f"{figures['peak']:.0f}",
            ]
            for size, figures in seen.items()
        ],
    )
    small, large = (seen[size] for size in SIZES)
    report.at_most(MOST_GROWTH, large["processor"] / small["processor"], "Cost of a message at 1,000,000 / at 10,000")
    report.at_most(MOST_MEMORY, large["peak"], "Peak memory of the sender at 1,000,000, in MB")
    report.at_most(1.0, large["longest"], "Longest transaction of the fill of 1,000,000, in seconds")


def main() -> None:
    """Take the URLs of a database and of SES; send to everybody and print what was seen as JSON."""
    database, ses = sys.argv[1:]
    sessions = sessionmaker(create_engine(**engine_options(database, pool_size=50, reset_on_return=False)))
    with sessions.begin() as session:
        message, key = engine.MESSAGE, uuid.uuid4().hex
        broadcast_id = broadcasts.start(session, message, datetime.now(UTC), idempotency_key=key)
    steps = _fill(sessions, broadcast_id)
    mailer = engine.create_mailer(ses)
    begun = time.perf_counter(), time.process_time()
    sent = engine.send(mailer, sessions, broadcast_id)
    seconds, processor = time.perf_counter() - begun[0], time.process_time() - begun[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"fill": sum(steps), "longest": max(steps), "send": seconds, "peak": peak}
    print(json.dumps(figures | {"processor": processor / sent * 1e6}))


def _fill(sessions: sessionmaker[Session], broadcast_id: int) -> list[float]:
    """Fill the ledger, and return how long each transaction took."""
    seconds = []
    filled = True
    while filled:
        begun = time.perf_counter()
        with sessions.begin() as session:
            filled = ledger.fill(session, broadcast_id)
        seconds.append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    main()
