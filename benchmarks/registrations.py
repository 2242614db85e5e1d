"""Registrations a second and their latency: the plainest service, the barest, this, and a POST that only answers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from contextlib import ExitStack

from config import WEB_THREADS
from tests import mariadb

from . import report, servers

CONNECTIONS = (16, 64)
ROUNDS, SECONDS = 7, 2.0
"""Many short rounds rather than a few long ones: whatever else the machine does then hits all alike."""
PLAINEST, BAREST = "plainest, 2 sync workers", f"barest, 2 x {WEB_THREADS} threads"
SERVICE, ANSWER = f"the service, 2 x {WEB_THREADS} threads", "POST that only answers"

Seen = dict[str, float]
"""What one run of `benchmarks.load` saw."""


def run(server: mariadb.Server) -> None:
    """Measure them in turn, several rounds, and print medians and ratios."""
    with ExitStack() as stack:
        plainest = servers.gunicorn(
            "benchmarks.plainest:application",
            *servers.AS_IT_COMES,
            "--workers=2",
            DB_CONN_STR=_create_plain_database(server, "plainest"),
        )
        barest = servers.gunicorn(
            "benchmarks.barest:application",
            *servers.AS_IN_PRODUCTION,
            DB_CONN_STR=_create_plain_database(server, "barest"),
        )
        answer = servers.gunicorn("benchmarks.answer:application", *servers.AS_IN_PRODUCTION)
        service = servers.service(servers.create_database(server, "service"))
        ports = {
            PLAINEST: stack.enter_context(plainest),
            BAREST: stack.enter_context(barest),
            SERVICE: stack.enter_context(service),
            ANSWER: stack.enter_context(answer),
        }
        for port in ports.values():
            _load(port, max(CONNECTIONS), 1.0, "warm-up")
        rounds = [
            {(name, n): _load(port, n, SECONDS, f"{turn}-{n}") for n in CONNECTIONS for name, port in ports.items()}
            for turn in range(ROUNDS)
        ]
    _print(rounds)


def _create_plain_database(server: mariadb.Server, name: str) -> str:
    url = server.create_database(name)
    with server.connect(name) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE registration (id INTEGER NOT NULL AUTO_INCREMENT PRIMARY KEY,"
            " email VARCHAR(254) NOT NULL UNIQUE, product_id VARCHAR(36) NOT NULL)"
        )
    return url


def _load(port: int, connections: int, seconds: float, name: str) -> Seen:
    command = [sys.executable, "-m", "benchmarks.load", str(port), str(connections), str(seconds), name]
    done = subprocess.run(command, cwd=servers.ROOT, check=True, stdout=subprocess.PIPE)
    seen: Seen = json.loads(done.stdout)
    return seen


def _print(rounds: list[dict[tuple[str, int], Seen]]) -> None:
    def values(figure: str, name: str, connections: int) -> list[float]:
        return [seen[name, connections][figure] for seen in rounds]

    def ratio(figure: str, above: str, below: str, connections: int) -> float:
        pairs = zip(values(figure, above, connections), values(figure, below, connections), strict=True)
        return statistics.median(a / b for a, b in pairs)

    rows = []
    for connections in CONNECTIONS:
        for name in (PLAINEST, BAREST, SERVICE, ANSWER):
            per_second = values("per_second", name, connections)
            p50, p99 = (statistics.median(values(figure, name, connections)) for figure in ("p50", "p99"))
            spread = f"{min(per_second):,.0f}-{max(per_second):,.0f}"
            row = [name, str(connections), f"{statistics.median(per_second):,.0f}", spread, f"{p50:.1f}", f"{p99:.1f}"]
            rows.append(row)
    report.table(
        f"Registrations, every commit on disk; medians of {ROUNDS} rounds of {SECONDS:g} s",
        ["", "connections", "a second", "lowest-highest", "p50 ms", "p99 ms"],
        rows,
    )
    own = max(figures["own_processor"] for seen in rounds for figures in seen.values())
    print(f"The load generator needed {own:.0%} of one processor at most.")
    for connections in CONNECTIONS:
        times = ratio("per_second", SERVICE, PLAINEST, connections)
        report.at_least(3, times, f"Rate of the service / plainest at {connections} connections")
    report.at_most(1 / 3, ratio("p99", SERVICE, PLAINEST, 64), "p99 of the service / plainest at 64 connections")
    share = ratio("per_second", SERVICE, ANSWER, 16)
    report.at_least(0.45, share, "Rate of the service / POST that only answers at 16 connections")
    print("The barest, for what can be reached:", end=" ")
    rates = [f"{ratio('per_second', BAREST, PLAINEST, n):.2f} at {n}" for n in CONNECTIONS]
    p99, share = ratio("p99", BAREST, PLAINEST, 64), ratio("per_second", BAREST, ANSWER, 16)
    print(f"rate / plainest {', '.join(rates)}; p99 / plainest {p99:.2f}; rate / answer {share:.2f}.")
