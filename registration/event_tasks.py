"""Taking the mail service's events as a Celery task, which each worker asks for every few seconds.

The task begins and leaves the work to a thread of its own: a slice of sending occupies the worker for longer than
bounces may wait. A worker that is still at it does not begin twice, and SQS keeps workers apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

from celery import Celery

from . import tasks
from .event_queue import EventQueue

TASK = "registration.take_events"
EXPIRE_SECONDS = tasks.SLICE_SECONDS + tasks.EXPIRE_SECONDS
"""Later than a slice ends: between two slices there is always one of these tasks to do."""
THREAD = "take events"


def add_to(celery: Celery, make_events: Callable[[], EventQueue]) -> None:
    """Let the workers of a Celery application take events. The first task makes the queue's client."""
    events = cache(make_events)

    def stop() -> None:
        if events.cache_info().currsize:
            events().stop()

    leaving = tasks.keep_asking(celery, TASK, EXPIRE_SECONDS, on_leave=stop)

    @celery.task(name=TASK, shared=False)
    def take_events() -> None:
        """Take the events that have come."""
        if not leaving.is_set():
            threading.Thread(target=events().drain, name=THREAD).start()
