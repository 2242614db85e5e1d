"""The servers that are measured: gunicorn in processes of its own, as in production."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import mariadb

ROOT = Path(__file__).parent.parent
START_SECONDS = 30
PIN = "correct horse battery staple"
AS_IN_PRODUCTION = ("--config", "gunicorn.conf.py")
AS_IT_COMES = ("--config", os.devnull)
"""Without the file that gunicorn would find by itself."""


@contextmanager
def gunicorn(application: str, *options: str, **settings: str) -> Iterator[int]:
    """Serve an application on a free port of this machine, with `settings` in its environment; give the port."""
    port = mariadb.free_port()
    command = [sys.executable, "-m", "gunicorn", *options, "--bind", f"127.0.0.1:{port}", application]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _await(port, process)
            yield port
        except BaseException:
            output.seek(0)
            sys.stderr.write(output.read()[-4000:].decode("utf-8", "replace"))
            raise
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def service(database_url: str) -> Iterator[int]:
    """Serve the service as in production: gunicorn.conf.py, logs to standard output and a file, one proxy."""
    with (
        tempfile.TemporaryDirectory() as folder,
        gunicorn(
            "application:application",
            *AS_IN_PRODUCTION,
            DB_CONN_STR=database_url,
            SECRET_PIN=PIN,
            PUBLIC_URL="https://reg.example.org",
            TOKEN_KEYS="a key of at least thirty-two characters",
            DEVELOPMENT="",
            MAILER="ses",
            SES_REGION="us-east-1",
            SES_SENDER="registration@example.org",
            AWS_ACCESS_ID="test",
            AWS_SECRET_KEY="test",
            TRUSTED_PROXIES="1",
            ALLOW_RESERVED_DOMAINS="true",
            REGISTRATIONS_PER_NETWORK="1000000000",  # counted, never reached
            REGISTRATIONS_PER_MINUTE="1000000000",
            LOG_FILE=str(Path(folder, "log")),
        ) as port,
    ):
        yield port


def create_database(server: mariadb.Server, name: str, registrations: int = 0) -> str:
    """Create a database from schema.sql, with active registrations of three days ago, and return its URL."""
    url = server.create_database(name)
    _, schema = (ROOT / "schema.sql").read_text().split("\n", maxsplit=1)
    rows = (
        "INSERT INTO registration (product_id, email, email_key, status, created_at)"
        " SELECT UNHEX(MD5(seq)), CONCAT('clinic-', seq, '@example.org'), CONCAT('clinic-', seq, '@example.org'),"
        f" 'active', UTC_TIMESTAMP(6) - INTERVAL 3 DAY FROM seq_1_to_{registrations}"
    )
    with server.connect(name) as connection, connection.cursor() as cursor:
        for statement in filter(str.strip, schema.split(";\n")):
            cursor.execute(statement)
        if registrations:
            cursor.execute(rows)
    return url


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until any answer comes."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            try:
                connection.request("GET", "/")
                connection.getresponse()
            except OSError:
                time.sleep(0.05)
            else:
                return
    raise RuntimeError("gunicorn did not start; its output is above.")
