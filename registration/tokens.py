"""Signed links for the people whose addresses these are: to opt out, and to confirm. None holds an address."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from itsdangerous import BadSignature, Signer
from itsdangerous.encoding import base64_decode, base64_encode
from itsdangerous.exc import BadData

from .errors import ExpiredLinkException, ForgedLinkException

CONFIRMATION_LIFETIME = timedelta(days=7)
LONGEST_TOKEN = 100
_ID_BYTES, _TIME_BYTES = 16, 8


class ConfirmationLink(NamedTuple):
    """What a confirmation link says: for which registration it is, and in which second its mail was sent."""

    product_id: uuid.UUID
    sent_at: datetime


class Tokens:
    """Makes and reads links below `public_url`.

    Of several `keys` the last, newest one signs and all are accepted (https://itsdangerous.palletsprojects.com/).
    """

    def __init__(self, keys: Sequence[str], public_url: str) -> None:
        self._opt_out, self._confirmation = (
            _Signer(list(keys), salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
            for salt in ("opt-out", "confirmation")
        )
        self._erasure_keys = [hmac.digest(key.encode(), b"erasure", "sha256") for key in reversed(keys)]
        self._public_url = public_url

    def opt_out_url(self, product_id: uuid.UUID) -> str:
        """Return the address of the opt-out page of a registration; it does not expire."""
        return f"{self._public_url}/opt-out/{_sign(self._opt_out, product_id.bytes)}"

    def confirmation_url(self, product_id: uuid.UUID, now: datetime) -> str:
        """Return the address of the page that confirms a registration, for seven days."""
        end = int((now + CONFIRMATION_LIFETIME).timestamp()).to_bytes(_TIME_BYTES, "big")
        return f"{self._public_url}/confirm/{_sign(self._confirmation, product_id.bytes + end)}"

    def read_opt_out(self, token: str) -> uuid.UUID:
        """Return the product id of an opt-out link. Raises ForgedLinkException."""
        return uuid.UUID(bytes=_unsign(self._opt_out, token, _ID_BYTES))

    def read_confirmation(self, token: str, now: datetime) -> ConfirmationLink:
        """Return what a confirmation link says. Raises ForgedLinkException or ExpiredLinkException."""
        payload = _unsign(self._confirmation, token, _ID_BYTES + _TIME_BYTES)
        end = datetime.fromtimestamp(int.from_bytes(payload[_ID_BYTES:], "big"), UTC)
        if now > end:
            raise ExpiredLinkException
        return ConfirmationLink(uuid.UUID(bytes=payload[:_ID_BYTES]), end - CONFIRMATION_LIFETIME)

    def fingerprints(self, address_key: str) -> list[str]:
        """Return the keyed hash of an address under each key, the newest first: what may stay when it is erased."""
        return [hmac.digest(key, address_key.encode(), "sha256").hex() for key in self._erasure_keys]


class _Signer(Signer):
    """A signer that derives each key once: every message has a link."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.derive_key = cache(super().derive_key)  # type: ignore[method-assign]


def _sign(signer: Signer, payload: bytes) -> str:
    return signer.sign(base64_encode(payload)).decode()


def _unsign(signer: Signer, token: str, length: int) -> bytes:
    try:
        payload = base64_decode(signer.unsign(token))
    except (BadSignature, BadData, UnicodeError) as error:
        raise ForgedLinkException from error
    if len(payload) != length:
        raise ForgedLinkException
    return payload
