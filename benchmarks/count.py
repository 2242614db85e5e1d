"""GET /api/registration/unique with few and with many registrations, on two databases of one server."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from registration import counting
from tests import mariadb

from . import report, servers
from .load import Connection

FEW, MANY = 1_000, 1_000_000
REQUESTS, STATEMENTS = 1_000, 7
REQUEST = b"GET /api/registration/unique HTTP/1.1\r\nHost: registration.example.org\r\nConnection: close\r\n\r\n"


def run(server: mariadb.Server) -> None:
    """Ask for both counts alternately, and print medians, their ratio and the rows that the database reads."""
    with servers.service(_fill(server, FEW)) as port_of_few, servers.service(_fill(server, MANY)) as port_of_many:
        ports = {FEW: port_of_few, MANY: port_of_many}
        for _ in range(50):
            for size, port in ports.items():
                _ask(port, size)
        request: dict[int, list[float]] = {size: [] for size in ports}
        for _ in range(REQUESTS):
            for size, port in ports.items():
                request[size].append(_seconds(partial(_ask, port, size)))
        rows_read = {size: _rows_read(server, port, size) for size, port in ports.items()}
    statement = {size: _select_count(server, size) for size in ports}
    report.table(
        f"GET /api/registration/unique, medians of {REQUESTS:,} requests each, alternately",
        ["registrations", "request ms", "rows read a request", "SELECT COUNT(*) alone ms"],
        [
            [
                f"{size:,}",
                f"{statistics.median(request[size]) * 1000:.2f}",
                f"{rows_read[size]:.1f}",
                f"{statistics.median(statement[size]) * 1000:.2f}",
            ]
            for size in ports
        ],
    )
    ratio = statistics.median(request[MANY]) / statistics.median(request[FEW])
    report.at_most(1.2, ratio, f"Time of a request with {MANY:,} / with {FEW:,} registrations")


def _fill(server: mariadb.Server, size: int) -> str:
    """Create a database with this many registrations, and let the sender's chore count them."""
    url = servers.create_database(server, _database(size), size)
    engine = create_engine(url)
    more = True
    while more:
        with Session(engine) as session, session.begin():
            more = counting.remember(session, up_to=size)
    engine.dispose()
    return url


def _database(size: int) -> str:
    return f"registrations_{size}"


def _ask(port: int, expected: int) -> None:
    connection = Connection(port, REQUEST)
    while not connection.receive(b"HTTP/1.1 200 "):
        pass
    connection.socket.close()
    count = json.loads(connection.received.partition(b"\r\n\r\n")[2])["count"]
    if count != expected:
        raise AssertionError(f"The service counts {count} registrations where there are {expected}.")


def _seconds(work: Callable[[], object]) -> float:
    begun_at = time.perf_counter()
    work()
    return time.perf_counter() - begun_at


def _rows_read(server: mariadb.Server, port: int, size: int) -> float:
    """Return how many rows the storage engine reads for a request, without what asking for that figure reads."""
    requests = 100
    start = _handler_reads(server)
    idle = _handler_reads(server) - start
    start = _handler_reads(server)
    for _ in range(requests):
        _ask(port, size)
    return (_handler_reads(server) - start - idle) / requests


def _handler_reads(server: mariadb.Server) -> int:
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Handler_read%'")
        return sum(int(value) for _, value in cursor.fetchall())


def _select_count(server: mariadb.Server, size: int) -> list[float]:
    with server.connect(_database(size)) as connection, connection.cursor() as cursor:
        return [_seconds(lambda: cursor.execute("SELECT COUNT(*) FROM registration")) for _ in range(STATEMENTS)]
