"""The commands: parse, call one core function, commit, print."""

from __future__ import annotations

import errno
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup
from sqlalchemy.exc import SQLAlchemyError

from . import (
    addresses,
    audiences,
    broadcasts,
    feedback,
    figures,
    messages,
    monitoring,
    pacing,
    services,
    terminal,
    trials,
)
from .audiences import Audience
from .db import LARGEST_ID, commit_step, commit_steps, database_time, db
from .errors import RegistrationError, RepeatedBroadcastException
from .messages import Message
from .monitoring import Forecast, Progress

POLL_SECONDS = 0.5
POLL_SHARE = 0.2
"""The share of its time that a look at the figures may take: counting a million deliveries is work."""
QUIET_SECONDS = 5.0
"""How long nothing has to happen until we say so."""
INTERRUPTED = 130
_COMMAND = "flask --app application broadcast"
_NOBODY = (
    f"Nobody has sent anything for {QUIET_SECONDS:g} seconds. If no sender is running, start one: "
    "python application.py --sender"
)

log = logging.getLogger(__name__)


class Group(AppGroup):
    """Commands whose errors are a sentence and an exit status, never a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except RegistrationError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read the output has enough of it
                raise
            raise click.ClickException(f"A file could not be read or written: {error.strerror or error}.") from error
        except UnicodeError as error:
            raise click.ClickException("The text is not valid UTF-8.") from error
        except SQLAlchemyError as error:
            raise click.ClickException(
                "The database does not answer, or lacks its tables. Check DB_CONN_STR, "
                f"or make them: flask --app application db upgrade ({getattr(error, 'orig', None) or error})"
            ) from error


broadcast = Group("broadcast", help="Send a message to everybody who is registered, and look after it.")
_id = click.argument("broadcast_id", metavar="ID", type=click.IntRange(1, LARGEST_ID), help="As `list` shows it.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@broadcast.command()
@click.option("--title", required=True, help="The subject: one line of up to 200 characters.")
@click.option("--urgent", is_flag=True, help="Send it before the other broadcasts.")
@click.option("--resend", is_flag=True, help="Send it although the same was sent within 24 hours or is on its way.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(exists=True, dir_okay=False),
    help="HTML in UTF-8 in place of what would be made of the text.",
)
@click.option("--versions", metavar="RANGE", help='Only to these versions, such as "<7.0.3.1" or ">=6.0.0,<7.0.2".')
@click.option(
    "--unknown",
    type=click.Choice(audiences.UNKNOWN_CHOICES),
    default="include",
    show_default=True,
    help="Whether it also goes to those whose version is unknown.",
)
@click.option("--dry-run", is_flag=True, help="Send nothing; tell who would get it.")
@click.option("--test", "test_address", metavar="ADDRESS", help="Send it to this address only, as a test.")
@_yes
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), default="-", help="A text in UTF-8."
)
def send(
    title: str,
    file: str,
    *,
    html_file: str | None,
    urgent: bool,
    resend: bool,
    versions: str | None,
    unknown: str,
    dry_run: bool,
    test_address: str | None,
    yes: bool,
) -> None:
    """Send the text in FILE, or standard input, to everybody or to some versions, and show how it goes.

    Ctrl-C ends the showing, not the broadcast.
    """
    oldest = timedelta(days=current_app.config["INSTALLATION_MAX_AGE_DAYS"])
    whom = audiences.asked_for(versions, unknown, oldest, _now())
    html = _read(html_file, ask=False) if html_file else None
    is_asked = not (yes or dry_run or test_address is not None)
    message = messages.compose(title, _read(file, ask=is_asked), html)
    if dry_run:
        click.echo(terminal.forecast(_forecast(whom), message.subject))
        return
    if test_address is not None:
        _send_test(message, addresses.normalise(test_address).stored)
        return
    if is_asked:
        click.echo(terminal.forecast(_forecast(whom), message.subject))
        click.confirm("Send it?", abort=True)
    try:
        _start(message, whom, urgent=urgent, resend=resend)
    except RepeatedBroadcastException as repetition:
        _tell_repetition(repetition, urgent=urgent, resend=resend)
        raise click.exceptions.Exit(1) from repetition


@broadcast.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many.")
@_as_json
def list_(limit: int, *, as_json: bool) -> None:
    """List the broadcasts, newest first."""
    found = [_progress(broadcast_id) for broadcast_id in broadcasts.page(db.session(), limit=limit)]
    if as_json:
        click.echo(json.dumps([figures.of(progress, _now()) for progress in found]))
    else:
        click.echo(terminal.table(found) if found else "There has been no broadcast yet.")


@broadcast.command()
@click.option("--follow", is_flag=True, help="Go on showing it until it has ended.")
@_as_json
@_id
def show(broadcast_id: int, *, follow: bool, as_json: bool) -> None:
    """Show how far a broadcast has come, and what became of its messages."""
    if as_json and follow:
        raise click.UsageError("--json shows it once. Leave out --follow.")
    progress = _progress(broadcast_id)
    told = figures.of_feedback(progress.sent, feedback.counts(db.session(), broadcast_id))
    db.session.rollback()
    if as_json:
        click.echo(json.dumps(figures.of(progress, _now()) | {"feedback": told}))
        return
    click.echo("\n".join(filter(None, [terminal.details(progress, _now()), terminal.feedback(told)])))
    if follow and progress.finished_at is None:
        _follow(broadcast_id)
    elif follow:
        _exit_by_status(progress)


@broadcast.command()
@_id
def pause(broadcast_id: int) -> None:
    """Let a broadcast rest until somebody resumes it."""
    commit_step(lambda session: broadcasts.pause(session, broadcast_id))
    _tell(broadcast_id)


@broadcast.command()
@_id
def resume(broadcast_id: int) -> None:
    """Let a paused broadcast go on."""
    commit_step(lambda session: broadcasts.resume(session, broadcast_id))
    _tell(broadcast_id)


@broadcast.command()
@_yes
@_id
def cancel(broadcast_id: int, *, yes: bool) -> None:
    """End a broadcast; who has not got it yet does not get it."""
    progress = _progress(broadcast_id)
    if progress.finished_at is not None:
        raise click.ClickException(f"{terminal.state(progress)} There is nothing to cancel any more.")
    if not yes:
        click.confirm(f"{terminal.state(progress)} Cancel it?", abort=True)
    commit_step(lambda session: broadcasts.cancel(session, broadcast_id))
    _tell(broadcast_id)


@broadcast.command()
@_id
def retry(broadcast_id: int) -> None:
    """Send a broadcast again to those who failed or were cancelled, nobody else."""
    commit_steps(partial(broadcasts.retry, broadcast_id=broadcast_id, before=_now()))
    _tell(broadcast_id)


def _read(file: str, *, ask: bool) -> str:
    """Return the contents. A pipe that is read to its end leaves nowhere to ask."""
    if file == "-" and sys.stdin.isatty():
        click.echo("Write the text; Ctrl-D on a line of its own ends it.", err=True)
    elif file == "-" and ask:
        raise click.UsageError("There is nowhere to ask you when the text comes from a pipe: add --yes.")
    with click.open_file(file, encoding="utf-8-sig") as opened:
        return str(opened.read())


def _send_test(message: Message, address: str) -> None:
    reserve = partial(trials.reserve, rate_limit=services.current().rate_limit, now=_now().timestamp())
    time.sleep(commit_step(reserve))
    trials.send(services.current().mailer(), message, address)
    log.info("a test was sent")
    click.echo("The test was sent. Nobody else got it.")


def _start(message: Message, whom: Audience, *, urgent: bool, resend: bool) -> None:
    """Start a broadcast and show it until its end. Raises RepeatedBroadcastException."""
    begin = partial(broadcasts.start, message=message, now=_now(), whom=whom, urgent=urgent, resend=resend)
    broadcast_id = commit_step(begin)
    log.info("a broadcast has started", extra={"broadcast": broadcast_id})
    _wake()
    click.echo(f"Broadcast {broadcast_id} has started.")
    _follow(broadcast_id)


def _tell_repetition(repetition: RepeatedBroadcastException, *, urgent: bool, resend: bool) -> None:
    """Tell of the broadcast that a request repeats, which an urgent repetition makes urgent."""
    if urgent:
        commit_step(partial(broadcasts.hurry, broadcast_id=repetition.broadcast_id))
        log.info("a broadcast was made urgent", extra={"broadcast": repetition.broadcast_id})
    progress = _progress(repetition.broadcast_id)
    click.echo(f"{repetition} {terminal.advice_after(progress, resend=resend)}", err=True)
    click.echo(terminal.details(progress, _now()))


def _forecast(whom: Audience) -> Forecast:
    forecast = monitoring.forecast(db.session(), _now(), whom=whom, rate_limit=services.current().rate_limit)
    db.session.rollback()
    return forecast


def _tell(broadcast_id: int) -> None:
    """Tell what came of a step that was taken."""
    command = click.get_current_context().info_name
    log.info("somebody steered a broadcast", extra={"broadcast": broadcast_id, "call": f"broadcast {command}"})
    _wake()
    click.echo(terminal.details(_progress(broadcast_id), _now()))


def _follow(broadcast_id: int) -> None:
    """Show a broadcast until it has ended. Ctrl-C ends the showing only."""
    screen = terminal.Screen(sys.stdout)
    progress = None
    try:
        for progress in _show_until_end(broadcast_id, screen):
            if progress.finished_at is not None:
                screen.say(terminal.details(progress, _now()))
                _exit_by_status(progress)
    except KeyboardInterrupt as interrupt:
        screen.say(_parting(broadcast_id, progress))
        raise click.exceptions.Exit(INTERRUPTED) from interrupt


def _parting(this: int, progress: Progress | None) -> str:
    """Return what becomes of a broadcast that was last seen so, if at all, and what to do about it."""
    look, stop = f"Look at it: {_COMMAND} show --follow {this}", f"Stop it: {_COMMAND} cancel {this}"
    if progress is None or progress.status == "sending" or progress.resume_at is not None:
        return f"The broadcast goes on without you. {look}\n{stop}"
    if progress.status == "paused":
        return f"{terminal.state(progress)} Resume it: {_COMMAND} resume {this}\n{stop}"
    return f"{terminal.state(progress)} {look}"


def _exit_by_status(progress: Progress) -> None:
    """End the command with an exit status of 1 if a broadcast did not reach its end."""
    if progress.status != "sent":
        raise click.exceptions.Exit(1)


def _show_until_end(broadcast_id: int, screen: terminal.Screen) -> Iterator[Progress]:
    """Show a broadcast until it has ended; yield each look at it, with that at its end as the last."""
    said, life, quiet_since = "", None, time.monotonic()
    while True:
        begun = time.monotonic()
        progress = _progress(broadcast_id)
        yield progress
        if progress.finished_at is not None:
            return
        if progress.reason and progress.reason != said:
            screen.say(terminal.state(progress))
            said = progress.reason
        screen.show(progress, _now())
        if (seen := (progress.status, progress.remaining, _free_at())) != life or progress.status == "paused":
            life, quiet_since = seen, begun
        elif begun - quiet_since >= QUIET_SECONDS:
            screen.say(_NOBODY)
            quiet_since = math.inf
        time.sleep(max(POLL_SECONDS, (time.monotonic() - begun) / POLL_SHARE))


def _progress(broadcast_id: int) -> Progress:
    progress = monitoring.progress(db.session(), broadcast_id, _now(), rate_limit=services.current().rate_limit)
    db.session.rollback()
    return progress


def _free_at() -> float:
    """Return the account's next free instant, which moves whenever anybody sends."""
    instant = pacing.free_at(db.session())
    db.session.rollback()
    return instant


def _wake() -> None:
    services.current().wake()


def _now() -> datetime:
    now = database_time(db.session())
    db.session.rollback()
    return now
