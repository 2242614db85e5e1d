"""What recipients find: the mails that the outbox mailer has written."""

from __future__ import annotations

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path


class Inbox:
    """The mails to everybody in one directory, in the order of their file names."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def mails(self) -> list[EmailMessage]:
        return [message_from_bytes(file.read_bytes(), policy=default) for file in self._files()]

    def texts(self) -> list[str]:
        """Return the text part of each mail."""
        return [mail.get_body(("plain",)).get_content() for mail in self.mails()]

    def empty(self) -> None:
        for file in self._files():
            file.unlink()

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("*.eml"))
