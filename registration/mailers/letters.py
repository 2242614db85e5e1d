"""The letter that a recipient gets: headers, a text part and an HTML part, written once for everybody.

Only the opt-out link differs from one recipient to another; both parts are kept as what comes before and after it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formataddr
from pathlib import Path
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from .. import markdown, markup
from ..messages import Message

PROJECT = "OpenEMR security and update notices"
WHY = "You get this because this address was entered when OpenEMR was installed."
STOP = "Stop these notices"
NO_LINK = "(This is a test: everybody else gets a link of their own here.)"
ONE_CLICK = {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
FEEDBACK_ID = "openemr-notices"
"""The beginning of the Feedback-ID header, by which Gmail tells our notices from others' mail."""
LONGEST_LINK = 900
"""A header of Amazon SES has 996 characters at most, its name included
(https://docs.aws.amazon.com/ses/latest/dg/header-fields.html)."""

_FONT = "-apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_SHOWN = (
    "display: block !important; visibility: visible !important; opacity: 1 !important; font-size: 13px !important;"
    " background: transparent !important; color: inherit;"
)
"""A style sheet of the board's own must not hide the opt-out link by accident."""
_ON_WHITE = (
    "background: #ffffff !important; color: #5a6672 !important; -webkit-text-fill-color: currentcolor !important;"
)
"""Whatever the colours of a page of the board's own are, and of the reader's screen, the footer can be read on it."""
_LINK_PLACE = "\0"
"""Stands for the link while a part is written; no message holds it."""
_IN_A_HEADER = re.compile(r"[!#-%(-;=?-~]+")
"""Printable ASCII without space, and without what HTML escapes."""

_templates = Environment(loader=FileSystemLoader(Path(__file__).parent.parent / "templates" / "mail"), autoescape=True)


@dataclass(frozen=True)
class Part:
    """One body of a mail, as what comes before and after the recipient's link."""

    before: str
    after: str

    def with_link(self, link: str) -> str:
        """Return the whole part for one recipient."""
        return f"{self.before}{link}{self.after}"


@dataclass(frozen=True)
class Letter:
    """A message as it is mailed."""

    subject: str
    text: Part
    html: Part


@dataclass(frozen=True)
class Letterhead:
    """Who writes, and why: what every letter says besides its message.

    `opt_out_url` makes the link of a registration from its product id; `public_url` is where the service lives.
    """

    sender: str
    public_url: str
    opt_out_url: Callable[[uuid.UUID], str]
    sender_name: str = ""
    reply_to: str = ""
    postal_address: str = ""

    @property
    def from_address(self) -> str:
        """Return the From header; a name that is not ASCII is encoded (RFC 2047)."""
        return formataddr((self.sender_name, self.sender)) if self.sender_name else self.sender

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that all letters share (RFC 2919 for the list, RFC 3834 for what submits itself)."""
        host = urlsplit(self.public_url).hostname or "localhost"
        return {"List-Id": f"{PROJECT} <notices.{host}>", "Auto-Submitted": "auto-generated"}

    def link(self, product_id: uuid.UUID | None) -> str:
        """Return the opt-out link of a registration; of nobody, that of a page which explains a test."""
        test_url = f"{self.public_url}/opt-out/test"
        link = test_url if product_id is None else self.opt_out_url(product_id)
        if len(link) > LONGEST_LINK or not _IN_A_HEADER.fullmatch(link):
            raise ValueError("An opt-out link must be short printable ASCII that HTML does not escape.")
        return link

    def opt_out_headers(self, product_id: uuid.UUID | None) -> dict[str, str]:
        """Return the headers with which a mail program opts out at one click (RFC 8058); none for nobody."""
        if product_id is None:
            return {}
        return {"List-Unsubscribe": f"<{self.link(product_id)}>"} | ONE_CLICK

    def write(self, message: Message) -> Letter:
        """Return the letter that says a message: text as it was written, and HTML, each with the footer."""
        note = NO_LINK if message.is_test else ""
        footer = {"why": WHY, "stop": STOP, "note": note, "postal_address": self.postal_address}
        footer |= {"link": _LINK_PLACE, "shown": _SHOWN}
        address = f"\n\n{self.postal_address}" if self.postal_address else ""
        end = f"{f' {note}' if note else ''}{address}\n"
        return Letter(
            subject=message.subject,
            text=Part(f"{message.text}\n\n-- \n{WHY}\n\n{STOP}: ", end),
            html=_split(_html(message, footer)),
        )


def _html(message: Message, footer: dict[str, str]) -> str:
    own, words = message.html, _templates.get_template("footer.html")
    if own is not None and (place := markup.find_place(own)).is_document:
        end = words.render(footer, link_colour=f"{markdown.LINK_COLOUR} !important")
        style = f"{_SHOWN} {_ON_WHITE} padding: 16px; font: 13px/1.6 {_FONT};"
        return f'{own[: place.position]}<div style="{style}">{end}</div>{own[place.position :]}'
    body = markdown.render(message.text) if own is None else own
    return _templates.get_template("notice.html").render(
        subject=message.subject,
        project=PROJECT,
        font=Markup(_FONT),  # noqa: S704  ours
        body=Markup(body),  # noqa: S704  rendered without anybody's HTML, or the board's own
        is_own=own is not None,
        footer=Markup(words.render(footer, link_colour=markdown.LINK_COLOUR)),  # noqa: S704  of our template
    )


def _split(html: str) -> Part:
    before, _, after = html.rpartition(_LINK_PLACE)
    return Part(before, after)
