"""What recipients find: the mails that the outbox mailer has written, and what is shown of their HTML."""

from __future__ import annotations

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from html.parser import HTMLParser
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


class Shown(HTMLParser):
    """The text that a mail program shows of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.hidden = "", 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in {"style", "title"}

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in {"style", "title"}

    def handle_data(self, data: str) -> None:
        self.text += "" if self.hidden else data
