"""How gunicorn runs the web process; it reads this file from the directory that it starts in."""

from __future__ import annotations

import logging

from config import WEB_THREADS

bind = "127.0.0.1:8000"  # where Elastic Beanstalk's nginx looks for a Python application
worker_class = "gthread"
workers = 2
threads = WEB_THREADS  # a broadcast holds one while it waits; of the rest, the more wait together the fewer the commits

timeout = 60  # of a worker's heartbeat, not of a request
graceful_timeout = 55  # a broadcast waits up to 45 seconds; systemd kills whatever is left after 90
keepalive = 75  # longer than nginx keeps an idle connection, so that it never reuses one that is being closed

limit_request_line = 8190  # as much as nginx lets through
control_socket_disable = True  # nothing here talks to gunicornc
accesslog = None  # the application logs each request itself; an access log holds query strings: addresses and pins


def hide_request(record: logging.LogRecord) -> bool:
    """Keep out of gunicorn's own messages what it quotes from requests."""
    for quoting in ("Invalid request from", "Error handling request"):
        if str(record.msg).startswith(quoting):
            record.msg, record.args = f"{quoting} ...", ()
    return True


logging.getLogger("gunicorn.error").addFilter(hide_request)
