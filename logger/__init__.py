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
    formatter: logging.Formatter = _Readable() if readable else _Json()
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    with suppress(OSError):
        handlers.append(logging.FileHandler(file))
    root = logging.getLogger()
    for old in root.handlers[:]:
        if getattr(old, "is_ours", False):
            root.removeHandler(old)
            old.close()
    for handler in handlers:
        handler.is_ours = True  # type: ignore[attr-defined]
        handler.setFormatter(formatter)
        handler.addFilter(_add_request_id)
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for chatty in ("alembic", "botocore", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # its errors quote the request line
    if len(handlers) == 1:
        logging.getLogger(__name__).warning("the log file cannot be written")


def blot_out(line: str) -> str:
    """Return a line without what looks like an e-mail address."""
    return _ADDRESS.sub("[address]", line) if "@" in line else line


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = g.get("request_id") if has_request_context() else None
    return True


class _Json(JsonFormatter):
    """One JSON object a line, made once for all handlers."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message", "request_id"],
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
        )

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without addresses."""
        line: str | None = vars(record).get("json_line")
        if line is None:
            line = vars(record)["json_line"] = blot_out(super().format(record))
        return line


class _Readable(logging.Formatter):
    """A line for a person: time, level, sentence, and what varies behind it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without addresses."""
        extras = " ".join(f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        first, *rest = super().format(record).split("\n")
        return blot_out("\n".join([f"{first}  {extras}".rstrip(), *rest]))
