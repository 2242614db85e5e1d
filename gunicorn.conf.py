"""Settings of gunicorn, which runs the web process; it reads this file from the directory that it starts in."""

from __future__ import annotations

import gc
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

from config import WEB_THREADS
from logger import JsonLines


class JsonLogger(Logger):
    """Writes gunicorn's own messages as the application writes its."""

    def setup(self, cfg: Any) -> None:
        """Set the handlers up."""
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(JsonLines())


bind = "127.0.0.1:8000"  # where Elastic Beanstalk's nginx looks for a Python application
worker_class = "gthread"
workers = 2
threads = WEB_THREADS  # a broadcast holds one while it waits; registrations of all the others share their commits
worker_connections = WEB_THREADS  # who comes when all are busy waits for the first that is free, in either worker

timeout = 60  # of a worker's heartbeat, not of a request
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  a heartbeat waits for no disk
graceful_timeout = 55  # a broadcast waits 45 seconds, up to 50 if set so; systemd kills whatever is left after 90
keepalive = 0  # Elastic Beanstalk's nginx opens a connection for each request; an idle one would hold a place

limit_request_line = 8190  # as much as nginx lets through
control_socket_disable = True  # nothing here talks to gunicornc
logger_class = JsonLogger
accesslog = None  # the application logs each request itself; an access log holds query strings: addresses and pins


def pre_fork(server: Any, worker: Any) -> None:
    """Choose a processor for a worker: the one that the fewest of the others have, so a successor takes the free one.

    Of a process of Python one thread runs at a time, and to hand its turn to a thread on another processor costs more
    than that one is worth: 1.4 times the registrations a second (`python -m benchmarks registrations`).
    """
    if hasattr(os, "sched_setaffinity"):  # Linux
        taken = [other.processor for other in server.WORKERS.values()]
        worker.processor = min(sorted(os.sched_getaffinity(0)), key=taken.count)


def post_fork(_: Any, worker: Any) -> None:
    """Keep a worker, with the threads that it will start, on its processor, and let none of them interrupt another.

    A thread that is woken by another finds Python in use, so to let it run at once only costs: a sixth of the simplest
    answers a second. Under SCHED_BATCH it runs when the other waits (`man 7 sched`).
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {worker.processor})
        with suppress(OSError):  # some containers forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def post_worker_init(_: Any) -> None:
    """Leave what is loaded by now out of garbage collections: going through it all made the slowest requests slower."""
    gc.collect()
    gc.freeze()


def hide_request(record: logging.LogRecord) -> bool:
    """Keep out of gunicorn's own messages what it quotes from requests."""
    for quoting in ("Invalid request from", "Error handling request"):
        if str(record.msg).startswith(quoting):
            record.msg, record.args = f"{quoting} ...", ()
    return True


logging.getLogger("gunicorn.error").addFilter(hide_request)
