"""Which domains an address may be at: not reserved for examples, not a throw-away mailbox's, and with a mail server."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from disposable_email_domains import blocklist
from dns.exception import DNSException
from dns.resolver import NXDOMAIN, Resolver

from .addresses import Address
from .errors import InvalidEmailException

RESERVED = frozenset({"example.com", "example.net", "example.org", "example", "invalid", "localhost", "test"})
"""Domains that belong to nobody, with all below them (RFC 2606, RFC 6761)."""
DNS_SECONDS = 1.0
"""What all questions about one domain may take together; somebody waits."""
REMEMBERED_SECONDS, MOST_REMEMBERED = 600.0, 4096


class Domains:
    """Refuses addresses for their domain; for any number of threads."""

    def __init__(self, *, allow_reserved: bool, allow_disposable: bool, mail_servers: MailServers | None) -> None:
        self._allow_reserved = allow_reserved
        self._allow_disposable = allow_disposable
        self._mail_servers = mail_servers

    def check(self, address: Address, *, look_up: bool = True) -> None:
        """Raise InvalidEmailException, with the reason, for a domain that is not taken.

        `look_up` false asks no DNS.
        """
        domain = address.key.rpartition("@")[2]
        if not self._allow_reserved and _is_below(domain, RESERVED):
            raise InvalidEmailException("The e-mail address is at a domain reserved for examples and tests.")
        if not self._allow_disposable and _is_below(domain, blocklist):
            raise InvalidEmailException("The e-mail address is at a service of throw-away mailboxes.")
        if look_up and self._mail_servers is not None and not self._mail_servers.may_take_mail(domain):
            raise InvalidEmailException("The domain of the e-mail address does not take mail.")


class MailServers:
    """Asks the DNS whether a domain takes mail, and remembers a few thousand answers for a few minutes."""

    def __init__(self, resolver: Resolver | None = None) -> None:
        self._resolver = resolver or Resolver()
        self._remembered: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        self._turn = threading.Lock()

    def may_take_mail(self, domain: str) -> bool:
        """Return False when the DNS says that there is no such domain, or that it takes no mail (RFC 7505).

        A domain without MX takes mail at its address (RFC 5321 section 5.1); no answer in time is a yes.
        """
        with self._turn:
            until, answer = self._remembered.get(domain, (0.0, True))
        if time.monotonic() < until:
            return answer
        answer = self._ask(domain)
        with self._turn:
            self._remembered[domain] = (time.monotonic() + REMEMBERED_SECONDS, answer)
            self._remembered.move_to_end(domain)
            if len(self._remembered) > MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return answer

    def _ask(self, domain: str) -> bool:
        try:
            records = self._resolver.resolve(f"{domain}.", "MX", lifetime=DNS_SECONDS)
        except NXDOMAIN:
            return False
        except (DNSException, OSError):
            return True
        return any(record.exchange.to_text() != "." for record in records)


def _is_below(domain: str, names: frozenset[str] | set[str]) -> bool:
    """Return whether a domain or one that it is below is among the names."""
    while domain not in names:
        _, dot, domain = domain.partition(".")
        if not dot:
            return False
    return True
