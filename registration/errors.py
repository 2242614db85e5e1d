"""Everything that can go wrong, as one tree. An error's docstring is its message unless it is given a better one."""

from __future__ import annotations

from datetime import timedelta


class RegistrationError(Exception):
    """The request could not be carried out."""

    def __init__(self, detail: str | None = None, *, retry_after: timedelta | None = None) -> None:
        super().__init__(detail or type(self).__doc__)
        self.retry_after = retry_after


class InvalidEmailException(RegistrationError):
    """The e-mail address is not valid."""


class AlreadyRegisteredException(RegistrationError):
    """The e-mail address is already registered."""


class TooManyRegistrationsException(RegistrationError):
    """There were too many registrations in the last minute. Try again in a minute."""


class InvalidSecretPinException(RegistrationError):
    """The secret pin is wrong."""


class TooManyAttemptsException(RegistrationError):
    """Too many wrong secret pins. Wait a quarter of an hour, or use another connection, such as your phone's."""


class InvalidEmailMessageException(RegistrationError):
    """The message needs a title and contents."""


class InvalidVersionRangeException(RegistrationError):
    """The range of versions cannot be read."""


class UnknownBroadcastException(RegistrationError):
    """There is no broadcast with this id."""


class InvalidQueryException(RegistrationError):
    """The request asks for something that there is not."""


class UnsupportedInputException(RegistrationError):
    """Send the fields as a form, as a JSON object or in the query string."""


class ForgedLinkException(RegistrationError):
    """The link is incomplete, or not one of ours."""


class ExpiredLinkException(RegistrationError):
    """The link has expired. Register again to get another one."""


class RepeatedBroadcastException(RegistrationError):
    """The same broadcast was asked for before."""

    def __init__(self, broadcast_id: int) -> None:
        super().__init__()
        self.broadcast_id = broadcast_id


class IdempotencyKeyException(RegistrationError):
    """The idempotency key was used for another message, in the last 24 hours or for one that is still on its way."""


class InvalidIdempotencyKeyException(RegistrationError):
    """The Idempotency-Key must have 1 to 255 printable ASCII characters."""


class MailServiceBusyException(RegistrationError):
    """The mail service takes no message at the moment."""


class MailServiceRefusedException(RegistrationError):
    """The mail service did not take the message."""
