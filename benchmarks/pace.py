"""Whether the account's rate is used in full and never lost to: against a stand-in that refuses what exceeds it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests import mariadb, ses_fake
from tests.crash import Scene

from . import report

RATES = (1.0, 14.0, 300.0, 2_000.0)
SENDERS = (1, 2, 4)
LATENCIES = (0.0, 0.2)
SECONDS = 20.0
SLOWEST_SECONDS = 30.0
"""How long it takes at a rate of 1, where a message is a large part of a short measurement."""
SCARCE_SECONDS = 60.0
"""How long it takes where one bulk call a second is let through: a sender has to find that out first."""
GOAL = 95.0


@dataclass(frozen=True)
class Pace:
    """How a broadcast went, at a rate of so many recipients a second."""

    rate: float
    senders: int
    latency: float
    average: float
    peak: int
    throttled: int
    lost: int
    copies: int
    is_scarce: bool

    @property
    def share(self) -> float:
        """Return the average in per cent of the rate."""
        return 100 * self.average / self.rate


def run(
    server: mariadb.Server,
    *,
    rates: Sequence[float] = RATES,
    senders: Sequence[int] = SENDERS,
    latencies: Sequence[float] = LATENCIES,
    seconds: float = SECONDS,
) -> list[Pace]:
    """Measure every combination and print a table."""
    measured = []
    for rate, number, latency in product(rates, senders, latencies):
        measured.append(measure(server, rate, number, latency, max(seconds, SLOWEST_SECONDS) if rate < 2 else seconds))
        print(".", end="", flush=True)
    measured += [measure_one_bulk_call_a_second(server, number) for number in (1, 2)]
    report.table(
        "The pace: recipients a second, against a stand-in for SES that refuses what exceeds the rate in any second",
        ["rate", "senders", "ms a call", "average", "% of the rate", "peak in a second", "throttled", "lost", "copies"],
        [_row(pace) for pace in measured],
    )
    worst = min(pace.share for pace in measured if not pace.is_scarce)
    report.at_least(GOAL, worst, "The lowest average in per cent of its rate")
    return measured


def measure(server: mariadb.Server, rate: float, senders: int, latency: float, seconds: float) -> Pace:
    """Send for so many seconds with so many processes.

    The average is that between the first and the last message, so that neither starting nor finishing counts.
    """
    recipients = max(10, int(rate * seconds))
    return _measure(server, rate, senders, recipients, {"rate": rate, "latency": latency})


def measure_one_bulk_call_a_second(server: mariadb.Server, senders: int) -> Pace:
    """Send through an account that may send 300 recipients a second but make one bulk call a second only."""
    return _measure(server, 300.0, senders, int(300 * SCARCE_SECONDS), {"rate": 300.0, "bulk_calls": 1.0})


def _measure(server: mariadb.Server, rate: float, senders: int, recipients: int, conduct: dict[str, float]) -> Pace:
    with tempfile.TemporaryDirectory() as folder, ses_fake.spawned(**conduct) as fake:
        stage = Scene(server.create_database("pace"), fake, Path(folder))
        try:
            stage.register(recipients)
            for process in [stage.plain() for _ in range(senders)]:
                process.await_start(120)
            time.sleep(0.5)
            figures = stage.finish(stage.start(), 10 * recipients / rate + 120)
            counted = fake.read()
        finally:
            stage.close()
    return Pace(
        rate=rate,
        senders=senders,
        latency=conduct.get("latency", 0.0),
        average=(counted["accepted"] - 1) / counted["seconds"],
        peak=counted["peak_asked"],
        throttled=counted["refused_messages"],
        lost=figures.lost,
        copies=figures.duplicates,
        is_scarce="bulk_calls" in conduct,
    )


def _row(pace: Pace) -> list[str]:
    return [
        f"{pace.rate:,.0f}{', one bulk call a second' if pace.is_scarce else ''}",
        str(pace.senders),
        f"{pace.latency * 1000:.0f}",
        f"{pace.average:,.2f}",
        f"{pace.share:.1f}",
        f"{pace.peak:,}",
        f"{pace.throttled:,}",
        str(pace.lost),
        str(pace.copies),
    ]
