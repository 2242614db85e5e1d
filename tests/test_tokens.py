"""Signed links: read back by us alone, through a change of keys, and for as long as they should."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from itsdangerous import Signer
from itsdangerous.encoding import base64_encode

from registration.errors import ExpiredLinkException, ForgedLinkException
from registration.tokens import CONFIRMATION_LIFETIME, LONGEST_TOKEN, Tokens

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
OLD, NEW = "an old key of thirty-two characters", "a new key of thirty-two characters"
PRODUCT_ID = uuid.UUID("a30ebf9e-ad64-42dc-8f20-5834c6ef63d7")
TOKENS = Tokens([OLD], "https://reg.example.org")
SECOND = timedelta(seconds=1)


def token(url: str) -> str:
    return url.rpartition("/")[2]


def test_a_link_says_which_registration_it_is_for() -> None:
    url = TOKENS.opt_out_url(PRODUCT_ID)

    assert url.startswith("https://reg.example.org/opt-out/")
    assert TOKENS.read_opt_out(token(url)) == PRODUCT_ID
    assert len(token(TOKENS.confirmation_url(PRODUCT_ID, NOW))) <= LONGEST_TOKEN


def test_old_links_outlive_a_new_key_and_not_the_end_of_their_own() -> None:
    old = token(TOKENS.opt_out_url(PRODUCT_ID))

    assert Tokens([OLD, NEW], "").read_opt_out(old) == PRODUCT_ID
    assert Tokens([OLD, NEW], "").opt_out_url(PRODUCT_ID) == Tokens([NEW], "").opt_out_url(PRODUCT_ID)
    with pytest.raises(ForgedLinkException):
        Tokens([NEW], "").read_opt_out(old)


@pytest.mark.parametrize("forged", ["", "a", "a.b", "é.é", ".", "AAAA", token(TOKENS.opt_out_url(PRODUCT_ID))[:-1]])
def test_a_forged_link_is_refused(forged: str) -> None:
    with pytest.raises(ForgedLinkException):
        TOKENS.read_opt_out(forged)
    with pytest.raises(ForgedLinkException):
        TOKENS.read_confirmation(forged, NOW)


def test_a_link_for_one_purpose_does_not_serve_the_other() -> None:
    with pytest.raises(ForgedLinkException):
        TOKENS.read_opt_out(token(TOKENS.confirmation_url(PRODUCT_ID, NOW)))
    with pytest.raises(ForgedLinkException):
        TOKENS.read_confirmation(token(TOKENS.opt_out_url(PRODUCT_ID)), NOW)


def signed(purpose: str, payload: bytes) -> str:
    """Sign anything for a purpose, with our key."""
    signer = Signer(OLD, salt=purpose, key_derivation="hmac", digest_method=hashlib.sha256)
    return signer.sign(base64_encode(payload)).decode()


IN_TIME = int(NOW.timestamp()).to_bytes(8, "big")


def test_the_purpose_of_a_link_is_in_its_signature() -> None:
    assert TOKENS.read_opt_out(signed("opt-out", PRODUCT_ID.bytes)) == PRODUCT_ID
    assert TOKENS.read_confirmation(signed("confirmation", PRODUCT_ID.bytes + IN_TIME), NOW).product_id == PRODUCT_ID
    with pytest.raises(ForgedLinkException):
        TOKENS.read_opt_out(signed("confirmation", PRODUCT_ID.bytes))
    with pytest.raises(ForgedLinkException):
        TOKENS.read_confirmation(signed("opt-out", PRODUCT_ID.bytes + IN_TIME), NOW)


def test_a_link_holds_no_more_and_no_less_than_it_should() -> None:
    for payload in (b"", PRODUCT_ID.bytes[:-1], PRODUCT_ID.bytes + IN_TIME):
        with pytest.raises(ForgedLinkException):
            TOKENS.read_opt_out(signed("opt-out", payload))
    for payload in (b"", PRODUCT_ID.bytes, PRODUCT_ID.bytes + IN_TIME + b"\0"):
        with pytest.raises(ForgedLinkException):
            TOKENS.read_confirmation(signed("confirmation", payload), NOW)


def test_a_confirmation_expires_after_seven_days() -> None:
    link = token(TOKENS.confirmation_url(PRODUCT_ID, NOW))

    assert timedelta(days=7) == CONFIRMATION_LIFETIME, "as the mail, the page in each language and docs/consent.md say"
    assert TOKENS.read_confirmation(link, NOW + CONFIRMATION_LIFETIME) == (PRODUCT_ID, NOW)
    with pytest.raises(ExpiredLinkException):
        TOKENS.read_confirmation(link, NOW + CONFIRMATION_LIFETIME + SECOND)


def test_a_hash_of_an_address_depends_on_the_key_and_is_found_again_after_a_new_one() -> None:
    (old,) = TOKENS.fingerprints("ann@example.org")
    newest, older = Tokens([OLD, NEW], "").fingerprints("ann@example.org")

    assert older == old != newest
    assert len(old) == 64
