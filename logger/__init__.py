"""Logging: readable lines in development, one JSON object a line in production.

Log messages are constant sentences; what varies travels in `extra`. As a last line of defence, anything that looks
like an e-mail address is blotted out of every finished line, so that no library's message can leak one.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from flask import g, has_request_context
from pythonjsonlogger.json import JsonFormatter

_ADDRESS = re.compile(r"[^\s\"<>,;:@(]+@[^\s\"'<>,;:@)\\]+")
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id", "taskName"}


def configure(stream: TextIO, file: Path, *, readable: bool) -> None:
    """Send all log lines to a stream and to a file; a file that cannot be written is done without."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, Handler):
            root.removeHandler(old)
            old.close()
    handler = Handler(stream, file)
    handler.setFormatter(_Readable() if readable else JsonLines())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for chatty in ("alembic", "botocore", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # its errors quote the request line
    if handler.file is None:
        logging.getLogger(__name__).warning("the log file cannot be written")


def blot_out(line: str) -> str:
    """Return a line without what looks like an e-mail address."""
    return _ADDRESS.sub("[address]", line) if "@" in line else line


class Handler(logging.Handler):
    """Writes each line, made once, to a stream and to a file; `file` is None when it cannot be written."""

    def __init__(self, stream: TextIO, file: Path) -> None:
        super().__init__()
        self.stream = stream
        self.file: TextIO | None = None
        with suppress(OSError):
            self.file = file.open("a", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, with the id of the request that it belongs to."""
        try:
            record.request_id = g.get("request_id") if has_request_context() else None
            line = f"{self.format(record)}\n"
            for output in (self.stream, self.file):
                if output is not None:
                    output.write(line)
                    output.flush()
        except Exception:  # noqa: BLE001  as every handler of the standard library
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
        super().close()


class JsonLines(JsonFormatter):
    """One JSON object a line, which gunicorn writes its own messages in as well."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message", "request_id"],
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
        )

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without addresses."""
        return blot_out(super().format(record))


class _Readable(logging.Formatter):
    """A line for a person: time, level, sentence, and what varies behind it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without addresses."""
        extras = " ".join(f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        first, *rest = super().format(record).split("\n")
        return blot_out("\n".join([f"{first}  {extras}".rstrip(), *rest]))
