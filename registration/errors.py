"""Everything that can go wrong, as one tree. An error's docstring is its message unless it is given a better one."""


class RegistrationError(Exception):
    """The request could not be carried out."""

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or type(self).__doc__)


class InvalidEmailException(RegistrationError):
    """The e-mail address is not valid."""


class AlreadyRegisteredException(RegistrationError):
    """The e-mail address is already registered."""


class InvalidSecretPinException(RegistrationError):
    """The secret pin is missing or wrong."""


class InvalidEmailMessageException(RegistrationError):
    """The message needs a title and contents."""


class UnknownBroadcastException(RegistrationError):
    """There is no broadcast with this id."""


class UnsupportedInputException(RegistrationError):
    """Send the fields as a form, as a JSON object or in the query string."""
