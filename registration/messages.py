"""What a broadcast says: values in, a checked Message out."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace

from .errors import InvalidEmailMessageException

LONGEST_TITLE = 200
LONGEST_CONTENTS = 100_000
TEST_MARK = "[TEST] "
_LINE_BREAKERS = {"Cc", "Zl", "Zp"}
_ALLOWED_CONTROLS = "\t\n\r"


@dataclass(frozen=True)
class Message:
    """One message for everybody: subject and plain text."""

    subject: str
    text: str


def compose(title: str, contents: str) -> Message:
    """Return the message for a title and contents.

    Raises InvalidEmailMessageException when the title is not 1 to 200 characters on one line, or the contents
    not 1 to 100,000 characters of text. Control characters are refused: a line break in a title would start
    another header (RFC 5322 section 2.2), and NUL is not allowed in mail at all (section 4).
    """
    title = title.strip()
    if not title or len(title) > LONGEST_TITLE:
        raise InvalidEmailMessageException(f"The title must have 1 to {LONGEST_TITLE} characters.")
    if any(unicodedata.category(character) in _LINE_BREAKERS for character in title):
        raise InvalidEmailMessageException("The title must be one line without control characters.")
    if not contents.strip() or len(contents) > LONGEST_CONTENTS:
        raise InvalidEmailMessageException(f"The contents must have 1 to {LONGEST_CONTENTS:,} characters.")
    if any(unicodedata.category(character) == "Cc" for character in contents if character not in _ALLOWED_CONTROLS):
        raise InvalidEmailMessageException("The contents must not hold control characters.")
    return Message(subject=title, text=contents)


def mark_as_test(message: Message) -> Message:
    """Return the message with a subject that says it is a test."""
    return replace(message, subject=TEST_MARK + message.subject)
