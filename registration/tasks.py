"""The sender as a Celery task, for more machines than one.

A task is one slice of a sender's work and puts the next one on the queue. Every few seconds each worker puts one
there too, which is how sending goes on when a worker has died or a message was lost. A message that nobody is free to
take expires, so there are never more slices than workers. It carries nothing: the ledger knows what is to be done,
and keeps senders apart whatever the queue repeats or loses.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery, signals

from .sender import Sender

QUEUE, TASK = "registration", "registration.send"
SLICE_SECONDS = 20.0
"""With the calls in flight well under the time after which SQS gives a message to another worker, see TRANSPORT."""
SWEEP_SECONDS = EXPIRE_SECONDS = 5.0
SETTINGS = {
    "task_default_queue": QUEUE,
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_ignore_result": True,
    "task_publish_retry": False,  # a request that starts a broadcast does not wait for a queue that is away
    "worker_pool": "threads",  # so that a signal reaches the sender, and nothing is shared across a fork
    "worker_concurrency": 1,  # one sender has many calls in flight; what more of them need is machines
    "worker_prefetch_multiplier": 1,
    "worker_enable_remote_control": False,  # it leaves a queue behind for each worker on SQS
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
}
TRANSPORT = {
    "visibility_timeout": 120,  # seconds after which a message whose worker has died is given to another
    "wait_time_seconds": 10,  # SQS's long polling
    "max_retries": 1,
    "socket_connect_timeout": 3.0,
    "socket_timeout": 10.0,
}

log = logging.getLogger(__name__)


def create_celery(broker_url: str, region: str, make_sender: Callable[[], Sender]) -> Celery:
    """Build the Celery application. The first task makes the sender, so that web processes have none."""
    celery = Celery(QUEUE, broker=broker_url, set_as_current=False)
    celery.conf.update(SETTINGS, broker_transport_options=TRANSPORT | {"region": region})
    sender = cache(make_sender)

    def stop() -> None:
        if sender.cache_info().currsize:
            sender().stop()

    leaving = keep_asking(celery, TASK, EXPIRE_SECONDS, on_leave=stop)

    @celery.task(name=TASK, shared=False)
    def send() -> None:
        """Send for a while if a broadcast is under way, and ask for the next slice."""
        sender().stopping.clear()
        if leaving.is_set():
            return
        if sender().finds_work():
            timer = threading.Timer(SLICE_SECONDS, sender().pause)
            timer.start()
            sender().run()
            timer.cancel()
            wake(celery)

    @signals.setup_logging.connect(weak=False)
    def keep_our_logging(**_: Any) -> None:
        logging.getLogger("celery").setLevel(logging.WARNING)

    return celery


def keep_asking(celery: Celery, task: str, expires: float, *, on_leave: Callable[[], None]) -> threading.Event:
    """Let each worker, once it is ready, put a task on the queue every few seconds; return what tells that it leaves.

    `on_leave` is called then.
    """
    leaving = threading.Event()

    def ask() -> None:
        wake(celery, task, expires)
        while not leaving.wait(SWEEP_SECONDS):
            wake(celery, task, expires)

    @signals.worker_ready.connect(weak=False)
    def begin(**_: Any) -> None:
        threading.Thread(target=ask, name=f"ask for {task}", daemon=True).start()

    @signals.worker_shutting_down.connect(weak=False)
    def leave(**_: Any) -> None:
        leaving.set()
        on_leave()

    return leaving


def wake(celery: Celery, task: str = TASK, expires: float = EXPIRE_SECONDS) -> None:
    """Ask a worker to send, or for another task. A queue that is away fails nobody: workers ask again by themselves."""
    try:
        celery.send_task(task, expires=expires)
    except Exception as error:  # noqa: BLE001  each kind of queue has errors of its own
        log.warning("the queue could not be reached; workers ask again by themselves", extra={"error": repr(error)})
