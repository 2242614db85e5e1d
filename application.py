"""The service's entrance.

gunicorn and flask take `application` from here; `python application.py --dev` serves it on this machine with
safe development settings, and `python application.py --sender` runs the production process that sends.
"""

from __future__ import annotations

import argparse
import faulthandler
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from click import ClickException, get_current_context
from flask import Flask
from flask.cli import ScriptInfo
from flask_migrate import upgrade
from werkzeug.serving import make_server

import config
from registration import ROOT, create_application, create_event_queue, create_sender
from registration.event_queue import EventQueue
from registration.sender import Sender

HOST = "127.0.0.1"
END_SECONDS = 28.0
"""A signal ends a process by then, whatever its threads wait for: an answer that comes byte by byte, a name server."""
WORKER = ["--quiet", "worker", "--without-gossip", "--without-mingle", "--without-heartbeat"]
"""What the celery command is told: workers have nothing to tell each other, nor a queue that is away when they end."""


def main(arguments: list[str]) -> int:
    """Serve for development, or send for production; return the exit status."""
    parser = argparse.ArgumentParser(prog="application.py", description=__doc__.split("\n")[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--dev", action="store_true", help="serve on this machine, with development settings")
    mode.add_argument("--sender", action="store_true", help="send broadcasts until SIGTERM; needs the settings")
    chosen = parser.parse_args(arguments)
    try:
        settings = config.read(development=chosen.dev)
    except config.ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    if chosen.sender:
        return _send(create_application(settings))
    return _serve(settings)


def _send(application: Flask) -> int:
    """Send, and take the mail service's events, until a signal comes; the batches in hand are finished."""
    if "celery" in application.extensions:
        application.extensions["celery"].worker_main(WORKER)
        return 0
    workers = _workers(application)
    threads = _threads(workers)
    _on_termination(lambda: [worker.stop() for worker in workers])
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # a join without end can sleep through a signal that came just before it
            thread.join(0.5)
    return 0


def _serve(settings: config.Config) -> int:
    """Serve with a database, an outbox and a sender of our own until Ctrl-C."""
    application = create_application(settings)
    with application.app_context():
        upgrade()
    try:
        server = make_server(HOST, settings.PORT, application, threaded=True)
    except (OSError, SystemExit):
        print(f"Port {settings.PORT} is taken. Choose another: PORT={settings.PORT + 1} make run", file=sys.stderr)
        return 1
    workers = [] if "celery" in application.extensions else _workers(application)
    threads = _threads(workers)
    _on_termination(lambda: threading.Thread(target=server.shutdown).start())
    _introduce(settings)  # fails where nobody reads on, and a thread that runs by then would keep the process alive
    for thread in threads:
        thread.start()
    server.serve_forever()
    for worker in workers:
        worker.stop()
    for thread in threads:
        thread.join()
    return 0


def _workers(application: Flask) -> list[Sender | EventQueue]:
    """Build what works beside the web: who sends, and who takes events if there is a queue of them."""
    takes_events = application.config["FEEDBACK_QUEUE_URL"]
    return [create_sender(application), *([create_event_queue(application)] if takes_events else [])]


def _threads(workers: Sequence[Sender | EventQueue]) -> list[threading.Thread]:
    return [threading.Thread(target=worker.run, name=type(worker).__name__) for worker in workers]


def _on_termination(stop: Callable[[], object]) -> None:
    once = iter([stop])  # a second signal may interrupt the first, whose lock it would then wait for

    def end(*_: object) -> None:
        for begin_to_stop in once:
            _end_in_time()
            begin_to_stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def _end_in_time() -> None:
    """End the process in a while; print what its threads wait for then."""
    told_to = sys.stderr or Path("/dev/null").open("w")  # None when it was closed  # noqa: SIM115
    faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=told_to)


def _introduce(settings: config.Config) -> None:
    url = f"http://{HOST}:{settings.PORT}"
    api = f"{url}/api/registration"
    pin = shlex.quote(f"secretPin={settings.SECRET_PIN}")
    print(
        f"""
OpenEMR Product Registration, for development: {url}
  secret pin  {settings.SECRET_PIN}
  mails       {ROOT / settings.OUTBOX_DIRECTORY}
  logs        {ROOT / settings.LOG_FILE}

  curl {api} -d email=ann@example.org
  curl {api}/broadcast --data-urlencode {pin} -d title=Hello -d contents="This is a test."
  curl {api}/unique

Ctrl-C stops it.
""",
        flush=True,
    )


if __name__ == "__main__":  # before the application for others is made: each mode makes its own
    sys.exit(main(sys.argv[1:]))


def _create() -> Flask:
    """Build what others import.

    The flask command tells wrong settings without a traceback, and it alone heeds DEVELOPMENT: a server that others
    reach never does, and no Celery worker. It answers on standard output, so its log lines go to standard error.
    """
    command = get_current_context(silent=True)
    by_command = command is not None and command.find_object(ScriptInfo) is not None
    try:
        settings = config.read(development=None if by_command else False)
        return create_application(settings, log_to=sys.stderr if by_command else sys.stdout)
    except config.ConfigurationError as error:
        if by_command:
            raise ClickException(str(error)) from error
        raise


application = _create()
if "celery" in application.extensions:
    celery = application.extensions["celery"]
