"""Taking the mail service's events as a Celery task, which each worker asks for every few seconds.

The task begins and leaves the work to a thread of its own: a slice of sending occupies the worker for longer than
bounces may wait. A worker that is still at it does not begin twice, and SQS keeps workers apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery, signals

from . import tasks
from .event_queue import EventQueue

TASK = "registration.take_events"
EXPIRE_SECONDS = tasks.SLICE_SECONDS + tasks.EXPIRE_SECONDS
"""Later than a slice ends: between two slices there is always one of these tasks to do."""
THREAD = "take events"


def add_to(celery: Celery, make_events: Callable[[], EventQueue]) -> None:
    """Let the workers of a Celery application take events. The first task makes the queue's client."""
    events, leaving = cache(make_events), threading.Event()

    @celery.task(name=TASK, shared=False)
    def take_events() -> None:
        """Take the events that have come."""
        if not leaving.is_set():
            threading.Thread(target=events().drain, name=THREAD).start()

    @signals.worker_ready.connect(weak=False)
    def sweep(**_: Any) -> None:
        threading.Thread(target=wake_now_and_then, name="sweep for events", daemon=True).start()

    def wake_now_and_then() -> None:
        tasks.wake(celery, TASK, EXPIRE_SECONDS)
        while not leaving.wait(tasks.SWEEP_SECONDS):
            tasks.wake(celery, TASK, EXPIRE_SECONDS)

    @signals.worker_shutting_down.connect(weak=False)
    def leave(**_: Any) -> None:
        leaving.set()
        if events.cache_info().currsize:
            events().stop()
