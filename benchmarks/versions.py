"""Choosing recipients by version: filling a ledger with and without a range, and what is asked around it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from registration import broadcasts, ledger, messages, monitoring, reports
from registration.audiences import EVERYBODY, Audience
from registration.db import engine_options
from registration.versions import parse_range, sort_key
from tests import mariadb

from . import report, servers

REGISTRATIONS, ROUNDS = 1_000_000, 2
VERSIONS = (
    "5.0.2",
    "6.0.0",
    "6.1.0 (1)",
    "7.0.0",
    "7.0.1",
    "7.0.2 (1)",
    "7.0.3",
    "7.0.3 (1)",
    "7.0.4-dev",
    "unheard of",
)
KEYS = tuple(str(sort_key(version) or "") for version in VERSIONS)
RANGED = Audience(parse_range(">=4.2,!=7.0.3,!=7.0.4-dev"), seen_since=datetime.now(UTC) - timedelta(days=400))
NARROW = Audience(parse_range(">=6.0.0,<7.0.2"), include_unknown=False)


def run(server: mariadb.Server) -> None:
    """Fill ledgers in turn, print medians, the longest transaction and the ratio; then the single statements."""
    url = servers.create_database(server, "versions", REGISTRATIONS)
    _store_installations(server)
    engine = create_engine(**engine_options(url, pool_size=4, reset_on_return=False))
    audiences = {"everybody": EVERYBODY, "a wide range": RANGED, "a narrow range, known only": NARROW}
    fills: dict[str, list[tuple[int, list[float]]]] = {name: [] for name in audiences}
    for _ in range(ROUNDS):
        for name, whom in audiences.items():
            fills[name].append(_fill(engine, whom))
    per_row = {name: statistics.median(sum(seconds) / size for size, seconds in runs) for name, runs in fills.items()}
    report.table(
        f"Filling a ledger from {REGISTRATIONS:,} registrations, medians of {ROUNDS}",
        ["", "recipients", "seconds", "µs a recipient", "99th percentile", "longest transaction ms"],
        [
            [
                name,
                f"{runs[0][0]:,}",
                f"{statistics.median(sum(seconds) for _, seconds in runs):.1f}",
                f"{per_row[name] * 1e6:.0f}",
                f"{statistics.quantiles(_transactions(runs), n=100)[98] * 1000:.0f}",
                f"{max(_transactions(runs)) * 1000:.0f}",
            ]
            for name, runs in fills.items()
        ],
    )
    plain, wide = (
        statistics.median(sum(seconds) for _, seconds in fills[name]) for name in ("everybody", "a wide range")
    )
    report.at_most(1.5, wide / plain, "Time of a fill with a wide range / without one")
    longest = max(max(_transactions(runs)) for runs in fills.values())
    report.at_most(1.0, longest, "Longest transaction of a fill, seconds")
    _statements(engine)
    engine.dispose()


def _store_installations(server: mariadb.Server) -> None:
    """Store one and a half times as many installations as there are registrations."""
    with server.connect("versions") as connection, connection.cursor() as cursor:
        # Nine in ten have an installation, six in ten a second one.
        for distribution, condition in (("", "MOD(id, 10) > 0"), ("docker", "MOD(id, 10) > 3")):
            dice = f"1 + MOD(CRC32(CONCAT(id, '{distribution}')), {len(VERSIONS)})"
            names, keys = (f"ELT({dice}, {', '.join(map(repr, texts))})" for texts in (VERSIONS, KEYS))
            cursor.execute(
                "INSERT INTO installation"
                " (registration_id, version, version_key, distribution, first_seen_at, last_seen_at)"
                f" SELECT id, {names}, NULLIF({keys}, ''), '{distribution}', created_at, created_at"
                f" FROM registration WHERE {condition} ORDER BY id"
            )
        cursor.execute("ANALYZE TABLE registration, installation")


def _transactions(runs: list[tuple[int, list[float]]]) -> list[float]:
    return [seconds for _, transactions in runs for seconds in transactions]


def _fill(engine: Engine, whom: Audience) -> tuple[int, list[float]]:
    """Start a broadcast and fill its ledger; return its size, and the seconds of each transaction."""
    sessions = sessionmaker(engine)
    with sessions.begin() as session:
        message = messages.compose("Update", "Please update.")
        broadcast_id = broadcasts.start(session, message, datetime.now(UTC), whom=whom, resend=True)
    seconds = []
    while True:
        begun = time.perf_counter()
        with sessions.begin() as session:
            if not ledger.fill(session, broadcast_id):
                break
        seconds.append(time.perf_counter() - begun)
    with sessions.begin() as session:
        size = sum(ledger.counts(session, broadcast_id).values())
        session.execute(text("TRUNCATE TABLE delivery"))
        session.execute(text("DELETE FROM broadcast_request"))
    return size, seconds


def _statements(engine: Engine) -> None:
    """Print what starting, a dry run, the page of versions and the figures take, each with a full ledger."""
    now = datetime.now(UTC)
    with _full_ledger(engine) as broadcast_id, Session(engine) as session:
        measured: dict[str, Callable[[], object]] = {
            "count everybody": lambda: broadcasts.start(session, _message("a"), now),
            "count a wide range": lambda: broadcasts.start(session, _message("b"), now, whom=RANGED),
            "dry run, everybody": lambda: monitoring.forecast(session, now),
            "dry run, a wide range": lambda: monitoring.forecast(session, now, whom=RANGED),
            "GET /api/registration/versions": lambda: reports.in_use(session.connection(), 101),
            "figures of a broadcast": lambda: monitoring.progress(session, broadcast_id, now),
        }
        rows = []
        for name, ask in measured.items():
            times = []
            for _ in range(3):
                begun = time.perf_counter()
                ask()
                times.append(time.perf_counter() - begun)
                session.rollback()
            rows.append([name, f"{statistics.median(times) * 1000:,.0f}"])
    report.table(f"With {REGISTRATIONS:,} registrations and as many deliveries, medians of 3", ["", "ms"], rows)


def _message(title: str) -> messages.Message:
    return messages.compose(title, "Please update.")


@contextmanager
def _full_ledger(engine: Engine) -> Iterator[int]:
    sessions = sessionmaker(engine)
    with sessions.begin() as session:
        broadcast_id = broadcasts.start(session, _message("full"), datetime.now(UTC))
    filling = True
    while filling:
        with sessions.begin() as session:
            filling = ledger.fill(session, broadcast_id)
    yield broadcast_id
