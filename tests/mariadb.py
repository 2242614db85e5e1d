"""A private MariaDB server in a temporary directory, for the tests and the benchmarks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pymysql

START_SECONDS = 60
MISSING = "MariaDB is not installed; on Debian: apt-get install mariadb-server"


@dataclass
class Server:
    """A running server."""

    folder: Path
    port: int
    durable: bool
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        return str(self.folder / "socket")

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database, over TCP as in production.

        Without TLS, which the server does not offer: PyMySQL gets ready for it at 30 ms a connection.
        """
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{database}?ssl_disabled=1"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        program = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, MISSING
        arguments = [
            program,
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--tmpdir={self.folder / 'tmp'}",
            f"--socket={self.socket}",
            f"--pid-file={self.folder / 'pid'}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            f"--innodb-flush-log-at-trx-commit={1 if self.durable else 0}",
            f"--innodb-buffer-pool-size={'1G' if self.durable else '128M'}",
            "--max-connections=300",
            *_as_current_user(),
        ]
        log = self.folder / "log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=output)
        deadline = time.monotonic() + START_SECONDS
        while not Path(self.socket).exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server; it can be started again with its data."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=30)
            self.process = None

    def connect(self, database: str | None = None) -> pymysql.connections.Connection:
        """Return an autocommitting connection as the administrator."""
        return pymysql.connect(unix_socket=self.socket, user="root", database=database, autocommit=True)

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {name}")
            cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
        return self.url(name)


def is_installed() -> bool:
    """Return whether a server can be started here."""
    return shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin") is not None


@contextmanager
def running(*, durable: bool = False) -> Iterator[Server]:
    """Start a server on a free port, and stop and delete it afterwards."""
    with tempfile.TemporaryDirectory(prefix="mariadb-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={folder / 'data'}",
                f"--tmpdir={folder / 'tmp'}",  # servers that share one get into each other's way
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *_as_current_user(),
            ],
            check=True,
            capture_output=True,
        )
        server = Server(folder, free_port(), durable)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def free_port() -> int:
    """Return a TCP port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as_current_user() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []
