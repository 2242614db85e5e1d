"""Erased addresses: only keyed hashes, of the address itself and of the mailbox that it leads to.

The first keeps an import from bringing the address back. Both make a registration of it, or of a variation of it, wait
for its owner: anybody can type it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import addresses
from .models import Erasure, Registration
from .tokens import Tokens


def note(session: Session, address_key: str, *, tokens: Tokens, now: datetime) -> None:
    """Remember that an address is erased, under each key: an instance that is still to restart may have one alone."""
    for text in (address_key, _mailbox(address_key)):
        for fingerprint in tokens.fingerprints(text):
            session.merge(Erasure(key_hash=fingerprint, erased_at=now))


def in_force(session: Session, address_keys: Iterable[str], *, tokens: Tokens) -> set[str]:
    """Return which of some hundreds of address keys were erased and did not register again themselves since."""
    by_hash = _by_hash({key: {key} for key in address_keys}, tokens)
    noted = session.execute(select(Erasure.key_hash).where(Erasure.key_hash.in_(by_hash))).scalars()
    erased = {key for fingerprint in noted for key in by_hash[fingerprint]}
    back = select(Registration.email_key).where(Registration.email_key.in_(erased))
    return erased.difference(session.execute(back).scalars()) if erased else erased


def mailbox_hashes(address_keys: Iterable[str], *, tokens: Tokens) -> Mapping[str, list[str]]:
    """Return the hashes of the mailboxes of some addresses, with the addresses that each stands for.

    One of them is noted if the mailbox was erased under any variation; earlier versions noted the exact address alone.
    """
    return _by_hash({key: {key, addresses.mailbox(key), _mailbox(key)} for key in address_keys}, tokens)


def _by_hash(texts: Mapping[str, Collection[str]], tokens: Tokens) -> Mapping[str, list[str]]:
    by_hash: dict[str, list[str]] = defaultdict(list)
    for key, those in texts.items():
        for fingerprint in (fingerprint for text in those for fingerprint in tokens.fingerprints(text)):
            by_hash[fingerprint].append(key)
    return by_hash


def _mailbox(address_key: str) -> str:
    """Return a text that stands for a mailbox and for no address."""
    return f"mailbox {addresses.mailbox(address_key)}"
