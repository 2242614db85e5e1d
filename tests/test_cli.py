"""The commands, through click's runner and once on a real terminal."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade
from sqlalchemy import select, update
from sqlalchemy.event import listen, remove
from sqlalchemy.exc import OperationalError

from registration import ROOT, broadcasts, cli, feedback, messages, terminal
from registration.db import db
from registration.mailers import Account, Outcome, Recipient, Verdict
from registration.mailers.outbox import OutboxMailer
from registration.messages import Message
from registration.models import BroadcastStatus, Pace
from registration.sender import Sender

from . import factories, failing, ledgers, ses_events
from .conftest import HEADERS
from .inbox import Inbox
from .running import running
from .waiting import until

Run = Callable[..., Result]
WhenSaid = Callable[[str, Callable[[], None]], None]
README = (ROOT / "README.md").read_text()
COMMANDS = {"send", "list", "show", "pause", "resume", "cancel", "retry"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "POLL_SECONDS", 0.02)


@pytest.fixture
def run(application: Flask) -> Run:
    """Run a command as `flask broadcast` does."""
    runner = application.test_cli_runner()
    return lambda *arguments, **named: runner.invoke(args=["broadcast", *map(str, arguments)], **named)


@pytest.fixture
def notice(tmp_path: Path) -> Path:
    file = tmp_path / "notice.txt"
    file.write_text("There is a hole.\n")
    return file


@pytest.fixture
def when_said(monkeypatch: pytest.MonkeyPatch) -> WhenSaid:
    """Do something as soon as a sentence with these words is shown, once."""

    def when_said(words: str, do: Callable[[], None]) -> None:
        left = [do]

        def say(screen: terminal.Screen, sentence: str) -> None:
            original(screen, sentence)
            if words in sentence and left:
                left.pop()()

        original = terminal.Screen.say
        monkeypatch.setattr(terminal.Screen, "say", say)

    return when_said


def register(application: Flask, number: int) -> None:
    with application.app_context():
        factories.register(number)


def start(application: Flask, **named: str) -> int:
    with application.app_context():
        return factories.start_broadcast(**named)


def status_of(application: Flask, broadcast_id: int) -> BroadcastStatus:
    with application.app_context():
        return broadcasts.status_of(db.session(), broadcast_id)


def test_send_sends_to_everybody_and_shows_the_end(
    application: Flask, sender: Sender, run: Run, notice: Path, tmp_path: Path
) -> None:
    register(application, 3)

    with running(sender):
        result = run("send", "--title", "Update now", notice, "--yes")

    assert result.exit_code == 0
    assert re.match(r"Broadcast \d+ has started\.\n", result.output)
    assert "3 of 3 sent" in result.output
    assert "recipients    3" in result.output
    assert len(list((tmp_path / "outbox").glob("*.eml"))) == 3


def test_send_takes_html_from_a_file(
    application: Flask, sender: Sender, run: Run, notice: Path, tmp_path: Path
) -> None:
    register(application, 1)
    html = tmp_path / "notice.html"
    html.write_text("<p>Own page</p>")

    with running(sender):
        result = run("send", "--title", "Update now", "--html", str(html), notice, "--yes")

    assert result.exit_code == 0
    (file,) = (tmp_path / "outbox").glob("*.eml")
    mail = message_from_bytes(file.read_bytes(), policy=default)
    assert "<p>Own page</p>" in mail.get_body(("html",)).get_content()


def test_send_says_how_many_and_how_long_and_asks(application: Flask, run: Run, notice: Path) -> None:
    register(application, 3)
    with application.app_context():
        db.session.execute(update(Pace).values(granted_rate=0.01))
        db.session.commit()

    result = run("send", "--title", "Update now", notice, input="n\n")

    assert result.exit_code == 1
    assert '"Update now" goes to 3 recipients. It takes about 5 minutes.' in result.output
    assert run("list").output == "There has been no broadcast yet.\n"


def test_send_admits_that_the_rate_is_not_known_yet(application: Flask, run: Run, notice: Path) -> None:
    assert "How long it takes is not known yet" in run("send", "--title", "x", notice, input="n\n").output


def test_send_takes_its_text_from_standard_input(application: Flask, sender: Sender, run: Run, tmp_path: Path) -> None:
    register(application, 1)

    with running(sender):
        result = run("send", "--title", "Update now", "--yes", input="Grüße aus dem Rohr.\n".encode())

    assert result.exit_code == 0
    assert len(list((tmp_path / "outbox").glob("*.eml"))) == 1


def test_send_cannot_ask_when_the_text_comes_from_a_pipe(run: Run) -> None:
    result = run("send", "--title", "Update now", input="There is a hole.\n")

    assert result.exit_code == 2
    assert "add --yes" in result.output


def test_a_repetition_shows_the_first_and_is_sent_to_nobody(
    application: Flask, sender: Sender, run: Run, notice: Path, tmp_path: Path
) -> None:
    register(application, 1)
    with running(sender):
        run("send", "--title", "Update now", notice, "--yes")
        repeated = run("send", "--title", "Update now", notice, "--yes")
        again = run("send", "--title", "Update now", notice, "--yes", "--resend")
        at_once = run("send", "--title", "Update now", notice, "--yes", "--resend")

    assert repeated.exit_code == 1
    assert "Nobody gets it again. --resend sends it to everybody once more." in repeated.output
    assert "is sent." in repeated.output
    assert again.exit_code == 0
    assert at_once.exit_code == 1
    assert "--resend" not in at_once.output
    assert len(list((tmp_path / "outbox").glob("*.eml"))) == 2


def test_ctrl_c_while_the_figures_are_looked_up_leaves_them_as_they_were_last_seen(
    application: Flask, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with application.app_context():
        factories.register(1)
        broadcast_id = factories.start_broadcast()
        broadcasts.pause(db.session(), broadcast_id)
        db.session.commit()
        engine = db.engine
    slept = []

    def interrupt(*_: object) -> None:
        if slept:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.time, "sleep", slept.append)
    listen(engine, "do_execute", interrupt)
    try:
        result = run("show", "--follow", broadcast_id)
    finally:
        remove(engine, "do_execute", interrupt)

    assert result.exit_code == cli.INTERRUPTED
    assert f"resume {broadcast_id}\n" in result.output


def test_an_urgent_repetition_makes_the_first_urgent(application: Flask, run: Run, notice: Path) -> None:
    with application.app_context():
        factories.register(1)
        broadcasts.start(db.session(), messages.compose("Update now", notice.read_text()), datetime.now(UTC))
        db.session.commit()

    repeated = run("send", "--title", "Update now", notice, "--yes", "--urgent")

    assert repeated.exit_code == 1
    assert re.search("urgent +yes", repeated.output)


@pytest.mark.parametrize(
    ("step", "sentences"),
    [
        (None, ["The broadcast goes on without you. Look at it: ", "show --follow {}\n", "Stop it: ", "cancel {}\n"]),
        ("hold", ["The broadcast goes on without you. Look at it: "]),
        ("pause", ["It waits until somebody resumes it. Resume it: ", "resume {}\n", "Stop it: ", "cancel {}\n"]),
        ("cancel", ["Broadcast {} is cancelled. Look at it: ", "show --follow {}\n"]),
    ],
)
def test_ctrl_c_tells_what_becomes_of_the_broadcast(
    application: Flask, run: Run, monkeypatch: pytest.MonkeyPatch, step: str | None, sentences: list[str]
) -> None:
    with application.app_context():
        factories.register(1)
        factories.put_sender_to_work()
        broadcast_id = factories.start_broadcast()
        more = {"reason": "The quota is used up.", "now": datetime.now(UTC)} if step == "hold" else {}
        if step:
            getattr(broadcasts, step)(db.session(), broadcast_id, **more)
        db.session.commit()

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.time, "sleep", interrupt)
    result = run("show", "--follow", broadcast_id)

    assert result.exit_code == cli.INTERRUPTED
    wanted = [sentence.format(broadcast_id) for sentence in sentences]
    assert [sentence for sentence in wanted if sentence not in result.output] == []
    assert ("goes on without you" in result.output) is (step in (None, "hold"))
    assert ("Stop it" in result.output) is (step != "cancel")


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["send", "--title", " ", "--yes"], 1, "The title must have 1 to 200 characters."),
        (["send", "--title", "x", "--yes", "no-such-file"], 2, "no-such-file"),
        (["show", "4711"], 1, "There is no broadcast with this id."),
        (["pause", "4711"], 1, "There is no broadcast with this id."),
        (["show", "first"], 2, "'first' is not a valid integer"),
        (["retry", "4711"], 1, "There is no broadcast with this id."),
    ],
)
def test_an_error_is_a_sentence_and_an_exit_status(run: Run, arguments: list[str], status: int, sentence: str) -> None:
    result = run(*arguments, input="There is a hole.\n")

    assert result.exit_code == status
    assert sentence in result.output
    assert "Traceback" not in result.output


def test_a_text_that_is_not_utf_8_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("Grüße".encode("latin-1"))

    result = run("send", "--title", "x", "--yes", tmp_path / "latin")

    assert result.exit_code == 1
    assert "not valid UTF-8" in result.output


def test_a_database_that_is_away_is_said_to_be(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", {}, Exception("Can't connect to MySQL server"))

    monkeypatch.setattr(broadcasts, "page", fail)

    result = run("list")

    assert result.exit_code == 1
    assert "The database does not answer, or lacks its tables" in result.output
    assert "Can't connect" in result.output


def test_figures_that_are_to_be_followed_are_not_json(run: Run) -> None:
    result = run("show", "1", "--json", "--follow")

    assert result.exit_code == 2
    assert "Leave out --follow" in result.output


def test_whoever_has_read_enough_of_the_output_is_told_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing.at_first(monkeypatch, broadcasts, "page", BrokenPipeError(errno.EPIPE, "Broken pipe"))

    result = run("list")

    assert (result.exit_code, result.stderr) == (1, "")


def test_list_is_a_table_newest_first(application: Flask, run: Run) -> None:
    register(application, 2)
    first, second = start(application, title="One"), start(application, title="Two")

    lines = run("list").output.splitlines()

    assert lines[0].split() == ["id", "started", "status", "recipients", "sent", "failed", "left", "title"]
    assert [line.split()[0] for line in lines[1:]] == [str(second), str(first)]
    assert lines[1].endswith("  sending           2     0       0     2  Two")
    assert len(run("list", "--limit", 1).output.splitlines()) == 2


def test_json_has_the_figures_of_the_api(application: Flask, run: Run, client: FlaskClient) -> None:
    register(application, 2)
    broadcast_id = start(application)

    shown = json.loads(run("show", broadcast_id, "--json").output)
    listed = json.loads(run("list", "--json").output)

    answered = client.get(f"/api/registration/broadcast/{broadcast_id}", headers=HEADERS).get_json()
    for changing in ("secondsLeft", "expectedEnd"):
        assert changing in shown
        for figures in (shown, listed[0], answered):
            figures.pop(changing, None)
    assert shown == answered
    assert set(shown.pop("feedback").values()) == {0}
    assert listed == [shown]


def test_show_says_what_became_of_the_messages(application: Flask, run: Run) -> None:
    with application.app_context():
        broadcast_id = ledgers.filled(2)
        ledgers.settle(ledgers.claim(broadcast_id), *[ledgers.ACCEPTED] * 2)
        first, second = ledgers.lines(broadcast_id)
        events = [ses_events.delivery(first.id), ses_events.bounce(second.id)]
        ledgers.commit(feedback.take, events, ledgers.NOW)

    shown = run("show", broadcast_id).output

    assert shown.splitlines()[-1] == "Of 2 accepted: 1 delivered, 1 bounced for good."


def test_pause_resume_cancel_and_retry_steer_a_broadcast(application: Flask, sender: Sender, run: Run) -> None:
    register(application, 2)
    broadcast_id = start(application)

    assert f"Broadcast {broadcast_id} is paused. Somebody paused it." in run("pause", broadcast_id).output
    assert f"Broadcast {broadcast_id} is sending." in run("resume", broadcast_id).output
    assert run("cancel", broadcast_id, input="n\n").exit_code == 1
    assert status_of(application, broadcast_id) is BroadcastStatus.SENDING
    assert f"Broadcast {broadcast_id} is cancelled." in run("cancel", broadcast_id, "--yes").output
    with running(sender):
        followed = run("show", broadcast_id, "--follow")
        assert followed.exit_code == 1
        assert "cancelled     2" in followed.output
        again = run("show", broadcast_id, "--follow")
        assert (again.exit_code, again.output.count("cancelled     2")) == (1, 1)
        too_late = run("cancel", broadcast_id)
        assert (too_late.exit_code, "nothing to cancel" in too_late.output) == (1, True)
        assert run("retry", broadcast_id).exit_code == 0
        assert run("show", broadcast_id, "--follow").exit_code == 0
    assert status_of(application, broadcast_id) is BroadcastStatus.SENT


def test_what_is_done_by_command_is_in_the_log_as_what_is_done_over_http(
    application: Flask, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "_follow", lambda _: None)
    notice = tmp_path / "notice.txt"
    notice.write_text("There is a hole.\n")
    register(application, 2)
    send = ("send", "--title", "Update now", str(notice))
    run(*send, "--test", "ann@example.org")
    assert run(*send, "--yes").exit_code == 0
    run(*send, "--yes", "--urgent")
    (broadcast_id,) = (record.broadcast for record in caplog.records if record.message == "a broadcast has started")
    for command in ("pause", "resume", "retry"):
        run(command, broadcast_id)
    run("cancel", broadcast_id, "--yes")

    told = [(record.message, getattr(record, "call", "")) for record in caplog.records if record.name == cli.__name__]
    assert told == [
        ("a test was sent", ""),
        ("a broadcast has started", ""),
        ("a broadcast was made urgent", ""),
        *(("somebody steered a broadcast", f"broadcast {name}") for name in ("pause", "resume", "retry", "cancel")),
    ]


class HeldMailer:
    """Says no to everybody until it is told otherwise."""

    open = False

    def largest_batch(self, message: Message) -> int:
        return 50

    def send(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        verdict = Verdict.ACCEPTED if self.open else Verdict.HELD
        return [Outcome(verdict, reason="Sending is paused in Amazon SES.")] * len(recipients)

    def account(self) -> Account:
        return Account(1000.0)


def test_a_broadcast_that_is_held_up_says_why_and_is_followed_until_it_has_ended(
    application: Flask, sender: Sender, run: Run, notice: Path, monkeypatch: pytest.MonkeyPatch, when_said: WhenSaid
) -> None:
    monkeypatch.setattr(broadcasts, "HOLD", timedelta(seconds=5))
    register(application, 1)
    mailer = HeldMailer()
    when_said("It tries again at", lambda: setattr(mailer, "open", True))

    with running(replace(sender, mailer=mailer)):
        result = run("send", "--title", "Update now", notice, "--yes")

    assert result.exit_code == 0
    assert result.output.count("is paused. Sending is paused in Amazon SES. It tries again at") == 1


def test_a_start_that_gave_way_to_another_is_tried_again(
    application: Flask, sender: Sender, run: Run, notice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(application, 1)
    left = failing.at_first(monkeypatch, broadcasts, "start", failing.deadlock())
    with running(sender):
        result = run("send", "--title", "Update now", notice, "--yes")

    assert (result.exit_code, left) == (0, [])


def test_without_a_sender_it_says_so_and_how_to_start_one(
    application: Flask,
    sender: Sender,
    run: Run,
    notice: Path,
    monkeypatch: pytest.MonkeyPatch,
    when_said: WhenSaid,
) -> None:
    monkeypatch.setattr(cli, "QUIET_SECONDS", 0.1)
    register(application, 1)
    late = threading.Thread(target=sender.run)
    when_said("If no sender is running, start one: python application.py --sender", late.start)

    result = run("send", "--title", "Update now", notice, "--yes")
    sender.stop()
    late.join()

    assert result.exit_code == 0
    assert "If no sender is running" in result.output


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_explained_by_its_help_and_by_readme(run: Run, name: str) -> None:
    command = cli.broadcast.commands[name]
    assert command.help
    assert all(option.help for option in command.params if hasattr(option, "help"))
    assert run(name, "--help").exit_code == 0
    assert re.search(rf"flask --app application broadcast {name}\b", README)


def test_there_are_no_other_commands() -> None:
    assert cli.broadcast.commands.keys() == COMMANDS


def test_readme_names_no_option_that_there_is_not() -> None:
    for name, rest in re.findall(r"flask --app application broadcast (\w+)(.*)", README):
        known = {text for parameter in cli.broadcast.commands[name].params for text in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known


def test_ctrl_c_on_a_terminal_leaves_the_broadcast_running(
    make_application: Callable[[str], Flask], settings: dict[str, str], tmp_path: Path, notice: Path
) -> None:
    url = f"sqlite:///{tmp_path}/terminal.db"
    application = make_application(url)
    with application.app_context():
        upgrade()
    register(application, 3000)
    environment = {**os.environ, **settings, "DEVELOPMENT": "true", "DB_CONN_STR": url, "SENDING_RATE": "20"}
    environment |= {"MAILER": "outbox", "SES_SENDER": "notices@example.org"}
    environment |= {"PUBLIC_URL": "https://notices.example.org", "TOKEN_KEYS": "k" * 32}
    sender = subprocess.Popen([sys.executable, "application.py", "--sender"], cwd=ROOT, env=environment)
    try:
        output, status = on_a_terminal(["send", "--title", "Update now", str(notice)], environment)
        assert status == cli.INTERRUPTED
        assert "goes to 3,000 recipients" in output
        summary = r"\r\x1b\[K\[\.+\]\s+\d+%  \d+ of 3,000 sent  0 failed  [\d.]+ a second  \d:\d\d left"
        assert re.search(summary, output)
        assert "The broadcast goes on without you. Look at it: " in output
        assert "Traceback" not in output
        with application.app_context():
            before = factories.sent()
            until(lambda: factories.sent() > before + 20)
    finally:
        sender.terminate()
        assert sender.wait(30) == 0


def on_a_terminal(arguments: list[str], environment: dict[str, str]) -> tuple[str, int]:
    """Run a command on a terminal of its own, agree, press Ctrl-C in mid-send; return what was shown and the status."""
    pid, terminal_ = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored by what a shell runs in the background, and inherited
        os.chdir(ROOT)
        command = [sys.executable, "-m", "flask", "--app", "application", "broadcast", *arguments]
        os.execve(command[0], command, environment)
    shown, deadline, steps = "", time.monotonic() + 60, [(r"\[y/N\]", b"y\n"), (r"[1-9]\d* of 3,000 sent", b"\x03")]
    try:
        while time.monotonic() < deadline:
            shown += os.read(terminal_, 4096).decode()
            if steps and re.search(steps[0][0], shown):
                os.write(terminal_, steps.pop(0)[1])
    except OSError:  # EIO: it has ended
        return shown, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(terminal_)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(shown)


def test_send_to_some_versions_says_to_whom(application: Flask, run: Run, notice: Path) -> None:
    with application.app_context():
        for version in ("7.0.2", "7.0.3 (1)"):
            factories.install(*factories.register(1), version)
        factories.register(1)
    how = ("send", "--title", "x", "--versions", "<7.0.3.1", notice)

    everybody, known = run(*how, "--dry-run"), run(*how, "--unknown", "exclude", "--dry-run")

    assert (everybody.exit_code, known.exit_code) == (0, 0)
    assert "goes to 2 recipients" in everybody.output
    assert "goes to 1 recipients" in known.output
    assert re.search(r"outside the range +1\n", known.output)
    assert run("list").output == "There has been no broadcast yet.\n"


def test_send_sends_a_test_to_one_address_only(
    application: Flask, run: Run, notice: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(application, 3)
    how = ("send", "--title", "Update", notice)

    def free_at() -> float:
        with application.app_context():
            return db.session.execute(select(Pace.free_at)).scalar_one()

    before = free_at()
    result = run(*how, "--test", " me@example.org ")

    assert free_at() > before

    assert (result.exit_code, result.output) == (0, "The test was sent. Nobody else got it.\n")
    (mail,) = inbox.mails()
    assert (mail["To"], mail["Subject"]) == ("me@example.org", "[TEST] Update")
    assert run("list").output == "There has been no broadcast yet.\n"

    for wrong in ("", "nobody"):
        assert run(*how, "--test", wrong, "--yes").exit_code == 1
    monkeypatch.setattr(OutboxMailer, "send", lambda *_: [Outcome(Verdict.REFUSED, reason="It was refused.")])
    refused = run(*how, "--test", "me@example.org")
    assert (refused.exit_code, refused.output) == (1, "Error: It was refused.\n")
    assert run("list").output == "There has been no broadcast yet.\n"


def test_send_shows_its_versions(application: Flask, sender: Sender, run: Run, notice: Path) -> None:
    register(application, 1)

    with running(sender):
        result = run("send", "--title", "x", "--versions", "<7.0.3.1", notice, "--yes")

    assert re.search(r"versions +<7\.0\.3\.1\n", result.output)
    assert "1 of 1 sent" in result.output


def test_a_bad_range_is_a_sentence(run: Run, notice: Path) -> None:
    result = run("send", "--title", "x", "--versions", "7.0.3", notice, "--yes")

    assert result.exit_code == 1
    assert "Good ones are <7.0.3.1" in result.output
