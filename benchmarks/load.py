"""A load generator in a process of its own: has some registrations under way all the time and reports as JSON.

Each request has a connection of its own, as in production: Elastic Beanstalk's nginx asks for each to be closed
(`Connection: close`, in `.platform/nginx/nginx.conf`). The time that it takes to connect belongs to the request. It
runs on the machine it measures, so it is as cheap as Python makes it: one thread, prepared bytes, sockets that are read
when they are readable, and of an answer only the status and the length are looked at.
"""

from __future__ import annotations

import gc
import itertools
import json
import selectors
import socket
import statistics
import sys
import time
from collections.abc import Iterator

WARM_UP_SECONDS = 0.5
PATIENCE_SECONDS = 30.0
_HEAD_END, _LENGTH = b"\r\n\r\n", b"Content-Length: "


class UnexpectedAnswerError(Exception):
    """A server did not answer as the benchmark needs it to; the message is what it said."""


class Connection:
    """A connection to a server on this machine, and the one request on it."""

    def __init__(self, port: int, request: bytes) -> None:
        self.begun_at = time.perf_counter()
        self.received = b""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(request)

    def receive(self, status: bytes) -> bool:
        """Read once; return whether the answer is complete. Raises UnexpectedAnswerError for any other status."""
        data = self.socket.recv(65536)
        self.received += data
        if not data or not self.received.startswith(status):
            raise UnexpectedAnswerError(self.received.decode("utf-8", "replace") or "(the connection was closed)")
        head_end = self.received.find(_HEAD_END)
        if head_end < 0:
            return False
        length_at = self.received.index(_LENGTH, 0, head_end) + len(_LENGTH)
        length = int(self.received[length_at : self.received.index(b"\r\n", length_at)])
        return len(self.received) == head_end + len(_HEAD_END) + length


def registrations_of(name: str) -> Iterator[bytes]:
    """Return requests that each register another address; `name` must be new each time."""
    body = b"email=%s-%%08d%%%%40example.org" % name.encode()
    head = (
        "POST /api/registration HTTP/1.1\r\n"
        "Host: registration.example.org\r\n"
        "Connection: close\r\n"
        "X-Forwarded-For: 203.0.113.7\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body % 0)}\r\n\r\n"
    )
    request = head.encode() + body
    return (request % number for number in itertools.count())


def keep_busy(port: int, connections: int, seconds: float, requests: Iterator[bytes]) -> list[float]:
    """Have so many requests under way all the time, each on its own connection; return how long each took, in seconds.

    Requests that end in the first WARM_UP_SECONDS do not count.
    """
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        warm_at = time.perf_counter() + WARM_UP_SECONDS
        end_at = warm_at + seconds
        for _ in range(connections):
            _begin(port, next(requests), selector)
        while selector.get_map():
            events = selector.select(PATIENCE_SECONDS)
            if not events:
                raise UnexpectedAnswerError(f"(nothing for {PATIENCE_SECONDS:.0f} seconds)")
            for connection in [key.data for key, _ in events if key.data.receive(b"HTTP/1.1 201 ")]:
                now = time.perf_counter()
                if warm_at < now <= end_at:
                    latencies.append(now - connection.begun_at)
                selector.unregister(connection.socket)
                connection.socket.close()
                if now <= end_at:
                    _begin(port, next(requests), selector)
    return latencies


def _begin(port: int, request: bytes, selector: selectors.BaseSelector) -> None:
    connection = Connection(port, request)
    selector.register(connection.socket, selectors.EVENT_READ, connection)


def main() -> None:
    """Take port, connections, seconds and a name for the addresses; print what was seen as JSON, times in ms."""
    port, connections, seconds, name = sys.argv[1:]
    gc.disable()
    latencies = keep_busy(int(port), int(connections), float(seconds), registrations_of(name))
    percentiles = statistics.quantiles(latencies, n=100)
    seen = {
        "per_second": len(latencies) / float(seconds),
        "p50": percentiles[49] * 1000,
        "p99": percentiles[98] * 1000,
        "own_processor": time.process_time() / (WARM_UP_SECONDS + float(seconds)),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
