"""Who sends, the service's own processes or Celery workers on Redis: messages a second of one and of two."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from unittest import mock

from tests import mariadb, redis_server, ses_fake
from tests.crash import STARTED, Scene

from . import report

ROUNDS, RECIPIENTS = 5, 20_000
GRANTED = 100_000.0
"""The account's rate: more than any of them can send."""
OWN, CELERY = "process of its own", "Celery worker"


def run(server: mariadb.Server) -> None:
    """Measure all in turn, several rounds, and print medians and ratios."""
    if not redis_server.is_installed():
        raise SystemExit(redis_server.MISSING)
    with redis_server.running() as redis:
        rounds = [
            {(who, number): _measure(server, settings, number) for who, settings in _kinds(redis) for number in (1, 2)}
            for _ in range(ROUNDS)
        ]
    report.table(
        f"Who sends, medians of {ROUNDS} broadcasts to {RECIPIENTS:,}",
        ["", "how many", "messages/s", "times one process of its own"],
        [
            [
                who,
                str(number),
                f"{statistics.median(seen[who, number] for seen in rounds):,.0f}",
                f"{statistics.median(seen[who, number] / seen[OWN, 1] for seen in rounds):.2f}",
            ]
            for who, number in rounds[0]
        ],
    )


def _kinds(redis: str) -> list[tuple[str, dict[str, str]]]:
    return [(OWN, {"ENGINE": "sender"}), (CELERY, {"ENGINE": "celery", "CELERY_BROKER_URL": redis})]


def _measure(server: mariadb.Server, settings: dict[str, str], number: int) -> float:
    """Return the messages a second between the first and the last of a broadcast."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ses_fake.spawned(granted=GRANTED) as fake,
        mock.patch.dict(os.environ, settings),
    ):
        stage = Scene(server.create_database("workers"), fake, Path(folder))
        try:
            stage.register(RECIPIENTS)
            processes = [stage.plain() for _ in range(number)]
            if settings["ENGINE"] == "sender":
                for process in processes:
                    process.await_start()
            stage.finish(stage.start(), 120).check()
            assert all(STARTED in process.log.read_text() for process in processes)
            counted = fake.read()
        finally:
            stage.close()
    return float((counted["accepted"] - 1) / counted["seconds"])
