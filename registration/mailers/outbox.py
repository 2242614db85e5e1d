"""Mail as files: what development uses in place of a mail service."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, localtime, make_msgid
from pathlib import Path

from ..messages import Message
from . import Account, Outcome, Recipient, Verdict

_LONGEST_NAME = 200
_UNUSUAL = re.compile(r"[^\w.@+-]", re.ASCII)


class OutboxMailer:
    """Writes one .eml file per recipient, which any mail program opens."""

    largest_batch = 50

    def __init__(self, directory: Path, sender: str) -> None:
        self.directory = directory
        self.sender = sender

    def send(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        """Write a file for each recipient. A delivery that is sent again replaces its own file."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return [self._write(message, recipient) for recipient in recipients]

    def account(self) -> Account:
        """Return an account without limits: a disk grants any rate."""
        return Account(sending_rate=math.inf)

    def _write(self, message: Message, recipient: Recipient) -> Outcome:
        mail = EmailMessage(policy=SMTP)
        mail["From"] = self.sender
        mail["To"] = recipient.address
        mail["Subject"] = message.subject
        mail["Date"] = format_datetime(localtime())
        mail["Message-ID"] = make_msgid(domain=self.sender.rpartition("@")[2])
        mail.set_content(message.text)
        name = _UNUSUAL.sub("_", f"{recipient.delivery_id}-{recipient.address}")[:_LONGEST_NAME]
        unfinished = self.directory / f".{name}.unfinished"
        unfinished.write_bytes(bytes(mail))
        unfinished.replace(self.directory / f"{name}.eml")
        return Outcome(Verdict.ACCEPTED, message_id=mail["Message-ID"])
