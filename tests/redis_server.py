"""A private Redis server in a temporary directory, for the tests of Celery."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .mariadb import free_port

START_SECONDS = 20
MISSING = "Redis is not installed; on Debian: apt-get install redis-server"


def is_installed() -> bool:
    """Return whether a server can be started here."""
    return shutil.which("redis-server") is not None


@contextmanager
def running() -> Iterator[str]:
    """Serve on a free port until the block ends; yield the URL."""
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        port = free_port()
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
            try:
                _await(port, process)
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                process.terminate()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("Redis does not start") from error
        time.sleep(0.02)
