"""How long an idle system takes from the request for a broadcast to the first call to SES."""

from __future__ import annotations

import statistics
import tempfile
import time
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

from tests import mariadb, ses_fake
from tests.crash import Scene

from . import report, servers

ROUNDS = 20
RECIPIENTS = 3
REST_SECONDS = 0.3
GOAL_SECONDS = 0.1


def run(server: mariadb.Server) -> None:
    """Post broadcasts to the service as in production, with a sender that has nothing to do, and print the times."""
    with tempfile.TemporaryDirectory() as folder, ses_fake.spawned() as fake:
        stage = Scene(server.create_database("wake_up"), fake, Path(folder))
        try:
            stage.register(RECIPIENTS)
            stage.plain().await_start()
            with servers.service(stage.url) as port:
                seconds = [_measure(fake, port) for _ in range(ROUNDS + 1)][1:]
        finally:
            stage.close()
    median, longest = statistics.median(seconds), max(seconds)
    report.table(
        f"From the POST to the first call to SES, {ROUNDS} broadcasts",
        ["", "median", "longest"],
        [["milliseconds", f"{median * 1000:.0f}", f"{longest * 1000:.0f}"]],
    )
    report.at_most(GOAL_SECONDS, median, "The median in seconds")


def _measure(fake: ses_fake.SpawnedFake, port: int) -> float:
    """Post a broadcast to an idle system; the clock of the stand-in is this process's, as on every Linux."""
    fake.reset()
    time.sleep(REST_SECONDS)
    fields = {"secretPin": servers.PIN, "title": "OpenEMR 7.0.3 (2)", "contents": "Please update today."}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/registration/broadcast",
        data=urllib.parse.urlencode(fields).encode(),
        headers={"Idempotency-Key": uuid.uuid4().hex},
    )
    begun = time.monotonic()
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200, answer.read()
    return float(fake.read()["first"]) - begun
