"""Taking the mail service's events as a Celery task, with its messages in memory and Amazon SQS played by moto."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, signals
from flask import Flask

from registration import event_queue, event_tasks, feedback, tasks
from registration.models import Feedback

from . import conftest, ses_events
from .ledgers import commit
from .test_event_queue import left, put, queue_url, sent, sqs
from .waiting import until

__all__ = ["queue_url", "sqs"]


@pytest.fixture
def celery(
    settings: dict[str, str],
    make_application: Callable[[str], Flask],
    sqlite_url: str,
    queue_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Celery]:
    monkeypatch.setattr(event_queue, "WAIT_SECONDS", 0)
    settings |= {"ENGINE": "celery", "CELERY_BROKER_URL": "memory://", "FEEDBACK_QUEUE_URL": queue_url}
    settings |= {"AWS_ACCESS_ID": "test", "AWS_SECRET_KEY": "test"}
    application = make_application(sqlite_url)
    with application.app_context():
        conftest.empty()
        yield application.extensions["celery"]
    signals.worker_shutting_down.send(sender="the test")
    join()


def join() -> None:
    """Wait for the end of the threads that take events."""
    for thread in threading.enumerate():
        if thread.name in {event_tasks.THREAD, f"ask for {event_tasks.TASK}", f"ask for {tasks.TASK}"}:
            thread.join(20)
            assert not thread.is_alive()


def test_a_task_takes_the_events_that_have_come(celery: Celery, sqs: Any, queue_url: str) -> None:
    broadcast_id, ids = sent(12)
    put(sqs, queue_url, *map(ses_events.delivery, ids))

    celery.tasks[event_tasks.TASK]()
    join()

    assert commit(feedback.counts, broadcast_id)[Feedback.DELIVERED] == 12
    assert left(sqs, queue_url) == 0


def test_a_worker_asks_for_it_by_itself_until_it_leaves(celery: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SWEEP_SECONDS", 0.05)
    asked: list[tuple[str, float]] = []
    monkeypatch.setattr(celery, "send_task", lambda name, expires: asked.append((name, expires)))

    signals.worker_ready.send(sender="the test")
    until(lambda: asked.count((event_tasks.TASK, event_tasks.EXPIRE_SECONDS)) > 2)
    signals.worker_shutting_down.send(sender="the test")
    join()


def test_a_worker_that_leaves_takes_nothing_more(celery: Celery, sqs: Any, queue_url: str) -> None:
    _, ids = sent(1)
    celery.tasks[event_tasks.TASK]()
    join()
    signals.worker_shutting_down.send(sender="the test")
    put(sqs, queue_url, ses_events.delivery(ids[0]))

    celery.tasks[event_tasks.TASK]()
    join()

    assert left(sqs, queue_url) == 1


def test_the_task_outlives_a_slice_of_sending() -> None:
    assert event_tasks.EXPIRE_SECONDS > tasks.SLICE_SECONDS


def test_without_a_queue_there_is_no_task(
    settings: dict[str, str], make_application: Callable[[str], Flask], sqlite_url: str
) -> None:
    settings |= {"ENGINE": "celery", "CELERY_BROKER_URL": "memory://"}
    application = make_application(sqlite_url)

    assert event_tasks.TASK not in application.extensions["celery"].tasks
