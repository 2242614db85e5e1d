"""Mail as files: what development uses in place of a mail service."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from email.header import Header
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime, formataddr, localtime, make_msgid
from functools import lru_cache
from pathlib import Path

from ..messages import Message
from . import Account, Outcome, Recipient, Verdict
from .letters import FEEDBACK_ID, Letterhead

_LONGEST_NAME = 200
_PLAIN_TITLE = 60
"""Characters of an ASCII title that fits a line."""
_UNUSUAL = re.compile(r"[^\w.@+-]", re.ASCII)


class _Policy(EmailPolicy):
    """SMTP's, but three headers are written as their readers need them.

    A link stays whole: Python would encode one that is longer than a line, and no program knew it. And a title is
    encoded as one text (RFC 2047 section 6.2 drops the white space between two encoded words), and so is a sender's
    name: Python encodes word by word, and loses spaces between them and quotation marks around them.
    """

    def fold(self, name: str, value: str) -> str:
        """Return a header as it is written, in lines."""
        if name == "From":
            (sender,) = value.addresses  # type: ignore[attr-defined]
            return f"{name}: {formataddr((sender.display_name, sender.addr_spec))}{self.linesep}"
        if name == "List-Unsubscribe":
            return f"{name}: {value}{self.linesep}"
        if name == "Subject" and not (value.isascii() and len(value) <= _PLAIN_TITLE and "=?" not in value):
            words = Header(str(value), "utf-8", header_name=name).encode(linesep=self.linesep)
            return f"{name}: {words}{self.linesep}"
        return str(super().fold(name, value))

    def fold_binary(self, name: str, value: str) -> bytes:
        """Return a header as it is written, in bytes."""
        if name in {"From", "List-Unsubscribe", "Subject"}:
            return self.fold(name, value).encode("ascii")
        return bytes(super().fold_binary(name, value))


_POLICY = _Policy(linesep="\r\n")


class OutboxMailer:
    """Writes one .eml file per recipient, which any mail program opens."""

    def __init__(self, directory: Path, letterhead: Letterhead) -> None:
        self.directory = directory
        self.letterhead = letterhead
        self._letter = lru_cache(maxsize=8)(letterhead.write)

    def largest_batch(self, _: Message) -> int:
        """Return as many as Amazon SES takes."""
        return 50

    def send(self, message: Message, recipients: Sequence[Recipient]) -> list[Outcome]:
        """Write a file for each recipient. A delivery that is sent again replaces its own file."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return [self._write(message, recipient) for recipient in recipients]

    def account(self) -> Account:
        """Return an account without limits: a disk grants any rate."""
        return Account(sending_rate=math.inf)

    def _write(self, message: Message, recipient: Recipient) -> Outcome:
        letterhead, letter = self.letterhead, self._letter(message)
        link = letterhead.link(recipient.product_id)
        mail = EmailMessage(policy=_POLICY)
        mail["From"] = letterhead.from_address
        try:
            mail["To"] = recipient.address
        except ValueError:
            return Outcome(Verdict.REFUSED, reason="The address does not fit into a mail.")
        if letterhead.reply_to:
            mail["Reply-To"] = letterhead.reply_to
        mail["Subject"] = letter.subject
        mail["Date"] = format_datetime(localtime())
        mail["Message-ID"] = make_msgid(domain=letterhead.sender.rpartition("@")[2])
        headers = letterhead.opt_out_headers(recipient.product_id) | letterhead.headers | {"Feedback-ID": FEEDBACK_ID}
        for name, value in headers.items():
            mail[name] = value
        mail.set_content(letter.text.with_link(link))
        mail.add_alternative(letter.html.with_link(link), subtype="html")
        name = _UNUSUAL.sub("_", f"{recipient.delivery_id}-{recipient.address}")[:_LONGEST_NAME]
        unfinished = self.directory / f".{name}.unfinished"
        unfinished.write_bytes(bytes(mail))
        unfinished.replace(self.directory / f"{name}.eml")
        return Outcome(Verdict.ACCEPTED, message_id=mail["Message-ID"])
