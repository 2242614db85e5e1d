"""The message of a broadcast: values in, a checked Message out."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace

from . import markup
from .errors import InvalidEmailMessageException

LONGEST_TITLE = 200
LONGEST_CONTENTS = 100_000
LONGEST_HTML = 200_000
TEST_MARK = "[TEST] "
_LINE_BREAKERS = {"Cc", "Cs", "Zl", "Zp"}
"""Cs is half of a character (a surrogate), which nothing can encode."""
_ENCODED_WORD = re.compile(r"=\?[^?]*\?[bq]\?.*?\?=", re.IGNORECASE)
"""What mail programs decode in a header, line breaks and all: also with spaces, which RFC 2047 section 2 forbids."""
BYTE_ORDER_MARK = "\ufeff"
_FILE_NAME = re.compile(r"@(\S+|[^\r\n]+\.\w{1,5})")
"""What curl's `--data-urlencode contents=@notice.txt` sends in place of the file."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_ALLOWED_CONTROLS = "\t\n\r"


@dataclass(frozen=True)
class Message:
    """One message for everybody: subject, text, and HTML in place of what would be made of the text."""

    subject: str
    text: str
    html: str | None = None
    is_test: bool = False


def compose(title: str, contents: str, html: str | None = None) -> Message:
    """Return the message for a title, contents and, where somebody has written it, HTML.

    Raises InvalidEmailMessageException when the title is not 1 to 200 characters on one line, the contents
    not 1 to 100,000 characters of text, or the HTML not 1 to 200,000; for an encoded word in the title, a lost
    character (U+FFFD), and contents that are only a file's name. Control characters are refused: a line break
    in a title would start another header (RFC 5322 section 2.2), and NUL is not allowed in mail at all (section 4). So
    is HTML that would hide the footer with the opt-out link. A byte order mark at the beginning, as some editors write
    it into a file, is left out.
    """
    title, contents = title.removeprefix(BYTE_ORDER_MARK).strip(), contents.removeprefix(BYTE_ORDER_MARK)
    if _is_blank(title) or len(title) > LONGEST_TITLE:
        raise InvalidEmailMessageException(_wrong_length("title", title, LONGEST_TITLE))
    if any(unicodedata.category(character) in _LINE_BREAKERS for character in title):
        raise InvalidEmailMessageException("The title must be one line without control characters.")
    if _ENCODED_WORD.search(title):
        raise InvalidEmailMessageException("The title must not hold an encoded word such as =?utf-8?q?x?=.")
    _check_nothing_lost("title", title)
    _check("contents", contents, LONGEST_CONTENTS)
    if html is not None:
        html = html.removeprefix(BYTE_ORDER_MARK)
        _check("html", html, LONGEST_HTML)
        if hidden_by := markup.find_place(html).hidden_by:
            raise InvalidEmailMessageException(
                f"The opt-out link goes at the end of the html, where {hidden_by} would hide it. Close that earlier."
            )
    return Message(subject=title, text=contents, html=html)


def mark_as_test(message: Message) -> Message:
    """Return the message with a subject that says it is a test."""
    return replace(message, subject=TEST_MARK + message.subject, is_test=True)


def _check(name: str, text: str, longest: int) -> None:
    if _is_blank(text) or len(text) > longest:
        raise InvalidEmailMessageException(_wrong_length(name, text, longest))
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text if character not in _ALLOWED_CONTROLS):
        raise InvalidEmailMessageException(f"The {name} must not hold control characters or lone surrogates.")
    _check_nothing_lost(name, text)
    if _FILE_NAME.fullmatch(text.strip()):
        raise InvalidEmailMessageException(
            f"The {name} is only the name of a file. With curl, `--data-urlencode {name}@notice.txt` without an equals "
            "sign sends the text in it."
        )


def _wrong_length(name: str, text: str, longest: int) -> str:
    sentence = f"The {name} must have 1 to {longest:,} characters."
    return sentence if _is_blank(text) else f"{sentence} There are {len(text):,}."


def _is_blank(text: str) -> bool:
    """Return whether nobody would see anything: blanks, and characters without a width (Cf)."""
    return all(character.isspace() or unicodedata.category(character) == "Cf" for character in text)


def _check_nothing_lost(name: str, text: str) -> None:
    if _REPLACEMENT in text:
        raise InvalidEmailMessageException(
            f"The {name} holds {_REPLACEMENT} where a character was lost. Write it anew."
        )
