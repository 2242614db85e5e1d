"""The service's entrance, as a program of its own."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import click
import pytest
from flask import Flask
from flask.cli import ScriptInfo
from flask_migrate import upgrade
from sqlalchemy import select, update

import config
from registration import ROOT, broadcasts, create_event_queue, create_sender, monitoring
from registration.db import db
from registration.mailers.outbox import OutboxMailer
from registration.mailers.ses import SesMailer
from registration.models import Delivery, DeliveryStatus

from . import factories, mariadb
from .conftest import PIN, dispose, empty
from .inbox import Inbox
from .waiting import until

START_SECONDS = 30
A_FEW_SECONDS = 30


@dataclass
class Program:
    """`python application.py`, at work, and what it has printed."""

    process: subprocess.Popen[bytes]
    output: Path

    def wait_for(self, text: str) -> str:
        """Wait until the program has printed a text; return all that it has printed."""
        until(lambda: text in self.output.read_text() or self.process.poll() is not None)
        printed = self.output.read_text()
        assert text in printed
        return printed

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(A_FEW_SECONDS)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of the program: none of our own settings but these."""
    inherited = {name: value for name, value in os.environ.items() if name not in NAMES}
    return {
        **inherited,
        "DB_CONN_STR": f"sqlite:///{tmp_path}/registration.db",
        "OUTBOX_DIRECTORY": str(tmp_path / "outbox"),
        "LOG_FILE": str(tmp_path / "log"),
        "PORT": str(mariadb.free_port()),
    }


NAMES = {declared.name for declared in fields(config.Config)}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    """Start the program, somewhere else than in its own folder."""

    @contextmanager
    def start(*arguments: str, **settings: str) -> Iterator[Program]:
        output = tmp_path / f"output-{uuid.uuid4().hex}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, ROOT / "application.py", *arguments],
                env=environment | settings,
                cwd=tmp_path,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Program(process, output)
        finally:
            process.kill()
            process.wait()

    return start


def curl(line: str) -> Any:
    """Run a printed line, without curl if need be, and return the answer's JSON."""
    program, url, *options = shlex.split(line)
    assert program == "curl"
    if shutil.which(program):
        output = subprocess.run(
            [program, "--silent", url, *options], check=True, capture_output=True, timeout=60
        ).stdout
    else:
        with urlopen(url, "&".join(options[1::2]).encode() or None) as response:
            output = response.read()
    return json.loads(output)


def curl_lines(printed: str) -> list[str]:
    return [line.strip() for line in printed.splitlines() if line.strip().startswith("curl ")]


def test_development_says_where_it_is_and_its_three_lines_work_as_printed(
    start: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    with start("--dev") as program:
        printed = program.wait_for("Ctrl-C stops it.")
        assert f"http://127.0.0.1:{environment['PORT']}\n" in printed
        assert re.search(rf"pin +{config.DEVELOPMENT_PIN}\n", printed)
        assert re.search(rf"mails +{tmp_path}/outbox\n", printed)
        assert re.search(rf"logs +{tmp_path}/log\n", printed)

        registered, sent, counted = [curl(line) for line in curl_lines(printed)]

        assert program.end() == 0
    assert uuid.UUID(registered["productId"])
    assert (sent["status"], sent["recipients"], sent["sent"]) == ("sent", 1, 1)
    assert counted == {"count": 1}
    (mail,) = Inbox(tmp_path / "outbox").mails()
    assert mail.get_content_type() == "multipart/alternative"
    assert mail.get_body(("plain",)).get_content().splitlines()[0] == "This is a test."
    assert (mail["To"], mail["Subject"]) == ("ann@example.org", "Hello")
    assert mail["From"].addresses[0].addr_spec == "registration@localhost.localdomain"
    assert abs(parsedate_to_datetime(mail["Date"]) - datetime.now(UTC)) < timedelta(minutes=5)
    assert re.fullmatch(r"<[^<>@\s]+@[^<>@\s]+>", mail["Message-ID"])
    assert '"request"' not in (tmp_path / "log").read_text()
    assert "request  method=POST route=/api/registration status=201" in (tmp_path / "log").read_text()


def test_the_printed_lines_work_with_any_pin_and_ctrl_c_stops_it(start: Callable[..., Any]) -> None:
    with start("--dev", SECRET_PIN="two words & 'a quote' + 100%41") as program:
        lines = curl_lines(program.wait_for("Ctrl-C stops it."))

        assert curl(lines[1])["status"] == "sent"
        assert program.end(signal.SIGINT) == 0
    assert "Traceback" not in program.output.read_text()


def test_a_taken_port_is_said_so(start: Callable[..., Any], environment: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(environment["PORT"])))
        taken.listen()
        with start("--dev") as program:
            assert program.process.wait(START_SECONDS) == 1

    printed = program.output.read_text()
    assert f"Port {environment['PORT']} is taken. Choose another: PORT=" in printed
    assert "Traceback" not in printed


def test_it_does_not_go_on_when_nobody_reads_where_it_is(environment: dict[str, str], tmp_path: Path) -> None:
    """As of `python application.py --dev | head`: a sender would run on for ever beside no server."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, ROOT / "application.py", "--dev"]

    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=writing, stderr=subprocess.DEVNULL)

    os.close(writing)
    try:
        assert process.wait(START_SECONDS) != 0
    finally:
        process.kill()


@pytest.mark.parametrize(("number", "are_left_held"), [(signal.SIGTERM, False), (signal.SIGKILL, True)])
def test_a_broadcast_that_was_interrupted_goes_on_by_itself(
    start: Callable[..., Any],
    environment: dict[str, str],
    make_application: Callable[[str], Flask],
    tmp_path: Path,
    number: signal.Signals,
    *,
    are_left_held: bool,
) -> None:
    """A sender that is to end gives back what waits for its instant; one that is killed cannot."""
    application = make_application(environment["DB_CONN_STR"])
    with application.app_context():
        upgrade()
        emails = factories.register(60)
        broadcast_id = factories.start_broadcast()
    outbox = Inbox(tmp_path / "outbox")

    with start("--dev", SENDING_RATE="2") as program:
        until(lambda: len(outbox.mails()) >= 2)
        until(lambda: is_stopped_while_some_are_held(program, application))
        program.process.send_signal(number)
        program.process.send_signal(signal.SIGCONT)
        program.process.wait(START_SECONDS)
    assert len(outbox.mails()) < len(emails)
    assert are_held(application) is are_left_held
    with application.app_context():
        let_leases_run_out()
    with start("--dev") as program:
        until(lambda: is_sent(application, broadcast_id))
        assert program.end() == 0

    assert sorted(mail["To"] for mail in outbox.mails()) == sorted(emails)
    with application.app_context():
        assert monitoring.progress(db.session(), broadcast_id, datetime.now(UTC)).sent == len(emails)


def is_stopped_while_some_are_held(program: Program, application: Flask) -> bool:
    """Stop a program at an instant at which its sender holds deliveries, so that they are held for as long as we look.

    Return whether it did.
    """
    program.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, program.process.pid, os.WSTOPPED)
    if not (held := are_held(application)):
        program.process.send_signal(signal.SIGCONT)
    return held


def are_held(application: Flask) -> bool:
    with application.app_context():
        held = select(Delivery.id).where(Delivery.status == DeliveryStatus.SENDING)
        return db.session.execute(held.limit(1)).first() is not None


def let_leases_run_out() -> None:
    """Let the minute pass after which a delivery that a dead sender held is sent again."""
    held = update(Delivery).where(Delivery.status == DeliveryStatus.SENDING)
    db.session.execute(held.values(leased_until=datetime.now(UTC) - timedelta(seconds=1)))
    db.session.commit()


def is_sent(application: Flask, broadcast_id: int) -> bool:
    with application.app_context():
        return broadcasts.status_of(db.session(), broadcast_id) == "sent"


LINKS = {"PUBLIC_URL": "https://reg.example.org", "TOKEN_KEYS": "a key of at least thirty-two characters"}
LINKS |= {"SES_SENDER": "notices@example.org"}


@pytest.mark.parametrize("others", [{}, {"SECRET_PIN": "short", "PORT": "http"}])
def test_the_sender_without_settings_names_all_that_is_missing(
    start: Callable[..., Any], others: dict[str, str]
) -> None:
    with start("--sender", **({"DB_CONN_STR": "", "LOG_FILE": ""} | others)) as program:
        assert program.process.wait(START_SECONDS) == 2

    printed = program.output.read_text()
    for name in {"DB_CONN_STR", "SECRET_PIN", "SES_REGION", "SES_SENDER"} | others.keys():
        assert f"- {name} " in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("arguments", [[], ["--dev", "--sender"], ["--serve"]])
def test_what_it_cannot_do_is_answered_with_how_to_use_it(start: Callable[..., Any], arguments: list[str]) -> None:
    with start(*arguments) as program:
        assert program.process.wait(START_SECONDS) == 2

    assert "usage: application.py" in program.output.read_text()


@pytest.fixture
def production(mariadb_url: str, make_application: Callable[[str], Flask]) -> tuple[Flask, dict[str, str]]:
    """An application on an empty, migrated MariaDB database, and the settings of a sender for it."""
    application = make_application(mariadb_url)
    with application.app_context():
        empty()
    settings = {"DB_CONN_STR": mariadb_url, "SECRET_PIN": PIN, "MAILER": "outbox", "SES_SENDER": "notices@example.org"}
    settings |= LINKS
    return application, settings


def test_the_sender_sends_what_waits_and_ends_on_sigterm(
    start: Callable[..., Any], production: tuple[Flask, dict[str, str]], tmp_path: Path
) -> None:
    application, settings = production
    with application.app_context():
        emails = factories.register(60)
        broadcast_id = factories.start_broadcast()

    with start("--sender", **settings) as program:
        program.wait_for("a broadcast has ended")
        assert is_sent(application, broadcast_id)
        assert program.end() == 0

    lines = [json.loads(line)["message"] for line in program.output.read_text().splitlines()]
    assert (lines[0], lines[-1]) == ("the sender started", "the sender stopped")
    assert sorted(mail["To"] for mail in Inbox(tmp_path / "outbox").mails()) == sorted(emails)


def test_the_sender_ends_in_a_few_seconds_while_it_waits_for_the_pace(
    start: Callable[..., Any], production: tuple[Flask, dict[str, str]], tmp_path: Path
) -> None:
    application, settings = production
    with application.app_context():
        factories.register(3)
        broadcast_id = factories.start_broadcast()

    with start("--sender", SENDING_RATE="0.02", **settings) as program:
        until(lambda: len(Inbox(tmp_path / "outbox").mails()) == 1)
        until(lambda: progress(application, broadcast_id).sent == 1)
        assert program.end() == 0

    with application.app_context():
        assert progress(application, broadcast_id).remaining == 2
        assert db.session.query(Delivery).filter_by(status=DeliveryStatus.SENDING).count() == 0


def test_the_sender_ends_though_its_standard_error_is_closed(
    environment: dict[str, str], production: tuple[Flask, dict[str, str]], tmp_path: Path
) -> None:
    settings = environment | production[1]
    command = ["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, str(ROOT / "application.py"), "--sender"]

    with subprocess.Popen(command, env=settings, cwd=tmp_path, stdout=subprocess.PIPE) as sender:
        assert sender.stdout is not None
        assert b"the sender started" in sender.stdout.readline()
        sender.send_signal(signal.SIGTERM)
        printed, _ = sender.communicate(timeout=A_FEW_SECONDS)

    assert sender.returncode == 0
    assert b"the sender stopped" in printed


def test_a_second_signal_does_not_interrupt_the_first(
    environment: dict[str, str], production: tuple[Flask, dict[str, str]]
) -> None:
    """An event that is being set waits for its own lock when a handler sets it in between."""
    program = (
        "import application, faulthandler, signal\n"
        "stops = []\n"
        "def stop():\n"
        "    stops.append(signal.raise_signal(signal.SIGINT))\n"
        "application._on_termination(stop)\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        "faulthandler.cancel_dump_traceback_later()\n"
        "print(len(stops), 'stop')"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment | production[1], capture_output=True, check=True
    )

    assert b"1 stop" in done.stdout


@pytest.fixture
def endless_answers() -> Iterator[tuple[str, threading.Event]]:
    """Where a POST is answered byte by byte and without an end, so that no wait for a byte is long; whether one was."""
    begun, stopping = threading.Event(), threading.Event()

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if not self.request.recv(1000).startswith(b"POST"):
                return
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            begun.set()
            with suppress(OSError):
                while not stopping.wait(0.05):
                    self.request.sendall(b" ")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", begun
        stopping.set()
        server.shutdown()


@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "closed"])
def test_the_sender_ends_in_time_though_an_answer_never_does_and_standard_error_is_open_or_closed(
    production: tuple[Flask, dict[str, str]],
    environment: dict[str, str],
    endless_answers: tuple[str, threading.Event],
    *,
    is_closed: bool,
) -> None:
    (application, settings), (url, begun) = production, endless_answers
    with application.app_context():
        factories.register(3)
        factories.start_broadcast()
    settings |= {"MAILER": "ses", "SES_REGION": "us-east-1", "AWS_ACCESS_ID": "test", "AWS_SECRET_KEY": "test"}
    settings |= {"AWS_ENDPOINT_URL_SESV2": url}
    program = "import application; application.END_SECONDS = 1; application.main(['--sender'])"
    command = ["sh", "-c", f'exec "$0" "$@" {"2>&-" * is_closed}', sys.executable, "-c", program]

    with subprocess.Popen(command, cwd=ROOT, env=environment | settings, stderr=subprocess.PIPE) as sender:
        assert begun.wait(START_SECONDS)
        sender.send_signal(signal.SIGTERM)
        _, printed = sender.communicate(timeout=A_FEW_SECONDS)

    assert sender.returncode == 1
    assert (b"Timeout" in printed, b"in _send_one" in printed) == (not is_closed, not is_closed)


def test_the_sender_outlives_credentials_that_cannot_be_fetched_and_says_what_to_do(
    start: Callable[..., Any], production: tuple[Flask, dict[str, str]]
) -> None:
    application, settings = production
    with application.app_context():
        factories.register(3)
        broadcast_id = factories.start_broadcast()
    settings |= {"MAILER": "ses", "SES_REGION": "us-east-1", "AWS_PROFILE": "nowhere"}
    settings |= {"FEEDBACK_QUEUE_URL": f"http://127.0.0.1:{mariadb.free_port()}/queue"}

    with start("--sender", **settings) as program:
        until(lambda: progress(application, broadcast_id).status == "paused")
        assert program.end() == 0

    held = progress(application, broadcast_id)
    assert "credentials" in (held.reason or "")
    assert (held.failed, held.remaining, held.resume_at is None) == (0, 3, False)
    assert "Traceback" not in program.output.read_text()


def progress(application: Flask, broadcast_id: int) -> monitoring.Progress:
    with application.app_context():
        return monitoring.progress(db.session(), broadcast_id, datetime.now(UTC))


def test_the_settings_decide_how_mail_leaves(
    settings: dict[str, str], make_application: Callable[[str], Flask], sqlite_url: str, tmp_path: Path
) -> None:
    outbox = create_sender(make_application(sqlite_url)).mailer
    settings |= {"MAILER": "ses", "SES_REGION": "eu-west-1", "SES_SENDER": "notices@example.org"}
    settings |= {"AWS_ACCESS_ID": "AKIA", "AWS_SECRET_KEY": "secret", "SES_CONFIGURATION_SET": "notices"}
    settings |= {"SES_SENDER_NAME": "The board", "SES_REPLY_TO": "board@example.org", "POSTAL_ADDRESS": "1 Main Street"}
    ses = create_sender(make_application(sqlite_url)).mailer

    assert isinstance(outbox, OutboxMailer)
    assert outbox.directory == tmp_path / "outbox"
    assert outbox.letterhead.from_address == "OpenEMR <registration@localhost.localdomain>"
    assert isinstance(ses, SesMailer)
    assert ses.client().meta.region_name == "eu-west-1"
    assert ses.common == {
        "FromEmailAddress": "The board <notices@example.org>",
        "ReplyToAddresses": ["board@example.org"],
        "ConfigurationSetName": "notices",
    }
    assert ses.letterhead.postal_address == "1 Main Street"


def test_the_settings_decide_how_fast_it_sends_and_how_long_ip_addresses_stay(
    settings: dict[str, str], make_application: Callable[[str], Flask], sqlite_url: str
) -> None:
    settings |= {"SENDING_RATE": "12.5", "IP_RETENTION_DAYS": "7"}

    sender = create_sender(make_application(sqlite_url))

    assert (sender.rate_limit, sender.ip_retention) == (12.5, timedelta(days=7))


def test_a_web_server_takes_the_application_from_here(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, (environment | LINKS | {"SECRET_PIN": PIN, "MAILER": "outbox"}).get(name, ""))
    monkeypatch.delitem(sys.modules, "application", raising=False)

    application = importlib.import_module("application").application

    try:
        assert application.test_client().get("/health").status_code == 200
        assert application.config["DEVELOPMENT"] is False
    finally:
        dispose(application)


def test_a_web_server_does_not_start_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "application", raising=False)

    with pytest.raises(config.ConfigurationError, match="DB_CONN_STR is missing"):
        importlib.import_module("application")


@pytest.fixture
def as_if_for_development(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of a developer, who has the development pin."""
    values = environment | LINKS | {"SECRET_PIN": config.DEVELOPMENT_PIN, "MAILER": "outbox", "DEVELOPMENT": "true"}
    for name in NAMES:
        monkeypatch.setenv(name, values.get(name, ""))
    monkeypatch.delitem(sys.modules, "application", raising=False)


def test_a_web_server_is_never_one_for_development(as_if_for_development: None) -> None:
    with pytest.raises(config.ConfigurationError, match="SECRET_PIN"):
        importlib.import_module("application")


def test_the_flask_command_may_be_for_development(as_if_for_development: None) -> None:
    with click.Context(click.Command("flask"), obj=ScriptInfo()):
        application = importlib.import_module("application").application

    try:
        assert application.config["DEVELOPMENT"] is True
    finally:
        dispose(application)


def test_a_celery_worker_is_never_one_for_development(as_if_for_development: None) -> None:
    with (
        click.Context(click.Command("celery"), obj=object()),
        pytest.raises(config.ConfigurationError, match="SECRET_PIN"),
    ):
        importlib.import_module("application")


def test_the_settings_decide_where_events_come_from(
    settings: dict[str, str], make_application: Callable[[str], Flask], sqlite_url: str
) -> None:
    url = "https://sqs.eu-west-1.amazonaws.com/123456789012/registration-feedback"
    settings |= {"FEEDBACK_QUEUE_URL": url, "SES_REGION": "eu-west-1", "CIRCUIT_BREAKER_SAMPLE": "77"}

    queue = create_event_queue(make_application(sqlite_url))

    assert (queue.url, queue.sample, queue.client.meta.region_name) == (url, 77, "eu-west-1")
