"""Celery: the same sender in slices, on real queues, with workers that are killed and replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from celery import Celery, signals
from flask import Flask
from kombu.exceptions import OperationalError as QueueIsAway
from moto.server import ThreadedMotoServer
from sqlalchemy.exc import OperationalError

import config
from registration import broadcasts, create_sender, services, tasks
from registration import sender as sender_module

from . import conftest, crash, factories, failing, mariadb, redis_server
from .crash import Scene
from .sender_process import Orders
from .waiting import until

pytestmark = pytest.mark.timeout(180)

ORDERS = Orders(lease=10.0, batch_seconds=0.05)
"""Few recipients a call, so that a worker can be killed between two calls."""


@pytest.fixture(scope="module")
def sqs_url() -> Iterator[str]:
    """Amazon SQS, played by moto."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def stage(mariadb_server: mariadb.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Workers in processes of their own, on MariaDB and the stand-in for SES."""
    monkeypatch.setenv("ENGINE", "celery")
    with crash.scene(mariadb_server.create_database("celery"), granted=100, latency=0.05) as made:
        yield made


@pytest.fixture
def application(settings: dict[str, str], make_application: Callable[[str], Flask], sqlite_url: str) -> Iterator[Flask]:
    """An application whose queue is in memory."""
    settings |= {"ENGINE": "celery", "CELERY_BROKER_URL": "memory://"}
    application = make_application(sqlite_url)
    with application.app_context():
        conftest.empty()
        yield application
    signals.worker_shutting_down.send(sender="the test")


@pytest.fixture
def celery(application: Flask) -> Celery:
    """Celery with an empty queue: all that is in memory share one, also with tests before this."""
    made: Celery = application.extensions["celery"]
    waiting(made)
    return made


def waiting(celery: Celery) -> int:
    """Return how many messages are in the queue, and empty it."""
    with celery.connection() as connection:
        return connection.default_channel.queue_purge(tasks.QUEUE)


def join(name: str) -> None:
    """Wait for the end of the threads of this name."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(20)
            assert not thread.is_alive()


def test_everybody_gets_the_message_though_a_worker_is_killed(
    stage: Scene, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", redis_url)
    stage.register(400)
    workers = [stage.prepared(replace(ORDERS, die=die)) for die in ("called:5", "")]
    broadcast_id = stage.start()

    victim = workers[0]
    assert victim.popen.wait(60) < 0
    stage.note_kill(victim)
    figures = stage.finish(broadcast_id, 90)

    figures.check()
    assert figures.recipients == 400
    assert 0 < figures.duplicates <= figures.in_doubt < figures.recipients
    assert all("the sender started" in worker.log.read_text() for worker in workers)


def test_a_worker_that_is_told_to_end_finishes_its_calls_and_loses_nothing(
    stage: Scene, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", redis_url)
    stage.register(300)
    broadcast_id = stage.start()

    first = stage.plain()
    until(lambda: stage.statuses(broadcast_id)["sent"] > 50, 60)
    first.terminate()
    left = stage.statuses(broadcast_id)
    assert left["sending"] == 0
    assert left["queued"] > 0
    stage.plain()
    figures = stage.finish(broadcast_id, 90)

    figures.check()
    assert figures.duplicates == 0


def test_a_worker_whose_queue_is_away_ends_all_the_same(
    stage: Scene, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.register(1_000)
    with redis_server.running() as url:
        monkeypatch.setenv("CELERY_BROKER_URL", url)
        broadcast_id = stage.start()
        worker = stage.plain()
        until(lambda: stage.statuses(broadcast_id)["sent"] > 50, 60)
    time.sleep(3.0)  # a heartbeat would be sent every two

    worker.terminate()

    assert stage.statuses(broadcast_id)["sending"] == 0


def test_a_broadcast_is_sent_through_sqs(stage: Scene, sqs_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CELERY_BROKER_URL": "sqs://",
        "AWS_ENDPOINT_URL_SQS": sqs_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)
    stage.register(200)
    broadcast_id = stage.start()

    stage.plain()
    figures = stage.finish(broadcast_id, 90)

    figures.check()
    assert figures.duplicates == 0


def test_a_slice_is_over_long_before_a_queue_would_give_it_to_somebody_else() -> None:
    assert tasks.SLICE_SECONDS + 10 <= 30 < tasks.TRANSPORT["visibility_timeout"]


def test_a_task_sends_for_a_slice_and_asks_for_the_next(
    celery: Celery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tasks, "SLICE_SECONDS", 3.0)  # sent in a tenth of one, unless the disk is busy
    factories.register(3)
    factories.start_broadcast()

    celery.tasks[tasks.TASK]()

    assert len(list((tmp_path / "outbox").glob("*.eml"))) == 3
    assert waiting(celery) == 1


class Endless:
    """A sender that always has something to do."""

    def __init__(self) -> None:
        self.stopping, self.asked = threading.Event(), list[str]()

    def finds_work(self) -> bool:
        return True

    def run(self) -> None:
        assert self.stopping.wait(20)

    def pause(self) -> None:
        self.asked.append("pause")
        self.stopping.set()

    def stop(self) -> None:
        self.asked.append("stop")
        self.stopping.set()


def test_the_end_of_a_slice_is_no_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that is to end gives up what it cannot write down, and then somebody gets a second copy."""
    monkeypatch.setattr(tasks, "SLICE_SECONDS", 0.05)
    sender = Endless()

    tasks.create_celery("memory://", "us-east-1", lambda: sender).tasks[tasks.TASK]()  # type: ignore[arg-type, return-value]

    assert sender.asked == ["pause"]


def test_trouble_with_the_database_between_slices_leaves_leases_alone_for_a_while(
    celery: Celery, application: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who had answers in hand meanwhile write them down first."""
    sender = create_sender(application)
    sender.stopping.set()
    sender._expire_from = 0.0
    monkeypatch.setattr(sender_module, "TROUBLE_SECONDS", 0.01)
    failing.at_first(monkeypatch, broadcasts, "find_work", OperationalError("", {}, Exception("gone")))

    tasks.create_celery("memory://", "us-east-1", lambda: sender).tasks[tasks.TASK]()

    assert sender._expire_from > time.monotonic() + sender_module.GRACE_SECONDS - 5


def test_a_task_without_anything_to_send_ends_the_chain(celery: Celery) -> None:
    tasks.wake(celery)
    assert waiting(celery) == 1

    celery.tasks[tasks.TASK]()

    assert waiting(celery) == 0


def test_a_worker_asks_for_slices_by_itself_until_it_leaves(celery: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SWEEP_SECONDS", 0.05)
    tasks.wake(celery)
    waiting(celery)

    signals.worker_ready.send(sender="the test")
    for _ in range(3):
        until(lambda: waiting(celery))
    signals.worker_shutting_down.send(sender="the test")
    join(f"ask for {tasks.TASK}")


def test_a_worker_that_leaves_begins_nothing_and_stops_what_it_does(
    celery: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    celery.tasks[tasks.TASK]()
    factories.register(1)
    factories.start_broadcast()

    signals.worker_shutting_down.send(sender="the test")
    celery.tasks[tasks.TASK]()

    assert not (tmp_path / "outbox").exists()


def test_a_queue_that_is_away_fails_nobody(
    celery: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise QueueIsAway("Error 111 connecting to 127.0.0.1:6379. Connection refused.")

    monkeypatch.setattr(celery, "send_task", fail)

    tasks.wake(celery)

    assert "the queue could not be reached" in caplog.text


def test_a_request_does_not_wait_for_a_queue_that_is_away(
    settings: dict[str, str],
    make_application: Callable[[str], Flask],
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings |= {"ENGINE": "celery", "CELERY_BROKER_URL": f"redis://127.0.0.1:{mariadb.free_port()}/0"}
    application = make_application(sqlite_url)
    begun = time.monotonic()

    services.of(application).wake()

    assert time.monotonic() - begun < 0.5
    join("wake")
    assert "the queue could not be reached" in caplog.text


def test_without_celery_there_is_nobody_to_wake(make_application: Callable[[str], Flask], sqlite_url: str) -> None:
    application = make_application(sqlite_url)

    services.of(application).wake()

    assert "celery" not in application.extensions


def test_celery_needs_a_queue_and_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda _: None)

    with pytest.raises(config.ConfigurationError) as raised:
        config.read({"ENGINE": "celery"}, development=True)

    assert "CELERY_BROKER_URL is missing" in str(raised.value)
    assert "pip install -r requirements-celery.txt" in str(raised.value)
