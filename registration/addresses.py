"""The one function that decides which e-mail addresses are taken, and when two of them are the same."""

from __future__ import annotations

from typing import NamedTuple

from email_validator import EmailNotValidError, validate_email

from .errors import InvalidEmailException

_DOTS_IGNORED = {"gmail.com": "gmail.com", "googlemail.com": "gmail.com"}
"""Domains at which a dot in the local part makes no other mailbox, and their one name:
https://support.google.com/mail/answer/7436150"""
_ENCODED_WORD = "=?"
"""How what mail programs decode in a header begins (RFC 2047): the mail would be to somebody else, or to nobody."""
LONGEST_ADDRESS = 254
"""Characters of an address that fits an SMTP path (RFC 5321 section 4.5.3.1.3, erratum 1690)."""
LONGEST_LOCAL_PART = 64
"""Characters before the @-sign that every mail server has to take (RFC 5321 section 4.5.3.1.1)."""


class Address(NamedTuple):
    """An address as it is mailed to, and the key that makes it unique. Both are ASCII."""

    stored: str
    key: str


def normalise(text: str, *, is_new: bool = True) -> Address:
    """Check an address and return how to store it.

    One that is not new may have been registered when what looks like an encoded word was still taken.

    The address stays as it was typed, without the white space around it; only an international domain is
    turned into punycode. The local part must be ASCII, because Amazon SES delivers to no other
    (https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_Destination.html).
    Raises InvalidEmailException with the reason.
    """
    text = text.strip()
    if not text:
        raise InvalidEmailException("An e-mail address is needed.")
    if len(text) > LONGEST_ADDRESS:
        raise InvalidEmailException(f"The e-mail address is longer than {LONGEST_ADDRESS} characters.")
    try:
        validated = validate_email(text, check_deliverability=False, allow_smtputf8=False)
    except EmailNotValidError as error:
        raise InvalidEmailException(f"The e-mail address is not valid: {error}") from error
    if is_new and _ENCODED_WORD in validated.local_part:
        raise InvalidEmailException(f"The e-mail address is not valid: it has {_ENCODED_WORD} before the @-sign.")
    if len(validated.local_part) > LONGEST_LOCAL_PART:
        raise InvalidEmailException(
            f"The e-mail address has more than {LONGEST_LOCAL_PART} characters before the @-sign."
        )
    stored = text if text.isascii() else f"{validated.local_part}@{validated.ascii_domain}"
    return Address(stored=stored, key=stored.lower())


def mailbox(address_key: str) -> str:
    """Return where the mail to an address, given by its key, very likely ends up: one for a person's variations.

    Without the tag after a plus sign, and at Gmail without dots. Two such addresses stay two registrations, because
    nobody but their mail server knows; what may be sent unasked is counted by mailbox.
    """
    local, _, domain = address_key.rpartition("@")
    local = local.partition("+")[0] or local
    if domain in _DOTS_IGNORED:
        local, domain = local.replace(".", ""), _DOTS_IGNORED[domain]
    return f"{local}@{domain}"
