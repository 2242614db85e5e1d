"""Broadcasts in a terminal: sentences, tables, and a line of progress that is drawn again and again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TextIO

from .monitoring import Forecast, Progress

BAR = 10
"""Characters of the bar."""
LINE_SECONDS = 10.0
"""Between two lines of progress where nothing can be drawn again."""
_COLUMNS = ("id", "started", "status", "recipients", "sent", "failed", "left", "title")
_NUMBERS = {"id", "recipients", "sent", "failed", "left"}
_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"))
_CLEAR = "\r\x1b[K"


class Screen:
    """Where progress is shown: one line drawn again on a terminal, a line now and then anywhere else."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.drawn = self.stream.isatty()
        self._line_due = 0.0

    def say(self, sentence: str) -> None:
        """Write a sentence that stays."""
        print((_CLEAR if self.drawn else "") + sentence, file=self.stream, flush=True)

    def show(self, progress: Progress, now: datetime) -> None:
        """Write how far a broadcast has come."""
        if self.drawn:
            line = summary(progress, now)[: shutil.get_terminal_size().columns - 1]  # a longer one would wrap
            print(_CLEAR + line, end="", file=self.stream, flush=True)
        elif now.timestamp() >= self._line_due:
            self._line_due = now.timestamp() + LINE_SECONDS
            print(summary(progress, now), file=self.stream, flush=True)


def summary(progress: Progress, now: datetime) -> str:
    """Return one line: a bar, and what it stands for."""
    ended = progress.recipients - progress.remaining
    share = ended / progress.recipients if progress.recipients else 1.0
    parts = [
        f"[{'#' * int(share * BAR):.<{BAR}}] {share:4.0%}",
        f"{progress.sent:,} of {progress.recipients:,} sent",
        f"{progress.failed:,} failed",
    ]
    if progress.status != "sent":
        parts.append(f"{progress.rate:,.1f} a second" if progress.status == "sending" else progress.status)
    if progress.expected_end is not None and progress.remaining:
        parts.append(f"{clock((progress.expected_end - now).total_seconds())} left")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def duration(seconds: float) -> str:
    """Return a duration as a person would say it."""
    for length, name in _UNITS:
        if seconds >= length:
            number = round(seconds / length)
            return f"about {number} {name}{'s' * (number != 1)}"
    return "less than a minute"


def forecast(forecast: Forecast, title: str) -> str:
    """Return what a broadcast would be: a sentence, and how many are in it and how many are not."""
    if forecast.seconds is None:
        takes = "How long it takes is not known yet"
    else:
        takes = f"It takes {duration(forecast.seconds)}"
    numbers = {
        "in the range": forecast.in_range,
        "of unknown version": forecast.unknown,
        "outside the range": forecast.outside,
        "opted out": forecast.opted_out,
        "bounced or complained": forecast.suppressed,
        "not confirmed": forecast.unconfirmed,
    }
    width = max(map(len, numbers))
    rows = [f"  {name:{width}}  {number:,}" for name, number in numbers.items()]
    return "\n".join([f'"{title}" goes to {forecast.recipients:,} recipients. {takes}.', *rows])


def state(progress: Progress) -> str:
    """Return what a broadcast is doing, as a sentence."""
    sentence = f"Broadcast {progress.broadcast_id} is {progress.status}."
    if progress.reason:
        sentence += f" {progress.reason}"
    if progress.resume_at:
        sentence += f" It tries again at {_time(progress.resume_at)}."
    return sentence


def details(progress: Progress, now: datetime) -> str:
    """Return all there is to say about one broadcast."""
    lines = {
        "title": progress.title,
        "started": _time(progress.created_at),
        "ended": _time(progress.finished_at),
        "urgent": "yes" if progress.urgent else "",
        "versions": progress.versions or "",
        "expected end": _time(progress.expected_end),
        "sent": f"{progress.sent:,}",
        "failed": f"{progress.failed:,}",
        "skipped": f"{progress.skipped:,}",
        "cancelled": f"{progress.cancelled:,}",
        "left": f"{progress.remaining:,}",
        "recipients": f"{progress.recipients:,}",
    }
    width = max(map(len, lines))
    rows = [f"  {name:{width}}  {text}" for name, text in lines.items() if text]
    return "\n".join([state(progress), *rows, summary(progress, now)])


def feedback(told: Mapping[str, int]) -> str:
    """Return what became of the accepted messages, as one line; empty until the mail service has told of any."""
    names = {
        "delivered": "delivered",
        "delayed": "delayed",
        "softBounced": "bounced for the moment",
        "hardBounced": "bounced for good",
        "complained": "reported as spam",
        "rejected": "rejected",
    }
    parts = [f"{told[name]:,} {words}" for name, words in names.items() if told[name]]
    return f"Of {told['accepted']:,} accepted: {', '.join(parts)}." if parts else ""


def table(broadcasts: Sequence[Progress]) -> str:
    """Return a table with a row for each broadcast."""
    rows = [_COLUMNS, *(_row(progress) for progress in broadcasts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if name in _NUMBERS else text.ljust(width)
            for name, text, width in zip(_COLUMNS, row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def advice_after(progress: Progress, *, resend: bool) -> str:
    """Return what becomes of a repetition of a broadcast, and what to do for those who have not got it."""
    advice = "Nobody gets it again."
    if progress.failed or progress.status == "cancelled":
        advice += f" `broadcast retry {progress.broadcast_id}` sends it to those who have not got it."
    return advice if resend else f"{advice} --resend sends it to everybody once more."


def _row(progress: Progress) -> tuple[str, ...]:
    numbers = (progress.recipients, progress.sent, progress.failed, progress.remaining)
    figures = (f"{number:,}" for number in numbers)
    return (str(progress.broadcast_id), _time(progress.created_at), str(progress.status), *figures, progress.title)


def _time(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%Y-%m-%d %H:%M} UTC"
